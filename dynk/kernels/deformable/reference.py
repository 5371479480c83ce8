"""The equations in NumPy, float64 inside but for the coordinates; slow and plain, what every backend is tested against.

Functions take and return float64 arrays. The rules of points, of skipped taps and of infinities are in `geometry`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dynk._operator import Plan
from dynk.kernels.deformable.geometry import DeformGeometry, SampleGeometry
from dynk.kernels.deformable.reference_points import Points, axis

__all__ = [
    "deformable_conv2d_backward",
    "deformable_conv2d_forward",
    "deformable_conv2d_magnitude",
    "sample_kernel_backward",
    "sample_kernel_forward",
    "sample_kernel_magnitude",
]

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Tap = tuple[int, int]

# NaN and infinity are results like any other here.
_ieee = np.errstate(invalid="ignore", over="ignore")


class _Arrays(NamedTuple):
    """The arguments of a call; `sizes` where the sizes of terms are wanted and not the terms."""

    x: Array
    weight: Array
    kernel_offset: Array | None
    data_offset: Array | None
    mask: Array | None
    bias: Array | None
    sizes: bool = False


def deformable_conv2d_forward(plan: Plan, *arrays: Any) -> Any:
    """DK Eq. 11: out[n,o,y,x] = bias[o] + sum_cij Wk[o,c,i,j] * mask * X[n,c,tap i,j], both of them sampled."""
    return _forward(plan, _Arrays(*arrays))


def deformable_conv2d_backward(plan: Plan, grad_out: Array, *arrays: Any) -> tuple[Array | None, ...]:
    """Gradients of `deformable_conv2d_forward`, by the product rule for each tap."""
    return _backward(plan, grad_out, _Arrays(*arrays))


def deformable_conv2d_magnitude(plan: Plan, grad_out: Array | None, *arrays: Any) -> tuple[Array | None, ...]:
    """Return the sizes of the terms of the output (grad_out None) or of the gradients."""
    x, weight, kernel_offset, data_offset, mask, bias = arrays
    absolute = (_abs(x), _abs(weight), kernel_offset, data_offset, _abs(mask), _abs(bias))
    if grad_out is None:
        return (_forward(plan, _Arrays(*absolute, sizes=True)),)
    return _backward(plan, np.abs(grad_out), _Arrays(*absolute, sizes=True))


@_ieee
def _forward(plan: Plan, a: _Arrays) -> Array:
    g = DeformGeometry(*plan.geometry)
    total = np.zeros((g.N, g.groups, g.O // g.groups, g.Ho, g.Wo))
    if a.bias is not None:
        total += a.bias.reshape(g.groups, -1, 1, 1)
    if _is_dense(g):
        total += np.einsum("gocst,ngcyxst->ngoyx", _by_group(g, a.weight, 0), _columns(plan, a))
        return total.reshape(plan.out_shape)
    for tap in _taps(g):
        image, column = _image(plan, a, tap)
        filters, scope = _filters(plan, a, tap)
        taken = _by_group(g, image.read, 1)[:, :, None] & (True if scope is None else scope.read)
        total += np.where(taken, filters * _by_group(g, column, 1)[:, :, None], 0.0).sum(3)
    return total.reshape(plan.out_shape)


@_ieee
def _backward(plan: Plan, grad_out: Array, a: _Arrays) -> tuple[Array | None, ...]:
    g = DeformGeometry(*plan.geometry)
    grads = _by_group(g, grad_out, 1)
    zeros: Any = (None if array is None else np.zeros_like(array) for array in a[:-1])
    grad = _Arrays._make((*zeros, False))
    if _is_dense(g):
        grad.weight[...] = np.einsum("ngoyx,ngcyxst->gocst", grads, _columns(plan, a)).reshape(a.weight.shape)
        grad_columns = np.einsum("gocst,ngoyx->ngcyxst", _by_group(g, a.weight, 0), grads)
        grad_columns = grad_columns.reshape(g.N, g.C, g.Ho, g.Wo, g.Sh, g.Sw)
        for tap in _taps(g):
            scope = _scope(plan, a, tap)
            _add_tap(plan, a, grad, tap, scope.values(grad_columns), scope.slopes(grad_columns), scope.read)
    else:
        for tap in _taps(g):
            _add_tap(plan, a, grad, tap, *_add_filters(plan, a, grad, tap, grads[:, :, :, None]))
    if grad.bias is not None:
        grad.bias[...] = grad_out.sum((0, 2, 3))
    gradients: tuple[Array | None, ...] = grad[:-1]
    return gradients


def _add_filters(plan: Plan, a: _Arrays, grad: _Arrays, tap: Tap, grads: Array) -> tuple[Array, Any, Any]:
    """Add a tap's part of grad_weight; return what `_add_tap` takes of its filters."""
    g = DeformGeometry(*plan.geometry)
    image, column = _image(plan, a, tap)
    filters, scope = _filters(plan, a, tap)
    terms, taken = grads * _by_group(g, column, 1)[:, :, None], _by_group(g, image.read, 1)[:, :, None]
    shape = g.N, g.C, g.Ho, g.Wo
    grad_column = _sum(grads * filters, 2).reshape(shape)
    if scope is None:
        share = np.where(taken, terms, 0.0).sum((0, -2, -1))
        grad.weight[:, :, tap[0], tap[1]] += share.reshape(a.weight.shape[:2])
        return grad_column, (), np.ones((), np.bool_)
    scope.add(_by_group(g, grad.weight, 0), terms, taken)
    slopes = tuple(
        (_sum(grads * slope, 2).reshape(shape), there.reshape(shape))
        for slope, there in scope.slopes(_by_group(g, a.weight, 0))
    )
    return grad_column, slopes, scope.read.reshape(shape)


