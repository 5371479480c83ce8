"""Numba CUDA kernels of `adaptive_dilation_conv2d` and their launch.

A convolution is a matrix product over shared memory: a block forms ROWS x COLUMNS sums, DEPTH terms at a time, and
mixes the columns as it loads them. A factor that no dilation sees is a 0 there, which is right unless it meets NaN or
infinity: a sum that is not finite is formed again, term by term. Where a group has one input channel and few outputs,
as in a depth-wise convolution, each thread forms a sum of its own.
"""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import (
    CHAIN,
    THREADS,
    chunks_for,
    lanes_for,
    launch,
    load,
    merge,
    sum_lanes,
)
from dynk.kernels.dilated.geometry import DILATIONS_H, DILATIONS_W, DilationGeometry
from dynk.kernels.dilated.numba_cuda_terms import (
    GROUPS,
    HAS_BIAS,
    HO,
    KH,
    KW,
    WO,
    C,
    D,
    H,
    O,
    W,
    column,
    grad_column,
    grad_filter,
    grad_pixel,
    output,
    position,
    sent,
)

ROWS, COLUMNS, DEPTH = 64, 16, 16
BLOCK = 256
EACH = ROWS * COLUMNS // BLOCK  # sums of a thread, STEP rows apart
STEP = ROWS // EACH
DILATIONS = 4  # whose gradients a thread sums
FEW_OUTPUTS = 4  # of a group that is taken for depth-wise
WORKSPACE = 64 << 20  # bytes of partial sums, at most


