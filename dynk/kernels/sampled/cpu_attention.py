"""The gradients of the attentions, and of the channel sum, on the CPU."""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.sampled.cpu_mix import (
    OUTS,
    add_row,
    copy_rows,
    filters_size,
    masks_of_samples,
    mix,
    mixed_size,
    padded_row,
    rows_size,
    starts_of_samples,
    vectors_of_row,
)
from dynk.kernels.sampled.cpu_products import add_to_rows, grads_size, load_grads
from dynk.kernels.sampled.cpu_rows import sample_geometry, tap_column, tap_row, to_sample
from dynk.kernels.sampled.cpu_samples import (
    POSITION_RESIDUAL,
    centre_tap,
    constants,
    end_shared,
    first_shared,
    form_samples,
    is_read_outside,
    load_shared,
    outputs_from,
    seen_size,
    shared_size,
    taps_of,
)
from dynk.kernels.sampled.geometry import NONE

# Rows of a task.
ROWS = 32


@borrowing
def bands(g):  # type: ignore[no-untyped-def]
    """Return the number of bands of ROWS rows."""
    return (g.H + ROWS - 1) // ROWS


# ---- the attentions --------------------------------------------------------------------------------------------------


@borrowing
def attention_tasks(g):  # type: ignore[no-untyped-def]
    return g.N * bands(g) * ((g.O + OUTS - 1) // OUTS)


@inlined
def grad_attention_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, across, within, sample_attention, position_attention, channel_sum, choice,
    grad_sample_attention, grad_position_attention, geometry,
):  # fmt: skip
    """Form the samples of OUTS outputs that are centred in a band again.

    Those centred above the image count to the first band, those below it to the last.
    """
    g = sample_geometry(geometry)
    blocks = (g.O + OUTS - 1) // OUTS
    h0, o, n = task % bands(g) * ROWS, task // bands(g) % blocks * OUTS, task // bands(g) // blocks
    h1 = min(h0 + ROWS, g.H)
    numbers, starts, taps_inside = constants(x, g), starts_of_samples(x, g), masks_of_samples(x, g)
    filters, samples = accumulators(x, filters_size(x, g)), accumulators(x, mixed_size(x, g))
    shared, grads = accumulators(x, shared_size(x, g)), accumulators(x, grads_size(x, OUTS, g))
    masks = np.empty(grads.size // vector.lanes(x), np.int64)
    outs, row = np.empty(OUTS, np.int64), padded_row(x, g)
    part, wanted = accumulators(x, OUTS * row), grad_position_attention.size > 0
    sums = accumulators(x, g.kh * g.kw * (h1 - h0) * OUTS * row if wanted else 0)
    seen = accumulators(x, g.samples * seen_size(x, g))
    outputs_from(o, outs, g)
    rows = accumulators(x, rows_size(x, g.samples, g))
    for first in range(min(g.H, g.sample_stride)):
        i = 0  # of the rows of this class that have samples in the band: nearly all that one sees, the next sees too
        for y in range(first, g.H, g.sample_stride):
            above, below = y + to_sample(0, g), y + to_sample(g.samples - 1, g)
            if (below < h0 and h0 > 0) or (above >= h1 and h1 < g.H):
                continue
            copy_rows(n, y, i, 0 if i == 0 else g.samples - 1, x, rows, g)
            load_shared(n, outs, y, within, shared, g)
            load_grads(n, outs, y, 0, OUTS, grad_out, sample_attention, choice, grads, masks, numbers, g)
            mix(n, outs, y, i, h0, h1, across, rows, starts, filters, samples, g)
            if wanted:
                for a in range(g.samples):
                    h = y + to_sample(a, g)
                    if h0 <= h < h1:
                        _add_positions(
                            n, a, h, h - h0, h1 - h0, grads, masks, samples, shared, channel_sum, starts, taps_inside,
                            part, sums, g,
                        )  # fmt: skip
            if grad_sample_attention.size > 0:
                form_samples(
                    n, outs, y, i, shared, position_attention, channel_sum, seen, samples, taps_inside, numbers, g
                )
                _store_grad_samples(n, outs, y, h0, h1, grad_out, samples, masks, grad_sample_attention, numbers, g)
            i += 1
    if wanted:
        size = vector.lanes(x)
        for k in range(g.kh * g.kw):
            for h in range(h0, h1):
                for v in range(vectors_of_row(x, g)):
                    at = (k * (h1 - h0) + h - h0) * OUTS * row + (v + 1) * size
                    to = vector.shift(taps_of(n, k, h, vector.pick(outs, (0, 1, 2, 3)), g), v * size)
                    value = vector.load(sums, vector.spaced(at, row, (0, 1, 2, 3)))
                    vector.store_where(grad_position_attention, to, 1, value, vector.between(0, g.W - v * size))


@borrowing
def _add_positions(  # type: ignore[no-untyped-def]
    n, a, h, at_row, rows, grads, masks, mixed, shared, channel_sum, starts, taps_inside, part, sums, g
):
    """Add what the samples of row a, centred in row h, give to each tap of their centres' attention."""
    size, vectors, row = vector.lanes(grads), vectors_of_row(grads, g), padded_row(grads, g)
    for k in range(g.kh * g.kw):
        below = h + tap_row(k // g.kw, g)
        is_shared = first_shared(g) <= k < end_shared(g) and 0 <= below < g.H
        is_mixed = k == centre_tap(g) and g.has_across != 0
        if not is_shared and not is_mixed:
            continue
        fill(part, 0)
        for v in range(vectors):
            for b in range(g.samples):
                mask_at, left = (v * g.samples + b) * (g.kw + 1), v * size + to_sample(b, g)
                at = ((v * g.samples + a) * g.samples + b) * OUTS
                here = vector.spaced(at * size, size, (0, 1, 2, 3))
                centred = vector.masked(
                    vector.pick(masks, vector.spaced(at, 1, (0, 1, 2, 3))), taps_inside[mask_at + g.kw]
                )
                grad, total = vector.load(grads, here), vector.zeros(grads, here)
                if is_shared:
                    read = vector.masked(centred, taps_inside[mask_at + k % g.kw])
                    image = (n * g.H + below) * g.W + left + tap_column(k % g.kw, g)
                    values = vector.load_where(channel_sum, image, 1, taps_inside[mask_at + k % g.kw])
                    filters = vector.load(shared, vector.spaced((k * vectors + v) * OUTS * size, size, (0, 1, 2, 3)))
                    total = vector.where(read, vector.mul(vector.mul(grad, filters), values), total)
                if is_mixed:
                    total = vector.where(centred, vector.fma(grad, vector.load(mixed, here), total), total)
                add_to_rows(total, starts[v * g.samples + b], part, g)
        for u in range(OUTS):
            add_row(part, u * row, sums, ((k * rows + at_row) * OUTS + u) * row, row)


@borrowing
def _store_grad_samples(  # type: ignore[no-untyped-def]
    n, outs, y, h0, h1, grad_out, samples, masks, grad_sample_attention, numbers, g
):
    """Write the gradients of the attention of the samples centred in a band; 0 where "max" chose another."""
    size, four = vector.lanes(samples), vector.pick(outs, (0, 1, 2, 3))
    plane, count = g.H * g.W, g.samples * g.samples
    gain, images = vector.broadcast(numbers, 2), count if g.reduce == NONE else 1
    for k in range(count):
        h = y + to_sample(k // g.samples, g)
        if (h < h0 and h0 > 0) or (h >= h1 and h1 < g.H):
            continue
        for v in range(vectors_of_row(samples, g)):
            pixels, at = vector.between(0, g.W - v * size), (v * count + k) * OUTS
            image = n * images + (k if g.reduce == NONE else 0)
            start = vector.spaced(image * g.O * plane + y * g.W + v * size, plane, four)
            grad = vector.mul(gain, vector.load_where(grad_out, start, 1, pixels))
            here = vector.spaced(at * size, size, (0, 1, 2, 3))
            grad = vector.mul(grad, vector.load(samples, here))
            mask = vector.pick(masks, vector.spaced(at, 1, (0, 1, 2, 3)))
            to = vector.spaced((n * g.O * count + k) * plane + y * g.W + v * size, count * plane, four)
            grad = vector.where(mask, grad, vector.zeros(samples, here))
            vector.store_where(grad_sample_attention, to, 1, grad, pixels)


# ---- the channel sum -------------------------------------------------------------------------------------------------


@inlined
def grad_sum_task(  # type: ignore[no-untyped-def]
    task, grad_out, within, sample_attention, position_attention, choice, grad_sum, geometry
):
    """Collect a band of rows of the gradient of the channel sum from every row of outputs."""
    g = sample_geometry(geometry)
    h0, n = task % bands(g) * ROWS, task // bands(g)
    h1 = min(h0 + ROWS, g.H)
    size, row = vector.lanes(grad_sum), padded_row(grad_sum, g)
    numbers, taps_inside = constants(grad_sum, g), masks_of_samples(grad_sum, g)
    shared, grads = (
        accumulators(grad_sum, shared_size(grad_sum, g)),
        accumulators(grad_sum, grads_size(grad_sum, OUTS, g)),
    )
    masks, outs = np.empty(grads.size // size, np.int64), np.empty(OUTS, np.int64)
    part, sums = accumulators(grad_sum, row), np.zeros((h1 - h0) * row, np.float64)
    above, below = to_sample(0, g) + tap_row(0, g), to_sample(g.samples - 1, g) + tap_row(g.kh - 1, g)
    for y in range(max(0, h0 - below), min(g.H, h1 - above)):
        for o in range(0, g.O, OUTS):
            outputs_from(o, outs, g)
            load_shared(n, outs, y, within, shared, g)
            load_grads(n, outs, y, 0, OUTS, grad_out, sample_attention, choice, grads, masks, numbers, g)
            for k in range(masks.size):
                if k % OUTS >= g.O - o:  # an output that is not there
                    masks[k] = 0
            for a in range(g.samples):
                for k in range(first_shared(g), end_shared(g)):
                    h = y + to_sample(a, g) + tap_row(k // g.kw, g)
                    if h0 <= h < h1:
                        fill(part, 0)
                        _add_tap(
                            n, outs, a, y + to_sample(a, g), k, grads, masks, shared, position_attention, taps_inside,
                            part, numbers, g,
                        )  # fmt: skip
                        for x in range(row):
                            store(sums, (h - h0) * row + x, load(sums, (h - h0) * row + x) + load(part, x))
    for h in range(h0, h1):
        for x in range(g.W):
            value = load(sums, (h - h0) * row + size + x)
            store(grad_sum, (n * g.H + h) * g.W + x, part.dtype.type(value))


@borrowing
def _add_tap(  # type: ignore[no-untyped-def]
    n, outs, a, centre, k, grads, masks, shared, position_attention, taps_inside, part, numbers, g
):
    """Add what tap k of the samples of row a, centred in row `centre`, gives to the row of the image that it reads."""
    size, vectors, four = vector.lanes(grads), vectors_of_row(grads, g), vector.pick(outs, (0, 1, 2, 3))
    inside, residual = 0 <= centre < g.H, vector.broadcast(numbers, POSITION_RESIDUAL)
    if not (inside or is_read_outside(g)):
        return
    for v in range(vectors):
        filters = vector.load(shared, vector.spaced((k * vectors + v) * OUTS * size, size, (0, 1, 2, 3)))
        for b in range(g.samples):
            mask_at, left = (v * g.samples + b) * (g.kw + 1), v * size + to_sample(b, g)
            at = ((v * g.samples + a) * g.samples + b) * OUTS
            read = taps_inside[mask_at + k % g.kw]
            mask = vector.masked(vector.pick(masks, vector.spaced(at, 1, (0, 1, 2, 3))), read)
            term = vector.mul(vector.load(grads, vector.spaced(at * size, size, (0, 1, 2, 3))), filters)
            if g.has_position_attention != 0:
                attention = vector.shift(taps_of(n, k, centre, four, g), left)
                centred = taps_inside[mask_at + g.kw] if inside else 0
                weights = vector.load_where(position_attention, attention, 1, centred)
                term = vector.mul(vector.add(weights, residual), term)
            term = vector.where(mask, term, vector.zeros(grads, (0, 1, 2, 3)))
            total = vector.add(vector.add(term[0], term[1]), vector.add(term[2], term[3]))
            column = size + min(max(left + tap_column(k % g.kw, g), -size), vectors * size)
            vector.store(part, column, vector.add(vector.load(part, column), total))
