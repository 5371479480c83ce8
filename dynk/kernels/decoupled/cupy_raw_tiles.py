"""Launches the kernels of `ddf_tiles.cu`, which are as fast as memory and for the plainest calls alone.

Shapes alone choose between them and the kernels of `kernels.cu`, and the grid; misaligned data goes through the same
steps by smaller loads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import BUSY, CHAIN, ELEMENT, THREADS, WARP, by_value, divide_up, sum_partials
from dynk.kernels.common.dtypes import ITEMSIZE, accumulator
from dynk.kernels.decoupled.geometry import FilterGeometry

SOURCE, SUMS = "ddf_tiles.cu", "kernels.cu"
_INT = np.dtype(np.int32)
SIZES = ((3, 3), (5, 5))
# Neighbouring pixels of a thread: what 16 bytes hold, and 8 where rows are no multiple of that.
PIXELS = {"float16": (8, 4), "bfloat16": (8, 4), "float32": (4,), "float64": (2,)}
# Registers of a thread for filters and sums.
MAX_WORDS = 100
# Threads with work in a block, or the tiles are not worth it.
MIN_THREADS = 64
MAX_CHANNELS = 32
STENCIL_STAGES, FILTERS_STAGES = 4, 3  # STAGES of the kernels


class Tiling(NamedTuple):
    """The struct of this name in `ddf_tiles.cu`: a tile's columns and rows of vectors, a block's channels."""

    columns: int
    rows: int
    channels: int


def stencil_pixels(g: FilterGeometry, dtype: str, index: np.dtype[Any]) -> int:
    """Return the pixels of a thread of `ddf_stencil`, 0 where the kernel cannot take the call."""
    return _pixels(g, index, _stencil_choices(dtype, g.kh * g.kw))


def filters_pixels(g: FilterGeometry, dtype: str, index: np.dtype[Any]) -> int:
    """Return the pixels of a thread of `ddf_backward_filters`, 0 where the kernel cannot take the call."""
    return _pixels(g, index, _filters_choices(dtype))


def _pixels(g: FilterGeometry, index: np.dtype[Any], choices: tuple[int, ...]) -> int:
    plain = (g.scale, g.stride_h, g.stride_w, g.dilation_h, g.dilation_w) == (1,) * 5
    if not plain or (g.kh, g.kw) not in SIZES or index != _INT:
        return 0
    fitting = [pixels for pixels in choices if g.W % pixels == 0 and math.prod(_tile(g, pixels)) >= MIN_THREADS]
    return fitting[0] if fitting else 0


def _stencil_choices(dtype: str, taps: int) -> tuple[int, ...]:
    return tuple(pixels for pixels in PIXELS[dtype] if _words(dtype, pixels, taps) <= MAX_WORDS)


def _filters_choices(dtype: str) -> tuple[int, ...]:
    return PIXELS[dtype][-1:]  # beside the filters of its pixels a thread holds their sums


def _both_at_once(dtype: str, pixels: int, taps: int) -> bool:
    return 2 * _words(dtype, pixels, taps) <= MAX_WORDS


def _words(dtype: str, pixels: int, taps: int) -> int:
    return pixels * taps * ITEMSIZE[accumulator(dtype)] // 4


def _tile(g: FilterGeometry, pixels: int) -> tuple[int, int]:
    """Return columns and rows of vectors that leave few threads of a block without work."""
    columns = _even(g.W // pixels, WARP)
    return columns, _even(g.H, min(WARP, THREADS // columns))


def _even(extent: int, most: int) -> int:
    """Return the extent of parts of at most `most`, all about the same."""
    return divide_up(extent, divide_up(extent, most))


def _tiles(g: FilterGeometry, pixels: int) -> int:
    columns, rows = _tile(g, pixels)
    return divide_up(g.W // pixels, columns) * divide_up(g.H, rows)


def _channels(g: FilterGeometry, pixels: int, most: int, least: int, threads: int) -> int:
    """Return the channels of a block: at most `most`, fewer while less than `threads` threads are at work."""
    in_group, vectors = g.C // g.G, g.N * g.G * g.H * (g.W // pixels)
    channels = min(most, in_group)
    while channels > least and vectors * divide_up(in_group, channels) < threads:
        channels = max(least, divide_up(channels, 2))
    return channels


def _shared(g: FilterGeometry, dtype: str, tiling: Tiling, pixels: int, stages: int, vectors: int) -> int:
    """Return the bytes of shared memory for tiles, `vectors` more in each stage, and filters."""
    item = ITEMSIZE[accumulator(dtype)]
    tile = (tiling.columns + 2) * (tiling.rows + g.kh - 1) + vectors
    return stages * tile * pixels * ITEMSIZE[dtype] + tiling.channels * divide_up(g.kh * g.kw * item, 16) * 16


def stencil(cuda: Any, plan: Plan, mode: str, pixels: int, arrays: tuple[Any, ...], *, mirrored: bool) -> None:
    """Write the last of the arrays: x, spatial, channel and out, or mirrored grad_out, spatial, channel and grad_x."""
    g = FilterGeometry(*plan.geometry)
    tiling = Tiling(*_tile(g, pixels), _channels(g, pixels, MAX_CHANNELS, 4, 3 * BUSY))
    blocks = g.N * g.G * _tiles(g, pixels) * divide_up(g.C // g.G, tiling.channels)
    expression = _stencil(plan.dtype, g.kh, g.kw, mode, pixels, mirrored)
    shared = _shared(g, plan.dtype, tiling, pixels, STENCIL_STAGES, 0)
    args = (*arrays, by_value(g, _INT), by_value(tiling, _INT))
    cuda.launch(SOURCE, expression, (blocks,), (THREADS,), args, shared)


def backward_filters(
    cuda: Any,
    plan: Plan,
    factor: str,
    pixels: int,
    inputs: tuple[Any, ...],
    grad_spatial: Any,
    grad_channel: Any,
) -> None:
    """Write the gradients that are not None, from inputs (grad_out, x, spatial, channel).

    The workspace is `grad_spatial` for each 64 channels (at least 16 where there is little work), and `grad_channel`
    for each tile of at most 256 vectors of pixels, in the accumulator type; neither where there is only one.
    """
    g = FilterGeometry(*plan.geometry)
    both = grad_spatial is not None and grad_channel is not None
    if both and not _both_at_once(plan.dtype, pixels, g.kh * g.kw):
        backward_filters(cuda, plan, factor, pixels, inputs, grad_spatial, None)
        backward_filters(cuda, plan, factor, pixels, inputs, None, grad_channel)
        return
    tiling = Tiling(*_tile(g, pixels), _channels(g, pixels, CHAIN, 16, BUSY // 2))
    tiles, parts = _tiles(g, pixels), divide_up(g.C // g.G, tiling.channels)
    taps = g.kh * g.kw
    elements = g.N * g.G * taps * g.H * g.W, g.N * g.C * taps
    counts = parts, tiles
    gradients = grad_spatial, grad_channel
    work = [
        cuda.workspace(count * size, accumulator(plan.dtype)) if gradient is not None and count > 1 else None
        for gradient, count, size in zip(gradients, counts, elements, strict=True)
    ]
    expression = _filters(plan.dtype, g.kh, g.kw, factor, pixels, grad_spatial is not None, grad_channel is not None)
    shared = _shared(g, plan.dtype, tiling, pixels, FILTERS_STAGES, THREADS)
    args = (*inputs, *gradients, *work, by_value(g, _INT), by_value(tiling, _INT))
    cuda.launch(SOURCE, expression, (g.N * g.G * tiles * parts,), (THREADS,), args, shared)
    for gradient, partial, count, size in zip(gradients, work, counts, elements, strict=True):
        if partial is not None:
            sum_partials(cuda, SUMS, plan.dtype, partial, gradient, size, count)


def _stencil(dtype: str, kh: int, kw: int, mode: str, pixels: int, mirrored: bool) -> str:
    return f"ddf_stencil<{ELEMENT[dtype]}, int, {kh}, {kw}, {mode}, {pixels}, {_bool(mirrored)}>"


def _filters(dtype: str, kh: int, kw: int, factor: str, pixels: int, of_spatial: bool, of_channel: bool) -> str:
    wanted = f"{_bool(of_spatial)}, {_bool(of_channel)}"
    return f"ddf_backward_filters<{ELEMENT[dtype]}, int, {kh}, {kw}, {factor}, {pixels}, {wanted}>"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel of `ddf_tiles.cu` that can be asked for."""
    found = []
    for dtype in ELEMENT:
        for kh, kw in SIZES:
            for pixels in _stencil_choices(dtype, kh * kw):
                for mode in ("SPATIAL", "CHANNEL", "ADD", "MUL"):
                    found += [_stencil(dtype, kh, kw, mode, pixels, mirrored) for mirrored in (False, True)]
            for pixels in _filters_choices(dtype):
                both = _both_at_once(dtype, pixels, kh * kw)
                for factor in ("ADD", "MUL"):
                    for wanted in ((True, False), (False, True), (True, True))[: 3 if both else 2]:
                        found.append(_filters(dtype, kh, kw, factor, pixels, *wanted))
    return [(SOURCE, expression) for expression in found]
