"""The family's kernels on the CPU.

Workspace, for float32, whatever the image, the batch and the channels: 16 MiB at most for images that are turned
(TURNED), 4 MiB at most for partial sums or one gradient of the weight besides if that is more (PARTIALS), and for each
thread about 6 MiB (PLANES, and the tiles) + T * (30 + S) KiB, with T taps and S positions of a scope. With float64
twice that, but for the planes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from dynk.kernels.common.compile import Choice, kernel
from dynk.kernels.common.numeric import accumulators, store
from dynk.kernels.common.products import add_shares, sum_planes
from dynk.kernels.deformable.cpu_dense import dense_task, dense_tasks
from dynk.kernels.deformable.cpu_depthwise import depthwise_task, depthwise_tasks
from dynk.kernels.deformable.cpu_grad_cells import grad_cells_task, sorts_points
from dynk.kernels.deformable.cpu_grad_dense import dense_shares, grad_dense_task, grad_dense_tasks
from dynk.kernels.deformable.cpu_grad_depthwise import depthwise_shares, grad_depthwise_task, grad_depthwise_tasks
from dynk.kernels.deformable.cpu_grad_image import grad_image_task, grad_image_tasks
from dynk.kernels.deformable.cpu_grad_points import grad_points_task, grad_points_tasks
from dynk.kernels.deformable.cpu_grad_samples import form_dense, form_depthwise
from dynk.kernels.deformable.cpu_points import deform_geometry
from dynk.kernels.deformable.cpu_sample_kernel import (
    grad_kernel_task,
    grad_offset_task,
    parts_of,
    sample_geometry,
    sample_task,
)
from dynk.kernels.deformable.cpu_samples import images_turned, turn_task, turned_size
from dynk.kernels.deformable.cpu_tables import tables_of
from dynk.kernels.deformable.geometry import DeformGeometry, is_depthwise

__all__ = [
    "deformable_conv2d_backward",
    "deformable_conv2d_forward",
    "sample_kernel_backward",
    "sample_kernel_forward",
]


@kernel
def deformable_dense_forward(  # type: ignore[no-untyped-def]
    x, weight, kernel_offset, data_offset, mask, bias, out, geometry, reals
):
    g = deform_geometry(geometry)
    like = accumulators(x, 0)
    images, height = g.N, g.H
    tasks, step = dense_tasks(like, g) // images, images_turned(like, g)
    turned = accumulators(like, turned_size(step, like, g))
    step = step if step > 0 else images
    for first in range(0, images, step):
        count = min(step, images - first)
        for row in prange(count * height if turned.size > 0 else 0):
            turn_task(np.int64(row), x, first, turned, like, geometry)
        for task in prange(count * tasks):
            dense_task(
                first * tasks + np.int64(task), x, weight, kernel_offset, data_offset, mask, bias, turned, first, out,
                like, geometry,
            )  # fmt: skip


@kernel
def deformable_depthwise_forward(  # type: ignore[no-untyped-def]
    x, weight, kernel_offset, data_offset, mask, bias, out, geometry, reals
):
    g = deform_geometry(geometry)
    like = accumulators(x, 0)
    tables = tables_of(weight, like, g)
    for task in prange(depthwise_tasks(like, g)):
        depthwise_task(np.int64(task), x, weight, tables, kernel_offset, data_offset, mask, bias, out, like, geometry)


@Choice
def deformable_conv2d_forward(g: DeformGeometry) -> Any:
    """DK Eq. 11."""
    return deformable_depthwise_forward if is_depthwise(g) else deformable_dense_forward


@kernel
def deformable_dense_backward(  # type: ignore[no-untyped-def]
    grad_out, x, weight, kernel_offset, data_offset, mask, bias,
    grad_x, grad_weight, grad_kernel_offset, grad_data_offset, grad_mask, grad_bias, geometry, reals,
):  # fmt: skip
    g = deform_geometry(geometry)
    like, no_tables = accumulators(x, 0), accumulators(x, 0)
    if grad_x.size > 0:
        for task in prange(grad_image_tasks(g)):
            grad_image_task(
                np.int64(task), form_dense, grad_out, weight, no_tables, kernel_offset, data_offset, mask, grad_x, like,
                geometry,
            )  # fmt: skip
    if grad_kernel_offset.size + grad_data_offset.size + grad_mask.size > 0:
        for task in prange(grad_points_tasks(like, g)):
            grad_points_task(
                np.int64(task), form_dense, grad_out, x, weight, no_tables, kernel_offset, data_offset, mask,
                grad_kernel_offset, grad_data_offset, grad_mask, like, geometry,
            )  # fmt: skip
    if grad_weight.size > 0:
        shares, images, height = dense_shares(like, g), g.N, g.H
        partials = accumulators(like, shares * grad_weight.size if shares > 1 else 0)
        held = images_turned(like, g) if images_turned(like, g) == images else 0
        turned = accumulators(like, turned_size(held, like, g))
        for row in prange(images * height if held > 0 else 0):
            turn_task(np.int64(row), x, 0, turned, like, geometry)
        for task in prange(grad_dense_tasks(like, g)):
            grad_dense_task(
                np.int64(task), grad_out, x, kernel_offset, data_offset, mask, turned, partials, grad_weight, like,
                geometry,
            )  # fmt: skip
        outs = g.O
        terms = grad_weight.size // outs
        for o in prange(outs if shares > 1 else 0):
            add_shares(partials, shares, np.int64(o) * terms, (np.int64(o) + 1) * terms, grad_weight)
    if grad_bias.size > 0:
        outs, images, plane = g.O, g.N, g.Ho * g.Wo
        for o in prange(outs):
            store(grad_bias, o, sum_planes(grad_out, np.int64(o), outs, images, plane, like))


@kernel
def deformable_depthwise_backward(  # type: ignore[no-untyped-def]
    grad_out, x, weight, kernel_offset, data_offset, mask, bias,
    grad_x, grad_weight, grad_kernel_offset, grad_data_offset, grad_mask, grad_bias, geometry, reals,
):  # fmt: skip
    g = deform_geometry(geometry)
    like = accumulators(x, 0)
    tables = tables_of(weight, like, g)
    if grad_x.size > 0:
        for task in prange(grad_image_tasks(g)):
            grad_image_task(
                np.int64(task), form_depthwise, grad_out, weight, tables, kernel_offset, data_offset, mask, grad_x,
                like, geometry,
            )  # fmt: skip
    if grad_kernel_offset.size + grad_data_offset.size + grad_mask.size > 0:
        for task in prange(grad_points_tasks(like, g)):
            grad_points_task(
                np.int64(task), form_depthwise, grad_out, x, weight, tables, kernel_offset, data_offset, mask,
                grad_kernel_offset, grad_data_offset, grad_mask, like, geometry,
            )  # fmt: skip
    if grad_weight.size > 0:
        shares, outs, sorts = depthwise_shares(like, g), g.O, sorts_points(like, g)
        partials = accumulators(like, shares * grad_weight.size if shares > 1 else 0)
        for task in prange(grad_depthwise_tasks(like, g)):
            if sorts:
                grad_cells_task(np.int64(task), grad_out, x, kernel_offset, partials, grad_weight, like, geometry)
            else:
                grad_depthwise_task(
                    np.int64(task), grad_out, x, kernel_offset, data_offset, mask, partials, grad_weight, like,
                    geometry,
                )  # fmt: skip
        terms = grad_weight.size // outs
        for o in prange(outs if shares > 1 else 0):
            add_shares(partials, shares, np.int64(o) * terms, (np.int64(o) + 1) * terms, grad_weight)
    if grad_bias.size > 0:
        outs, images, plane = g.O, g.N, g.Ho * g.Wo
        for o in prange(outs):
            store(grad_bias, o, sum_planes(grad_out, np.int64(o), outs, images, plane, like))


@Choice
def deformable_conv2d_backward(g: DeformGeometry) -> Any:
    """Return the gradients of DK Eq. 11; an output of size 0 is not wanted."""
    return deformable_depthwise_backward if is_depthwise(g) else deformable_dense_backward


@kernel
def sample_kernel_forward(weight, kernel_offset, out, geometry, reals):  # type: ignore[no-untyped-def]
    """DK Eq. 12."""
    g = sample_geometry(geometry)
    like = accumulators(weight, 0)
    for task in prange(g.N * parts_of(g.N, like, g)):
        sample_task(np.int64(task), weight, kernel_offset, out, like, geometry)


@kernel
def sample_kernel_backward(  # type: ignore[no-untyped-def]
    grad_out, weight, kernel_offset, grad_weight, grad_offset, geometry, reals
):
    """Gradients of `sample_kernel_forward`; an output of size 0 is not wanted."""
    g = sample_geometry(geometry)
    like = accumulators(weight, 0)
    if grad_weight.size > 0:
        for task in prange(parts_of(1, like, g)):
            grad_kernel_task(np.int64(task), grad_out, kernel_offset, grad_weight, like, geometry)
    if grad_offset.size > 0:
        for task in prange(g.N * g.Gk):
            grad_offset_task(np.int64(task), grad_out, weight, kernel_offset, grad_offset, like, geometry)
