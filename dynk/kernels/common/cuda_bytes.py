"""The bytes that the CUDA C kernels of a call must move: the model that measured bandwidth is compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dynk._operator import Operator, Plan
from dynk.kernels.common.dtypes import ITEMSIZE


@dataclass(frozen=True)
class _Operand:
    """An array of a call, as far as the model goes."""

    nbytes: int
    dtype: Any = None


class _Meter:
    """The runtime object of launch functions; notes each kernel and the bytes of its operands."""

    def __init__(self) -> None:
        self.kernels: list[tuple[str, int]] = []

    def launch(
        self, source: str, expression: str, grid: Any, block: Any, args: tuple[Any, ...], shared: int = 0
    ) -> None:
        self.kernels.append((expression, sum(a.nbytes for a in args if isinstance(a, _Operand))))

    def workspace(self, count: int, dtype: str) -> _Operand:
        return _Operand(count * ITEMSIZE[dtype])


def kernel_bytes(
    op: Operator, direction: str, plan: Plan, shapes: tuple[tuple[int, ...] | None, ...]
) -> list[tuple[str, int]]:
    """Return (name expression, bytes) of each kernel that a call launches, all gradients wanted.

    Every operand of a kernel, workspace included, counts once: what is read again should come from a cache.
    """
    itemsize = ITEMSIZE[plan.dtype]
    arrays = [None if shape is None else _Operand(itemsize * math.prod(shape)) for shape in shapes]
    out = _Operand(itemsize * math.prod(plan.out_shape))
    meter = _Meter()
    launch = getattr(op.launchers("cupy_raw"), f"{op.launcher}_{direction}")
    if direction == "forward":
        launch(meter, plan, *arrays, out)
    else:
        launch(meter, plan, out, *arrays, *arrays)
    return meter.kernels
