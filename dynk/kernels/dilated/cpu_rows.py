"""Depth-wise adaptive dilation at a stride of 1, as the sum of a convolution for each dilation.

    out[y, x] = sum over d of share_d[y, x] * (sum over taps t of weight_t * x[y + row_td, x + column_td])

More multiplications than if the image is mixed first, but all that is read is one number of the weights for many pixels
and the image, of which a task copies some rows of a channel with zeros around them. A weight that is not finite counts
as 0 here: where it is read, as where a result is not finite, sums over columns decide.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load
from dynk.kernels.common.products import CHAIN, ceil_div
from dynk.kernels.dilated.cpu_tiles import tap_column, tap_row

ROOM, LEAST_PITCH = 16 * 1024, 64  # elements of the rows that a task copies, at most; and of a row when there are many
LEAST_WIDTH = 4  # of an image: a row fills a vector of its own
TASKS = 32  # that are worth while
PACK = (0, 1, 2, 3, 4, 5, 6, 7)  # vectors of pixels that take a weight at once


@inlined
def halo(geometry, g):  # type: ignore[no-untyped-def]
    """Return how many rows above and below and how many columns left and right of a pixel its taps lie, at most."""
    above, below, left, right = 0, 0, 0, 0
    for d in range(g.D):
        above, below = max(above, -tap_row(0, d, geometry)), max(below, tap_row(g.kh - 1, d, geometry))
        left, right = max(left, -tap_column(0, d, geometry)), max(right, tap_column(g.kw - 1, d, geometry))
    return above, below, left, right


@inlined
def rows_of(geometry, g):  # type: ignore[no-untyped-def]
    """Return how many rows of the output a task makes, or 0 where this is not for them."""
    above, below, left, right = halo(geometry, g)
    rows = ROOM // max(LEAST_PITCH, left + g.W + right) - above - below
    return min(rows, g.Ho) if g.stride_h == 1 and g.stride_w == 1 and rows > 0 and g.W >= LEAST_WIDTH else 0


@inlined
def parts_of(geometry, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the channels of some rows are shared out."""
    return min(ceil_div(TASKS, g.N * ceil_div(g.Ho, max(1, rows_of(geometry, g)))), max(1, g.C))


@inlined
def sum_rows(n, first, last, c0, c1, x, weight, mixture, bias, out, like, geometry, g):  # type: ignore[no-untyped-def]
    """Make the rows first <= y < last of some channels; return whether all that was read and made is finite."""
    above, below, left, right = halo(geometry, g)
    size, taps, pitch = vector.lanes(like), g.kh * g.kw, left + g.W + right
    top, bottom = max(first - above, 0), min(g.H, last + below)
    image = accumulators(like, (last - first + above + below) * pitch + size)
    shifts = np.empty(g.D * taps, np.int64)
    for k in range(g.D * taps):
        row, column = tap_row(k % taps // g.kw, k // taps, geometry), tap_column(k % g.kw, k // taps, geometry)
        shifts[k] = (above + row) * pitch + left + column
    across = ceil_div(g.Wo, size)
    vectors = ceil_div((last - first) * across, 8) * 8
    places = np.empty(2 * vectors, np.int64)  # of a vector in the copied rows, then in a plane of the output
    for v in range(vectors):
        y = min(v // across, last - first - 1)
        column = min(v % across * size, max(g.Wo - size, 0))  # the last vector of a row overlaps the one before
        places[v], places[vectors + v] = y * pitch + column, (first + y) * g.Wo + column
    shares, kernel = accumulators(like, vectors * g.D * size), accumulators(like, taps)
    _gather_shares(n, mixture, shares, places, vectors, g)
    doubt, known = vector.zeros(like, 0), True
    for c in range(c0, c1):
        _copy_rows(x, (n * g.C + c) * g.H * g.W, top, bottom, image, (top - first + above) * pitch + left, pitch, g)
        for o in range(c * (g.O // g.C), (c + 1) * (g.O // g.C)):
            for t in range(taps):
                kernel[t] = load(weight, o * taps + t)
                if not np.isfinite(kernel[t]):
                    kernel[t], known = 0, False
            lanes = _convolve(n * g.O + o, o, image, shifts, shares, places, vectors, kernel, bias, out, g)
            doubt = vector.add(doubt, lanes)
    return known and vector.within(doubt, 0.0, 0.0) == vector.between(0, size)


@borrowing
def _gather_shares(n, mixture, shares, places, vectors, g):  # type: ignore[no-untyped-def]
    """Fill [vector][dilation][lane] with what each dilation counts; NaN where an index is none of a dilation."""
    size, plane = vector.lanes(shares), g.Ho * g.Wo
    mask, words = vector.between(0, min(size, g.Wo)), max(1, mixture.words.size // max(1, g.N * plane))
    for v in range(vectors):
        for d in range(g.D):
            to = (v * g.D + d) * size
            if g.hard == 0:
                at = (n * g.D + d) * plane + places[vectors + v]
                vector.store(shares, to, vector.load_where(mixture.shares, at, 1, mask))
                continue
            for lane in range(min(size, g.Wo)):
                at = (n * plane + places[vectors + v] + lane) * words
                index = np.int64(mixture.words[at])
                known = 0 <= index < g.D and (words == 1 or mixture.words[at + 1] == 0)
                shares[to + lane] = (1 if index == d else 0) if known else np.nan


@borrowing
def _copy_rows(x, start, top, bottom, image, to, pitch, g):  # type: ignore[no-untyped-def]
    """Copy the rows top <= y < bottom of a plane of the image."""
    size, mask = vector.lanes(image), vector.between(0, g.W)
    for y in range(top, bottom):
        for first in range(0, g.W, size):
            column = min(first, max(g.W - size, 0))
            at, here = start + y * g.W + column, to + (y - top) * pitch + column
            if size <= g.W:
                vector.store(image, here, vector.load(x, at))
            else:
                vector.store_where(image, here, 1, vector.load_where(x, at, 1, mask), mask)


@borrowing
def _convolve(plane, o, image, shifts, shares, places, vectors, kernel, bias, out, g):  # type: ignore[no-untyped-def]
    """Write the vectors of an output channel; return 0 in the lanes where all of them are finite, else NaN."""
    size, taps = vector.lanes(image), g.kh * g.kw
    doubt, mask = vector.zeros(image, 0), vector.between(0, g.Wo)
    for v in range(0, vectors, 8):
        starts = vector.pick(places, vector.shift(PACK, v))
        result = vector.zeros(image, PACK)
        for d in range(g.D):
            total = vector.zeros(image, PACK)
            for first in range(0, taps, CHAIN):
                chain = vector.zeros(image, PACK)
                for t in range(first, min(taps, first + CHAIN)):
                    values = vector.load(image, vector.shift(starts, shifts[d * taps + t]))
                    chain = vector.fma(vector.broadcast(kernel, t), values, chain)
                total = vector.add(chain, total)
            share = vector.load(shares, vector.spaced((v * g.D + d) * size, g.D * size, PACK))
            result = vector.fma(share, total, result)
        if g.has_bias != 0:
            result = vector.add(vector.broadcast(bias, o), result)
        for lanes in vector.zero_or_nan(result):
            doubt = vector.add(doubt, lanes)
        to = vector.shift(vector.pick(places, vector.shift(PACK, vectors + v)), plane * g.Ho * g.Wo)
        if g.Wo >= size:
            vector.store(out, to, result)
        else:
            vector.store_where(out, to, 1, result, mask)
    return doubt
