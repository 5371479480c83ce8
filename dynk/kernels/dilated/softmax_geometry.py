"""The integers that every kernel of `gumbel_softmax` gets, on every backend, in this order."""

from __future__ import annotations

from typing import NamedTuple


class SoftmaxGeometry(NamedTuple):
    """The logits are (outer, K, inner) around the axis of K candidates.

    The noise of element e, numbered row-major, is that of index e % per_seed + offset under seed e // per_seed.
    """

    outer: int
    K: int
    inner: int
    per_seed: int
    has_noise: int
    hard: int
    offset: int