def _add_tap(
    plan: Plan, a: _Arrays, grad: _Arrays, tap: Tap, grad_column: Array, scope_slopes: Any, sampled: Flags
) -> None:
    """Add a tap's part of all gradients but that of weight.

    `grad_column` is the gradient of the tap's column, `scope_slopes` its derivatives by the point in the scope, and
    where there are any; `sampled` is where that point is read.
    """
    i, j = tap
    image, column = _image(plan, a, tap)
    grad_sample = grad_column if a.mask is None else grad_column * _of_channels(a.mask[:, :, i, j], a.x)
    image.add(grad.x, grad_sample, sampled)
    if grad.mask is not None:
        sample = np.where(image.read & sampled, grad_column * image.values(a.x), 0.0)
        grad.mask[:, :, i, j] = _of_blocks(sample, grad.mask)
    if grad.data_offset is not None:
        for along, (slope, there) in enumerate(image.slopes(a.x)):
            share = np.where(there & sampled, grad_sample * slope, 0.0)
            grad.data_offset[:, :, i, j, along] = _of_blocks(share, grad.data_offset)
    if grad.kernel_offset is not None:
        for along, (slope, there) in enumerate(scope_slopes):
            share = np.where(there & image.read, column * slope, 0.0)
            grad.kernel_offset[:, :, i, j, along] = _of_blocks(share, grad.kernel_offset)


def _columns(plan: Plan, a: _Arrays) -> Array:
    """Return what each position of the scope is multiplied with, (N, groups, C/groups, Ho, Wo, Sh, Sw)."""
    g = DeformGeometry(*plan.geometry)
    columns = np.zeros((g.N, g.C, g.Ho, g.Wo, g.Sh, g.Sw))
    for tap in _taps(g):
        image, column = _image(plan, a, tap)
        scope = _scope(plan, a, tap)
        scope.add(columns, column, image.read)
        columns[..., 0, 0] += np.where(scope.unknown & scope.read & image.read, np.nan, 0.0)
    by_group: Array = _by_group(g, columns, 1)
    return by_group


def _image(plan: Plan, a: _Arrays, tap: Tap) -> tuple[Points, Array]:
    """Return the points that a tap reads in the image, and the masked samples there, (N, C, Ho, Wo)."""
    g = DeformGeometry(*plan.geometry)
    i, j = tap
    rows = np.arange(g.Ho)[:, None] * g.stride_h - g.pad_h + i * g.dil_h
    columns = np.arange(g.Wo) * g.stride_w - g.pad_w + j * g.dil_w
    rows, columns = (np.broadcast_to(base, (g.N, g.C, g.Ho, g.Wo)) for base in (rows, columns))
    offset = (None, None) if a.data_offset is None else _offsets(a.data_offset, tap, a.x)
    common: Any = {"dtype": plan.dtype, "sizes": a.sizes}
    points = Points(
        axis(rows, offset[0], 0.0, g.H, **common),
        axis(columns, offset[1], 0.0, g.W, **common),
        (np.arange(g.N)[:, None, None, None], np.arange(g.C)[:, None, None]),
    )
    sample = points.values(a.x)
    return points, sample if a.mask is None else sample * _of_channels(a.mask[:, :, i, j], a.x)


def _filters(plan: Plan, a: _Arrays, tap: Tap) -> tuple[Array, Points | None]:
    """Return a tap's weights, to be multiplied with (N, groups, O/groups, C/groups, Ho, Wo), and where they are read.

    The points, for depth-wise weights with kernel offsets, are those of each group's kernel.
    """
    g = DeformGeometry(*plan.geometry)
    weight = _by_group(g, a.weight, 0)
    if a.kernel_offset is None:
        return weight[..., tap[0], tap[1], None, None], None
    across = np.arange(g.groups)[:, None, None, None, None], np.arange(weight.shape[1])[:, None, None, None]
    points = _scope(plan, a, tap, (*across, np.zeros((1, 1, 1), int)), (g.N, g.groups, 1, 1, g.Ho, g.Wo))
    return points.values(weight), points


def _scope(plan: Plan, a: _Arrays, tap: Tap, lead: Any = None, shape: Any = None) -> Points:
    """Return the points of a tap in the scope for each channel: of arrays (N, C, Ho, Wo, Sh, Sw), or of `lead`."""
    g = DeformGeometry(*plan.geometry)
    if lead is None:
        lead = np.ix_(*map(np.arange, (g.N, g.C, g.Ho, g.Wo)))
    i, j = tap
    dy, dx = (offset.reshape(shape or offset.shape) for offset in _offsets(a.kernel_offset, tap, a.x))
    common = {"dtype": plan.dtype, "clip": bool(g.clip), "sizes": a.sizes}
    return Points(_in_scope(i, dy, g.kh, g.Sh, **common), _in_scope(j, dx, g.kw, g.Sw, **common), lead)


