"""No time is shown for a wrong result: every contender against the float64 reference, under dynk's one error bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bench.registry import Contender, Problem, Window, operations
from dynk import testing
from dynk.kernels.common.dtypes import EPS, accumulator

# Peers may sum in longer chains than dynk allows itself.
PEER_SLACK = 16.0
# Beyond so many operations the reference takes too long; it then computes parts that are drawn at random.
WHOLE = 60_000_000

Expected = tuple[str, Any, Any, Any]  # the result's name, where the part stands in it, its values, their magnitudes


def verify(problem: Problem, contenders: Iterable[Contender], rng: np.random.Generator) -> None:
    """Raise AssertionError for a contender whose result is wrong."""
    expected = [part for window in _windows(problem, rng) for part in _expected(problem, window)]
    for contender in contenders:
        if contender.yardstick:
            continue
        for formulation, call in contender.formulations.items():
            what = f"{contender.name} {formulation}: {problem.case.operator} {problem.direction}"
            slack = 1.0 if contender.name.startswith("dynk") else _peer_slack(problem.case.dtype)
            _compare(what, dict(zip(problem.results, call(), strict=True)), problem.results, expected, slack)


def _compare(
    what: str, results: dict[str, Any], shapes: dict[str, tuple[int, ...]], expected: list[Expected], slack: float
) -> None:
    for name, shape in shapes.items():
        if tuple(results[name].shape) != shape:
            msg = f"{what}: {name} has shape {tuple(results[name].shape)}, expected {shape}"
            raise AssertionError(msg)
    for name, at, values, magnitude in expected:
        part = results[name][at]
        part = part.cpu() if hasattr(part, "cpu") else part
        testing.assert_close(part, values, magnitude * slack, what=f"{what}, {name}")


def _windows(problem: Problem, rng: np.random.Generator) -> Iterator[Window]:
    if operations(problem.case, problem.direction) > WHOLE:
        yield from problem.case.family.windows(problem, rng)
    else:
        yield Window(problem.arrays, problem.grad_out, dict.fromkeys(problem.results, (..., ...)))


def _expected(problem: Problem, window: Window) -> Iterator[Expected]:
    call = testing.Call(problem.case.op, window.arrays, {**problem.case.options, **window.options})
    if problem.direction == "forward":
        parts = {"out": call.expected_forward()}
    else:
        gradients = zip(*call.expected_backward(window.grad_out), strict=True)
        parts = dict(zip(problem.case.op.arrays, gradients, strict=True))
    for name in problem.results:
        if name in window.results:
            whole, part = window.results[name]
            values, magnitude = parts[name]
            yield name, whole, values[part], np.broadcast_to(magnitude, values.shape)[part]


def _peer_slack(dtype: str) -> float:
    """Return what a peer's error may be of dynk's: in a half type it may round every product and sum to that type."""
    return PEER_SLACK if accumulator(dtype) == dtype else EPS[dtype] / EPS[accumulator(dtype)]
