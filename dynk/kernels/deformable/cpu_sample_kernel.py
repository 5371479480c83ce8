"""`sample_kernel` on the CPU.

Every kernel of a block is sampled at the same points, so that what each tap counts of each position is formed once.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.cpu_geometry import named
from dynk.kernels.common.numeric import accumulators, fill, store
from dynk.kernels.common.products import CHAIN, ceil_div
from dynk.kernels.deformable.cpu_points import (
    COLUMN,
    CORNERS,
    MOVED,
    READS,
    new_points,
    number_points,
    place_axis,
    read_at,
)
from dynk.kernels.deformable.cpu_tables import slope_weights, slopes_of
from dynk.kernels.deformable.geometry import SampleGeometry

TASKS, LEAST = 32, 64  # tasks that are worth while, and kernels of a task
SUMS = 2**17  # numbers of the gradient of a task, at most, but for a single output channel

sample_geometry = named(SampleGeometry)


@borrowing
def outs_of(images, like, g):  # type: ignore[no-untyped-def]
    """Return how many output channels a task takes where so many images are tasks of their own; all in one block."""
    outs, numbers = g.O // g.Gk, g.I * _vectors(g.Sh * g.Sw, like) * vector.lanes(like)
    wanted = max(ceil_div(LEAST, g.I), ceil_div(outs, ceil_div(TASKS, max(1, images * g.Gk))))
    return max(1, min(wanted, outs, SUMS // numbers))


@borrowing
def parts_of(images, like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the output channels are shared out."""
    return g.Gk * ceil_div(g.O // g.Gk, outs_of(images, like, g))


@borrowing
def _outs(part, images, like, g):  # type: ignore[no-untyped-def]
    """Return the block of a task, its first output channel and their end."""
    many, parts = outs_of(images, like, g), parts_of(images, like, g) // g.Gk
    block = part // parts
    first = block * (g.O // g.Gk) + part % parts * many
    return block, first, min(first + many, (block + 1) * (g.O // g.Gk))


@inlined
def _points(kernel_offset, n, block, like, g):  # type: ignore[no-untyped-def]
    """Return where all taps read, in whole vectors."""
    taps, origin = g.kh * g.kw, np.zeros(1, np.int32)
    points = new_points(like, _vectors(taps, like) * vector.lanes(like))
    for t in range(taps):
        start = ((n * g.Gk + block) * taps + t) * 2
        down, across = t // g.kw + ((g.Sh - g.kh) >> 1), t % g.kw + ((g.Sw - g.kw) >> 1)
        place_axis(
            kernel_offset, start, (g.Sh - g.kh) % 2, origin, down, g.Sh, g.clip, 1,
            points.rows, points.low_y, points.high_y, points.flags, t, 1, points.numbers,
        )  # fmt: skip
        place_axis(
            kernel_offset, start + 1, (g.Sw - g.kw) % 2, origin, across, g.Sw, g.clip, 1,
            points.columns, points.low_x, points.high_x, points.flags, t, COLUMN, points.numbers,
        )  # fmt: skip
    number_points(points, 0, taps, g.Sw)
    return points


@borrowing
def _vectors(count, like):  # type: ignore[no-untyped-def]
    return ceil_div(count, vector.lanes(like))


@borrowing
def _share_out(points, shares, masks, tap_step, position_step, g):  # type: ignore[no-untyped-def]
    """Set with which share each tap reads each position, and the masks of what is read.

    Both are `tap_step` elements apart from tap to tap and `position_step` from position to position; one step is 1, and
    along it lie the lanes of vectors.
    """
    size = vector.lanes(shares)
    fill(shares, 0)
    fill(masks, 0)
    for t in range(g.kh * g.kw):
        for corner in range(4):
            position, share = read_at(points, t, corner, g.Sw)
            if position >= 0:
                at = t * tap_step + position * position_step
                shares[at] = share
                masks[at // size] |= 1 << at % size


# ---- the kernels -----------------------------------------------------------------------------------------------------


@inlined
def sample_task(task, weight, kernel_offset, out, like, geometry):  # type: ignore[no-untyped-def]
    """Sample the kernels of some output channels for an image; lanes are taps."""
    g = sample_geometry(geometry)
    parts, scope = parts_of(g.N, like, g), g.Sh * g.Sw
    n = task // parts
    block, first, end = _outs(task % parts, g.N, like, g)
    points, width = _points(kernel_offset, n, block, like, g), _vectors(g.kh * g.kw, like) * vector.lanes(like)
    shares, masks = accumulators(like, scope * width), np.empty(scope * _vectors(width, like), np.int64)
    unknown = accumulators(like, width)
    _share_out(points, shares, masks, 1, width, g)
    for t in range(g.kh * g.kw):
        if points.flags[t] & READS == READS:
            unknown[t] = points.low_y[t] * points.low_x[t] * points.numbers[0]  # NaN where a coordinate is
    k = first * g.I
    while k < end * g.I:
        if k + 4 <= end * g.I:
            _sample(n, k, (0, 1, 2, 3), weight, shares, masks, unknown, out, g)
            k += 4
        else:
            _sample(n, k, (0,), weight, shares, masks, unknown, out, g)
            k += 1


@borrowing
def _sample(n, k, pack, weight, shares, masks, unknown, out, g):  # type: ignore[no-untyped-def]
    """Write a pack of kernels from kernel k on."""
    size, scope, taps = vector.lanes(shares), g.Sh * g.Sw, g.kh * g.kw
    vectors = _vectors(taps, shares)
    weights = vector.spaced(k * scope, scope, pack)
    to = vector.spaced((n * g.O * g.I + k) * taps, taps, pack)
    for v in range(vectors):
        total = vector.add(vector.zeros(shares, pack), vector.load(unknown, v * size))
        for first in range(0, scope, CHAIN):
            chain = vector.zeros(shares, pack)
            for position in range(first, min(scope, first + CHAIN)):
                at = position * vectors + v
                values = vector.broadcast(weight, vector.shift(weights, position))
                chain = vector.where(masks[at], vector.fma(values, vector.load(shares, at * size), chain), chain)
            total = vector.add(chain, total)
        vector.store_where(out, vector.shift(to, v * size), 1, total, vector.between(0, taps - v * size))


# ---- their gradients -------------------------------------------------------------------------------------------------


@inlined
def grad_kernel_task(task, grad_out, kernel_offset, grad_weight, like, geometry):  # type: ignore[no-untyped-def]
    """Write the gradient of the weights of some output channels, the sum over all images; lanes are positions."""
    g = sample_geometry(geometry)
    size, scope, taps = vector.lanes(like), g.Sh * g.Sw, g.kh * g.kw
    block, first, end = _outs(task, 1, like, g)
    kernels, vectors = (end - first) * g.I, _vectors(scope, like)
    sums = np.zeros(kernels * vectors * size, np.float64)
    shares, masks = accumulators(like, taps * vectors * size), np.empty(taps * vectors, np.int64)
    for n in range(g.N):
        points = _points(kernel_offset, n, block, like, g)
        _share_out(points, shares, masks, vectors * size, 1, g)
        start = (n * g.O + first) * g.I * taps
        for k in range(kernels):
            for v in range(vectors):
                _spread(grad_out, start + k * taps, shares, masks, v, sums, (k * vectors + v) * size, taps)
    for k in range(kernels):
        for position in range(scope):
            store(grad_weight, (first * g.I + k) * scope + position, sums[k * vectors * size + position])


@borrowing
def _spread(grad_out, start, shares, masks, v, sums, to, taps):  # type: ignore[no-untyped-def]
    """Add what the taps of a kernel send to a vector of its positions."""
    size, total = vector.lanes(shares), vector.zeros(shares, 0)
    vectors = masks.size // taps
    for t in range(taps):
        at = t * vectors + v
        grad = vector.broadcast(grad_out, start + t)
        total = vector.where(masks[at], vector.fma(grad, vector.load(shares, at * size), total), total)
    vector.accumulate(sums, to, total)


@inlined
def grad_offset_task(task, grad_out, weight, kernel_offset, grad_offset, like, geometry):  # type: ignore[no-untyped-def]
    """Write the gradient of a block's offsets of an image, sums over its kernels; lanes are taps."""
    g = sample_geometry(geometry)
    n, block, taps, size = task // g.Gk, task % g.Gk, g.kh * g.kw, vector.lanes(like)
    points, kernels = _points(kernel_offset, n, block, like, g), g.O // g.Gk * g.I
    sums = np.zeros(2 * size, np.float64)
    for v in range(_vectors(taps, like)):
        fill(sums, 0)
        for first in range(block * kernels, (block + 1) * kernels, CHAIN):
            end = min(first + CHAIN, (block + 1) * kernels)
            down, across = _sum_slopes(n, first, end, v * size, grad_out, weight, points, like, g)
            vector.accumulate(sums, 0, down)
            vector.accumulate(sums, size, across)
        for t in range(v * size, min(v * size + size, taps)):
            flags, to, lane = points.flags[t], (task * taps + t) * 2, t - v * size
            store(grad_offset, to, sums[lane] if flags & MOVED[0] == MOVED[0] else 0)
            store(grad_offset, to + 1, sums[size + lane] if flags & MOVED[1] == MOVED[1] else 0)


@borrowing
def _sum_slopes(n, first, end, at, grad_out, weight, points, like, g):  # type: ignore[no-untyped-def]
    """Return what some kernels give to the gradients of a vector of taps' offsets, by row and by column."""
    size, scope, taps = vector.lanes(like), g.Sh * g.Sw, g.kh * g.kw
    down = across = vector.zeros(like, 0)
    (ends, sides), corners = slope_weights(points, at), vector.flagged(like, points.flags, at, CORNERS)
    own, every = vector.between(0, taps - at), vector.between(0, size)
    rooms = (
        vector.between(0, scope), vector.between(0, scope - 1), vector.between(0, scope - g.Sw),
        vector.between(0, scope - g.Sw - 1),
    )  # fmt: skip
    for k in range(first, end):
        starts = vector.shift((0, 1, g.Sw, g.Sw + 1), k * scope)
        table = vector.load_where(weight, starts, 1, rooms)
        if scope <= size and vector.within(vector.zero_or_nan(table[0]), 0.0, 0.0) == every:
            values = vector.looked_up(table, points.places, (at, at, at, at))
        else:  # larger than a vector, or with neighbours that must not be touched
            values = vector.gather(weight, starts, points.elements, at, corners)
        slope, other = slopes_of(values, ends, sides)
        grad = vector.load_where(grad_out, (n * g.O * g.I + k) * taps + at, 1, own)
        down, across = vector.fma(grad, slope, down), vector.fma(grad, other, across)
    return down, across
