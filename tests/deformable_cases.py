"""Deformable convolution a second time, composed of PyTorch's operations: for the tests of the family."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynk.deformable import DEFORMABLE_CONV2D
from dynk.kernels.deformable.geometry import DeformGeometry
from dynk.testing import Call, rounded, values


def normal(dtype: str, *shape: int, seed: int = 0) -> Any:
    return rounded(np.random.default_rng((seed, *shape)).standard_normal(shape), dtype)


def eighths(dtype: str, *shape: int, seed: int = 0, reach: int = 3) -> Any:
    """Return offsets up to `reach`, of which an eighth are integers: points are exact in every dtype."""
    return rounded(np.random.default_rng((seed, *shape)).integers(-8 * reach, 8 * reach + 1, shape) / 8, dtype)


def nan_taps(dtype: str, groups: int, *, data: bool) -> Call:
    """Return a call in which every tap that its pixel sees outside the image has no place in its kernel: NaN.

    With data offsets the second half of the channels sees all taps of the middle row outside, and they are NaN too;
    of those the first half sees one inside.
    """
    H, W = 5, 20
    rows, columns = np.arange(H)[:, None], np.arange(W)
    kernel_offset, data_offset = (values(eighths(dtype, 1, blocks, 3, 3, 2, H, W)) for blocks in (1, 2))
    data_offset[:] = 0
    for i in range(3):
        for j in range(3):
            y, x = rows + i - 1, columns + j - 1
            kernel_offset[0, 0, i, j, :, (y < 0) | (y >= H) | (x < 0) | (x >= W)] = np.nan
    if data:
        data_offset[0, 1, :, :, 0, H // 2] = -2 * H
        kernel_offset[0, 0, :, :, 0, H // 2] = np.nan
        data_offset[0, 0, :, :, 0, H // 2] = 2 * H
        data_offset[0, 0, 1, 1, 0, H // 2, W // 2] = 0
    offsets = rounded(kernel_offset, dtype), rounded(data_offset, dtype) if data else None
    arrays = normal(dtype, 1, 16, H, W), normal(dtype, 16, 16 // groups, 4, 4), *offsets, None, None
    return Call(DEFORMABLE_CONV2D, arrays, {"padding": 1, "groups": groups})


def bilinear(array: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return values between the elements of (..., height, width) at points (..., Ho, Wo); 0 outside.

    The weights are differentiated within the cell that floor gives: derivatives are right-sided.
    """
    height, width = array.shape[-2:]
    top, left = rows.detach().floor(), columns.detach().floor()
    total = torch.zeros_like(rows)
    for down, share_y in ((0, 1 - (rows - top)), (1, rows - top)):
        for right, share_x in ((0, 1 - (columns - left)), (1, columns - left)):
            y, x = top + down, left + right
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            corner = array.flatten(-2).gather(-1, index.flatten(-2)).reshape(rows.shape)
            total = total + torch.where(inside, share_y * share_x * corner, 0.0)
    return total


def clipped(points: Tensor, extent: int) -> Tensor:
    """Clamp points to [0, extent - 1]; those at the end do not move any more."""
    return torch.where((points < 0) | (points >= extent - 1), points.detach().clamp(0, extent - 1), points)


def composed(
    g: DeformGeometry,
    x: Tensor,
    weight: Tensor,
    kernel_offset: Tensor | None,
    data_offset: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Return what `deformable_conv2d` does, tap by tap."""
    per_group = g.C // g.groups
    # The channel of the image that is number c of output o.
    channels = torch.arange(g.O)[:, None] // (g.O // g.groups) * per_group + torch.arange(per_group)
    anchors = (
        torch.arange(g.Ho, dtype=x.dtype)[:, None] * g.stride_h - g.pad_h,
        torch.arange(g.Wo, dtype=x.dtype) * g.stride_w - g.pad_w,
    )
    total = torch.zeros(g.N, g.O, g.Ho, g.Wo, dtype=x.dtype)
    for i in range(g.kh):
        for j in range(g.kw):
            tap = (i, j)
            where = [anchor + step * t for anchor, step, t in zip(anchors, (g.dil_h, g.dil_w), tap, strict=True)]
            points = [_moved(data_offset, tap, along, where[along], g) for along in (0, 1)]
            sample = bilinear(x, *points)
            if mask is not None:
                sample = sample * mask[:, :, i, j].repeat_interleave(g.C // g.Gd, 1)
            if kernel_offset is None:
                filters = weight[:, :, i, j, None, None]
            else:
                middle = (g.Sh - g.kh) / 2, (g.Sw - g.kw) / 2
                scope = [_moved(kernel_offset, tap, along, tap[along] + middle[along], g) for along in (0, 1)]
                if g.clip:
                    scope = [clipped(p, extent) for p, extent in zip(scope, (g.Sh, g.Sw), strict=True)]
                filters = bilinear(weight.expand(g.N, *weight.shape), *(p[:, channels] for p in scope))
            total = total + (filters * sample[:, channels]).sum(2)
    return total if bias is None else total + bias[:, None, None]


def _moved(offset: Tensor | None, tap: tuple[int, int], along: int, where: Any, g: DeformGeometry) -> Tensor:
    """Return a tap's coordinates along an axis for every channel, (N, C, Ho, Wo)."""
    if offset is None:
        return torch.broadcast_to(where, (g.N, g.C, g.Ho, g.Wo))
    return where + offset[:, :, *tap, along].repeat_interleave(g.C // offset.shape[1], 1)


def composed_results(call: Call, grad_out: Any) -> tuple[Any, ...]:
    """Return the output and the gradients of a call by `composed`, float64, None for an absent argument."""
    tensors = [None if a is None else torch.from_numpy(values(a)).requires_grad_() for a in call.arrays]
    out = composed(DeformGeometry(*call.plan.geometry), *tensors)
    given = [t for t in tensors if t is not None]
    gradients = iter(torch.autograd.grad(out, given, torch.from_numpy(values(grad_out))))
    return out.detach().numpy(), *(None if t is None else next(gradients).numpy() for t in tensors)
