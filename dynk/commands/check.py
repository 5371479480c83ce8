"""Run every operator of this machine's backends against the float64 reference."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import numpy as np

import dynk
from dynk import testing
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
    ]
    failed = [row for row in rows if row.failure is not None]
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return int(bool(failed))
    from rich.console import Console
    from rich.table import Table

    table = Table("operator", "backend", "dtype", "calls", "seconds", "agrees with the reference")
    for row in rows:
        verdict = "[green]yes[/]" if row.failure is None else f"[red]no[/]: {row.failure}"
        table.add_row(row.operator, row.backend, row.dtype, str(row.calls), f"{row.seconds:.2f}", verdict)
    console = Console()
    console.print(table)
    for status in dynk.backends():
        if status.reason is not None:
            console.print(f"{status.name} is not checked: {status.reason}", style="yellow")
    console.print(f"{len(rows) - len(failed)} of {len(rows)} agree, forward and backward, within the error bound.")
    return int(bool(failed))


def check(op: Operator, backend: str, dtype: str, seed: int) -> Row:
    """Run an operator's sample calls, forward and backward, and compare them with the reference."""
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    failure = None
    calls = 0
    try:
        for shapes, options in op.samples:
            arrays = tuple(None if s is None else testing.rounded(rng.standard_normal(s), dtype) for s in shapes)
            _compare(op, backend, dtype, arrays, options, rng)
            calls += 2
    except (AssertionError, NotImplementedError) as error:
        failure = str(error)
    return Row(op.name, backend, dtype, calls, time.perf_counter() - start, failure)


def _compare(
    op: Operator, backend: str, dtype: str, arrays: tuple[Any, ...], options: dict[str, Any], rng: Any
) -> None:
    canonical = op.canonical(**options)
    shapes = tuple(None if a is None else a.shape for a in arrays)
    plan = op.plan(op.name, shapes, tuple(None if a is None else dtype for a in arrays), canonical)
    grad_out = testing.rounded(rng.standard_normal(plan.out_shape), dtype)
    device = tuple(None if a is None else _to_device(backend, a) for a in arrays)
    forward, backward = getattr(dynk, op.name), getattr(dynk, f"{op.name}_backward")
    out = forward(*device, **options, backend=backend)
    want, magnitude = testing.expected_forward(op, arrays, plan)
    testing.assert_close(_to_host(out), want, magnitude, what=f"{op.name}{shapes} {options}")
    gradients = backward(_to_device(backend, grad_out), *device, **options, backend=backend)
    wants, magnitudes = testing.expected_backward(op, grad_out, arrays, plan)
    for name, gradient, want, magnitude in zip(op.arrays, gradients, wants, magnitudes, strict=True):
        if gradient is not None:
            what = f"grad_{name} of {op.name}{shapes} {options}"
            testing.assert_close(_to_host(gradient), want, magnitude, what=what)


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
