"""Training the network on one part of the picture, and running it on another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dynk.demo.baselines import Sigmas
from dynk.demo.data import FloatArray, Scene, random_crop, reduce_nearest
from dynk.demo.network import JointUpsampler

STEPS = 400
BATCH = 4
CROP = 128
LEARNING_RATE = 3e-3


def train(
    scene: Scene, sigmas: Sigmas, *, seed: int, steps: int = STEPS, on_step: Callable[[float], None] = lambda loss: None
) -> JointUpsampler:
    """Train on random crops of `scene`; `on_step` is given each step's loss.

    The loss is the mean square error over the valid pixels, in standard deviations of the scene's disparity; that of
    the two coarser levels counts half.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = JointUpsampler(sigmas)
    deviation = float(scene.disparity[scene.valid].std())
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for _ in range(steps):
        crops = [random_crop(scene, CROP, rng) for _ in range(BATCH)]
        low, rgb = inputs(crops)
        disparity = _stack([crop.disparity for crop in crops])[:, None]
        valid = torch.from_numpy(np.stack([crop.valid for crop in crops]))[:, None]
        loss = torch.zeros(())
        for result, step, weight in zip(network(low, rgb), (4, 2, 1), (0.5, 0.5, 1.0), strict=True):
            error = (result - disparity[:, :, ::step, ::step])[valid[:, :, ::step, ::step]] / deviation
            loss = loss + weight * error.square().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(loss.item())
    return network


def upsample(network: JointUpsampler, low: FloatArray, rgb: FloatArray) -> FloatArray:
    """Return the network's disparity (H, W) from the reduced one and the guidance image."""
    with torch.no_grad():
        results = network(_stack([low])[:, None], _stack([rgb]).permute(0, 3, 1, 2))
    finest: FloatArray = results[-1][0, 0].numpy()
    return finest


def inputs(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Return what the network is given of `scenes`: reduced disparity (N, 1, H/8, W/8) and RGB (N, 3, H, W)."""
    low = _stack([reduce_nearest(scene) for scene in scenes])[:, None]
    return low, _stack([scene.rgb for scene in scenes]).permute(0, 3, 1, 2).contiguous()


def _stack(arrays: list[FloatArray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
