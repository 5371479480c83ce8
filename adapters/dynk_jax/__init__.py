"""dynk's operators as JAX functions, differentiable and batchable: in jit without the interpreter on the CPU; CUDA too."""

from dynk_jax.functional import ddf, ddf_upsample, filter_norm

__all__ = ["ddf", "ddf_upsample", "filter_norm"]
