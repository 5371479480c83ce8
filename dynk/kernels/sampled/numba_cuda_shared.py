"""Numba CUDA kernels that serve `dynamic_filter`, whose kernel is passed as `across`, and `ls_dfn`."""

from __future__ import annotations

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import load, split
from dynk.kernels.sampled.geometry import MAX, MEAN, NONE
from dynk.kernels.sampled.numba_cuda_samples import (
    centre,
    dense_taps,
    down,
    is_dense,
    is_larger,
    named,
    position,
    position_weight,
    right,
    sample_weight,
    takes_part,
    tap_down,
    tap_right,
    unattended,
    weighted_grad,
)


@cuda.jit
def sampled_forward_kernel(  # type: ignore[no-untyped-def]
    x, across, within, sample_attention, position_attention, channel_sum, out, choice, of_choice, numbers
):
    """One thread for each pixel and output channel: writes its output, or what sample "max" chooses."""
    g = named(numbers)
    unit = cuda.grid(1)
    plane_of, pixel = split(unit, g.H * g.W)
    if plane_of >= g.N * g.O:
        return
    grid = g.samples * g.samples
    total = x.dtype.type(0)
    chosen = 0
    for a in range(g.samples):
        part = x.dtype.type(0)
        for b in range(g.samples):
            sample = a * g.samples + b
            if is_dense(g):
                value = dense_taps(x, across, plane_of, sample, pixel, g)
            else:
                value = unattended(x, across, within, position_attention, channel_sum, plane_of, sample, pixel, g)
                value *= sample_weight(sample_attention, plane_of, sample, pixel, g)
            if g.reduce == NONE:
                out[((plane_of // g.O * grid + sample) * g.O + plane_of % g.O) * g.H * g.W + pixel] = value
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
def sampled_backward_across_kernel(  # type: ignore[no-untyped-def]
    grad_out, x, sample_attention, position_attention, choice, grad_across, numbers
):
    """One thread for each element of the big tensor: sums over the samples of its pixel."""
    g = named(numbers)
    unit = cuda.grid(1)
    taps = g.kh * g.kw if is_dense(g) else 1
    rest, pixel = split(unit, g.H * g.W)
    channel, tap = split(rest, taps)
    plane_of, c = split(channel, g.C)
    if plane_of >= g.N * g.O:
        return
    image = (plane_of // g.O * g.C + c) * g.H * g.W
    row_of_tap = tap_down(tap, g) if is_dense(g) else 0
    column_of_tap = tap_right(tap, g) if is_dense(g) else 0
    total = grad_out.dtype.type(0)
    for a in range(g.samples):
        part = grad_out.dtype.type(0)
        for b in range(g.samples):
            sample = a * g.samples + b
            row = pixel // g.W + down(sample, g) + row_of_tap
            at = position(row, pixel % g.W + right(sample, g) + column_of_tap, g)
            if at >= 0 and takes_part(choice, plane_of, sample, pixel, g):
                weight = weighted_grad(grad_out, sample_attention, plane_of, sample, pixel, g)
                weight *= position_weight(position_attention, plane_of, centre(g), at, g)
                part += weight * load(x, image + at)
        total += part
    grad_across[unit] = total
