"""Launches the CUDA C kernels of `kernels.cu` and `filter_norm.cu`.

Arrays are C-contiguous and of the storage types; None where one is absent or not wanted. `cuda` runs the kernels:
`cuda.launch(source, expression, grid, block, args)`, in which None is a null pointer and a NumPy void scalar a struct
by value, and `cuda.workspace(count, dtype)`. Grids, blocks and how a sum is split depend on shapes alone, so that the
same call gives the same bits on every device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    ACCUMULATOR,
    CHAIN,
    ELEMENT,
    INDEX,
    MAX_BLOCK_Z,
    THREADS,
    WARP,
    by_value,
    divide_up,
    index_dtype,
    levels,
    power_of_two,
    sum_partials,
    tile,
)
from dynk.kernels.common.dtypes import accumulator
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS, FilterGeometry, NormGeometry

FILTERS = "kernels.cu"
NORM = "filter_norm.cu"

# Taps that a thread can hold in registers; kernels of more are compiled for any size, 0 x 0 in their expressions.
MAX_TAPS = 49
# kh + kw: a thread holds numbers for each row and column too.
MAX_EDGES = 19
# MAX_TAPS where a thread also holds merged chains of every tap.
MAX_MERGED_TAPS = 25
# MAX_TAPS of grad_channel, where sums are of 8 bytes.
MAX_DOUBLE_TAPS = 36
# Channels that share a thread's filter loads.
MAX_CHANNELS = 8
# Sums of grad_channel that a thread can hold.
MAX_SUMS = 64
# Threads that keep a large GPU busy: sums are split until there are so many.
BUSY = 2**17
MAX_SLICES = 16
MAX_PARTS = 1024


# ---- ddf -----------------------------------------------------------------------------------------------------------


def ddf_forward(cuda: Any, plan: Plan, x: Any, spatial: Any, channel: Any, out: Any) -> None:
    """Write out = ddf(x, spatial, channel)."""
    g = FilterGeometry(*plan.geometry)
    index = _filter_index(g)
    channels = power_of_two(min(g.C // g.G, MAX_CHANNELS))
    kh, kw = _kernel_size(g)
    sums = 1 if kh else levels(g.kh * g.kw)
    expression = f"ddf_forward<{_types(plan, index)}, {kh}, {kw}, {_mode(g)}, {channels}, {sums}>"
    grid, block = _pixels_and_channels(g, channels, g.scale * g.Ho, g.scale * g.Wo)
    cuda.launch(FILTERS, expression, grid, block, (x, spatial, channel, out, by_value(g, index)))


def ddf_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    spatial: Any,
    channel: Any,
    grad_x: Any,
    grad_spatial: Any,
    grad_channel: Any,
) -> None:
    """Write the gradients of `ddf` that are not None."""
    g = FilterGeometry(*plan.geometry)
    if grad_x is not None:
        _backward_x(cuda, plan, g, grad_out, spatial, channel, grad_x)
    if grad_spatial is not None:
        _backward_spatial(cuda, plan, g, grad_out, x, channel, grad_spatial)
    if grad_channel is not None:
        _backward_channel(cuda, plan, g, grad_out, x, spatial, grad_channel)


def _backward_x(
    cuda: Any, plan: Plan, g: FilterGeometry, grad_out: Any, spatial: Any, channel: Any, grad_x: Any
) -> None:
    index = _filter_index(g)
    channels = power_of_two(min(g.C // g.G, MAX_CHANNELS))
    kh, kw = _kernel_size(g)
    sums = levels(g.kh * g.kw * g.scale**2)
    expression = f"ddf_backward_x<{_types(plan, index)}, {kh}, {kw}, {_mode(g)}, {channels}, {sums}>"
    grid, block = _pixels_and_channels(g, channels, g.H, g.W)
    cuda.launch(FILTERS, expression, grid, block, (grad_out, spatial, channel, grad_x, by_value(g, index)))


def _backward_spatial(
    cuda: Any, plan: Plan, g: FilterGeometry, grad_out: Any, x: Any, channel: Any, grad_spatial: Any
) -> None:
    index = _filter_index(g)
    in_group = g.C // g.G
    height, width = g.scale * g.Ho, g.scale * g.Wo
    threads = g.N * g.G * height * width
    slices = 1
    while slices < MAX_SLICES and 4 * slices <= in_group and (threads * slices < BUSY or in_group > CHAIN * slices):
        slices *= 2
    sums = levels(divide_up(in_group, slices))
    kh, kw = _kernel_size(g, MAX_TAPS if sums == 1 else MAX_MERGED_TAPS)
    block_x, block_y = tile(height, width, THREADS // slices)
    blocks = g.N * divide_up(height, block_y) * divide_up(width, block_x) * g.G * (1 if kh else g.kh * g.kw)
    expression = f"ddf_backward_spatial<{_types(plan, index)}, {kh}, {kw}, {_factor(g)}, {sums}>"
    args = (grad_out, x, channel, grad_spatial, by_value(g, index))
    cuda.launch(FILTERS, expression, (blocks,), (block_x, block_y, slices), args)


def _backward_channel(
    cuda: Any, plan: Plan, g: FilterGeometry, grad_out: Any, x: Any, spatial: Any, grad_channel: Any
) -> None:
    index = _filter_index(g)
    taps, subpixels, pixels = g.kh * g.kw, g.scale**2, g.Ho * g.Wo
    kh, kw = _kernel_size(g, MAX_DOUBLE_TAPS if plan.dtype == "float64" else MAX_TAPS)
    channels = _channels_of_a_warp(kh * kw, g.C // g.G)
    units = g.G * divide_up(g.C // g.G, channels)
    warps = min(THREADS // WARP, units)
    blocks = g.N * subpixels * divide_up(units, warps) * (1 if kh else taps)
    # Split the pixels until the GPU is busy, but keep the workspace below 1/64 of x.
    most = min(divide_up(pixels, WARP * CHAIN), g.H * g.W // (64 * taps * subpixels))
    parts = max(1, min(most, divide_up(BUSY, blocks * warps * WARP)))
    segment = divide_up(pixels, parts)
    parts = divide_up(pixels, segment)

    elements = g.N * g.C * subpixels * taps
    total = ACCUMULATOR[plan.dtype] if parts > 1 else ELEMENT[plan.dtype]
    out = grad_channel if parts == 1 else cuda.workspace(parts * elements, accumulator(plan.dtype))
    expression = f"ddf_backward_channel<{_types(plan, index)}, {kh}, {kw}, {_factor(g)}, {channels}, {total}>"
    args = (grad_out, x, spatial, out, by_value(g, index), index.type(segment))
    cuda.launch(FILTERS, expression, (blocks * parts,), (WARP, warps), args)
    if parts > 1:
        sum_partials(cuda, FILTERS, plan.dtype, out, grad_channel, elements, parts)


def _channels_of_a_warp(taps: int, in_group: int) -> int:
    return power_of_two(min(in_group, MAX_CHANNELS, max(1, MAX_SUMS // max(1, taps))))


def _filter_index(g: FilterGeometry) -> np.dtype[Any]:
    filters = g.scale**2 * g.kh * g.kw
    return index_dtype(
        g.N * g.C * g.H * g.W,
        g.N * g.C * g.scale**2 * g.Ho * g.Wo,
        g.has_spatial * g.N * g.G * filters * g.Ho * g.Wo,
        g.has_channel * g.N * g.C * filters,
        g.H + g.stride_h + g.kh * g.dilation_h,
        g.W + g.stride_w + g.kw * g.dilation_w,
    )


def _kernel_size(g: FilterGeometry | NormGeometry, most: int = MAX_TAPS) -> tuple[int, int]:
    """Return the size that a kernel is compiled for: no thread may hold more than its registers."""
    return (g.kh, g.kw) if g.kh * g.kw <= most and g.kh + g.kw <= MAX_EDGES else (0, 0)


def _mode(g: FilterGeometry) -> str:
    if not g.has_channel:
        return "SPATIAL"
    if not g.has_spatial:
        return "CHANNEL"
    return "ADD" if g.add else "MUL"


def _factor(g: FilterGeometry) -> str:
    """Return the mode of a filter's gradient: MUL where the other filter is a factor of it, else ADD."""
    return "MUL" if _mode(g) == "MUL" else "ADD"


