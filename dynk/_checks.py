"""Every check of shapes, dtypes and options, and all the wording of its errors.

Each message names the function, the argument, what is expected in dimension names and numbers, and what was given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynk._operator import Dtypes, Operator, Shape
from dynk.kernels.common.dtypes import FLOATS, INTEGERS

# A tap may lie this far from its anchor and no farther: its coordinate must fit the 32-bit indices of kernels.
MAX_REACH = 2**30


def integer(function: str, argument: str, value: Any, *, least: int = 1, most: int = MAX_REACH) -> int:
    """Return `value` as an int within [least, most]."""
    if isinstance(value, bool):
        msg = f"{function}: {argument} must be an int, got {brief(value)}"
        raise TypeError(msg)
    try:
        number = operator.index(value)
    except Exception:
        msg = f"{function}: {argument} must be an int, got {brief(value)}"
        raise TypeError(msg) from None
    if not least <= number <= most:
        msg = f"{function}: {argument} must lie between {least} and {most}, got {brief(number)}"
        raise ValueError(msg)
    return number


def pair(function: str, argument: str, value: Any, *, least: int = 1) -> tuple[int, int]:
    """Return an int or an (h, w) pair as a pair of ints of at least `least`."""
    if type(value) is int and least <= value <= MAX_REACH:
        return value, value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) != 2:
            msg = f"{function}: {argument} must be an int or an (h, w) pair, got {brief(value)}"
            raise ValueError(msg)
        return integer(function, argument, value[0], least=least), integer(function, argument, value[1], least=least)
    try:
        number = integer(function, argument, value, least=least)
    except TypeError:
        msg = f"{function}: {argument} must be an int or an (h, w) pair, got {brief(value)}"
        raise TypeError(msg) from None
    return number, number


def flag(function: str, argument: str, value: Any) -> bool:
    """Return `value` if it is a bool, of Python or of NumPy."""
    if not isinstance(value, bool | np.bool_):
        msg = f"{function}: {argument} must be a bool, got {brief(value)}"
        raise TypeError(msg)
    return bool(value)


def choice(function: str, argument: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is one of the strings `allowed`."""
    if not isinstance(value, str):
        msg = f"{function}: {argument} must be one of {_either(allowed)}, got {brief(value)}"
        raise TypeError(msg)
    if value not in allowed:
        msg = f"{function}: {argument} must be one of {_either(allowed)}, got {brief(value)}"
        raise ValueError(msg)
    return str(value)


def real(function: str, argument: str, value: Any, *, least: float = -math.inf) -> float:
    """Return `value` as a finite float of at least `least`."""
    if isinstance(value, bool | str | bytes):
        msg = f"{function}: {argument} must be a real number, got {brief(value)}"
        raise TypeError(msg)
    try:
        number = float(value)
    except Exception:  # tensors of several numbers raise RuntimeError
        msg = f"{function}: {argument} must be a real number, got {brief(value)}"
        raise TypeError(msg) from None
    if not math.isfinite(number) or number < least:
        bound = "finite" if least == -math.inf else f"finite and at least {least}"
        msg = f"{function}: {argument} must be {bound}, got {number}"
        raise ValueError(msg)
    return number


def bind(function: str, argument: str, shape: Shape, dims: str, sizes: dict[str, int]) -> None:
    """Match a shape with space-separated dimension names.

    Names already in `sizes` must agree, new ones are added to it. Every extent but N must be at least 1.
    """
    names = dims.split()
    known = {name: str(extent) for name, extent in sizes.items()}
    if len(shape) != len(names) or any(
        extent != sizes.setdefault(name, extent) for name, extent in zip(names, shape, strict=True)
    ):
        expected = _tuple(names)
        if known.keys() & set(names):
            expected += f" = {_tuple([known.get(name, name) for name in names])}"
        msg = f"{function}: {argument} must have shape {expected}, got {_tuple(shape)}"
        raise ValueError(msg)
    if any(extent < 1 and name != "N" for name, extent in zip(names, shape, strict=True)):
        msg = (
            f"{function}: {argument} must have extents of at least 1 but for N in {_tuple(names)}, got {_tuple(shape)}"
        )
        raise ValueError(msg)


def common_dtype(function: str, op: Operator, dtypes: Dtypes) -> str:
    """Return the one floating type that all floating array arguments must have."""
    common: str | None = None
    owner = ""
    for name, dtype in zip(op.arrays, dtypes, strict=True):
        if dtype is None:
            if name not in op.optional:
                msg = f"{function}: {name} must be an array, got None"
                raise TypeError(msg)
        elif dtype in INTEGERS and name in op.integers:
            continue
        elif dtype not in FLOATS:
            msg = f"{function}: {name} must have dtype {_either(FLOATS)}, got {dtype}"
            raise TypeError(msg)
        elif common is None:
            common, owner = dtype, name
        elif dtype != common:
            msg = f"{function}: {name} must have the dtype of {owner}, {common}, got {dtype}"
            raise TypeError(msg)
    if common is None:
        msg = f"{function}: at least one of {', '.join(op.arrays)} must be a floating array, got none"
        raise TypeError(msg)
    return common


def divides(function: str, argument: str, groups: int, dim: str, whole_name: str, whole: int) -> None:
    """Check that the extent `dim` of an argument divides another extent."""
    if whole % groups:
        msg = f"{function}: {argument} must have {dim} that divides {whole_name} = {whole}, got {dim} = {groups}"
        raise ValueError(msg)


def reach(function: str, extent: int, dilation: int, argument: str = "dilation") -> None:
    """Check that the taps of a dilated kernel stay within the coordinates that kernels can hold."""
    if (extent - 1) * dilation > MAX_REACH:
        msg = f"{function}: {argument} must be at most {MAX_REACH // (extent - 1)} for {extent} taps, got {dilation}"
        raise ValueError(msg)


def _either(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _tuple(items: Sequence[object]) -> str:
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def brief(value: object) -> str:
    """Return how a value that is wrong is shown in an error; some have no repr, and some a very long one."""
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
