"""Run every operator of this machine's backends against the float64 reference."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import numpy as np

import dynk
from dynk import testing
from dynk._dispatch import runner_of
from dynk._operator import Operator, operators


class Row(NamedTuple):
    """The outcome of one operator on one backend in one dtype."""

    operator: str
    backend: str
    dtype: str
    calls: int
    seconds: float
    failure: str | None


def run(*, seed: int = 0, as_json: bool = False) -> int:
    """Print the table and return 0 if everything agrees, else 1."""
    rows = [
        check(op, status.name, dtype, seed)
        for status in dynk.backends()
        if status.reason is None
        for dtype in status.dtypes
        if dtype != "bfloat16" or _has_bfloat16()
        for op in operators().values()
        if op.has_launchers(runner_of(status.name).LAUNCHERS)
    ]
    failed = [row for row in rows if row.failure is not None]
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return int(bool(failed))
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("operator", "backend", "dtype", "calls", "seconds", "agrees with the reference")
    for row in rows:
        verdict = "[green]yes[/]" if row.failure is None else f"[red]no[/]: {escape(row.failure)}"
        table.add_row(row.operator, row.backend, row.dtype, str(row.calls), f"{row.seconds:.2f}", verdict)
    console = Console()
    console.print(table)
    for status in dynk.backends():
        if status.reason is not None:
            console.print(f"{status.name} is not checked: {status.reason}", style="yellow", markup=False)
    console.print(f"{len(rows) - len(failed)} of {len(rows)} agree, forward and backward, within the error bound.")
    return int(bool(failed))


def check(op: Operator, backend: str, dtype: str, seed: int) -> Row:
    """Run an operator's sample calls, forward and backward, and compare them with the reference."""
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    failure = None
    calls = 0
    try:
        for call in testing.sample_calls(op, dtype, rng):
            _compare(call, backend, rng)
            calls += 2
    except AssertionError as error:
        failure = str(error)
    except Exception as error:  # whatever a backend raises is its row's verdict, and the others are still run
        failure = f"{type(error).__name__}: {error}"
    return Row(op.name, backend, dtype, calls, time.perf_counter() - start, failure)


def _compare(call: testing.Call, backend: str, rng: np.random.Generator) -> None:
    grad_out = testing.rounded(rng.standard_normal(call.plan.out_shape), call.plan.dtype)
    there = call.with_arrays(*(None if a is None else _to_device(backend, a) for a in call.arrays))
    out = _to_host(there.forward(backend=backend))
    testing.assert_close(out, *call.expected_forward(), what=repr(call))
    gradients = there.backward(_to_device(backend, grad_out), backend=backend)
    for name, gradient, want, terms in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            testing.assert_close(_to_host(gradient), want, terms, what=f"grad_{name} of {call!r}")


def _to_device(backend: str, array: Any) -> Any:
    if backend == "cupy":
        import cupy

        return cupy.asarray(array)
    if backend == "numba-cuda":
        from numba import cuda

        return cuda.to_device(array)
    return array


def _to_host(array: Any) -> Any:
    if hasattr(array, "copy_to_host"):
        return array.copy_to_host()
    return array.get() if hasattr(array, "get") else array


def _has_bfloat16() -> bool:
    try:
        import ml_dtypes  # noqa: F401
    except ImportError:
        return False
    return True
