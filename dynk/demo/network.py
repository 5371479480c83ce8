"""A small network that upsamples disparity eight times by decoupled dynamic filters (DDF-Up), guided by RGB.

It starts from joint bilateral upsampling, which is a DDF-Up with a spatial filter alone, and corrects it in three
stages with filters that it learns to predict.
"""

from __future__ import annotations

import dynk_torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynk.demo.baselines import JOINT_RADIUS, Sigmas
from dynk.demo.data import FACTOR

WIDTH = 24
"""Channels of every hidden layer."""

TAPS = 3
"""Filters of a stage are TAPS x TAPS."""

PRIOR_TAPS = 2 * JOINT_RADIUS + 1


class UpsampleStage(nn.Module):
    """Doubles the resolution of a disparity map.

    The prior, a first guess at the doubled resolution, is corrected twice: by the corrections that the stages before
    made, interpolated, and by what a DDF-Up filter, predicted at each pixel from the picture, picks out of the 3 x 3
    known disparities around it. The filter is applied to the differences of these to the one in the centre, so that
    adding a constant to the disparity adds it to the result.
    """

    def __init__(self) -> None:
        super().__init__()
        new_pixels, neighbours = 4, 9
        inputs = WIDTH + neighbours + 1 + new_pixels * neighbours + new_pixels
        self.features = nn.Sequential(
            nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()
        )
        self.spatial = nn.Conv2d(WIDTH, new_pixels * TAPS * TAPS, 1)
        self.channel = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, new_pixels * TAPS * TAPS))
        self.channel_scale = nn.Parameter(torch.full((2, 2, TAPS, TAPS), 0.3))
        self.channel_shift = nn.Parameter(torch.ones(2, 2, TAPS, TAPS))
        # Filters are normalised, so the size of the correction is a map of its own. It starts at 0.
        self.size = nn.Conv2d(WIDTH, new_pixels, 1)
        for parameter in self.size.parameters():
            nn.init.zeros_(parameter)

    def forward(self, disparity: Tensor, correction: Tensor, guidance: Tensor, rgb: Tensor, prior: Tensor) -> Tensor:
        """Return the correction (N, 1, 2H, 2W) of `prior`.

        `disparity` and `correction` are (N, 1, H, W), `guidance` (N, WIDTH, H, W), `rgb` and `prior` twice as fine.
        """
        n, _, h, w = disparity.shape
        shape, height = _relief(disparity)
        new = (functional.pixel_unshuffle(prior, 2) - disparity) / height
        features = self.features(torch.cat([guidance, shape, height.log(), _likeness(rgb), new], dim=1))
        spatial = self.spatial(features).view(n, 1, 2, 2, TAPS, TAPS, h, w)
        spatial = dynk_torch.filter_norm(spatial, axes=(4, 5)) / TAPS
        channel = self.channel(features.mean(dim=(2, 3))).view(n, 1, 2, 2, TAPS, TAPS)
        channel = dynk_torch.filter_norm(channel, self.channel_scale, self.channel_shift, axes=(4, 5))
        # The same filter over the disparity and over ones: sum f*(d - centre) = sum f*d - centre * sum f.
        x = torch.cat([disparity, torch.ones_like(disparity)], dim=1)
        filtered, total = dynk_torch.ddf_upsample(x, spatial, torch.cat([channel, channel], dim=1), scale=2).split(1, 1)
        centre = functional.interpolate(disparity, scale_factor=2, mode="nearest")
        size = functional.pixel_shuffle(self.size(features), 2)
        result: Tensor = double_linear(correction) + size * (filtered - centre * total)
        return result


