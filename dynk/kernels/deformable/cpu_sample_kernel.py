"""`sample_kernel` on the CPU: kernels are small, so that it goes from number to number. Sums are formed in float64."""

from __future__ import annotations

import numpy as np

from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import load, store
from dynk.kernels.common.products import ceil_div
from dynk.kernels.deformable.cpu_points import (
    BELOW,
    COLUMN,
    CORNERS,
    MOVED,
    READS,
    new_points,
    number_points,
    place_axis,
)
from dynk.kernels.deformable.geometry import SampleGeometry

OUTS = 64  # output channels of a task, at most
SUMS = 2**17  # numbers of the gradient of a task, at most, but for a single output channel


@borrowing
def sample_geometry(a):  # type: ignore[no-untyped-def]
    """Return the named integers of a geometry array."""
    return SampleGeometry(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])


@borrowing
def outs_of(g):  # type: ignore[no-untyped-def]
    """Return how many output channels a task takes; they are in one block."""
    return min(g.O // g.Gk, max(1, min(OUTS, SUMS // (g.I * g.Sh * g.Sw))))


@borrowing
def parts_of(g):  # type: ignore[no-untyped-def]
    """Return how many tasks there are for an image."""
    return g.Gk * ceil_div(g.O // g.Gk, outs_of(g))


@borrowing
def _outs(part, g):  # type: ignore[no-untyped-def]
    """Return the block of a task, its first output channel and their end."""
    parts = ceil_div(g.O // g.Gk, outs_of(g))
    block = part // parts
    first = block * (g.O // g.Gk) + part % parts * outs_of(g)
    return block, first, min(first + outs_of(g), (block + 1) * (g.O // g.Gk))


@inlined
def _points(kernel_offset, n, block, like, g):  # type: ignore[no-untyped-def]
    """Return where all taps read."""
    taps, points, origin = g.kh * g.kw, new_points(like, g.kh * g.kw), np.zeros(1, np.int32)
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
def _corner(points, t, corner, g):  # type: ignore[no-untyped-def]
    """Return one of the four positions around the point of a tap, -1 if there is none, and its weight."""
    share = points.high_y[t] if corner >= 2 else points.low_y[t]
    share *= points.high_x[t] if corner % 2 == 1 else points.low_x[t]
    there = points.flags[t] & CORNERS[corner] == CORNERS[corner]
    return points.elements[t] + corner // 2 * g.Sw + corner % 2 if there else -1, share


@borrowing
def _slopes(points, t, weight, start, g):  # type: ignore[no-untyped-def]
    """Return the derivatives of a kernel's sample by row and by column; differences first, 0 between equal values."""
    flags, nothing = points.flags[t], points.low_y[t] * 0
    up_left, up_right = _value(points, t, 0, weight, start, g), _value(points, t, 1, weight, start, g)
    down_left, down_right = _value(points, t, 2, weight, start, g), _value(points, t, 3, weight, start, g)
    end_y = nothing + (1 if flags & BELOW != 0 else -1)
    end_x = nothing + (1 if flags & (BELOW * COLUMN) != 0 else -1)
    by_row = points.low_x[t] * (end_y * up_left + down_left) + points.high_x[t] * (end_y * up_right + down_right)
    by_column = points.low_y[t] * (end_x * up_left + up_right) + points.high_y[t] * (end_x * down_left + down_right)
    return by_row, by_column


@borrowing
def _value(points, t, corner, weight, start, g):  # type: ignore[no-untyped-def]
    """Return what stands at one of the four positions around a point, 0 if there is none."""
    position, share = _corner(points, t, corner, g)
    return load(weight, start + position) if position >= 0 else share * 0


@inlined
def sample_task(task, weight, kernel_offset, out, like, geometry):  # type: ignore[no-untyped-def]
    """Sample the kernels of some output channels for an image."""
    g = sample_geometry(geometry)
    n, scope, taps = task // parts_of(g), g.Sh * g.Sw, g.kh * g.kw
    block, first, end = _outs(task % parts_of(g), g)
    points = _points(kernel_offset, n, block, like, g)
    for k in range(first * g.I, end * g.I):
        for t in range(taps):
            unknown = points.low_y[t] * points.low_x[t]
            total = unknown * 0  # NaN where a coordinate is
            for corner in range(4):
                position, share = _corner(points, t, corner, g)
                if position >= 0:
                    total += share * load(weight, k * scope + position)
            store(out, (n * g.O * g.I + k) * taps + t, total if points.flags[t] & READS == READS else 0)


@inlined
def grad_kernel_task(task, grad_out, kernel_offset, grad_weight, like, geometry):  # type: ignore[no-untyped-def]
    """Write the gradient of the weights of some output channels: the sum over all images."""
    g = sample_geometry(geometry)
    scope, taps = g.Sh * g.Sw, g.kh * g.kw
    block, first, end = _outs(task, g)
    sums = np.zeros((end - first) * g.I * scope, np.float64)
    for n in range(g.N):
        points = _points(kernel_offset, n, block, like, g)
        for t in range(taps):
            for corner in range(4):
                position, share = _corner(points, t, corner, g)
                if position >= 0 and points.flags[t] & READS == READS:
                    for k in range((end - first) * g.I):
                        grad = load(grad_out, ((n * g.O + first) * g.I + k) * taps + t)
                        sums[k * scope + position] += share * grad
    for k in range(sums.size):
        store(grad_weight, first * g.I * scope + k, sums[k])


@inlined
def grad_offset_task(task, grad_out, weight, kernel_offset, grad_offset, like, geometry):  # type: ignore[no-untyped-def]
    """Write the gradient of a block's offsets of an image: sums over its kernels."""
    g = sample_geometry(geometry)
    n, block, scope, taps = task // g.Gk, task % g.Gk, g.Sh * g.Sw, g.kh * g.kw
    points, kernels = _points(kernel_offset, n, block, like, g), g.O // g.Gk * g.I
    for t in range(taps):
        by_row = by_column = np.float64(points.low_y[t] * points.low_x[t]) * 0  # NaN where a coordinate is
        for k in range(block * kernels, (block + 1) * kernels):
            slope, other = _slopes(points, t, weight, k * scope, g)
            grad = load(grad_out, (n * g.O * g.I + k) * taps + t)
            by_row, by_column = by_row + grad * slope, by_column + grad * other
        flags, to = points.flags[t], (task * taps + t) * 2
        store(grad_offset, to, by_row if flags & MOVED[0] == MOVED[0] else 0)
        store(grad_offset, to + 1, by_column if flags & MOVED[1] == MOVED[1] else 0)
