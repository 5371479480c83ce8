"""Pixel-wise adaptive dilation: `adaptive_dilation_conv2d`, `gumbel_softmax` and their gradients.

Paper: PAD-Nets: Learning Dynamic Receptive Fields via Pixel-wise Adaptive Dilation, ICLR 2020 submission (PAD).
"""

from dynk.dilated._adaptive_dilation_conv2d import (
    ADAPTIVE_DILATION_CONV2D,
    AdaptiveDilationConv2dGradients,
    adaptive_dilation_conv2d,
    adaptive_dilation_conv2d_backward,
)
from dynk.dilated._gumbel_softmax import (
    GUMBEL_SOFTMAX,
    GumbelSoftmaxGradients,
    gumbel_softmax,
    gumbel_softmax_backward,
)

__all__ = [
    "AdaptiveDilationConv2dGradients",
    "GumbelSoftmaxGradients",
    "adaptive_dilation_conv2d",
    "adaptive_dilation_conv2d_backward",
    "gumbel_softmax",
    "gumbel_softmax_backward",
]

OPERATORS = (ADAPTIVE_DILATION_CONV2D, GUMBEL_SOFTMAX)
