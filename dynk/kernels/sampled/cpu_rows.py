"""What the CPU kernels of this family are made of: where samples lie, rows of the image, sums and reductions.

A row holds W numbers of the accumulation type. Products are added to it term by term, element by element, which LLVM
vectorises; a sum of more than CHAIN terms moves its chains to a row of float64.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.cpu_geometry import named
from dynk.kernels.common.numeric import load, store
from dynk.kernels.sampled.geometry import MAX, MEAN, NONE, SampleGeometry

CHAIN = 64

sample_geometry = named(SampleGeometry)


# ---- where samples and taps lie --------------------------------------------------------------------------------------


@borrowing
def to_sample(k, g):  # type: ignore[no-untyped-def]
    """Return how far sample k of a row or column of samples lies from its pixel."""
    return (k - (g.samples - 1) // 2) * g.sample_stride


@borrowing
def tap_row(i, g):  # type: ignore[no-untyped-def]
    """Return how far the taps of kernel row i lie below the centre of the sample."""
    return (i - (g.kh - 1) // 2) * g.dilation_h


@borrowing
def tap_column(j, g):  # type: ignore[no-untyped-def]
    """Return how far the taps of kernel column j lie to the right of the centre of the sample."""
    return (j - (g.kw - 1) // 2) * g.dilation_w


@borrowing
def first_inside(offset):  # type: ignore[no-untyped-def]
    """Return the first position from which `offset` is inside the image."""
    return max(0, -offset)


@borrowing
def end_inside(extent, offset):  # type: ignore[no-untyped-def]
    """Return the end of the positions from which `offset` is inside the image; not after the first if there is none."""
    return min(extent, extent - offset)


@borrowing
def output_row(n, a, b, o, y, g):  # type: ignore[no-untyped-def]
    """Return where the row y of an output, or of a sample that is not reduced, starts."""
    image = ((n * g.samples + a) * g.samples + b) if g.reduce == NONE else n
    return ((image * g.O + o) * g.H + y) * g.W


# ---- rows ------------------------------------------------------------------------------------------------------------


@borrowing
def add_products(row, r, a, a0, b, b0, count):  # type: ignore[no-untyped-def]
    """Add a * b to `count` elements of a row."""
    for k in range(count):
        store(row, r + k, load(row, r + k) + load(a, a0 + k) * load(b, b0 + k))


@borrowing
def stage(terms, row, total):  # type: ignore[no-untyped-def]
    """Count one more term of a chain; move a full chain from `row` to `total` first."""
    if terms > 0 and terms % CHAIN == 0:
        for k in range(row.size):
            done = load(total, k) if terms > CHAIN else 0.0
            store(total, k, done + load(row, k))
            store(row, k, row.dtype.type(0))
    return terms + 1


@borrowing
def merge(terms, row, total):  # type: ignore[no-untyped-def]
    """Add the chains that `stage` moved away back to `row`."""
    if terms > CHAIN:
        for k in range(row.size):
            store(row, k, row.dtype.type(load(total, k) + load(row, k)))


# ---- reductions over samples -----------------------------------------------------------------------------------------


@borrowing
def is_larger(value, best):  # type: ignore[no-untyped-def]
    """Return whether a later sample replaces the best so far: NaN wins, and the first of equals."""
    return value > best or (value != value and best == best)


@borrowing
def reduce_sample(sample, n, a, b, o, y, part, total, out, choice, g):  # type: ignore[no-untyped-def]
    """Take one more sample of a row of outputs, in order: a row of samples is summed in `part` first.

    For "max" it is remembered in `choice`, unless that is empty, which sample is the largest so far.
    """
    if g.reduce == NONE:
        start = output_row(n, a, b, o, y, g)
        for k in range(g.W):
            store(out, start + k, load(sample, k))
    elif g.reduce == MAX:
        for k in range(g.W):
            if (a == 0 and b == 0) or is_larger(load(sample, k), load(total, k)):
                store(total, k, load(sample, k))
                if choice.size > 0:
                    choice[output_row(n, 0, 0, o, y, g) + k] = a * g.samples + b
    else:
        for k in range(g.W):
            done = load(part, k) if b > 0 else part.dtype.type(0)
            store(part, k, done + load(sample, k))
        if b == g.samples - 1:
            for k in range(g.W):
                done = load(total, k) if a > 0 else total.dtype.type(0)
                store(total, k, done + load(part, k))


@borrowing
def store_reduced(n, o, y, total, out, g):  # type: ignore[no-untyped-def]
    """Write a row of outputs once all samples are taken; an output of size 0 is not wanted."""
    if g.reduce != NONE and out.size > 0:
        start = output_row(n, 0, 0, o, y, g)
        gain = total.dtype.type(share(g))
        for k in range(g.W):
            store(out, start + k, load(total, k) * gain)


@borrowing
def share(g):  # type: ignore[no-untyped-def]
    """Return what a sample's value counts in its output."""
    return 1.0 / (g.samples * g.samples) if g.reduce == MEAN else 1.0


@inlined
def choices(g):  # type: ignore[no-untyped-def]
    """Return memory for the sample that "max" chooses for each output; none for the other reductions."""
    return np.zeros(g.N * g.O * g.H * g.W if g.reduce == MAX else 0, np.int16)


@borrowing
def skip(choice, start, x, end, a, b, g):  # type: ignore[no-untyped-def]
    """Return the first pixel from x on, of a row of outputs, whose output sample (a, b) takes part in."""
    if g.reduce == MAX:
        while x < end and choice[start + x] != a * g.samples + b:
            x += 1
    return x


@borrowing
def run(choice, start, x, end, a, b, g):  # type: ignore[no-untyped-def]
    """Return the end of the pixels from x on, of a row of outputs, whose output sample (a, b) takes part in."""
    if g.reduce != MAX:
        return end
    while x < end and choice[start + x] == a * g.samples + b:
        x += 1
    return x
