"""dynk's operators as JAX functions: in jit without the interpreter, differentiable, batchable, on CPU and CUDA."""

from dynk_jax.functional import ddf, ddf_upsample, filter_norm

__all__ = ["ddf", "ddf_upsample", "filter_norm"]
