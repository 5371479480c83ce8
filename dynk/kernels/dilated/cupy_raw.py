"""Launches the CUDA C kernels of the family."""

from __future__ import annotations

from dynk.kernels.dilated.cupy_raw_gumbel import gumbel_softmax_backward, gumbel_softmax_forward, instantiations

__all__ = ["gumbel_softmax_backward", "gumbel_softmax_forward", "instantiations"]
