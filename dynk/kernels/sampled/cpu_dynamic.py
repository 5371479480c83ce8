"""`dynamic_filter` on the CPU: one task makes a row of a result, or a band of rows where samples are summed first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from dynk.kernels.common import vector
from dynk.kernels.common.compile import Choice, borrowing, inlined, kernel
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.sampled.cpu_grad_summed import summed_grad_image_task, summed_grad_weights_task, summed_image_tasks
from dynk.kernels.sampled.cpu_mix import vectors_of_row
from dynk.kernels.sampled.cpu_rows import (
    CHAIN,
    add_products,
    choices,
    end_inside,
    first_inside,
    merge,
    output_row,
    reduce_sample,
    run,
    sample_geometry,
    share,
    skip,
    stage,
    store_reduced,
    tap_column,
    tap_row,
    to_sample,
)
from dynk.kernels.sampled.cpu_summed import Terms, summed_forward_task, summed_tasks
from dynk.kernels.sampled.geometry import MAX, SampleGeometry, sums_first


@kernel
def dynamic_filter_sampled_forward(x, kernel, out, geometry, reals):  # type: ignore[no-untyped-def]
    g = sample_geometry(geometry)
    choice = np.zeros(0, np.int16)
    for task in prange(g.N * g.H * g.O):
        _forward_task(np.int64(task), x, kernel, out, choice, geometry)


@kernel
def dynamic_filter_summed_forward(x, kernel, out, geometry, reals):  # type: ignore[no-untyped-def]
    g = sample_geometry(geometry)
    for task in prange(summed_tasks(g)):
        nothing = Terms(kernel, x, 0, 1, 1, 0.0)
        summed_forward_task(np.int64(task), _terms(x, kernel, geometry), nothing, out, geometry)


@Choice
def dynamic_filter_forward(g: SampleGeometry) -> Any:
    """LS-DFN Eqs. 2 and 5."""
    return dynamic_filter_summed_forward if sums_first(g) else dynamic_filter_sampled_forward


@kernel
def dynamic_filter_sampled_backward(  # type: ignore[no-untyped-def]
    grad_out, x, kernel, grad_x, grad_kernel, geometry, reals
):
    g = sample_geometry(geometry)
    choice = choices(g)
    if g.reduce == MAX:
        unwanted = grad_out[:0]
        for task in prange(g.N * g.H * g.O):
            _forward_task(np.int64(task), x, kernel, unwanted, choice, geometry)
    if grad_x.size > 0:
        for task in prange(g.N * g.H * g.C):
            _grad_x_task(np.int64(task), grad_out, kernel, choice, grad_x, geometry)
    if grad_kernel.size > 0:
        for task in prange(g.N * g.H * g.O):
            _grad_kernel_task(np.int64(task), grad_out, x, choice, grad_kernel, geometry)


@kernel
def dynamic_filter_summed_backward(  # type: ignore[no-untyped-def]
    grad_out, x, kernel, grad_x, grad_kernel, geometry, reals
):
    g, nothing = sample_geometry(geometry), accumulators(x, 0)
    if grad_x.size > 0:
        for task in prange(summed_image_tasks(_terms(x, kernel, geometry), g)):
            summed_grad_image_task(np.int64(task), _terms(x, kernel, geometry), grad_out, nothing, grad_x, geometry)
    if grad_kernel.size > 0:
        for task in prange(summed_tasks(g)):
            summed_grad_weights_task(np.int64(task), _terms(x, kernel, geometry), grad_out, grad_kernel, geometry)


@Choice
def dynamic_filter_backward(g: SampleGeometry) -> Any:
    """Gradients of `dynamic_filter_forward`; an output of size 0 is not wanted."""
    return dynamic_filter_summed_backward if sums_first(g) else dynamic_filter_sampled_backward


@inlined
def _terms(x, kernel, geometry):  # type: ignore[no-untyped-def]
    """Return the products of the kernel with what its taps see."""
    g = sample_geometry(geometry)
    return Terms(kernel, x, g.C, g.kh, g.kw, 0.0)


@inlined
def _forward_task(task, x, kernel, out, choice, geometry):  # type: ignore[no-untyped-def]
    g = sample_geometry(geometry)
    o, y, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    masks, vectors = np.empty(g.kw * 4, np.int64), vectors_of_row(x, g)
    sample = accumulators(x, (vectors + 1) * vector.lanes(x))  # the last pack may have a vector too many
    part, reduced = accumulators(x, g.W), accumulators(x, g.W)
    for a in range(g.samples):
        for b in range(g.samples):
            v = 0
            while v < vectors:
                if v + 3 <= vectors:
                    _sample(n, a, b, o, y, v, (0, 1, 2, 3), x, kernel, masks, sample, g)
                    v += 4
                else:
                    _sample(n, a, b, o, y, v, (0,), x, kernel, masks, sample, g)
                    v += 1
            reduce_sample(sample, n, a, b, o, y, part, reduced, out, choice, g)
    store_reduced(n, o, y, reduced, out, g)


@borrowing
def _sample(n, a, b, o, y, v, pack, x, kernel, masks, row, g):  # type: ignore[no-untyped-def]
    """Form a pack of vectors of a row of sample (a, b), from vector v on."""
    size = vector.lanes(row)
    starts = vector.spaced(v * size, size, pack)
    for k in range(len(pack) * g.kw):
        j, first = k // len(pack), (v + k % len(pack)) * size
        dx = first + to_sample(b, g) + tap_column(j, g)
        masks[k] = vector.between(0, g.W - first) & vector.between(-dx, g.W - dx)
    total = part = chain = vector.zeros(row, pack)
    terms = chains = 0
    for c in range(g.C):
        for i in range(g.kh):
            h = y + to_sample(a, g) + tap_row(i, g)
            if h < 0 or h >= g.H:
                continue
            filters, image = _filter_row(n, o, c, i, 0, y, g), ((n * g.C + c) * g.H + h) * g.W + to_sample(b, g)
            for j in range(g.kw):
                read = vector.pick(masks, vector.spaced(j * len(pack), 1, pack))
                factors = vector.load_where(kernel, vector.shift(starts, filters + j * g.H * g.W), 1, read)
                values = vector.load_where(x, vector.shift(starts, image + tap_column(j, g)), 1, read)
                chain = vector.fma(factors, values, chain)
            terms += g.kw
            if terms + g.kw > CHAIN:
                part, chain, terms, chains = vector.add(chain, part), vector.zeros(row, pack), 0, chains + 1
                if chains == CHAIN:
                    total, part, chains = vector.add(part, total), vector.zeros(row, pack), 0
    total = vector.add(vector.add(chain, part), total)
    vector.store(row, starts, total)


@inlined
def _grad_x_task(task, grad_out, kernel, choice, grad_x, geometry):  # type: ignore[no-untyped-def]
    """Gather a row of one channel from every row of outputs that read it."""
    g = sample_geometry(geometry)
    c, h, n = task % g.C, task // g.C % g.H, task // g.C // g.H
    row, total = accumulators(grad_x, g.W), np.zeros(g.W, np.float64)
    terms = 0
    for o in range(g.O):
        for a in range(g.samples):
            for i in range(g.kh):
                y = h - to_sample(a, g) - tap_row(i, g)
                if y < 0 or y >= g.H:
                    continue
                outputs = output_row(n, 0, 0, o, y, g)
                for b in range(g.samples):
                    grads = output_row(n, a, b, o, y, g)
                    for j in range(g.kw):
                        dx = to_sample(b, g) + tap_column(j, g)
                        end = end_inside(g.W, dx)
                        first = skip(choice, outputs, first_inside(dx), end, a, b, g)
                        filters = _filter_row(n, o, c, i, j, y, g)
                        terms = stage(terms, row, total)
                        while first < end:
                            stop = run(choice, outputs, first, end, a, b, g)
                            add_products(
                                row, first + dx, grad_out, grads + first, kernel, filters + first, stop - first
                            )
                            first = skip(choice, outputs, stop, end, a, b, g)
    merge(terms, row, total)
    _store_row(row, grad_x, ((n * g.C + c) * g.H + h) * g.W, g)


@inlined
def _grad_kernel_task(task, grad_out, x, choice, grad_kernel, geometry):  # type: ignore[no-untyped-def]
    """Sum over the samples for one row of pixels, every tap and input channel."""
    g = sample_geometry(geometry)
    o, y, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    row, total = accumulators(x, g.W), np.zeros(g.W, np.float64)
    outputs = output_row(n, 0, 0, o, y, g)
    for c in range(g.C):
        for i in range(g.kh):
            for j in range(g.kw):
                fill(row, 0)
                terms = 0
                for a in range(g.samples):
                    h = y + to_sample(a, g) + tap_row(i, g)
                    if h < 0 or h >= g.H:
                        continue
                    for b in range(g.samples):
                        dx = to_sample(b, g) + tap_column(j, g)
                        end = end_inside(g.W, dx)
                        first = skip(choice, outputs, first_inside(dx), end, a, b, g)
                        grads = output_row(n, a, b, o, y, g)
                        image = ((n * g.C + c) * g.H + h) * g.W + dx
                        terms = stage(terms, row, total)
                        while first < end:
                            stop = run(choice, outputs, first, end, a, b, g)
                            add_products(row, first, grad_out, grads + first, x, image + first, stop - first)
                            first = skip(choice, outputs, stop, end, a, b, g)
                merge(terms, row, total)
                _store_row(row, grad_kernel, _filter_row(n, o, c, i, j, y, g), g)


@borrowing
def _filter_row(n, o, c, i, j, y, g):  # type: ignore[no-untyped-def]
    """Return where the row y of one tap of the kernel starts."""
    return (((((n * g.O + o) * g.C + c) * g.kh + i) * g.kw + j) * g.H + y) * g.W


@borrowing
def _store_row(row, array, start, g):  # type: ignore[no-untyped-def]
    gain = row.dtype.type(share(g))
    for k in range(g.W):
        store(array, start + k, load(row, k) * gain)
