"""What `filter_norm` says of itself, since its derivative is no call of `filter_norm`.

With z = (f - mean f) / (std + eps) over the T taps of a filter, P removing the mean and m = T - 1:

    dz = P df / (std + eps) - z * sum(z df) / (m std)

Everything here is made of PyTorch's operators, so that it can be differentiated further. Filters whose taps are all
equal have z = dz = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynk._operator import Options

Tensors = tuple[Tensor | None, ...]


class _Filter(NamedTuple):
    """A filter's statistics; `alive` is 0 where all its taps are equal, and `std` is then any positive number."""

    axes: tuple[int, int]
    freedom: int  # T - 1
    d: Tensor  # f - mean(f)
    std: Tensor
    reach: Tensor  # std + eps
    alive: Tensor


def tangent(tensors: Tensors, options: Options, vectors: Tensors) -> Tensor:
    """Return the directional derivative of `filter_norm` along one vector (or None) per argument."""
    f, scale, _ = tensors
    v_f, v_scale, v_shift = map(_wide, vectors)
    assert f is not None  # f is not optional
    filters = _statistics(f, options)
    out = torch.zeros_like(filters.d)
    if v_f is not None:
        gain = _wide(scale)
        dz = _along(filters, v_f)
        out = out + (dz if gain is None else dz * gain)
    if v_scale is not None:
        out = out + _normalised(filters) * v_scale
    if v_shift is not None:
        out = out + v_shift
    return out.to(f.dtype)


def curvature(
    grad_out: Tensor, tensors: Tensors, options: Options, vectors: Tensors, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the Hessian of <grad_out, filter_norm(...)> times one vector (or None) per argument."""
    f, scale, _ = tensors
    v_f, v_scale, _ = map(_wide, vectors)
    grad, gain = _wide(grad_out), _wide(scale)
    assert f is not None  # f is not optional
    assert grad is not None
    filters = _statistics(f, options)
    by_f = by_scale = None
    if wanted[0]:
        parts = []
        if v_f is not None:
            parts.append(_bend(filters, grad if gain is None else grad * gain, v_f))
        if v_scale is not None:
            parts.append(_along(filters, grad * v_scale))  # d<h, z>/df is its own transpose's form
        by_f = sum(parts[1:], parts[0]).to(f.dtype) if parts else None
    if wanted[1] and v_f is not None:
        assert scale is not None  # wanted
        by_scale = (grad * _along(filters, v_f)).sum_to_size(scale.shape).to(f.dtype)
    return by_f, by_scale, None


def fold(tensors: tuple[Tensor | None, ...], options: Options) -> tuple[Tensors, Options]:
    """Return the call that maps over dimension 0 of every tensor: one more leading dimension of `f`."""
    f = tensors[0]
    assert f is not None  # f is not optional
    padded = tuple(
        None if t is None else t.reshape(t.shape[0], *[1] * (f.ndim - t.ndim), *t.shape[1:]) for t in tensors
    )
    (first, second), eps = options
    return padded, ((first + (first >= 0), second + (second >= 0)), eps)


def _wide(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor in the type that sums are formed in."""
    return tensor.float() if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _statistics(f: Tensor, options: Options) -> _Filter:
    axes, eps = options
    first, second = axes
    wide = f.float() if f.dtype in (torch.float16, torch.bfloat16) else f
    d = wide - wide.narrow(first, 0, 1).narrow(second, 0, 1)  # exactly 0 for equal taps
    d = d - d.mean(axes, keepdim=True)
    freedom = f.shape[first] * f.shape[second] - 1
    # The largest deviation is a constant of the computation: it only keeps the squares within range.
    largest = d.detach().abs().amax(axes, keepdim=True)
    alive = largest != 0
    unit = torch.where(alive, largest, 1.0)
    mean_square = (d / unit).square().sum(axes, keepdim=True) / freedom
    std = unit * torch.where(alive, mean_square, 1.0).sqrt()
    return _Filter(axes, freedom, d, std, std + eps, alive)


def _normalised(filters: _Filter) -> Tensor:
    return torch.where(filters.alive, filters.d / filters.reach, 0.0)


def _along(filters: _Filter, v: Tensor) -> Tensor:
    """Return dz along v: a symmetric map of v, so also the gradient of <v, z>."""
    axes, freedom, d, std, reach, alive = filters
    z = d / reach
    dz = (v - v.mean(axes, keepdim=True)) / reach - z * (z * v).sum(axes, keepdim=True) / (freedom * std)
    return torch.where(alive, dz, 0.0)


def _bend(filters: _Filter, h: Tensor, v: Tensor) -> Tensor:
    """Return the gradient of <h, dz along v> with respect to f.

    <h, dz> = a / r - b c / (m std) with r = std + eps, a = <Ph, Pv>, b = <h, z>, c = <v, z>; d std/df = d / (m std).
    """
    axes, freedom, d, std, reach, alive = filters
    h_centred = h - h.mean(axes, keepdim=True)
    v_centred = v - v.mean(axes, keepdim=True)
    z, s = d / reach, freedom * std
    a = (h_centred * v_centred).sum(axes, keepdim=True)
    b = (h * z).sum(axes, keepdim=True)
    c = (v * z).sum(axes, keepdim=True)
    through_std = b * c / s * (1 / std + 2 / reach) - a / reach.square()
    through_z = (c * h_centred + b * v_centred) / (s * reach)
    return torch.where(alive, through_std * d / s - through_z, 0.0)
