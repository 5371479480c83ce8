"""LS-DFN on the CPU: one task makes one row of a result."""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import inlined, kernel
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.sampled.cpu_dynamic import dynamic_filter_backward, dynamic_filter_forward
from dynk.kernels.sampled.cpu_gradients import (
    channel_blocks,
    grad_across_task,
    grad_position_attention_task,
    grad_sample_attention_task,
    grad_sum_task,
    grad_within_task,
    grad_x_task,
)
from dynk.kernels.sampled.cpu_rows import (
    choices,
    reduce_sample,
    sample_geometry,
    store_reduced,
    weigh,
)
from dynk.kernels.sampled.cpu_samples import channel_sum_task, load_shared, sample_attention_row, sample_row
from dynk.kernels.sampled.geometry import MAX

__all__ = ["dynamic_filter_backward", "dynamic_filter_forward", "ls_dfn_backward", "ls_dfn_forward"]


@kernel
def ls_dfn_forward(  # type: ignore[no-untyped-def]
    x, across, within, sample_attention, position_attention, out, geometry, reals
):
    """LS-DFN Eqs. 4 and 5."""
    g = sample_geometry(geometry)
    channel_sum = accumulators(x, g.N * g.H * g.W)
    for task in prange(g.N * g.H):
        channel_sum_task(np.int64(task), x, channel_sum, geometry)
    choice = np.zeros(0, np.int16)
    for task in prange(g.N * g.H * g.O):
        _forward_task(
            np.int64(task), x, across, within, sample_attention, position_attention, channel_sum, out, choice, geometry
        )


@kernel
def ls_dfn_backward(  # type: ignore[no-untyped-def]
    grad_out, x, across, within, sample_attention, position_attention,
    grad_x, grad_across, grad_within, grad_sample_attention, grad_position_attention, geometry, reals,
):  # fmt: skip
    """Gradients of `ls_dfn_forward`; an output of size 0 is not wanted."""
    g = sample_geometry(geometry)
    channel_sum = accumulators(x, g.N * g.H * g.W)
    for task in prange(g.N * g.H):
        channel_sum_task(np.int64(task), x, channel_sum, geometry)
    choice = choices(g)
    if g.reduce == MAX:
        unwanted = grad_out[:0]
        for task in prange(g.N * g.H * g.O):
            _forward_task(
                np.int64(task), x, across, within, sample_attention, position_attention, channel_sum, unwanted, choice,
                geometry,
            )  # fmt: skip
    if grad_x.size > 0:
        grad_sum = accumulators(x, g.N * g.H * g.W)
        for task in prange(g.N * g.H):
            grad_sum_task(
                np.int64(task), grad_out, within, sample_attention, position_attention, choice, grad_sum, geometry
            )
        for task in prange(g.N * g.H * channel_blocks(g)):
            grad_x_task(
                np.int64(task), grad_out, across, sample_attention, position_attention, choice, grad_sum, grad_x,
                geometry,
            )  # fmt: skip
    if grad_across.size > 0:
        for task in prange(g.N * g.H * g.O):
            grad_across_task(
                np.int64(task), grad_out, x, sample_attention, position_attention, choice, grad_across, geometry
            )
    if grad_within.size > 0:
        for task in prange(g.N * g.H * g.O):
            grad_within_task(
                np.int64(task), grad_out, sample_attention, position_attention, channel_sum, choice, grad_within,
                geometry,
            )  # fmt: skip
    if grad_sample_attention.size > 0:
        for task in prange(g.N * g.H * g.O):
            grad_sample_attention_task(
                np.int64(task), grad_out, x, across, within, position_attention, channel_sum, choice,
                grad_sample_attention, geometry,
            )  # fmt: skip
    if grad_position_attention.size > 0:
        for task in prange(g.N * g.H * g.O):
            grad_position_attention_task(
                np.int64(task), grad_out, x, across, within, sample_attention, channel_sum, choice,
                grad_position_attention, geometry,
            )  # fmt: skip


@inlined
def _forward_task(  # type: ignore[no-untyped-def]
    task, x, across, within, sample_attention, position_attention, channel_sum, out, choice, geometry
):
    g = sample_geometry(geometry)
    o, y, n = task % g.O, task // g.O % g.H, task // g.O // g.H
    sample, part, reduced = accumulators(x, g.W), accumulators(x, g.W), accumulators(x, g.W)
    total = np.zeros(g.W, np.float64)
    shared = accumulators(x, g.kh * g.kw * g.W)
    load_shared(n, o, y, 0, g.kh, within, shared, g)
    for a in range(g.samples):
        for b in range(g.samples):
            sample_row(n, a, b, o, y, x, across, shared, position_attention, channel_sum, sample, total, g)
            if g.has_sample_attention != 0:
                weigh(sample, 0, sample_attention, sample_attention_row(n, a, b, o, y, g), g.sample_residual, g.W)
            reduce_sample(sample, n, a, b, o, y, part, reduced, out, choice, g)
    store_reduced(n, o, y, reduced, out, g)
