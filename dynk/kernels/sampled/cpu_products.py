"""The gradients of `across`, and of the image through it, where nearly all of the backward pass's arithmetic is.

Both are sums of products of OUTS outputs or channels by up to five samples or channels side by side, as in `cpu_mix`.
What does not take part, because a sample is centred outside the image or "max" chose another, is masked.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill
from dynk.kernels.sampled.cpu_mix import (
    OUTS,
    add_row,
    copy_rows,
    masks_of_samples,
    padded_row,
    rows_size,
    starts_of_samples,
    vectors_of_row,
)
from dynk.kernels.sampled.cpu_rows import CHAIN, output_row, sample_geometry, tap_column, tap_row, to_sample
from dynk.kernels.sampled.cpu_samples import (
    POSITION_RESIDUAL,
    SAMPLE_RESIDUAL,
    SHARE,
    centre_tap,
    constants,
    is_read_outside,
    outputs_from,
    taps_of,
)
from dynk.kernels.sampled.geometry import MAX, NONE

# Channels and rows of the image of a task of its gradient.
CHANNELS, ROWS = 64, 32
LINE = 64  # bytes of the caches' lines


@borrowing
def grads_size(like, count, g):  # type: ignore[no-untyped-def]
    """Return the size of the gradients of the samples of `count` outputs."""
    return vectors_of_row(like, g) * g.samples * g.samples * count * vector.lanes(like)


@borrowing
def chosen(choice, start, pixels, k):  # type: ignore[no-untyped-def]
    """Return the mask of the pixels whose output "max" took from sample k."""
    mask = 0
    for lane in range(pixels):
        if choice[start + lane] == k:
            mask |= 1 << lane
    return mask


@borrowing
def load_grads(  # type: ignore[no-untyped-def]
    n, outs, y, slot, count, grad_out, sample_attention, choice, grads, masks, numbers, g
):
    """Load the gradients of OUTS outputs' samples before their attention, and the masks of what takes part.

    They become outputs `slot` to slot + OUTS of the `count` that there is room for.
    """
    size, four = vector.lanes(grads), vector.pick(outs, (0, 1, 2, 3))
    plane, samples = g.H * g.W, g.samples * g.samples
    gain, residual = vector.broadcast(numbers, SHARE), vector.broadcast(numbers, SAMPLE_RESIDUAL)
    images = samples if g.reduce == NONE else 1
    for k in range(samples):
        for v in range(vectors_of_row(grads, g)):
            pixels, row = vector.between(0, g.W - v * size), y * g.W + v * size
            image = n * images + (k if g.reduce == NONE else 0)
            start = vector.spaced(image * g.O * plane + row, plane, four)
            grad = vector.mul(gain, vector.load_where(grad_out, start, 1, pixels))
            if g.has_sample_attention != 0:
                attention = vector.spaced((n * g.O * samples + k) * plane + row, samples * plane, four)
                weights = vector.add(residual, vector.load_where(sample_attention, attention, 1, pixels))
                grad = vector.mul(grad, weights)
            at = (v * samples + k) * count + slot
            vector.store(grads, vector.spaced(at * size, size, (0, 1, 2, 3)), grad)
            for o in range(OUTS):
                masks[at + o] = pixels
                if g.reduce == MAX:
                    first = output_row(n, 0, 0, outs[o], y, g) + v * size
                    masks[at + o] = chosen(choice, first, min(size, g.W - v * size), k)


@borrowing
def weigh_centres(  # type: ignore[no-untyped-def]
    n, outs, y, first, end, slot, count, position_attention, grads, masks, numbers, g
):
    """Turn the gradients of samples into those of their centre taps, of those in rows `first` to `end` of the image.

    Others are masked.
    """
    size, four = vector.lanes(grads), vector.pick(outs, (0, 1, 2, 3))
    residual = vector.broadcast(numbers, POSITION_RESIDUAL)
    for k in range(g.samples * g.samples):
        for v in range(vectors_of_row(grads, g)):
            h, left = y + to_sample(k // g.samples, g), v * size + to_sample(k % g.samples, g)
            centred = vector.between(-left, g.W - left) if first <= h < end else 0
            at = (v * g.samples * g.samples + k) * count + slot
            for o in range(OUTS):
                masks[at + o] &= centred
            if g.has_position_attention != 0 and centred != 0:
                attention = vector.shift(taps_of(n, centre_tap(g), h, four, g), left)
                weights = vector.add(residual, vector.load_where(position_attention, attention, 1, centred))
                here = vector.spaced(at * size, size, (0, 1, 2, 3))
                vector.store(grads, here, vector.mul(vector.load(grads, here), weights))


# ---- across ----------------------------------------------------------------------------------------------------------


@borrowing
def store_grad_across(n, outs, y, rows, starts, grads, masks, grad_across, g):  # type: ignore[no-untyped-def]
    """Write a row of the gradient of `across` of OUTS outputs."""
    c = 0
    while c < g.C:
        many = c + 5 <= g.C
        for v in range(vectors_of_row(rows, g)):
            if many:
                _across_channels(
                    n, outs, y, v, c, rows, starts, grads, masks, grad_across, g,
                    (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4),
                    (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                )  # fmt: skip
            else:
                _across_channels(
                    n, outs, y, v, c, rows, starts, grads, masks, grad_across, g, (0, 0, 0, 0), (0, 1, 2, 3)
                )
        c += 5 if many else 1
    vector.drain()


@borrowing
def _across_channels(  # type: ignore[no-untyped-def]
    n, outs, y, v, c, rows, starts, grads, masks, grad_across, g, of_channels, of_outs
):
    """Sum over the samples for some outputs and channels at once: `of_channels` and `of_outs` of each sum."""
    size, row = vector.lanes(rows), padded_row(rows, g)
    chain = max(1, CHAIN // g.samples)
    channels = vector.spaced(c * row, row, of_channels)
    total = vector.zeros(rows, of_outs)
    for first in range(0, g.samples, chain):
        part = vector.zeros(rows, of_outs)
        for a in range(first, min(first + chain, g.samples)):
            h = y + to_sample(a, g)
            if h < 0 or h >= g.H:
                continue
            for b in range(g.samples):
                at = ((v * g.samples + a) * g.samples + b) * OUTS
                mask = vector.pick(masks, vector.spaced(at, 1, of_outs))
                grad = vector.load(grads, vector.spaced(at * size, size, of_outs))
                start = starts[v * g.samples + b] + a * g.C * row
                part = vector.where(
                    mask, vector.fma(grad, vector.load(rows, vector.shift(channels, start)), part), part
                )
        total = vector.add(part, total)
    plane = g.H * g.W
    to = vector.spaced(n * g.O * g.C * plane + y * g.W + v * size, g.C * plane, vector.pick(outs, of_outs))
    to = vector.shift(to, vector.spaced(c * plane, plane, of_channels))
    # Past the caches pays for whole lines only, here more than elsewhere: others would be begun in between.
    lines = (grad_across.ctypes.data | g.W * grad_across.itemsize) % LINE == 0
    if lines and g.W - v * size >= size and grad_across.size * grad_across.itemsize > vector.STREAM_BYTES:
        vector.stream(grad_across, to, total)
    else:
        vector.store_where(grad_across, to, 1, total, vector.between(0, g.W - v * size))


@borrowing
def store_grad_within(  # type: ignore[no-untyped-def]
    n, outs, y, grads, masks, taps_inside, position_attention, channel_sum, grad_within, numbers, g
):
    """Write a row of the gradient of `within` of OUTS outputs."""
    size, four = vector.lanes(grads), vector.pick(outs, (0, 1, 2, 3))
    residual, chain = vector.broadcast(numbers, POSITION_RESIDUAL), max(1, CHAIN // g.samples)
    for k in range(g.kh * g.kw):
        i, j = k // g.kw, k % g.kw
        to = taps_of(n, k, y, four, g)
        for v in range(vectors_of_row(grads, g)):
            total = vector.zeros(grads, (0, 1, 2, 3))
            for first in range(0, g.samples, chain):
                part = vector.zeros(grads, (0, 1, 2, 3))
                for a in range(first, min(first + chain, g.samples)):
                    centre = y + to_sample(a, g)
                    h, inside = centre + tap_row(i, g), 0 <= centre < g.H
                    if h < 0 or h >= g.H or not (inside or is_read_outside(g)):
                        continue
                    for b in range(g.samples):
                        mask_at, left = (v * g.samples + b) * (g.kw + 1), v * size + to_sample(b, g)
                        at = ((v * g.samples + a) * g.samples + b) * OUTS
                        read = taps_inside[mask_at + j]
                        mask = vector.masked(vector.pick(masks, vector.spaced(at, 1, (0, 1, 2, 3))), read)
                        grad = vector.load(grads, vector.spaced(at * size, size, (0, 1, 2, 3)))
                        image = (n * g.H + h) * g.W + left + tap_column(j, g)
                        values = vector.load_where(channel_sum, image, 1, read)
                        if g.has_position_attention != 0:
                            attention = vector.shift(taps_of(n, k, centre, four, g), left)
                            centred = taps_inside[mask_at + g.kw] if inside else 0
                            weights = vector.load_where(position_attention, attention, 1, centred)
                            grad = vector.mul(vector.add(weights, residual), grad)
                        part = vector.where(mask, vector.fma(grad, values, part), part)
                total = vector.add(part, total)
            vector.store_where(grad_within, vector.shift(to, v * size), 1, total, vector.between(0, g.W - v * size))


@inlined
def grad_filters_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, sample_attention, position_attention, channel_sum, choice, grad_across, grad_within, geometry
):
    """Sum over the samples for one row of pixels, every output and input channel."""
    g = sample_geometry(geometry)
    y, n = task % g.H, task // g.H
    starts, numbers, taps_inside = starts_of_samples(x, g), constants(x, g), masks_of_samples(x, g)
    rows = accumulators(x, rows_size(x, g.samples, g) if grad_across.size > 0 else 0)
    copy_rows(n, y, 0, 0, x, rows, g)
    grads = accumulators(x, grads_size(x, OUTS, g))
    masks = np.empty(vectors_of_row(x, g) * g.samples * g.samples * OUTS, np.int64)
    outs = np.empty(OUTS, np.int64)
    for o in range(0, g.O, OUTS):
        outputs_from(o, outs, g)
        load_grads(n, outs, y, 0, OUTS, grad_out, sample_attention, choice, grads, masks, numbers, g)
        if grad_within.size > 0:
            store_grad_within(
                n, outs, y, grads, masks, taps_inside, position_attention, channel_sum, grad_within, numbers, g
            )
        if grad_across.size > 0:
            weigh_centres(n, outs, y, 0, g.H, 0, OUTS, position_attention, grads, masks, numbers, g)
            store_grad_across(n, outs, y, rows, starts, grads, masks, grad_across, g)


# ---- the image -------------------------------------------------------------------------------------------------------


@borrowing
def blocks_of_image(g):  # type: ignore[no-untyped-def]
    """Return the number of tasks of the gradient of an image."""
    return ((g.C + CHANNELS - 1) // CHANNELS) * ((g.H + ROWS - 1) // ROWS)


@inlined
def grad_x_task(  # type: ignore[no-untyped-def]
    task, grad_out, across, sample_attention, position_attention, choice, grad_sum, grad_x, geometry
):
    """Collect some rows of some channels from every row of outputs, and add the gradient of the channel sum."""
    g = sample_geometry(geometry)
    bands, blocks = (g.H + ROWS - 1) // ROWS, blocks_of_image(g)
    n, c0, h0 = task // blocks, task // bands % (blocks // bands) * CHANNELS, task % bands * ROWS
    c1, h1 = min(c0 + CHANNELS, g.C), min(h0 + ROWS, g.H)
    size, vectors, row = vector.lanes(grad_sum), vectors_of_row(grad_sum, g), padded_row(grad_sum, g)
    sums = accumulators(grad_x, (c1 - c0) * (h1 - h0) * row)
    chains = (g.O + CHAIN - 1) // CHAIN  # of a row's outputs
    many = g.samples * chains > CHAIN
    merged = accumulators(grad_x, sums.size if many else 0)
    if g.has_across != 0:
        count = (min(g.O, CHAIN) + OUTS - 1) // OUTS * OUTS
        grads, part = accumulators(grad_x, grads_size(grad_sum, count, g)), accumulators(grad_x, OUTS * row)
        masks = np.empty(vectors * g.samples * g.samples * count, np.int64)
        filters = accumulators(grad_x, vectors * count * OUTS * size)
        outs, numbers, starts = np.empty(OUTS, np.int64), constants(grad_sum, g), starts_of_samples(grad_sum, g)
        for y in range(max(0, h0 - to_sample(g.samples - 1, g)), min(g.H, h1 - to_sample(0, g))):
            for o in range(0, g.O, CHAIN):
                for slot in range(0, min(CHAIN, g.O - o), OUTS):
                    outputs_from(o + slot, outs, g)
                    load_grads(n, outs, y, slot, count, grad_out, sample_attention, choice, grads, masks, numbers, g)
                    weigh_centres(n, outs, y, h0, h1, slot, count, position_attention, grads, masks, numbers, g)
                for c in range(c0, c1, OUTS):
                    outputs = min(CHAIN, g.O - o)
                    _copy_channels(n, y, o, outputs, c, across, filters, g)
                    for a in range(g.samples):
                        h = y + to_sample(a, g)
                        if h0 <= h < h1:
                            fill(part, 0)
                            _spread(a, outputs, count, filters, grads, masks, starts, part, g)
                            for k in range(min(OUTS, c1 - c)):
                                add_row(part, k * row, sums, ((c - c0 + k) * (h1 - h0) + h - h0) * row, row)
                if many and (y * chains + o // CHAIN) % CHAIN == CHAIN - 1:
                    add_row(sums, 0, merged, 0, sums.size)
                    fill(sums, 0)
    add_row(merged, 0, sums, 0, merged.size)
    for c in range(c0, c1):
        for h in range(h0, h1):
            start, to = ((c - c0) * (h1 - h0) + h - h0) * row + size, ((n * g.C + c) * g.H + h) * g.W
            for at in range(0, g.W, size):
                pixels = vector.between(0, g.W - at)
                shared = vector.load_where(grad_sum, (n * g.H + h) * g.W + at, 1, pixels)
                vector.store_where(grad_x, to + at, 1, vector.add(vector.load(sums, start + at), shared), pixels)


@borrowing
def _copy_channels(n, y, o, outputs, c, across, filters, g):  # type: ignore[no-untyped-def]
    """Copy a row of OUTS channels of `across`, the last one again where there are no more, of every output."""
    size, vectors = vector.lanes(filters), vectors_of_row(filters, g)
    for k in range(outputs):
        for u in range(OUTS):
            start = (((n * g.O + o + k) * g.C + min(c + u, g.C - 1)) * g.H + y) * g.W
            for v in range(vectors):
                values = vector.load_where(across, start + v * size, 1, vector.between(0, g.W - v * size))
                vector.store(filters, ((v * outputs + k) * OUTS + u) * size, values)
                vector.prefetch(across, start + g.W + v * size)  # of the next row of pixels, which comes soon


@inlined
def _spread(a, outputs, count, filters, grads, masks, starts, part, g):  # type: ignore[no-untyped-def]
    """Add to rows of OUTS channels what reaches them through the samples of row a."""
    size = vector.lanes(part)
    for v in range(vectors_of_row(part, g)):
        b = 0
        while b < g.samples:
            start, at = v * g.samples + b, ((v * g.samples + a) * g.samples + b) * count
            filters_at = v * outputs * OUTS * size
            if b + 5 <= g.samples:
                sums = _over_outputs(
                    filters_at, at, outputs, count, filters, grads, masks,
                    (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4),
                    (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                )  # fmt: skip
                add_to_rows(sums[0:4], starts[start], part, g)
                add_to_rows(sums[4:8], starts[start + 1], part, g)
                add_to_rows(sums[8:12], starts[start + 2], part, g)
                add_to_rows(sums[12:16], starts[start + 3], part, g)
                add_to_rows(sums[16:20], starts[start + 4], part, g)
                b += 5
            else:
                sum_ = _over_outputs(filters_at, at, outputs, count, filters, grads, masks, (0, 0, 0, 0), (0, 1, 2, 3))
                add_to_rows(sum_, starts[start], part, g)
                b += 1


@borrowing
def _over_outputs(  # type: ignore[no-untyped-def]
    filters_at, at, outputs, count, filters, grads, masks, of_samples, of_channels
):
    """Sum over outputs for some samples and channels at once: `of_samples` and `of_channels` of each sum."""
    size = vector.lanes(filters)
    u = vector.spaced(filters_at, size, of_channels)
    total = vector.zeros(filters, of_channels)
    for k in range(outputs):
        here = vector.spaced(at + k, count, of_samples)
        mask, grad = (
            vector.pick(masks, here),
            vector.load(grads, vector.spaced((at + k) * size, count * size, of_samples)),
        )
        value = vector.load(filters, vector.shift(u, k * OUTS * size))
        total = vector.where(mask, vector.fma(grad, value, total), total)
    return total


@borrowing
def add_to_rows(values, start, part, g):  # type: ignore[no-untyped-def]
    """Add vectors to as many rows of `part`, from the same column on."""
    row = padded_row(part, g)
    at = vector.spaced(start, row, (0, 1, 2, 3))
    vector.store(part, at, vector.add(vector.load(part, at), values))
