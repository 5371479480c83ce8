"""Deformable kernels and deformable convolution: `deformable_conv2d`, `sample_kernel` and their gradients.

Papers: Deformable Kernels: Adapting Effective Receptive Fields for Object Deformation, ICLR 2020 (DK); Deformable
Convolutional Networks, ICCV 2017, and Deformable ConvNets v2, CVPR 2019 (DCN).
"""

from dynk.deformable._deformable_conv2d import (
    DEFORMABLE_CONV2D,
    DeformableConv2dGradients,
    deformable_conv2d,
    deformable_conv2d_backward,
)
from dynk.deformable._sample_kernel import (
    SAMPLE_KERNEL,
    SampleKernelGradients,
    sample_kernel,
    sample_kernel_backward,
)

__all__ = [
    "DeformableConv2dGradients",
    "SampleKernelGradients",
    "deformable_conv2d",
    "deformable_conv2d_backward",
    "sample_kernel",
    "sample_kernel_backward",
]

OPERATORS = (DEFORMABLE_CONV2D, SAMPLE_KERNEL)
