"""One row of one sample of LS-DFN on the CPU.

All of the kernel but `across` is the same for all input channels and is applied to their sum, which is made first. The
attention of the positions comes from the pixel at the centre of a sample: taps of one row of outputs are split where
these centres leave the image.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common.compile import inlined
from dynk.kernels.common.numeric import fill, load, store
from dynk.kernels.sampled.cpu_rows import (
    add_attended,
    add_four_products,
    add_products,
    end_inside,
    first_inside,
    merge,
    sample_geometry,
    stage,
    tap_column,
    tap_row,
    to_sample,
    weigh,
)


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


@inlined
def sample_row(  # type: ignore[no-untyped-def]
    n, a, b, o, y, x, across, shared, position_attention, channel_sum, row, total, g
):
    """Form one row of sample (a, b) before its attention."""
    fill(row, 0)
    centre, dx = y + to_sample(a, g), to_sample(b, g)
    first, end = centres(centre, dx, g)
    terms = 0
    if g.has_across != 0 and first < end:
        mix(n, o, y, centre, dx, first, end, x, across, row, total, g)
        if g.has_position_attention != 0:
            attention = within_row(n, o, (g.kh - 1) // 2, (g.kw - 1) // 2, centre, g) + dx
            weigh(row, first, position_attention, attention + first, g.position_residual, end - first)
        terms = 1
    for i in range(g.kh):
        h = centre + tap_row(i, g)
        if h < 0 or h >= g.H:
            continue
        for j in range(g.kw):
            if is_shared(i, j, g):
                terms = stage(terms, row, total)
                image = (n * g.H + h) * g.W + dx + tap_column(j, g)
                add_tap(
                    row, 0, i, j, shared, (i * g.kw + j) * g.W, channel_sum, image, position_attention, n, o, centre,
                    dx, 0, g.W, g,
                )  # fmt: skip
    merge(terms, row, total)


@inlined
def mix(n, o, y, centre, dx, first, end, x, across, row, total, g):  # type: ignore[no-untyped-def]
    """Sum across * x over the channels, at the centre of a sample, for the pixels from `first` to `end`."""
    terms = 0
    fours, plane = g.C // 4 * 4, g.H * g.W
    for c in range(0, fours, 4):
        terms = stage(terms, row, total) + 3
        image = ((n * g.C + c) * g.H + centre) * g.W + dx + first
        add_four_products(row, first, across, across_row(n, o, c, y, g) + first, plane, x, image, plane, end - first)
    for c in range(fours, g.C):
        terms = stage(terms, row, total)
        image = ((n * g.C + c) * g.H + centre) * g.W + dx + first
        add_products(row, first, across, across_row(n, o, c, y, g) + first, x, image, end - first)
    merge(terms, row, total)


@inlined
def add_tap(  # type: ignore[no-untyped-def]
    row, r, i, j, a, a0, b, b0, position_attention, n, o, centre, dx, first, stop, g
):
    """Add a * attention * b at r + k, for those of the pixels k from `first` to `stop` whose tap (i, j) is read.

    `centre` is the row of the samples' centres, dx to the right of the pixels.
    """
    to_tap = dx + tap_column(j, g)
    lo, hi = max(first, first_inside(to_tap)), min(stop, end_inside(g.W, to_tap))
    if g.has_position_attention == 0:
        add_products(row, r + lo, a, a0 + lo, b, b0 + lo, hi - lo)
        return
    start, end = centres(centre, dx, g)
    mid_lo = min(max(lo, start), hi)
    mid_hi = max(mid_lo, min(hi, end))
    if g.position_residual != 0:
        add_products(row, r + lo, a, a0 + lo, b, b0 + lo, mid_lo - lo)
        add_products(row, r + mid_hi, a, a0 + mid_hi, b, b0 + mid_hi, hi - mid_hi)
    attention = within_row(n, o, i, j, centre, g) + dx
    add_attended(
        row, r + mid_lo, a, a0 + mid_lo, position_attention, attention + mid_lo, g.position_residual, b, b0 + mid_lo,
        mid_hi - mid_lo,
    )  # fmt: skip


@inlined
def load_shared(n, o, y, i0, i1, within, shared, g):  # type: ignore[no-untyped-def]
    """Load a row of what kernel rows i0 to i1 hold for all input channels alike: `within`, and 1/C at the centre."""
    zero = shared.dtype.type(0)
    for i in range(i0, i1):
        for j in range(g.kw):
            residual = zero
            if g.kernel_residual != 0 and is_centre(i, j, g):
                residual = shared.dtype.type(1.0 / g.C)
            at, start = (i * g.kw + j) * g.W, within_row(n, o, i, j, y, g)
            for k in range(g.W):
                own = load(within, start + k) if g.has_within != 0 else zero
                store(shared, at + k, own + residual)


@inlined
def centres(row, dx, g):  # type: ignore[no-untyped-def]
    """Return the first and the end of the pixels whose samples, in `row`, dx to the right, are centred in the image."""
    if row < 0 or row >= g.H:
        return 0, 0
    return first_inside(dx), end_inside(g.W, dx)


@inlined
def is_shared(i, j, g):  # type: ignore[no-untyped-def]
    """Return whether a tap sees the channel sum."""
    return g.has_within != 0 or (g.kernel_residual != 0 and is_centre(i, j, g))


@inlined
def is_shared_row(i, g):  # type: ignore[no-untyped-def]
    return is_shared(i, (g.kw - 1) // 2, g)


@inlined
def is_centre(i, j, g):  # type: ignore[no-untyped-def]
    return i == (g.kh - 1) // 2 and j == (g.kw - 1) // 2


@inlined
def across_row(n, o, c, y, g):  # type: ignore[no-untyped-def]
    return (((n * g.O + o) * g.C + c) * g.H + y) * g.W


@inlined
def within_row(n, o, i, j, y, g):  # type: ignore[no-untyped-def]
    """Return where the row y of a tap starts in `within` and the attention of positions."""
    return ((((n * g.O + o) * g.kh + i) * g.kw + j) * g.H + y) * g.W


@inlined
def sample_attention_row(n, a, b, o, y, g):  # type: ignore[no-untyped-def]
    """Return where the row y of a sample starts in the attention of samples."""
    return ((((n * g.O + o) * g.samples + a) * g.samples + b) * g.H + y) * g.W
