"""Samples of LS-DFN on the CPU, of a row of pixels and OUTS outputs at once.

All of the kernel but `across` is the same for all input channels and is applied to their sum, which is made first. The
attention of the positions comes from the pixel at the centre of a sample.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load, store
from dynk.kernels.sampled.cpu_mix import OUTS, vectors_of_row
from dynk.kernels.sampled.cpu_rows import CHAIN, is_larger, sample_geometry, share, tap_column, tap_row, to_sample
from dynk.kernels.sampled.geometry import NONE

# Numbers that kernels need in all lanes of a vector.
SAMPLE_RESIDUAL, POSITION_RESIDUAL, SHARE, CONSTANTS = range(4)


@inlined
def constants(like, g):  # type: ignore[no-untyped-def]
    """Return the numbers that are read with `vector.broadcast`."""
    array = accumulators(like, CONSTANTS)
    array[SAMPLE_RESIDUAL], array[POSITION_RESIDUAL] = g.sample_residual, g.position_residual
    array[SHARE] = share(g)
    return array


@inlined
def channel_sum_task(task, x, channel_sum, geometry):  # type: ignore[no-untyped-def]
    g = sample_geometry(geometry)
    y, n = task % g.H, task // g.H
    row = np.zeros(g.W, np.float64)
    for c in range(g.C):
        start = ((n * g.C + c) * g.H + y) * g.W
        for k in range(g.W):
            store(row, k, load(row, k) + load(x, start + k))
    for k in range(g.W):
        store(channel_sum, task * g.W + k, channel_sum.dtype.type(load(row, k)))


@borrowing
def outputs_from(o, outs, g):  # type: ignore[no-untyped-def]
    """Set the numbers of OUTS outputs from o on; the last one again where there are no more."""
    for k in range(OUTS):
        outs[k] = min(o + k, g.O - 1)


@borrowing
def shared_size(like, g):  # type: ignore[no-untyped-def]
    return g.kh * g.kw * vectors_of_row(like, g) * OUTS * vector.lanes(like)


@borrowing
def first_shared(g):  # type: ignore[no-untyped-def]
    """Return the first tap that sees the channel sum."""
    return 0 if g.has_within != 0 else centre_tap(g)


@borrowing
def end_shared(g):  # type: ignore[no-untyped-def]
    """Return the end of the taps that see the channel sum."""
    return g.kh * g.kw if g.has_within != 0 else centre_tap(g) + g.kernel_residual


@borrowing
def is_read_outside(g):  # type: ignore[no-untyped-def]
    """Return whether taps of samples that are centred outside the image are read."""
    return g.has_position_attention == 0 or g.position_residual != 0


@borrowing
def centre_tap(g):  # type: ignore[no-untyped-def]
    return (g.kh - 1) // 2 * g.kw + (g.kw - 1) // 2


@inlined
def load_shared(n, outs, y, within, shared, g):  # type: ignore[no-untyped-def]
    """Copy a row of what the kernel holds for all input channels alike: `within`, and 1/C at the centre."""
    size, vectors, four = vector.lanes(shared), vectors_of_row(shared, g), vector.pick(outs, (0, 1, 2, 3))
    residual = accumulators(shared, 2)
    residual[1] = 1.0 / g.C
    for k in range(first_shared(g), end_shared(g)):
        for v in range(vectors):
            added = vector.broadcast(residual, g.kernel_residual if k == centre_tap(g) else 0)
            to = vector.spaced((k * vectors + v) * OUTS * size, size, (0, 1, 2, 3))
            own = vector.between(0, g.W - v * size) if g.has_within != 0 else 0
            filters = vector.load_where(within, vector.shift(taps_of(n, k, y, four, g), v * size), 1, own)
            vector.store(shared, to, vector.add(filters, added))


@borrowing
def taps_of(n, k, y, outs, g):  # type: ignore[no-untyped-def]
    """Return where row y of tap k of some outputs starts in `within` and the attention of positions."""
    taps = g.kh * g.kw
    return vector.spaced((n * g.O * taps + k) * g.H * g.W + y * g.W, taps * g.H * g.W, outs)


@borrowing
def padding(like, g):  # type: ignore[no-untyped-def]
    """Return how many elements a row of what the taps see holds before and after the image, in whole vectors."""
    size = vector.lanes(like)
    return (to_sample(g.samples - 1, g) + size - 1) // size * size


@borrowing
def seen_row(like, g):  # type: ignore[no-untyped-def]
    """Return the length of a row of what the taps see: an odd number of vectors against conflicts."""
    size = vector.lanes(like)
    return (vectors_of_row(like, g) + 2 * (padding(like, g) // size) | 1) * size


@borrowing
def seen_size(like, g):  # type: ignore[no-untyped-def]
    """Return the size of what `load_seen` fills for a row of samples' centres: OUTS rows for each tap.

    After those, OUTS rows of the attention of the centre.
    """
    return (g.kh * g.kw + 1) * OUTS * seen_row(like, g)


@borrowing
def load_seen(n, outs, h, position_attention, channel_sum, seen, at, numbers, g):  # type: ignore[no-untyped-def]
    """Form what the taps of samples centred in row h see: the channel sum times the attention of their centre.

    This attention is the residual alone outside the image. Without it all outputs see the same, which is kept once.
    """
    size, row, four = vector.lanes(seen), seen_row(seen, g), vector.pick(outs, (0, 1, 2, 3))
    residual, inside = vector.broadcast(numbers, POSITION_RESIDUAL), 0 <= h < g.H
    for k in range(first_shared(g), end_shared(g)):
        below = h + tap_row(k // g.kw, g)
        for x in range(0, row if 0 <= below < g.H else 0, size):
            centre = x - padding(seen, g)
            column, to = centre + tap_column(k % g.kw, g), at + k * OUTS * row + x
            image = (n * g.H + below) * g.W + column
            values = vector.load_where(channel_sum, image, 1, vector.between(-column, g.W - column))
            if g.has_position_attention != 0:
                weights = _attention(n, k, h, centre, inside, four, position_attention, residual, g)
                vector.store(seen, vector.spaced(to, row, (0, 1, 2, 3)), vector.mul(weights, values))
            else:
                vector.store(seen, to, values)
    for x in range(0, row if inside and g.has_across * g.has_position_attention != 0 else 0, size):
        to, k, centre = at + g.kh * g.kw * OUTS * row + x, centre_tap(g), x - padding(seen, g)
        weights = _attention(n, k, h, centre, inside, four, position_attention, residual, g)
        vector.store(seen, vector.spaced(to, row, (0, 1, 2, 3)), weights)


@borrowing
def _attention(n, k, h, x, inside, outs, position_attention, residual, g):  # type: ignore[no-untyped-def]
    """Return a vector of the attention of tap k at row h and from column x on."""
    inside = vector.between(-x, g.W - x) if inside else 0
    start = vector.shift(taps_of(n, k, h, outs, g), x)
    return vector.add(vector.load_where(position_attention, start, 1, inside), residual)


@borrowing
def form_samples(  # type: ignore[no-untyped-def]
    n, outs, y, i, shared, position_attention, channel_sum, seen, samples, masks, numbers, g
):
    """Turn the sums over channels in `samples` into the samples, before their attention.

    If i > 0, row y - sample_stride had number i - 1, and all that its samples saw but of their first row is seen again.
    """
    for a in range(g.samples):
        h, at = y + to_sample(a, g), (i + a) % g.samples * seen_size(samples, g)
        if (i == 0 or a == g.samples - 1) and (0 <= h < g.H or is_read_outside(g)):
            load_seen(n, outs, h, position_attention, channel_sum, seen, at, numbers, g)
        for v in range(vectors_of_row(samples, g)):
            b = 0
            while b < g.samples:
                if b + 5 <= g.samples:
                    _form(
                        h, v, a, b, shared, seen, at, samples, masks,
                        (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4),
                        (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19), g,
                    )  # fmt: skip
                    b += 5
                elif b + 3 <= g.samples:
                    _form(
                        h, v, a, b, shared, seen, at, samples, masks, (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2),
                        (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), g,
                    )  # fmt: skip
                    b += 3
                else:
                    _form(h, v, a, b, shared, seen, at, samples, masks, (0, 0, 0, 0), (0, 1, 2, 3), (0, 1, 2, 3), g)
                    b += 1


@borrowing
def _form(  # type: ignore[no-untyped-def]
    h, v, a, b, shared, seen, at, samples, masks, of_samples, of_outs, numbers, g
):
    """Form some samples of a row of them, centred in row h, at once: `of_samples` and `of_outs` of each."""
    size, row, vectors = vector.lanes(samples), seen_row(samples, g), vectors_of_row(samples, g)
    inside, centre = 0 <= h < g.H, padding(samples, g) + v * size + to_sample(b, g)
    at = vector.spaced(at + centre, g.sample_stride, of_samples)
    at = vector.shift(at, vector.spaced(0, row * g.has_position_attention, of_outs))
    inner = vector.spaced((v * g.samples + b) * (g.kw + 1), g.kw + 1, of_samples)
    here = vector.spaced(((v * g.samples + a) * g.samples + b) * OUTS * size, size, numbers)
    total = vector.zeros(samples, numbers)
    if inside and g.has_across != 0:
        mixed = vector.load(samples, here)
        if g.has_position_attention != 0:
            mixed = vector.mul(vector.load(seen, vector.shift(at, g.kh * g.kw * OUTS * row)), mixed)
        total = vector.where(vector.pick(masks, vector.shift(inner, g.kw)), mixed, total)
    vector.store(samples, here, total)
    for first in range(first_shared(g), end_shared(g) if inside or is_read_outside(g) else 0, CHAIN):
        chain = vector.zeros(samples, numbers)
        for k in range(first, min(first + CHAIN, end_shared(g))):
            below = h + tap_row(k // g.kw, g)
            if 0 <= below < g.H:
                mask = vector.pick(masks, vector.shift(inner, k % g.kw))
                filters = vector.load(shared, vector.spaced((k * vectors + v) * OUTS * size, size, of_outs))
                values = vector.load(seen, vector.shift(at, k * OUTS * row))
                chain = vector.where(mask, vector.fma(filters, values, chain), chain)
        vector.store(samples, here, vector.add(chain, vector.load(samples, here)))


@borrowing
def attend_samples(n, outs, y, sample_attention, samples, numbers, g):  # type: ignore[no-untyped-def]
    """Multiply samples by their attention."""
    size, four = vector.lanes(samples), vector.pick(outs, (0, 1, 2, 3))
    residual = vector.broadcast(numbers, SAMPLE_RESIDUAL)
    plane, count = g.H * g.W, g.samples * g.samples
    for k in range(count * g.has_sample_attention):
        for v in range(vectors_of_row(samples, g)):
            pixels = vector.between(0, g.W - v * size)
            here = vector.spaced((v * count + k) * OUTS * size, size, (0, 1, 2, 3))
            attention = vector.spaced((n * g.O * count + k) * plane + y * g.W + v * size, count * plane, four)
            weights = vector.add(vector.load_where(sample_attention, attention, 1, pixels), residual)
            vector.store(samples, here, vector.mul(vector.load(samples, here), weights))


@borrowing
def reduce_samples(n, outs, y, samples, out, numbers, g):  # type: ignore[no-untyped-def]
    """Write a row of outputs: the sum or mean of their samples, or these themselves."""
    size, four = vector.lanes(samples), vector.pick(outs, (0, 1, 2, 3))
    plane, count, gain = g.H * g.W, g.samples * g.samples, vector.broadcast(numbers, SHARE)
    for v in range(vectors_of_row(samples, g)):
        pixels, row = vector.between(0, g.W - v * size), y * g.W + v * size
        for k in range(count if g.reduce == NONE else 0):
            value = vector.load(samples, vector.spaced((v * count + k) * OUTS * size, size, (0, 1, 2, 3)))
            vector.store_where(out, vector.spaced((n * count + k) * g.O * plane + row, plane, four), 1, value, pixels)
        total = vector.zeros(samples, (0, 1, 2, 3))
        for a in range(0 if g.reduce == NONE else g.samples):
            part = vector.zeros(samples, (0, 1, 2, 3))
            for b in range(g.samples):
                at = (v * count + a * g.samples + b) * OUTS * size
                part = vector.add(vector.load(samples, vector.spaced(at, size, (0, 1, 2, 3))), part)
            total = vector.add(part, total)
        if g.reduce != NONE:
            vector.store_where(
                out, vector.spaced(n * g.O * plane + row, plane, four), 1, vector.mul(gain, total), pixels
            )


@borrowing
def choose_samples(n, outs, y, samples, out, choice, g):  # type: ignore[no-untyped-def]
    """Write the largest samples of a row of outputs, or say which they are: that of the two which is not empty."""
    size, count = vector.lanes(samples), g.samples * g.samples
    step = OUTS * size
    for place in range(outs.size * g.W):
        k, x = place // g.W, place % g.W
        to, start = ((n * g.O + outs[k]) * g.H + y) * g.W + x, (x // size * count * OUTS + k) * size + x % size
        best = 0
        for other in range(1, count):
            if is_larger(load(samples, start + other * step), load(samples, start + best * step)):
                best = other
        if out.size > 0:
            store(out, to, load(samples, start + best * step))
        else:
            choice[to] = best
