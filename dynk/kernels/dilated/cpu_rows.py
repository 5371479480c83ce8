"""Depth-wise adaptive dilation at a stride of 1, as the sum of a convolution for each dilation.

    out[y, x] = sum over d of share_d[y, x] * (sum over taps t of weight_t * x[y + row_td, x + column_td])

More multiplications than if the image is mixed first, but all that is read is one number of the weights for many pixels
and the image, of which a task copies some rows of a channel with zeros around them. A weight that is not finite counts
as 0 here: where it is read, as where a result is not finite, sums over columns decide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load
from dynk.kernels.common.products import CHAIN, ceil_div
from dynk.kernels.dilated.cpu_tiles import tap_column, tap_row
from dynk.kernels.dilated.geometry import DILATIONS_H

ROOM, LEAST_PITCH = 16 * 1024, 64  # elements of the rows that a task copies, at most; and of a row when there are many
LEAST_WIDTH = 4  # of an image: a row fills a vector of its own
TASKS = 32  # that are worth while
PACK = (0, 1, 2, 3, 4, 5, 6, 7)  # vectors of pixels that take a weight at once
NINE = (0, 1, 2, 3, 4, 5, 6, 7, 8)  # taps of 3 x 3
LEAST_STEPS = 4  # of a dilation in the rows of a band, for which going down columns pays


class Band(NamedTuple):
    """Some rows of image n, and where they lie in copied rows that have zeros around them."""

    n: int
    rows: int
    across: int  # vectors of a row
    vectors: int  # of all rows, rounded up to a multiple of PACK
    places: Any  # of each vector in the copied rows
    pixels: Any  # number of its first pixel in a plane
    masks: Any  # of its pixels that no vector before it has
    pitch: int  # of the copied rows
    room: int  # elements of all of them
    top: int  # the first row of the image that is copied, and the end of them
    bottom: int
    origin: int  # place of that row


@inlined
def halo(geometry, g):  # type: ignore[no-untyped-def]
    """Return how many rows above and below and how many columns left and right of a pixel its taps lie, at most."""
    above, below, left, right = 0, 0, 0, 0
    for d in range(g.D):
        above, below = max(above, -tap_row(0, d, geometry)), max(below, tap_row(g.kh - 1, d, geometry))
        left, right = max(left, -tap_column(0, d, geometry)), max(right, tap_column(g.kw - 1, d, geometry))
    return above, below, left, right


@inlined
def rows_of(copies, geometry, g):  # type: ignore[no-untyped-def]
    """Return how many rows of an image a task makes from some copies of rows, or 0 where this is not for it."""
    above, below, left, right = halo(geometry, g)
    rows = ROOM // copies // max(LEAST_PITCH, left + g.W + right) - above - below
    return min(rows, g.Ho) if g.stride_h == 1 and g.stride_w == 1 and rows > 0 and g.W >= LEAST_WIDTH else 0


@inlined
def parts_of(rows, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the channels of bands of some rows are shared out."""
    return min(ceil_div(TASKS, g.N * ceil_div(g.Ho, max(1, rows))), max(1, g.C))


