"""Samples of LS-DFN on the CPU, of a row of pixels and OUTS outputs at once.

All of the kernel but `across` is the same for all input channels and is applied to their sum, which is made first. The
attention of the positions comes from the pixel at the centre of a sample.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load, store
from dynk.kernels.sampled.cpu_mix import OUTS, padded_row, vectors_of_row
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
def positions_size(like, g):  # type: ignore[no-untyped-def]
    return g.has_position_attention * g.kh * g.kw * OUTS * padded_row(like, g)


@borrowing
def load_positions(n, outs, h, position_attention, positions, numbers, g):  # type: ignore[no-untyped-def]
    """Copy a row of the image's attention of positions, which is the residual alone outside the image."""
    size, row, four = vector.lanes(positions), padded_row(positions, g), vector.pick(outs, (0, 1, 2, 3))
    residual = vector.broadcast(numbers, POSITION_RESIDUAL)
    for k in range(g.has_position_attention * g.kh * g.kw):
        for x in range(0, row, size):
            inside = vector.between(size - x, g.W + size - x) if 0 <= h < g.H else 0
            start = vector.shift(taps_of(n, k, h, four, g), x - size)
            weights = vector.add(vector.load_where(position_attention, start, 1, inside), residual)
            vector.store(positions, vector.spaced(k * OUTS * row + x, row, (0, 1, 2, 3)), weights)


@borrowing
def form_samples(  # type: ignore[no-untyped-def]
    n, outs, y, shared, position_attention, channel_sum, positions, samples, starts, masks, numbers, g
):
    """Turn the sums over channels in `samples` into the samples, before their attention."""
    size = vector.lanes(samples)
    row = padded_row(samples, g)
    start, end = first_shared(g), end_shared(g)
    for a in range(g.samples):
        centre = y + to_sample(a, g)
        inside = 0 <= centre < g.H
        load_positions(n, outs, centre, position_attention, positions, numbers, g)
        read = inside or is_read_outside(g)
        for v in range(vectors_of_row(samples, g)):
            for b in range(g.samples):
                mask_at, left = (v * g.samples + b) * (g.kw + 1), v * size + to_sample(b, g)
                centred = masks[mask_at + g.kw] if inside else 0
                here = vector.spaced(((v * g.samples + a) * g.samples + b) * OUTS * size, size, (0, 1, 2, 3))
                total = vector.zeros(samples, (0, 1, 2, 3))
                if inside and g.has_across != 0:
                    mixed = vector.load(samples, here)
                    if g.has_position_attention != 0:
                        weights = centre_tap(g) * OUTS * row + starts[v * g.samples + b]
                        mixed = vector.mul(vector.load(positions, vector.spaced(weights, row, (0, 1, 2, 3))), mixed)
                    total = vector.where(centred, mixed, total)
                for first in range(start, end if read else start, CHAIN):
                    chain = vector.zeros(samples, (0, 1, 2, 3))
                    for k in range(first, min(first + CHAIN, end)):
                        i, j = k // g.kw, k % g.kw
                        h = centre + tap_row(i, g)
                        if h < 0 or h >= g.H:
                            continue
                        mask = masks[mask_at + j]
                        image = (n * g.H + h) * g.W + left + tap_column(j, g)
                        values = vector.load_where(channel_sum, image, 1, mask)
                        at = vector.spaced((k * vectors_of_row(samples, g) + v) * OUTS * size, size, (0, 1, 2, 3))
                        filters = vector.load(shared, at)
                        if g.has_position_attention != 0:
                            weights = vector.spaced(k * OUTS * row + starts[v * g.samples + b], row, (0, 1, 2, 3))
                            filters = vector.mul(vector.load(positions, weights), filters)
                        chain = vector.where(mask, vector.fma(filters, values, chain), chain)
                    total = vector.add(chain, total)
                vector.store(samples, here, total)


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
