"""Numba CUDA kernels of `ls_dfn`, and the launch functions of the whole family: a thread makes one element of a result.

All of the kernel but `across` is the same for all input channels and is applied to their sum, which is made first.
Gradients gather: each is written by the one thread, or the one group of lanes, that owns it.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import (
    THREADS,
    lanes_for,
    launch,
    load,
    split,
    staged,
    sum_lanes,
)
from dynk.kernels.sampled.geometry import MAX, SampleGeometry
from dynk.kernels.sampled.numba_cuda_dynamic import dynamic_filter_backward, dynamic_filter_forward
from dynk.kernels.sampled.numba_cuda_samples import (
    centre,
    down,
    grad_of_sample,
    is_attended,
    is_shared,
    mixed_channels,
    named,
    position,
    position_weight,
    right,
    shared_filter,
    takes_part,
    tap_down,
    tap_right,
    unattended,
    weighted_grad,
)
from dynk.kernels.sampled.numba_cuda_shared import sampled_backward_across_kernel, sampled_forward_kernel

__all__ = ["dynamic_filter_backward", "dynamic_filter_forward", "ls_dfn_backward", "ls_dfn_forward"]


def ls_dfn_forward(
    cuda: Any,
    plan: Plan,
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any,
    position_attention: Any,
    out: Any,
) -> None:
    """Run LS-DFN Eqs. 4 and 5 on flat arrays; None where one is absent. The workspace is the channel sum."""
    g = SampleGeometry(*plan.geometry)
    arrays = _present(cuda, plan, x, across, within, sample_attention, position_attention)
    _forward(cuda, g, *arrays, _channel_sum(cuda, plan, g, x), out, cuda.absent("int32"), 0)


def ls_dfn_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any,
    position_attention: Any,
    grad_x: Any,
    grad_across: Any,
    grad_within: Any,
    grad_sample_attention: Any,
    grad_position_attention: Any,
) -> None:
    """Write the gradients that are not None.

    The workspace is the channel sum and its gradient, (N, 1, H, W) each, and a 32-bit number for each output for "max".
    """
    g = SampleGeometry(*plan.geometry)
    arrays = _present(cuda, plan, x, across, within, sample_attention, position_attention)
    x, across, within, *attentions = arrays
    outputs, numbers = g.N * g.O * g.H * g.W, tuple(g)
    of_filters = any(a is not None for a in (grad_within, grad_sample_attention, grad_position_attention))
    channel_sum, choice = cuda.absent(plan.dtype), cuda.absent("int32")
    if of_filters or g.reduce == MAX:
        channel_sum = _channel_sum(cuda, plan, g, x)
    if g.reduce == MAX:
        choice = cuda.workspace(outputs, "int32")
        _forward(cuda, g, *arrays, channel_sum, cuda.absent(plan.dtype), choice, 1)
    if grad_x is not None:
        grad_sum = _grad_sum(cuda, plan, g, grad_out, within, *attentions, choice)
        args = grad_out, across, *attentions, choice, grad_sum, grad_x
        launch(cuda, ls_dfn_backward_x_kernel, g.N * g.C * g.H * g.W, *args, numbers)
    if grad_across is not None:
        args = grad_out, x, *attentions, choice, grad_across
        launch(cuda, sampled_backward_across_kernel, outputs * g.C, *args, numbers)
    if grad_within is not None:
        args = grad_out, *attentions, channel_sum, choice, grad_within
        launch(cuda, ls_dfn_backward_within_kernel, outputs * g.kh * g.kw, *args, numbers)
    if grad_sample_attention is not None:
        args = grad_out, x, across, within, attentions[1], channel_sum, choice, grad_sample_attention
        launch(cuda, ls_dfn_backward_sample_kernel, outputs * g.samples**2, *args, numbers)
    if grad_position_attention is not None:
        args = grad_out, x, across, within, attentions[0], channel_sum, choice, grad_position_attention
        launch(cuda, ls_dfn_backward_position_kernel, outputs * g.kh * g.kw, *args, numbers)


def _present(cuda: Any, plan: Plan, *arrays: Any) -> list[Any]:
    return [cuda.absent(plan.dtype) if array is None else array for array in arrays]


def _has_shared(g: SampleGeometry) -> bool:
    return bool(g.has_within or g.kernel_residual)


def _channel_sum(cuda: Any, plan: Plan, g: SampleGeometry, x: Any) -> Any:
    if not _has_shared(g):
        return cuda.absent(plan.dtype)
    out = cuda.workspace(g.N * g.H * g.W, plan.dtype)
    launch(cuda, channel_sum_kernel, g.N * g.H * g.W, x, out, tuple(g))
    return out


def _forward(cuda: Any, g: SampleGeometry, *args: Any) -> None:
    launch(cuda, sampled_forward_kernel, g.N * g.O * g.H * g.W, *args, tuple(g))


def _grad_sum(cuda: Any, plan: Plan, g: SampleGeometry, *args: Any) -> Any:
    if not _has_shared(g):
        return cuda.absent(plan.dtype)
    out = cuda.workspace(g.N * g.H * g.W, plan.dtype)
    lanes = lanes_for(g.O * g.samples**2)
    launch(cuda, ls_dfn_backward_sum_kernel, g.N * g.H * g.W * lanes, *args, out, lanes, tuple(g))
    return out


# ---- the channel sum and the image -----------------------------------------------------------------------------------


@cuda.jit
def channel_sum_kernel(x, out, numbers):  # type: ignore[no-untyped-def]
    """One thread for each pixel: sums over its channels."""
    g = named(numbers)
    unit = cuda.grid(1)
    n, pixel = split(unit, g.H * g.W)
    if n >= g.N:
        return
    chain = merged = total = zero = x.dtype.type(0)
    for c in range(g.C):
        chain += load(x, (n * g.C + c) * g.H * g.W + pixel)
        chain, merged, total = staged(c + 1, chain, merged, total, zero)
    out[unit] = total + (merged + chain)


@cuda.jit
def ls_dfn_backward_sum_kernel(  # type: ignore[no-untyped-def]
    grad_out, within, sample_attention, position_attention, choice, grad_sum, lanes, numbers
):
    """One group of lanes for each pixel of the channel sum: gathers from the taps that read it."""
    shared = cuda.shared.array(THREADS, grad_out.dtype)
    g = named(numbers)
    unit, lane = split(cuda.grid(1), lanes)
    n, here = split(unit, g.H * g.W)
    grid = g.samples * g.samples
    chain = merged = total = zero = grad_out.dtype.type(0)
    terms = 0
    if n < g.N:
        for k in range(lane, g.O * grid, lanes):
            plane_of = n * g.O + k // grid
            sample = k % grid
            for tap in range(g.kh * g.kw):
                if not is_shared(tap, g):
                    continue
                row = here // g.W - tap_down(tap, g)  # of the sample's centre
                column = here % g.W - tap_right(tap, g)
                pixel = position(row - down(sample, g), column - right(sample, g), g)
                at = position(row, column, g)
                if pixel < 0 or not is_attended(at, g) or not takes_part(choice, plane_of, sample, pixel, g):
                    continue
                weight = shared_filter(within, plane_of, tap, pixel, g)
                weight *= position_weight(position_attention, plane_of, tap, at, g)
                chain += weighted_grad(grad_out, sample_attention, plane_of, sample, pixel, g) * weight
                terms += 1
                chain, merged, total = staged(terms, chain, merged, total, zero)
    total = sum_lanes(shared, total + (merged + chain), lanes)
    if n < g.N and lane == 0:
        grad_sum[unit] = total


@cuda.jit
def ls_dfn_backward_x_kernel(  # type: ignore[no-untyped-def]
    grad_out, across, sample_attention, position_attention, choice, grad_sum, grad_x, numbers
):
    """One thread for each element of the image: gathers from the samples centred on it."""
    g = named(numbers)
    unit = cuda.grid(1)
    channel, here = split(unit, g.H * g.W)
    n, c = split(channel, g.C)
    if n >= g.N:
        return
    chain = merged = total = zero = grad_out.dtype.type(0)
    terms = 0
    if g.has_across != 0:
        for plane_of in range(n * g.O, n * g.O + g.O):
            attention = position_weight(position_attention, plane_of, centre(g), here, g)
            for sample in range(g.samples * g.samples):
                pixel = position(here // g.W - down(sample, g), here % g.W - right(sample, g), g)
                if pixel < 0 or not takes_part(choice, plane_of, sample, pixel, g):
                    continue
                weight = weighted_grad(grad_out, sample_attention, plane_of, sample, pixel, g) * attention
                chain += weight * load(across, (plane_of * g.C + c) * g.H * g.W + pixel)
                terms += 1
                chain, merged, total = staged(terms, chain, merged, total, zero)
    if g.has_within != 0 or g.kernel_residual != 0:
        total += load(grad_sum, n * g.H * g.W + here)
    grad_x[unit] = total + (merged + chain)


# ---- filters and attentions ------------------------------------------------------------------------------------------


@cuda.jit
def ls_dfn_backward_within_kernel(  # type: ignore[no-untyped-def]
    grad_out, sample_attention, position_attention, channel_sum, choice, grad_within, numbers
):
    """One thread for each element of `within`: sums over the samples of its pixel."""
    g = named(numbers)
    unit = cuda.grid(1)
    rest, pixel = split(unit, g.H * g.W)
    plane_of, tap = split(rest, g.kh * g.kw)
    if plane_of >= g.N * g.O:
        return
    total = grad_out.dtype.type(0)
    for a in range(g.samples):
        part = grad_out.dtype.type(0)
        for b in range(g.samples):
            sample = a * g.samples + b
            row = pixel // g.W + down(sample, g)
            column = pixel % g.W + right(sample, g)
            at = position(row, column, g)
            seen = position(row + tap_down(tap, g), column + tap_right(tap, g), g)
            if seen >= 0 and is_attended(at, g) and takes_part(choice, plane_of, sample, pixel, g):
                weight = weighted_grad(grad_out, sample_attention, plane_of, sample, pixel, g)
                weight *= position_weight(position_attention, plane_of, tap, at, g)
                part += weight * load(channel_sum, plane_of // g.O * g.H * g.W + seen)
        total += part
    grad_within[unit] = total


@cuda.jit
def ls_dfn_backward_sample_kernel(  # type: ignore[no-untyped-def]
    grad_out, x, across, within, position_attention, channel_sum, choice, grad_sample_attention, numbers
):
    """One thread for each sample: multiplies what it is without its attention."""
    g = named(numbers)
    unit = cuda.grid(1)
    rest, pixel = split(unit, g.H * g.W)
    plane_of, sample = split(rest, g.samples * g.samples)
    if plane_of >= g.N * g.O:
        return
    grad = grad_out.dtype.type(0)
    if takes_part(choice, plane_of, sample, pixel, g):
        value = unattended(x, across, within, position_attention, channel_sum, plane_of, sample, pixel, g)
        grad = grad_of_sample(grad_out, plane_of, sample, pixel, g) * value
    grad_sample_attention[unit] = grad


@cuda.jit
def ls_dfn_backward_position_kernel(  # type: ignore[no-untyped-def]
    grad_out, x, across, within, sample_attention, channel_sum, choice, grad_position_attention, numbers
):
    """One thread for each element of the attention of positions: gathers from the samples centred on its pixel."""
    g = named(numbers)
    unit = cuda.grid(1)
    rest, here = split(unit, g.H * g.W)
    plane_of, tap = split(rest, g.kh * g.kw)
    if plane_of >= g.N * g.O:
        return
    seen = position(here // g.W + tap_down(tap, g), here % g.W + tap_right(tap, g), g)
    sees_sum = seen >= 0 and is_shared(tap, g)
    total = grad_out.dtype.type(0)
    for a in range(g.samples):
        part = grad_out.dtype.type(0)
        for b in range(g.samples):
            sample = a * g.samples + b
            pixel = position(here // g.W - down(sample, g), here % g.W - right(sample, g), g)
            if pixel < 0 or not takes_part(choice, plane_of, sample, pixel, g):
                continue
            grad = weighted_grad(grad_out, sample_attention, plane_of, sample, pixel, g)
            value = grad_out.dtype.type(0)
            if g.has_across != 0 and tap == centre(g):
                value = grad * mixed_channels(x, across, plane_of, pixel, here, g)
            if sees_sum:
                weight = grad * shared_filter(within, plane_of, tap, pixel, g)
                value += weight * load(channel_sum, plane_of // g.O * g.H * g.W + seen)
            part += value
        total += part
    grad_position_attention[unit] = total
