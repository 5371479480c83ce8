"""Samples that nothing but their place tells apart, summed or averaged, on the CPU: one multiplication for all of them.

Without attention the sum over samples of weights times what they see is the weights times the sum of what they see. A
task takes a band of rows and forms these sums, for a chain of taps at a time; then filters, and their gradients, are
read and written once, in the order in which they lie. The gradient of the image goes the other way: weights times
gradients are summed over the outputs, plane by plane, and then over the samples that read a place.

Infinity times a sum is not the sum of infinities, and a sum may be too large where its products are not: outputs and
gradients of filters that are not finite are formed again, sample by sample. The gradient of the image sums the same
products in any case.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.common.products import ceil_div
from dynk.kernels.sampled.cpu_mix import add_row
from dynk.kernels.sampled.cpu_rows import CHAIN, sample_geometry, share, to_sample

BAND = 1024  # pixels of a task, but for those of a single row
TASKS = 8  # tasks that are worth while
OUTS = 64  # outputs of a task


class Terms(NamedTuple):
    """Products of which an output is the sum: of weights and what the taps of the summed samples see in an image."""

    weights: Any  # (N, O, planes, kh, kw, H, W); empty where there is only the residual
    image: Any  # (N, planes, H, W)
    planes: int
    kh: int
    kw: int
    residual: float  # is added to the weights of the centre


@borrowing
def tap_place(k, size, dilation):  # type: ignore[no-untyped-def]
    """Return how far a tap lies from the centre of the kernel."""
    return (k - (size - 1) // 2) * dilation


@borrowing
def count_of(terms):  # type: ignore[no-untyped-def]
    """Return the products of an output at a pixel: none where there are neither weights nor a residual."""
    return terms.planes * terms.kh * terms.kw if terms.weights.size > 0 or terms.residual != 0 else 0


@borrowing
def is_centre(k, terms):  # type: ignore[no-untyped-def]
    return k % (terms.kh * terms.kw) == (terms.kh - 1) // 2 * terms.kw + (terms.kw - 1) // 2


@borrowing
def padded_pixels(numbers, like):  # type: ignore[no-untyped-def]
    return ceil_div(numbers, vector.lanes(like)) * vector.lanes(like)


@inlined
def line_of_sums(like, g):  # type: ignore[no-untyped-def]
    """Return room for a row of sums, with a vector of zeros on either side."""
    return accumulators(like, padded_pixels(g.W, like) + 2 * vector.lanes(like))


# ---- what samples see ------------------------------------------------------------------------------------------------


@borrowing
def add_up_rows(image, start, first, end, y, sign, dy, line, g):  # type: ignore[no-untyped-def]
    """Set a line to the sum of the rows that samples of row y see, of rows `first` to `end`, which start at `start`."""
    size = vector.lanes(line)
    for v in range(0, g.W, size):
        inside, total = vector.between(0, g.W - v), vector.zeros(line, 0)
        for a in range(g.samples):
            h = y + sign * (to_sample(a, g) + dy)
            if first <= h < end:
                total = vector.add(vector.load_where(image, start + (h - first) * g.W + v, 1, inside), total)
        vector.store(line, size + v, total)


@borrowing
def added_up(line, x, sign, dx, g):  # type: ignore[no-untyped-def]
    """Return what the samples of a vector of pixels, from x on, see in a line."""
    size, total = vector.lanes(line), vector.zeros(line, 0)
    for b in range(g.samples):
        column = x + sign * (to_sample(b, g) + dx)
        if -size < column < g.W:
            total = vector.add(vector.load(line, size + column), total)
    return total


@borrowing
def look(terms, n, first, end, y0, y1, line, seen, row, g):  # type: ignore[no-untyped-def]
    """Set row k - first of `seen` to what tap k sees from a band of rows."""
    size, taps = vector.lanes(line), terms.kh * terms.kw
    for y in range(y0, y1):
        for k in range(first, end):
            i, j = k % taps // terms.kw, k % terms.kw
            if j == 0 or k == first:
                start = (n * terms.planes + k // taps) * g.H * g.W
                add_up_rows(terms.image, start, 0, g.H, y, 1, tap_place(i, terms.kh, g.dilation_h), line, g)
            for v in range(0, g.W, size):
                value = added_up(line, v, 1, tap_place(j, terms.kw, g.dilation_w), g)
                to = (k - first) * row + (y - y0) * g.W + v
                vector.store_where(seen, to, 1, value, vector.between(0, g.W - v))


# ---- products --------------------------------------------------------------------------------------------------------


@borrowing
def add_chain(  # type: ignore[no-untyped-def]
    weights, at, step, factors, factors_at, factors_step, count, pixels, residuals, chosen, part, sums, to
):
    """Add the products of `count` rows of weights, `residuals[chosen]` added to each, and factors to a row of sums."""
    fill(part, 0)
    k = 0
    while k < count:
        here, other = at + k * step, factors_at + k * factors_step
        if k + 4 <= count:
            _add_rows(
                weights, here, step, factors, other, factors_step, pixels, residuals, chosen, k, part, (0, 1, 2, 3)
            )
            k += 4
        else:
            _add_rows(weights, here, step, factors, other, factors_step, pixels, residuals, chosen, k, part, (0,))
            k += 1
    add_row(part, 0, sums, to, part.size)


@inlined
def room_to_merge(sums, count, most):  # type: ignore[no-untyped-def]
    """Return room for the sums of `most` rows, where there are more."""
    return accumulators(sums, sums.size if count > most else 0)


@borrowing
def merge(k, most, sums, merged):  # type: ignore[no-untyped-def]
    """Put sums aside that have `most` rows, when row k comes."""
    if k > 0 and k % most == 0:
        add_row(sums, 0, merged, 0, merged.size)
        fill(sums, 0)


@borrowing
def _add_rows(  # type: ignore[no-untyped-def]
    weights, at, step, factors, factors_at, factors_step, pixels, residuals, chosen, k, part, pack
):
    starts, others = vector.spaced(at, step, pack), vector.spaced(factors_at, factors_step, pack)
    added = vector.broadcast(residuals, vector.pick(chosen, vector.spaced(k, 1, pack)))
    for v in range(0, pixels, vector.lanes(part)):
        inside = vector.between(0, pixels - v)
        weight = vector.load_where(weights, vector.shift(starts, v), 1, inside if weights.size > 0 else 0)
        vector.prefetch(weights, vector.shift(starts, 4 * step + v))  # of the rows that come next
        factor = vector.load_where(factors, vector.shift(others, v), 1, inside)
        (total,) = vector.dot(vector.add(weight, added), factor, (vector.load(part, v),))
        vector.store(part, v, total)


@inlined
def residuals_of(terms, like):  # type: ignore[no-untyped-def]
    """Return what is added to weights: nothing, and what is at the centre."""
    residuals = accumulators(like, 2)
    residuals[1] = terms.residual
    return residuals


# ---- outputs ---------------------------------------------------------------------------------------------------------


@borrowing
def _band_rows(g):  # type: ignore[no-untyped-def]
    return max(1, min(BAND // g.W, ceil_div(g.N * g.H, TASKS)))


@borrowing
def summed_tasks(g):  # type: ignore[no-untyped-def]
    return g.N * ceil_div(g.H, _band_rows(g)) * ceil_div(g.O, OUTS)


@borrowing
def place_of_task(task, g):  # type: ignore[no-untyped-def]
    """Return the image, the outputs and the rows of a task."""
    bands, blocks = ceil_div(g.H, _band_rows(g)), ceil_div(g.O, OUTS)
    y, o = task % bands * _band_rows(g), task // bands % blocks * OUTS
    return task // bands // blocks, o, min(g.O, o + OUTS), y, min(g.H, y + _band_rows(g))


@inlined
def summed_forward_task(task, terms, others, out, geometry):  # type: ignore[no-untyped-def]
    """Make a band of some outputs: the sum of two sets of terms.

    Weights of taps that see nothing are times 0; outputs that are not finite are formed again without them.
    """
    g = sample_geometry(geometry)
    n, o, end, y0, y1 = place_of_task(task, g)
    size, pixels, plane = vector.lanes(out), (y1 - y0) * g.W, g.H * g.W
    row = padded_pixels(pixels, out)
    sums, gain = accumulators(out, (end - o) * row), vector.filled(out, 0, share(g))
    wanted, first = np.ones(end - o, np.bool_), n * g.O + o
    for only_read in (False, True):
        fill(sums, 0)
        _add_terms(terms, first, y0, y1, row, wanted, only_read, sums, g)
        _add_terms(others, first, y0, y1, row, wanted, only_read, sums, g)
        for k in range(end - o):
            to, check = (first + k) * plane + y0 * g.W, vector.zeros(sums, 0)
            for v in range(0, pixels if wanted[k] else 0, size):
                total = vector.load(sums, k * row + v)
                check = vector.add(vector.zero_or_nan(total), check)
                vector.store_where(out, to + v, 1, vector.mul(gain, total), vector.between(0, pixels - v))
            wanted[k] = vector.total(check) != 0
        if not wanted.any():
            return
    for k in range(end - o):
        for p in range(pixels if wanted[k] else 0):
            total, pixel = load(sums, k * row + p), y0 * g.W + p
            if total - total != 0:
                again = _sampled(terms, first + k, pixel, g) + _sampled(others, first + k, pixel, g)
                store(out, (first + k) * plane + pixel, sums.dtype.type(again * share(g)))


@inlined
def _add_terms(terms, output, y0, y1, row, wanted, only_read, sums, g):  # type: ignore[no-untyped-def]
    """Add terms of the outputs that are wanted, from `output` on, to their rows of sums."""
    count, plane, pixels = count_of(terms), g.H * g.W, (y1 - y0) * g.W
    seen, part = accumulators(sums, min(CHAIN, count) * row), accumulators(sums, row)
    line, residuals, chosen = line_of_sums(sums, g), residuals_of(terms, sums), np.zeros(CHAIN, np.int64)
    merged = room_to_merge(sums, count, CHAIN * CHAIN)
    copies = only_read and terms.weights.size > 0
    read = accumulators(sums, seen.size if copies else 0)
    for first in range(0, count, CHAIN):
        last = min(first + CHAIN, count)
        merge(first, CHAIN * CHAIN, sums, merged)
        look(terms, output // g.O, first, last, y0, y1, line, seen, row, g)
        for k in range(first, last):
            chosen[k - first] = 1 if is_centre(k, terms) else 0
        for k in range(wanted.size):
            at = ((output + k) * count + first) * plane + y0 * g.W
            if wanted[k] and copies:
                _copy_read(terms, at, first, last, y0, y1, read, row, g)
                add_chain(
                    read, 0, row, seen, 0, row, last - first, pixels, residuals, chosen, part, sums, k * row
                )  # fmt: skip
            elif wanted[k]:
                add_chain(
                    terms.weights, at, plane, seen, 0, row, last - first, pixels, residuals, chosen, part, sums, k * row
                )  # fmt: skip
    add_row(merged, 0, sums, 0, merged.size)


@borrowing
def _copy_read(terms, at, first, end, y0, y1, read, row, g):  # type: ignore[no-untyped-def]
    """Set row k - first of `read` to the weights of tap k, which start at `at`, and to 0 where it sees nothing."""
    taps = terms.kh * terms.kw
    for k in range(first, end):
        dy, dx = (
            tap_place(k % taps // terms.kw, terms.kh, g.dilation_h),
            tap_place(k % terms.kw, terms.kw, g.dilation_w),
        )
        for p in range((y1 - y0) * g.W):
            inside = _sees(y0 + p // g.W + dy, g.H, g) and _sees(p % g.W + dx, g.W, g)
            weight = load(terms.weights, at + (k - first) * g.H * g.W + p) if inside else read.dtype.type(0)
            store(read, (k - first) * row + p, weight)


@borrowing
def _sees(place, extent, g):  # type: ignore[no-untyped-def]
    """Return whether a sample of a row or column, the middle one at `place`, is inside the image."""
    sees = False
    for k in range(g.samples):
        sees = sees or 0 <= place + to_sample(k, g) < extent
    return sees


@borrowing
def _sampled(terms, output, pixel, g):  # type: ignore[no-untyped-def]
    """Return the terms of an output at a pixel, sample by sample; NaN as soon as it is certain."""
    total, count, plane = 0.0, count_of(terms), g.H * g.W
    for k in range(count):
        weight = terms.residual if is_centre(k, terms) else 0.0
        if terms.weights.size > 0:
            weight += load(terms.weights, (output * count + k) * plane + pixel)
        total += seen_by_samples(terms, output // g.O, k, pixel, weight, g)
        if total != total:
            break
    return total


@borrowing
def seen_by_samples(terms, n, k, pixel, weight, g):  # type: ignore[no-untyped-def]
    """Return the sum over the samples of a pixel of what tap k sees times a weight."""
    taps, total = terms.kh * terms.kw, 0.0
    i, j = k % taps // terms.kw, k % terms.kw
    for a in range(g.samples):
        h = pixel // g.W + to_sample(a, g) + tap_place(i, terms.kh, g.dilation_h)
        for b in range(g.samples):
            x = pixel % g.W + to_sample(b, g) + tap_place(j, terms.kw, g.dilation_w)
            if 0 <= h < g.H and 0 <= x < g.W:
                at = ((n * terms.planes + k // taps) * g.H + h) * g.W + x
                total += weight * np.float64(load(terms.image, at))
    return total
