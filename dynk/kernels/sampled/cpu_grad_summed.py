"""Gradients of samples that are summed before they are multiplied, on the CPU."""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.common.products import ceil_div
from dynk.kernels.sampled.cpu_mix import add_row
from dynk.kernels.sampled.cpu_rows import CHAIN, sample_geometry, share, to_sample
from dynk.kernels.sampled.cpu_summed import (
    add_chain,
    add_up_rows,
    added_up,
    count_of,
    is_centre,
    line_of_sums,
    look,
    merge,
    padded_pixels,
    place_of_task,
    residuals_of,
    room_to_merge,
    seen_by_samples,
    tap_place,
)

PLANE = 2**16  # numbers of an image's plane that a task holds at once, but for what its samples reach


@inlined
def summed_grad_weights_task(task, terms, grad_out, grad, geometry):  # type: ignore[no-untyped-def]
    """Write a band of the gradients of some outputs' weights."""
    g = sample_geometry(geometry)
    n, o, end, y0, y1 = place_of_task(task, g)
    pixels, plane, count = (y1 - y0) * g.W, g.H * g.W, count_of(terms)
    row, line, gain = padded_pixels(pixels, grad_out), line_of_sums(grad_out, g), accumulators(grad_out, 1)
    gain[0] = share(g)
    seen = accumulators(grad_out, min(CHAIN, count) * row)
    for first in range(0, count, CHAIN):
        last = min(first + CHAIN, count)
        look(terms, n, first, last, y0, y1, line, seen, row, g)
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
                    value = seen_by_samples(terms, n, first + c, y0 * g.W + pixel, weight, g)
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
    nothing = vector.zeros(seen, pack)  # added to products: where a tap sees nothing, it is 0 and not -0
    streamed = grad.size * grad.itemsize > vector.STREAM_BYTES
    # The first vector holds what comes before a line of the cache: past the caches, only whole lines go well.
    before = (grad.ctypes.data // grad.itemsize + to) % size if streamed else 0
    for v in range(-before, pixels, size):
        inside = vector.between(-v, pixels - v)
        factor = vector.mul(share_of_one, vector.load_where(grad_out, here + v, 1, inside))
        value = vector.fma(factor, vector.load_where(seen, vector.shift(starts, v), 1, inside), nothing)
        check = vector.add(vector.zero_or_nan(value), check)
        if streamed and v >= 0 and pixels - v >= size:
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
    above = to_sample(g.samples - 1, g) + tap_place(terms.kh - 1, terms.kh, g.dilation_h)
    below = -to_sample(0, g) - tap_place(0, terms.kh, g.dilation_h)
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
    bands, taps, plane, count = ceil_div(g.H, rows), terms.kh * terms.kw, g.H * g.W, count_of(terms)
    y0, c, n = task % bands * rows, task // bands % terms.planes, task // bands // terms.planes
    y1 = min(g.H, y0 + rows)
    first, end = max(0, y0 - above), min(g.H, y1 + below)
    size, pixels = vector.lanes(grad), (end - first) * g.W
    held, part = accumulators(grad, padded_pixels(pixels, grad)), accumulators(grad, padded_pixels(pixels, grad))
    sums, line = accumulators(grad, padded_pixels((y1 - y0) * g.W, grad) + size), line_of_sums(grad, g)
    merged, merged_sums = room_to_merge(held, g.O, CHAIN * CHAIN), room_to_merge(sums, taps, CHAIN)
    residuals, chosen, gain = residuals_of(terms, grad), np.empty(CHAIN, np.int64), vector.filled(grad, 0, share(g))
    for t in range(taps):
        i, j = t // terms.kw, t % terms.kw
        fill(held, 0)
        fill(merged, 0)
        merge(t, CHAIN, sums, merged_sums)
        fill(chosen, 1 if is_centre(t, terms) else 0)
        for o in range(0, g.O if count > 0 else 0, CHAIN):
            at, here = ((n * g.O + o) * count + c * taps + t) * plane + first * g.W, (n * g.O + o) * plane + first * g.W
            merge(o, CHAIN * CHAIN, held, merged)
            add_chain(
                terms.weights, at, count * plane, grad_out, here, plane, min(CHAIN, g.O - o), pixels, residuals, chosen,
                part, held, 0,
            )  # fmt: skip
        add_row(merged, 0, held, 0, merged.size)
        for y in range(y0, y1):
            add_up_rows(held, 0, first, end, y, -1, tap_place(i, terms.kh, g.dilation_h), line, g)
            for v in range(0, g.W, size):
                to, inside = (y - y0) * g.W + v, vector.between(0, g.W - v)
                value = added_up(line, v, -1, tap_place(j, terms.kw, g.dilation_w), g)
                vector.store_where(sums, to, 1, vector.add(value, vector.load(sums, to)), inside)
    add_row(merged_sums, 0, sums, 0, merged_sums.size)
    here, to = n * plane + y0 * g.W, (n * terms.planes + c) * plane + y0 * g.W
    for v in range(0, (y1 - y0) * g.W, size):
        inside = vector.between(0, (y1 - y0) * g.W - v)
        shared = vector.load_where(added, here + v, 1, inside if added.size > 0 else 0)
        vector.store_where(grad, to + v, 1, vector.fma(gain, vector.load(sums, v), shared), inside)
