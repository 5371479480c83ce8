"""Gradients of depth-wise adaptive dilation at a stride of 1, row by row over copies with zeros around them.

    grad_x[y, x] = sum over taps t and d of weight_t * (share_d * grad_out)[y - row_td, x - column_td]
    grad_share_d[y, x] = sum over o of grad_out_o[y, x] * (sum over t of weight_ot * x[y + row_td, x + column_td])
    grad_weight_t = sum over y, x and d of (share_d * grad_out)[y, x] * x[y + row_td, x + column_td]

As in `cpu_rows`, a weight that is not finite counts as 0: where it is read, as where a result is not finite, sums over
columns decide, but of the weights' gradient sums in the same order.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, store
from dynk.kernels.common.products import CHAIN, add_to, ceil_div
from dynk.kernels.dilated.cpu_rows import (
    PACK,
    TASKS,
    band_of,
    copy_rows,
    gather_shares,
    halo,
    is_zero,
    load_kernel,
    parts_of,
    rows_of,
    shifts_of,
    tap_sums,
    write_sums,
)
from dynk.kernels.dilated.cpu_tiles import dilation_geometry

LEAST_ROWS, SHARE_TASKS = 4, 16  # of a band, and of the gradient of the shares: rows around a band are read for it
SUMS = 4096  # of the weights' gradient that a task holds, about, in a vector each
NINE = (0, 1, 2, 3, 4, 5, 6, 7, 8)  # taps that are summed at once


# ---- the gradient of the image ---------------------------------------------------------------------------------------


@inlined
def _grad_x_rows(geometry, g):  # type: ignore[no-untyped-def]
    """Return how many rows of the image's gradient a task makes, or 0."""
    return rows_of(g.D, geometry, g) if g.O // g.C * g.D <= CHAIN else 0


@inlined
def grad_x_rows_tasks(geometry, g):  # type: ignore[no-untyped-def]
    rows = _grad_x_rows(geometry, g)
    return g.N * ceil_div(g.H, rows) * parts_of(rows, g) if rows > 0 else 0


@inlined
def grad_x_rows_task(task, grad_out, weight, mixture, grad_x, like, geometry):  # type: ignore[no-untyped-def]
    """Make some rows of some channels of the image's gradient."""
    g = dilation_geometry(geometry)
    rows = _grad_x_rows(geometry, g)
    parts, bands = parts_of(rows, g), ceil_div(g.H, rows)
    n, k, part = task // parts // bands, task // parts % bands, task % parts
    first, last, c0, c1 = g.H * k // bands, g.H * (k + 1) // bands, g.C * part // parts, g.C * (part + 1) // parts
    return _make_grad_x(n, first, last, c0, c1, grad_out, weight, mixture, grad_x, like, geometry, g)


@inlined
def _make_grad_x(n, first, last, c0, c1, grad_out, weight, mixture, grad_x, like, geometry, g):  # type: ignore[no-untyped-def]
    above, below, left, right = halo(geometry, g)
    around, size, many = (below, above, right, left), vector.lanes(like), g.O // g.C
    band = band_of(n, first, last, around, like, g)
    read = band_of(n, band.top, band.bottom, around, like, g)  # the pixels that read these rows, there and nearby
    scaled, kernel = accumulators(like, g.D * band.room + size), accumulators(like, g.kh * g.kw)
    shares = accumulators(like, read.vectors * g.D * size)
    sums = accumulators(like, band.vectors * size)
    shifts = shifts_of(around, band.pitch, -1, geometry, g)
    for k in range(shifts.size):
        shifts[k] += k // kernel.size * band.room
    gather_shares(read, mixture, shares, g)
    doubt, known = vector.zeros(like, 0), True
    for c in range(c0, c1):
        for o in range(c * many, (c + 1) * many):
            _scale_rows(read, grad_out, (n * g.O + o) * g.Ho * g.Wo, shares, scaled, band.origin, band.room, g)
            known &= load_kernel(weight, o * kernel.size, kernel)
            _add_convolutions(band, scaled, shifts, kernel, sums, o > c * many, g)
        doubt = vector.add(doubt, write_sums(band, sums, 0, grad_x, (n * g.C + c) * g.H * g.W, g))
    return known and is_zero(doubt)


