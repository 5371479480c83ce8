"""Launches the CUDA C kernels of the family: those of `kernels.cu` here, of the other sources in modules beside.

Arrays are C-contiguous and of the storage types; None where one is absent or not wanted. `cuda` runs the kernels:
`cuda.launch(source, expression, grid, block, args, shared)`, in which None is a null pointer and a NumPy void scalar a
struct by value, and `cuda.workspace(count, dtype)`. Kernels, grids, blocks and how a sum is split depend on shapes
alone, so that the same call gives the same bits on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    ACCUMULATOR,
    BUSY,
    CHAIN,
    ELEMENT,
    INDEX,
    MAX_BLOCK_Z,
    MAX_TAPS,
    THREADS,
    WARP,
    by_value,
    divide_up,
    index_dtype,
    kernel_size,
    levels,
    power_of_two,
    sum_partials,
    tile,
)
from dynk.kernels.common.dtypes import accumulator
from dynk.kernels.decoupled import cupy_raw_norm, cupy_raw_tiles
from dynk.kernels.decoupled.cupy_raw_norm import filter_norm_backward, filter_norm_forward
from dynk.kernels.decoupled.geometry import FilterGeometry

__all__ = ["ddf_backward", "ddf_forward", "filter_norm_backward", "filter_norm_forward", "instantiations"]

SOURCE = "kernels.cu"

# MAX_TAPS where a thread also holds merged chains of every tap.
MAX_MERGED_TAPS = 25
# MAX_TAPS of grad_channel, where sums are of 8 bytes.
MAX_DOUBLE_TAPS = 36
# Channels that share a thread's filter loads.
MAX_CHANNELS = 8
# Sums of grad_channel that a thread can hold.
MAX_SUMS = 64
MAX_SLICES = 16


def ddf_forward(cuda: Any, plan: Plan, x: Any, spatial: Any, channel: Any, out: Any) -> None:
    """Write out = ddf(x, spatial, channel)."""
    g = FilterGeometry(*plan.geometry)
    index = _filter_index(g)
    if pixels := cupy_raw_tiles.stencil_pixels(g, plan.dtype, index):
        cupy_raw_tiles.stencil(cuda, plan, _mode(g), pixels, (x, spatial, channel, out), mirrored=False)
        return
    channels = _channels_of_a_thread(g)
    kh, kw = kernel_size(g.kh, g.kw)
    sums = 1 if kh else 3
    expression = f"ddf_forward<{_types(plan, index)}, {kh}, {kw}, {_mode(g)}, {channels}, {sums}>"
    grid, block = _pixels_and_channels(g, channels, g.scale * g.Ho, g.scale * g.Wo)
    cuda.launch(SOURCE, expression, grid, block, (x, spatial, channel, out, by_value(g, index)))


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
    """Write the gradients of `ddf` that are not None.

    The workspace is below 1/64 of `x`, but for `cupy_raw_tiles.backward_filters`.
    """
    g = FilterGeometry(*plan.geometry)
    if grad_x is not None:
        _backward_x(cuda, plan, g, grad_out, spatial, channel, grad_x)
    if grad_spatial is None and grad_channel is None:
        return
    if pixels := cupy_raw_tiles.filters_pixels(g, plan.dtype, _filter_index(g)):
        inputs = grad_out, x, spatial, channel
        cupy_raw_tiles.backward_filters(cuda, plan, _factor(g), pixels, inputs, grad_spatial, grad_channel)
        return
    if grad_spatial is not None:
        _backward_spatial(cuda, plan, g, grad_out, x, channel, grad_spatial)
    if grad_channel is not None:
        _backward_channel(cuda, plan, g, grad_out, x, spatial, grad_channel)


def _backward_x(
    cuda: Any, plan: Plan, g: FilterGeometry, grad_out: Any, spatial: Any, channel: Any, grad_x: Any
) -> None:
    index = _filter_index(g)
    if pixels := cupy_raw_tiles.stencil_pixels(g, plan.dtype, index):
        cupy_raw_tiles.stencil(cuda, plan, _mode(g), pixels, (grad_out, spatial, channel, grad_x), mirrored=True)
        return
    channels = _channels_of_a_thread(g)
    kh, kw = kernel_size(g.kh, g.kw)
    sums = 1 if g.kh * g.kw * g.scale**2 <= CHAIN else 3
    expression = f"ddf_backward_x<{_types(plan, index)}, {kh}, {kw}, {_mode(g)}, {channels}, {sums}>"
    grid, block = _pixels_and_channels(g, channels, g.H, g.W)
    cuda.launch(SOURCE, expression, grid, block, (grad_out, spatial, channel, grad_x, by_value(g, index)))


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
    kh, kw = kernel_size(g.kh, g.kw, MAX_TAPS if sums == 1 else MAX_MERGED_TAPS)
    block_x, block_y = tile(height, width, THREADS // slices)
    blocks = g.N * divide_up(height, block_y) * divide_up(width, block_x) * g.G * (1 if kh else g.kh * g.kw)
    expression = f"ddf_backward_spatial<{_types(plan, index)}, {kh}, {kw}, {_factor(g)}, {sums}>"
    args = (grad_out, x, channel, grad_spatial, by_value(g, index))
    cuda.launch(SOURCE, expression, (blocks,), (block_x, block_y, slices), args)


def _backward_channel(
    cuda: Any, plan: Plan, g: FilterGeometry, grad_out: Any, x: Any, spatial: Any, grad_channel: Any
) -> None:
    index = _filter_index(g)
    taps, subpixels, pixels = g.kh * g.kw, g.scale**2, g.Ho * g.Wo
    kh, kw = kernel_size(g.kh, g.kw, MAX_DOUBLE_TAPS if plan.dtype == "float64" else MAX_TAPS)
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
    cuda.launch(SOURCE, expression, (blocks * parts,), (WARP, warps), args)
    if parts > 1:
        sum_partials(cuda, SOURCE, plan.dtype, out, grad_channel, elements, parts)


def _channels_of_a_thread(g: FilterGeometry) -> int:
    return MAX_CHANNELS if g.C > g.G else 1


def _channels_of_a_warp(taps: int, in_group: int) -> int:
    return power_of_two(min(MAX_CHANNELS, MAX_SUMS // max(1, taps))) if in_group > 1 else 1


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


# ---- what can be asked for -------------------------------------------------------------------------------------------


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for, but for kernel sizes.

    Of those there are too many. 3 x 3 and any size (0 x 0) come with every combination of the other arguments. 1 x 1,
    2 x 4, 5 x 5 (the most merged taps), 7 x 7 (the most taps) and 3 x 16 (the longest edges) come with 32-bit indices
    and what takes the most registers: both filters as factors, and the most channels and longest sums. With 64-bit
    indices 1 x 1 comes too, for the most channels of a warp.
    """
    found = []
    for dtype, element in ELEMENT.items():
        totals = tuple(dict.fromkeys((element, ACCUMULATOR[dtype])))
        for index in INDEX.values():
            types = f"{element}, {index}"
            found += [f"sum_partials<{types}, {lanes}>" for lanes in (1, WARP)]
            for kh, kw in ((3, 3), (0, 0)):
                found += _expressions(types, kh, kw, totals)
            for kh, kw in _LARGEST if index == "int" else _LARGEST[:1]:
                found += _largest_expressions(types, kh, kw, totals)
    return (
        [(SOURCE, expression) for expression in found]
        + cupy_raw_tiles.instantiations()
        + cupy_raw_norm.instantiations()
    )


