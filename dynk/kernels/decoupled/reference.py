"""The equations in NumPy, float64 inside; slow and plain, what every other backend is tested against.

Filters carry the sub-pixel axes here: spatial (N, G, s, s, kh, kw, Ho, Wo), channel (N, C, s, s, kh, kw) with s = 1 for
`ddf`. Functions take and return float64 arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dynk._operator import Plan
from dynk.kernels.decoupled.geometry import FilterGeometry

Array = npt.NDArray[np.float64]
Slices = tuple[slice, slice]

# NaN and infinity are results like any other here.
_ieee = np.errstate(invalid="ignore", over="ignore", divide="ignore")


@_ieee
def ddf_forward(plan: Plan, x: Array, spatial: Array | None, channel: Array | None) -> Array:
    """DDF Eq. 2: out[n,c,y,x] = sum_ij f(spatial, channel)[n,c,i,j,y,x] * X[n,c,tap(y,i),tap(x,j)]."""
    g = _filter_geometry(plan)
    out = np.zeros(plan.out_shape)
    for i, j, p, q, anchors, pixels in _taps(g):
        f = _filter(g, spatial, channel, i, j, p, q)[(..., *anchors)]
        out[(..., *_interleaved(g, p, q, anchors))] += f * x[(..., *pixels)]
    return out


@_ieee
def ddf_backward(
    plan: Plan,
    grad_out: Array,
    x: Array,
    spatial: Array | None,
    channel: Array | None,
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `ddf_forward`, by the product rule for each tap."""
    g = _filter_geometry(plan)
    grad_x = np.zeros_like(x)
    grad_spatial = None if spatial is None else np.zeros(_spatial_shape(g))
    grad_channel = None if channel is None else np.zeros(_channel_shape(g))
    for i, j, p, q, anchors, pixels in _taps(g):
        grad = grad_out[(..., *_interleaved(g, p, q, anchors))]
        grad_x[(..., *pixels)] += grad * _filter(g, spatial, channel, i, j, p, q)[(..., *anchors)]
        grad_f = grad * x[(..., *pixels)]  # with respect to f(spatial, channel)
        alone = spatial is None or channel is None or g.add
        if grad_spatial is not None:
            factor = 1.0 if alone else _channel_at(g, channel, i, j, p, q)
            grouped = (grad_f * factor).reshape(g.N, g.G, g.C // g.G, *grad_f.shape[2:])
            grad_spatial[(slice(None), slice(None), p, q, i, j, *anchors)] = grouped.sum(2)
        if grad_channel is not None:
            factor = 1.0 if alone else _spatial_at(g, spatial, i, j, p, q)[(..., *anchors)]
            grad_channel[:, :, p, q, i, j] = (grad_f * factor).sum((2, 3))
    return (
        grad_x,
        None if grad_spatial is None or spatial is None else grad_spatial.reshape(spatial.shape),
        None if grad_channel is None or channel is None else grad_channel.reshape(channel.shape),
    )


@_ieee
def filter_norm_forward(plan: Plan, f: Array, scale: Array | None, shift: Array | None) -> Array:
    """DDF Eq. 3: (f - mean) / (std + eps) * scale + shift over the taps of each filter, std unbiased."""
    z, _ = _normalise(plan, f)
    out: Array = z if scale is None else z * scale
    return out if shift is None else out + shift


@_ieee
def filter_norm_backward(
    plan: Plan, grad_out: Array, f: Array, scale: Array | None, shift: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of `filter_norm_forward`; 0 with respect to a filter whose taps are all equal."""
    axes = _tap_axes(plan)
    z, std = _normalise(plan, f)
    eps = plan.reals[0]
    h = grad_out if scale is None else grad_out * scale
    taps = plan.geometry[1] * plan.geometry[2]
    # dz = (df - mean df) / (std + eps) - z * dstd / (std + eps), dstd = sum(z df) * (std + eps) / ((T - 1) std)
    through_mean = (h - h.mean(axes, keepdims=True)) / (std + eps)
    through_std = z * (h * z).sum(axes, keepdims=True) / ((taps - 1) * std)
    grad_f = np.where(std == 0, 0.0, through_mean - through_std)
    return (
        grad_f,
        None if scale is None else _unbroadcast(grad_out * z, scale.shape),
        None if shift is None else _unbroadcast(grad_out, shift.shape),
    )


@_ieee
def filter_norm_magnitude(
    plan: Plan, grad_out: Array | None, f: Array, scale: Array | None, shift: Array | None
) -> tuple[Array | None, ...]:
    """Sums of absolute terms behind each result of `filter_norm`, the scale of its rounding error.

    A tap's deviation from the mean is exact to the rounding of the filter's range, not of its largest value, because
    the first tap is subtracted before anything is summed.
    """
    axes = _tap_axes(plan)
    z, std = _normalise(plan, f)
    taps = plan.geometry[1] * plan.geometry[2]
    eps = plan.reals[0]
    gain = 1.0 if scale is None else np.abs(scale)
    span = (f.max(axes, keepdims=True) - f.min(axes, keepdims=True)) / (std + eps)
    term = np.where(std == 0, 0.0, np.abs(z) + span)
    if grad_out is None:
        return (term * gain + (0.0 if shift is None else np.abs(shift)),)
    h = np.abs(grad_out) * gain
    through_mean = (h + h.mean(axes, keepdims=True)) / (std + eps)
    through_std = term * (h * term).sum(axes, keepdims=True) / ((taps - 1) * std)
    grad_f = np.where(std == 0, 0.0, through_mean + through_std)
    return (
        grad_f,
        None if scale is None else _unbroadcast(np.abs(grad_out) * term, scale.shape),
        None if shift is None else _unbroadcast(np.abs(grad_out), shift.shape),
    )


# ---- helpers of the filter operators ---------------------------------------------------------------------------------


def _filter_geometry(plan: Plan) -> FilterGeometry:
    return FilterGeometry(*plan.geometry)


def _spatial_shape(g: FilterGeometry) -> tuple[int, ...]:
    return (g.N, g.G, g.scale, g.scale, g.kh, g.kw, g.Ho, g.Wo)


def _channel_shape(g: FilterGeometry) -> tuple[int, ...]:
    return (g.N, g.C, g.scale, g.scale, g.kh, g.kw)


def _spatial_at(g: FilterGeometry, spatial: Any, i: int, j: int, p: int, q: int) -> Array:
    """Return the spatial filter's tap for every channel, (N, C, Ho, Wo)."""
    tap: Array = spatial.reshape(_spatial_shape(g))[:, :, p, q, i, j]
    return np.repeat(tap, g.C // g.G, axis=1)


def _channel_at(g: FilterGeometry, channel: Any, i: int, j: int, p: int, q: int) -> Array:
    """Return the channel filter's tap, (N, C, 1, 1)."""
    tap: Array = channel.reshape(_channel_shape(g))[:, :, p, q, i, j]
    return tap[:, :, None, None]


def _filter(g: FilterGeometry, spatial: Array | None, channel: Array | None, i: int, j: int, p: int, q: int) -> Array:
    """Return f(spatial, channel) for one tap and sub-pixel, broadcast to (N, C, Ho, Wo)."""
    shape = (g.N, g.C, g.Ho, g.Wo)
    if spatial is None:
        return np.broadcast_to(_channel_at(g, channel, i, j, p, q), shape)
    if channel is None:
        return _spatial_at(g, spatial, i, j, p, q)
    both = _spatial_at(g, spatial, i, j, p, q), _channel_at(g, channel, i, j, p, q)
    return both[0] + both[1] if g.add else both[0] * both[1]


def _taps(g: FilterGeometry) -> Iterator[tuple[int, int, int, int, Slices, Slices]]:
    """Yield every tap (i, j) and sub-pixel (p, q), the anchors for which it is inside the image and what it reads."""
    for i in range(g.kh):
        y, rows = _inside(g.H, g.Ho, g.stride_h, (i - (g.kh - 1) // 2) * g.dilation_h)
        for j in range(g.kw):
            x, columns = _inside(g.W, g.Wo, g.stride_w, (j - (g.kw - 1) // 2) * g.dilation_w)
            for p in range(g.scale):
                for q in range(g.scale):
                    yield i, j, p, q, (y, x), (rows, columns)


def _inside(extent: int, anchors: int, stride: int, offset: int) -> Slices:
    """Return the anchors y with 0 <= y*stride + offset < extent, and the positions they read."""
    first = max(0, -(offset // stride))
    last = min(anchors - 1, (extent - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    return slice(first, last + 1), slice(start, last * stride + offset + 1, stride)


def _interleaved(g: FilterGeometry, p: int, q: int, anchors: Slices) -> Slices:
    """Return where sub-pixel (p, q) of the anchors stands in the output."""
    s = g.scale
    y, x = anchors
    return slice(y.start * s + p, y.stop * s, s), slice(x.start * s + q, x.stop * s, s)


# ---- helpers of filter_norm ------------------------------------------------------------------------------------------


def _tap_axes(plan: Plan) -> tuple[int, int]:
    axes: tuple[int, int] = plan.options[0]
    return axes


def _normalise(plan: Plan, f: Array) -> tuple[Array, Array]:
    """Return the normalised filters and their standard deviations."""
    axes = _tap_axes(plan)
    taps = plan.geometry[1] * plan.geometry[2]
    first = np.take(np.take(f, [0], axes[0]), [0], axes[1])
    d = f - first  # exactly 0 for equal taps
    d = d - d.mean(axes, keepdims=True)
    largest = np.abs(d).max(axes, keepdims=True)
    unit = np.where(largest == 0, 1.0, largest)  # keeps the squares within the range of the type
    std = unit * np.sqrt(((d / unit) ** 2).sum(axes, keepdims=True) / (taps - 1))
    z = np.divide(d, std + plan.reals[0], out=np.zeros_like(d), where=std != 0)
    return z, std


def _unbroadcast(values: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the dimensions that NumPy's broadcasting repeated."""
    extra = values.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + d for d, extent in enumerate(shape) if extent == 1)
    summed: Array = values.sum(axes).reshape(shape)
    return summed
