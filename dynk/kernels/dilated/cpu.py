"""Numba CPU kernels of the family."""

from __future__ import annotations

from dynk.kernels.dilated.cpu_gumbel import gumbel_softmax_backward, gumbel_softmax_forward

__all__ = ["gumbel_softmax_backward", "gumbel_softmax_forward"]