def _types(plan: Plan, index: np.dtype[Any]) -> str:
    return f"{ELEMENT[plan.dtype]}, {INDEX[index]}"


def _pixels_and_channels(g: FilterGeometry, channels: int, height: int, width: int) -> tuple[Any, Any]:
    """Return grid and block of the kernels that give a thread a pixel and `channels` channels of a group."""
    block_x, block_y = tile(height, width, THREADS)
    units = g.G * divide_up(g.C // g.G, channels)
    block_z = min(THREADS // (block_x * block_y), units, MAX_BLOCK_Z)
    blocks = g.N * divide_up(height, block_y) * divide_up(width, block_x) * divide_up(units, block_z)
    return (blocks,), (block_x, block_y, block_z)


# ---- filter_norm -----------------------------------------------------------------------------------------------------


def filter_norm_forward(cuda: Any, plan: Plan, f: Any, scale: Any, shift: Any, out: Any) -> None:
    """Write out = filter_norm(f, scale, shift)."""
    _per_filter(cuda, plan, "filter_norm_forward", (f, scale, shift, out))


def filter_norm_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    f: Any,
    scale: Any,
    shift: Any,
    grad_f: Any,
    grad_scale: Any,
    grad_shift: Any,
) -> None:
    """Write the gradients of `filter_norm` that are not None.

    The workspace is 2 numbers per filter for the gradient of scale, and at most 1024 per element of scale and shift.
    """
    g = NormGeometry(*plan.geometry)
    if grad_f is not None and g.filters > 0:
        _per_filter(cuda, plan, "filter_norm_backward_f", (grad_out, f, scale, grad_f))
    if grad_scale is not None and g.scale_size > 0:
        statistics = cuda.workspace(2 * g.filters, accumulator(plan.dtype))
        if g.filters > 0:
            _per_filter(cuda, plan, "filter_norm_statistics", (f, statistics))
        _backward_scale(cuda, plan, g, grad_out, f, statistics, grad_scale)
    if grad_shift is not None and g.shift_size > 0:
        _backward_scale(cuda, plan, g, grad_out, f, None, grad_shift)


def _per_filter(cuda: Any, plan: Plan, kernel: str, arrays: tuple[Any, ...]) -> None:
    g = NormGeometry(*plan.geometry)
    index = _norm_index(g)
    kh, kw = _kernel_size(g)
    eps = np.float64(plan.reals[0]) if plan.dtype == "float64" else np.float32(plan.reals[0])
    expression = f"{kernel}<{_types(plan, index)}, {kh}, {kw}>"
    threads = min(THREADS, divide_up(g.filters, WARP) * WARP)
    cuda.launch(NORM, expression, (divide_up(g.filters, threads),), (threads,), (*arrays, by_value(g, index), eps))


def _backward_scale(
    cuda: Any, plan: Plan, g: NormGeometry, grad_out: Any, f: Any, statistics: Any, gradient: Any
) -> None:
    """Write the gradient of scale, or without statistics that of shift."""
    index = _norm_index(g)
    reduction, contiguous = _reduction(g, of_scale=statistics is not None)
    elements, terms = reduction[:2]
    # A warp sums an element, unless that reads f out of order or leaves lanes idle.
    lanes = 1 if terms < WARP or (contiguous and elements >= BUSY // WARP) else WARP
    parts = max(1, min(divide_up(terms, lanes * CHAIN), divide_up(BUSY, elements * lanes), MAX_PARTS))
    segment = max(1, divide_up(terms, parts))
    parts = max(1, divide_up(terms, segment))

    out = gradient if parts == 1 else cuda.workspace(parts * elements, accumulator(plan.dtype))
    total = ACCUMULATOR[plan.dtype] if parts > 1 else ELEMENT[plan.dtype]
    normalised = "true" if statistics is not None else "false"
    expression = f"filter_norm_backward_scale<{_types(plan, index)}, {lanes}, {normalised}, {total}>"
    args = (grad_out, f, statistics, out, by_value(reduction, index), index.type(segment), index.type(parts))
    cuda.launch(NORM, expression, (divide_up(parts * elements * lanes, THREADS),), (THREADS,), args)
    if parts > 1:
        sum_partials(cuda, NORM, plan.dtype, out, gradient, elements, parts)


def _norm_index(g: NormGeometry) -> np.dtype[Any]:
    return index_dtype(g.f_size, 2 * g.filters)


@lru_cache(maxsize=4096)
def _reduction(g: NormGeometry, *, of_scale: bool) -> tuple[tuple[int, ...], bool]:
    """Return the struct Reduction of `filter_norm.cu`, and whether neighbouring elements are neighbours in f."""
    strides = g[11 + 2 * MAX_NORM_DIMS : 11 + 4 * MAX_NORM_DIMS]
    own = strides[:MAX_NORM_DIMS] if of_scale else strides[MAX_NORM_DIMS:]
    own_taps = (g.scale_kh, g.scale_kw) if of_scale else (g.shift_kh, g.shift_kw)
    extents = g[11 : 11 + MAX_NORM_DIMS]
    numbers = [1]
    for extent in reversed(extents[1:]):
        numbers.insert(0, numbers[0] * extent)
    # (extent, stride in f, step of the filter's number, stride in scale or shift) of each dimension
    dims = list(zip(extents, g[11 + MAX_NORM_DIMS : 11 + 2 * MAX_NORM_DIMS], numbers, own, strict=True))
    dims += [(g.kh, g.f_kh, 0, own_taps[0]), (g.kw, g.f_kw, 0, own_taps[1])]
    kept = sorted((dim for dim in dims if dim[3] != 0), key=lambda dim: -dim[3])
    summed = sorted((dim for dim in dims if dim[3] == 0), key=lambda dim: -dim[1])
    elements = g.scale_size if of_scale else g.shift_size
    columns = zip(*((extent, f, number) for extent, f, number, _ in kept + summed), strict=True)
    terms = g.f_size // elements
    flat = [number for column in columns for number in column]
    return (elements, terms, g.filters, len(kept), len(summed), *flat), bool(kept) and kept[-1][1] == 1


# ---- what can be asked for -------------------------------------------------------------------------------------------


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for, but for kernel sizes.

    Of those there are too many. 3 x 3 and any size (0 x 0) come with every combination of the other arguments. 1 x 1,
    2 x 4, 5 x 5 (the most merged taps), 7 x 7 (the most taps) and 3 x 16 (the longest edges) come with 32-bit indices
    and, of the channels of a thread, the most; the last two with the longest sums of grad_x alone, and 1 x 1 with
    64-bit indices too, for the most channels of a warp.
    """
    found = [
        (source, f"sum_partials<{element}, {index}, {lanes}>")
        for source in (FILTERS, NORM)
        for element in ELEMENT.values()
        for index in INDEX.values()
        for lanes in (1, WARP)
    ]
    for dtype, element in ELEMENT.items():
        totals = tuple(dict.fromkeys((element, ACCUMULATOR[dtype])))
        for index in INDEX.values():
            types = f"{element}, {index}"
            found += [(NORM, expression) for expression in _reduction_expressions(types, totals)]
            for kh, kw in (*_COMPLETE, *(_LARGEST if index == "int" else _LARGEST[:1])):
                found += [(FILTERS, expression) for expression in _filter_expressions(types, kh, kw, totals)]
                if kh * kw != 1:
                    found += [(NORM, f"{kernel}<{types}, {kh}, {kw}>") for kernel in _PER_FILTER]
    return found


_COMPLETE = ((3, 3), (0, 0))
_LARGEST = ((1, 1), (2, 4), (5, 5), (7, 7), (3, 16))
_PER_FILTER = ("filter_norm_forward", "filter_norm_backward_f", "filter_norm_statistics")


def _filter_expressions(types: str, kh: int, kw: int, totals: tuple[str, ...]) -> list[str]:
    types, taps = f"{types}, {kh}, {kw}", kh * kw
    blocks = [2**k for k in range(MAX_CHANNELS.bit_length())]
    warps = [channels for channels in blocks if channels <= _channels_of_a_warp(taps, MAX_CHANNELS)]
    if (kh, kw) in _LARGEST:
        blocks, warps = blocks[-1:], warps[-1:]
    every = (1, 2, 3)
    longest = every[-1:] if taps > MAX_MERGED_TAPS else every
    found = []
    for channels in blocks:
        for mode in ("SPATIAL", "CHANNEL", "ADD", "MUL"):
            arguments = f"{types}, {mode}, {channels}"
            found += [f"ddf_forward<{arguments}, {sums}>" for sums in ((1,) if taps else every)]
            found += [f"ddf_backward_x<{arguments}, {sums}>" for sums in longest]
    for factor in ("ADD", "MUL"):
        merged = every if taps <= MAX_MERGED_TAPS else (1,)
        found += [f"ddf_backward_spatial<{types}, {factor}, {sums}>" for sums in merged]
        if totals != ("double",) or taps <= MAX_DOUBLE_TAPS:
            found += [f"ddf_backward_channel<{types}, {factor}, {c}, {total}>" for c in warps for total in totals]
    return found


def _reduction_expressions(types: str, totals: tuple[str, ...]) -> list[str]:
    return [
        f"filter_norm_backward_scale<{types}, {lanes}, {normalised}, {total}>"
        for total in totals
        for lanes in (1, WARP)
        for normalised in ("true", "false")
    ]
