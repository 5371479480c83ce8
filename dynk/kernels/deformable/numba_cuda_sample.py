"""Numba CUDA kernels of `sample_kernel` and their launch."""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import THREADS, lanes_for, launch, load, split, staged, sum_lanes
from dynk.kernels.deformable.geometry import SampleGeometry
from dynk.kernels.deformable.numba_cuda_points import scope_point, share, slopes, value


def sample_kernel_forward(runtime: Any, plan: Plan, weight: Any, kernel_offset: Any, out: Any) -> None:
    """Run DK Eq. 12 on flat arrays. No workspace."""
    g = SampleGeometry(*plan.geometry)
    launch(runtime, sample_forward_kernel, g.N * g.O * g.I * g.kh * g.kw, weight, kernel_offset, out, tuple(g))


def sample_kernel_backward(
    runtime: Any, plan: Plan, grad_out: Any, weight: Any, kernel_offset: Any, grad_weight: Any, grad_kernel_offset: Any
) -> None:
    """Write the gradients that are not None. No workspace."""
    g = SampleGeometry(*plan.geometry)
    taps = g.kh * g.kw
    if grad_weight is not None:
        lanes = lanes_for(g.N * taps)
        threads = g.O * g.I * g.Sh * g.Sw * lanes
        launch(runtime, sample_backward_weight_kernel, threads, grad_out, kernel_offset, grad_weight, tuple(g), lanes)
    if grad_kernel_offset is not None:
        lanes = lanes_for(g.O // g.Gk * g.I)
        args = (grad_out, weight, kernel_offset, grad_kernel_offset, tuple(g), lanes)
        launch(runtime, sample_backward_offset_kernel, g.N * g.Gk * taps * lanes, *args)


@cuda.jit
def sample_forward_kernel(weight, kernel_offset, out, numbers):
    """One thread for each element of the sampled kernels."""
    g = SampleGeometry(*numbers)
    taps = g.kh * g.kw
    element = cuda.grid(1)
    rest, tap = split(element, taps)
    n, filter_of = split(rest, g.O * g.I)
    if n >= g.N:
        return
    block = n * g.Gk + filter_of // g.I // (g.O // g.Gk)
    place = scope_point(kernel_offset, g, block, tap, 0, 1)
    result = weight.dtype.type(0)
    if place.read:
        result = value(weight, filter_of * g.Sh * g.Sw, 1, g.Sh, g.Sw, place)
    out[element] = result


@cuda.jit
def sample_backward_weight_kernel(grad_out, kernel_offset, grad_weight, numbers, lanes):
    """One group of lanes for each weight; they take turns at the taps of all samples."""
    shared = cuda.shared.array(THREADS, grad_out.dtype)
    g = SampleGeometry(*numbers)
    taps = g.kh * g.kw
    one = grad_out.dtype.type(1)
    element, lane = split(cuda.grid(1), lanes)
    filter_of, s = split(element, g.Sh * g.Sw)
    row, column = split(s, g.Sw)
    chain = merged = total = zero = grad_out.dtype.type(0)
    terms = 0
    if filter_of < g.O * g.I:
        for number in range(lane, g.N * taps, lanes):
            n, tap = split(number, taps)
            place = scope_point(kernel_offset, g, n * g.Gk + filter_of // g.I // (g.O // g.Gk), tap, 0, 1)
            part, taken = share(place, row, column, one)
            if taken and place.read:
                chain += part * load(grad_out, (n * g.O * g.I + filter_of) * taps + tap)
                terms += 1
                chain, merged, total = staged(terms, chain, merged, total, zero)
    total = sum_lanes(shared, total + (merged + chain), lanes)
    if filter_of < g.O * g.I and lane == 0:
        grad_weight[element] = total


@cuda.jit
def sample_backward_offset_kernel(grad_out, weight, kernel_offset, grad_offset, numbers, lanes):
    """One group of lanes for each tap of a sample and block; they take turns at the filters of the block."""
    shared = cuda.shared.array(THREADS, weight.dtype)
    g = SampleGeometry(*numbers)
    taps = g.kh * g.kw
    unit, lane = split(cuda.grid(1), lanes)
    block, tap = split(unit, taps)
    filters = g.O // g.Gk * g.I
    down_chain = down_merged = down_total = zero = weight.dtype.type(0)
    right_chain = right_merged = right_total = zero
    if block < g.N * g.Gk:
        n = block // g.Gk
        place = scope_point(kernel_offset, g, block, tap, 0, 1)
        first = (block - n * g.Gk) * filters
        for k in range((filters - lane + lanes - 1) // lanes):
            filter_of = first + lane + k * lanes
            grad = load(grad_out, (n * g.O * g.I + filter_of) * taps + tap)
            down, right = slopes(weight, filter_of * g.Sh * g.Sw, 1, g.Sh, g.Sw, place)
            if place.moves_down:
                down_chain += grad * down
            if place.moves_right:
                right_chain += grad * right
            down_chain, down_merged, down_total = staged(k + 1, down_chain, down_merged, down_total, zero)
            right_chain, right_merged, right_total = staged(k + 1, right_chain, right_merged, right_total, zero)
    down = sum_lanes(shared, down_total + (down_merged + down_chain), lanes)
    right = sum_lanes(shared, right_total + (right_merged + right_chain), lanes)
    if block < g.N * g.Gk and lane == 0:
        grad_offset[2 * unit] = down
        grad_offset[2 * unit + 1] = right
