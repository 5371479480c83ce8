"""LS-DFN on the CPU: one task makes some rows of a result, or a band of them where samples are summed first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from dynk.kernels.common.compile import Choice, borrowing, inlined, kernel
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.common.products import ceil_div
from dynk.kernels.sampled.cpu_attention import attention_tasks, bands, grad_attention_task, grad_sum_task
from dynk.kernels.sampled.cpu_dynamic import dynamic_filter_backward, dynamic_filter_forward
from dynk.kernels.sampled.cpu_grad_summed import summed_grad_image_task, summed_grad_weights_task, summed_image_tasks
from dynk.kernels.sampled.cpu_mix import (
    OUTS,
    copy_rows,
    filters_size,
    masks_of_samples,
    mix,
    mixed_size,
    rows_size,
    starts_of_samples,
)
from dynk.kernels.sampled.cpu_products import blocks_of_image, grad_filters_task, grad_x_task
from dynk.kernels.sampled.cpu_rows import choices, sample_geometry
from dynk.kernels.sampled.cpu_samples import (
    attend_samples,
    channel_sum_task,
    choose_samples,
    constants,
    form_samples,
    load_shared,
    outputs_from,
    reduce_samples,
    seen_size,
    shared_size,
)
from dynk.kernels.sampled.cpu_summed import Terms, summed_forward_task, summed_tasks
from dynk.kernels.sampled.geometry import MAX, SampleGeometry, sums_first

RUN, TASKS = 4, 16  # rows that a task makes, at most, and tasks that are worth while

__all__ = ["dynamic_filter_backward", "dynamic_filter_forward", "ls_dfn_backward", "ls_dfn_forward"]


@kernel
def ls_dfn_sampled_forward(  # type: ignore[no-untyped-def]
    x, across, within, sample_attention, position_attention, out, geometry, reals
):
    g = sample_geometry(geometry)
    channel_sum = accumulators(x, g.N * g.H * g.W)
    for task in prange(g.N * g.H):
        channel_sum_task(np.int64(task), x, channel_sum, geometry)
    choice = np.zeros(0, np.int16)
    for task in prange(forward_tasks(g)):
        _forward_task(
            np.int64(task), x, across, within, sample_attention, position_attention, channel_sum, out, choice, geometry
        )


@kernel
def ls_dfn_summed_forward(  # type: ignore[no-untyped-def]
    x, across, within, sample_attention, position_attention, out, geometry, reals
):
    g = sample_geometry(geometry)
    channel_sum = accumulators(x, g.N * g.H * g.W)
    for task in prange(g.N * g.H):
        channel_sum_task(np.int64(task), x, channel_sum, geometry)
    for task in prange(summed_tasks(g)):
        of_channels, of_sum = _terms_of_channels(x, across, geometry), _terms_of_sum(channel_sum, within, geometry)
        summed_forward_task(np.int64(task), of_channels, of_sum, out, geometry)


@Choice
def ls_dfn_forward(g: SampleGeometry) -> Any:
    """LS-DFN Eqs. 4 and 5."""
    return ls_dfn_summed_forward if sums_first(g) else ls_dfn_sampled_forward


@kernel
def ls_dfn_sampled_backward(  # type: ignore[no-untyped-def]
    grad_out, x, across, within, sample_attention, position_attention,
    grad_x, grad_across, grad_within, grad_sample_attention, grad_position_attention, geometry, reals,
):  # fmt: skip
    g = sample_geometry(geometry)
    channel_sum = accumulators(x, g.N * g.H * g.W)
    for task in prange(g.N * g.H):
        channel_sum_task(np.int64(task), x, channel_sum, geometry)
    choice = choices(g)
    if g.reduce == MAX:
        unwanted = grad_out[:0]
        for task in prange(forward_tasks(g)):
            _forward_task(
                np.int64(task), x, across, within, sample_attention, position_attention, channel_sum, unwanted, choice,
                geometry,
            )  # fmt: skip
    if grad_x.size > 0:
        grad_sum = accumulators(x, g.N * g.H * g.W)
        for task in prange(g.N * bands(g)):
            grad_sum_task(
                np.int64(task), grad_out, within, sample_attention, position_attention, choice, grad_sum, geometry
            )
        for task in prange(g.N * blocks_of_image(g)):
            grad_x_task(
                np.int64(task), grad_out, across, sample_attention, position_attention, choice, grad_sum, grad_x,
                geometry,
            )  # fmt: skip
    if grad_across.size > 0 or grad_within.size > 0:
        for task in prange(g.N * g.H):
            grad_filters_task(
                np.int64(task), grad_out, x, sample_attention, position_attention, channel_sum, choice, grad_across,
                grad_within, geometry,
            )  # fmt: skip
    if grad_sample_attention.size > 0 or grad_position_attention.size > 0:
        for task in prange(attention_tasks(g)):
            grad_attention_task(
                np.int64(task), grad_out, x, across, within, sample_attention, position_attention, channel_sum, choice,
                grad_sample_attention, grad_position_attention, geometry,
            )  # fmt: skip


@kernel
def ls_dfn_summed_backward(  # type: ignore[no-untyped-def]
    grad_out, x, across, within, sample_attention, position_attention,
    grad_x, grad_across, grad_within, grad_sample_attention, grad_position_attention, geometry, reals,
):  # fmt: skip
    g = sample_geometry(geometry)
    channel_sum = accumulators(x, g.N * g.H * g.W)
    for task in prange(g.N * g.H if grad_within.size > 0 else 0):
        channel_sum_task(np.int64(task), x, channel_sum, geometry)
    if grad_x.size > 0:
        grad_sum, nothing = accumulators(x, g.N * g.H * g.W), accumulators(x, 0)
        for task in prange(summed_image_tasks(_terms_of_sum(grad_sum, within, geometry), g)):
            terms = _terms_of_sum(grad_sum, within, geometry)
            summed_grad_image_task(np.int64(task), terms, grad_out, nothing, grad_sum, geometry)
        for task in prange(summed_image_tasks(_terms_of_channels(x, across, geometry), g)):
            terms = _terms_of_channels(x, across, geometry)
            summed_grad_image_task(np.int64(task), terms, grad_out, grad_sum, grad_x, geometry)
    if grad_across.size > 0:
        for task in prange(summed_tasks(g)):
            terms = _terms_of_channels(x, across, geometry)
            summed_grad_weights_task(np.int64(task), terms, grad_out, grad_across, geometry)
    if grad_within.size > 0:
        for task in prange(summed_tasks(g)):
            terms = _terms_of_sum(channel_sum, within, geometry)
            summed_grad_weights_task(np.int64(task), terms, grad_out, grad_within, geometry)


@Choice
def ls_dfn_backward(g: SampleGeometry) -> Any:
    """Gradients of `ls_dfn_forward`; an output of size 0 is not wanted."""
    return ls_dfn_summed_backward if sums_first(g) else ls_dfn_sampled_backward


@inlined
def _terms_of_channels(x, across, geometry):  # type: ignore[no-untyped-def]
    """Return the products with what samples are centred at."""
    g = sample_geometry(geometry)
    return Terms(across, x, g.C, 1, 1, 0.0)


@inlined
def _terms_of_sum(channel_sum, within, geometry):  # type: ignore[no-untyped-def]
    """Return the products with the sum of all channels."""
    g = sample_geometry(geometry)
    kh, kw = (g.kh, g.kw) if g.has_within != 0 else (1, 1)
    return Terms(within, channel_sum, 1, kh, kw, g.kernel_residual / g.C)


@borrowing
def classes(g):  # type: ignore[no-untyped-def]
    """Return how many classes of rows have no row of samples in common."""
    return min(g.H, g.sample_stride)


@borrowing
def runs(g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the rows of a class are shared out."""
    rows = ceil_div(g.H, g.sample_stride)
    return min(rows, max(ceil_div(rows, RUN), ceil_div(TASKS, max(1, g.N * classes(g)))))


