"""Tiles of output pixels, and the points that their taps read, in the image or in the scope of the kernel.

A tile is a row of pixels that follow each other in the output, across the ends of its rows too. What belongs to a pixel
of it and a tap has the number tap * tile_pixels + pixel in every array of `Points`.

On each axis a point lies between two positions, `low` and the next one, `high`. Where the first is outside, as left of
the image, the other is called `low` and there is no `high`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.cpu_geometry import named
from dynk.kernels.common.numeric import accumulators, load, store
from dynk.kernels.common.products import ceil_div, tile_pixels
from dynk.kernels.deformable import geometry
from dynk.kernels.deformable.geometry import FAR, DeformGeometry

# What `Points.flags` tells of the rows; of the columns these bits are COLUMN times as high.
READ = 1  # the point has a value
MOVES = 2  # the value has a derivative
LOW = 4  # there is a low position
HIGH = 8  # there is a high position
BELOW = 16  # there is no position below the point
COLUMN = 32

READS = READ + READ * COLUMN
MOVED = (MOVES + READ * COLUMN, READ + MOVES * COLUMN)  # where the derivatives by row and by column are
CORNERS = (LOW + LOW * COLUMN, LOW + HIGH * COLUMN, HIGH + LOW * COLUMN, HIGH + HIGH * COLUMN)


class Tile(NamedTuple):
    """Some pixels of image n."""

    n: int
    first: int  # number of the first pixel within the output
    pixels: int
    vectors: int
    flat: bool  # whether pixels that follow each other read elements that do, where there are no offsets
    rows: Any  # row of the image that a tap of row 0 reads, for each pixel
    columns: Any
    origin: Any  # zeros


class Points(NamedTuple):
    """Where taps read; the low positions first."""

    rows: Any
    columns: Any
    elements: Any  # rows * extent + columns
    places: Any  # the same in int32
    low_y: Any  # weights of the positions
    high_y: Any
    low_x: Any
    high_x: Any
    flags: Any
    numbers: Any  # 0, 1, 0.5 and -1; a literal would be a float64


deform_geometry = named(DeformGeometry)


is_depthwise = borrowing(geometry.is_depthwise)


@inlined
def tile_of(n, first, end, like, g):  # type: ignore[no-untyped-def]
    """Return the tile of the pixels from `first` on, before `end`."""
    pixels = min(end - first, tile_pixels(like))
    flat = g.stride_h == 1 and g.stride_w == 1 and g.Wo == g.W
    width = tile_pixels(like)
    rows, columns, origin = np.zeros(width, np.int32), np.zeros(width, np.int32), np.zeros(width, np.int32)
    for k in range(pixels):
        rows[k] = (first + k) // g.Wo * g.stride_h - g.pad_h
        columns[k] = (first + k) % g.Wo * g.stride_w - g.pad_w
    return Tile(n, first, pixels, ceil_div(pixels, vector.lanes(like)), flat, rows, columns, origin)


@inlined
def new_points(like, count):  # type: ignore[no-untyped-def]
    """Return room for so many points."""
    numbers = accumulators(like, 4)
    numbers[1], numbers[2], numbers[3] = 1, 0.5, -1
    return Points(
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, np.int64),
        np.zeros(count, np.int32),
        accumulators(like, count),
        accumulators(like, count),
        accumulators(like, count),
        accumulators(like, count),
        np.zeros(count, np.int32),
        numbers,
    )


@borrowing
def place_in_image(tile, data_offset, block, first_row, end_row, points, g):  # type: ignore[no-untyped-def]
    """Set the points of a block of channels in the image.

    Without offsets of the data, of the image only the rows from `first_row` on, before `end_row`, are there.
    """
    width, taps, plane = tile.rows.size, g.kh * g.kw, g.Ho * g.Wo
    for t in range(taps):
        down, across = t // g.kw * g.dil_h, t % g.kw * g.dil_w
        _clear(points, t * width, width)
        if g.has_data != 0:
            start = (((tile.n * g.Gd + block) * taps + t) * 2) * plane + tile.first
            place_axis(
                data_offset, start, 0, tile.rows, down, g.H, 0, tile.pixels,
                points.rows, points.low_y, points.high_y, points.flags, t * width, 1, points.numbers,
            )  # fmt: skip
            place_axis(
                data_offset, start + plane, 0, tile.columns, across, g.W, 0, tile.pixels,
                points.columns, points.low_x, points.high_x, points.flags, t * width, COLUMN, points.numbers,
            )  # fmt: skip
        else:
            for k in range(tile.pixels):
                row, column = load(tile.rows, k) + down, load(tile.columns, k) + across
                there = (row >= first_row) & (row < end_row) & (column >= 0) & (column < g.W)
                store(points.rows, t * width + k, row)
                store(points.columns, t * width + k, column)
                store(points.flags, t * width + k, CORNERS[0] + READS if there else 0)
        number_points(points, t * width, tile.pixels, g.W)


@borrowing
def place_in_scope(tile, kernel_offset, block, points, g):  # type: ignore[no-untyped-def]
    """Set the points of a block of channels in the scope of the kernel."""
    width, taps, plane = tile.rows.size, g.kh * g.kw, g.Ho * g.Wo
    for t in range(taps):
        start = (((tile.n * g.Gk + block) * taps + t) * 2) * plane + tile.first
        down, across = t // g.kw + ((g.Sh - g.kh) >> 1), t % g.kw + ((g.Sw - g.kw) >> 1)
        _clear(points, t * width, width)
        place_axis(
            kernel_offset, start, (g.Sh - g.kh) % 2, tile.origin, down, g.Sh, g.clip, tile.pixels,
            points.rows, points.low_y, points.high_y, points.flags, t * width, 1, points.numbers,
        )  # fmt: skip
        place_axis(
            kernel_offset, start + plane, (g.Sw - g.kw) % 2, tile.origin, across, g.Sw, g.clip, tile.pixels,
            points.columns, points.low_x, points.high_x, points.flags, t * width, COLUMN, points.numbers,
        )  # fmt: skip
        number_points(points, t * width, tile.pixels, g.Sw)


@borrowing
def _clear(points, start, count):  # type: ignore[no-untyped-def]
    for k in range(start, start + count):
        store(points.flags, k, 0)
        store(points.low_y, k, 0)
        store(points.high_y, k, 0)
        store(points.low_x, k, 0)
        store(points.high_x, k, 0)


@borrowing
def number_points(points, start, count, width):  # type: ignore[no-untyped-def]
    """Set the elements that points read first from their rows and columns."""
    rows, columns, elements, places = points.rows, points.columns, points.elements, points.places
    for k in range(start, start + count):
        element = np.int64(load(rows, k)) * width + load(columns, k)
        store(elements, k, element)
        store(places, k, element)


@borrowing
def read_at(points, k, corner, width):  # type: ignore[no-untyped-def]
    """Return one of the four positions around a point, -1 if it is not read, and its weight."""
    own = CORNERS[corner] | READS
    share = points.high_y[k] if corner >= 2 else points.low_y[k]
    share *= points.high_x[k] if corner % 2 == 1 else points.low_x[k]
    position = points.elements[k] + corner // 2 * width + corner % 2
    return position if points.flags[k] & own == own else -1, share


@borrowing
def place_axis(  # type: ignore[no-untyped-def]
    offsets, start, halves, bases, shift, extent, clip, count, cells, low, high, flags, to, scale, numbers
):
    """Set a coordinate of `count` points: base + shift + offset, and so many halves more.

    Written for the compiler to make vectors of.
    """
    zero, one, half = numbers[0], numbers[1], numbers[2 * halves]
    for k in range(count):
        offset = load(offsets, start + k) + half
        floor = np.floor(offset)
        unknown, near = offset != offset, np.abs(offset) <= FAR
        cell = load(bases, k) + shift + np.int64(floor) if near else (extent if offset > zero else -2)
        fraction = offset - floor if near else zero
        if clip != 0:
            moves = (cell >= 0) & (cell < extent - 1)
            fraction = fraction if moves else zero
            cell = min(max(cell, 0), extent - 1)
            read = True
        else:
            moves = (cell >= -1) & (cell < extent)
            read = moves & ((cell >= 0) | (fraction > zero))
        below = cell == -1
        has_high = (cell >= 0) & (cell < extent - 1)
        weight = fraction if below else one - fraction
        there = (read | moves) & ~unknown
        store(low, to + k, (weight if there else zero) if not unknown else offset)
        store(high, to + k, (fraction if has_high else zero) if not unknown else offset)
        store(cells, to + k, cell if there & ~below else 0)
        bits = (READ if read | unknown else 0) + (MOVES if moves | unknown else 0)
        bits += (LOW if there else 0) + (HIGH if there & has_high else 0) + (BELOW if there & below else 0)
        store(flags, to + k, load(flags, to + k) + bits * scale)
