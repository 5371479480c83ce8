"""The gradient of depth-wise weights on the CPU where only the kernel has offsets: vectors of channels.

The points of a tile are sorted by the cell of the scope in which they lie. What a pixel and a tap give is then added to
the same four positions from point to point, whose sums stay in registers: four products for each, where a product of
matrices takes one for every position of the scope.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill, load
from dynk.kernels.common.products import CHAIN, add_to, ceil_div, tile_pixels
from dynk.kernels.deformable.cpu_grad_depthwise import block_of_task, depthwise_shares, store_sum
from dynk.kernels.deformable.cpu_points import COLUMN, CORNERS, HIGH, READS, deform_geometry, tile_of
from dynk.kernels.deformable.cpu_samples import forget, plan_image, plan_of, plan_scope, run_of, turn_planes

CHANNELS = 64  # that are turned at once
REACHED = 4096  # pixels of the image that the taps of a tile read, at most


class Cells(NamedTuple):
    """The points of a tile that read both the image and the scope, by cell of the scope."""

    starts: Any  # first point of each cell, four of them for each position: with or without a next row and column
    pixels: Any  # of the tile
    elements: Any  # of the image
    shares: Any  # weights of the four positions
    rows: Any  # of the sums of the four positions of a cell


@borrowing
def sorts_points(like, g):  # type: ignore[no-untyped-def]
    """Return whether the gradient is made of points that are sorted: where channels fill vectors, and fit the cache."""
    plain = g.has_kernel != 0 and g.has_data == 0 and g.has_mask == 0 and g.O == g.C
    fill_vectors = min(g.C // g.Gk, min(g.H * g.W, g.Ho * g.Wo)) >= vector.lanes(like)
    return plain and fill_vectors and _most_reached(like, g) <= REACHED


@borrowing
def _most_reached(like, g):  # type: ignore[no-untyped-def]
    """Return how many pixels of the image a tile reaches at most: whole rows, a vector of them at least."""
    rows = min(g.Ho, ceil_div(tile_pixels(like), g.Wo) + 1)
    return min(g.H, (rows - 1) * g.stride_h + (g.kh - 1) * g.dil_h + 1) * g.W + vector.lanes(like)


@inlined
def grad_cells_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, kernel_offset, partials, grad_weight, like, geometry
):
    """Write a share's sum for a block of channels: to the gradient, or to that of its share where there are several."""
    g = deform_geometry(geometry)
    size, tiles, shares = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like)), depthwise_shares(like, g)
    positions, blocks, nothing = g.Sh * g.Sw, ceil_div(g.C, block_of_task(g)), kernel_offset[:0]
    c, share = task % blocks * block_of_task(g), task // blocks
    count = min(block_of_task(g), g.C - c)
    row = (ceil_div(count, size) + 1) * size  # of the sums of a position
    points = g.kh * g.kw * tile_pixels(like)
    cells = Cells(
        np.zeros(4 * positions + 1, np.int64),
        np.zeros(points, np.int64),
        np.zeros(points, np.int64),
        accumulators(like, 4 * points),
        np.zeros(4, np.int64),
    )
    plan = plan_of(like, 0, like, 0, g)
    images = accumulators(like, _most_reached(like, g) * CHANNELS)
    grads = accumulators(like, tile_pixels(like) * CHANNELS)
    recent, total = accumulators(like, (positions + 1) * row), accumulators(like, (positions + 1) * row)
    for k in range(g.N * tiles * share // shares, g.N * tiles * (share + 1) // shares):
        tile = tile_of(k // tiles, k % tiles * tile_pixels(like), g.Ho * g.Wo, like, g)
        first, end = _reach(tile, size, g)
        start, last = min(tile.first, g.Ho * g.Wo - size), max(tile.first + tile.pixels, size)
        forget(plan)
        done = 0
        while done < count:
            run = run_of(c + done, count - done, g)
            plan_image(plan, tile, nothing, c + done, 0, g.H, g)
            plan_scope(plan, tile, kernel_offset, c + done, g)
            _sort(plan, tile, first, tile.first - start, cells, g)
            for part in range(0, run, CHANNELS):
                channel, many = c + done + part, min(CHANNELS, run - part)
                if many % size != 0:
                    fill(images, 0)
                    fill(grads, 0)
                plane, pixels = tile.n * g.C + channel, g.Ho * g.Wo
                turn_planes(x, plane * g.H * g.W + first, g.H * g.W, end - first, many, images, 0, CHANNELS)
                turn_planes(grad_out, plane * pixels + start, pixels, last - start, many, grads, 0, CHANNELS)
                _add_cells(cells, images, grads, many, recent, done + part, row, g)
            done += run
        add_to(total, recent)
    for o in range(count):
        for k in range(positions):
            store_sum(load(total, k * row + o), (c + o) * positions + k, share, shares, partials, grad_weight)


@borrowing
def _reach(tile, size, g):  # type: ignore[no-untyped-def]
    """Return the first pixel of the image that a tile may read and the end of those: a vector of them at least."""
    low = tile.first // g.Wo * g.stride_h - g.pad_h
    high = (tile.first + tile.pixels - 1) // g.Wo * g.stride_h - g.pad_h + (g.kh - 1) * g.dil_h + 1
    first = min(max(low, 0) * g.W, g.H * g.W - size)
    return first, max(min(high, g.H) * g.W, first + size)


@borrowing
def _sort(plan, tile, first, shift, cells, g):  # type: ignore[no-untyped-def]
    """Sort the points of a tile. Elements of the image are counted from `first` on, pixels from `shift` before."""
    width, taps, starts = tile.rows.size, g.kh * g.kw, cells.starts
    fill(starts, 0)
    for t in range(taps):
        for k in range(tile.pixels):
            cell = _cell_of(plan, t * width + k)
            if cell >= 0:
                starts[cell + 1] += 1
    for cell in range(1, starts.size):
        starts[cell] += starts[cell - 1]
    for t in range(taps):
        for k in range(tile.pixels):
            point = t * width + k
            cell = _cell_of(plan, point)
            if cell >= 0:
                to = starts[cell]
                cells.pixels[to], cells.elements[to] = k + shift, plan.image.elements[point] - first
                low_y, high_y = load(plan.scope.low_y, point), load(plan.scope.high_y, point)
                low_x, high_x = load(plan.scope.low_x, point), load(plan.scope.high_x, point)
                cells.shares[4 * to], cells.shares[4 * to + 1] = low_y * low_x, low_y * high_x
                cells.shares[4 * to + 2], cells.shares[4 * to + 3] = high_y * low_x, high_y * high_x
                starts[cell] += 1
    for cell in range(starts.size - 1, 0, -1):  # each is now where the next one starts
        starts[cell] = starts[cell - 1]
    starts[0] = 0


@borrowing
def _cell_of(plan, point):  # type: ignore[no-untyped-def]
    """Return the cell of the scope in which a point lies; -1 where it reads nothing of it or of the image."""
    flags = load(plan.scope.flags, point)
    read = flags & load(plan.image.flags, point) & READS == READS and flags & CORNERS[0] == CORNERS[0]
    next_row, next_column = 1 if flags & HIGH != 0 else 0, 1 if flags & (HIGH * COLUMN) != 0 else 0
    return load(plan.scope.elements, point) * 4 + next_row * 2 + next_column if read else -1


@borrowing
def _add_cells(cells, images, grads, channels, sums, to, row, g):  # type: ignore[no-untyped-def]
    """Add what all points give to the sums of some channels, which start at `to` in the row of each position."""
    size, positions = vector.lanes(sums), g.Sh * g.Sw
    rows = cells.rows
    for cell in range(cells.starts.size - 1):
        element = cell // 4
        for corner in range(4):
            there = corner & (cell % 4) == corner  # what is not goes to a row of its own
            rows[corner] = to + (element + corner // 2 * g.Sw + corner % 2 if there else positions) * row
        for first in range(cells.starts[cell], cells.starts[cell + 1], CHAIN):
            end = min(first + CHAIN, cells.starts[cell + 1])
            v = 0
            while v < channels:
                if v + 3 * size < channels:
                    _add_points(
                        cells, first, end, images, grads, v, sums, rows, (0, 1, 2, 3),
                        (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                        (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                    )  # fmt: skip
                    v += 4 * size
                else:
                    _add_points(cells, first, end, images, grads, v, sums, rows, (0,), (0, 1, 2, 3), (0, 0, 0, 0))
                    v += size


@borrowing
def _add_points(  # type: ignore[no-untyped-def]
    cells, first, end, images, grads, v, sums, rows, vectors, of_corners, of_vectors
):
    """Add what some points of a cell give to some vectors of channels."""
    size = vector.lanes(sums)
    total = vector.zeros(sums, of_corners)
    for k in range(first, end):
        pixel, element = load(cells.pixels, k) * CHANNELS + v, load(cells.elements, k) * CHANNELS + v
        sample = vector.load(images, vector.spaced(element, size, vectors))
        term = vector.mul(vector.load(grads, vector.spaced(pixel, size, vectors)), sample)
        share = vector.broadcast(cells.shares, vector.spaced(4 * k, 1, (0, 1, 2, 3)))
        total = vector.outer(share, term, total)
    at = vector.shift(vector.pick(rows, of_corners), vector.spaced(v, size, of_vectors))
    vector.accumulate(sums, at, total)