def _in_scope(tap: Any, offset: Any, taps: int, extent: int, **options: Any) -> Any:
    """Return the coordinates i + (extent - taps) / 2 + offset of tap i, of so many."""
    return axis(tap + ((extent - taps) >> 1), offset, (extent - taps) % 2 / 2, extent, **options)


def _is_dense(g: DeformGeometry) -> bool:
    """Return whether the scope is sampled on the side of the image."""
    return bool(g.has_kernel) and g.groups != g.C


def _taps(g: DeformGeometry) -> Iterator[Tap]:
    return ((i, j) for i in range(g.kh) for j in range(g.kw))


def _by_group(g: DeformGeometry, array: Any, axis: int) -> Any:
    """Return an array with an axis of channels split into groups."""
    shape = array.shape
    return array.reshape(*shape[:axis], g.groups, shape[axis] // g.groups, *shape[axis + 1 :])


def _offsets(offset: Any, tap: Tap, x: Array) -> tuple[Array, Array]:
    """Return a tap's offsets (dy, dx), each for every channel."""
    i, j = tap
    return _of_channels(offset[:, :, i, j, 0], x), _of_channels(offset[:, :, i, j, 1], x)


def _of_channels(blocks: Array, x: Array) -> Array:
    """Return what is given for each block of channels, (N, blocks, Ho, Wo), for every channel."""
    return np.repeat(blocks, x.shape[1] // blocks.shape[1], 1)


def _of_blocks(terms: Array, like: Array) -> Array:
    """Return the sum over each block of channels, as many as `like` has."""
    N, C, *pixels = terms.shape
    return _sum(terms.reshape(N, like.shape[1], C // like.shape[1], *pixels), 2)


def _sum(terms: Array, axis: int) -> Array:
    """Return the sum over an axis; pairwise, which NumPy does along contiguous terms only."""
    total: Array = np.ascontiguousarray(np.moveaxis(terms, axis, -1)).sum(-1)
    return total


# ---- sample_kernel ---------------------------------------------------------------------------------------------------


@_ieee
def sample_kernel_forward(plan: Plan, weight: Array, kernel_offset: Array) -> Array:
    """DK Eq. 12: the kernel's value between its positions, for each tap."""
    return _kernel_points(plan, kernel_offset, sizes=False).values(weight)


@_ieee
def sample_kernel_backward(plan: Plan, grad_out: Array, weight: Array, kernel_offset: Array) -> tuple[Array, Array]:
    """Gradients of `sample_kernel_forward`."""
    return _kernel_gradients(plan, grad_out, weight, kernel_offset, sizes=False)


@_ieee
def sample_kernel_magnitude(
    plan: Plan, grad_out: Array | None, weight: Array, kernel_offset: Array
) -> tuple[Array, ...]:
    """Return the sizes of the terms of the output (grad_out None) or of the gradients."""
    if grad_out is None:
        return (_kernel_points(plan, kernel_offset, sizes=True).values(np.abs(weight)),)
    return _kernel_gradients(plan, np.abs(grad_out), np.abs(weight), kernel_offset, sizes=True)


def _kernel_gradients(
    plan: Plan, grad_out: Array, weight: Array, kernel_offset: Array, *, sizes: bool
) -> tuple[Array, Array]:
    g = SampleGeometry(*plan.geometry)
    points = _kernel_points(plan, kernel_offset, sizes=sizes)
    grad_weight, grad_offset = np.zeros_like(weight), np.zeros_like(kernel_offset)
    points.add(grad_weight, grad_out, np.ones((), np.bool_))
    for along, (slope, there) in enumerate(points.slopes(weight)):
        share = np.where(there, grad_out * slope, 0.0).reshape(g.N, g.Gk, g.O // g.Gk * g.I, g.kh, g.kw)
        grad_offset[..., along] = _sum(share, 2)
    return grad_weight, grad_offset


def _kernel_points(plan: Plan, kernel_offset: Array, *, sizes: bool) -> Points:
    """Return the points of all taps in the scope, (N, O, 1, kh, kw)."""
    g = SampleGeometry(*plan.geometry)
    dy, dx = (_of_channels(kernel_offset[..., along], np.empty((0, g.O)))[:, :, None] for along in (0, 1))
    common = {"dtype": plan.dtype, "clip": bool(g.clip), "sizes": sizes}
    return Points(
        _in_scope(np.arange(g.kh)[:, None], dy, g.kh, g.Sh, **common),
        _in_scope(np.arange(g.kw), dx, g.kw, g.Sw, **common),
        (np.arange(g.O)[:, None, None, None], np.arange(g.I)[:, None, None]),
    )


def _abs(array: Any) -> Any:
    return None if array is None else np.abs(array)