@borrowing
def _scale_rows(read, grad_out, start, shares, scaled, origin, room, g):  # type: ignore[no-untyped-def]
    """Copy rows of a plane of grad_out once for each dilation, times what the dilation counts."""
    size, mask, zero = vector.lanes(scaled), vector.between(0, g.Wo), vector.zeros(scaled, 0)
    for v in range(read.vectors):
        grad = vector.load_where(grad_out, start + read.pixels[v], 1, mask)
        for d in range(g.D):
            share = vector.load(shares, (v * g.D + d) * size)
            product = vector.mul(share, grad)
            if g.hard != 0:
                product = vector.where(vector.within(share, 0.0, 0.0), zero, product)
            to = origin + read.places[v] + d * room
            if g.Wo >= size:
                vector.store(scaled, to, product)
            else:
                vector.store_where(scaled, to, 1, product, mask)


@borrowing
def _add_convolutions(band, scaled, shifts, kernel, sums, more, g):  # type: ignore[no-untyped-def]
    """Sum over the taps of all dilations; if `more`, add to the sums that are there."""
    size = vector.lanes(scaled)
    for v in range(0, band.vectors, 8):
        starts = vector.pick(band.places, vector.shift(PACK, v))
        here = vector.spaced(v * size, size, PACK)
        result = vector.load(sums, here) if more else vector.zeros(sums, PACK)
        for d in range(g.D):
            result = vector.add(tap_sums(scaled, starts, shifts, d * kernel.size, kernel), result)
        vector.store(sums, here, result)


# ---- the gradient of the dilations' weights --------------------------------------------------------------------------


@inlined
def _grad_share_rows(geometry, g):  # type: ignore[no-untyped-def]
    """Return how many rows of the gradient of the dilations' weights a task makes, of all channels, or 0."""
    return min(rows_of(1, geometry, g), max(LEAST_ROWS, ceil_div(g.N * g.Ho, SHARE_TASKS)))


@inlined
def grad_share_rows_tasks(geometry, g):  # type: ignore[no-untyped-def]
    rows = _grad_share_rows(geometry, g)
    return g.N * ceil_div(g.Ho, rows) if rows > 0 else 0


@inlined
def grad_share_rows_task(task, grad_out, x, weight, grad_shares, like, geometry):  # type: ignore[no-untyped-def]
    """Make some rows of the gradient of the dilations' weights."""
    g = dilation_geometry(geometry)
    bands = ceil_div(g.Ho, _grad_share_rows(geometry, g))
    n, first, last = task // bands, g.Ho * (task % bands) // bands, g.Ho * (task % bands + 1) // bands
    return _make_grad_shares(n, first, last, grad_out, x, weight, grad_shares, like, geometry, g)


@inlined
def _make_grad_shares(n, first, last, grad_out, x, weight, grad_shares, like, geometry, g):  # type: ignore[no-untyped-def]
    around, size, many = halo(geometry, g), vector.lanes(like), g.O // g.C
    band = band_of(n, first, last, around, like, g)
    image, shifts = accumulators(like, band.room + size), shifts_of(around, band.pitch, 1, geometry, g)
    kernel, recent = accumulators(like, g.kh * g.kw), accumulators(like, band.vectors * g.D * size)
    sums = accumulators(like, recent.size)
    known = True
    for c in range(g.C):
        copy_rows(band, x, (n * g.C + c) * g.H * g.W, True, image, g)
        for o in range(c * many, (c + 1) * many):
            known &= load_kernel(weight, o * kernel.size, kernel)
            _add_products(band, grad_out, (n * g.O + o) * g.Ho * g.Wo, image, shifts, kernel, recent, g)
            if o % CHAIN == CHAIN - 1:
                add_to(sums, recent)
    add_to(sums, recent)
    doubt = vector.zeros(like, 0)
    for d in range(g.D):
        plane = (n * g.D + d) * g.Ho * g.Wo
        doubt = vector.add(doubt, write_sums(band, sums, d * band.vectors * size, grad_shares, plane, g))
    return known and is_zero(doubt)


