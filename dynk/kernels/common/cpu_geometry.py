"""How CPU kernels read the integers of a call."""

from __future__ import annotations

from typing import Any

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing


def named(kind: Any) -> Any:
    """Return a function for kernels that returns the integers of a geometry array as a named tuple of some kind."""
    every = tuple(range(len(kind._fields)))

    @borrowing
    def geometry(array):  # type: ignore[no-untyped-def]
        return kind(*vector.pick(array, every))

    return geometry
