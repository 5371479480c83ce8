"""Launches the Numba CUDA kernels of `deformable_conv2d`, chunk by chunk of the output pixels of the batch.

Dense filters are multiplied with columns; depth-wise ones (C/groups = 1) are sampled, and only the gradient of their
weight is a sum over columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from dynk._operator import Plan
from dynk.kernels.common.dtypes import ITEMSIZE
from dynk.kernels.common.numba_cuda_kernels import (
    CHAIN,
    MAX_CHUNKS,
    backward_bias,
    chunks_for,
    lanes_for,
    launch,
    merge,
)
from dynk.kernels.common.numba_cuda_tiles import DEPTH, launch_tiles
from dynk.kernels.deformable import numba_cuda_columns, numba_cuda_taps
from dynk.kernels.deformable.geometry import WORKSPACE, DeformGeometry
from dynk.kernels.deformable.numba_cuda_columns import (
    deform_backward_weight_kernel,
    deform_columns_kernel,
    deform_depthwise_backward_weight_kernel,
    deform_forward_product_kernel,
    deform_grad_columns_kernel,
)
from dynk.kernels.deformable.numba_cuda_scatter import (
    deform_clear_kernel,
    deform_scattered_backward_x_kernel,
    list_samples,
)
from dynk.kernels.deformable.numba_cuda_taps import (
    deform_backward_data_kernel,
    deform_backward_kernel_offset_kernel,
    deform_backward_x_kernel,
    deform_depthwise_forward_kernel,
)

# What the parts of a workspace hold at most, in bytes, together less than WORKSPACE: columns; the lists of samples that
# a gradient of the image is gathered from; where they start; partial sums of the gradient of weight.
COLUMNS = WORKSPACE // 2
SAMPLES = WORKSPACE // 4
LISTS = WORKSPACE // 16
PARTIAL = WORKSPACE // 8
INT = 4

# So many threads of one sum each fill a device: no sum is shared.
ENOUGH = 1 << 16


class _Call(NamedTuple):
    """What all launches of a call have in common; `alike` channels in a row have the same offsets."""

    runtime: Any
    dtype: str
    itemsize: int
    g: DeformGeometry
    alike: int
    x: Any
    weight: Any
    kernel_offset: Any
    data_offset: Any
    mask: Any
    bias: Any


def deformable_conv2d_forward(
    runtime: Any, plan: Plan, x: Any, weight: Any, kernel_offset: Any, data_offset: Any, mask: Any, bias: Any, out: Any
) -> None:
    """Run DK Eq. 11 on flat arrays; None where one is absent. The workspace is columns: COLUMNS bytes at most."""
    call = _call(runtime, plan, x, weight, kernel_offset, data_offset, mask, bias)
    g, numbers = call.g, tuple(call.g)
    if _is_depthwise(g):
        alike = call.alike * (g.O // g.C)
        threads = g.N * _blocks(g.O, alike, numba_cuda_taps.CHANNELS) * g.Ho * g.Wo
        arrays = (call.x, call.weight, call.kernel_offset, call.data_offset, call.mask, call.bias, out)
        launch(runtime, deform_depthwise_forward_kernel, threads, *arrays, numbers, alike)
        return
    most = _pixels(call, columns=True, samples=False)
    memory = _column_memory(call, most)
    for begin, count in _chunks(g, most):
        _make_columns(call, memory, begin, count)
        arrays = (call.x, call.weight, call.data_offset, call.mask, call.bias, memory[0], out)
        kernel, rows = deform_forward_product_kernel, g.O // g.groups
        launch_tiles(runtime, kernel, g.groups, rows, count, *arrays, numbers, begin, count)


def deformable_conv2d_backward(
    runtime: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    weight: Any,
    kernel_offset: Any,
    data_offset: Any,
    mask: Any,
    bias: Any,
    grad_x: Any,
    grad_weight: Any,
    grad_kernel_offset: Any,
    grad_data_offset: Any,
    grad_mask: Any,
    grad_bias: Any,
) -> None:
    """Write the gradients that are not None.

    The workspace is less than WORKSPACE bytes, unless the columns of a single pixel or its samples exceed their part.
    """
    call = _call(runtime, plan, x, weight, kernel_offset, data_offset, mask, bias)
    g = call.g
    of_columns = any(a is not None for a in (grad_x, grad_kernel_offset, grad_data_offset, grad_mask))
    of_columns = of_columns and not _is_depthwise(g)
    scatters = grad_x is not None and bool(g.has_data)
    most = _pixels(call, columns=of_columns or grad_weight is not None, samples=scatters)
    memory = (runtime.absent(plan.dtype),) * 2
    if grad_weight is not None or of_columns:
        memory = _column_memory(call, most)
    to_x = None if grad_x is None else _GradX(call, grad_x, most)
    to_weight = None if grad_weight is None else _GradWeight(call, grad_weight, most)
    for begin, count in _chunks(g, most):
        if of_columns:
            rows = g.C // g.groups * g.Sh * g.Sw
            args = (grad_out, call.weight, memory[0], tuple(g), begin, count)
            launch_tiles(runtime, deform_grad_columns_kernel, g.groups, rows, count, *args)
        if grad_kernel_offset is not None:
            _backward_kernel_offset(call, grad_out, memory[0], grad_kernel_offset, begin, count)
        if grad_data_offset is not None or grad_mask is not None:
            _backward_data(call, grad_out, memory[0], grad_data_offset, grad_mask, begin, count)
        if to_x is not None:
            to_x.add(grad_out, memory[0], begin, count)
        if to_weight is not None:
            to_weight.add(grad_out, memory, begin, count)
    if to_weight is not None:
        to_weight.finish()
    if grad_bias is not None:
        backward_bias(runtime, plan, grad_out, grad_bias, g.O, g.Ho * g.Wo, g.N * g.Ho * g.Wo)


def _call(runtime: Any, plan: Plan, *arrays: Any) -> _Call:
    g = DeformGeometry(*plan.geometry)
    alike = math.gcd(g.C // g.Gk, g.C // g.Gd)
    present = [runtime.absent(plan.dtype) if array is None else array for array in arrays]
    return _Call(runtime, plan.dtype, ITEMSIZE[plan.dtype], g, alike, *present)


def _is_depthwise(g: DeformGeometry) -> bool:
    return g.groups == g.C


def _blocks(channels: int, alike: int, most: int) -> int:
    """Return how many blocks of at most so many channels there are, all those of one being alike."""
    return channels // alike * -(-alike // most)


# ---- chunks and columns ----------------------------------------------------------------------------------------------


def _pixels(call: _Call, *, columns: bool, samples: bool) -> int:
    """Return of how many output pixels the columns and the samples fit into their memory, but at least 1."""
    g = call.g
    most = max(1, g.N * g.Ho * g.Wo)
    if columns:
        most = min(most, COLUMNS // (g.C * g.Sh * g.Sw * call.itemsize * (2 if _is_staged(g) else 1)))
    if samples:
        most = min(most, SAMPLES // (2 * INT * g.Gd * g.kh * g.kw))
    return max(1, most)


def _chunks(g: DeformGeometry, most: int) -> Iterator[tuple[int, int]]:
    """Yield the first output pixel and the number of each chunk; an empty batch is one empty chunk."""
    pixels = g.N * g.Ho * g.Wo
    for begin in range(0, max(1, pixels), most):
        yield begin, min(most, pixels - begin)


def _is_staged(g: DeformGeometry) -> bool:
    """Return whether more taps than one chain takes may reach a place of the scope."""
    return bool(g.has_kernel) and g.kh * g.kw > CHAIN


def _column_memory(call: _Call, most: int) -> tuple[Any, Any]:
    """Return memory for the columns, and for chains of their sums where they are not the same."""
    g = call.g
    size = g.C * g.Sh * g.Sw * most
    columns = call.runtime.workspace(size, call.dtype)
    return columns, call.runtime.workspace(size, call.dtype) if _is_staged(g) else columns


def _make_columns(call: _Call, memory: tuple[Any, Any], begin: int, count: int) -> None:
    threads = _blocks(call.g.C, call.alike, numba_cuda_columns.CHANNELS) * count
    args = (call.x, call.kernel_offset, call.data_offset, call.mask, *memory, tuple(call.g), call.alike, begin, count)
    launch(call.runtime, deform_columns_kernel, threads, *args)


# ---- gradients -------------------------------------------------------------------------------------------------------


def _lanes(units: int, terms: int) -> int:
    """Return how many threads share each of so many sums."""
    return 1 if units >= ENOUGH else lanes_for(terms)


def _backward_kernel_offset(
    call: _Call, grad_out: Any, grad_columns: Any, grad_offset: Any, begin: int, count: int
) -> None:
    g = call.g
    units = g.Gk * g.kh * g.kw * count
    lanes = _lanes(units, g.C // g.Gk)
    arrays = (call.x, call.weight, call.kernel_offset, call.data_offset, call.mask, grad_columns, grad_offset)
    args = (grad_out, *arrays, tuple(g), begin, count, lanes)
    launch(call.runtime, deform_backward_kernel_offset_kernel, units * lanes, *args)


def _backward_data(
    call: _Call, grad_out: Any, grad_columns: Any, grad_offset: Any, grad_mask: Any, begin: int, count: int
) -> None:
    g, absent = call.g, call.runtime.absent(call.dtype)
    units = g.Gd * g.kh * g.kw * count
    lanes = _lanes(units, g.C // g.Gd)
    wanted = (int(grad_offset is not None), int(grad_mask is not None))
    outputs = [absent if gradient is None else gradient for gradient in (grad_offset, grad_mask)]
    arrays = (call.x, call.weight, call.kernel_offset, call.data_offset, call.mask, grad_columns, *outputs)
    args = (grad_out, *arrays, *wanted, tuple(g), begin, count, lanes)
    launch(call.runtime, deform_backward_data_kernel, units * lanes, *args)


class _GradX:
    """The gradient of the image, of one chunk after the other."""

    def __init__(self, call: _Call, grad_x: Any, most: int) -> None:
        g, workspace = call.g, call.runtime.workspace
        self._call, self._grad_x = call, grad_x
        self._is_cut = int(most < g.N * g.Ho * g.Wo)
        if g.has_data:
            samples = g.Gd * g.kh * g.kw * most
            images = min(g.N, -(-most // (g.Ho * g.Wo)) + 1)
            self._several_lists = min(images * g.Gd * (g.H + 1) * (g.W + 1), LISTS // (3 * INT))
            sizes = (3 * self._several_lists + 1, samples, samples)
            self._lists = tuple(workspace(size, "int32") for size in sizes)
        if g.has_data or self._is_cut:
            launch(call.runtime, deform_clear_kernel, grad_x.size, grad_x)

    def add(self, grad_out: Any, grad_columns: Any, begin: int, count: int) -> None:
        call, g = self._call, self._call.g
        pixels = g.Ho * g.Wo
        images = -(-(begin + count) // pixels) - begin // pixels
        threads = images * _blocks(g.C, call.alike, numba_cuda_taps.CHANNELS) * g.H * g.W
        numbers = (tuple(g), call.alike, begin, count)
        if g.has_data:
            list_samples(call.runtime, g, call.data_offset, self._lists, self._several_lists, begin, count)
            arrays = (call.weight, call.kernel_offset, call.data_offset, call.mask, grad_columns, *self._lists[:2])
            kernel = deform_scattered_backward_x_kernel
            launch(call.runtime, kernel, threads, grad_out, *arrays, self._grad_x, *numbers)
        else:
            given = (grad_out, call.weight, call.kernel_offset, call.mask, grad_columns, self._grad_x)
            launch(call.runtime, deform_backward_x_kernel, threads, *given, *numbers, self._is_cut)


class _GradWeight:
    """The gradient of weight: partial sums of chunks, of which those that share a place are added up there."""

    def __init__(self, call: _Call, grad_weight: Any, most: int) -> None:
        g = call.g
        self._call, self._grad_weight, self._number = call, grad_weight, 0
        self._size = g.O * (g.C // g.groups) * g.Sh * g.Sw
        self._lanes = lanes_for(most) if _is_depthwise(g) else DEPTH
        places = max(1, min(PARTIAL // (self._size * call.itemsize), MAX_CHUNKS))
        self._parts = chunks_for(most, self._lanes, places)
        self._slots = max(1, min(-(-g.N * g.Ho * g.Wo // most), places // self._parts))
        self._places = self._slots * self._parts
        self._partial = grad_weight
        if self._places > 1:
            self._partial = call.runtime.workspace(self._places * self._size, call.dtype)

    def add(self, grad_out: Any, memory: tuple[Any, Any], begin: int, count: int) -> None:
        call, g = self._call, self._call.g
        _make_columns(call, memory, begin, count)
        slot = self._number % self._slots * self._parts
        arrays = (call.x, call.kernel_offset, call.data_offset, call.mask, memory[0], self._partial)
        args = (grad_out, *arrays, tuple(g), begin, count, slot, self._parts, int(self._number >= self._slots))
        self._number += 1
        if _is_depthwise(g):
            threads = self._parts * self._size * self._lanes
            launch(call.runtime, deform_depthwise_backward_weight_kernel, threads, *args, self._lanes)
        else:
            kernel, rows = deform_backward_weight_kernel, g.O // g.groups
            launch_tiles(call.runtime, kernel, g.groups * self._parts, rows, self._size // g.O, *args)

    def finish(self) -> None:
        if self._places > 1:
            merge(self._call.runtime, self._partial, self._grad_weight, self._size, self._places)
