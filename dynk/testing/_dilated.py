"""How to draw calls of the dilated family, in the form of `_decoupled`.

Weights of dilations are no small integers: their sum, the column of a tap that sees the same pixel in every dilation,
would be 0 in exact arithmetic alone, and an infinite weight times it NaN there and infinite elsewhere.
"""

from __future__ import annotations

import math
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


def gumbel_softmax(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `gumbel_softmax`: candidates for each pixel or for each sample, and seeds in any form."""
    N, C, H, W = draw(images(small=small))
    D = draw(st.integers(1, 9))
    shape, axis = draw(st.sampled_from([((N, D, H, W), 1), ((N, C), 1), ((N, H, D), -1), ((D, C), 0), ((D,), 0)]))
    size = math.prod(shape)
    seeds = draw(st.sampled_from([S for S in (1, 2, 3, N, N * D) if S > 0 and size % S == 0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    seed = draw(
        st.sampled_from(
            [
                None,
                rng.integers(-(2**63), 2**63, (seeds,)),
                rng.integers(-(2**31), 2**31, (seeds, 2), np.int32),
                np.array(draw(st.integers(0, 5))),
            ]
        )
    )
    options = {
        "tau": draw(st.sampled_from([1.0, 0.1, 1e-3, 30.0, 1e3])),
        "hard": draw(st.booleans()),
        "offset": draw(st.sampled_from([0, 1, 2**32 - 3, 2**63 - 1])),
        "axis": axis,
    }
    return (array(shape), seed), options


CALLS = {"adaptive_dilation_conv2d": adaptive_dilation_conv2d, "gumbel_softmax": gumbel_softmax}


@st.composite
def _indices(draw: st.DrawFn, shape: Shape, count: int) -> Any:
    """Draw which of `count` candidates each pixel takes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    indices = rng.integers(0, count, shape).astype(draw(st.sampled_from([np.int32, np.int64])))
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](indices)


def _kernels(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Return a strategy for (kh, kw): 3 x 3, and any rectangle."""
    return st.one_of(st.just((3, 3)), st.tuples(st.integers(1, most), st.integers(1, most)))
