"""Launches the CUDA C kernels of the family.

Arrays are C-contiguous and of the storage types; None where one is absent or not wanted. `cuda` is what
`decoupled.cupy_raw` says.
"""

from __future__ import annotations

from dynk.kernels.deformable import cupy_raw_deform, cupy_raw_sample
from dynk.kernels.deformable.cupy_raw_deform import deformable_conv2d_backward, deformable_conv2d_forward
from dynk.kernels.deformable.cupy_raw_sample import sample_kernel_backward, sample_kernel_forward

__all__ = [
    "deformable_conv2d_backward",
    "deformable_conv2d_forward",
    "instantiations",
    "sample_kernel_backward",
    "sample_kernel_forward",
]


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    return cupy_raw_deform.instantiations() + cupy_raw_sample.instantiations()
