"""Hypothesis strategies that draw arrays and whole calls of dynk's operators; needs `pip install hypothesis`.

Hypothesis draws everything that decides which path a kernel takes: shapes, groups, strides, dilations, kernel sizes,
absent arguments, memory layouts, where NaN and infinity stand. The values themselves come from a drawn seed, so that an
array of thousands of elements costs one draw; a failing example shrinks in its shapes and prints as a `Call`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from dynk._operator import Operator, Shape, operators
from dynk.testing._bound import rounded
from dynk.testing._calls import Call

__all__ = ["LAYOUTS", "arrays", "calls", "grad_outs", "groups_of", "images", "pairs"]

Array = npt.NDArray[Any]


def _fortran(array: Array) -> Array:
    return np.asfortranarray(array)


def _transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.swapaxes(0, -1)).swapaxes(0, -1)


def _sliced(array: Array) -> Array:
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1] + 1), 7, array.dtype)  # what lies between must not be read
    wide[..., 1::2] = array
    return wide[..., 1::2]


def _reversed(array: Array) -> Array:
    return np.ascontiguousarray(np.flip(array))[tuple([slice(None, None, -1)] * array.ndim)]


def _read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


# How an array may lie in memory, by name: functions that return the same values in that layout.
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda array: array,
    "read-only": _read_only,
    "fortran": _fortran,
    "transposed": _transposed,
    "sliced": _sliced,
    "reversed": _reversed,
}

Fill = Callable[[np.random.Generator, Shape], npt.NDArray[np.float64]]

FILLS: dict[str, Fill] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "integers": lambda rng, shape: rng.integers(-2, 3, shape).astype(np.float64),  # zeros and ties
    "wide": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape),
}


@st.composite
def arrays(
    draw: st.DrawFn,
    dtype: str,
    shape: Shape,
    *,
    allow_nan: bool = False,
    allow_infinity: bool = False,
    layouts: bool = True,
    fill: str | Fill | None = None,
) -> Array:
    """Draw a NumPy array.

    Parameters
    ----------
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Its type; bfloat16 is that of ml_dtypes.
    shape : tuple of int
        Its shape.
    allow_nan, allow_infinity : bool, default False
        Whether up to three elements may be NaN, or +-infinity.
    layouts : bool, default True
        Whether it may lie in memory in any of `LAYOUTS`; if False it is C-contiguous and writeable.
    fill : {"normal", "integers", "wide"} or callable, optional
        What values it holds, as fill(rng, shape); drawn if None.

    Returns
    -------
    strategy of numpy.ndarray

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> @settings(max_examples=5, deadline=None, derandomize=True)
    ... @given(arrays("float16", (2, 3)))
    ... def test_shape(array):
    ...     assert array.shape == (2, 3)
    >>> test_shape()
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    values = (fill if callable(fill) else FILLS[fill or draw(st.sampled_from(list(FILLS)))])(rng, shape)
    specials = [np.nan] * allow_nan + [np.inf, -np.inf] * allow_infinity
    if specials and values.size:
        for value in draw(st.lists(st.sampled_from(specials), max_size=3)):
            values.flat[draw(st.integers(0, values.size - 1))] = value
    array = rounded(values, dtype)
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](array) if layouts and shape else array


@st.composite
def calls(
    draw: st.DrawFn,
    op: str | Operator,
    dtype: str,
    *,
    allow_nan: bool = False,
    allow_infinity: bool = False,
    layouts: bool = True,
    small: bool = False,
) -> Call:
    """Draw a valid call of an operator.

    Parameters
    ----------
    op : str or Operator
        The operator or its name, such as "ddf".
    dtype : {"float16", "bfloat16", "float32", "float64"}
        The type of its arrays.
    allow_nan, allow_infinity, layouts
        As in `arrays`, for every array of the call.
    small : bool, default False
        Whether images stay below 7 x 7 with few channels, for tests that cost much per element.

    Returns
    -------
    strategy of Call

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from dynk import testing
    >>> @settings(max_examples=5, deadline=None, derandomize=True)
    ... @given(calls("filter_norm", "float64", layouts=False))
    ... def test_norm(call):
    ...     expected, magnitude = call.expected_forward()
    ...     testing.assert_close(call.forward(), expected, magnitude)
    >>> test_norm()
    """
    if isinstance(op, str):
        op = operators()[op]
    family = importlib.import_module(f"dynk.testing._{op.family}")

    def array(shape: Shape, fill: str | Fill | None = None, *, special: bool = True) -> Array:
        specials = {"allow_nan": allow_nan and special, "allow_infinity": allow_infinity and special}
        return draw(arrays(dtype, shape, **specials, layouts=layouts, fill=fill))

    given, options = family.CALLS[op.name](draw, array, small)
    return Call(op, given, options)


def grad_outs(call: Call, **keywords: Any) -> st.SearchStrategy[Array]:
    """Return a strategy for the gradient of a call's output; `keywords` as in `arrays`."""
    return arrays(call.plan.dtype, call.plan.out_shape, **keywords)


# ---- what the families' own strategies are made of -------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn, *, small: bool = False) -> Shape:
    """Draw (N, C, H, W): small images for the most part, some wider, taller or deeper than a kernel's tile or block."""
    kind = "small" if small else draw(st.sampled_from(["small", "small", "wide", "tall", "deep"]))
    batch = draw(st.sampled_from([1, 2, 0] if small else [1, 2, 3, 0]))
    tile = st.sampled_from([16, 31, 33, 65, 130])
    few, extent = st.integers(1, 6), st.integers(1, 6 if small else 9)
    shapes = {
        "small": (few, extent, extent),
        "wide": (st.integers(1, 3), st.integers(1, 4), tile),
        "tall": (st.integers(1, 3), tile, st.integers(1, 4)),
        "deep": (tile, st.integers(1, 4), st.integers(1, 4)),
    }
    return (batch, *(draw(dimension) for dimension in shapes[kind]))


def pairs(least: int, most: int) -> st.SearchStrategy[int | tuple[int, int]]:
    """Return a strategy for an int or an (h, w) pair."""
    one = st.integers(least, most)
    return st.one_of(one, st.tuples(one, one))


def groups_of(channels: int) -> st.SearchStrategy[int]:
    """Return a strategy for the divisors of a number of channels."""
    return st.sampled_from([groups for groups in range(1, channels + 1) if channels % groups == 0])
