"""Launches the gradient of the image of `deformable_conv2d`: for as much at a time as the workspace holds.

Where data offsets move the taps, those that reach each cell of the image are listed first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from dynk.kernels.common.cuda_launch import INDEX, THREADS, WARP, divide_up
from dynk.kernels.common.dtypes import accumulator
from dynk.kernels.deformable import cupy_raw_scope
from dynk.kernels.deformable.cupy_raw_call import TAPS, Call, Part
from dynk.kernels.deformable.geometry import WORKSPACE

PLACES_THREADS = 1024  # of `deform_places`

# How many bytes of the workspace lists may take, and sums over parts of the pixels.
LISTS = WORKSPACE // 4
CARRIED = WORKSPACE // 8


class Listing(NamedTuple):
    """The struct of this name: the taps and the rows of the image that the gradient of `x` takes at once."""

    first_image: int
    images: int
    first_block: int
    blocks: int
    first_pixel: int
    pixels: int
    first_row: int
    rows: int
    segments: int
    segment: int


class Cut(NamedTuple):
    """How much of each the gradient of `x` takes at once; channels are those of a block."""

    images: int
    blocks: int
    channels: int
    pixels: int
    rows: int


def backward_x(call: Call, operands: tuple[Any, ...], data_offset: Any, gradient: Any) -> None:
    g = call.g
    fast = cupy_raw_scope.backward_x(g, call.dtype, call.index)
    if fast is not None:
        tiles = g.N * divide_up(g.H * g.W, cupy_raw_scope.PIXELS)
        call.of_scope(fast, fast.blocks * tiles, (*operands, None, gradient))
        return
    in_block, cut = g.C // g.Gd, _cut(call)
    places = entries = carried = listed = None
    if g.has_data:
        units = cut.images * cut.blocks
        cells = units * (cut.rows + 1) * (g.W + 1)
        places = call.cuda.workspace(max(cells, min(LISTS // 8, cells * call.taps)), "int32")
        entries = call.cuda.workspace(units * call.taps * cut.pixels, "int32")
    if cut.pixels < call.pixels and call.rounds:
        carried = call.cuda.workspace(cut.channels * cut.rows * g.W, accumulator(call.dtype))
    for listing, first_channel in _steps(call, cut):
        if g.has_data and listing != listed:
            _list(call, listing, (data_offset, places, entries))
            listed = listing
        channels = min(cut.channels, in_block - first_channel) if listing.blocks == 1 else listing.blocks * in_block
        pixels = listing.images * listing.pixels
        first = listing.first_image * call.pixels + listing.first_pixel
        part = Part(first, pixels, listing.first_block * in_block + first_channel, channels)
        columns = call.grad_columns(part, *operands[:2])
        args = *operands, columns, places, entries, carried, gradient
        more = int(listing.first_pixel + listing.pixels < call.pixels)
        in_turn = min(channels, in_block)
        warps = min(THREADS // WARP, divide_up(in_turn, _held(call)))
        turns = channels // in_turn * divide_up(in_turn, warps * _held(call))
        blocks = listing.images * turns * divide_up(listing.rows * g.W, WARP)
        args = *args, *call.numbers(part, listing, more)
        call.cuda.launch(TAPS, call.expression("deform_backward_x", call.kind), (blocks,), (warps * WARP,), args)


def _held(call: Call) -> int:
    """Return the channels of a thread of `deform_backward_x`: CHANNELS of the source."""
    return 2 if call.dtype == "float64" else 4


def _cut(call: Call) -> Cut:
    """Return what fits the workspace."""
    g = call.g
    in_block = g.C // g.Gd
    pixels, rows, units, channels = call.pixels, g.H, g.N * g.Gd, g.N * g.C
    if g.has_data:
        pixels = max(1, min(pixels, LISTS // 8 // call.taps))
        rows = max(1, min(rows, LISTS // 8 // (g.W + 1) - 1))
        units = min(LISTS // 8 // (call.taps * pixels), LISTS // 8 // ((rows + 1) * (g.W + 1)))
    if not call.depthwise:
        pixels = max(1, min(pixels, call.most // call.scope))
        channels = call.most // (call.scope * pixels)
    if pixels < call.pixels:
        if call.rounds:
            carried = max(1, CARRIED // (call.size * g.W))  # rows of a channel
            rows = min(rows, carried)
            channels = min(channels, carried // rows)
        return Cut(1, 1, max(1, min(channels, in_block)), pixels, rows)
    images = min(g.N, units // g.Gd, channels // g.C) if rows == g.H else 0
    if images > 0:
        return Cut(images, g.Gd, in_block, pixels, rows)
    return Cut(1, max(1, min(g.Gd, units, channels // in_block)), max(1, min(in_block, channels)), pixels, rows)


def _steps(call: Call, cut: Cut) -> Iterator[tuple[Listing, int]]:
    """Return every part of the gradient of `x`, and the first of its channels within its block."""
    g = call.g
    for image in range(0, g.N, cut.images):
        for block in range(0, g.Gd, cut.blocks):
            for row in range(0, g.H, cut.rows):
                for channel in range(0, g.C // g.Gd, cut.channels):
                    for pixel in range(0, call.pixels, cut.pixels):
                        extents = min(cut.images, g.N - image), min(cut.blocks, g.Gd - block)
                        pixels, rows = min(cut.pixels, call.pixels - pixel), min(cut.rows, g.H - row)
                        units, entries = extents[0] * extents[1], call.taps * pixels
                        most = max(1, LISTS // 8 // (units * (rows + 1) * (g.W + 1)))
                        segment = divide_up(divide_up(entries, min(most, call.taps)), WARP) * WARP
                        segments = divide_up(entries, segment)
                        yield (
                            Listing(image, extents[0], block, extents[1], pixel, pixels, row, rows, segments, segment),
                            channel,
                        )


def _list(call: Call, listing: Listing, args: tuple[Any, ...]) -> None:
    """List the taps that reach each cell."""
    units, cells = listing.images * listing.blocks, (listing.rows + 1) * (call.g.W + 1)
    blocks = divide_up(units * listing.segments * WARP, THREADS)
    call.launch(TAPS, "deform_list", blocks, args, listing, kind="false")
    numbers = call.index.type(cells), call.index.type(listing.segments)
    expression = f"deform_places<{INDEX[call.index]}>"
    call.cuda.launch(TAPS, expression, (units,), (PLACES_THREADS,), (args[1], *numbers))
    call.launch(TAPS, "deform_list", blocks, args, listing, kind="true")
