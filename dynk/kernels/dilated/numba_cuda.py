"""Numba CUDA kernels of the family and their launch."""

from __future__ import annotations

from dynk.kernels.dilated.numba_cuda_dilation import (
    adaptive_dilation_conv2d_backward,
    adaptive_dilation_conv2d_forward,
)
from dynk.kernels.dilated.numba_cuda_gumbel import gumbel_softmax_backward, gumbel_softmax_forward

__all__ = [
    "adaptive_dilation_conv2d_backward",
    "adaptive_dilation_conv2d_forward",
    "gumbel_softmax_backward",
    "gumbel_softmax_forward",
]
