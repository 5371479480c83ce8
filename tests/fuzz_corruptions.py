"""Calls that are malformed by construction: a sample call of an operator, varied harmlessly, then corrupted.

Harmless variations change what a call is made of and leave it valid: the kind of its arrays, dtype, layout, an empty
batch, a batch of terabytes with stride 0. Corruptions are of two sorts:

- an absolute one makes the call wrong whatever else is done to it, such as a text for an array;
- a relative one makes arguments disagree, such as another width for one of two arrays. Two of these might agree again,
  so that a call gets one at most.

Every corruption of a call has another target (argument, option or keyword), and none is applied twice to one target.
So a call with at least one corruption is wrong. What shapes an argument may have is read from the public docstrings,
not from the code that checks it.
"""

from __future__ import annotations

import random

import fuzz_keywords  # noqa: F401
from fuzz_arrays import ABSOLUTE, RELATIVE
from fuzz_calls import Call


def malformed(surface: str, seed: int, index: int) -> Call:
    """Return the malformed call of a seed and an index; the same one every time."""
    rng = random.Random(f"{surface} {seed} {index}")
    call = Call(surface, rng)
    wanted = rng.choice((1, 1, 2, 3))
    relative_left = True
    for _ in range(50):
        kinds = [*ABSOLUTE, *(RELATIVE * 2 if relative_left else ())]
        corruption = rng.choice(kinds)
        if corruption(call) is not None:
            relative_left = relative_left and corruption not in RELATIVE
            wanted -= 1
            if wanted == 0:
                break
    if len(call.notes) == 1 and relative_left:
        call.sole = call.corrupted[-1]
    if not call.notes:
        msg = f"no corruption applies to {call}"
        raise AssertionError(msg)
    return call
