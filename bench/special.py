"""Rows of their own: the first call of a fresh process, and what a public call costs besides its kernel."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.devices import Cpu, Cuda
from bench.peers import PREALLOCATED, contenders, tensor
from bench.registry import Call, Case, Problem, cases
from bench.timing import Clock, Samples, interleave, sample
from dynk.kernels.common.run_cpu import kernel_of

_TINY = Case("ddf", "overhead of a call", "1x1x2x2, k = 2", ((1, 1, 2, 2), (1, 1, 2, 2, 2, 2), (1, 1, 2, 2)))
Row = dict[str, Any]


def row_of(case: Case, direction: str, samples: dict[str, Samples], **details: Any) -> Row:
    """Return the fields that every row has."""
    return {
        "operator": case.operator,
        "case": case.label,
        "size": case.size,
        "dtype": case.dtype,
        "direction": direction,
        **details,
        "contenders": {name: taken.summary() | {"yardstick": False} for name, taken in samples.items()},
    }


def overhead(device: Cpu | Cuda, direction: str, rounds: int) -> Row:
    """Time a public call on tiny arrays, on the host's clock; beside it, on the CPU, the kernel alone."""
    problem = Problem.draw(_TINY, direction, np.random.default_rng(0), device.kind)
    calls = {c.name: c.formulations[""] for c in contenders(problem)}
    if direction == "forward":
        import dynk_torch

        tensors = [tensor(a, device.kind) for a in problem.arrays]
        calls["dynk_torch"] = Call(lambda _: (dynk_torch.ddf(*tensors),))
    if device.kind == "cpu":
        calls["kernel alone"] = _kernel(problem)
    for call in calls.values():
        call()  # compiles
    return row_of(_TINY, direction, interleave(calls, clock=_host_clock(device), rounds=rounds))


def _kernel(problem: Problem) -> Call:
    plan, op = _TINY.plan, _TINY.op
    kernel = kernel_of(op, problem.direction, plan)
    inputs = problem.arrays if problem.direction == "forward" else (problem.grad_out, *problem.arrays)
    outputs = [np.zeros(shape, np.float32) for shape in problem.results.values()]
    flat = [array.reshape(-1) for array in (*inputs, *outputs)]
    return Call(lambda _: (kernel(*flat, plan.geometry_array, plan.reals_array),))


def _host_clock(device: Cpu | Cuda) -> Clock:
    """Return a clock that does not wait for the device."""

    def clock(call: Call, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds = time.perf_counter() - start
        device.synchronise()
        return seconds / repeats

    return clock


def first_call(device: Cpu | Cuda, case: Case, direction: str, rounds: int = 3) -> Row:
    """Time the first call of fresh processes, once with an empty cache of compiled kernels, then with a full one."""
    empty, cached = Samples(), Samples()
    with tempfile.TemporaryDirectory() as folder:
        run = _process(folder, device.kind, case.operator, direction)
        sample(empty, run)
        for _ in range(rounds):
            sample(cached, run)
    named = Case(case.operator, "first call of a process", case.size, case.shapes, case.options)
    return row_of(named, direction, {"empty cache": empty, "full cache": cached})


def _process(folder: str, *arguments: str) -> Callable[[], float]:
    environment = os.environ | {"NUMBA_CACHE_DIR": folder, "CUPY_CACHE_DIR": folder}

    def run() -> float:
        command = [sys.executable, "-m", "bench.special", *arguments]
        root = Path(__file__).parent.parent
        done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout))

    return run


def _first_call(kind: str, operator: str, direction: str) -> float:
    """Return the seconds of the first call of this process.

    NumPy and Numba are imported before, and what Numba imports at its first call where it is installed: cffi and SciPy,
    which dynk does not need.
    """
    for module in ("numba", "numba.core.typing.cffi_utils", "scipy.linalg"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    case = next(case for case in cases() if case.operator == operator)
    problem = Problem.draw(case, direction, np.random.default_rng(0), kind)
    call = next(c for c in contenders(problem) if c.name == PREALLOCATED).formulations[""]
    synchronise = _synchronise(kind)
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def _synchronise(kind: str) -> Callable[[], Any]:
    if kind == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


if __name__ == "__main__":
    print(json.dumps(_first_call(*sys.argv[1:])))
