"""The operators as JAX functions: inside jit, differentiable any number of times in reverse mode, and batchable.

Each public function hands its arrays and options to `apply`, which knows operators by their declarations alone.
"""

from __future__ import annotations

from dynk_jax._decoupled import ddf, ddf_upsample, filter_norm
from dynk_jax._deformable import deformable_conv2d, sample_kernel
from dynk_jax._dilated import adaptive_dilation_conv2d, gumbel_softmax
from dynk_jax._sampled import dynamic_filter, ls_dfn

__all__ = [
    "adaptive_dilation_conv2d",
    "ddf",
    "ddf_upsample",
    "deformable_conv2d",
    "dynamic_filter",
    "filter_norm",
    "gumbel_softmax",
    "ls_dfn",
    "sample_kernel",
]
