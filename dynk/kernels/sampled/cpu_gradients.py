"""The gradients of LS-DFN on the CPU: one task makes one row of a result, gathered from all that adds to it."""

from __future__ import annotations

import numpy as np

from dynk.kernels.common.compile import inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.sampled.cpu_old import (
    across_row,
    add_tap,
    centres,
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

# Channels of a task of grad_x: they share the weighted gradients of its samples.
CHANNELS = 16


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


@inlined
def grad_x_task(  # type: ignore[no-untyped-def]
    task, grad_out, across, sample_attention, position_attention, choice, grad_sum, grad_x, geometry
):
    """Gather a row of some channels from every row of outputs centred on it, and add that of the channel sum."""
    g = sample_geometry(geometry)
    blocks = channel_blocks(g)
    c0, h, n = task % blocks * CHANNELS, task // blocks % g.H, task // blocks // g.H
    channels = min(CHANNELS, g.C - c0)
    sums = np.zeros(channels * g.W, np.float64)
    row = accumulators(grad_x, g.W)
    grads = accumulators(grad_x, g.samples * g.W)
    if g.has_across != 0:
        for o in range(g.O):
            for a in range(g.samples):
                y = h - to_sample(a, g)
                if y < 0 or y >= g.H:
                    continue
                _load_weighted(n, a, o, y, grad_out, sample_attention, position_attention, grads, 0, g)
                outputs = output_row(n, 0, 0, o, y, g)
                for c in range(channels):
                    _gather(n, a, o, y, c0 + c, outputs, across, choice, grads, row, g)
                    for k in range(g.W):
                        store(sums, c * g.W + k, load(sums, c * g.W + k) + load(row, k))
    for c in range(channels):
        start = ((n * g.C + c0 + c) * g.H + h) * g.W
        for k in range(g.W):
            whole = load(sums, c * g.W + k) + load(grad_sum, (n * g.H + h) * g.W + k)
            store(grad_x, start + k, row.dtype.type(whole))


@inlined
def _gather(n, a, o, y, c, outputs, across, choice, grads, row, g):  # type: ignore[no-untyped-def]
    """Sum, in `row`, what the samples of row a give to the row of the image at their centre."""
    fill(row, 0)
    filters = across_row(n, o, c, y, g)
    for b in range(g.samples):
        dx = to_sample(b, g)
        end = end_inside(g.W, dx)
        first = skip(choice, outputs, first_inside(dx), end, a, b, g)
        while first < end:
            stop = run(choice, outputs, first, end, a, b, g)
            add_products(row, first + dx, grads, b * g.W + first, across, filters + first, stop - first)
            first = skip(choice, outputs, stop, end, a, b, g)


# ---- the filters -----------------------------------------------------------------------------------------------------


@inlined
def grad_across_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, sample_attention, position_attention, choice, grad_across, geometry
):
    """Sum over the samples for one row of pixels and every input channel."""
    g = sample_geometry(geometry)
    o, y, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    row, total = accumulators(x, g.W), np.zeros(g.W, np.float64)
    grads = accumulators(x, g.samples * g.samples * g.W)
    outputs = output_row(n, 0, 0, o, y, g)
    for a in range(g.samples):
        at = a * g.samples * g.W
        _load_weighted(n, a, o, y, grad_out, sample_attention, position_attention, grads, at, g)
    for c in range(g.C):
        fill(row, 0)
        terms = 0
        for a in range(g.samples):
            h = y + to_sample(a, g)
            if h < 0 or h >= g.H:
                continue
            for b in range(g.samples):
                dx = to_sample(b, g)
                end = end_inside(g.W, dx)
                first = skip(choice, outputs, first_inside(dx), end, a, b, g)
                at, image = (a * g.samples + b) * g.W, ((n * g.C + c) * g.H + h) * g.W + dx
                terms = stage(terms, row, total)
                while first < end:
                    stop = run(choice, outputs, first, end, a, b, g)
                    add_products(row, first, grads, at + first, x, image + first, stop - first)
                    first = skip(choice, outputs, stop, end, a, b, g)
        merge(terms, row, total)
        start = across_row(n, o, c, y, g)
        for k in range(g.W):
            store(grad_across, start + k, load(row, k))


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
def channel_blocks(g):  # type: ignore[no-untyped-def]
    return (g.C + CHANNELS - 1) // CHANNELS


@inlined
def _load_grad(n, a, b, o, y, grad_out, sample_attention, grad, g):  # type: ignore[no-untyped-def]
    """Load a row of the gradient with respect to sample (a, b) before its attention."""
    start, gain = output_row(n, a, b, o, y, g), grad.dtype.type(share(g))
    for k in range(g.W):
        store(grad, k, load(grad_out, start + k) * gain)
    if g.has_sample_attention != 0:
        weigh(grad, 0, sample_attention, sample_attention_row(n, a, b, o, y, g), g.sample_residual, g.W)


@inlined
def _load_weighted(  # type: ignore[no-untyped-def]
    n, a, o, y, grad_out, sample_attention, position_attention, grads, at, g
):
    """Load rows of the gradients with respect to the centre taps of sample row a, from grads[at] on."""
    centre, gain = y + to_sample(a, g), grads.dtype.type(share(g))
    for b in range(g.samples):
        start, row, dx = output_row(n, a, b, o, y, g), at + b * g.W, to_sample(b, g)
        for k in range(g.W):
            store(grads, row + k, load(grad_out, start + k) * gain)
        if g.has_sample_attention != 0:
            weigh(grads, row, sample_attention, sample_attention_row(n, a, b, o, y, g), g.sample_residual, g.W)
        if g.has_position_attention != 0:
            first, end = centres(centre, dx, g)
            attention = within_row(n, o, (g.kh - 1) // 2, (g.kw - 1) // 2, centre, g) + dx
            weigh(grads, row + first, position_attention, attention + first, g.position_residual, end - first)


@inlined
def _store_taps(n, o, y, rows, array, g):  # type: ignore[no-untyped-def]
    """Write a row of every tap."""
    for tap in range(g.kh * g.kw):
        start = within_row(n, o, tap // g.kw, tap % g.kw, y, g)
        for k in range(g.W):
            store(array, start + k, load(rows, tap * g.W + k))
