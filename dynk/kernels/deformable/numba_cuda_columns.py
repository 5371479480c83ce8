"""The columns of `deformable_conv2d` in Numba CUDA and the matrix products with them, over shared memory.

Columns are what each place of the scope is multiplied with: col[c, S] = sum_ij B_ij,S * sample. A tap that is skipped
is a 0 there, which is right unless it meets NaN or infinity: where that tap takes no part, a sum that is not finite is
formed again, term by term.
"""

# Kernels are of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import CHAIN, THREADS, load, split, staged, sum_lanes
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
from dynk.kernels.deformable.numba_cuda_points import share
from dynk.kernels.deformable.numba_cuda_terms import (
    data_point,
    filter_point,
    grad_filter,
    masked,
    named,
    output,
    sample,
)

CHANNELS = 8  # of which a thread makes the columns


@cuda.jit(device=True)
def _add_corner(stage, g, start, count, place, row, column, seen, one):
    """Add what a tap sees, times its weight, to a place of the scope that is a neighbour of its point."""
    if row >= 0 and row < g.Sh and column >= 0 and column < g.Sw:
        weight, _ = share(place, row, column, one)
        stage[start + (row * g.Sw + column) * count] += weight * seen


@cuda.jit
def deform_columns_kernel(x, kernel_offset, data_offset, mask, columns, stage, numbers, alike, begin, count):
    """One thread for each of `count` output pixels from `begin` on and each few channels, `alike` in their offsets.

    Its columns are its own. Every CHAIN taps what was added to `stage` goes to `columns`, of which it may be the same.
    """
    g = named(numbers)
    blocks = (alike + CHANNELS - 1) // CHANNELS
    block, p = split(cuda.grid(1), count)
    segment, number = split(block, blocks)
    first = segment * alike + number * CHANNELS
    last = min(first + CHANNELS, (segment + 1) * alike)
    if first >= g.C:
        return
    n, at = split(begin + p, g.Ho * g.Wo)
    scope = g.Sh * g.Sw
    taps = g.kh * g.kw
    one = x.dtype.type(1)
    zero = x.dtype.type(0)
    for row in range(first * scope, last * scope):
        columns[row * count + p] = zero
        stage[row * count + p] = zero
    for tap in range(taps):
        point = data_point(data_offset, g, n, first, tap, at)
        place = filter_point(kernel_offset, g, n, first, tap, at)
        if point.read and place.read:
            factor = masked(mask, g, n, first, tap, at)
            for c in range(first, last):
                seen = factor * sample(x, g, n, c, point)
                start = c * scope * count + p
                if not g.has_kernel:
                    stage[start + tap * count] = seen
                elif place.down != place.down or place.right != place.right:
                    stage[start] += place.down + place.right
                else:
                    _add_corner(stage, g, start, count, place, place.row, place.column, seen, one)
                    _add_corner(stage, g, start, count, place, place.row, place.column + 1, seen, one)
                    _add_corner(stage, g, start, count, place, place.row + 1, place.column, seen, one)
                    _add_corner(stage, g, start, count, place, place.row + 1, place.column + 1, seen, one)
        if taps > CHAIN and g.has_kernel and (tap % CHAIN == CHAIN - 1 or tap == taps - 1):
            for row in range(first * scope, last * scope):
                columns[row * count + p] += stage[row * count + p]
                stage[row * count + p] = zero


@cuda.jit
def deform_forward_product_kernel(x, weight, data_offset, mask, bias, columns, out, numbers, begin, count):
    """Rows are outputs, columns `count` output pixels from `begin` on, the depth inputs x places of the scope."""
    row_strip = cuda.shared.array((DEPTH, ROWS), x.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), x.dtype)
    g = named(numbers)
    zero = x.dtype.type(0)
    outputs = g.O // g.groups
    depth = g.C // g.groups * g.Sh * g.Sw
    first_row, first_column, group = tile(outputs, count)
    if group >= g.groups:
        return
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    p = first_column + across
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
        if k < depth and p < count:
            value = load(columns, (group * depth + k) * count + p)
        column_strip[down, across] = value
        parts = add_strips(row_strip, column_strip, parts)
        totals, parts = merged(totals, parts, first + DEPTH, zeros)
    sums = added(totals, parts)
    if p < count:
        n, at = split(begin + p, g.Ho * g.Wo)
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < outputs:
                o = group * outputs + row
                result = chosen(sums, e)
                if result - result != zero and not g.has_kernel:
                    result = output(x, weight, data_offset, mask, g, n, o, at)
                if g.has_bias:
                    result += load(bias, o)
                out[(n * g.O + o) * g.Ho * g.Wo + at] = result


