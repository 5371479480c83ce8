"""Launches the Numba CUDA kernels of `dynamic_filter`, and that of its own: a thread makes one element of a result."""

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import launch, load, split, staged
from dynk.kernels.sampled.geometry import MAX, SampleGeometry
from dynk.kernels.sampled.numba_cuda_samples import (
    down,
    grad_of_sample,
    named,
    position,
    right,
    takes_part,
    tap_down,
    tap_right,
)
from dynk.kernels.sampled.numba_cuda_shared import sampled_backward_across_kernel, sampled_forward_kernel


def dynamic_filter_forward(cuda: Any, plan: Plan, x: Any, kernel: Any, out: Any) -> None:
    """Run LS-DFN Eqs. 2 and 5 on flat arrays. No workspace."""
    _forward(cuda, plan, x, kernel, out, cuda.absent("int32"), 0)


def dynamic_filter_backward(
    cuda: Any, plan: Plan, grad_out: Any, x: Any, kernel: Any, grad_x: Any, grad_kernel: Any
) -> None:
    """Write the gradients that are not None. The workspace is a 32-bit number for each output for "max"."""
    g = SampleGeometry(*plan.geometry)
    choice, absent = cuda.absent("int32"), cuda.absent(plan.dtype)
    if g.reduce == MAX:
        choice = cuda.workspace(g.N * g.O * g.H * g.W, "int32")
        _forward(cuda, plan, x, kernel, absent, choice, 1)
    if grad_x is not None:
        threads = g.N * g.C * g.H * g.W
        launch(cuda, dynamic_filter_backward_x_kernel, threads, grad_out, kernel, choice, grad_x, tuple(g))
    if grad_kernel is not None:
        args = grad_out, x, absent, absent, choice, grad_kernel
        launch(cuda, sampled_backward_across_kernel, g.N * g.O * g.C * g.kh * g.kw * g.H * g.W, *args, tuple(g))


def _forward(cuda: Any, plan: Plan, x: Any, kernel: Any, *outputs: Any) -> None:
    g = SampleGeometry(*plan.geometry)
    absent = (cuda.absent(plan.dtype),) * 4
    launch(cuda, sampled_forward_kernel, g.N * g.O * g.H * g.W, x, kernel, *absent, *outputs, tuple(g))


@cuda.jit
def dynamic_filter_backward_x_kernel(grad_out, kernel, choice, grad_x, numbers):  # type: ignore[no-untyped-def]
    """One thread for each element of the image: gathers from the outputs that read it."""
    g = named(numbers)
    unit = cuda.grid(1)
    channel, here = split(unit, g.H * g.W)
    n, c = split(channel, g.C)
    if n >= g.N:
        return
    taps = g.kh * g.kw
    chain = merged = total = zero = grad_out.dtype.type(0)
    terms = 0
    for sample in range(g.samples * g.samples):
        for tap in range(taps):
            row = here // g.W - down(sample, g) - tap_down(tap, g)
            pixel = position(row, here % g.W - right(sample, g) - tap_right(tap, g), g)
            if pixel < 0:
                continue
            for plane_of in range(n * g.O, n * g.O + g.O):
                if not takes_part(choice, plane_of, sample, pixel, g):
                    continue
                factor = load(kernel, ((plane_of * g.C + c) * taps + tap) * g.H * g.W + pixel)
                chain += grad_of_sample(grad_out, plane_of, sample, pixel, g) * factor
                terms += 1
                chain, merged, total = staged(terms, chain, merged, total, zero)
    grad_x[unit] = total + (merged + chain)
