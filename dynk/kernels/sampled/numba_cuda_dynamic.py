"""Numba CUDA kernels of `dynamic_filter`: a thread makes one element of a result."""

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import CHAIN, launch, load
from dynk.kernels.sampled.geometry import MAX, MEAN, NONE, SampleGeometry
from dynk.kernels.sampled.numba_cuda_samples import (
    down,
    grad_of_sample,
    is_larger,
    named,
    position,
    right,
    takes_part,
    tap_down,
    tap_right,
)


def dynamic_filter_forward(cuda: Any, plan: Plan, x: Any, kernel: Any, out: Any) -> None:
    """Run LS-DFN Eqs. 2 and 5 on flat arrays. No workspace."""
    g = SampleGeometry(*plan.geometry)
    outputs = g.N * g.O * g.H * g.W
    launch(cuda, dynamic_filter_forward_kernel, outputs, x, kernel, out, cuda.absent("int32"), 0, tuple(g))


def dynamic_filter_backward(
    cuda: Any, plan: Plan, grad_out: Any, x: Any, kernel: Any, grad_x: Any, grad_kernel: Any
) -> None:
    """Write the gradients that are not None. The workspace is a 32-bit number for each output for "max"."""
    g = SampleGeometry(*plan.geometry)
    outputs = g.N * g.O * g.H * g.W
    choice = cuda.absent("int32")
    if g.reduce == MAX:
        choice, unwanted = cuda.workspace(outputs, "int32"), cuda.absent(plan.dtype)
        launch(cuda, dynamic_filter_forward_kernel, outputs, x, kernel, unwanted, choice, 1, tuple(g))
    if grad_x is not None:
        threads = g.N * g.C * g.H * g.W
        launch(cuda, dynamic_filter_backward_x_kernel, threads, grad_out, kernel, choice, grad_x, tuple(g))
    if grad_kernel is not None:
        threads = outputs * g.C * g.kh * g.kw
        launch(cuda, dynamic_filter_backward_kernel_kernel, threads, grad_out, x, choice, grad_kernel, tuple(g))


@cuda.jit(device=True)
def _sample(x, kernel, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    total = part = x.dtype.type(0)
    pixels = g.H * g.W
    taps = g.kh * g.kw
    image = plane_of // g.O * g.C * pixels
    filters = plane_of * g.C * taps * pixels + pixel
    count = 0
    for tap in range(taps):
        row = pixel // g.W + down(sample, g) + tap_down(tap, g)
        at = position(row, pixel % g.W + right(sample, g) + tap_right(tap, g), g)
        if at < 0:
            continue
        for c in range(g.C):
            part += load(kernel, filters + (c * taps + tap) * pixels) * load(x, image + c * pixels + at)
            count += 1
            if count == CHAIN:
                total += part
                part = x.dtype.type(0)
                count = 0
    return total + part


@cuda.jit
def dynamic_filter_forward_kernel(x, kernel, out, choice, of_choice, numbers):  # type: ignore[no-untyped-def]
    """One thread for each pixel and output channel: writes its output, or what sample "max" chooses."""
    g = named(numbers)
    pixels = g.H * g.W
    unit = cuda.grid(1)
    plane_of = unit // pixels
    if plane_of >= g.N * g.O:
        return
    pixel = unit - plane_of * pixels
    grid = g.samples * g.samples
    total = x.dtype.type(0)
    chosen = 0
    for a in range(g.samples):
        part = x.dtype.type(0)
        for b in range(g.samples):
            sample = a * g.samples + b
            value = _sample(x, kernel, plane_of, sample, pixel, g)
            if g.reduce == NONE:
                out[((plane_of // g.O * grid + sample) * g.O + plane_of % g.O) * pixels + pixel] = value
            elif g.reduce != MAX:
                part += value
            elif sample == 0 or is_larger(value, total):
                total = value
                chosen = sample
        if g.reduce != MAX:
            total += part
    if of_choice:
        choice[unit] = chosen
    elif g.reduce != NONE:
        out[unit] = total / x.dtype.type(grid) if g.reduce == MEAN else total


@cuda.jit
def dynamic_filter_backward_x_kernel(grad_out, kernel, choice, grad_x, numbers):  # type: ignore[no-untyped-def]
    """One thread for each element of the image: gathers from the outputs that read it."""
    g = named(numbers)
    pixels = g.H * g.W
    unit = cuda.grid(1)
    channel = unit // pixels
    if channel >= g.N * g.C:
        return
    here = unit - channel * pixels
    n = channel // g.C
    c = channel - n * g.C
    taps = g.kh * g.kw
    total = part = grad_out.dtype.type(0)
    count = 0
    for sample in range(g.samples * g.samples):
        for tap in range(taps):
            row = here // g.W - down(sample, g) - tap_down(tap, g)
            pixel = position(row, here % g.W - right(sample, g) - tap_right(tap, g), g)
            if pixel < 0:
                continue
            for plane_of in range(n * g.O, n * g.O + g.O):
                if not takes_part(choice, plane_of, sample, pixel, g):
                    continue
                factor = load(kernel, ((plane_of * g.C + c) * taps + tap) * pixels + pixel)
                part += grad_of_sample(grad_out, plane_of, sample, pixel, g) * factor
                count += 1
                if count == CHAIN:
                    total += part
                    part = grad_out.dtype.type(0)
                    count = 0
    grad_x[unit] = total + part


@cuda.jit
def dynamic_filter_backward_kernel_kernel(grad_out, x, choice, grad_kernel, numbers):  # type: ignore[no-untyped-def]
    """One thread for each element of the kernel: sums over the samples of its pixel."""
    g = named(numbers)
    pixels = g.H * g.W
    unit = cuda.grid(1)
    rest = unit // pixels
    pixel = unit - rest * pixels
    channel = rest // (g.kh * g.kw)
    tap = rest - channel * (g.kh * g.kw)
    plane_of = channel // g.C
    if plane_of >= g.N * g.O:
        return
    image = (plane_of // g.O * g.C + channel - plane_of * g.C) * pixels
    total = grad_out.dtype.type(0)
    for a in range(g.samples):
        part = grad_out.dtype.type(0)
        for b in range(g.samples):
            sample = a * g.samples + b
            row = pixel // g.W + down(sample, g) + tap_down(tap, g)
            at = position(row, pixel % g.W + right(sample, g) + tap_right(tap, g), g)
            if at >= 0 and takes_part(choice, plane_of, sample, pixel, g):
                part += grad_of_sample(grad_out, plane_of, sample, pixel, g) * load(x, image + at)
        total += part
    grad_kernel[unit] = total