@cuda.jit
def deform_grad_columns_kernel(grad_out, weight, grad_columns, numbers, begin, count):
    """Rows are inputs x places of the scope, columns `count` output pixels from `begin` on, the depth outputs."""
    row_strip = cuda.shared.array((DEPTH, ROWS), weight.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), weight.dtype)
    g = named(numbers)
    zero = weight.dtype.type(0)
    outputs = g.O // g.groups
    rows = g.C // g.groups * g.Sh * g.Sw
    first_row, first_column, group = tile(rows, count)
    if group >= g.groups:
        return
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    p = first_column + across
    n, at = split(begin + p, g.Ho * g.Wo)
    zeros = totals = parts = (zero, zero, zero, zero)
    for first in range(0, outputs, DEPTH):
        for e in range(EACH):
            # Neighbouring threads load neighbouring weights of an output.
            row = first_row + across + e * STEP
            k = first + down
            value = zero
            if row < rows and k < outputs:
                value = load(weight, (group * outputs + k) * rows + row)
            row_strip[down, across + e * STEP] = value
        k = first + down
        value = zero
        if k < outputs and p < count:
            value = load(grad_out, (n * g.O + group * outputs + k) * g.Ho * g.Wo + at)
        column_strip[down, across] = value
        parts = add_strips(row_strip, column_strip, parts)
        totals, parts = merged(totals, parts, first + DEPTH, zeros)
    sums = added(totals, parts)
    if p < count:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < rows:
                grad_columns[(group * rows + row) * count + p] = chosen(sums, e)


@cuda.jit
def deform_backward_weight_kernel(
    grad_out, x, kernel_offset, data_offset, mask, columns, partial, numbers, begin, count, slot, chunks, add
):
    """Rows are outputs, columns inputs x places of the scope, the depth a chunk of `count` pixels from `begin` on.

    The sums of a chunk go to `partial` from `slot` on, or are added to what is there.
    """
    row_strip = cuda.shared.array((DEPTH, ROWS), x.dtype)
    column_strip = cuda.shared.array((DEPTH, COLUMNS), x.dtype)
    g = named(numbers)
    zero = x.dtype.type(0)
    pixels = g.Ho * g.Wo
    outputs = g.O // g.groups
    filters = g.C // g.groups * g.Sh * g.Sw
    first_row, first_column, product = tile(outputs, filters)
    chunk, group = split(product, g.groups)
    if chunk >= chunks:
        return
    segment = (count + chunks - 1) // chunks
    first_pixel = min(chunk * segment, count)
    end = min(first_pixel + segment, count)
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    filter_at = first_column + down
    zeros = totals = parts = (zero, zero, zero, zero)
    for first in range(first_pixel, end, DEPTH):
        # Neighbouring threads load neighbouring pixels.
        p = first + across
        n, at = split(begin + p, pixels)
        for e in range(EACH):
            row = first_row + down + e * STEP
            value = zero
            if row < outputs and p < end:
                value = load(grad_out, (n * g.O + group * outputs + row) * pixels + at)
            row_strip[across, down + e * STEP] = value
        value = zero
        if filter_at < filters and p < end:
            value = load(columns, (group * filters + filter_at) * count + p)
        column_strip[across, down] = value
        parts = add_strips(row_strip, column_strip, parts)
        totals, parts = merged(totals, parts, first - first_pixel + DEPTH, zeros)
    sums = added(totals, parts)
    k = first_column + across
    if k < filters:
        for e in range(EACH):
            row = first_row + down + e * STEP
            if row < outputs:
                o = group * outputs + row
                result = chosen(sums, e)
                if result - result != zero and not g.has_kernel:
                    c, s = split(group * filters + k, g.Sh * g.Sw)
                    numbers_of = (begin + first_pixel, begin + end, 1)
                    result = grad_filter(grad_out, x, kernel_offset, data_offset, mask, g, o, c, s, numbers_of)
                index = ((slot + chunk) * g.O + o) * filters + k
                partial[index] = partial[index] + result if add else result


@cuda.jit
def deform_depthwise_backward_weight_kernel(
    grad_out, x, kernel_offset, data_offset, mask, columns, partial, numbers, begin, count, slot, chunks, add, lanes
):
    """One group of lanes for each weight and chunk of `count` pixels from `begin` on; lanes and chunks take turns."""
    shared = cuda.shared.array(THREADS, x.dtype)
    g = named(numbers)
    pixels = g.Ho * g.Wo
    scope = g.Sh * g.Sw
    size = g.O * scope
    unit, lane = split(cuda.grid(1), lanes)
    chunk, element = split(unit, size)
    o, s = split(element, scope)
    c = o // (g.O // g.C)
    chain = stage = total = zero = x.dtype.type(0)
    if chunk < chunks:
        first = chunk * lanes + lane
        step = chunks * lanes
        for k in range((count - first + step - 1) // step):
            p = first + k * step
            n, at = split(begin + p, pixels)
            chain += load(grad_out, (n * g.O + o) * pixels + at) * load(columns, (c * scope + s) * count + p)
            chain, stage, total = staged(k + 1, chain, stage, total, zero)
        total += stage + chain
        if total - total != zero:
            numbers_of = (begin + first, begin + count, step)
            total = grad_filter(grad_out, x, kernel_offset, data_offset, mask, g, o, c, s, numbers_of)
    total = sum_lanes(shared, total, lanes)
    if chunk < chunks and lane == 0:
        index = slot * size + unit
        partial[index] = partial[index] + total if add else total
