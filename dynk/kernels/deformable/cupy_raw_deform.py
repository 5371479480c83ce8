"""Launches the CUDA C kernels of `deformable_conv2d`.

Convolutions whose groups have one input channel take the kernels of `scope.cu` or `depthwise.cu`, all others are
matrix products with columns in the workspace (`dense.cu`); the gradients of single taps are of both (`taps.cu`).
Kernels, grids and how a call is cut into parts depend on shapes alone, so that the same call gives the same bits on
every device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    ACCUMULATOR,
    BUSY,
    CHAIN,
    ELEMENT,
    INDEX,
    THREADS,
    WARP,
    by_value,
    divide_up,
    index_dtype,
    power_of_two,
    sum_partials,
)
from dynk.kernels.common.dtypes import ITEMSIZE, accumulator
from dynk.kernels.deformable import cupy_raw_scope
from dynk.kernels.deformable.geometry import FAR, WORKSPACE, DeformGeometry

DENSE, DEPTHWISE, TAPS = "dense.cu", "depthwise.cu", "taps.cu"
TILE, DEPTH = 64, 16  # of a product's block, as the source says
SLICES = 8  # threads that share the channels of a block of offsets, at most
PLACES_THREADS = 1024  # of `deform_places`
SHARED = 48 << 10  # bytes of a block, at most
CHANNELS, LEAST_THREADS = (
    8,
    128,
)  # of a thread and a block that form columns: no more channels if there are fewer threads
FEW_OUTPUTS = 4  # of a group of one channel that has kernels of its own even without kernel offsets

# How many bytes each use of the workspace may take.
COLUMNS = WORKSPACE // 2
LISTS = WORKSPACE // 4
CARRIED = PARTIAL = WORKSPACE // 8


def deformable_conv2d_forward(
    cuda: Any, plan: Plan, x: Any, weight: Any, kernel_offset: Any, data_offset: Any, mask: Any, bias: Any, out: Any
) -> None:
    """Write out = deformable_conv2d(x, weight, kernel_offset, data_offset, mask, bias).

    The workspace is the columns of as many pixels as fit it, none for depth-wise weights.
    """
    call = _Call(cuda, plan)
    g = call.g
    points = kernel_offset, data_offset, mask
    if call.depthwise:
        call.depthwise_forward((x, weight, *points, bias, out))
        return
    for part in call.parts():
        columns = call.columns(part, (x, *points))
        args = x, weight, *points, bias, columns, out
        call.launch(DENSE, "deform_forward", call.tiles(g.O // g.groups, part.pixels), args, part)


def deformable_conv2d_backward(
    cuda: Any,
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
    """Write the gradients of `deformable_conv2d` that are not None.

    The workspace is the columns of as many pixels as fit it or their gradient, none for depth-wise weights; the taps
    that reach each cell of as many images or pixels as fit it, for the gradient of `x` with data offsets; and partial
    sums. At most WORKSPACE bytes, or one gradient of the weight besides if that is more than an eighth.
    """
    call = _Call(cuda, plan)
    points = kernel_offset, data_offset, mask
    if call.g.N == 0:  # gradients that have elements are sums of nothing
        for gradient, size in (grad_weight, call.weights), (grad_bias, call.g.O):
            if gradient is not None:
                sum_partials(cuda, DEPTHWISE, plan.dtype, None, gradient, size, 0)
        return
    if grad_x is not None:
        call.backward_x((grad_out, weight, *points), data_offset, grad_x)
    if not all(gradient is None for gradient in (grad_kernel_offset, grad_data_offset, grad_mask)):
        operands = grad_out, x, weight, *points
        call.backward_points(operands, grad_kernel_offset, grad_data_offset, grad_mask)
    if grad_weight is not None:
        call.backward_weight((grad_out, x, *points), grad_weight)
    if grad_bias is not None:
        call.by_warps("deform_backward_bias", (grad_out,), grad_bias, call.g.O)


def is_depthwise(g: DeformGeometry) -> bool:
    """Return whether the kernels for groups of one channel take a call: with kernel offsets their rules are others."""
    return g.groups == g.C and bool(g.has_kernel or g.O // g.groups <= FEW_OUTPUTS)


class Part(NamedTuple):
    """The struct of this name: output pixels of the batch, and channels."""

    first: int
    pixels: int
    first_channel: int
    channels: int


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


class _Call:
    """One call's geometry, types and launches."""

    def __init__(self, cuda: Any, plan: Plan) -> None:
        self.cuda = cuda
        self.g = DeformGeometry(*plan.geometry)
        self.dtype = plan.dtype
        self.index = _index(self.g)
        self.pixels = self.g.Ho * self.g.Wo
        self.taps = self.g.kh * self.g.kw
        self.scope = self.g.Sh * self.g.Sw
        self.weights = self.g.O * (self.g.C // self.g.groups) * self.scope
        self.depthwise = is_depthwise(self.g)
        self.size = ITEMSIZE[accumulator(self.dtype)]
        self.rounds = accumulator(self.dtype) != self.dtype  # gradients cannot hold what is to be added to
        # Elements of the columns in the workspace.
        self.most = min(self.g.N * self.pixels * self.g.C * self.scope, COLUMNS // self.size)
        self._columns: Any = None
        self._part: Part | None = None  # whose gradient they hold

    def launch(self, source: str, name: str, blocks: int, args: tuple[Any, ...], *more: Any, kind: str = "") -> None:
        """Launch a kernel of one-dimensional blocks, with the geometry and `more` numbers behind its arguments."""
        args = *args, *self.numbers(*more)
        self.cuda.launch(source, self.expression(name, kind), (blocks,), (THREADS,), args)

    def expression(self, name: str, more: str = "") -> str:
        return f"{name}<{ELEMENT[self.dtype]}, {INDEX[self.index]}{f', {more}' if more else ''}>"

    def numbers(self, *more: Any) -> tuple[Any, ...]:
        return tuple(by_value(n, self.index) if isinstance(n, tuple) else self.index.type(n) for n in (self.g, *more))

    @property
    def kind(self) -> str:
        """The template argument DENSE."""
        return "false" if self.depthwise else "true"

    # ---- columns -----------------------------------------------------------------------------------------------------

    def workspace_of_columns(self) -> Any:
        """Return where the columns of a part go, or their gradient: one part after the other."""
        if self._columns is None:
            self._columns = self.cuda.workspace(self.most, accumulator(self.dtype))
        return self._columns

    def parts(self) -> Iterator[Part]:
        """Return the parts of the batch whose columns fit the workspace, with all channels."""
        g, pixels = self.g, self.g.N * self.pixels
        step = max(1, self.most // (g.C * self.scope))
        if TILE < step < pixels:
            step -= step % TILE
        for first in range(0, pixels, step):
            yield Part(first, min(step, pixels - first), 0, g.C)

    def columns(self, part: Part, args: tuple[Any, ...]) -> Any:
        """Return the columns of a part."""
        columns, self._part = self.workspace_of_columns(), None
        run = math.gcd(self.g.C // self.g.Gk, self.g.C // self.g.Gd)
        each, threads, shared = min(CHANNELS, run), THREADS, 0
        if self.g.has_kernel:
            fitting = SHARED // (self.scope * self.size)  # threads, of a channel each
            each = max(1, min(each, fitting // LEAST_THREADS))
            if fitting >= WARP:
                threads = min(THREADS, power_of_two(fitting // each))
                shared = threads * each * self.scope * self.size
        numbers = self.numbers(part, run, each, int(shared > 0))
        blocks = divide_up(part.pixels * (self.g.C // run) * divide_up(run, each), threads)
        args = *args, columns, *numbers
        self.cuda.launch(DENSE, self.expression("deform_columns"), (blocks,), (threads,), args, shared)
        return columns

    def grad_columns(self, part: Part, grad_out: Any, weight: Any) -> Any:
        """Return the gradient of the columns of a part, None where it is formed element by element."""
        if self.depthwise:
            return None
        columns = self.workspace_of_columns()
        if part != self._part:
            blocks = self.tiles(self.g.C // self.g.groups * self.scope, part.pixels)
            self.launch(DENSE, "deform_backward_columns", blocks, (grad_out, weight, columns), part)
            self._part = part
        return columns

    def tiles(self, rows: int, columns: int) -> int:
        """Return how many tiles the products of all groups have."""
        return self.g.groups * divide_up(rows, TILE) * divide_up(columns, TILE)

    # ---- the image ---------------------------------------------------------------------------------------------------

    def backward_x(self, operands: tuple[Any, ...], data_offset: Any, gradient: Any) -> None:
        g = self.g
        fast = cupy_raw_scope.backward_x(g, self.dtype, self.index)
        if fast is not None:
            tiles = g.N * divide_up(g.H * g.W, cupy_raw_scope.PIXELS)
            self.of_scope(fast, fast.blocks * tiles, (*operands, None, gradient))
            return
        in_block, cut = g.C // g.Gd, self.cut()
        places = entries = carried = listed = None
        if g.has_data:
            units, cells = cut.images * cut.blocks, (cut.rows + 1) * (g.W + 1)
            places = self.cuda.workspace(min(LISTS // 8, units * cells * self.taps), "int32")
            entries = self.cuda.workspace(units * self.taps * cut.pixels, "int32")
        if cut.pixels < self.pixels and self.rounds:
            carried = self.cuda.workspace(cut.channels * cut.rows * g.W, accumulator(self.dtype))
        for listing, first_channel in self.steps(cut):
            if g.has_data and listing != listed:
                self.list(listing, (data_offset, places, entries))
                listed = listing
            channels = min(cut.channels, in_block - first_channel) if listing.blocks == 1 else listing.blocks * in_block
            pixels = listing.images * listing.pixels
            first = listing.first_image * self.pixels + listing.first_pixel
            part = Part(first, pixels, listing.first_block * in_block + first_channel, channels)
            columns = self.grad_columns(part, *operands[:2])
            args = *operands, columns, places, entries, carried, gradient
            in_turn = min(channels, in_block)
            threads = listing.images * channels // in_turn * divide_up(in_turn, self.held()) * listing.rows * g.W
            more = int(listing.first_pixel + listing.pixels < self.pixels)
            blocks = divide_up(threads, THREADS)
            self.launch(TAPS, "deform_backward_x", blocks, args, part, listing, more, kind=self.kind)

    def held(self) -> int:
        """Return the channels of a thread of `deform_backward_x`: CHANNELS of the source."""
        return 2 if self.dtype == "float64" else 4

    def cut(self) -> Cut:
        """Return what fits the workspace."""
        g = self.g
        in_block = g.C // g.Gd
        pixels, rows, units, channels = self.pixels, g.H, g.N * g.Gd, g.N * g.C
        if g.has_data:
            pixels = max(1, min(pixels, LISTS // 8 // self.taps))
            rows = max(1, min(rows, LISTS // 8 // (g.W + 1) - 1))
            units = min(LISTS // 8 // (self.taps * pixels), LISTS // 8 // ((rows + 1) * (g.W + 1)))
        if not self.depthwise:
            pixels = max(1, min(pixels, self.most // self.scope))
            channels = self.most // (self.scope * pixels)
        if pixels < self.pixels:
            if self.rounds:
                carried = max(1, CARRIED // (self.size * g.W))  # rows of a channel
                rows = min(rows, carried)
                channels = min(channels, carried // rows)
            return Cut(1, 1, max(1, min(channels, in_block)), pixels, rows)
        images = min(g.N, units // g.Gd, channels // g.C) if rows == g.H else 0
        if images > 0:
            return Cut(images, g.Gd, in_block, pixels, rows)
        return Cut(1, max(1, min(g.Gd, units, channels // in_block)), max(1, min(in_block, channels)), pixels, rows)

    def steps(self, cut: Cut) -> Iterator[tuple[Listing, int]]:
        """Return every part of the gradient of `x`, and the first of its channels within its block."""
        g = self.g
        for image in range(0, g.N, cut.images):
            for block in range(0, g.Gd, cut.blocks):
                for row in range(0, g.H, cut.rows):
                    for channel in range(0, g.C // g.Gd, cut.channels):
                        for pixel in range(0, self.pixels, cut.pixels):
                            extents = min(cut.images, g.N - image), min(cut.blocks, g.Gd - block)
                            pixels, rows = min(cut.pixels, self.pixels - pixel), min(cut.rows, g.H - row)
                            units, entries = extents[0] * extents[1], self.taps * pixels
                            most = max(1, LISTS // 8 // (units * (rows + 1) * (g.W + 1)))
                            segment = divide_up(divide_up(entries, min(most, self.taps)), WARP) * WARP
                            segments = divide_up(entries, segment)
                            yield (
                                Listing(
                                    image, extents[0], block, extents[1], pixel, pixels, row, rows, segments, segment
                                ),
                                channel,
                            )

    def list(self, listing: Listing, args: tuple[Any, ...]) -> None:
        """List the taps that reach each cell."""
        units, cells = listing.images * listing.blocks, (listing.rows + 1) * (self.g.W + 1)
        blocks = divide_up(units * listing.segments * WARP, THREADS)
        self.launch(TAPS, "deform_list", blocks, args, listing, kind="false")
        numbers = self.index.type(cells), self.index.type(listing.segments)
        expression = f"deform_places<{INDEX[self.index]}>"
        self.cuda.launch(TAPS, expression, (units,), (PLACES_THREADS,), (args[1], *numbers))
        self.launch(TAPS, "deform_list", blocks, args, listing, kind="true")

    # ---- the other gradients -----------------------------------------------------------------------------------------

    def backward_points(self, operands: tuple[Any, ...], kernel: Any, data: Any, mask: Any) -> None:
        """Write the gradients of the offsets and the mask."""
        g = self.g
        if kernel is not None and self.depthwise and self.depthwise_backward_kernel(operands, kernel):
            kernel = None
        for part in [Part(0, g.N * self.pixels, 0, g.C)] if self.depthwise else self.parts():
            columns = self.grad_columns(part, operands[0], operands[2])
            if data is not None or mask is not None:
                self.of_blocks("deform_backward_data", g.Gd, part, (*operands, columns, data, mask))
            if kernel is not None:
                self.of_blocks("deform_backward_kernel", g.Gk, part, (*operands, columns, kernel))

    def of_blocks(self, name: str, count: int, part: Part, args: tuple[Any, ...]) -> None:
        """Launch a kernel that sums over the channels of each of `count` blocks."""
        slices = min(SLICES, power_of_two(self.g.C // count))
        blocks = divide_up(part.pixels * self.taps * count, WARP)
        args = *args, *self.numbers(part)
        self.cuda.launch(TAPS, self.expression(name, self.kind), (blocks,), (WARP, 1, slices), args)

    def backward_weight(self, args: tuple[Any, ...], gradient: Any) -> None:
        g, size = self.g, self.weights
        if self.depthwise:
            self.depthwise_backward_weight(args, gradient)
            return
        pixel_parts = list(self.parts())
        tiles = self.tiles(g.O // g.groups, size // g.O)
        pixels = pixel_parts[0].pixels
        count = self.split(pixels, divide_up(BUSY, tiles * THREADS), size, DEPTH * CHAIN)
        out, element = gradient, ELEMENT[self.dtype]
        if count > 1 or (len(pixel_parts) > 1 and self.rounds):
            out, element = self.cuda.workspace(count * size, accumulator(self.dtype)), ACCUMULATOR[self.dtype]
        for part in pixel_parts:
            columns = self.columns(part, args[1:])
            segment = divide_up(part.pixels, count)
            operands = *args, columns, out
            self.launch(DENSE, "deform_backward_weight", tiles * count, operands, part, segment, kind=element)
        if out is not gradient:
            sum_partials(self.cuda, DEPTHWISE, self.dtype, out, gradient, size, count)

    # ---- depth-wise --------------------------------------------------------------------------------------------------

    def depthwise_forward(self, args: tuple[Any, ...]) -> None:
        g = self.g
        fast = cupy_raw_scope.forward(g, self.dtype, self.index)
        if fast is None:
            self.launch(DEPTHWISE, "deform_depthwise_forward", divide_up(g.N * g.O * self.pixels, THREADS), args)
            return
        tiles = g.N * divide_up(self.pixels, cupy_raw_scope.PIXELS)
        self.of_scope(fast, fast.blocks * tiles, args)

    def depthwise_backward_weight(self, args: tuple[Any, ...], gradient: Any) -> None:
        g, size = self.g, self.weights
        fast = cupy_raw_scope.backward_weight(g, self.dtype, self.index)
        if fast is None:
            self.by_warps("deform_depthwise_backward_weight", args, gradient, size)
            return
        tiles = g.N * divide_up(self.pixels, cupy_raw_scope.PIXELS)
        parts = self.split(tiles, divide_up(BUSY, fast.blocks * fast.threads), size, 2)
        out = self.cuda.workspace(parts * size, accumulator(self.dtype))
        self.of_scope(fast, fast.blocks * parts, (*args, out), parts)
        sum_partials(self.cuda, DEPTHWISE, self.dtype, out, gradient, size, parts)

    def depthwise_backward_kernel(self, args: tuple[Any, ...], gradient: Any) -> bool:
        """Write the gradient of the kernel offsets, by images that fit the workspace; return whether that can be."""
        g = self.g
        fast = cupy_raw_scope.backward_kernel(g, self.dtype, self.index)
        if fast is None:
            return False
        parts, size = fast.blocks // g.Gk, g.Gk * self.taps * 2 * self.pixels
        images = min(g.N, COLUMNS // (parts * size * self.size))  # there are no columns
        if images < 1:
            return False
        out = self.cuda.workspace(parts * images * size, accumulator(self.dtype))
        tiles = divide_up(self.pixels, cupy_raw_scope.PIXELS)
        for first in range(0, g.N, images):
            count = min(images, g.N - first)
            self.of_scope(fast, fast.blocks * count * tiles, (*args, out), first, count)
            own = gradient if count == g.N else gradient[first : first + count]
            sum_partials(self.cuda, DEPTHWISE, self.dtype, out, own, count * size, parts)
        return True

    def of_scope(self, fast: cupy_raw_scope.Launch, blocks: int, args: tuple[Any, ...], *more: int) -> None:
        """Launch a kernel of `scope.cu`."""
        args = *args, *self.numbers(fast.blocking, *more)
        self.cuda.launch(cupy_raw_scope.SOURCE, fast.expression, (blocks,), (fast.threads,), args, fast.shared)

    def by_warps(self, name: str, args: tuple[Any, ...], gradient: Any, size: int) -> None:
        """Write a gradient of so many elements of which warps sum the parts."""
        pixels = self.g.N * self.pixels
        count = self.split(pixels, divide_up(BUSY, size * WARP), size, WARP)
        segment = divide_up(pixels, count)
        count = divide_up(pixels, segment)
        out = self.cuda.workspace(count * size, accumulator(self.dtype))
        blocks = divide_up(count * size * WARP, THREADS)
        self.launch(DEPTHWISE, name, blocks, (*args, out), segment, count)
        sum_partials(self.cuda, DEPTHWISE, self.dtype, out, gradient, size, count)

    def split(self, terms: int, wanted: int, size: int, least: int) -> int:
        """Return how many parts, of at least `least` terms, a sum has that is a gradient of so many elements."""
        return max(1, min(wanted, divide_up(terms, least), PARTIAL // (size * self.size)))


def _index(g: DeformGeometry) -> Any:
    blocks = max(g.Gk, g.Gd)
    return index_dtype(
        g.N * g.C * g.H * g.W,
        g.N * max(g.O, 2 * blocks * g.kh * g.kw) * g.Ho * g.Wo,
        g.O * (g.C // g.groups) * g.Sh * g.Sw,
        FAR + g.H + 2 * g.pad_h + g.kh * g.dil_h,
        FAR + g.W + 2 * g.pad_w + g.kw * g.dil_w,
    )


# ---- what can be asked for -------------------------------------------------------------------------------------------

_KERNELS = {
    DENSE: ("deform_columns", "deform_forward", "deform_backward_columns"),
    DEPTHWISE: ("deform_depthwise_forward", "deform_depthwise_backward_weight", "deform_backward_bias"),
}
_OF_TAPS = ("deform_backward_data", "deform_backward_kernel", "deform_backward_x", "deform_list")


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    found = cupy_raw_scope.instantiations()
    found += [(TAPS, f"deform_places<{index}>") for index in INDEX.values()]
    for dtype, element in ELEMENT.items():
        for index in INDEX.values():
            types = f"{element}, {index}"
            found += [(source, f"{name}<{types}>") for source, names in _KERNELS.items() for name in names]
            found += [(TAPS, f"{name}<{types}, {flag}>") for name in _OF_TAPS for flag in ("false", "true")]
            outs = dict.fromkeys((element, ACCUMULATOR[dtype]))
            found += [(DENSE, f"deform_backward_weight<{types}, {out}>") for out in outs]
            found += [(DEPTHWISE, f"sum_partials<{types}, {lanes}>") for lanes in (1, WARP)]
    return found
