"""The gradients of LS-DFN on the CPU: one task makes one row of a result, gathered from all that adds to it."""

from __future__ import annotations

import numpy as np

from dynk.kernels.common.compile import inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.sampled.cpu_old import (
    add_tap,
    is_shared,
    is_shared_row,
    load_shared,
    mix,
    sample_attention_row,
    sample_row,
    within_row,
)
from dynk.kernels.sampled.cpu_rows import (
    add_products,
    end_inside,
    first_inside,
    merge,
    output_row,
    run,
    sample_geometry,
    share,
    skip,
    stage,
    tap_column,
    tap_row,
    to_sample,
    weigh,
)

# ---- the image -------------------------------------------------------------------------------------------------------


@inlined
def grad_sum_task(  # type: ignore[no-untyped-def]
    task, grad_out, within, sample_attention, position_attention, choice, grad_sum, geometry
):
    """Gather a row of the gradient of the channel sum from every row of outputs that read it."""
    g = sample_geometry(geometry)
    h, n = task % g.H, task // g.H
    row, total = accumulators(grad_sum, g.W), np.zeros(g.W, np.float64)
    grad, shared = accumulators(grad_sum, g.W), accumulators(grad_sum, g.kh * g.kw * g.W)
    terms = 0
    for o in range(g.O):
        for a in range(g.samples):
            for i in range(g.kh):
                y = h - to_sample(a, g) - tap_row(i, g)
                if y < 0 or y >= g.H or not is_shared_row(i, g):
                    continue
                load_shared(n, o, y, i, i + 1, within, shared, g)
                outputs = output_row(n, 0, 0, o, y, g)
                for b in range(g.samples):
                    _load_grad(n, a, b, o, y, grad_out, sample_attention, grad, g)
                    dx = to_sample(b, g)
                    for j in range(g.kw):
                        if not is_shared(i, j, g):
                            continue
                        terms = stage(terms, row, total)
                        first = skip(choice, outputs, 0, g.W, a, b, g)
                        while first < g.W:
                            stop = run(choice, outputs, first, g.W, a, b, g)
                            add_tap(
                                row, dx + tap_column(j, g), i, j, shared, (i * g.kw + j) * g.W, grad, 0,
                                position_attention, n, o, y + to_sample(a, g), dx, first, stop, g,
                            )  # fmt: skip
                            first = skip(choice, outputs, stop, g.W, a, b, g)
    merge(terms, row, total)
    for k in range(g.W):
        store(grad_sum, task * g.W + k, load(row, k))


# ---- the filters -----------------------------------------------------------------------------------------------------


@inlined
def grad_within_task(  # type: ignore[no-untyped-def]
    task, grad_out, sample_attention, position_attention, channel_sum, choice, grad_within, geometry
):
    """Sum over the samples for one row of pixels and every tap."""
    g = sample_geometry(geometry)
    o, y, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    size = g.kh * g.kw * g.W
    rows, totals, grad = accumulators(grad_out, size), np.zeros(size, np.float64), accumulators(grad_out, g.W)
    outputs = output_row(n, 0, 0, o, y, g)
    terms = 0
    for a in range(g.samples):
        for b in range(g.samples):
            terms = stage(terms, rows, totals)
            _load_grad(n, a, b, o, y, grad_out, sample_attention, grad, g)
            centre, dx = y + to_sample(a, g), to_sample(b, g)
            first = skip(choice, outputs, 0, g.W, a, b, g)
            while first < g.W:
                stop = run(choice, outputs, first, g.W, a, b, g)
                for i in range(g.kh):
                    h = centre + tap_row(i, g)
                    if h < 0 or h >= g.H:
                        continue
                    for j in range(g.kw):
                        image = (n * g.H + h) * g.W + dx + tap_column(j, g)
                        add_tap(
                            rows, (i * g.kw + j) * g.W, i, j, grad, 0, channel_sum, image, position_attention, n, o,
                            centre, dx, first, stop, g,
                        )  # fmt: skip
                first = skip(choice, outputs, stop, g.W, a, b, g)
    merge(terms, rows, totals)
    _store_taps(n, o, y, rows, grad_within, g)


# ---- the attentions --------------------------------------------------------------------------------------------------


