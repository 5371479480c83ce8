"""Numba CUDA kernels of `adaptive_dilation_conv2d` and their launch.

A convolution is a matrix product (`numba_cuda_products`). Where a group has one input channel and few outputs, as in a
depth-wise convolution, each thread forms a sum of its own.
"""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import (
    CHAIN,
    THREADS,
    backward_bias,
    chunks_for,
    lanes_for,
    launch,
    load,
    merge,
    sum_lanes,
)
from dynk.kernels.common.numba_cuda_tiles import DEPTH, launch_tiles
from dynk.kernels.dilated.geometry import DILATIONS_H, DILATIONS_W, WORKSPACE, DilationGeometry, is_depthwise_on_cuda
from dynk.kernels.dilated.numba_cuda_products import (
    dilation_backward_weight_kernel,
    dilation_backward_x_kernel,
    dilation_forward_kernel,
)
from dynk.kernels.dilated.numba_cuda_terms import (
    HAS_BIAS,
    HO,
    KH,
    KW,
    WO,
    C,
    D,
    H,
    N,
    O,
    W,
    grad_column,
    grad_filter,
    grad_pixel,
    output,
    position,
)

DILATIONS = 4  # whose gradients a thread sums


def adaptive_dilation_conv2d_forward(
    runtime: Any, plan: Plan, x: Any, weight: Any, dilation_weights: Any, bias: Any, out: Any
) -> None:
    """Run PAD Eq. 1 on flat arrays; None where the bias is absent. No workspace."""
    g = DilationGeometry(*plan.geometry)
    args = (x, weight, dilation_weights, runtime.absent(plan.dtype) if bias is None else bias, out, *_numbers(plan))
    if is_depthwise_on_cuda(g):
        launch(runtime, dilation_depthwise_forward_kernel, g.N * g.O * g.Ho * g.Wo, *args)
    else:
        launch_tiles(runtime, dilation_forward_kernel, g.groups, g.O // g.groups, g.N * g.Ho * g.Wo, *args)


def adaptive_dilation_conv2d_backward(
    runtime: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    weight: Any,
    dilation_weights: Any,
    bias: Any,
    grad_x: Any,
    grad_weight: Any,
    grad_dilation_weights: Any,
    grad_bias: Any,
) -> None:
    """Write the gradients that are not None.

    The workspace is partial sums of the gradients of `weight` and `bias`, at most WORKSPACE bytes.
    """
    g = DilationGeometry(*plan.geometry)
    numbers = _numbers(plan)
    pixels, filters = g.N * g.Ho * g.Wo, g.C // g.groups * g.kh * g.kw
    if grad_x is not None:
        args = (grad_out, weight, dilation_weights, grad_x, *numbers)
        if is_depthwise_on_cuda(g):
            launch(runtime, dilation_depthwise_backward_x_kernel, g.N * g.C * g.H * g.W, *args)
        else:
            launch_tiles(runtime, dilation_backward_x_kernel, g.groups, g.C // g.groups, g.N * g.H * g.W, *args)
    if grad_weight is not None:
        size = g.O * filters
        most = max(1, WORKSPACE // (size * x.dtype.itemsize))
        if is_depthwise_on_cuda(g):
            lanes = lanes_for(pixels)
            chunks = chunks_for(pixels, lanes, most)
            partial = grad_weight if chunks == 1 else runtime.workspace(chunks * size, plan.dtype)
            args = (grad_out, x, dilation_weights, partial, *numbers, size, chunks, lanes)
            launch(runtime, dilation_depthwise_backward_weight_kernel, chunks * size * lanes, *args)
        else:
            chunks = chunks_for(pixels, DEPTH, most)
            partial = grad_weight if chunks == 1 else runtime.workspace(chunks * size, plan.dtype)
            args = (grad_out, x, dilation_weights, partial, *numbers, chunks)
            kernel = dilation_backward_weight_kernel
            launch_tiles(runtime, kernel, g.groups * chunks, g.O // g.groups, filters, *args)
        if chunks > 1:
            merge(runtime, partial, grad_weight, size, chunks)
    if grad_dilation_weights is not None:
        lanes = lanes_for(g.C * g.kh * g.kw)
        args = (grad_out, x, weight, grad_dilation_weights, *numbers, pixels, lanes)
        launch(runtime, dilation_backward_shares_kernel, -(-g.D // DILATIONS) * pixels * lanes, *args)
    if grad_bias is not None:
        backward_bias(runtime, plan, grad_out, grad_bias, g.O, g.Ho * g.Wo, pixels)


def _numbers(plan: Plan) -> tuple[Any, ...]:
    a = plan.geometry
    return a[:DILATIONS_H], a[DILATIONS_H:DILATIONS_W], a[DILATIONS_W:]


# ---- sums of one thread, or of a group of lanes ----------------------------------------------------------------------


@cuda.jit
def dilation_depthwise_forward_kernel(x, weight, choices, bias, out, g, rows, columns):
    """One thread for each output."""
    thread = cuda.grid(1)
    if thread >= out.size:
        return
    pixels = g[HO] * g[WO]
    plane = thread // pixels
    n = plane // g[O]
    o = plane - n * g[O]
    result = output(x, weight, choices, g, rows, columns, n, o, thread - plane * pixels)
    if g[HAS_BIAS]:
        result += load(bias, o)
    out[thread] = result


@cuda.jit
def dilation_depthwise_backward_x_kernel(grad_out, weight, choices, grad_x, g, rows, columns):
    """One thread for each pixel of the image."""
    thread = cuda.grid(1)
    if thread >= grad_x.size:
        return
    pixels = g[H] * g[W]
    plane = thread // pixels
    n = plane // g[C]
    place = thread - plane * pixels
    grad_x[thread] = grad_pixel(grad_out, weight, choices, g, rows, columns, n, plane - n * g[C], place)


@cuda.jit
def dilation_depthwise_backward_weight_kernel(grad_out, x, choices, partial, g, rows, columns, size, chunks, lanes):
    """One group of lanes for each weight and chunk of the pixels, of which lanes and chunks take turns."""
    shared = cuda.shared.array(THREADS, x.dtype)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    chunk = unit // size
    element = unit - chunk * size
    total = x.dtype.type(0)
    if chunk < chunks:
        filters = size // g[O]
        o = element // filters
        numbers = g[N] * g[HO] * g[WO]
        begin = chunk * lanes + lane
        k = element - o * filters
        total = grad_filter(grad_out, x, choices, g, rows, columns, o, k, begin, numbers, chunks * lanes)
    total = sum_lanes(shared, total, lanes)
    if chunk < chunks and lane == 0:
        partial[unit] = total


@cuda.jit(device=True)
def _read(x, g, rows, columns, n, at, c, t, d):
    """Return what tap t of dilation d reads of channel c, 0 where it is outside or there is no such dilation."""
    if d < g[D]:
        i = t // g[KW]
        where = position(g, rows, columns, at, i, t - i * g[KW], d)
        if where >= 0:
            return load(x, (n * g[C] + c) * g[H] * g[W] + where), True
    return x.dtype.type(0), False


@cuda.jit
def dilation_backward_shares_kernel(grad_out, x, weight, grad_shares, g, rows, columns, numbers, lanes):
    """One group of lanes for each output pixel and four of its dilations; they take turns at the inputs x taps."""
    shared = cuda.shared.array(THREADS, x.dtype)
    zero = x.dtype.type(0)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    block = unit // numbers
    number = unit - block * numbers
    d0 = block * DILATIONS
    pixels = g[HO] * g[WO]
    taps = g[KH] * g[KW]
    n = number // pixels
    at = number - n * pixels
    part0 = part1 = part2 = part3 = zero
    total0 = total1 = total2 = total3 = zero
    if d0 < g[D]:
        count = 0
        for k in range(lane, g[C] * taps, lanes):
            c = k // taps
            t = k - c * taps
            grad = grad_column(grad_out, weight, g, n, c, t, at)
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0)
            if inside:
                part0 += grad * value
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0 + 1)
            if inside:
                part1 += grad * value
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0 + 2)
            if inside:
                part2 += grad * value
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0 + 3)
            if inside:
                part3 += grad * value
            count += 1
            if count == CHAIN:
                total0 += part0
                total1 += part1
                total2 += part2
                total3 += part3
                part0 = part1 = part2 = part3 = zero
                count = 0
    total0 = sum_lanes(shared, total0 + part0, lanes)
    total1 = sum_lanes(shared, total1 + part1, lanes)
    total2 = sum_lanes(shared, total2 + part2, lanes)
    total3 = sum_lanes(shared, total3 + part3, lanes)
    if lane == 0:
        first = (n * g[D] + d0) * pixels + at
        if d0 < g[D]:
            grad_shares[first] = total0
        if d0 + 1 < g[D]:
            grad_shares[first + pixels] = total1
        if d0 + 2 < g[D]:
            grad_shares[first + 2 * pixels] = total2
        if d0 + 3 < g[D]:
            grad_shares[first + 3 * pixels] = total3
