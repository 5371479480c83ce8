"""Runs calls on the NumPy reference: float64 inside, rounded once.

It computes every gradient and keeps those that are wanted.
"""

from __future__ import annotations

from typing import Any

from dynk._operator import Operator, Plan
from dynk.kernels.common.dtypes import FLOATS, INTEGERS, narrow, widen

NAME = "reference"
DEVICE = "cpu"
DTYPES = FLOATS
LAUNCHERS = "reference"


def unavailable() -> str | None:
    """Return why this backend cannot run here: it always can."""
    return None


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
    launch = getattr(op.launchers(LAUNCHERS), f"{op.launcher}_{direction}")
    results = launch(plan, *(None if a is None else widen(a, _dtype_of(a, plan)) for a in inputs))
    for output, values in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
        if output is not None:
            output[...] = narrow(values, plan.dtype)


def _dtype_of(storage: Any, plan: Plan) -> str:
    name: str = storage.dtype.name
    return name if name in INTEGERS else plan.dtype
