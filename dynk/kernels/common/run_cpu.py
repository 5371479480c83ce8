"""Runs calls on the Numba CPU kernels.

Every kernel of a family's `cpu.py` takes flat C-contiguous arrays of one storage type, its inputs then its outputs,
with an empty array where one is absent, then the plan's geometry (int64) and reals (float64).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from dynk._operator import Operator, Plan
from dynk.kernels.common import threads
from dynk.kernels.common.compile import serial
from dynk.kernels.common.dtypes import FLOATS, STORAGE

NAME = "cpu"
DEVICE = "cpu"
DTYPES = FLOATS
LAUNCHERS = "cpu"

_ABSENT = {name: np.empty(0, STORAGE[name]) for name in FLOATS}


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
def _kernel(op: Operator, direction: str) -> Any:
    return getattr(op.launchers(LAUNCHERS), f"{op.launcher}_{direction}")


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
    kernel = _kernel(op, direction)
    absent = _ABSENT[plan.dtype]
    arrays = [absent if a is None else flat(a) for a in (*inputs, *outputs)]
    mode = threads.mode()
    if mode is threads.PARALLEL:
        kernel(*arrays, plan.geometry_array, plan.reals_array)
    elif mode is threads.SERIAL:
        serial(kernel)(*arrays, plan.geometry_array, plan.reals_array)
    else:
        with threads.TURN:
            kernel(*arrays, plan.geometry_array, plan.reals_array)