@inlined
def grad_sample_attention_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, across, within, position_attention, channel_sum, choice, grad_sample_attention, geometry
):
    """Form the samples of one row of pixels again; 0 where "max" chose another."""
    g = sample_geometry(geometry)
    o, y, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    sample, total = accumulators(x, g.W), np.zeros(g.W, np.float64)
    shared = accumulators(x, g.kh * g.kw * g.W)
    load_shared(n, o, y, 0, g.kh, within, shared, g)
    outputs = output_row(n, 0, 0, o, y, g)
    gain = sample.dtype.type(share(g))
    for a in range(g.samples):
        for b in range(g.samples):
            sample_row(n, a, b, o, y, x, across, shared, position_attention, channel_sum, sample, total, g)
            grads, start = output_row(n, a, b, o, y, g), sample_attention_row(n, a, b, o, y, g)
            for k in range(g.W):
                grad = load(grad_out, grads + k) * gain * load(sample, k)
                taken = skip(choice, outputs, k, k + 1, a, b, g) == k
                store(grad_sample_attention, start + k, grad if taken else sample.dtype.type(0))


@inlined
def grad_position_attention_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, across, within, sample_attention, channel_sum, choice, grad_position_attention, geometry
):
    """Gather a row of pixels, for every tap, from every row of outputs with samples centred on it."""
    g = sample_geometry(geometry)
    o, centre, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    size = g.kh * g.kw * g.W
    rows, totals, shared = accumulators(x, size), np.zeros(size, np.float64), accumulators(x, size)
    grad, mixed, total = accumulators(x, g.W), accumulators(x, g.W), np.zeros(g.W, np.float64)
    terms = 0
    for a in range(g.samples):
        y = centre - to_sample(a, g)
        if y < 0 or y >= g.H:
            continue
        load_shared(n, o, y, 0, g.kh, within, shared, g)
        outputs = output_row(n, 0, 0, o, y, g)
        for b in range(g.samples):
            dx = to_sample(b, g)
            end = end_inside(g.W, dx)
            first = skip(choice, outputs, first_inside(dx), end, a, b, g)
            if first >= end:
                continue
            _load_grad(n, a, b, o, y, grad_out, sample_attention, grad, g)
            if g.has_across != 0:
                fill(mixed, 0)
                mix(n, o, y, centre, dx, first, end, x, across, mixed, total, g)
            terms = stage(stage(terms, rows, totals), rows, totals)  # up to two to each tap
            while first < end:
                stop = run(choice, outputs, first, end, a, b, g)
                if g.has_across != 0:
                    middle = ((g.kh - 1) // 2 * g.kw + (g.kw - 1) // 2) * g.W
                    add_products(rows, middle + dx + first, grad, first, mixed, first, stop - first)
                _add_shared_taps(n, centre, dx, first, stop, grad, shared, channel_sum, rows, g)
                first = skip(choice, outputs, stop, end, a, b, g)
    merge(terms, rows, totals)
    _store_taps(n, o, centre, rows, grad_position_attention, g)


@inlined
def _add_shared_taps(n, centre, dx, first, stop, grad, shared, channel_sum, rows, g):  # type: ignore[no-untyped-def]
    """Add gradient * filter * image to each tap's row, at the samples' centres of the pixels from `first` to `stop`."""
    for i in range(g.kh):
        h = centre + tap_row(i, g)
        if h < 0 or h >= g.H:
            continue
        for j in range(g.kw):
            if is_shared(i, j, g):
                to_tap = dx + tap_column(j, g)
                lo, hi = max(first, first_inside(to_tap)), min(stop, end_inside(g.W, to_tap))
                at, image = (i * g.kw + j) * g.W, (n * g.H + h) * g.W + to_tap
                for k in range(lo, hi):
                    term = load(grad, k) * load(shared, at + k) * load(channel_sum, image + k)
                    store(rows, at + dx + k, load(rows, at + dx + k) + term)


# ---- helpers ---------------------------------------------------------------------------------------------------------


@inlined
def _load_grad(n, a, b, o, y, grad_out, sample_attention, grad, g):  # type: ignore[no-untyped-def]
    """Load a row of the gradient with respect to sample (a, b) before its attention."""
    start, gain = output_row(n, a, b, o, y, g), grad.dtype.type(share(g))
    for k in range(g.W):
        store(grad, k, load(grad_out, start + k) * gain)
    if g.has_sample_attention != 0:
        weigh(grad, 0, sample_attention, sample_attention_row(n, a, b, o, y, g), g.sample_residual, g.W)


@inlined
def _store_taps(n, o, y, rows, array, g):  # type: ignore[no-untyped-def]
    """Write a row of every tap."""
    for tap in range(g.kh * g.kw):
        start = within_row(n, o, tap // g.kw, tap % g.kw, y, g)
        for k in range(g.W):
            store(array, start + k, load(rows, tap * g.W + k))
