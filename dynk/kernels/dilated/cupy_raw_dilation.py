"""Launches the CUDA C kernels of `adaptive_dilation_conv2d`.

A convolution whose groups have one input channel and few outputs, as a depth-wise one, takes the kernels of
`depthwise.cu`; all others are matrix products (`dense.cu`). Kernels, grids and how a sum is split depend on shapes
alone, so that the same call gives the same bits on every device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

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
from dynk.kernels.dilated.geometry import DILATIONS_H, DILATIONS_W, WORKSPACE, DilationGeometry, is_depthwise_on_cuda

DENSE, DEPTHWISE = "dense.cu", "depthwise.cu"
TILE, DEPTH = 64, 16  # of a product's block, as the source says
SLICES = 8  # threads that share a pixel's channels, at most


def adaptive_dilation_conv2d_forward(
    cuda: Any, plan: Plan, x: Any, weight: Any, dilation_weights: Any, bias: Any, out: Any
) -> None:
    """Write out = adaptive_dilation_conv2d(x, weight, dilation_weights, bias). No workspace."""
    call = _Call(cuda, plan)
    g = call.g
    args = x, weight, *_choices(g, dilation_weights), bias, out
    if call.depthwise:
        call.launch(DEPTHWISE, "dilation_depthwise_forward", divide_up(g.N * g.O * call.pixels, THREADS), args)
    else:
        call.launch(DENSE, "dilation_forward", call.tiles(g.O // g.groups, g.N * call.pixels), args)


def adaptive_dilation_conv2d_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    weight: Any,
    dilation_weights: Any,
    bias: Any,
    grad_x: Any,
    grad_weight: Any,
    grad_dilation_weights: Any,
    grad_bias: Any,
) -> None:
    """Write the gradients of `adaptive_dilation_conv2d` that are not None.

    The workspace is partial sums: of the gradients of `weight` and `bias`, and, where there are few pixels, of that of
    `dilation_weights`; at most WORKSPACE bytes, or one gradient of the weight if that is more.
    """
    call = _Call(cuda, plan)
    g = call.g
    choices = _choices(g, dilation_weights)
    if grad_x is not None:
        args = grad_out, weight, *choices, grad_x
        if call.depthwise:
            blocks = divide_up(g.N * g.C * g.H * g.W, THREADS)
            call.launch(DEPTHWISE, "dilation_depthwise_backward_x", blocks, args)
        else:
            call.launch(DENSE, "dilation_backward_x", call.tiles(g.C // g.groups, g.N * g.H * g.W), args)
    if grad_weight is not None:
        call.backward_weight((grad_out, x, *choices), grad_weight)
    if grad_dilation_weights is not None:
        call.backward_shares((grad_out, x, weight), dilation_weights, grad_dilation_weights)
    if grad_bias is not None:
        call.by_warps("dilation_backward_bias", (grad_out,), grad_bias, g.O)


class _Split(NamedTuple):
    """A sum over pixels in parts, each over a segment of them."""

    parts: int
    segment: int


class _Call:
    """One call's geometry, types and launches."""

    def __init__(self, cuda: Any, plan: Plan) -> None:
        self.cuda = cuda
        self.g = DilationGeometry(*plan.geometry)
        self.dtype = plan.dtype
        self.index = _index(self.g)
        self.pixels = self.g.Ho * self.g.Wo
        self.filter = self.g.C // self.g.groups * self.g.kh * self.g.kw
        self.depthwise = is_depthwise_on_cuda(self.g)

    def launch(self, source: str, name: str, blocks: int, args: tuple[Any, ...], *more: int, out: str = "") -> None:
        """Launch a kernel of one-dimensional blocks, with the geometry and `more` numbers behind its arguments."""
        numbers = by_value(self.g, self.index), *map(self.index.type, more)
        self.cuda.launch(source, self.expression(name, out), (blocks,), (THREADS,), (*args, *numbers))

    def expression(self, name: str, out: str = "") -> str:
        return f"{name}<{ELEMENT[self.dtype]}, {INDEX[self.index]}{f', {out}' if out else ''}>"

    def tiles(self, rows: int, columns: int) -> int:
        """Return how many tiles the products of all groups have."""
        return self.g.groups * divide_up(rows, TILE) * divide_up(columns, TILE)

    def backward_weight(self, args: tuple[Any, ...], gradient: Any) -> None:
        g, size = self.g, self.g.O * self.filter
        if self.depthwise:
            self.by_warps("dilation_depthwise_backward_weight", args, gradient, size)
            return
        tiles = self.tiles(g.O // g.groups, self.filter)
        split = self.split(divide_up(BUSY, tiles * THREADS), size, DEPTH * CHAIN)
        out, element = self.partial(gradient, split.parts, size)
        self.launch(DENSE, "dilation_backward_weight", tiles * split.parts, (*args, out), split.segment, out=element)
        self.merge(out, gradient, split.parts, size)

    def backward_shares(self, args: tuple[Any, ...], shares: Any, gradient: Any) -> None:
        g, size = self.g, self.g.N * self.g.D * self.pixels
        if self.depthwise:
            slices = min(SLICES, power_of_two(g.C))
            args = *args, shares, gradient, by_value(g, self.index)
            expression = self.expression("dilation_depthwise_backward_shares")
            self.cuda.launch(DEPTHWISE, expression, (divide_up(g.N * self.pixels, WARP),), (WARP, 1, slices), args)
            return
        tiles, strips = divide_up(g.N * self.pixels, TILE), g.groups * divide_up(self.filter, TILE)
        parts = max(1, min(strips, divide_up(BUSY, tiles * THREADS), self.most_parts(size)))
        out, element = self.partial(gradient, parts, size)
        self.launch(DENSE, "dilation_backward_shares", tiles * parts, (*args, out), parts, out=element)
        self.merge(out, gradient, parts, size)

    def by_warps(self, name: str, args: tuple[Any, ...], gradient: Any, size: int) -> None:
        """Write a gradient of which warps sum the parts."""
        split = self.split(divide_up(BUSY, size * WARP), size, WARP)
        out = self.cuda.workspace(split.parts * size, accumulator(self.dtype))
        blocks = divide_up(split.parts * size * WARP, THREADS)
        self.launch(DEPTHWISE, name, blocks, (*args, out), split.segment, split.parts)
        self.merge(out, gradient, split.parts, size)

    def split(self, wanted: int, size: int, least: int) -> _Split:
        """Return how a sum over the output pixels, of a gradient of so many elements, is cut into segments."""
        pixels = self.g.N * self.pixels
        parts = max(1, min(wanted, divide_up(pixels, least), self.most_parts(size)))
        segment = max(1, divide_up(pixels, parts))
        return _Split(max(1, divide_up(pixels, segment)), segment)  # an empty batch has one part, of nothing

    def most_parts(self, size: int) -> int:
        return WORKSPACE // (size * ITEMSIZE[accumulator(self.dtype)])

    def partial(self, gradient: Any, parts: int, size: int) -> tuple[Any, str]:
        """Return what a kernel writes to, and its type: the gradient, or workspace for several parts of it."""
        if parts == 1:
            return gradient, ELEMENT[self.dtype]
        return self.cuda.workspace(parts * size, accumulator(self.dtype)), ACCUMULATOR[self.dtype]

    def merge(self, out: Any, gradient: Any, parts: int, size: int) -> None:
        """Write the sums over the parts of a gradient, unless it is there already."""
        if out is not gradient:
            sum_partials(self.cuda, DEPTHWISE, self.dtype, out, gradient, size, parts)


def _choices(g: DilationGeometry, dilation_weights: Any) -> tuple[Any, Any, Any]:
    """Return the array as shares, as 32-bit indices and as 64-bit ones: one of them, and None for the others."""
    if not g.hard:
        return dilation_weights, None, None
    narrow = dilation_weights.dtype == np.int32
    return None, dilation_weights if narrow else None, None if narrow else dilation_weights


def _index(g: DilationGeometry) -> np.dtype[Any]:
    return index_dtype(
        g.N * g.C * g.H * g.W,
        g.N * max(g.O, g.D) * g.Ho * g.Wo,
        g.O * (g.C // g.groups) * g.kh * g.kw,
        g.H + g.stride_h + g.kh * max(g[DILATIONS_H:DILATIONS_W]),
        g.W + g.stride_w + g.kw * max(g[DILATIONS_W:]),
    )


# ---- what can be asked for -------------------------------------------------------------------------------------------

_KERNELS = {
    DENSE: ("dilation_forward", "dilation_backward_x"),
    DEPTHWISE: (
        "dilation_depthwise_forward",
        "dilation_depthwise_backward_x",
        "dilation_depthwise_backward_weight",
        "dilation_depthwise_backward_shares",
        "dilation_backward_bias",
    ),
}
_WITH_OUT = ("dilation_backward_weight", "dilation_backward_shares")


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    found = []
    for dtype, element in ELEMENT.items():
        for index in INDEX.values():
            types = f"{element}, {index}"
            found += [(source, f"{name}<{types}>") for source, names in _KERNELS.items() for name in names]
            outs = dict.fromkeys((element, ACCUMULATOR[dtype]))
            found += [(DENSE, f"{name}<{types}, {out}>") for name in _WITH_OUT for out in outs]
            found += [(DEPTHWISE, f"sum_partials<{types}, {lanes}>") for lanes in (1, WARP)]
    return found
