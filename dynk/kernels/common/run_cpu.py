"""Runs calls on the Numba CPU kernels.

`<launcher>_<direction>` of a family's `cpu.py` is a kernel, or a `Choice` of them. A kernel takes flat C-contiguous
arrays of one storage type, its inputs then its outputs, with an empty array where one is absent, then the plan's
geometry (int64) and reals (float64). An input that may hold integers is taken twice, as floats and as the 32-bit words
of its integers, one of them empty: a kernel is compiled once whatever it holds.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from dynk._operator import Operator, Plan
from dynk.kernels.common import threads
from dynk.kernels.common.compile import Choice, serial
from dynk.kernels.common.dtypes import FLOATS, INTEGERS, STORAGE

NAME = "cpu"
DEVICE = "cpu"
DTYPES = FLOATS
LAUNCHERS = "cpu"

_ABSENT = {name: np.empty(0, STORAGE[name]) for name in FLOATS}
_NO_WORDS = np.empty(0, np.int32)
_OF_INTEGERS = frozenset(map(np.dtype, INTEGERS))  # the name of a dtype is slow to come by


def unavailable() -> str | None:
    """Return why this backend cannot run here: it always can."""
    return None


class _Writable:
    """Lends memory without the read-only flag, for which Numba would compile every kernel anew."""

    def __init__(self, array: Any) -> None:
        self._owner = array
        self.__array_interface__ = dict(array.__array_interface__, data=(array.__array_interface__["data"][0], False))


def flat(array: Any) -> Any:
    """Return the flat form in which every kernel takes an array."""
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return array.reshape(-1)


@cache
def kernel_inputs(op: Operator, direction: str) -> tuple[tuple[str, bool], ...]:
    """Return the name of each array that a kernel reads, and whether it takes it as words of integers."""
    names = ("grad_out", *op.arrays) if direction == "backward" else op.arrays
    return tuple((name, words) for name in names for words in ((False, True) if name in op.integers else (False,)))


def arrays_read(op: Operator, direction: str, inputs: tuple[Any, ...], absent: Any) -> list[Any]:
    """Return the arrays that a kernel of an operator that may get integers reads."""
    names = ("grad_out", *op.arrays) if direction == "backward" else op.arrays
    given = dict(zip(names, inputs, strict=True))
    arrays = []
    for name, words in kernel_inputs(op, direction):
        array = given[name]
        if array is None or words != (name in op.integers and array.dtype in _OF_INTEGERS):
            arrays.append(_NO_WORDS if words else absent)
        else:
            arrays.append(flat(array).view(np.int32) if words else flat(array))
    return arrays


@lru_cache(maxsize=4096)
def kernel_of(op: Operator, direction: str, plan: Plan) -> Any:
    """Return the kernel of a call."""
    found = getattr(op.launchers(LAUNCHERS), f"{op.launcher}_{direction}")
    return found.kernel_for(plan.geometry) if isinstance(found, Choice) else found


def run(
    op: Operator,
    direction: str,
    plan: Plan,
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    device: tuple[str, int],
    stream: int,
) -> None:
    """Run `<launcher>_<direction>` and write its results to `outputs`, of which None is not wanted."""
    op.check_inputs(direction, plan, inputs)
    kernel = kernel_of(op, direction, plan)
    absent = _ABSENT[plan.dtype]
    if op.integers:
        read = arrays_read(op, direction, inputs, absent)
        arrays = read + [absent if a is None else flat(a) for a in outputs]
    else:
        arrays = [absent if a is None else flat(a) for a in (*inputs, *outputs)]
    arguments = *arrays, plan.geometry_array, plan.reals_array
    mode = threads.mode()
    if mode is threads.PARALLEL:
        kernel(*arguments)
    elif mode is threads.SHARED:
        threads.call_shared(kernel, arguments)
    elif mode is threads.SERIAL:
        serial(kernel)(*arguments)
    else:
        with threads.TURN:
            kernel(*arguments)
