"""The family's kernels on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from dynk.kernels.common.compile import Choice, kernel
from dynk.kernels.common.numeric import accumulators, store
from dynk.kernels.common.products import add_shares, sum_planes
from dynk.kernels.dilated.cpu_depthwise import (
    depthwise_shares,
    depthwise_task,
    depthwise_tasks,
    depthwise_weight_task,
    depthwise_weight_tasks,
    form_depthwise,
)
from dynk.kernels.dilated.cpu_forward import forward_task, forward_tasks, pack_weights, packed_size, packed_units
from dynk.kernels.dilated.cpu_grad_columns import (
    blocks_with_shares,
    form_dense,
    grad_shares_task,
    grad_shares_tasks,
    grad_x_task,
    grad_x_tasks,
)
from dynk.kernels.dilated.cpu_grad_rows import (
    grad_share_rows_task,
    grad_share_rows_tasks,
    grad_weight_rows_task,
    grad_weight_rows_tasks,
    grad_x_rows_task,
    grad_x_rows_tasks,
)
from dynk.kernels.dilated.cpu_grad_weight import (
    grad_weight_task,
    grad_weight_tasks,
    shares_of,
)
from dynk.kernels.dilated.cpu_gumbel import gumbel_softmax_backward, gumbel_softmax_forward
from dynk.kernels.dilated.cpu_tiles import Mixture, dilation_geometry
from dynk.kernels.dilated.geometry import DilationGeometry, is_depthwise

__all__ = [
    "adaptive_dilation_conv2d_backward",
    "adaptive_dilation_conv2d_forward",
    "gumbel_softmax_backward",
    "gumbel_softmax_forward",
]


@kernel
def dilation_dense_forward(  # type: ignore[no-untyped-def]
    x, weight, dilation_weights, indices, bias, out, geometry, reals
):
    g = dilation_geometry(geometry)
    like, mixture = accumulators(x, 0), Mixture(dilation_weights, indices)
    units = packed_units(like, g)
    packed, finite = accumulators(like, units * packed_size(like, g)), np.empty(units, np.int64)
    for unit in prange(units):
        pack_weights(np.int64(unit), weight, packed, finite, geometry)
    for task in prange(forward_tasks(like, g)):
        forward_task(np.int64(task), x, weight, packed, finite, mixture, bias, out, like, geometry)


@kernel
def dilation_depthwise_forward(  # type: ignore[no-untyped-def]
    x, weight, dilation_weights, indices, bias, out, geometry, reals
):
    like, mixture = accumulators(x, 0), Mixture(dilation_weights, indices)
    for task in prange(depthwise_tasks(like, geometry)):
        depthwise_task(np.int64(task), x, weight, mixture, bias, out, like, geometry)


@Choice
def adaptive_dilation_conv2d_forward(g: DilationGeometry) -> Any:
    """PAD Eq. 1."""
    return dilation_depthwise_forward if is_depthwise(g) else dilation_dense_forward


@kernel
def dilation_dense_backward(  # type: ignore[no-untyped-def]
    grad_out, x, weight, dilation_weights, indices, bias,
    grad_x, grad_weight, grad_dilation_weights, grad_bias, geometry, reals,
):  # fmt: skip
    g = dilation_geometry(geometry)
    like, mixture = accumulators(x, 0), Mixture(dilation_weights, indices)
    both = grad_x.size > 0 and grad_dilation_weights.size > 0
    blocks = blocks_with_shares(g) if both else 0
    if grad_x.size > 0:
        parts, plane = accumulators(like, blocks * grad_dilation_weights.size), g.Ho * g.Wo
        for task in prange(grad_x_tasks(g)):
            grad_x_task(np.int64(task), form_dense, grad_out, x, weight, mixture, grad_x, parts, False, like, geometry)
        for d in prange(g.N * g.D if blocks > 0 else 0):
            add_shares(parts, blocks, np.int64(d) * plane, (np.int64(d) + 1) * plane, grad_dilation_weights)
    if grad_dilation_weights.size > 0 and blocks == 0:
        for task in prange(grad_shares_tasks(like, g)):
            grad_shares_task(
                np.int64(task), form_dense, grad_out, x, weight, mixture, grad_dilation_weights, False, like, geometry
            )
    if grad_weight.size > 0:
        shares = shares_of(like, g)
        partials = accumulators(like, shares * grad_weight.size if shares > 1 else 0)
        for task in prange(grad_weight_tasks(like, g)):
            grad_weight_task(np.int64(task), grad_out, x, mixture, partials, grad_weight, like, geometry)
        terms = g.C // g.groups * g.kh * g.kw
        for o in prange(g.O if partials.size > 0 else 0):
            add_shares(partials, shares, np.int64(o) * terms, (np.int64(o) + 1) * terms, grad_weight)
    if grad_bias.size > 0:
        outs, images, plane = g.O, g.N, g.Ho * g.Wo
        for o in prange(outs):
            store(grad_bias, o, sum_planes(grad_out, np.int64(o), outs, images, plane, like))


@kernel
def dilation_depthwise_backward(  # type: ignore[no-untyped-def]
    grad_out, x, weight, dilation_weights, indices, bias,
    grad_x, grad_weight, grad_dilation_weights, grad_bias, geometry, reals,
):  # fmt: skip
    """Row by row where a task's sums are finite, else by columns again."""
    g = dilation_geometry(geometry)
    like, mixture = accumulators(x, 0), Mixture(dilation_weights, indices)
    if grad_x.size > 0:
        doubts = np.ones(grad_x_rows_tasks(geometry, g), np.uint8)
        for task in prange(doubts.size):
            finite = grad_x_rows_task(np.int64(task), grad_out, weight, mixture, grad_x, like, geometry)
            doubts[task] = not finite
        again = doubts.size > 0
        for task in prange(grad_x_tasks(g) if not again or doubts.any() else 0):
            grad_x_task(
                np.int64(task), form_depthwise, grad_out, x, weight, mixture, grad_x, like, again, like, geometry
            )
    if grad_dilation_weights.size > 0:
        doubts = np.ones(grad_share_rows_tasks(geometry, g), np.uint8)
        for task in prange(doubts.size):
            finite = grad_share_rows_task(np.int64(task), grad_out, x, weight, grad_dilation_weights, like, geometry)
            doubts[task] = not finite
        again = doubts.size > 0
        for task in prange(grad_shares_tasks(like, g) if not again or doubts.any() else 0):
            grad_shares_task(
                np.int64(task), form_depthwise, grad_out, x, weight, mixture, grad_dilation_weights, again, like,
                geometry,
            )  # fmt: skip
    if grad_weight.size > 0:
        by_rows, shares = grad_weight_rows_tasks(geometry, g), depthwise_shares(like, g)
        partials = accumulators(like, shares * grad_weight.size if shares > 1 and by_rows == 0 else 0)
        for task in prange(by_rows):
            grad_weight_rows_task(np.int64(task), grad_out, x, mixture, grad_weight, like, geometry)
        for task in prange(depthwise_weight_tasks(like, g) if by_rows == 0 else 0):
            depthwise_weight_task(np.int64(task), grad_out, x, mixture, partials, grad_weight, like, geometry)
        terms = g.kh * g.kw
        for o in prange(g.O if partials.size > 0 else 0):
            add_shares(partials, shares, np.int64(o) * terms, (np.int64(o) + 1) * terms, grad_weight)
    if grad_bias.size > 0:
        outs, images, plane = g.O, g.N, g.Ho * g.Wo
        for o in prange(outs):
            store(grad_bias, o, sum_planes(grad_out, np.int64(o), outs, images, plane, like))


@Choice
def adaptive_dilation_conv2d_backward(g: DilationGeometry) -> Any:
    """Return the gradients of PAD Eq. 1; an output of size 0 is not wanted."""
    return dilation_depthwise_backward if is_depthwise(g) else dilation_dense_backward
