"""How the kernels of `scope.cu` cut a call, and what they take: depth-wise filters with offsets."""

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
    """Return how to launch `deform_scope_forward` for the output, None where it cannot take the call."""
    expression = _forward(dtype, readers=False, kernel=bool(g.has_kernel), data=bool(g.has_data))
    return _with_filters(expression, g, dtype, index, 0)


def backward_x(g: DeformGeometry, dtype: str, index: np.dtype[Any]) -> Launch | None:
    """Return how to launch `deform_scope_forward` for the gradient of `x`, None where it cannot take the call."""
    if g.has_data or g.O != g.C:
        return None
    return _with_filters(_forward(dtype, readers=True, kernel=True, data=False), g, dtype, index, 0)


def backward_kernel(g: DeformGeometry, dtype: str, index: np.dtype[Any]) -> Launch | None:
    """Return how to launch `deform_scope_backward_kernel`, None where it cannot take the call."""
    if g.O != g.C:
        return None
    sums = 2 * WARPS * PIXELS * ITEMSIZE[accumulator(dtype)]
    return _with_filters(_expression("backward_kernel", dtype, bool(g.has_data)), g, dtype, index, sums)


def backward_weight(g: DeformGeometry, dtype: str, index: np.dtype[Any]) -> Launch | None:
    """Return how to launch `deform_scope_backward_weight`, None where it cannot take the call."""
    sums = g.Sh * g.Sw * WARP * ITEMSIZE[accumulator(dtype)]
    outputs = min(WARPS * TURNS, _run(g), (SHARED - _of_tap(g, dtype)) // sums)
    if WARPS < outputs < _run(g):
        outputs -= outputs % WARPS  # the same number for each warp
    if g.Sh * g.Sw > MAX_SCOPE or outputs < 1:
        return None
    expression = _expression("backward_weight", dtype, bool(g.has_data))
    return _launch(expression, g, index, outputs, sums * outputs, _of_tap(g, dtype), min(WARPS, outputs) * WARP)


def _with_filters(
    expression: str, g: DeformGeometry, dtype: str, index: np.dtype[Any], more_of_tap: int
) -> Launch | None:
    """Return how to launch a kernel that has filters, its table and some more bytes of each tap in shared memory."""
    ring = (g.Sh + 2) * (g.Sw + 2) * ITEMSIZE[accumulator(dtype)]
    of_tap = _of_tap(g, dtype) + more_of_tap
    outputs = divide_up(min(WARPS * TURNS * OUTPUTS, _run(g)), OUTPUTS) * OUTPUTS
    while outputs > OUTPUTS and ring * (outputs + OUTPUTS) + of_tap > SHARED:
        outputs -= OUTPUTS
    return _launch(expression, g, index, outputs, ring * (outputs + OUTPUTS), of_tap, THREADS)


def _launch(
    expression: str, g: DeformGeometry, index: np.dtype[Any], outputs: int, taken: int, of_tap: int, threads: int
) -> Launch | None:
    taps = min(g.kh * g.kw, (SHARED - taken) // of_tap)
    plain = g.groups == g.C and (g.has_kernel or g.has_data) and index == np.int32 and g.kh * g.kw <= CHAIN
    if not plain or taps < 1 or outputs < min(LEAST_OUTPUTS, _run(g)):
        return None
    blocking = Blocking(_run(g), outputs, taps)
    return Launch(expression, blocking, blocking.blocks(g), threads, taken + taps * of_tap)


def _run(g: DeformGeometry) -> int:
    """Return how many neighbouring outputs lie in the same blocks of offsets."""
    return math.gcd(g.C // g.Gk, g.C // g.Gd) * (g.O // g.C)


def _of_tap(g: DeformGeometry, dtype: str) -> int:
    """Return the bytes of a tap of all pixels in the table."""
    return PIXELS * ((9 if g.has_data else 5) * ITEMSIZE[accumulator(dtype)] + 8)


def _forward(dtype: str, *, readers: bool, kernel: bool, data: bool) -> str:
    return _expression("forward", dtype, readers, kernel, data)


def _expression(name: str, dtype: str, *flags: bool) -> str:
    return f"deform_scope_{name}<{', '.join((ELEMENT[dtype], *(str(flag).lower() for flag in flags)))}>"


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that may be asked for."""
    found = []
    for dtype in ELEMENT:
        expressions = [
            _forward(dtype, readers=True, kernel=True, data=False),
            _forward(dtype, readers=False, kernel=False, data=True),
        ]
        for data in (False, True):
            expressions.append(_forward(dtype, readers=False, kernel=True, data=data))
            expressions += [_expression(name, dtype, data) for name in ("backward_kernel", "backward_weight")]
        found += [(SOURCE, expression) for expression in expressions]
    return found
