"""Calls as functions of JAX, and what they must give."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np
import pytest

from dynk.testing import Call, assert_close

jax = pytest.importorskip("jax", reason="JAX is not installed")
import dynk_jax  # noqa: E402


def function_of(call: Call) -> Callable[..., Any]:
    """Return the JAX function of the arrays of a call that are not None."""

    def function(*given: Any) -> Any:
        rest = iter(given)
        arrays = [None if array is None else next(rest) for array in call.arrays]
        named = dict(zip(call.op.arrays, arrays, strict=True))
        return getattr(dynk_jax, call.op.name)(**named, **call.options)

    return function


def given_of(call: Call) -> list[Any]:
    return [array for array in call.arrays if array is not None]


def forward_and_backward(call: Call) -> Callable[..., Any]:
    """Return the function (grad_out, *arrays that are given) -> (out, gradients)."""

    def both(grad_out: Any, *given: Any) -> Any:
        out, pull = jax.vjp(function_of(call), *given)
        return out, pull(grad_out)

    return both


def assert_results(call: Call, grad_out: Any, out: Any, gradients: Any) -> None:
    """Assert that an output and the gradients of the arrays that are given are those of the reference."""
    assert out.dtype.name == call.plan.dtype
    assert_close(out, *call.expected_forward())
    given = [array is not None for array in call.arrays]
    expected, magnitudes = (compress(wanted, given) for wanted in call.expected_backward(grad_out))
    for gradient, want, magnitude in zip(gradients, expected, magnitudes, strict=True):
        if want is None:
            assert gradient.dtype == jax.dtypes.float0
        else:
            assert gradient.dtype.name == call.plan.dtype
            assert_close(gradient, want, magnitude)


def arrays(*shapes: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


X, SPATIAL, CHANNEL = (2, 4, 4, 5), (2, 2, 3, 3, 4, 5), (2, 4, 3, 3)
