"""Tiles of output pixels: where the taps of each pixel read, and what each dilation counts there.

A tile is up to PANELS * VECTORS vectors of pixels that follow each other in the image, across the ends of rows too. At
a stride of 1 consecutive pixels read consecutive elements, else each lane has an offset of its own. What a tap of a
dilation reads is told by a mask for each vector, the same for all channels: it is that of the kernel's row and that of
its column and that of the pixels that take the dilation at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.cpu_geometry import named
from dynk.kernels.common.numeric import accumulators, load
from dynk.kernels.common.products import VECTORS, ceil_div, everywhere, tile_pixels
from dynk.kernels.dilated.geometry import DILATIONS_H, DILATIONS_W, DilationGeometry


class Mixture(NamedTuple):
    """What the dilations count at each pixel, or which one of them alone does; the other array is empty."""

    shares: Any
    words: Any  # the indices, of one 32-bit word or of two


class Tile(NamedTuple):
    """Some pixels of image n; arrays are by vector, then by dilation."""

    n: int
    first: int  # number of the first pixel within the output image
    pixels: int
    vectors: int
    flat: bool  # whether consecutive pixels read consecutive elements
    anchors: Any  # element of a plane of the image at which each pixel is anchored
    rows: Any  # mask of the pixels whose tap is in a row of the image, for each kernel row
    columns: Any  # mask of the pixels whose tap is in a column of the image, for each kernel column
    chosen: Any  # mask of the pixels that take part in the dilation
    wrong: Any  # mask of the pixels whose index is none of a dilation, for each vector alone
    shares: Any  # weight of the dilation at each pixel
    shifts: Any  # how many elements a tap lies from its anchor, by tap and dilation


dilation_geometry = named(DilationGeometry)


@borrowing
def tap_row(i, d, geometry):  # type: ignore[no-untyped-def]
    """Return how far the taps of kernel row i lie below the anchor."""
    return (i - (geometry[5] - 1) // 2) * geometry[DILATIONS_H + d]


@borrowing
def tap_column(j, d, geometry):  # type: ignore[no-untyped-def]
    """Return how far the taps of kernel column j lie to the right of the anchor."""
    return (j - (geometry[6] - 1) // 2) * geometry[DILATIONS_W + d]


@inlined
def tile_of(n, first, end, first_row, end_row, mixture, like, geometry):  # type: ignore[no-untyped-def]
    """Return the tile of the pixels from `first` on, before `end`.

    Of the image only the rows from `first_row` on, before `end_row`, are taken for being there.
    """
    g = dilation_geometry(geometry)
    size = vector.lanes(like)
    count = min(end - first, tile_pixels(like))
    vectors = ceil_div(count, size)
    tile = Tile(
        n,
        first,
        count,
        vectors,
        g.stride_h == 1 and g.stride_w == 1,
        np.zeros(vectors * size, np.int64),
        np.zeros(vectors * g.D * g.kh, np.int64),
        np.zeros(vectors * g.D * g.kw, np.int64),
        np.zeros(vectors * g.D, np.int64),
        np.zeros(vectors, np.int64),
        accumulators(like, vectors * g.D * size),
        np.empty(g.kh * g.kw * g.D, np.int64),
    )
    for k in range(g.kh * g.kw):
        for d in range(g.D):
            row, column = tap_row(k // g.kw, d, geometry), tap_column(k % g.kw, d, geometry)
            tile.shifts[k * g.D + d] = row * g.W + column
    _weigh(tile, mixture, g)
    for v in range(vectors):
        lane = 0
        while lane < min(size, count - v * size):  # the pixels of one row of the output after another
            pixel = first + v * size + lane
            y, x = pixel // g.Wo, pixel % g.Wo
            end_lane = min(lane + g.Wo - x, min(size, count - v * size))
            _mask_segment(tile, v, lane, end_lane, y, x - lane, first_row, end_row, geometry)
            lane = end_lane
    return tile


@borrowing
def _mask_segment(tile, v, first, end, y, x, first_row, end_row, geometry):  # type: ignore[no-untyped-def]
    """Add the lanes from `first` to `end`, which are in row y of the output and whose column is x + lane."""
    g = dilation_geometry(geometry)
    size = tile.anchors.size // tile.vectors
    for lane in range(first, end):
        tile.anchors[v * size + lane] = y * g.stride_h * g.W + (x + lane) * g.stride_w
    for d in range(g.D):
        for i in range(g.kh):
            if first_row <= y * g.stride_h + tap_row(i, d, geometry) < end_row:
                tile.rows[(v * g.D + d) * g.kh + i] |= vector.between(first, end)
        for j in range(g.kw):
            column = tap_column(j, d, geometry)
            left, right = ceil_div(-column, g.stride_w) - x, ceil_div(g.W - column, g.stride_w) - x
            tile.columns[(v * g.D + d) * g.kw + j] |= vector.between(max(first, left), min(end, right))


@borrowing
def _weigh(tile, mixture, g):  # type: ignore[no-untyped-def]
    """Set what each dilation counts at each pixel."""
    size, plane = tile.anchors.size // tile.vectors, g.Ho * g.Wo
    for v in range(tile.vectors):
        lanes = min(size, tile.pixels - v * size)
        here = tile.first + v * size
        if g.hard == 0:
            for d in range(g.D):
                tile.chosen[v * g.D + d] = vector.between(0, lanes)
                for lane in range(lanes):
                    share = load(mixture.shares, (tile.n * g.D + d) * plane + here + lane)
                    tile.shares[(v * g.D + d) * size + lane] = share
        else:
            words = mixture.words.size // (g.N * plane)
            for lane in range(lanes):
                at = (tile.n * plane + here + lane) * words
                index = np.int64(mixture.words[at])
                if 0 <= index < g.D and (words == 1 or mixture.words[at + 1] == 0):
                    k = v * g.D + index
                    tile.chosen[k] |= 1 << lane
                    tile.shares[k * size + lane] = 1
                else:
                    tile.wrong[v] |= 1 << lane


@borrowing
def masks_of(tile, v, i, j, dilations, g):  # type: ignore[no-untyped-def]
    """Return where tap (i, j) of each of some dilations is read."""
    at = vector.shift(dilations, v * g.D)
    rows = vector.pick(tile.rows, vector.spaced(i, g.kh, at))
    columns = vector.pick(tile.columns, vector.spaced(j, g.kw, at))
    return vector.masked(vector.masked(rows, columns), vector.pick(tile.chosen, at))


@borrowing
def starts_of(tile, plane, v, i, j, dilations, like, g):  # type: ignore[no-untyped-def]
    """Return where tap (i, j) of each of some dilations is read in the plane of the image that starts at `plane`.

    That is for the first lane where the tile is flat, else for a pixel anchored at the plane's first element.
    """
    shifts = vector.pick(tile.shifts, vector.shift(dilations, (i * g.kw + j) * g.D))
    first = plane + tile.first + v * vector.lanes(like) if tile.flat else plane
    return vector.shift(shifts, first)


@borrowing
def seen(tile, v, i, j, g):  # type: ignore[no-untyped-def]
    """Return the mask of the pixels at which tap (i, j) is read for any dilation."""
    mask = tile.wrong[v]
    for d in range(g.D):
        (one,) = masks_of(tile, v, i, j, (d,), g)
        mask |= one
    return mask


@inlined
def seen_by_tap(tile, g):  # type: ignore[no-untyped-def]
    """Return the masks of the pixels at which each tap is read, by vector, and VECTORS masks of all pixels."""
    taps = g.kh * g.kw
    masks = everywhere(taps * tile.vectors + VECTORS)
    for t in range(taps):
        for v in range(tile.vectors):
            masks[t * tile.vectors + v] = seen(tile, v, t // g.kw, t % g.kw, g)
    return masks
