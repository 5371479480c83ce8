"""Launches the CUDA C kernels of `deformable_conv2d`.

Convolutions whose groups have one input channel take the kernels of `scope.cu` or `depthwise.cu`, all others are
matrix products with columns in the workspace (`dense.cu`); the gradients of single taps are of both (`taps.cu`).
Kernels, grids and how a call is cut into parts depend on shapes alone, so that the same call gives the same bits on
every device.
"""

from __future__ import annotations

from typing import Any

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    ACCUMULATOR,
    BUSY,
    CHAIN,
    ELEMENT,
    INDEX,
    THREADS,
    WARP,
    divide_up,
    power_of_two,
    sum_partials,
)
from dynk.kernels.common.dtypes import accumulator
from dynk.kernels.deformable import cupy_raw_call, cupy_raw_scope
from dynk.kernels.deformable.cupy_raw_call import DENSE, DEPTHWISE, TAPS, Call, Part
from dynk.kernels.deformable.cupy_raw_gather import backward_x

DEPTH = 16  # of a product's block, as the source says
SLICES = 8  # threads that share the channels of a block of offsets, at most


def deformable_conv2d_forward(
    cuda: Any, plan: Plan, x: Any, weight: Any, kernel_offset: Any, data_offset: Any, mask: Any, bias: Any, out: Any
) -> None:
    """Write out = deformable_conv2d(x, weight, kernel_offset, data_offset, mask, bias).

    The workspace is the columns of as many pixels as fit it, none for depth-wise weights.
    """
    call = Call(cuda, plan)
    g = call.g
    points = kernel_offset, data_offset, mask
    if call.depthwise:
        _depthwise_forward(call, (x, weight, *points, bias, out))
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
    call = Call(cuda, plan)
    points = kernel_offset, data_offset, mask
    if call.g.N == 0:  # gradients that have elements are sums of nothing
        for gradient, size in (grad_weight, call.weights), (grad_bias, call.g.O):
            if gradient is not None:
                sum_partials(cuda, DEPTHWISE, plan.dtype, None, gradient, size, 0)
        return
    if grad_x is not None:
        backward_x(call, (grad_out, weight, *points), data_offset, grad_x)
    if not all(gradient is None for gradient in (grad_kernel_offset, grad_data_offset, grad_mask)):
        operands = grad_out, x, weight, *points
        _backward_points(call, operands, grad_kernel_offset, grad_data_offset, grad_mask)
    if grad_weight is not None:
        _backward_weight(call, (grad_out, x, *points), grad_weight)
    if grad_bias is not None:
        call.by_warps("deform_backward_bias", (grad_out,), grad_bias, call.g.O)


def _backward_points(call: Call, operands: tuple[Any, ...], kernel: Any, data: Any, mask: Any) -> None:
    """Write the gradients of the offsets and the mask."""
    g = call.g
    if kernel is not None and call.depthwise and _depthwise_backward_kernel(call, operands, kernel):
        kernel = None
    for part in [Part(0, g.N * call.pixels, 0, g.C)] if call.depthwise else call.parts():
        columns = call.grad_columns(part, operands[0], operands[2])
        if data is not None or mask is not None:
            _of_blocks(call, "deform_backward_data", g.Gd, part, (*operands, columns, data, mask))
        if kernel is not None:
            _of_blocks(call, "deform_backward_kernel", g.Gk, part, (*operands, columns, kernel))


def _of_blocks(call: Call, name: str, count: int, part: Part, args: tuple[Any, ...]) -> None:
    """Launch a kernel that sums over the channels of each of `count` blocks."""
    slices = min(SLICES, power_of_two(call.g.C // count))
    blocks = divide_up(part.pixels * call.taps * count, WARP)
    args = *args, *call.numbers(part)
    call.cuda.launch(TAPS, call.expression(name, call.kind), (blocks,), (WARP, 1, slices), args)


def _backward_weight(call: Call, args: tuple[Any, ...], gradient: Any) -> None:
    g, size = call.g, call.weights
    if call.depthwise:
        _depthwise_backward_weight(call, args, gradient)
        return
    pixel_parts = list(call.parts())
    tiles = call.tiles(g.O // g.groups, size // g.O)
    pixels = pixel_parts[0].pixels
    count = call.split(pixels, divide_up(BUSY, tiles * THREADS), size, DEPTH * CHAIN)
    out, element = gradient, ELEMENT[call.dtype]
    if count > 1 or (len(pixel_parts) > 1 and call.rounds):
        out, element = call.cuda.workspace(count * size, accumulator(call.dtype)), ACCUMULATOR[call.dtype]
    for part in pixel_parts:
        columns = call.columns(part, args[1:])
        segment = divide_up(part.pixels, count)
        operands = *args, columns, out
        call.launch(DENSE, "deform_backward_weight", tiles * count, operands, part, segment, kind=element)
    if out is not gradient:
        sum_partials(call.cuda, DEPTHWISE, call.dtype, out, gradient, size, count)


# ---- depth-wise ------------------------------------------------------------------------------------------------------


def _depthwise_forward(call: Call, args: tuple[Any, ...]) -> None:
    g = call.g
    fast = cupy_raw_scope.forward(g, call.dtype, call.index)
    if fast is None:
        call.launch(DEPTHWISE, "deform_depthwise_forward", divide_up(g.N * g.O * call.pixels, THREADS), args)
        return
    tiles = g.N * divide_up(call.pixels, cupy_raw_scope.PIXELS)
    call.of_scope(fast, fast.blocks * tiles, args)


def _depthwise_backward_weight(call: Call, args: tuple[Any, ...], gradient: Any) -> None:
    g, size = call.g, call.weights
    fast = cupy_raw_scope.backward_weight(g, call.dtype, call.index)
    if fast is None:
        call.by_warps("deform_depthwise_backward_weight", args, gradient, size)
        return
    tiles = g.N * divide_up(call.pixels, cupy_raw_scope.PIXELS)
    parts = call.split(tiles, divide_up(BUSY, fast.blocks * fast.threads), size, 2)
    out = call.cuda.workspace(parts * size, accumulator(call.dtype))
    call.of_scope(fast, fast.blocks * parts, (*args, out), parts)
    sum_partials(call.cuda, DEPTHWISE, call.dtype, out, gradient, size, parts)


def _depthwise_backward_kernel(call: Call, args: tuple[Any, ...], gradient: Any) -> bool:
    """Write the gradient of the kernel offsets, by images that fit the workspace; return whether that can be."""
    g = call.g
    fast = cupy_raw_scope.backward_kernel(g, call.dtype, call.index)
    if fast is None:
        return False
    parts, size = fast.blocks // g.Gk, g.Gk * call.taps * 2 * call.pixels
    images = min(g.N, cupy_raw_call.COLUMNS // (parts * size * call.size))  # there are no columns
    if images < 1:
        return False
    out = call.cuda.workspace(parts * images * size, accumulator(call.dtype))
    tiles = divide_up(call.pixels, cupy_raw_scope.PIXELS)
    for first in range(0, g.N, images):
        count = min(images, g.N - first)
        call.of_scope(fast, fast.blocks * count * tiles, (*args, out), first, count)
        own = gradient if count == g.N else gradient[first : first + count]
        sum_partials(call.cuda, DEPTHWISE, call.dtype, out, own, count * size, parts)
    return True


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
