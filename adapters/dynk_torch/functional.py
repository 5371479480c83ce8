"""The public functions: one per operator, each a single call into the machinery that all operators share."""

from __future__ import annotations

from dynk_torch._decoupled import ddf, ddf_upsample, filter_norm
from dynk_torch._deformable import deformable_conv2d, sample_kernel
from dynk_torch._dilated import adaptive_dilation_conv2d, gumbel_softmax
from dynk_torch._sampled import dynamic_filter, ls_dfn

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
