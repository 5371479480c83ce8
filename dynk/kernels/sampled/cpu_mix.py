"""Sums over input channels at the centres of samples, where nearly all of LS-DFN's arithmetic is.

A task takes rows of pixels that are a sample's stride apart: a row of the image that one has samples in, the next has
too. It copies these rows of the image, each once, and for a row of pixels what `across` holds for OUTS outputs, CHAIN
channels at a time: copies lie together, where the originals are whole planes apart and push each other out of the first
cache. Sums of OUTS outputs and of up to five samples side by side are formed at once: each number loaded serves several
of them. What is loaded of an image's row beyond its ends is never used: sums are formed of whatever stands there and
left out afterwards.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.sampled.cpu_rows import CHAIN, tap_column, to_sample

OUTS = 4  # outputs that are formed at once


@borrowing
def vectors_of_row(like, g):  # type: ignore[no-untyped-def]
    """Return the number of vectors that hold a row."""
    return (g.W + vector.lanes(like) - 1) // vector.lanes(like)


@borrowing
def padded_row(like, g):  # type: ignore[no-untyped-def]
    """Return the length of a copied row: a vector more on both sides, and an odd number of them against conflicts."""
    return (vectors_of_row(like, g) + 2 | 1) * vector.lanes(like)


@inlined
def starts_of_samples(like, g):  # type: ignore[no-untyped-def]
    """Return for each vector of a row and column of samples where a copied row is read; at its end if far outside."""
    size, vectors = vector.lanes(like), vectors_of_row(like, g)
    starts = np.empty(vectors * g.samples, np.int64)
    for v in range(vectors):
        for b in range(g.samples):
            starts[v * g.samples + b] = size + min(max(v * size + to_sample(b, g), -size), vectors * size)
    return starts


@inlined
def masks_of_samples(like, g):  # type: ignore[no-untyped-def]
    """Return for each vector of a row, column of samples and column of taps which taps are read.

    After the columns of taps, which centres of samples are in the image.
    """
    size, vectors = vector.lanes(like), vectors_of_row(like, g)
    masks = np.empty(vectors * g.samples * (g.kw + 1), np.int64)
    for v in range(vectors):
        for b in range(g.samples):
            at, left = (v * g.samples + b) * (g.kw + 1), v * size + to_sample(b, g)
            pixels = vector.between(0, g.W - v * size)
            centre = pixels & vector.between(-left, g.W - left)
            masks[at + g.kw] = centre
            readers = pixels if g.has_position_attention == 0 or g.position_residual != 0 else centre
            for j in range(g.kw):
                tap = left + tap_column(j, g)
                masks[at + j] = readers & vector.between(-tap, g.W - tap)
    return masks


@borrowing
def rows_size(like, count, g):  # type: ignore[no-untyped-def]
    """Return the size of copies of `count` rows of every channel."""
    return count * g.has_across * g.C * padded_row(like, g)


@borrowing
def copy_rows(n, y, i, first, x, rows, g):  # type: ignore[no-untyped-def]
    """Copy the rows of every channel that row y has samples in, from row `first` of its samples on.

    Row a of the samples becomes copy i + a, counted round `rows`.
    """
    size, row = vector.lanes(rows), padded_row(rows, g)
    slots = rows.size // (g.C * row)
    for a in range(first, g.samples if slots > 0 else 0):
        h, slot = y + to_sample(a, g), (i + a) % slots
        for c in range(g.C if 0 <= h < g.H else 0):
            to, start = (slot * g.C + c) * row + size, ((n * g.C + c) * g.H + h) * g.W
            for k in range(0, g.W, size):
                values = vector.load_where(x, start + k, 1, vector.between(0, g.W - k))
                vector.store(rows, to + k, values)


@borrowing
def mixed_size(like, g):  # type: ignore[no-untyped-def]
    """Return the size of the sums of OUTS outputs: for each vector, row and column of samples, and output."""
    return vectors_of_row(like, g) * g.samples * g.samples * OUTS * vector.lanes(like)


@borrowing
def filters_size(like, g):  # type: ignore[no-untyped-def]
    """Return the size of what `mix` copies of `across`."""
    return vectors_of_row(like, g) * min(CHAIN, g.C) * OUTS * vector.lanes(like)


@inlined
def mix(n, outs, y, i, first_row, end_row, across, rows, starts, filters, mixed, g):  # type: ignore[no-untyped-def]
    """Sum across * x over the channels for every sample of a row of OUTS outputs, wherever its centre is.

    Row a of the samples reads copy i + a, counted round `rows`. Samples centred in rows of the image before `first_row`
    and from `end_row` on are left out.
    """
    size, vectors, row = vector.lanes(rows), vectors_of_row(rows, g), padded_row(rows, g)
    plane, four = g.H * g.W, vector.pick(outs, (0, 1, 2, 3))
    slots = rows.size // (g.C * row)
    merged = accumulators(mixed, mixed.size if g.C > CHAIN * CHAIN else 0)
    for c in range(0, g.C * g.has_across, CHAIN):
        channels, is_first = min(CHAIN, g.C - c), c % (CHAIN * CHAIN) == 0
        if is_first and c > 0:
            add_row(mixed, 0, merged, 0, merged.size)
        for k in range(channels):
            start = vector.spaced((n * g.O * g.C + c + k) * plane + y * g.W, g.C * plane, four)
            for v in range(vectors):
                inside = vector.between(0, g.W - v * size)
                values = vector.load_where(across, vector.shift(start, v * size), 1, inside)
                vector.store(filters, vector.spaced((v * channels + k) * OUTS * size, size, (0, 1, 2, 3)), values)
        for v in range(vectors):
            weights = v * channels * OUTS * size
            for a in range(g.samples):
                h = y + to_sample(a, g)
                if h < first_row or h >= end_row:
                    continue
                at, first = ((v * g.samples + a) * g.samples) * OUTS * size, ((i + a) % slots * g.C + c) * row
                b = 0
                while b < g.samples:
                    start, to = v * g.samples + b, at + b * OUTS * size
                    if b + 5 <= g.samples:
                        _mix_samples(
                            is_first, channels, filters, weights, rows, first, row, starts, start, mixed, to,
                            (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4),
                            (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                            (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19),
                        )  # fmt: skip
                        b += 5
                    elif b + 3 <= g.samples:
                        _mix_samples(
                            is_first, channels, filters, weights, rows, first, row, starts, start, mixed, to,
                            (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2), (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                            (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
                        )  # fmt: skip
                        b += 3
                    else:
                        _mix_samples(
                            is_first, channels, filters, weights, rows, first, row, starts, start, mixed, to,
                            (0, 0, 0, 0), (0, 1, 2, 3), (0, 1, 2, 3),
                        )  # fmt: skip
                        b += 1
    add_row(merged, 0, mixed, 0, merged.size)


@borrowing
def add_row(part, first, sums, to, row):  # type: ignore[no-untyped-def]
    """Add a row to another."""
    size = vector.lanes(part)
    for at in range(0, row, size):
        vector.store(sums, to + at, vector.add(vector.load(sums, to + at), vector.load(part, first + at)))


@borrowing
def _mix_samples(  # type: ignore[no-untyped-def]
    is_first, channels, filters, weights, rows, first, row, starts, start, mixed, to, of_samples, of_outs, numbers
):
    """Sum over a chain of channels for some samples and outputs at once: `of_samples` and `of_outs` of each sum."""
    size = vector.lanes(rows)
    at = vector.shift(vector.pick(starts, vector.spaced(start, 1, of_samples)), first)
    u = vector.spaced(weights, size, of_outs)
    total = vector.zeros(rows, numbers)
    for c in range(channels):
        values = vector.load(rows, vector.shift(at, c * row))
        total = vector.fma(vector.load(filters, vector.shift(u, c * OUTS * size)), values, total)
    here = vector.spaced(to, size, numbers)
    if not is_first:
        total = vector.add(vector.load(mixed, here), total)
    vector.store(mixed, here, total)
