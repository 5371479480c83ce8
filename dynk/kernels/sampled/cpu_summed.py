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
PLANE = 2**16  # numbers of an image's plane that a task holds at once, but for what its samples reach


class Terms(NamedTuple):
    """Products of which an output is the sum: of weights and what the taps of the summed samples see in an image."""

    weights: Any  # (N, O, planes, kh, kw, H, W); empty where there is only the residual
    image: Any  # (N, planes, H, W)
    planes: int
    kh: int
    kw: int
    residual: float  # is added to the weights of the centre


@borrowing
def _tap(k, size, dilation):  # type: ignore[no-untyped-def]
    """Return how far a tap lies from the centre of the kernel."""
    return (k - (size - 1) // 2) * dilation


@borrowing
def _count(terms):  # type: ignore[no-untyped-def]
    """Return the products of an output at a pixel: none where there are neither weights nor a residual."""
    return terms.planes * terms.kh * terms.kw if terms.weights.size > 0 or terms.residual != 0 else 0


@borrowing
def _is_centre(k, terms):  # type: ignore[no-untyped-def]
    return k % (terms.kh * terms.kw) == (terms.kh - 1) // 2 * terms.kw + (terms.kw - 1) // 2


@borrowing
def _padded(numbers, like):  # type: ignore[no-untyped-def]
    return ceil_div(numbers, vector.lanes(like)) * vector.lanes(like)


@inlined
def _line(like, g):  # type: ignore[no-untyped-def]
    """Return room for a row of sums, with a vector of zeros on either side."""
    return accumulators(like, _padded(g.W, like) + 2 * vector.lanes(like))


# ---- what samples see ------------------------------------------------------------------------------------------------


@borrowing
def _add_up_rows(image, start, first, end, y, sign, dy, line, g):  # type: ignore[no-untyped-def]
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
def _added_up(line, x, sign, dx, g):  # type: ignore[no-untyped-def]
    """Return what the samples of a vector of pixels, from x on, see in a line."""
    size, total = vector.lanes(line), vector.zeros(line, 0)
    for b in range(g.samples):
        column = x + sign * (to_sample(b, g) + dx)
        if -size < column < g.W:
            total = vector.add(vector.load(line, size + column), total)
    return total


@borrowing
def _look(terms, n, first, end, y0, y1, line, seen, row, g):  # type: ignore[no-untyped-def]
    """Set row k - first of `seen` to what tap k sees from a band of rows."""
    size, taps = vector.lanes(line), terms.kh * terms.kw
    for y in range(y0, y1):
        for k in range(first, end):
            i, j = k % taps // terms.kw, k % terms.kw
            if j == 0 or k == first:
                start = (n * terms.planes + k // taps) * g.H * g.W
                _add_up_rows(terms.image, start, 0, g.H, y, 1, _tap(i, terms.kh, g.dilation_h), line, g)
            for v in range(0, g.W, size):
                value = _added_up(line, v, 1, _tap(j, terms.kw, g.dilation_w), g)
                to = (k - first) * row + (y - y0) * g.W + v
                vector.store_where(seen, to, 1, value, vector.between(0, g.W - v))


# ---- products --------------------------------------------------------------------------------------------------------


@borrowing
def _add_chain(  # type: ignore[no-untyped-def]
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
def _room_to_merge(sums, count, most):  # type: ignore[no-untyped-def]
    """Return room for the sums of `most` rows, where there are more."""
    return accumulators(sums, sums.size if count > most else 0)


@borrowing
def _merge(k, most, sums, merged):  # type: ignore[no-untyped-def]
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
def _residuals(terms, like):  # type: ignore[no-untyped-def]
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
def _place(task, g):  # type: ignore[no-untyped-def]
    """Return the image, the outputs and the rows of a task."""
    bands, blocks = ceil_div(g.H, _band_rows(g)), ceil_div(g.O, OUTS)
    y, o = task % bands * _band_rows(g), task // bands % blocks * OUTS
    return task // bands // blocks, o, min(g.O, o + OUTS), y, min(g.H, y + _band_rows(g))


@inlined
def summed_forward_task(task, terms, others, out, geometry):  # type: ignore[no-untyped-def]
    """Make a band of some outputs: the sum of two sets of terms."""
    g = sample_geometry(geometry)
    n, o, end, y0, y1 = _place(task, g)
    size, pixels, plane = vector.lanes(out), (y1 - y0) * g.W, g.H * g.W
    row = _padded(pixels, out)
    sums, gain = accumulators(out, (end - o) * row), vector.filled(out, 0, share(g))
    _add_terms(terms, n, o, end, y0, y1, row, sums, g)
    _add_terms(others, n, o, end, y0, y1, row, sums, g)
    for k in range(o, end):
        to, check = (n * g.O + k) * plane + y0 * g.W, vector.zeros(sums, 0)
        for v in range(0, pixels, size):
            total = vector.load(sums, (k - o) * row + v)
            check = vector.add(vector.zero_or_nan(total), check)
            vector.store_where(out, to + v, 1, vector.mul(gain, total), vector.between(0, pixels - v))
        if vector.total(check) != 0:
            for p in range(pixels):
                total = load(sums, (k - o) * row + p)
                if total - total != 0:
                    again = _sampled(terms, n, k, y0 * g.W + p, g) + _sampled(others, n, k, y0 * g.W + p, g)
                    store(out, to + p, sums.dtype.type(again * share(g)))


@inlined
def _add_terms(terms, n, o, end, y0, y1, row, sums, g):  # type: ignore[no-untyped-def]
    """Add terms of some outputs to their rows of sums."""
    count, plane, pixels = _count(terms), g.H * g.W, (y1 - y0) * g.W
    seen, part = accumulators(sums, min(CHAIN, count) * row), accumulators(sums, row)
    line, residuals, chosen = _line(sums, g), _residuals(terms, sums), np.zeros(CHAIN, np.int64)
    merged = _room_to_merge(sums, count, CHAIN * CHAIN)
    for first in range(0, count, CHAIN):
        last = min(first + CHAIN, count)
        _merge(first, CHAIN * CHAIN, sums, merged)
        _look(terms, n, first, last, y0, y1, line, seen, row, g)
        for k in range(first, last):
            chosen[k - first] = 1 if _is_centre(k, terms) else 0
        for k in range(o, end):
            at = ((n * g.O + k) * count + first) * plane + y0 * g.W
            _add_chain(
                terms.weights, at, plane, seen, 0, row, last - first, pixels, residuals, chosen, part, sums,
                (k - o) * row,
            )  # fmt: skip
    add_row(merged, 0, sums, 0, merged.size)


@borrowing
def _sampled(terms, n, o, pixel, g):  # type: ignore[no-untyped-def]
    """Return the terms of an output at a pixel, sample by sample; NaN as soon as it is certain."""
    total, count, plane = 0.0, _count(terms), g.H * g.W
    for k in range(count):
        weight = terms.residual if _is_centre(k, terms) else 0.0
        if terms.weights.size > 0:
            weight += load(terms.weights, ((n * g.O + o) * count + k) * plane + pixel)
        total += _seen_by_samples(terms, n, k, pixel, weight, g)
        if total != total:
            break
    return total


@borrowing
def _seen_by_samples(terms, n, k, pixel, weight, g):  # type: ignore[no-untyped-def]
    """Return the sum over the samples of a pixel of what tap k sees times a weight."""
    taps, total = terms.kh * terms.kw, 0.0
    i, j = k % taps // terms.kw, k % terms.kw
    for a in range(g.samples):
        h = pixel // g.W + to_sample(a, g) + _tap(i, terms.kh, g.dilation_h)
        for b in range(g.samples):
            x = pixel % g.W + to_sample(b, g) + _tap(j, terms.kw, g.dilation_w)
            if 0 <= h < g.H and 0 <= x < g.W:
                at = ((n * terms.planes + k // taps) * g.H + h) * g.W + x
                total += weight * np.float64(load(terms.image, at))
    return total


# ---- gradients -------------------------------------------------------------------------------------------------------


@inlined
def summed_grad_weights_task(task, terms, grad_out, grad, geometry):  # type: ignore[no-untyped-def]
    """Write a band of the gradients of some outputs' weights."""
    g = sample_geometry(geometry)
    n, o, end, y0, y1 = _place(task, g)
    pixels, plane, count = (y1 - y0) * g.W, g.H * g.W, _count(terms)
    row, line, gain = _padded(pixels, grad_out), _line(grad_out, g), accumulators(grad_out, 1)
    gain[0] = share(g)
    seen = accumulators(grad_out, min(CHAIN, count) * row)
    for first in range(0, count, CHAIN):
        last = min(first + CHAIN, count)
        _look(terms, n, first, last, y0, y1, line, seen, row, g)
        for k in range(o, end):
            here, to = (n * g.O + k) * plane + y0 * g.W, ((n * g.O + k) * count + first) * plane + y0 * g.W
            c, finite = 0, True
            while c < last - first:
                few = c + 4 > last - first
                start, at = c * row, to + c * plane
                if few:
                    done = _write_products(grad_out, here, gain, seen, start, row, grad, at, plane, pixels, (0,))
                else:
                    done = _write_products(
                        grad_out, here, gain, seen, start, row, grad, at, plane, pixels, (0, 1, 2, 3)
                    )
                c, finite = c + (1 if few else 4), finite and done
            if not finite:
                vector.drain()
            for p in range(0 if finite else (last - first) * pixels):
                c, pixel = p // pixels, p % pixels
                weight = np.float64(load(grad_out, here + pixel))
                value = weight * load(seen, c * row + pixel)
                if value - value != 0:
                    value = _seen_by_samples(terms, n, first + c, y0 * g.W + pixel, weight, g)
                    store(grad, to + c * plane + pixel, seen.dtype.type(value * share(g)))
    vector.drain()


@borrowing
def _write_products(  # type: ignore[no-untyped-def]
    grad_out, here, gain, seen, start, row, grad, to, plane, pixels, pack
):
    """Write the products of a row of grad_out and of what some taps see; return whether they are finite."""
    size, share_of_one = vector.lanes(seen), vector.broadcast(gain, 0)
    starts, places = vector.spaced(start, row, pack), vector.spaced(to, plane, pack)
    check = vector.zeros(seen, pack)
    streamed = grad.size * grad.itemsize > vector.STREAM_BYTES
    for v in range(0, pixels, size):
        inside = vector.between(0, pixels - v)
        factor = vector.mul(share_of_one, vector.load_where(grad_out, here + v, 1, inside))
        value = vector.mul(factor, vector.load(seen, vector.shift(starts, v)))
        check = vector.add(vector.zero_or_nan(value), check)
        if streamed and pixels - v >= size:
            vector.stream(grad, vector.shift(places, v), value)
        else:
            vector.store_where(grad, vector.shift(places, v), 1, value, inside)
    return _are_zero(vector.total(check))


@borrowing
def _are_zero(numbers):  # type: ignore[no-untyped-def]
    """Return whether a tuple holds nothing but 0."""
    zero = True
    for number in numbers:
        zero = zero and number == 0
    return zero


@borrowing
def _held_rows(terms, g):  # type: ignore[no-untyped-def]
    """Return the rows of a task of the image's gradient, and those before and behind them that read them."""
    above = to_sample(g.samples - 1, g) + _tap(terms.kh - 1, terms.kh, g.dilation_h)
    below = -to_sample(0, g) - _tap(0, terms.kh, g.dilation_h)
    if g.H * g.W <= PLANE:
        return g.H, above, below
    return max(1, max(above + below, PLANE // g.W - above - below)), above, below


@borrowing
def summed_image_tasks(terms, g):  # type: ignore[no-untyped-def]
    rows, _, _ = _held_rows(terms, g)
    return g.N * terms.planes * ceil_div(g.H, rows)


@inlined
def summed_grad_image_task(task, terms, grad_out, added, grad, geometry):  # type: ignore[no-untyped-def]
    """Write a band of a plane of the image's gradient, with `added`, one plane for each image, added."""
    g = sample_geometry(geometry)
    rows, above, below = _held_rows(terms, g)
    bands, taps, plane, count = ceil_div(g.H, rows), terms.kh * terms.kw, g.H * g.W, _count(terms)
    y0, c, n = task % bands * rows, task // bands % terms.planes, task // bands // terms.planes
    y1 = min(g.H, y0 + rows)
    first, end = max(0, y0 - above), min(g.H, y1 + below)
    size, pixels = vector.lanes(grad), (end - first) * g.W
    held, part = accumulators(grad, _padded(pixels, grad)), accumulators(grad, _padded(pixels, grad))
    sums, line = accumulators(grad, _padded((y1 - y0) * g.W, grad) + size), _line(grad, g)
    merged, merged_sums = _room_to_merge(held, g.O, CHAIN * CHAIN), _room_to_merge(sums, taps, CHAIN)
    residuals, chosen, gain = _residuals(terms, grad), np.empty(CHAIN, np.int64), vector.filled(grad, 0, share(g))
    for t in range(taps):
        i, j = t // terms.kw, t % terms.kw
        fill(held, 0)
        fill(merged, 0)
        _merge(t, CHAIN, sums, merged_sums)
        fill(chosen, 1 if _is_centre(t, terms) else 0)
        for o in range(0, g.O if count > 0 else 0, CHAIN):
            at, here = ((n * g.O + o) * count + c * taps + t) * plane + first * g.W, (n * g.O + o) * plane + first * g.W
            _merge(o, CHAIN * CHAIN, held, merged)
            _add_chain(
                terms.weights, at, count * plane, grad_out, here, plane, min(CHAIN, g.O - o), pixels, residuals, chosen,
                part, held, 0,
            )  # fmt: skip
        add_row(merged, 0, held, 0, merged.size)
        for y in range(y0, y1):
            _add_up_rows(held, 0, first, end, y, -1, _tap(i, terms.kh, g.dilation_h), line, g)
            for v in range(0, g.W, size):
                to, inside = (y - y0) * g.W + v, vector.between(0, g.W - v)
                value = _added_up(line, v, -1, _tap(j, terms.kw, g.dilation_w), g)
                vector.store_where(sums, to, 1, vector.add(value, vector.load(sums, to)), inside)
    add_row(merged_sums, 0, sums, 0, merged_sums.size)
    here, to = n * plane + y0 * g.W, (n * terms.planes + c) * plane + y0 * g.W
    for v in range(0, (y1 - y0) * g.W, size):
        inside = vector.between(0, (y1 - y0) * g.W - v)
        shared = vector.load_where(added, here + v, 1, inside if added.size > 0 else 0)
        vector.store_where(grad, to + v, 1, vector.fma(gain, vector.load(sums, v), shared), inside)
