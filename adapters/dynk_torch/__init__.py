"""dynk for PyTorch: the operators of `dynk` as differentiable functions of tensors.

They work in eager mode, under `torch.compile`, `torch.func`, forward-mode differentiation, autocast and `torch.export`,
on the CPU and on CUDA, and share the tensors' memory with the kernels.
"""

from dynk_torch import _library
from dynk_torch._convert import convert
from dynk_torch._receptive_field import effective_receptive_field
from dynk_torch.functional import (
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
    "convert",
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

_library.register_all()
