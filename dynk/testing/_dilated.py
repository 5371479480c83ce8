"""How to draw calls of the dilated family, in the form of `_decoupled`.

Weights of dilations are no small integers: their sum, the column of a tap that sees the same pixel in every dilation,
would be 0 in exact arithmetic alone, and an infinite weight times it NaN there and infinite elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dynk._operator import Shape
from dynk.testing.strategies import LAYOUTS, groups_of, images, pairs

Drawn = tuple[tuple[Any, ...], dict[str, Any]]


def adaptive_dilation_conv2d(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `adaptive_dilation_conv2d`: soft or hard, dense, grouped or depth-wise."""
    N, C, H, W = draw(images(small=small))
    kh, kw = draw(_kernels(3 if C > 16 else 5 if small else 7))
    stride = draw(st.one_of(st.just(1), pairs(1, 3)))
    stride_h, stride_w = (stride, stride) if isinstance(stride, int) else stride
    dilations = draw(st.lists(st.one_of(pairs(1, 3), pairs(1, 40)), min_size=1, max_size=4 if small else 8))
    groups = draw(st.one_of(st.sampled_from([1, C]), groups_of(C)))
    O = groups * draw(st.integers(1, 3 if groups > 4 else 9))  # noqa: E741
    pixels = (N, -(-H // stride_h), -(-W // stride_w))
    if draw(st.booleans()):
        dilation_weights = draw(_indices(pixels, len(dilations)))
    else:
        dilation_weights = array((N, len(dilations), *pixels[1:]), draw(st.sampled_from(["normal", "wide"])))
    arrays = (
        array((N, C, H, W)),
        array((O, C // groups, kh, kw)),
        dilation_weights,
        array((O,)) if draw(st.booleans()) else None,
    )
    return arrays, {"dilations": dilations, "stride": stride, "groups": groups}


CALLS = {"adaptive_dilation_conv2d": adaptive_dilation_conv2d}


@st.composite
def _indices(draw: st.DrawFn, shape: Shape, count: int) -> Any:
    """Draw which of `count` candidates each pixel takes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    indices = rng.integers(0, count, shape).astype(draw(st.sampled_from([np.int32, np.int64])))
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](indices)


def _kernels(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Return a strategy for (kh, kw): 3 x 3, and any rectangle."""
    return st.one_of(st.just((3, 3)), st.tuples(st.integers(1, most), st.integers(1, most)))
