"""The family's kernels on the CPU."""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import kernel
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.dilated.cpu_forward import forward_task, forward_tasks
from dynk.kernels.dilated.cpu_tiles import dilation_geometry

__all__ = ["adaptive_dilation_conv2d_forward"]


@kernel
def adaptive_dilation_conv2d_forward(  # type: ignore[no-untyped-def]
    x, weight, dilation_weights, bias, out, geometry, reals
):
    """PAD Eq. 1."""
    g = dilation_geometry(geometry)
    like = accumulators(x, 0)
    for task in prange(forward_tasks(like, g)):
        forward_task(np.int64(task), x, weight, dilation_weights, bias, out, like, geometry)
