"""The matrix products of `adaptive_dilation_conv2d` in Numba CUDA, over shared memory.

A block mixes the columns as it loads them. A factor that no dilation sees is a 0 there, which is right unless it meets
NaN or infinity: a sum that is not finite is formed again, term by term.
"""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import load
from dynk.kernels.common.numba_cuda_tiles import (
    COLUMNS,
    DEPTH,
    EACH,
    ROWS,
    STEP,
    add_strips,
    added,
    chosen,
    merged,
    tile,
)
from dynk.kernels.dilated.numba_cuda_terms import (
    GROUPS,
    HAS_BIAS,
    HO,
    KH,
    KW,
    WO,
    C,
    H,
    N,
    O,
    W,
    column,
    grad_filter,
    grad_pixel,
    output,
    sent,
)


@cuda.jit
def dilation_forward_kernel(x, weight, choices, bias, out, g, rows, columns):
    """Rows are outputs, columns pixels, the depth inputs x taps."""
    row_strip = cuda.shared.array((DEPTH, ROWS), x.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), x.dtype)
    zero = x.dtype.type(0)
    pixels = g[HO] * g[WO]
    numbers = g[N] * pixels
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    taps = g[KH] * g[KW]
    depth = inputs * taps
    first_row, first_column, group = tile(outputs, numbers)
    if group >= g[GROUPS]:
        return
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    number = first_column + across
    n = number // pixels
    at = number - n * pixels
    zeros = totals = parts = (zero, zero, zero, zero)
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
        parts = add_strips(row_strip, column_strip, parts)
        totals, parts = merged(totals, parts, first + DEPTH, zeros)
    sums = added(totals, parts)
    if number < numbers:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < outputs:
                o = group * outputs + row
                result = chosen(sums, e)
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
    numbers = g[N] * plane
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    taps = g[KH] * g[KW]
    depth = outputs * taps
    first_row, first_column, group = tile(inputs, numbers)
    if group >= g[GROUPS]:
        return
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    number = first_column + across
    n = number // plane
    place = number - n * plane
    zeros = totals = parts = (zero, zero, zero, zero)
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
        parts = add_strips(row_strip, column_strip, parts)
        totals, parts = merged(totals, parts, first + DEPTH, zeros)
    sums = added(totals, parts)
    if number < numbers:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < inputs:
                c = group * inputs + row
                result = chosen(sums, e)
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
    numbers = g[N] * pixels
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    taps = g[KH] * g[KW]
    filters = inputs * taps
    first_row, first_column, product = tile(outputs, filters)
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
    zeros = totals = parts = (zero, zero, zero, zero)
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
        parts = add_strips(row_strip, column_strip, parts)
        totals, parts = merged(totals, parts, first - begin + DEPTH, zeros)
    sums = added(totals, parts)
    k = first_column + across
    if k < filters:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < outputs:
                o = group * outputs + row
                result = chosen(sums, e)
                if result - result != zero:
                    result = grad_filter(grad_out, x, choices, g, rows, columns, o, k, begin, end, 1)
                partial[(chunk * g[O] + o) * filters + k] = result
