"""Launches the CUDA C kernels of the family.

Arrays are C-contiguous and of the storage types; None where one is absent or not wanted. `cuda` is what
`decoupled.cupy_raw` says.
"""

from __future__ import annotations

from dynk.kernels.dilated import cupy_raw_dilation, cupy_raw_gumbel
from dynk.kernels.dilated.cupy_raw_dilation import adaptive_dilation_conv2d_backward, adaptive_dilation_conv2d_forward
from dynk.kernels.dilated.cupy_raw_gumbel import gumbel_softmax_backward, gumbel_softmax_forward

__all__ = [
    "adaptive_dilation_conv2d_backward",
    "adaptive_dilation_conv2d_forward",
    "gumbel_softmax_backward",
    "gumbel_softmax_forward",
    "instantiations",
]


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    return cupy_raw_dilation.instantiations() + cupy_raw_gumbel.instantiations()