@borrowing
def _add_products(band, grad_out, plane, image, shifts, kernel, sums, g):  # type: ignore[no-untyped-def]
    """Add the products of a plane of grad_out with the convolution for each dilation."""
    size, mask = vector.lanes(image), vector.between(0, g.Wo)
    for v in range(0, band.vectors, 8):
        starts = vector.pick(band.places, vector.shift(PACK, v))
        to = vector.shift(vector.pick(band.pixels, vector.shift(PACK, v)), plane)
        grads = vector.load(grad_out, to) if g.Wo >= size else vector.load_where(grad_out, to, 1, mask)
        for d in range(g.D):
            here = vector.spaced((d * band.vectors + v) * size, size, PACK)
            total = tap_sums(image, starts, shifts, d * kernel.size, kernel)
            vector.store(sums, here, vector.fma(grads, total, vector.load(sums, here)))


# ---- the gradient of the weights -------------------------------------------------------------------------------------


@inlined
def grad_weight_rows_tasks(geometry, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the channels are shared out, or 0."""
    many = min(ceil_div(g.C, TASKS), max(1, SUMS // (g.O // g.C * g.kh * g.kw)))
    return ceil_div(g.C, many) if rows_of(1, geometry, g) > 0 else 0


@inlined
def grad_weight_rows_task(task, grad_out, x, mixture, grad_weight, like, geometry):  # type: ignore[no-untyped-def]
    """Make the gradient of some channels' weights."""
    g = dilation_geometry(geometry)
    tasks = grad_weight_rows_tasks(geometry, g)
    c0, c1 = g.C * task // tasks, g.C * (task + 1) // tasks
    if not _make_grad_weight(False, c0, c1, grad_out, x, mixture, grad_weight, like, geometry, g):
        _make_grad_weight(True, c0, c1, grad_out, x, mixture, grad_weight, like, geometry, g)


@inlined
def _make_grad_weight(masked, c0, c1, grad_out, x, mixture, grad_weight, like, geometry, g):  # type: ignore[no-untyped-def]
    """Write the sums; return whether all are finite. If `masked`, what is not read is left out, not multiplied by 0."""
    around, size, many, taps = halo(geometry, g), vector.lanes(like), g.O // g.C, g.kh * g.kw
    bands, padded = ceil_div(g.Ho, rows_of(1, geometry, g)), ceil_div(taps, 9) * 9
    shifts = np.empty(g.D * padded, np.int64)
    recent = accumulators(like, (c1 - c0) * many * padded * size)
    sums = accumulators(like, recent.size)
    chains = 0
    for k in range(g.N * bands):
        n, first, last = k // bands, g.Ho * (k % bands) // bands, g.Ho * (k % bands + 1) // bands
        band = band_of(n, first, last, around, like, g)
        image, of_taps = accumulators(like, band.room + size), shifts_of(around, band.pitch, 1, geometry, g)
        for t in range(shifts.size):  # the last tap fills up the last nine
            shifts[t] = of_taps[t // padded * taps + min(t % padded, taps - 1)]
        inside = accumulators(like, image.size if masked else 0)
        for y in range(band.bottom - band.top if masked else 0):
            for column in range(g.W):
                inside[band.origin + y * band.pitch + column] = 1
        shares = accumulators(like, band.vectors * g.D * size)
        gather_shares(band, mixture, shares, g)
        for c in range(c0, c1):
            copy_rows(band, x, (n * g.C + c) * g.H * g.W, True, image, g)
            for o in range(c * many, (c + 1) * many):
                start, to = (n * g.O + o) * g.Ho * g.Wo, (o - c0 * many) * padded * size
                if masked:
                    _correlate_inside(band, grad_out, start, image, inside, shifts, shares, recent, to, padded, g)
                else:
                    _correlate(band, grad_out, start, image, shifts, shares, recent, to, padded, g)
        chains += ceil_div(band.vectors, max(1, CHAIN // g.D))
        if chains >= CHAIN:
            add_to(sums, recent)
            chains = 0
    add_to(sums, recent)
    finite = True
    for k in range((c1 - c0) * many * taps):
        total = vector.total(vector.load(sums, (k // taps * padded + k % taps) * size))
        store(grad_weight, c0 * many * taps + k, total)
        finite &= np.isfinite(total)
    return finite


@borrowing
def _correlate(band, grad_out, start, image, shifts, shares, sums, to, padded, g):  # type: ignore[no-untyped-def]
    """Add the products of a plane of grad_out, times what dilations count, and what each of their taps reads."""
    size, run = vector.lanes(image), max(1, CHAIN // g.D)
    for t in range(0, padded, 9):
        here = vector.spaced(to + t * size, size, NINE)
        for first in range(0, band.vectors, run):
            chain = vector.zeros(image, NINE)
            for d in range(g.D):
                taps = vector.pick(shifts, vector.shift(NINE, d * padded + t))
                for v in range(first, min(first + run, band.vectors)):
                    grad = vector.load_where(grad_out, start + band.pixels[v], 1, band.masks[v])
                    product = vector.mul(vector.load(shares, (v * g.D + d) * size), grad)
                    chain = vector.fma(product, vector.load(image, vector.shift(taps, band.places[v])), chain)
            vector.store(sums, here, vector.add(chain, vector.load(sums, here)))


@borrowing
def _correlate_inside(  # type: ignore[no-untyped-def]
    band, grad_out, start, image, inside, shifts, shares, sums, to, padded, g
):
    """Do as `_correlate` in its order where all is finite; elsewhere mix what a tap reads, then multiply."""
    size, run = vector.lanes(image), max(1, CHAIN // g.D)
    for t in range(padded):
        for first in range(0, band.vectors, run):
            chain = vector.zeros(image, 0)
            for d in range(g.D):
                for v in range(first, min(first + run, band.vectors)):
                    grad = vector.load_where(grad_out, start + band.pixels[v], 1, band.masks[v])
                    doubt = mixed = vector.zeros(image, 0)
                    for k in range(g.D):
                        at, share = band.places[v] + shifts[k * padded + t], vector.load(shares, (v * g.D + k) * size)
                        mask, values = _reads(band.masks[v], share, inside, at, g), vector.load(image, at)
                        product = vector.mul(vector.mul(share, grad), values)
                        doubt = vector.where(mask, vector.add(vector.zero_or_nan(product), doubt), doubt)
                        mixed = vector.where(mask, vector.fma(share, values, mixed), mixed)
                    at, share = band.places[v] + shifts[d * padded + t], vector.load(shares, (v * g.D + d) * size)
                    mask, finite = _reads(band.masks[v], share, inside, at, g), vector.within(doubt, 0.0, 0.0)
                    product = vector.fma(vector.mul(share, grad), vector.load(image, at), chain)
                    product = vector.where(mask & finite, product, chain)
                    chain = vector.where(finite, product, vector.fma(grad, mixed, chain) if d == 0 else chain)
            vector.store(sums, to + t * size, vector.add(chain, vector.load(sums, to + t * size)))


@borrowing
def _reads(mask, share, inside, at, g):  # type: ignore[no-untyped-def]
    """Return for which of some pixels a dilation counts and its tap is in the image."""
    mask &= vector.within(vector.load(inside, at), 1.0, 1.0)
    return mask & ~vector.within(share, 0.0, 0.0) if g.hard != 0 else mask