class JointUpsampler(nn.Module):
    """Upsamples disparity (N, 1, H, W) to (N, 1, 8H, 8W), guided by RGB (N, 3, 8H, 8W).

    At every level sample (i, j) keeps its place, pixel (step*i, step*j) of the full resolution.
    """

    def __init__(self, sigmas: Sigmas) -> None:
        super().__init__()
        self.sigmas = sigmas
        halves = nn.Sequential(*_convolutions(12, stride=1))
        self.pyramid = nn.ModuleList([halves, *(nn.Sequential(*_convolutions(WIDTH, stride=2)) for _ in range(2))])
        self.stages = nn.ModuleList(UpsampleStage() for _ in range(3))

    def forward(self, low: Tensor, rgb: Tensor) -> list[Tensor]:
        """Return the disparity at every fourth pixel, at every second one and at all."""
        guidance = 4 * functional.pixel_unshuffle(rgb - 0.5, 2)
        levels = []
        for block in self.pyramid:
            guidance = block(guidance)
            levels.append(guidance)
        finest = joint_bilateral(low, rgb, self.sigmas)
        results = []
        disparity, correction = low, torch.zeros_like(low)
        for stage, guidance, step in zip(self.stages, reversed(levels), (4, 2, 1), strict=True):
            prior = finest[:, :, ::step, ::step]
            correction = stage(disparity, correction, guidance, rgb[:, :, ::step, ::step], prior)
            disparity = prior + correction
            results.append(disparity)
        return results


def joint_bilateral(low: Tensor, rgb: Tensor, sigmas: Sigmas) -> Tensor:
    """Upsample `low` (N, 1, H, W) to (N, 1, 8H, 8W) with a spatial filter that weighs by distance and colour."""
    n, _, h, w = low.shape
    taps = torch.arange(PRIOR_TAPS) - JOINT_RADIUS
    offset = (torch.arange(FACTOR)[:, None] / FACTOR - taps).square()
    distance = offset[:, None, :, None] + offset[None, :, None, :]
    difference = _colour_differences(rgb, FACTOR, PRIOR_TAPS)
    logits = -difference / (2 * sigmas.colour**2) - distance.view(FACTOR**2, -1, 1, 1) / (2 * sigmas.space**2)
    spatial = logits.softmax(dim=2).view(n, 1, FACTOR, FACTOR, PRIOR_TAPS, PRIOR_TAPS, h, w)
    x = torch.cat([low, torch.ones_like(low)], dim=1)
    filtered, total = dynk_torch.ddf_upsample(x, spatial, None, scale=FACTOR).split(1, 1)
    prior: Tensor = filtered / total  # near the border taps are missing
    return prior


def double_linear(x: Tensor) -> Tensor:
    """Interpolate (N, C, H, W) to (N, C, 2H, 2W) linearly: even pixels are the samples, odd ones the means between."""
    for axis in (2, 3):
        following = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, -1, 1)], dim=axis)
        x = torch.stack([x, (x + following) / 2], dim=axis + 1).flatten(axis, axis + 1)
    return x


def _convolutions(inputs: int, stride: int) -> list[nn.Module]:
    first = nn.Conv2d(inputs, WIDTH, 3, stride=stride, padding=1)
    return [first, nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]


def _neighbours(x: Tensor, taps: int) -> Tensor:
    """Return the taps x taps pixels around each, (N, C, taps*taps, H, W), the border pixels going on."""
    n, c, h, w = x.shape
    padded = functional.pad(x, (taps // 2,) * 4, mode="replicate")
    return functional.unfold(padded, taps).view(n, c, taps * taps, h, w)


def _relief(disparity: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shape (N, 9, H, W) and the height (N, 1, H, W) of each 3 x 3 neighbourhood."""
    noise = 0.3  # pixels of disparity below which ground is flat
    around = _neighbours(disparity, 3)[:, 0]
    around = around - around.mean(dim=1, keepdim=True)
    height = (around.square().mean(dim=1, keepdim=True) + 1e-3).sqrt() + noise
    return around / height, height


def _likeness(rgb: Tensor) -> Tensor:
    """Return the colour distances (N, 36, H, W) of four new pixels of `rgb` (N, 3, 2H, 2W) to nine known ones."""
    return 4 * (_colour_differences(rgb, 2, 3) + 1e-4).sqrt().flatten(1, 2)


def _colour_differences(rgb: Tensor, scale: int, taps: int) -> Tensor:
    """Return the squared distances (N, scale*scale, taps*taps, H, W) of new pixels to known ones, each scale-th."""
    new = functional.pixel_unshuffle(rgb, scale).unflatten(1, (rgb.shape[1], scale * scale, 1))
    known = _neighbours(rgb[:, :, ::scale, ::scale], taps).unsqueeze(2)
    difference: Tensor = new - known
    return difference.square().sum(dim=1)
