"""dynk's operators as JAX functions: differentiable, batchable, inside jit; on the CPU without the interpreter."""

from dynk_jax.functional import ddf, ddf_upsample, dynamic_filter, filter_norm, gumbel_softmax, ls_dfn

__all__ = ["ddf", "ddf_upsample", "dynamic_filter", "filter_norm", "gumbel_softmax", "ls_dfn"]
