"""How to draw calls of the deformable family, in the form of `_decoupled`.

Offsets are drawn where it matters: between positions, exactly on them and halfway, far outside and infinite. Where
kernel offsets and dense weights meet, every output reads the whole scope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dynk._operator import Shape
from dynk.testing.strategies import groups_of, images, pairs

Drawn = tuple[tuple[Any, ...], dict[str, Any]]


def _between(rng: np.random.Generator, shape: Shape) -> Any:
    return rng.integers(-3, 3, shape) + rng.choice([0.25, 0.75], shape) + rng.uniform(-0.1, 0.1, shape)


def _far(rng: np.random.Generator, shape: Shape) -> Any:
    values = rng.standard_normal(shape)
    places = rng.random(shape) < 0.3
    return np.where(places, rng.choice([1e2, -1e2, 1e4, -1e4, 1e12, -1e12, math.inf, -math.inf], shape), values)


OFFSETS: tuple[Callable[[np.random.Generator, Shape], Any], ...] = (
    lambda rng, shape: rng.standard_normal(shape),
    _between,
    lambda rng, shape: rng.integers(-3, 4, shape).astype(np.float64),
    lambda rng, shape: rng.integers(-6, 7, shape) / 2,
    lambda rng, shape: rng.integers(-3, 4, shape) + rng.choice([1e-3, -1e-3, 1e-9, -1e-9, 0], shape),
    _far,
    lambda rng, shape: np.zeros(shape),
)


def deformable_conv2d(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `deformable_conv2d`: any of its forms, dense, grouped or depth-wise."""
    N, C, H, W = draw(images(small=small))
    moves_kernel, moves_data, has_mask = draw(
        st.sampled_from([(1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1), (0, 0, 1), (0, 0, 0)])
    )
    few = C > 16
    kernel = draw(_kernels(2 if few else 3 if small else 7))
    scope = draw(st.one_of(st.just((4, 4)), _kernels(3 if few else 4 if small else 9))) if moves_kernel else kernel
    groups = draw(st.one_of(st.sampled_from([1, C]), groups_of(C)))
    O = groups * draw(st.integers(1, 2 if groups > 4 else 9))  # noqa: E741
    stride, dilation = draw(st.one_of(st.just(1), pairs(1, 3))), draw(st.one_of(st.just(1), pairs(1, 3)))
    padding = draw(pairs(0, 4))
    (pad_h, pad_w), (dil_h, dil_w), (stride_h, stride_w) = map(_pair, (padding, dilation, stride))
    reach_h, reach_w = (kernel[0] - 1) * dil_h, (kernel[1] - 1) * dil_w
    short_h, short_w = reach_h + 1 - H - 2 * pad_h, reach_w + 1 - W - 2 * pad_w
    if short_h > 0 or short_w > 0:  # the image is too small for the kernel
        pad_h, pad_w = pad_h + max(0, -(-short_h // 2)), pad_w + max(0, -(-short_w // 2))
        padding = (pad_h, pad_w)
    pixels = (H + 2 * pad_h - reach_h - 1) // stride_h + 1, (W + 2 * pad_w - reach_w - 1) // stride_w + 1
    Gk, Gd = draw(groups_of(C)), draw(groups_of(C))

    def offsets(blocks: int) -> Any:
        return array((N, blocks, *kernel, 2, *pixels), draw(st.sampled_from(OFFSETS)), special=False)

    arrays = (
        array((N, C, H, W)),
        array((O, C // groups, *scope)),
        offsets(Gk) if moves_kernel else None,
        offsets(Gd) if moves_data else None,
        array((N, Gd, *kernel, *pixels)) if has_mask else None,
        array((O,)) if draw(st.booleans()) else None,
    )
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if draw(st.booleans()):
        options["kernel_size"] = kernel
    if moves_kernel:
        options["kernel_boundary"] = draw(st.sampled_from(["clip", "zeros"]))
    return arrays, options


def sample_kernel(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `sample_kernel`."""
    N = draw(st.integers(0, 3))
    O, I = draw(st.tuples(st.integers(1, 6), st.sampled_from([1, 1, 2, 5, 33])))  # noqa: E741
    if not small and draw(st.booleans()):
        O = draw(st.sampled_from([16, 31, 33, 65, 130]))  # noqa: E741
    scope, kernel = draw(_kernels(4 if small else 9)), draw(_kernels(3 if small else 7))
    kernel_offset = array((N, draw(groups_of(O)), *kernel, 2), draw(st.sampled_from(OFFSETS)), special=False)
    options = {
        "kernel_size": draw(st.sampled_from([None, kernel])),
        "kernel_boundary": draw(st.sampled_from(["clip", "zeros"])),
    }
    return (array((O, I, *scope)), kernel_offset), options


CALLS = {"deformable_conv2d": deformable_conv2d, "sample_kernel": sample_kernel}


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _kernels(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Return a strategy for (kh, kw): 3 x 3, and any rectangle."""
    return st.one_of(st.just((min(3, most),) * 2), st.tuples(st.integers(1, most), st.integers(1, most)))
