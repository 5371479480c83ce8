"""How the kernels of `scope.cu` cut a call, and what they take: depth-wise filters with kernel offsets, 32-bit indices."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common.cuda_launch import CHAIN, ELEMENT, THREADS, WARP, divide_up
from dynk.kernels.common.dtypes import ITEMSIZE, accumulator
from dynk.kernels.deformable.geometry import DeformGeometry

SOURCE = "scope.cu"
PIXELS, WARPS, OUTPUTS, TURNS = 32, 8, 4, 2  # as the source says
MAX_SCOPE = 128
SHARED = 48 << 10  # bytes of a block, at most
LEAST_OUTPUTS = 8  # of a block, or its table of taps is not worth it


class Blocking(NamedTuple):
    """The struct of this name in `scope.cu`."""

    run: int
    outputs: int
    taps: int

    def blocks(self, g: DeformGeometry) -> int:
        """Return how many blocks of threads have the same pixels."""
        return g.O // self.run * divide_up(self.run, self.outputs)


class Launch(NamedTuple):
    """A launch but for its arguments; `blocks` have the same pixels."""

    expression: str
    blocking: Blocking
    blocks: int
    threads: int
    shared: int


def forward(g: DeformGeometry, dtype: str, index: np.dtype[Any]) -> Launch | None:
    """Return how to launch `deform_scope_forward`, None where it cannot take the call."""
    ring = (g.Sh + 2) * (g.Sw + 2) * ITEMSIZE[accumulator(dtype)]
    outputs = divide_up(min(WARPS * TURNS * OUTPUTS, _run(g)), OUTPUTS) * OUTPUTS
    while outputs > OUTPUTS and ring * (outputs + OUTPUTS) + _of_tap(g, dtype) > SHARED:
        outputs -= OUTPUTS
    return _launch("forward", g, dtype, index, outputs, ring * (outputs + OUTPUTS), THREADS)


def backward_weight(g: DeformGeometry, dtype: str, index: np.dtype[Any]) -> Launch | None:
    """Return how to launch `deform_scope_backward_weight`, None where it cannot take the call."""
    sums = g.Sh * g.Sw * WARP * ITEMSIZE[accumulator(dtype)]
    outputs = min(WARPS * TURNS, _run(g), (SHARED - _of_tap(g, dtype)) // sums)
    if outputs > WARPS:  # the same number for each warp
        outputs -= outputs % WARPS if outputs < _run(g) else 0
    if g.Sh * g.Sw > MAX_SCOPE or outputs < 1:
        return None
    return _launch("backward_weight", g, dtype, index, outputs, sums * outputs, min(WARPS, outputs) * WARP)


def _launch(
    name: str, g: DeformGeometry, dtype: str, index: np.dtype[Any], outputs: int, taken: int, threads: int
) -> Launch | None:
    taps = min(g.kh * g.kw, (SHARED - taken) // _of_tap(g, dtype))
    plain = g.groups == g.C and g.has_kernel and index == np.int32 and g.kh * g.kw <= CHAIN
    if not plain or taps < 1 or outputs < min(LEAST_OUTPUTS, _run(g)):
        return None
    blocking = Blocking(_run(g), outputs, taps)
    shared = taken + taps * _of_tap(g, dtype)
    return Launch(_expression(name, dtype, bool(g.has_data)), blocking, blocking.blocks(g), threads, shared)


def _run(g: DeformGeometry) -> int:
    """Return how many neighbouring outputs lie in the same blocks of offsets."""
    return math.gcd(g.C // g.Gk, g.C // g.Gd) * (g.O // g.C)


def _of_tap(g: DeformGeometry, dtype: str) -> int:
    """Return the bytes of a tap of all pixels in the table."""
    return PIXELS * ((9 if g.has_data else 5) * ITEMSIZE[accumulator(dtype)] + 8)


def _expression(name: str, dtype: str, data: bool) -> str:
    return f"deform_scope_{name}<{ELEMENT[dtype]}, {str(data).lower()}>"


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that may be asked for."""
    return [
        (SOURCE, _expression(name, dtype, data))
        for name in ("forward", "backward_weight")
        for dtype in ELEMENT
        for data in (False, True)
    ]
