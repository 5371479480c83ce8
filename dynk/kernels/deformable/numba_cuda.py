"""Numba CUDA kernels of the family and their launch."""

from __future__ import annotations

from dynk.kernels.deformable.numba_cuda_conv import deformable_conv2d_backward, deformable_conv2d_forward
from dynk.kernels.deformable.numba_cuda_sample import sample_kernel_backward, sample_kernel_forward

__all__ = [
    "deformable_conv2d_backward",
    "deformable_conv2d_forward",
    "sample_kernel_backward",
    "sample_kernel_forward",
]