@inlined
def band_of(n, first, last, around, like, g):  # type: ignore[no-untyped-def]
    """Return the rows first <= y < last, which lie so far inside of copied rows as the halo `around` says."""
    above, below, left, right = around
    size, across = vector.lanes(like), ceil_div(g.Wo, vector.lanes(like))
    vectors = ceil_div((last - first) * across, 8) * 8
    places, pixels, masks = np.empty(vectors, np.int64), np.empty(vectors, np.int64), np.zeros(vectors, np.int64)
    pitch = left + g.W + right
    for v in range(vectors):
        y = min(v // across, last - first - 1)
        column = min(v % across * size, max(g.Wo - size, 0))  # the last vector of a row overlaps the one before
        places[v], pixels[v] = y * pitch + column, (first + y) * g.Wo + column
        if v < (last - first) * across:
            masks[v] = vector.between(v % across * size - column, g.Wo)
    rows = last - first + above + below
    top, bottom = max(first - above, 0), min(g.H, last + below)
    origin = (top - first + above) * pitch + left
    return Band(n, last - first, across, vectors, places, pixels, masks, pitch, rows * pitch, top, bottom, origin)


@inlined
def shifts_of(around, pitch, sign, geometry, g):  # type: ignore[no-untyped-def]
    """Return how far from a pixel's place each tap of each dilation is read, or with a sign of -1 reads it."""
    above, _, left, _ = around
    taps = g.kh * g.kw
    shifts = np.empty(g.D * taps, np.int64)
    for k in range(g.D * taps):
        row, column = tap_row(k % taps // g.kw, k // taps, geometry), tap_column(k % g.kw, k // taps, geometry)
        shifts[k] = (above + sign * row) * pitch + left + sign * column
    return shifts


@inlined
def sum_rows(n, first, last, c0, c1, x, weight, mixture, bias, out, like, geometry, g):  # type: ignore[no-untyped-def]
    """Make the rows first <= y < last of some channels; return whether all that was read and made is finite."""
    around = halo(geometry, g)
    band = band_of(n, first, last, around, like, g)
    size, taps, across, by_columns = vector.lanes(like), g.kh * g.kw, band.across, _by_columns(0, band, geometry, g)
    image = accumulators(like, band.room + size)
    shifts, kernel = shifts_of(around, band.pitch, 1, geometry, g), accumulators(like, taps)
    shares, sums = accumulators(like, band.vectors * g.D * size), accumulators(like, band.vectors * size)
    gather_shares(band, mixture, shares, g)
    doubt, known = vector.zeros(like, 0), True
    for c in range(c0, c1):
        copy_rows(band, x, (n * g.C + c) * g.H * g.W, not by_columns, image, g)
        soon = (n * g.C + c + 1) * g.H * g.W + first * g.W
        for o in range(c * (g.O // g.C), (c + 1) * (g.O // g.C)):
            known &= load_kernel(weight, o * taps, kernel)
            plane = (n * g.O + o) * g.Ho * g.Wo
            begin = vector.broadcast(bias, o) if bias.size > 0 else vector.zeros(like, 0)
            for d in range(g.D):
                if _by_columns(d, band, geometry, g):
                    step = geometry[DILATIONS_H + d]
                    made = _convolve_columns(
                        band, d, step, image, x, soon, shifts, shares, kernel, begin, sums, out, plane, g
                    )
                    doubt = vector.add(doubt, made)
                else:
                    _convolve(band, d, image, shifts, shares, kernel, begin, sums, g)
            if not _by_columns(g.D - 1, band, geometry, g):
                for v in range(band.rows * across, band.vectors):  # the last pack's are those of the last row again
                    vector.store(sums, v * size, vector.load(sums, ((band.rows - 1) * across + v % across) * size))
                doubt = vector.add(doubt, write_sums(band, sums, 0, out, plane, g))
    return known and is_zero(doubt)


@borrowing
def is_zero(doubt):  # type: ignore[no-untyped-def]
    """Return whether a sum of `vector.zero_or_nan` is 0: all that went into it was finite."""
    return vector.total(doubt) == 0


@borrowing
def load_kernel(weight, start, kernel):  # type: ignore[no-untyped-def]
    """Fill a kernel, with 0 for what is not finite; return whether all is."""
    known = True
    for t in range(kernel.size):
        kernel[t] = load(weight, start + t)
        if not np.isfinite(kernel[t]):
            kernel[t], known = 0, False
    return known


@borrowing
def gather_shares(band, mixture, shares, g):  # type: ignore[no-untyped-def]
    """Fill [vector][dilation][lane] with what each dilation counts; NaN where an index is none of a dilation."""
    size, plane, mask = vector.lanes(shares), g.Ho * g.Wo, vector.between(0, g.Wo)
    words = max(1, mixture.words.size // max(1, g.N * plane))
    for v in range(band.vectors):
        for d in range(g.D):
            to = (v * g.D + d) * size
            if g.hard == 0:
                at = (band.n * g.D + d) * plane + band.pixels[v]
                vector.store(shares, to, vector.load_where(mixture.shares, at, 1, mask))
                continue
            for lane in range(min(size, g.Wo)):
                at = (band.n * plane + band.pixels[v] + lane) * words
                index = np.int64(mixture.words[at])
                known = 0 <= index < g.D and (words == 1 or mixture.words[at + 1] == 0)
                shares[to + lane] = (1 if index == d else 0) if known else np.nan


@borrowing
def copy_rows(band, x, start, fetching, image, g):  # type: ignore[no-untyped-def]
    """Copy the rows of a plane that the band reads; if `fetching`, have the caches fetch those of the next channel."""
    size, mask = vector.lanes(image), vector.between(0, g.W)
    for first in range(0, g.W, size):
        column = min(first, max(g.W - size, 0))
        at, here = start + band.top * g.W + column, band.origin + column
        for _ in range(band.bottom - band.top):
            if fetching:
                vector.prefetch(x, at + g.H * g.W)
            if size <= g.W:
                vector.store(image, here, vector.load(x, at))
            else:
                vector.store_where(image, here, 1, vector.load_where(x, at, 1, mask), mask)
            at, here = vector.opaque(at + g.W), vector.opaque(here + band.pitch)


@borrowing
def tap_sums(image, starts, shifts, at, kernel):  # type: ignore[no-untyped-def]
    """Return the products of a kernel and what its taps read, summed, for PACK vectors."""
    total = vector.zeros(image, PACK)
    for first in range(0, kernel.size, CHAIN):
        chain = vector.zeros(image, PACK)
        for t in range(first, min(kernel.size, first + CHAIN)):
            values = vector.load(image, vector.shift(starts, shifts[at + t]))
            chain = vector.fma(vector.broadcast(kernel, t), values, chain)
        total = vector.add(chain, total)
    return total


@borrowing
def _by_columns(d, band, geometry, g):  # type: ignore[no-untyped-def]
    """Return whether columns of rows that are a dilation apart are long enough to share what they read."""
    return g.kh == 3 and g.kw == 3 and band.rows >= LEAST_STEPS * geometry[DILATIONS_H + d]


@borrowing
def _convolve(band, d, image, shifts, shares, kernel, begin, sums, g):  # type: ignore[no-untyped-def]
    """Add a dilation's convolution times what it counts to the sums, which `begin` with the bias."""
    size = vector.lanes(image)
    for v in range(0, band.vectors, 8):
        starts = vector.pick(band.places, vector.shift(PACK, v))
        share = vector.load(shares, vector.spaced((v * g.D + d) * size, g.D * size, PACK))
        total = tap_sums(image, starts, shifts, d * kernel.size, kernel)
        here = vector.spaced(v * size, size, PACK)
        before = vector.load(sums, here) if d > 0 else vector.add(vector.zeros(sums, PACK), begin)
        vector.store(sums, here, vector.fma(share, total, before))


@borrowing
def _convolve_columns(  # type: ignore[no-untyped-def]
    band, d, step, image, x, soon, shifts, shares, kernel, begin, sums, out, plane, g
):
    """Do the same for kernels of 3 x 3, down columns of rows a dilation apart: what is read serves three of them.

    The last dilation ends the sums, which are written. Return what `write_sums` does.
    """
    size, apart, by = vector.lanes(image), step * band.across, step * band.pitch
    weights, share_step, zeros = vector.broadcast(kernel, NINE), apart * g.D * size, vector.zeros(image, 0)
    left, middle, right = shifts[d * 9], shifts[d * 9 + 1], shifts[d * 9 + 2]
    mask, doubt = vector.between(0, g.Wo), zeros
    for y in range(min(step, band.rows)):
        for column in range(band.across):
            at, to = y * band.pitch + band.places[column], plane + band.pixels[column] + y * g.Wo
            share, here = (y * band.across + column) * g.D * size + d * size, (y * band.across + column) * size
            values = vector.load(image, (at + left, at + middle, at + right))
            upper = _add_row(weights[0:3], values, zeros)
            at += by
            next_ = soon + y * g.W + column * size
            values = vector.load(image, (at + left, at + middle, at + right))
            lower = _add_row(weights[3:6], values, upper)
            upper = _add_row(weights[0:3], values, zeros)
            for _ in range(ceil_div(band.rows - y, step)):
                at, share, here = vector.opaque(at + by), vector.opaque(share), vector.opaque(here)
                values = vector.load(image, (at + left, at + middle, at + right))
                if d == 0:  # the next channel, a line at a time: all at once would wait for memory
                    vector.prefetch(x, next_)
                    next_ += step * g.W
                total = _add_row(weights[6:9], values, lower)
                lower = _add_row(weights[3:6], values, upper)
                upper = _add_row(weights[0:3], values, zeros)
                before = vector.load(sums, here) if d > 0 else begin
                total = vector.fma(vector.load(shares, share), total, before)
                if d < g.D - 1:
                    vector.store(sums, here, total)
                else:
                    doubt = vector.add(doubt, vector.zero_or_nan(total))
                    if g.Wo >= size:
                        vector.store(out, to, total)
                    else:
                        vector.store_where(out, to, 1, total, mask)
                    to += step * g.Wo
                share += share_step
                here += apart * size
    return doubt


@borrowing
def _add_row(weights, values, total):  # type: ignore[no-untyped-def]
    """Add the products of a row of three weights."""
    total = vector.fma(weights[0], values[0], total)
    return vector.fma(weights[2], values[2], vector.fma(weights[1], values[1], total))


@borrowing
def write_sums(band, sums, at, out, plane, g):  # type: ignore[no-untyped-def]
    """Write sums, from `at` on, to a plane; return 0 in the lanes where all of them are finite, else NaN."""
    size, doubt = vector.lanes(sums), vector.zeros(sums, 0)
    for v in range(0, band.vectors, 8):
        result = vector.load(sums, vector.spaced(at + v * size, size, PACK))
        for lanes in vector.zero_or_nan(result):
            doubt = vector.add(doubt, lanes)
        write(band, out, plane, v, result, size, g)
    return doubt


@borrowing
def write(band, out, plane, v, result, size, g):  # type: ignore[no-untyped-def]
    """Write PACK vectors of a plane from vector v of the band on."""
    to = vector.shift(vector.pick(band.pixels, vector.shift(PACK, v)), plane)
    if g.Wo >= size:
        vector.store(out, to, result)
    else:
        vector.store_where(out, to, 1, result, vector.between(0, g.Wo))


@borrowing
def settle(array, at, value, again, mask):  # type: ignore[no-untyped-def]
    """Write a vector; if `again`, only what is not finite, or was not before."""
    if again:
        before = vector.zero_or_nan(vector.load_where(array, at, 1, mask))
        mask &= ~(vector.within(before, 0.0, 0.0) & vector.within(vector.zero_or_nan(value), 0.0, 0.0))
    vector.store_where(array, at, 1, value, mask)
