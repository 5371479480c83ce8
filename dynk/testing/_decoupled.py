"""How to draw calls of the decoupled family.

Each function takes hypothesis' `draw`, `array(shape, fill=None)` that draws one array of the call, and whether to stay
small; it returns the array arguments and the options. A new family is a new file of this form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from dynk._operator import Shape
from dynk.testing.strategies import groups_of, images, pairs

Drawn = tuple[tuple[Any, ...], dict[str, Any]]


def ddf(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `ddf`."""
    N, C, H, W = draw(images(small=small))
    kh, kw = draw(_kernels(7))
    stride = draw(st.one_of(st.just(1), pairs(1, 3)))
    dilation = draw(st.one_of(st.just(1), pairs(1, 3), pairs(1, 40)))
    stride_h, stride_w = (stride, stride) if isinstance(stride, int) else stride
    spatial, channel = draw(_PRESENT)
    G = draw(groups_of(C)) if spatial else 1
    arrays = (
        array((N, C, H, W)),
        array((N, G, kh, kw, -(-H // stride_h), -(-W // stride_w))) if spatial else None,
        array((N, C, kh, kw)) if channel else None,
    )
    return arrays, {"stride": stride, "dilation": dilation, "combine": draw(_COMBINE)}


def ddf_upsample(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `ddf_upsample`."""
    N, C, H, W = draw(images(small=small))
    s = draw(st.integers(1, 4))
    kh, kw = draw(_kernels({1: 7, 2: 5, 3: 3, 4: 3}[s]))
    spatial, channel = draw(_PRESENT)
    G = draw(groups_of(C)) if spatial else 1
    arrays = (
        array((N, C, H, W)),
        array((N, G, s, s, kh, kw, H, W)) if spatial else None,
        array((N, C, s, s, kh, kw)) if channel else None,
    )
    return arrays, {"scale": s, "dilation": draw(pairs(1, 3)), "combine": draw(_COMBINE)}


def filter_norm(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `filter_norm`: a spatial or channel filter, or the tap axes anywhere in another array."""
    N, C, H, W = draw(images(small=small))
    kh, kw = draw(_kernels(7).filter(lambda kernel: kernel != (1, 1)))
    shape, first, second = draw(
        st.sampled_from(
            [
                ((N, draw(st.integers(1, 3)), kh, kw, H, W), 2, 3),
                ((N, C, kh, kw), 2, 3),
                ((kw, C, kh), 2, 0),
                ((kh, kw), 0, 1),
                ((N, kh, 2, C, kw, 3), 1, 4),
            ]
        )
    )
    axes = (
        first - draw(st.sampled_from([0, len(shape)])),
        second - draw(st.sampled_from([0, len(shape)])),
    )
    parameters = [array(draw(_broadcasting(shape))) if draw(st.booleans()) else None for _ in ("scale", "shift")]
    eps = draw(st.sampled_from([1e-10, 1e-3, 0.0]))
    return (array(shape), *parameters), {"axes": draw(st.permutations(axes).map(tuple)), "eps": eps}


CALLS = {"ddf": ddf, "ddf_upsample": ddf_upsample, "filter_norm": filter_norm}

_PRESENT = st.sampled_from([(True, True), (True, False), (False, True)])
_COMBINE = st.sampled_from(["mul", "add"])


def _kernels(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Return a strategy for (kh, kw): the square odd ones of the papers, and any rectangle."""
    square = st.sampled_from([(k, k) for k in (3, 5, 7) if k <= most])
    return st.one_of(square, st.tuples(st.integers(1, most), st.integers(1, most)))


@st.composite
def _broadcasting(draw: st.DrawFn, shape: Shape) -> Shape:
    """Draw a shape that broadcasts to `shape` without enlarging it."""
    kept = tuple(extent if draw(st.booleans()) else 1 for extent in shape)
    return kept[draw(st.integers(0, len(shape))) :]