@borrowing
def forward_tasks(g):  # type: ignore[no-untyped-def]
    return g.N * classes(g) * runs(g)


@inlined
def _forward_task(  # type: ignore[no-untyped-def]
    task, x, across, within, sample_attention, position_attention, channel_sum, out, choice, geometry
):
    """Make some rows a sample's stride apart: nearly all that the samples of one row see, those of the next see too."""
    g = sample_geometry(geometry)
    run, first, n = task % runs(g), task // runs(g) % classes(g), task // runs(g) // classes(g)
    of_class = ceil_div(g.H - first, g.sample_stride)
    begin, end = of_class * run // runs(g), of_class * (run + 1) // runs(g)
    first += begin * g.sample_stride
    numbers, starts, masks = constants(x, g), starts_of_samples(x, g), masks_of_samples(x, g)
    rows = accumulators(x, rows_size(x, end - begin + g.samples - 1, g))
    for i in range(end - begin):
        copy_rows(n, first + i * g.sample_stride, i, 0 if i == 0 else g.samples - 1, x, rows, g)
    filters = accumulators(x, filters_size(x, g))
    samples, shared = accumulators(x, mixed_size(x, g)), accumulators(x, shared_size(x, g))
    seen, outs = accumulators(x, g.samples * seen_size(x, g)), np.empty(OUTS, np.int64)
    for o in range(0, g.O, OUTS):
        outputs_from(o, outs, g)
        for i in range(end - begin):
            y = first + i * g.sample_stride
            load_shared(n, outs, y, within, shared, g)
            mix(n, outs, y, i, 0, g.H, across, rows, starts, filters, samples, g)
            form_samples(n, outs, y, i, shared, position_attention, channel_sum, seen, samples, masks, numbers, g)
            attend_samples(n, outs, y, sample_attention, samples, numbers, g)
            if g.reduce == MAX:
                choose_samples(n, outs, y, samples, out, choice, g)
            else:
                reduce_samples(n, outs, y, samples, out, numbers, g)
