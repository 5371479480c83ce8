"""What the operators of the family have in common."""

from __future__ import annotations

# How points outside the scope of a kernel are taken by default, as in the paper.
BOUNDARY = "clip"


def refuse_derivative(function: str, argument: str) -> None:
    """Raise for an array of offsets: the operator is not linear in it, and its derivative no call of the operator."""
    msg = f"{function}: {argument} must be constant in forward mode and where a gradient is differentiated again"
    raise NotImplementedError(msg)