_LARGEST = ((1, 1), (2, 4), (5, 5), (7, 7), (3, 16))


def _expressions(types: str, kh: int, kw: int, totals: tuple[str, ...]) -> list[str]:
    types, found = f"{types}, {kh}, {kw}", []
    for channels in (1, MAX_CHANNELS):
        for mode in ("SPATIAL", "CHANNEL", "ADD", "MUL"):
            found.append(f"ddf_forward<{types}, {mode}, {channels}, {1 if kh else 3}>")
            found += [f"ddf_backward_x<{types}, {mode}, {channels}, {sums}>" for sums in (1, 3)]
    for factor in ("ADD", "MUL"):
        found += [f"ddf_backward_spatial<{types}, {factor}, {sums}>" for sums in (1, 2, 3)]
        for channels in (1, 2, 4) if kh else (1, MAX_CHANNELS):
            found += [f"ddf_backward_channel<{types}, {factor}, {channels}, {total}>" for total in totals]
    return found


def _largest_expressions(types: str, kh: int, kw: int, totals: tuple[str, ...]) -> list[str]:
    types, taps = f"{types}, {kh}, {kw}", kh * kw
    found = [
        f"ddf_forward<{types}, MUL, {MAX_CHANNELS}, 1>",
        f"ddf_backward_x<{types}, MUL, {MAX_CHANNELS}, 3>",
        f"ddf_backward_spatial<{types}, MUL, {3 if taps <= MAX_MERGED_TAPS else 1}>",
    ]
    if totals != ("double",) or taps <= MAX_DOUBLE_TAPS:
        channels = _channels_of_a_warp(taps, MAX_CHANNELS)
        for factor in ("ADD", "MUL"):
            found += [f"ddf_backward_channel<{types}, {factor}, {channels}, {total}>" for total in totals]
    return found
