"""Numba CUDA kernels of `deformable_conv2d` that go tap by tap: a thread, or a group of lanes, owns what it writes.

A thread reads offsets once for several channels that have the same: those of a segment, `alike` channels each.
"""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import THREADS, load, split, sum_lanes
from dynk.kernels.common.numba_cuda_tiles import added, chosen, merged
from dynk.kernels.deformable.numba_cuda_terms import (
    data_point,
    filter_grad,
    filter_point,
    filter_slopes,
    filter_value,
    masked,
    named,
    sample,
    sample_slopes,
)

CHANNELS = 4  # of which a thread makes a pixel


@cuda.jit(device=True)
def channel_block(block, alike):
    """Return the first of a few channels of a segment, and how many they are."""
    segment, number = split(block, (alike + CHANNELS - 1) // CHANNELS)
    first = number * CHANNELS
    return segment * alike + first, min(alike - first, CHANNELS)


@cuda.jit(device=True)
def write(array, sums, first, step, several, add):
    """Write the first `several` sums to an array, or add them to what is there."""
    for e in range(several):
        result = chosen(sums, e)
        index = first + e * step
        array[index] = array[index] + result if add else result


@cuda.jit(device=True)
def _output_term(x, weight, g, n, o, point, place, factor):
    """Return what a tap adds to a depth-wise output."""
    seen = factor * sample(x, g, n, o // (g.O // g.C), point)
    return filter_value(weight, g, o * g.Sh * g.Sw, 1, place) * seen


@cuda.jit
def deform_depthwise_forward_kernel(x, weight, kernel_offset, data_offset, mask, bias, out, numbers, alike):
    """One thread for each output pixel and each few outputs, `alike` of which have the same offsets."""
    g = named(numbers)
    zero = x.dtype.type(0)
    blocks = g.O // alike * ((alike + CHANNELS - 1) // CHANNELS)
    rest, at = split(cuda.grid(1), g.Ho * g.Wo)
    n, block = split(rest, blocks)
    if n >= g.N:
        return
    first, several = channel_block(block, alike)
    c = first // (g.O // g.C)
    zeros = totals = parts = (zero, zero, zero, zero)
    for tap in range(g.kh * g.kw):
        point = data_point(data_offset, g, n, c, tap, at)
        place = filter_point(kernel_offset, g, n, c, tap, at)
        if point.read and place.read:
            factor = masked(mask, g, n, c, tap, at)
            part0, part1, part2, part3 = parts
            part0 += _output_term(x, weight, g, n, first, point, place, factor)
            if several > 1:
                part1 += _output_term(x, weight, g, n, first + 1, point, place, factor)
            if several > 2:
                part2 += _output_term(x, weight, g, n, first + 2, point, place, factor)
            if several > 3:
                part3 += _output_term(x, weight, g, n, first + 3, point, place, factor)
            parts = part0, part1, part2, part3
        totals, parts = merged(totals, parts, tap + 1, zeros)
    sums = added(totals, parts)
    if g.has_bias:
        last = first + several - 1
        second, third, fourth = min(first + 1, last), min(first + 2, last), min(first + 3, last)
        sums = added(sums, (load(bias, first), load(bias, second), load(bias, third), load(bias, fourth)))
    write(out, sums, (n * g.O + first) * g.Ho * g.Wo + at, g.Ho * g.Wo, several, False)


@cuda.jit
def deform_backward_kernel_offset_kernel(
    grad_out, x, weight, kernel_offset, data_offset, mask, grad_columns, grad_offset, numbers, begin, count, lanes
):
    """One group of lanes for each of `count` output pixels, tap and block of channels; they take turns at those."""
    shared = cuda.shared.array(THREADS, x.dtype)
    g = named(numbers)
    zero = x.dtype.type(0)
    pixels = g.Ho * g.Wo
    unit, lane = split(cuda.grid(1), lanes)
    rest, p = split(unit, count)
    block, tap = split(rest, g.kh * g.kw)
    n, at = split(begin + p, pixels)
    channels = g.C // g.Gk
    zeros = totals = parts = (zero, zero, zero, zero)
    if block < g.Gk:
        place = filter_point(kernel_offset, g, n, block * channels, tap, at)
        for k in range((channels - lane + lanes - 1) // lanes):
            c = block * channels + lane + k * lanes
            point = data_point(data_offset, g, n, c, tap, at)
            if point.read:
                down, right = filter_slopes(grad_out, weight, grad_columns, g, n, c, at, p, count, place)
                seen = masked(mask, g, n, c, tap, at) * sample(x, g, n, c, point)
                part0, part1, _, _ = parts
                if place.moves_down:
                    part0 += seen * down
                if place.moves_right:
                    part1 += seen * right
                parts = part0, part1, zero, zero
            totals, parts = merged(totals, parts, k + 1, zeros)
    sums = added(totals, parts)
    down = sum_lanes(shared, sums[0], lanes)
    right = sum_lanes(shared, sums[1], lanes)
    if block < g.Gk and lane == 0:
        index = ((n * g.Gk + block) * g.kh * g.kw + tap) * 2 * pixels + at
        grad_offset[index] = down
        grad_offset[index + pixels] = right


@cuda.jit
def deform_backward_data_kernel(
    grad_out,
    x,
    weight,
    kernel_offset,
    data_offset,
    mask,
    grad_columns,
    grad_offset,
    grad_mask,
    of_offset,
    of_mask,
    numbers,
    begin,
    count,
    lanes,
):
    """As for kernel offsets, and for the mask: it has the same blocks."""
    shared = cuda.shared.array(THREADS, x.dtype)
    g = named(numbers)
    zero = x.dtype.type(0)
    pixels = g.Ho * g.Wo
    unit, lane = split(cuda.grid(1), lanes)
    rest, p = split(unit, count)
    block, tap = split(rest, g.kh * g.kw)
    n, at = split(begin + p, pixels)
    channels = g.C // g.Gd
    zeros = totals = parts = (zero, zero, zero, zero)
    if block < g.Gd:
        point = data_point(data_offset, g, n, block * channels, tap, at)
        factor = masked(mask, g, n, block * channels, tap, at)
        for k in range((channels - lane + lanes - 1) // lanes):
            c = block * channels + lane + k * lanes
            place = filter_point(kernel_offset, g, n, c, tap, at)
            if place.read:
                grad = filter_grad(grad_out, weight, grad_columns, g, n, c, at, p, count, place)
                part0, part1, part2, _ = parts
                if of_offset:
                    down, right = sample_slopes(x, g, n, c, point)
                    if point.moves_down:
                        part0 += grad * factor * down
                    if point.moves_right:
                        part1 += grad * factor * right
                if of_mask and point.read:
                    part2 += grad * sample(x, g, n, c, point)
                parts = part0, part1, part2, zero
            totals, parts = merged(totals, parts, k + 1, zeros)
    sums = added(totals, parts)
    down = sum_lanes(shared, sums[0], lanes)
    right = sum_lanes(shared, sums[1], lanes)
    total = sum_lanes(shared, sums[2], lanes)
    if block < g.Gd and lane == 0:
        first = ((n * g.Gd + block) * g.kh * g.kw + tap) * pixels
        if of_offset:
            grad_offset[2 * first + at] = down
            grad_offset[2 * first + at + pixels] = right
        if of_mask:
            grad_mask[first + at] = total


@cuda.jit(device=True)
def _anchor(place, offset, stride, anchors):
    """Return the output row or column whose tap, `offset` from its anchor, reads `place`; -1 if there is none."""
    anchor = place - offset
    if anchor < 0 or anchor % stride != 0 or anchor // stride >= anchors:
        return -1
    return anchor // stride


@cuda.jit(device=True)
def add_grads(parts, factor, grad_out, weight, grad_columns, g, n, first, several, at, p, count, place):
    """Add what a tap sends back to a few channels of the pixel that it reads with this factor."""
    part0, part1, part2, part3 = parts
    part0 += factor * filter_grad(grad_out, weight, grad_columns, g, n, first, at, p, count, place)
    if several > 1:
        part1 += factor * filter_grad(grad_out, weight, grad_columns, g, n, first + 1, at, p, count, place)
    if several > 2:
        part2 += factor * filter_grad(grad_out, weight, grad_columns, g, n, first + 2, at, p, count, place)
    if several > 3:
        part3 += factor * filter_grad(grad_out, weight, grad_columns, g, n, first + 3, at, p, count, place)
    return part0, part1, part2, part3


@cuda.jit
def deform_backward_x_kernel(
    grad_out, weight, kernel_offset, mask, grad_columns, grad_x, numbers, alike, begin, count, add
):
    """One thread for each few channels of a pixel of the image, from the first sample of the chunk on.

    Without data offsets it gathers from those of `count` output pixels that read it, one for each tap.
    """
    g = named(numbers)
    zero = weight.dtype.type(0)
    pixels = g.Ho * g.Wo
    plane = g.H * g.W
    blocks = g.C // alike * ((alike + CHANNELS - 1) // CHANNELS)
    rest, here = split(cuda.grid(1), plane)
    n, block = split(rest, blocks)
    n += begin // pixels
    if n * pixels >= begin + count:
        return
    first, several = channel_block(block, alike)
    y, x = split(here, g.W)
    zeros = totals = parts = (zero, zero, zero, zero)
    for tap in range(g.kh * g.kw):
        i, j = split(tap, g.kw)
        ay = _anchor(y, i * g.dil_h - g.pad_h, g.stride_h, g.Ho)
        ax = _anchor(x, j * g.dil_w - g.pad_w, g.stride_w, g.Wo)
        at = ay * g.Wo + ax
        p = n * pixels + at - begin
        if ay >= 0 and ax >= 0 and p >= 0 and p < count:
            place = filter_point(kernel_offset, g, n, first, tap, at)
            if place.read:
                factor = masked(mask, g, n, first, tap, at)
                parts = add_grads(
                    parts, factor, grad_out, weight, grad_columns, g, n, first, several, at, p, count, place
                )
        totals, parts = merged(totals, parts, tap + 1, zeros)
    write(grad_x, added(totals, parts), (n * g.C + first) * plane + here, plane, several, add)
