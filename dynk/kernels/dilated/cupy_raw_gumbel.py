"""Launches the CUDA C kernels of `gumbel_softmax.cu`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import ELEMENT, INDEX, THREADS, WARP, by_value, divide_up, index_dtype
from dynk.kernels.dilated.softmax_geometry import SoftmaxGeometry

SOURCE = "gumbel_softmax.cu"
HELD = 8  # candidates that a thread holds, as the source says


def gumbel_softmax_forward(cuda: Any, plan: Plan, logits: Any, seed: Any, out: Any) -> None:
    """Write out = gumbel_softmax(logits, seed). No workspace."""
    _launch(cuda, plan, "gumbel_softmax_forward", (logits, seed, out))


def gumbel_softmax_backward(
    cuda: Any, plan: Plan, grad_out: Any, logits: Any, seed: Any, grad_logits: Any, grad_seed: Any
) -> None:
    """Write the gradient of the logits unless it is None. No workspace."""
    if grad_logits is not None:
        _launch(cuda, plan, "gumbel_softmax_backward", (grad_out, logits, seed, grad_logits))


def _launch(cuda: Any, plan: Plan, name: str, arrays: tuple[Any, ...]) -> None:
    g = SoftmaxGeometry(*plan.geometry)
    rows = g.outer * g.inner
    index = index_dtype(rows * g.K)
    lanes = WARP if g.K > HELD and g.inner < WARP else 1
    expression = f"{name}<{ELEMENT[plan.dtype]}, {INDEX[index]}, {lanes}>"
    args = (*arrays, by_value(g[:-1], index), np.uint64(g.offset), np.float64(plan.reals[0]))
    cuda.launch(SOURCE, expression, (divide_up(rows * lanes, THREADS),), (THREADS,), args)


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    return [
        (SOURCE, f"gumbel_softmax_{direction}<{element}, {index}, {lanes}>")
        for direction in ("forward", "backward")
        for element in ELEMENT.values()
        for index in INDEX.values()
        for lanes in (1, WARP)
    ]
