"""The integers that every kernel of this family gets, on every backend, in this order."""

from __future__ import annotations

from typing import NamedTuple


class FilterGeometry(NamedTuple):
    """One geometry serves `ddf` (scale 1) and `ddf_upsample` (stride 1).

    x (N, C, H, W); spatial (N, G, s, s, kh, kw, Ho, Wo); channel (N, C, s, s, kh, kw); out (N, C, s*Ho, s*Wo).
    Output (y*s + p, x*s + q) is anchored at input (y*stride_h, x*stride_w) and uses the filters [.., p, q, ..].
    """

    N: int
    C: int
    G: int  # 1 without a spatial filter
    H: int
    W: int
    Ho: int
    Wo: int
    kh: int
    kw: int
    scale: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    has_spatial: int
    has_channel: int
    add: int  # 1: f is spatial + channel, 0: their product


MAX_NORM_DIMS = 6


class NormGeometry(NamedTuple):
    """`filter_norm` walks M filters of kh x kw taps each.

    A filter's number is decoded over at most MAX_NORM_DIMS collapsed dimensions (row-major, padded in front with extent
    1) to element offsets into f, scale and shift; tap strides then step through the filter. Stride 0 is NumPy's
    broadcasting. Offsets into the output and into gradients of f are those of f.
    """

    filters: int  # M
    kh: int
    kw: int
    f_kh: int
    f_kw: int
    scale_kh: int
    scale_kw: int
    shift_kh: int
    shift_kw: int
    has_scale: int
    has_shift: int
    extent_0: int
    extent_1: int
    extent_2: int
    extent_3: int
    extent_4: int
    extent_5: int
    f_0: int
    f_1: int
    f_2: int
    f_3: int
    f_4: int
    f_5: int
    scale_0: int
    scale_1: int
    scale_2: int
    scale_3: int
    scale_4: int
    scale_5: int
    shift_0: int
    shift_1: int
    shift_2: int
    shift_3: int
    shift_4: int
    shift_5: int
    f_size: int
    scale_size: int
    shift_size: int
