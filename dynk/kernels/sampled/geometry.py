"""The integers that every kernel of this family gets, on every backend, in this order."""

from __future__ import annotations

from typing import NamedTuple

# How the samples of an output become one: position in this tuple is the geometry's `reduce`.
REDUCTIONS = ("sum", "mean", "max", "none")
SUM, MEAN, MAX, NONE = range(4)

# Samples per side at most: kernels sum the samples of a row, then the rows, in chains of no more than 64 terms each.
MAX_SAMPLES = 64


class SampleGeometry(NamedTuple):
    """One geometry serves `dynamic_filter`, where the flags are 0, and `ls_dfn`.

    x (N, C, H, W); kernel (N, O, C, kh, kw, H, W); across (N, O, C, H, W); within (N, O, kh, kw, H, W);
    sample_attention (N, O, s, s, H, W); position_attention (N, O, kh, kw, H, W); out (N, O, H, W), or
    (N, s, s, O, H, W) where the samples are not reduced.
    """

    N: int
    C: int
    O: int  # noqa: E741 - the contract's name of the output channels
    H: int
    W: int
    kh: int
    kw: int
    samples: int  # s
    sample_stride: int
    dilation_h: int
    dilation_w: int
    reduce: int  # SUM, MEAN, MAX or NONE
    has_across: int
    has_within: int
    has_sample_attention: int
    has_position_attention: int
    kernel_residual: int  # 1: 1/C is added at the centre of the kernel
    sample_residual: int  # 1: 1 is added to sample_attention
    position_residual: int  # 1: 1 is added to position_attention, outside the image too


def sums_first(g: SampleGeometry) -> bool:
    """Return whether the samples of an output are summed and nothing but their place tells them apart."""
    return g.reduce in (SUM, MEAN) and g.has_sample_attention == g.has_position_attention == 0
