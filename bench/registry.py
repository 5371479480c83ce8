"""What is measured: cases of every operator family, and what one row of the result is about.

A family is a module of its name here. It declares CASES; its formulas TORCH and JAX by operator and formulation, as a
user would write them today, each formula(*arrays, **options); `yardsticks(problem)`, contenders that compute something
else; `operations(case, direction)`, the floating-point operations of a case; and `windows(problem, rng)`, parts of a
large case by which its results can be checked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dynk import testing
from dynk._operator import FAMILIES, Operator, Plan, operators

Arrays = tuple[Any, ...]
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    `indices` names arguments of indices, and of how many each is drawn; `unfit` formulations that do not compute it.
    """

    operator: str
    label: str
    size: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    indices: dict[str, int] = field(default_factory=dict)
    unfit: frozenset[str] = frozenset()

    @property
    def op(self) -> Operator:
        """Return the operator's declaration."""
        return operators()[self.operator]

    @cached_property
    def plan(self) -> Plan:
        """Return the plan of the call."""
        dtypes = tuple(
            None if shape is None else "int64" if name in self.indices else self.dtype
            for name, shape in zip(self.op.arrays, self.shapes, strict=True)
        )
        return self.op.plan(self.operator, self.shapes, dtypes, self.op.canonical(**self.options))

    @property
    def family(self) -> Any:
        """Return the module that declares the case."""
        return importlib.import_module(f"bench.{self.op.family}")

    def bytes_moved(self, direction: str) -> int:
        """Return the bytes that must cross memory once: every argument read, every result written."""
        itemsize = testing.rounded([0.0], self.dtype).itemsize
        arguments = sum(int(np.prod(s)) for s in self.shapes if s is not None)
        out = int(np.prod(self.plan.out_shape))
        return itemsize * (arguments + out if direction == "forward" else 2 * arguments + out)


@dataclass(frozen=True)
class Problem:
    """A case in one direction, with its data, on the device that is measured."""

    case: Case
    direction: str
    arrays: Arrays
    grad_out: Any
    device: str = "cpu"

    @staticmethod
    def draw(case: Case, direction: str, rng: np.random.Generator, device: str = "cpu") -> Problem:
        """Return a problem of random arguments."""

        def normal(shape: tuple[int, ...]) -> Any:
            return testing.rounded(rng.standard_normal(shape, np.float32), case.dtype)

        def coordinates(shape: tuple[int, ...]) -> Any:
            """Draw within 2 and off positions, where derivatives jump and peers may round to either side."""
            return testing.rounded((rng.integers(-128, 128, shape) + 0.5) / 64, case.dtype)

        arrays = tuple(
            None
            if shape is None
            else rng.integers(case.indices[name], size=shape)
            if name in case.indices
            else coordinates(shape)
            if name in case.op.coordinates
            else normal(shape)
            for name, shape in zip(case.op.arrays, case.shapes, strict=True)
        )
        return Problem(case, direction, arrays, normal(case.plan.out_shape), device)

    @property
    def results(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of each result that a contender computes, in order."""
        if self.direction == "forward":
            return {"out": self.case.plan.out_shape}
        return {
            name: a.shape
            for name, a in zip(self.case.op.arrays, self.arrays, strict=True)
            if a is not None and name not in self.case.indices
        }


@dataclass(frozen=True)
class Window:
    """A smaller problem, some of whose results are those of the whole.

    `results` maps a result's name to where it stands in the whole and in the window; `options` are those that differ.
    """

    arrays: Arrays
    grad_out: Any
    results: dict[str, tuple[Any, Any]]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What is timed: `run(prepare())`, of which only `run` is on the clock. It returns the results as a tuple."""

    run: Callable[[Any], tuple[Any, ...]]
    prepare: Callable[[], Any] = lambda: None

    def __call__(self) -> tuple[Any, ...]:
        return self.run(self.prepare())


@dataclass(frozen=True)
class Contender:
    """Something to compare with. Of several formulations the fastest is shown; all are checked.

    A yardstick computes something else and so cannot be checked against the case.
    """

    name: str
    formulations: dict[str, Call]
    yardstick: bool = False


def cases() -> list[Case]:
    """Return the cases of all families."""
    return [case for family in FAMILIES for case in importlib.import_module(f"bench.{family}").CASES]


def operations(case: Case, direction: str) -> int:
    """Return the floating-point operations of a case, an addition or a multiplication each."""
    count: int = case.family.operations(case, direction)
    return count
