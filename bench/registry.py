"""What is measured: cases of every operator family, and the peers a user would write today.

A family adds a module of its name here, with CASES and PEERS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynk import testing
from dynk._operator import FAMILIES, Operator, Plan, operators

Arrays = tuple[Any, ...]
# (arrays, grad_out, options, direction) -> a call that returns a tuple of NumPy arrays
Peer = Callable[[Arrays, Any, dict[str, Any], str], Callable[[], tuple[Any, ...]]]


@dataclass(frozen=True)
class Case:
    """One operator at one size."""

    operator: str
    label: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def op(self) -> Operator:
        """Return the operator's declaration."""
        return operators()[self.operator]

    @property
    def plan(self) -> Plan:
        """Return the plan of the call."""
        dtypes = tuple(None if s is None else self.dtype for s in self.shapes)
        return self.op.plan(self.operator, self.shapes, dtypes, self.op.canonical(**self.options))

    def arrays(self, rng: np.random.Generator) -> Arrays:
        """Return fresh random arguments."""
        return tuple(None if s is None else testing.rounded(rng.standard_normal(s), self.dtype) for s in self.shapes)

    def bytes_moved(self, direction: str) -> int:
        """Return the bytes that must cross memory once: every argument read, every result written."""
        itemsize = testing.rounded([0.0], self.dtype).itemsize
        arguments = sum(int(np.prod(s)) for s in self.shapes if s is not None)
        out = int(np.prod(self.plan.out_shape))
        return itemsize * (arguments + out if direction == "forward" else 2 * arguments + out)


@dataclass(frozen=True)
class Contender:
    """Something that computes a case; a yardstick computes something else and is not checked."""

    name: str
    make: Peer
    yardstick: bool = False
    operators: tuple[str, ...] = ()
    directions: tuple[str, ...] = ("forward", "backward")
    most_bytes: int = 2**40  # skip larger cases


def cases() -> list[Case]:
    """Return the cases of all families."""
    return [case for family in FAMILIES for case in _module(family).CASES]


def peers(case: Case, direction: str) -> list[Contender]:
    """Return the peers that can compute a case."""
    return [
        peer
        for family in FAMILIES
        for peer in _module(family).PEERS
        if case.operator in peer.operators
        and direction in peer.directions
        and case.bytes_moved(direction) <= peer.most_bytes
    ]


def _module(family: str) -> Any:
    return importlib.import_module(f"bench.{family}")
