"""The family's kernels on the CPU."""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import kernel
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.deformable.cpu_dense import dense_task, dense_tasks
from dynk.kernels.deformable.cpu_depthwise import depthwise_task, depthwise_tasks, is_depthwise, tables_of
from dynk.kernels.deformable.cpu_points import deform_geometry

__all__ = [
    "deformable_conv2d_forward",
]


@kernel
def deformable_conv2d_forward(  # type: ignore[no-untyped-def]
    x, weight, kernel_offset, data_offset, mask, bias, out, geometry, reals
):
    """DK Eq. 11."""
    g = deform_geometry(geometry)
    like = accumulators(x, 0)
    tables = tables_of(weight, like, g)
    if is_depthwise(g):
        for task in prange(depthwise_tasks(like, g)):
            depthwise_task(
                np.int64(task), x, weight, tables, kernel_offset, data_offset, mask, bias, out, like, geometry
            )
    else:
        for task in prange(dense_tasks(like, g)):
            dense_task(np.int64(task), x, weight, kernel_offset, data_offset, mask, bias, out, like, geometry)
