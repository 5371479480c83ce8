"""The integers that every kernel of the family gets, on every backend, and the rules that all of them share.

Points. A tap's coordinate on an axis is base + (offset + half), where the base is an integer: y*stride - pad +
i*dilation on the image, i + ((Sh - kh) >> 1) in the scope of the kernel, where half is 0.5 if Sh - kh is odd; it is 0
on the image. offset + half is formed in the accumulation type, its floor and the rest (the fraction) are taken before
the base is added, so that the cell base + floor, and with it every derivative, is the same on every backend.

Values. On the image, and in the scope with `kernel_boundary` "zeros", a point p of an axis of E positions is read where
-1 < p < E, else the tap is skipped; neighbours outside are skipped too. With "clip" p is clamped to [0, E - 1]. An
offset beyond +-FAR lies outside (or is clamped) whatever the base. A NaN offset makes the tap's value NaN and reads
nothing, but where the other axis lies outside.

Derivatives are right-sided, those of the cell: on the image and for "zeros" where -1 <= p < E (and the other axis is
read), for "clip" where 0 <= p < E - 1; 0 elsewhere.

Infinities. Without kernel offsets, and depth-wise (C/groups = 1), a skipped tap takes no part. Dense with kernel
offsets every output reads the whole scope: it is the product of weight with col[c, S] = sum_ij B_ij,S * sample, whose
elements are 0 where no tap reaches S, and so are the gradients of both.
"""

from __future__ import annotations

from typing import NamedTuple

# Values of the geometry's `clip`, by position.
BOUNDARIES = ("zeros", "clip")

# An offset beyond this lies outside of whatever it moves a tap in.
FAR = 2**30

# The most bytes of workspace of a call of the CUDA backends.
WORKSPACE = 64 << 20


class DeformGeometry(NamedTuple):
    """x (N, C, H, W); weight (O, C/groups, Sh, Sw); kernel_offset (N, Gk, kh, kw, 2, Ho, Wo).

    data_offset (N, Gd, kh, kw, 2, Ho, Wo); mask (N, Gd, kh, kw, Ho, Wo). Channel c of the image belongs to block
    c // (C // G) of either; Gk and Gd are 1 where there are none.
    """

    N: int
    C: int
    O: int  # noqa: E741 - the contract's name of the output channels
    H: int
    W: int
    Sh: int
    Sw: int
    kh: int
    kw: int
    Ho: int
    Wo: int
    Gk: int
    Gd: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dil_h: int
    dil_w: int
    groups: int
    clip: int
    has_kernel: int
    has_data: int
    has_mask: int
    has_bias: int


def is_depthwise(g: DeformGeometry) -> bool:
    """Return whether each channel is convolved by itself; blocks of channels then take no heed of groups."""
    return g.groups == g.C


class SampleGeometry(NamedTuple):
    """weight (O, I, Sh, Sw); kernel_offset (N, Gk, kh, kw, 2), of which output channel o has block o // (O // Gk)."""

    N: int
    O: int  # noqa: E741
    I: int  # noqa: E741
    Sh: int
    Sw: int
    kh: int
    kw: int
    Gk: int
    clip: int
