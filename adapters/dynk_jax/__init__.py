"""dynk's operators as JAX functions: differentiable, batchable, inside jit; on the CPU without the interpreter."""

from dynk_jax.functional import ddf, ddf_upsample, filter_norm

__all__ = ["ddf", "ddf_upsample", "filter_norm"]
