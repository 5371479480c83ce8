"""Walks of the filter kernels: positions in vectors, and for each vector which taps are inside for which lanes.

A `Sweep` says what one direction reads and writes. Forward, the positions are the anchors and the taps read the image;
for the gradient of the image, the positions are its pixels and the taps read the outputs that a pixel went into. Both
then form the same sums. Without stride and scale, positions are taken through the ends of rows (`flat`), so that small
planes fill their vectors too; else a vector stays within a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.cpu_geometry import named
from dynk.kernels.decoupled.geometry import FilterGeometry

# The filters of a band of positions stay in the second cache while all channels of a task pass by.
FILTER_BYTES = 400 * 1024
VECTOR_BYTES = 64  # of accumulators
LEAST_VECTORS, MOST_VECTORS = 64, 1024  # of a band
LEAST_CHANNELS, TASK_VALUES = 32, 32 * 1024  # of a task
AHEAD = 64  # vectors between what caches are asked for and what is read

# Fields of a tap: where it reads, in rows and columns; offsets of its value, its spatial and its channel filter.
DY, DX, VALUE, FILTER, WEIGHT, TAP = range(6)
# Fields of a vector: where its first value, filter and result stand; whether all lanes are positions, and the mask of
# those that are; masks of the two vectors of results where each position has two of them side by side; whether all taps
# are inside for all lanes.
FIRST_VALUE, FIRST_FILTER, FIRST_RESULT, FULL, POSITIONS, LOWER, UPPER, WHOLE, FIELDS = range(9)
# Fields of `_columns_of`, after the first and the last column.
SAME, MASK, COLUMN = range(2, 5)


class Sweep(NamedTuple):
    """A walk over a grid of positions."""

    rows: int  # of positions
    columns: int
    flat: int
    height: int  # a tap at (a*step_h + dy, b*step_w + dx) of position (a, b) is inside this
    width: int
    step_h: int
    step_w: int
    value_row: int  # elements from a position's values to those of the next row's, and of the next column's
    value_step: int
    filter_row: int
    result_first: int
    result_row: int
    result_step: int


class Split(NamedTuple):
    """How a sweep is cut into tasks, by the geometry alone."""

    vectors: int
    band: int  # vectors of a task
    bands: int
    block: int  # channels of a task
    blocks: int


filter_geometry = named(FilterGeometry)


@borrowing
def ceil(extent, step):  # type: ignore[no-untyped-def]
    """Return extent / step, rounded up."""
    return (extent + step - 1) // step


@borrowing
def over_anchors(g):  # type: ignore[no-untyped-def]
    """Return the sweep that reads the image for each anchor."""
    flat = 1 if g.stride_h == 1 and g.stride_w == 1 and g.scale == 1 else 0
    row = g.scale * g.scale * g.Wo
    return Sweep(
        g.Ho, g.Wo, flat, g.H, g.W, g.stride_h, g.stride_w, g.stride_h * g.W, g.stride_w, g.Wo, 0, row, g.scale
    )


@borrowing
def over_positions(g):  # type: ignore[no-untyped-def]
    """Return the sweep that reads image and outputs for each anchor, where sub-pixels are taken apart."""
    flat = 1 if g.stride_h == 1 and g.stride_w == 1 else 0
    return Sweep(g.Ho, g.Wo, flat, g.H, g.W, g.stride_h, g.stride_w, g.stride_h * g.W, g.stride_w, g.Wo, 0, g.Wo, 1)


@inlined
def taps_of_anchors(g):  # type: ignore[no-untyped-def]
    """Return the taps of a filter, row-major."""
    taps = np.empty(g.kh * g.kw * TAP, np.int64)
    for k in range(g.kh * g.kw):
        dy = (k // g.kw - (g.kh - 1) // 2) * g.dilation_h
        dx = (k % g.kw - (g.kw - 1) // 2) * g.dilation_w
        taps[k * TAP + DY], taps[k * TAP + DX] = dy, dx
        taps[k * TAP + VALUE] = dy * g.W + dx
        taps[k * TAP + FILTER], taps[k * TAP + WEIGHT] = k * g.Ho * g.Wo, k
    return taps


@borrowing
def over_pixels(phase, g):  # type: ignore[no-untyped-def]
    """Return the sweep that reads grad_out for the pixels (phase_h + a*stride_h, phase_w + b*stride_w).

    Sub-pixels are taken apart.
    """
    flat = 1 if g.stride_h == 1 and g.stride_w == 1 else 0
    rows = ceil(g.H - phase // g.stride_w, g.stride_h)
    columns = ceil(g.W - phase % g.stride_w, g.stride_w)
    first = phase // g.stride_w * g.W + phase % g.stride_w
    return Sweep(rows, columns, flat, g.Ho, g.Wo, 1, 1, g.Wo, 1, g.Wo, first, g.stride_h * g.W, g.stride_w)


@inlined
def taps_of_pixels(phase, span, g):  # type: ignore[no-untyped-def]
    """Return the taps by which outputs read the pixels of a phase: (sub-pixel, anchor) pairs, seen from the pixel.

    A sub-pixel's plane of values is `span` elements from that of the one before.
    """
    taps = np.empty(g.kh * g.kw * g.scale * g.scale * TAP, np.int64)
    at = 0
    for tap in range(g.scale * g.scale * g.kh * g.kw):
        pq, k = tap // (g.kh * g.kw), g.kh * g.kw - 1 - tap % (g.kh * g.kw)
        reach_h = phase // g.stride_w - (k // g.kw - (g.kh - 1) // 2) * g.dilation_h
        reach_w = phase % g.stride_w - (k % g.kw - (g.kw - 1) // 2) * g.dilation_w
        if reach_h % g.stride_h != 0 or reach_w % g.stride_w != 0:
            continue
        dy, dx, weight = reach_h // g.stride_h, reach_w // g.stride_w, pq * g.kh * g.kw + k
        taps[at + DY], taps[at + DX] = dy, dx
        taps[at + VALUE] = pq * span + dy * g.Wo + dx
        taps[at + FILTER], taps[at + WEIGHT] = weight * g.Ho * g.Wo + dy * g.Wo + dx, weight
        at += TAP
    return taps[:at]


@borrowing
def split(values, sweep, filters, channels):  # type: ignore[no-untyped-def]
    """Return the tasks of a sweep with so many spatial filter elements for each position."""
    size = vector.lanes(values)
    if sweep.flat != 0:
        vectors = ceil(sweep.rows * sweep.columns, size)
    else:
        vectors = sweep.rows * ceil(sweep.columns, size)
    most = FILTER_BYTES // (max(1, filters) * VECTOR_BYTES)
    bands = ceil(vectors, max(LEAST_VECTORS, min(most, MOST_VECTORS)))
    band = ceil(vectors, bands)
    blocks = ceil(channels, max(LEAST_CHANNELS, ceil(TASK_VALUES, band * size)))
    block = 4 * ceil(channels, 4 * blocks)  # whole packs
    return Split(vectors, band, bands, min(block, channels), ceil(channels, block))


@inlined
def vectors_of(sweep, taps, first, last, size):  # type: ignore[no-untyped-def]
    """Return the fields of the vectors first <= v < last, and for each the masks of its taps."""
    count = taps.size // TAP
    fields = np.empty((last - first) * FIELDS, np.int64)
    masks = np.empty((last - first) * count, np.int64)
    columns, ends, every = _columns_of(sweep, taps), extremes(taps), vector.between(0, size)
    in_row = ceil(sweep.columns, size)
    a, b = first * size // sweep.columns, first * size % sweep.columns
    if sweep.flat == 0:
        a, b = first // in_row, first % in_row * size
    at = 0
    for v in range(last - first):
        inside = sweep.rows * sweep.columns - (first + v) * size if sweep.flat != 0 else sweep.columns - b
        positions = min(size, inside)
        fields[at + FIRST_VALUE] = a * sweep.value_row + b * sweep.value_step
        fields[at + FIRST_FILTER] = a * sweep.filter_row + b
        fields[at + FIRST_RESULT] = sweep.result_first + a * sweep.result_row + b * sweep.result_step
        fields[at + FULL] = 1 if positions == size else 0
        fields[at + POSITIONS] = fields[at + LOWER] = fields[at + UPPER] = every
        if positions < size:
            fields[at + POSITIONS] = vector.between(0, positions)
            fields[at + LOWER] = vector.between(0, 2 * positions)
            fields[at + UPPER] = vector.between(0, 2 * positions - size)
        whole = positions == size and sweep.value_step == 1 and _is_whole(sweep, ends, a, b, size)
        fields[at + WHOLE] = 1 if whole else 0
        for k in range(count):
            masks[v * count + k] = -1 if whole else 0
        if not whole:
            _set_masks(masks, v * count, sweep, taps, columns, a, b, positions)
        at += FIELDS
        b += size
        while b >= sweep.columns:
            a, b = a + 1, b - sweep.columns if sweep.flat != 0 else 0
    return fields, masks


@borrowing
def ahead(v, field, fields, following):  # type: ignore[no-untyped-def]
    """Return a field of the vector AHEAD of vector v, or what it is in the pack of channels that follows.

    Hardware by itself fetches neither enough of so many rows at once nor soon enough.
    """
    count = fields.size // FIELDS
    later = v + min(AHEAD, count)
    return fields[later * FIELDS + field] if later < count else fields[(later - count) * FIELDS + field] + following


@borrowing
def anchors_of(first, last, sweep, taps):  # type: ignore[no-untyped-def]
    """Return the first and the number of the anchors in the rows that the positions first <= p < last read."""
    top, bottom, _, _ = extremes(taps)
    above = max(first // sweep.columns + top, 0)
    below = min(ceil(last, sweep.columns) + bottom, sweep.height)
    return above * sweep.width, max(below - above, 0) * sweep.width


@borrowing
def reach_of(taps):  # type: ignore[no-untyped-def]
    """Return how many elements from its position a tap stands at most."""
    reach = 0
    for k in range(taps.size // TAP):
        reach = max(reach, abs(taps[k * TAP + VALUE]))
    return reach


@inlined
def _columns_of(sweep, taps):  # type: ignore[no-untyped-def]
    """Return for each tap the first column at which it is inside, the first at which it is no longer, the number of the
    first tap for which these are the same, and room for a mask.
    """
    columns = np.empty(taps.size // TAP * COLUMN, np.int64)
    for k in range(taps.size // TAP):
        dx, same = taps[k * TAP + DX], 0
        while taps[same * TAP + DX] != dx:
            same += 1
        columns[k * COLUMN], columns[k * COLUMN + 1] = ceil(-dx, sweep.step_w), ceil(sweep.width - dx, sweep.step_w)
        columns[k * COLUMN + SAME] = same
    return columns


@borrowing
def extremes(taps):  # type: ignore[no-untyped-def]
    """Return the first and the last row and column of the taps and their position."""
    top, bottom, left, right = 0, 0, 0, 0
    for k in range(taps.size // TAP):
        dy, dx = taps[k * TAP + DY], taps[k * TAP + DX]
        top, bottom, left, right = min(top, dy), max(bottom, dy), min(left, dx), max(right, dx)
    return top, bottom, left, right


@borrowing
def _is_whole(sweep, ends, a, b, size):  # type: ignore[no-untyped-def]
    """Return whether every tap is inside for all lanes of the vector from (a, b) on, which does not leave its row."""
    y, x, last = a * sweep.step_h, b * sweep.step_w, (b + size - 1) * sweep.step_w
    top, bottom, left, right = ends
    inside = b + size <= sweep.columns and y + top >= 0 and y + bottom < sweep.height
    return inside and x + left >= 0 and last + right < sweep.width


@borrowing
def _set_masks(masks, at, sweep, taps, columns, a, b, positions):  # type: ignore[no-untyped-def]
    """Add to the masks of a vector from (a, b) on the lanes for which each tap is inside."""
    lane = 0
    while lane < positions:  # the part of the vector in row a
        part = min(positions - lane, sweep.columns - b)
        for k in range(taps.size // TAP):
            here, same = k * COLUMN, columns[k * COLUMN + SAME]
            if same == k:
                first, last = max(columns[here] - b, 0), min(columns[here + 1] - b, part)
                columns[here + MASK] = vector.between(lane + first, lane + last)
            if 0 <= a * sweep.step_h + taps[k * TAP + DY] < sweep.height:
                masks[at + k] |= columns[same * COLUMN + MASK]
        lane += part
        a, b = a + 1, 0
