"""dynk's operators as JAX functions: differentiable, batchable, inside jit; on the CPU without the interpreter."""

from dynk_jax._receptive_field import effective_receptive_field
from dynk_jax.functional import (
    adaptive_dilation_conv2d,
    ddf,
    ddf_upsample,
    deformable_conv2d,
    dynamic_filter,
    filter_norm,
    gumbel_softmax,
    ls_dfn,
    sample_kernel,
)

__all__ = [
    "adaptive_dilation_conv2d",
    "ddf",
    "ddf_upsample",
    "deformable_conv2d",
    "dynamic_filter",
    "effective_receptive_field",
    "filter_norm",
    "gumbel_softmax",
    "ls_dfn",
    "sample_kernel",
]
