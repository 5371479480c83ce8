"""The integers that every kernel of `adaptive_dilation_conv2d` gets, on every backend, in this order."""

from __future__ import annotations

from typing import NamedTuple

# Candidate dilations of one call, at most.
MAX_DILATIONS = 8


class DilationGeometry(NamedTuple):
    """x (N, C, H, W); weight (O, C/groups, kh, kw); dilation_weights (N, D, Ho, Wo), or (N, Ho, Wo) where `hard`.

    The steps of candidate d are (dilation_h<d>, dilation_w<d>), 0 from D on.
    """

    N: int
    C: int
    O: int  # noqa: E741 - the contract's name of the output channels
    H: int
    W: int
    kh: int
    kw: int
    Ho: int
    Wo: int
    D: int
    stride_h: int
    stride_w: int
    groups: int
    hard: int  # 1: dilation_weights holds indices; a pixel whose index is not one has columns of NaN and no taps
    has_bias: int
    dilation_h0: int
    dilation_h1: int
    dilation_h2: int
    dilation_h3: int
    dilation_h4: int
    dilation_h5: int
    dilation_h6: int
    dilation_h7: int
    dilation_w0: int
    dilation_w1: int
    dilation_w2: int
    dilation_w3: int
    dilation_w4: int
    dilation_w5: int
    dilation_w6: int
    dilation_w7: int


def is_depthwise(g: DilationGeometry) -> bool:
    """Return whether each channel is convolved by itself; blocks of channels then take no heed of groups."""
    return g.groups == g.C


# Where the steps of the candidates start in the geometry.
DILATIONS_H = DilationGeometry._fields.index("dilation_h0")
DILATIONS_W = DilationGeometry._fields.index("dilation_w0")


# On CUDA: the most outputs of a group that is taken for depth-wise, and the most bytes of partial sums.
FEW_OUTPUTS = 4
WORKSPACE = 64 << 20


def is_depthwise_on_cuda(g: DilationGeometry) -> bool:
    """Return whether groups have one input channel and few outputs, for which the CUDA backends have kernels."""
    return is_depthwise(g) and g.O // g.groups <= FEW_OUTPUTS


def steps(dilations: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Return the last fields of the geometry for candidates of (h, w) steps."""
    rows, columns = zip(*dilations, *(((0, 0),) * (MAX_DILATIONS - len(dilations))), strict=True)
    return (*rows, *columns)
