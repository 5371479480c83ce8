"""One call of an operator as a value: its arrays, its options, and what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import dynk
from dynk import _arrays
from dynk._operator import Operator, Plan
from dynk.testing._bound import expected_backward, expected_forward, rounded


class Call:
    """One call of an operator.

    Parameters
    ----------
    op : Operator
        The operator, as in `dynk.decoupled.OPERATORS`.
    arrays : tuple
        A NumPy array or None for each array argument.
    options : mapping
        The keyword options, as the public function takes them.

    Examples
    --------
    >>> import numpy as np
    >>> from dynk import decoupled, testing
    >>> image, filters = np.ones((1, 2, 4, 4)), np.ones((1, 2, 3, 3))
    >>> call = testing.Call(decoupled.DDF, (image, None, filters), {"stride": 2})
    >>> call
    ddf(x=float64 (1, 2, 4, 4), spatial=None, channel=float64 (1, 2, 3, 3), stride=2)
    >>> expected, magnitude = call.expected_forward()
    >>> testing.assert_close(call.forward(), expected, magnitude)
    """

    def __init__(self, op: Operator, arrays: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.op = op
        self.arrays = arrays
        self.options = options

    @cached_property
    def plan(self) -> Plan:
        """The checked plan: dtype, output shape and geometry."""
        borrowed = _arrays.borrow(self.op.name, self.op.arrays, self.arrays)
        return self.op.plan(self.op.name, borrowed.shapes, borrowed.dtypes, self.op.canonical(**self.options))

    def forward(self, **keywords: Any) -> Any:
        """Return what the public function returns; `keywords` are out and backend."""
        return getattr(dynk, self.op.name)(*self.arrays, **self.options, **keywords)

    def backward(self, grad_out: Any, **keywords: Any) -> Any:
        """Return what the public gradient function returns; `keywords` are needs, grads and backend."""
        return getattr(dynk, f"{self.op.name}_backward")(grad_out, *self.arrays, **self.options, **keywords)

    def expected_forward(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the reference output and the magnitude of its terms."""
        return expected_forward(self.op, self.arrays, self.plan)

    def expected_backward(self, grad_out: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the reference gradients and the magnitudes of their terms, None for an absent argument."""
        return expected_backward(self.op, grad_out, self.arrays, self.plan)

    def with_arrays(self, *arrays: Any) -> Call:
        """Return the same call of other arrays, of any kind."""
        return Call(self.op, arrays, self.options)

    def __repr__(self) -> str:
        named = [f"{name}={_describe(array)}" for name, array in zip(self.op.arrays, self.arrays, strict=True)]
        named += [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{self.op.name}({', '.join(named)})"


def sample_calls(op: Operator, dtype: str, rng: np.random.Generator) -> list[Call]:
    """Return an operator's declared sample calls with random arrays.

    Parameters
    ----------
    op : Operator
        The operator, as in `dynk.decoupled.OPERATORS`.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        The type of the floating arrays.
    rng : numpy.random.Generator
        Where their values come from, normally distributed.

    Examples
    --------
    >>> import numpy as np
    >>> from dynk import decoupled, testing
    >>> testing.sample_calls(decoupled.FILTER_NORM, "float32", np.random.default_rng(0))[-1]
    filter_norm(f=float32 (7, 9), scale=None, shift=None, axes=(0, 1))
    """
    return [
        Call(op, tuple(_sample(entry, dtype, rng) for entry in entries), options) for entries, options in op.samples
    ]


def _sample(entry: Any, dtype: str, rng: np.random.Generator) -> Any:
    if entry is None or (isinstance(entry, np.ndarray) and entry.dtype.kind != "f"):
        return entry
    return rounded(entry if isinstance(entry, np.ndarray) else rng.standard_normal(entry), dtype)


def _describe(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return "None" if array is None else type(array).__name__
    notes = [] if array.flags.c_contiguous else [f"strides {array.strides}"]
    notes += [] if array.flags.writeable else ["read-only"]
    finite = np.isfinite(array.astype(np.float64, copy=False))
    notes += [] if finite.all() else [f"not finite at {[tuple(map(int, at)) for at in np.argwhere(~finite)]}"]
    return " ".join([f"{array.dtype.name} {array.shape}", *notes])
