"""Launches the CUDA C kernels of `sample_kernel.cu`."""

from __future__ import annotations

import math
from typing import Any

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import ELEMENT, INDEX, THREADS, WARP, by_value, divide_up, index_dtype
from dynk.kernels.deformable.geometry import FAR, SampleGeometry

SOURCE = "sample_kernel.cu"


def sample_kernel_forward(cuda: Any, plan: Plan, weight: Any, kernel_offset: Any, out: Any) -> None:
    """Write out = sample_kernel(weight, kernel_offset). No workspace."""
    _launch(cuda, plan, "forward", math.prod(plan.out_shape), (weight, kernel_offset, out))


def sample_kernel_backward(
    cuda: Any, plan: Plan, grad_out: Any, weight: Any, kernel_offset: Any, grad_weight: Any, grad_offset: Any
) -> None:
    """Write the gradients that are not None. No workspace."""
    g = SampleGeometry(*plan.geometry)
    if grad_weight is not None:
        _launch(cuda, plan, "backward_weight", g.O * g.I * g.Sh * g.Sw, (grad_out, kernel_offset, grad_weight))
    if grad_offset is not None:
        threads = g.N * g.Gk * g.kh * g.kw * WARP
        _launch(cuda, plan, "backward_offset", threads, (grad_out, weight, kernel_offset, grad_offset))


def _launch(cuda: Any, plan: Plan, name: str, threads: int, arrays: tuple[Any, ...]) -> None:
    g = SampleGeometry(*plan.geometry)
    index = index_dtype(
        g.N * g.O * g.I * g.kh * g.kw, g.O * g.I * g.Sh * g.Sw, g.N * g.Gk * g.kh * g.kw * 2, max(g[3:7]) + FAR
    )
    expression = f"sample_kernel_{name}<{ELEMENT[plan.dtype]}, {INDEX[index]}>"
    cuda.launch(SOURCE, expression, (divide_up(threads, THREADS),), (THREADS,), (*arrays, by_value(g, index)))


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    return [
        (SOURCE, f"sample_kernel_{name}<{element}, {index}>")
        for name in ("forward", "backward_weight", "backward_offset")
        for element in ELEMENT.values()
        for index in INDEX.values()
    ]