def adaptive_dilation_conv2d_forward(
    runtime: Any, plan: Plan, x: Any, weight: Any, dilation_weights: Any, bias: Any, out: Any
) -> None:
    """Run PAD Eq. 1 on flat arrays; None where the bias is absent. No workspace."""
    g = DilationGeometry(*plan.geometry)
    args = (x, weight, dilation_weights, runtime.absent(plan.dtype) if bias is None else bias, out, *_numbers(plan))
    if _depthwise(g):
        launch(runtime, dilation_depthwise_forward_kernel, g.N * g.O * g.Ho * g.Wo, *args)
    else:
        _launch_tiles(runtime, dilation_forward_kernel, g.groups, g.O // g.groups, g.N * g.Ho * g.Wo, args)


def adaptive_dilation_conv2d_backward(
    runtime: Any,
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
    """Write the gradients that are not None.

    The workspace is partial sums of the gradients of `weight` and `bias`, at most WORKSPACE bytes.
    """
    g = DilationGeometry(*plan.geometry)
    numbers = _numbers(plan)
    pixels, filters = g.N * g.Ho * g.Wo, g.C // g.groups * g.kh * g.kw
    if grad_x is not None:
        args = (grad_out, weight, dilation_weights, grad_x, *numbers)
        if _depthwise(g):
            launch(runtime, dilation_depthwise_backward_x_kernel, g.N * g.C * g.H * g.W, *args)
        else:
            _launch_tiles(runtime, dilation_backward_x_kernel, g.groups, g.C // g.groups, g.N * g.H * g.W, args)
    if grad_weight is not None:
        size = g.O * filters
        most = max(1, WORKSPACE // (size * x.dtype.itemsize))
        if _depthwise(g):
            lanes = lanes_for(pixels)
            chunks = chunks_for(pixels, lanes, most)
            partial = grad_weight if chunks == 1 else runtime.workspace(chunks * size, plan.dtype)
            args = (grad_out, x, dilation_weights, partial, *numbers, size, chunks, lanes)
            launch(runtime, dilation_depthwise_backward_weight_kernel, chunks * size * lanes, *args)
        else:
            chunks = chunks_for(pixels, DEPTH, most)
            partial = grad_weight if chunks == 1 else runtime.workspace(chunks * size, plan.dtype)
            args = (grad_out, x, dilation_weights, partial, *numbers, chunks)
            kernel = dilation_backward_weight_kernel
            _launch_tiles(runtime, kernel, g.groups * chunks, g.O // g.groups, filters, args)
        if chunks > 1:
            merge(runtime, partial, grad_weight, size, chunks)
    if grad_dilation_weights is not None:
        lanes = lanes_for(g.C * g.kh * g.kw)
        args = (grad_out, x, weight, grad_dilation_weights, *numbers, pixels, lanes)
        launch(runtime, dilation_backward_shares_kernel, -(-g.D // DILATIONS) * pixels * lanes, *args)
    if grad_bias is not None:
        lanes = lanes_for(pixels)
        chunks = chunks_for(pixels, lanes)
        partial = grad_bias if chunks == 1 else runtime.workspace(chunks * g.O, plan.dtype)
        args = (grad_out, partial, g.O, g.Ho * g.Wo, pixels, chunks, lanes)
        launch(runtime, dilation_backward_bias_kernel, chunks * g.O * lanes, *args)
        if chunks > 1:
            merge(runtime, partial, grad_bias, g.O, chunks)


def _numbers(plan: Plan) -> tuple[Any, ...]:
    a = plan.geometry
    return a[:DILATIONS_H], a[DILATIONS_H:DILATIONS_W], a[DILATIONS_W:]


def _depthwise(g: DilationGeometry) -> bool:
    return g.groups == g.C and g.O // g.groups <= FEW_OUTPUTS


def _launch_tiles(runtime: Any, kernel: Any, products: int, rows: int, columns: int, args: tuple[Any, ...]) -> None:
    """Launch a block for each tile of some products of so many rows and columns."""
    tiles = products * -(-rows // ROWS) * -(-columns // COLUMNS)
    runtime.launch(kernel, (tiles,), (BLOCK,), args)


# ---- products --------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _tile(rows, columns):
    """Return the first row and column of a block's tile, and the number of its product."""
    across = (columns + COLUMNS - 1) // COLUMNS
    down = (rows + ROWS - 1) // ROWS
    block = cuda.blockIdx.x
    product = block // (across * down)
    rest = block - product * across * down
    row = rest // across
    return row * ROWS, (rest - row * across) * COLUMNS, product


@cuda.jit(device=True)
def _add_strips(row_strip, column_strip, part0, part1, part2, part3):
    """Add DEPTH terms to each of a thread's four sums and return them; all threads of a block must call."""
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    cuda.syncthreads()
    for k in range(DEPTH):
        factor = column_strip[k, across]
        part0 += row_strip[k, down] * factor
        part1 += row_strip[k, down + STEP] * factor
        part2 += row_strip[k, down + 2 * STEP] * factor
        part3 += row_strip[k, down + 3 * STEP] * factor
    cuda.syncthreads()
    return part0, part1, part2, part3


@cuda.jit(device=True)
def _chosen(e, sum0, sum1, sum2, sum3):
    """Return one of a thread's sums; in an array they would leave the registers."""
    if e < 2:
        return sum0 if e == 0 else sum1
    return sum2 if e == 2 else sum3


@cuda.jit
def dilation_forward_kernel(x, weight, choices, bias, out, g, rows, columns):
    """Rows are outputs, columns pixels, the depth inputs x taps."""
    row_strip = cuda.shared.array((DEPTH, ROWS), x.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), x.dtype)
    zero = x.dtype.type(0)
    pixels = g[HO] * g[WO]
    numbers = out.size // g[O]
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    taps = g[KH] * g[KW]
    depth = inputs * taps
    first_row, first_column, group = _tile(outputs, numbers)
    if group >= g[GROUPS]:
        return
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    number = first_column + across
    n = number // pixels
    at = number - n * pixels
    part0 = part1 = part2 = part3 = zero
    total0 = total1 = total2 = total3 = zero
    for first in range(0, depth, DEPTH):
        for e in range(EACH):
            row = first_row + down + e * STEP
            k = first + across
            value = zero
            if row < outputs and k < depth:
                value = load(weight, (group * outputs + row) * depth + k)
            row_strip[across, down + e * STEP] = value
        k = first + down
        value = zero
        if k < depth and number < numbers:
            c = k // taps
            value, _ = column(x, choices, g, rows, columns, n, at, group * inputs + c, k - c * taps)
        column_strip[down, across] = value
        part0, part1, part2, part3 = _add_strips(row_strip, column_strip, part0, part1, part2, part3)
        if (first + DEPTH) % CHAIN == 0:
            total0 += part0
            total1 += part1
            total2 += part2
            total3 += part3
            part0 = part1 = part2 = part3 = zero
    if number < numbers:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < outputs:
                o = group * outputs + row
                result = _chosen(e, total0 + part0, total1 + part1, total2 + part2, total3 + part3)
                if result - result != zero:
                    result = output(x, weight, choices, g, rows, columns, n, o, at)
                if g[HAS_BIAS]:
                    result += load(bias, o)
                out[(n * g[O] + o) * pixels + at] = result


@cuda.jit
def dilation_backward_x_kernel(grad_out, weight, choices, grad_x, g, rows, columns):
    """Rows are inputs, columns pixels of the image, the depth outputs x taps."""
    row_strip = cuda.shared.array((DEPTH, ROWS), grad_out.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), grad_out.dtype)
    zero = grad_out.dtype.type(0)
    plane = g[H] * g[W]
    numbers = grad_x.size // g[C]
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    taps = g[KH] * g[KW]
    depth = outputs * taps
    first_row, first_column, group = _tile(inputs, numbers)
    if group >= g[GROUPS]:
        return
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    number = first_column + across
    n = number // plane
    place = number - n * plane
    part0 = part1 = part2 = part3 = zero
    total0 = total1 = total2 = total3 = zero
    for first in range(0, depth, DEPTH):
        for e in range(EACH):
            row = first_row + down + e * STEP
            k = first + across
            value = zero
            if row < inputs and k < depth:
                o = k // taps
                value = load(weight, ((group * outputs + o) * inputs + row) * taps + k - o * taps)
            row_strip[across, down + e * STEP] = value
        k = first + down
        value = zero
        if k < depth and number < numbers:
            o = k // taps
            value = sent(grad_out, choices, g, rows, columns, n, place, group * outputs + o, k - o * taps)
        column_strip[down, across] = value
        part0, part1, part2, part3 = _add_strips(row_strip, column_strip, part0, part1, part2, part3)
        if (first + DEPTH) % CHAIN == 0:
            total0 += part0
            total1 += part1
            total2 += part2
            total3 += part3
            part0 = part1 = part2 = part3 = zero
    if number < numbers:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < inputs:
                c = group * inputs + row
                result = _chosen(e, total0 + part0, total1 + part1, total2 + part2, total3 + part3)
                if result - result != zero:
                    result = grad_pixel(grad_out, weight, choices, g, rows, columns, n, c, place)
                grad_x[(n * g[C] + c) * plane + place] = result


@cuda.jit
def dilation_backward_weight_kernel(grad_out, x, choices, partial, g, rows, columns, chunks):
    """Rows are outputs, columns inputs x taps, the depth a chunk of the pixels."""
    row_strip = cuda.shared.array((DEPTH, ROWS), x.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), x.dtype)
    zero = x.dtype.type(0)
    pixels = g[HO] * g[WO]
    numbers = grad_out.size // g[O]
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    taps = g[KH] * g[KW]
    filters = inputs * taps
    first_row, first_column, product = _tile(outputs, filters)
    chunk = product // g[GROUPS]
    group = product - chunk * g[GROUPS]
    if chunk >= chunks:
        return
    segment = (numbers + chunks - 1) // chunks
    begin = chunk * segment
    end = min(begin + segment, numbers)
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    filter_at = first_column + down
    c = filter_at // taps
    part0 = part1 = part2 = part3 = zero
    total0 = total1 = total2 = total3 = zero
    for first in range(begin, end, DEPTH):
        # Neighbouring threads load neighbouring pixels.
        number = first + across
        n = number // pixels
        at = number - n * pixels
        for e in range(EACH):
            row = first_row + down + e * STEP
            value = zero
            if row < outputs and number < end:
                value = load(grad_out, (n * g[O] + group * outputs + row) * pixels + at)
            row_strip[across, down + e * STEP] = value
        value = zero
        if filter_at < filters and number < end:
            value, _ = column(x, choices, g, rows, columns, n, at, group * inputs + c, filter_at - c * taps)
        column_strip[across, down] = value
        part0, part1, part2, part3 = _add_strips(row_strip, column_strip, part0, part1, part2, part3)
        if (first - begin + DEPTH) % CHAIN == 0:
            total0 += part0
            total1 += part1
            total2 += part2
            total3 += part3
            part0 = part1 = part2 = part3 = zero
    k = first_column + across
    if k < filters:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < outputs:
                o = group * outputs + row
                result = _chosen(e, total0 + part0, total1 + part1, total2 + part2, total3 + part3)
                if result - result != zero:
                    result = grad_filter(grad_out, x, choices, g, rows, columns, o, k, begin, end, 1)
                partial[(chunk * g[O] + o) * filters + k] = result


# ---- sums of one thread, or of a group of lanes ----------------------------------------------------------------------


@cuda.jit
def dilation_depthwise_forward_kernel(x, weight, choices, bias, out, g, rows, columns):
    """One thread for each output."""
    thread = cuda.grid(1)
    if thread >= out.size:
        return
    pixels = g[HO] * g[WO]
    plane = thread // pixels
    n = plane // g[O]
    o = plane - n * g[O]
    result = output(x, weight, choices, g, rows, columns, n, o, thread - plane * pixels)
    if g[HAS_BIAS]:
        result += load(bias, o)
    out[thread] = result


@cuda.jit
def dilation_depthwise_backward_x_kernel(grad_out, weight, choices, grad_x, g, rows, columns):
    """One thread for each pixel of the image."""
    thread = cuda.grid(1)
    if thread >= grad_x.size:
        return
    pixels = g[H] * g[W]
    plane = thread // pixels
    n = plane // g[C]
    place = thread - plane * pixels
    grad_x[thread] = grad_pixel(grad_out, weight, choices, g, rows, columns, n, plane - n * g[C], place)


@cuda.jit
def dilation_depthwise_backward_weight_kernel(grad_out, x, choices, partial, g, rows, columns, size, chunks, lanes):
    """One group of lanes for each weight and chunk of the pixels, of which lanes and chunks take turns."""
    shared = cuda.shared.array(THREADS, x.dtype)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    chunk = unit // size
    element = unit - chunk * size
    total = x.dtype.type(0)
    if chunk < chunks:
        filters = size // g[O]
        o = element // filters
        numbers = grad_out.size // g[O]
        begin = chunk * lanes + lane
        k = element - o * filters
        total = grad_filter(grad_out, x, choices, g, rows, columns, o, k, begin, numbers, chunks * lanes)
    total = sum_lanes(shared, total, lanes)
    if chunk < chunks and lane == 0:
        partial[unit] = total


@cuda.jit(device=True)
def _read(x, g, rows, columns, n, at, c, t, d):
    """Return what tap t of dilation d reads of channel c, 0 where it is outside or there is no such dilation."""
    if d < g[D]:
        i = t // g[KW]
        where = position(g, rows, columns, at, i, t - i * g[KW], d)
        if where >= 0:
            return load(x, (n * g[C] + c) * g[H] * g[W] + where), True
    return x.dtype.type(0), False


@cuda.jit
def dilation_backward_shares_kernel(grad_out, x, weight, grad_shares, g, rows, columns, numbers, lanes):
    """One group of lanes for each output pixel and four of its dilations; they take turns at the inputs x taps."""
    shared = cuda.shared.array(THREADS, x.dtype)
    zero = x.dtype.type(0)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    block = unit // numbers
    number = unit - block * numbers
    d0 = block * DILATIONS
    pixels = g[HO] * g[WO]
    taps = g[KH] * g[KW]
    n = number // pixels
    at = number - n * pixels
    part0 = part1 = part2 = part3 = zero
    total0 = total1 = total2 = total3 = zero
    if d0 < g[D]:
        count = 0
        for k in range(lane, g[C] * taps, lanes):
            c = k // taps
            t = k - c * taps
            grad = grad_column(grad_out, weight, g, n, c, t, at)
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0)
            if inside:
                part0 += grad * value
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0 + 1)
            if inside:
                part1 += grad * value
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0 + 2)
            if inside:
                part2 += grad * value
            value, inside = _read(x, g, rows, columns, n, at, c, t, d0 + 3)
            if inside:
                part3 += grad * value
            count += 1
            if count == CHAIN:
                total0 += part0
                total1 += part1
                total2 += part2
                total3 += part3
                part0 = part1 = part2 = part3 = zero
                count = 0
    total0 = sum_lanes(shared, total0 + part0, lanes)
    total1 = sum_lanes(shared, total1 + part1, lanes)
    total2 = sum_lanes(shared, total2 + part2, lanes)
    total3 = sum_lanes(shared, total3 + part3, lanes)
    if lane == 0:
        first = (n * g[D] + d0) * pixels + at
        if d0 < g[D]:
            grad_shares[first] = total0
        if d0 + 1 < g[D]:
            grad_shares[first + pixels] = total1
        if d0 + 2 < g[D]:
            grad_shares[first + 2 * pixels] = total2
        if d0 + 3 < g[D]:
            grad_shares[first + 3 * pixels] = total3


@cuda.jit
def dilation_backward_bias_kernel(grad_out, partial, outputs, pixels, numbers, chunks, lanes):
    """One group of lanes for each output channel and chunk of the pixels, of which lanes and chunks take turns."""
    shared = cuda.shared.array(THREADS, grad_out.dtype)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    chunk = unit // outputs
    o = unit - chunk * outputs
    total = part = grad_out.dtype.type(0)
    if chunk < chunks:
        count = 0
        for number in range(chunk * lanes + lane, numbers, chunks * lanes):
            n = number // pixels
            part += load(grad_out, (n * outputs + o) * pixels + number - n * pixels)
            count += 1
            if count == CHAIN:
                total += part
                part = grad_out.dtype.type(0)
                count = 0
        total += part
    total = sum_lanes(shared, total, lanes)
    if chunk < chunks and lane == 0:
        partial[unit] = total
