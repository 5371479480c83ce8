"""dynk: dynamic image filtering operators on raw arrays, forward and backward.

Every function takes NumPy, CuPy, Numba CUDA, PyTorch or JAX arrays and returns the same kind on the same device. Any
other object with `__dlpack__` is taken too; results come back through its array namespace if it has one, else as NumPy
arrays, or CuPy ones on CUDA. Use `dynk_torch` and `dynk_jax` for functions that those frameworks differentiate.
"""

from dynk._dispatch import backend, backends
from dynk._plot_erf import plot_erf
from dynk.decoupled import (
    DdfGradients,
    DdfUpsampleGradients,
    FilterNormGradients,
    ddf,
    ddf_backward,
    ddf_upsample,
    ddf_upsample_backward,
    filter_norm,
    filter_norm_backward,
)
from dynk.deformable import (
    DeformableConv2dGradients,
    SampleKernelGradients,
    deformable_conv2d,
    deformable_conv2d_backward,
    sample_kernel,
    sample_kernel_backward,
)
from dynk.dilated import (
    AdaptiveDilationConv2dGradients,
    GumbelSoftmaxGradients,
    adaptive_dilation_conv2d,
    adaptive_dilation_conv2d_backward,
    gumbel_softmax,
    gumbel_softmax_backward,
)
from dynk.sampled import (
    DynamicFilterGradients,
    LsDfnGradients,
    dynamic_filter,
    dynamic_filter_backward,
    ls_dfn,
    ls_dfn_backward,
)

__version__ = "0.1.0"

__all__ = [
    "AdaptiveDilationConv2dGradients",
    "DdfGradients",
    "DdfUpsampleGradients",
    "DeformableConv2dGradients",
    "DynamicFilterGradients",
    "FilterNormGradients",
    "GumbelSoftmaxGradients",
    "LsDfnGradients",
    "SampleKernelGradients",
    "__version__",
    "adaptive_dilation_conv2d",
    "adaptive_dilation_conv2d_backward",
    "backend",
    "backends",
    "ddf",
    "ddf_backward",
    "ddf_upsample",
    "ddf_upsample_backward",
    "deformable_conv2d",
    "deformable_conv2d_backward",
    "dynamic_filter",
    "dynamic_filter_backward",
    "filter_norm",
    "filter_norm_backward",
    "gumbel_softmax",
    "gumbel_softmax_backward",
    "ls_dfn",
    "ls_dfn_backward",
    "plot_erf",
    "sample_kernel",
    "sample_kernel_backward",
]
