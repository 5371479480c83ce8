"""The gradient of the image of `deformable_conv2d` with data offsets, in Numba CUDA: a scatter that gathers.

A sample sends its gradient to the four neighbours of its point. The samples of a chunk of output pixels, numbered
(block * T + tap) * count + p, are listed by cell: counted, given a place, and put in order within their list by the
number of smaller ones there, work that grows with the square of a list's length but is every thread's own. A pixel of
the image then adds up the lists of the four cells around it. Integer atomics alone are used, and where lists lie, which
varies from run to run, enters no result.

A cell is a number modulo how many lists there are, so that their memory is bounded: who reads a list skips samples of
other cells. `lists` holds the length of each, where it starts, how many samples it was given and, at the end, how many
places are taken.
"""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import launch, load, split
from dynk.kernels.common.numba_cuda_tiles import added, merged
from dynk.kernels.deformable.geometry import DeformGeometry
from dynk.kernels.deformable.numba_cuda_points import image_point, share
from dynk.kernels.deformable.numba_cuda_taps import CHANNELS, add_grads, channel_block, write
from dynk.kernels.deformable.numba_cuda_terms import filter_point, masked, named


def list_samples(
    runtime: Any, g: DeformGeometry, data_offset: Any, memory: Any, several: int, begin: int, count: int
) -> None:
    """Fill `several` lists for `count` output pixels from `begin` on; memory is lists, order and room for another."""
    lists, order, unordered = memory
    samples = g.Gd * g.kh * g.kw * count
    launch(runtime, deform_clear_kernel, 3 * several + 1, lists)
    launch(runtime, deform_count_kernel, samples, data_offset, lists, tuple(g), begin, count)
    launch(runtime, deform_start_kernel, several, lists)
    launch(runtime, deform_place_kernel, samples, data_offset, lists, unordered, tuple(g), begin, count)
    launch(runtime, deform_order_kernel, samples, data_offset, lists, unordered, order, tuple(g), begin, count)


@cuda.jit(device=True)
def _list_of(lists, g, n, block, row, column):
    """Return the list of a cell."""
    cell = ((n * g.Gd + block) * (g.H + 1) + row + 1) * (g.W + 1) + column + 1
    return cell % (lists.size // 3)


@cuda.jit(device=True)
def _sample(data_offset, g, number, begin, count):
    """Return the sample, block, tap and output pixel of a number, and the point."""
    rest, p = split(number, count)
    block, tap = split(rest, g.kh * g.kw)
    n, at = split(begin + p, g.Ho * g.Wo)
    return n, block, tap, at, image_point(data_offset, g, n, block, tap, at)


@cuda.jit(device=True)
def _list_of_sample(data_offset, lists, g, number, begin, count):
    """Return the list that a sample belongs to, -1 if it reads nothing or there is no such sample."""
    if number >= g.Gd * g.kh * g.kw * count:
        return -1
    n, block, _, _, point = _sample(data_offset, g, number, begin, count)
    if not point.read or point.down != point.down or point.right != point.right:
        return -1
    return _list_of(lists, g, n, block, point.row, point.column)


@cuda.jit
def deform_clear_kernel(array):
    index = cuda.grid(1)
    if index < array.size:
        array[index] = 0


@cuda.jit
def deform_count_kernel(data_offset, lists, numbers, begin, count):
    """One thread for each sample: counts it."""
    number = _list_of_sample(data_offset, lists, named(numbers), cuda.grid(1), begin, count)
    if number >= 0:
        cuda.atomic.add(lists, number, np.int32(1))


@cuda.jit
def deform_start_kernel(lists):
    """One thread for each list: takes as many places as it has samples."""
    several = lists.size // 3
    number = cuda.grid(1)
    if number < several and lists[number] > 0:
        lists[several + number] = cuda.atomic.add(lists, 3 * several, lists[number])


@cuda.jit
def deform_place_kernel(data_offset, lists, unordered, numbers, begin, count):
    """One thread for each sample: puts it into its list, in the order of arrival."""
    several = lists.size // 3
    sample = cuda.grid(1)
    number = _list_of_sample(data_offset, lists, named(numbers), sample, begin, count)
    if number >= 0:
        rank = cuda.atomic.add(lists, 2 * several + number, np.int32(1))
        unordered[load(lists, several + number) + rank] = sample


@cuda.jit
def deform_order_kernel(data_offset, lists, unordered, order, numbers, begin, count):
    """One thread for each sample: puts it behind the smaller ones of its list."""
    several = lists.size // 3
    sample = cuda.grid(1)
    number = _list_of_sample(data_offset, lists, named(numbers), sample, begin, count)
    if number >= 0:
        start = load(lists, several + number)
        rank = 0
        for index in range(start, start + load(lists, number)):
            if load(unordered, index) < sample:
                rank += 1
        order[start + rank] = sample


@cuda.jit
def deform_scattered_backward_x_kernel(
    grad_out, weight, kernel_offset, data_offset, mask, grad_columns, lists, order, grad_x, numbers, alike, begin, count
):
    """One thread for each few channels of a pixel of the image, from the first sample of the batch in the chunk on."""
    g = named(numbers)
    zero = weight.dtype.type(0)
    one = weight.dtype.type(1)
    plane = g.H * g.W
    several_lists = lists.size // 3
    blocks = g.C // alike * ((alike + CHANNELS - 1) // CHANNELS)
    rest, here = split(cuda.grid(1), plane)
    n, channels = split(rest, blocks)
    n += begin // (g.Ho * g.Wo)
    if n * g.Ho * g.Wo >= begin + count:
        return
    first, several = channel_block(channels, alike)
    block = first // (g.C // g.Gd)
    y, x = split(here, g.W)
    zeros = totals = parts = (zero, zero, zero, zero)
    terms = 0
    for corner in range(4):
        row = y - 1 + corner // 2
        column = x - 1 + corner % 2
        number = _list_of(lists, g, n, block, row, column)
        start = load(lists, several_lists + number)
        for index in range(start, start + load(lists, number)):
            n_of, block_of, tap, at, point = _sample(data_offset, g, load(order, index), begin, count)
            if n_of != n or block_of != block or point.row != row or point.column != column:
                continue
            place = filter_point(kernel_offset, g, n, first, tap, at)
            if not place.read:
                continue
            part, _ = share(point, y, x, one)
            factor = part * masked(mask, g, n, first, tap, at)
            p = n * g.Ho * g.Wo + at - begin
            parts = add_grads(parts, factor, grad_out, weight, grad_columns, g, n, first, several, at, p, count, place)
            terms += 1
            totals, parts = merged(totals, parts, terms, zeros)
    if terms > 0:
        write(grad_x, added(totals, parts), (n * g.C + first) * plane + here, plane, several, True)
