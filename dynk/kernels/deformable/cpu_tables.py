"""Depth-wise kernels in registers on the CPU: an output channel for each channel, read at offsets.

A scope of no more positions than a vector has lanes is held in a register and looked up in by permutation: in four
registers, one for each neighbour of a point, so that all are looked up at the same places. With an image that is read
as it is, no samples are stored on the way.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.common.products import CHAIN, ceil_div
from dynk.kernels.deformable.cpu_points import BELOW, COLUMN, HIGH, READS
from dynk.kernels.deformable.cpu_samples import corner_shares

BLOCK = 32  # channels that a vector of pixels is made for at once, an even number


@borrowing
def table_step(like, g):  # type: ignore[no-untyped-def]
    """Return how far the tables of two kernels are apart."""
    return vector.lanes(like) + g.Sw + 1


@inlined
def tables_of(weight, like, g):  # type: ignore[no-untyped-def]
    """Return the kernels of a depth-wise convolution, each with room behind it to load it from its second row on.

    None where they are too large for a vector, or not finite: what is beside a kernel is read too.
    """
    size, positions, step = vector.lanes(like), g.Sh * g.Sw, table_step(like, g)
    fits = g.has_kernel != 0 and positions <= size
    tables = accumulators(like, g.O * step + size if fits else 0)
    check = zero = vector.zeros(like, 0)
    for o in range(g.O if fits else 0):
        kernel = vector.load_where(weight, o * positions, 1, vector.between(0, positions))
        check = vector.fma(kernel, zero, check)  # 0 unless a value is not finite
        vector.store(tables, o * step, kernel)
    return tables if vector.total(check) == 0 else accumulators(like, 0)


@borrowing
def neighbours(g):  # type: ignore[no-untyped-def]
    """Return how far the four neighbours of a point are from the first."""
    return (0, 1, g.Sw, g.Sw + 1)


@borrowing
def reads_as_it_is(tables, tile, g):  # type: ignore[no-untyped-def]
    """Return whether kernels in tables meet an image without offsets, where pixels in a row read elements in a row."""
    plain = g.has_data == 0 and g.has_mask == 0 and g.O == g.C
    return tables.size > 0 and tile.flat and plain and g.kh * g.kw <= CHAIN


@borrowing
def _reads(like, plan, at):  # type: ignore[no-untyped-def]
    """Return the mask of the pixels whose tap reads both the image and the kernel."""
    image, scope = vector.flagged(like, plan.image.flags, at, READS), vector.flagged(like, plan.scope.flags, at, READS)
    return image & scope


@borrowing
def make_outputs(plan, tile, x, tables, bias, c, count, shares, masks, out, g):  # type: ignore[no-untyped-def]
    """Make the outputs of some channels: an even number, for two of them share what they look up."""
    scope, size, taps, plane = plan.scope, vector.lanes(shares), g.kh * g.kw, g.H * g.W
    step, width, start = table_step(shares, g), tile.rows.size, tile.n * g.C * plane
    places, zero = scope.places, vector.zeros(shares, 0)
    blocks, pixels = ceil_div(count, BLOCK), g.Ho * g.Wo
    for task in range(blocks * tile.vectors):
        v, block = task % tile.vectors, task // tile.vectors
        here = tile.first + v * size
        for t in range(taps):
            at = t * width + v * size
            vector.store(shares, vector.spaced(4 * t * size, size, (0, 1, 2, 3)), corner_shares(scope, at))
            masks[t] = _reads(shares, plan, at)
        for o in range(c + block * BLOCK, c + min(block * BLOCK + BLOCK, count), 2):
            one = vector.load(tables, vector.shift(neighbours(g), o * step))
            other = vector.load(tables, vector.shift(neighbours(g), (o + 1) * step))
            totals = (zero, zero)
            for i in range(g.kh):
                for j in range(g.kw):
                    t = i * g.kw + j
                    at = t * width + v * size
                    factors = vector.load(shares, vector.spaced(4 * t * size, size, (0, 1, 2, 3)))
                    shift = start + here + (i * g.dil_h - g.pad_h) * g.W + j * g.dil_w - g.pad_w
                    read = (masks[t], masks[t])
                    samples = vector.load_where(x, (shift + o * plane, shift + (o + 1) * plane), 1, read)
                    (first,) = vector.dot(vector.looked_up(one, places, (at, at, at, at)), factors, (zero,))
                    (second,) = vector.dot(vector.looked_up(other, places, (at, at, at, at)), factors, (zero,))
                    totals = vector.where(read, vector.fma((first, second), samples, totals), totals)
            if g.has_bias != 0:
                totals = vector.add(vector.broadcast(bias, (o, o + 1)), totals)
            to, inside = (tile.n * g.O + o) * pixels + here, vector.between(0, pixels - here)
            vector.store_where(out, (to, to + pixels), 1, totals, (inside, inside))


@borrowing
def spread_grads(plan, tile, grad_out, tables, c, count, planes, to, band, masks, g):  # type: ignore[no-untyped-def]
    """Add what some channels of grad_out send to their planes of the image's gradient, which start at `to`.

    Two channels at a time, whose kernels stay in registers. Taps come before pixels: what is read of a plane must not
    overlap what was written a moment ago.
    """
    scope, size, width, pixels = plan.scope, vector.lanes(planes), tile.rows.size, g.Ho * g.Wo
    step, places, taps = table_step(planes, g), scope.places, g.kh * g.kw
    zero = vector.zeros(planes, 0)
    for t in range(taps):
        for v in range(tile.vectors):
            at = t * width + v * size
            masks[t * tile.vectors + v] = _reads(planes, plan, at)
    for k in range(0, count, 2):
        after = min(k + 1, count - 1)
        one = vector.load(tables, vector.shift(neighbours(g), (c + k) * step))
        other = vector.load(tables, vector.shift(neighbours(g), (c + after) * step))
        start = (tile.n * g.C + c) * pixels + tile.first
        for t in range(taps):
            shift = (t // g.kw * g.dil_h - g.pad_h) * g.W + t % g.kw * g.dil_w - g.pad_w + tile.first
            for v in range(tile.vectors):
                at, here = t * width + v * size, v * size
                read = masks[t * tile.vectors + v]
                reads = (read, read if after > k else 0)
                shares = corner_shares(scope, at)
                (first,) = vector.dot(vector.looked_up(one, places, (at, at, at, at)), shares, (zero,))
                (second,) = vector.dot(vector.looked_up(other, places, (at, at, at, at)), shares, (zero,))
                grads = vector.load_where(
                    grad_out, (start + k * pixels + here, start + after * pixels + here), 1, reads
                )
                there = (to + k * band + here + shift, to + after * band + here + shift)
                totals = vector.load_where(planes, there, 1, reads)
                vector.store_where(planes, there, 1, vector.fma((first, second), grads, totals), reads)


@borrowing
def slope_weights(points, at):  # type: ignore[no-untyped-def]
    """Return the `ends` and `sides` of some points, as `slopes_of` takes them."""
    low_y, high_y = vector.load(points.low_y, at), vector.load(points.high_y, at)
    low_x, high_x = vector.load(points.low_x, at), vector.load(points.high_x, at)
    numbers = points.numbers
    zero, one, minus = vector.broadcast(numbers, (0, 1, 3))
    # Zero times a weight is NaN where the coordinate is.
    before_y = vector.where(vector.flagged(numbers, points.flags, at, BELOW), one, minus)
    before_y = vector.fma(low_y, zero, before_y)
    before_x = vector.where(vector.flagged(numbers, points.flags, at, BELOW * COLUMN), one, minus)
    before_x = vector.fma(low_x, zero, before_x)
    after_y = vector.where(vector.flagged(numbers, points.flags, at, HIGH), one, zero)
    after_x = vector.where(vector.flagged(numbers, points.flags, at, HIGH * COLUMN), one, zero)
    return (before_y, after_y, before_x, after_x), (low_x, high_x, low_y, high_y)


@borrowing
def slopes_of(values, ends, sides):  # type: ignore[no-untyped-def]
    """Return the derivatives by row and by column of the values around some points.

    `ends` are what the values before and after a point count in their difference, by row and by column, `sides` what
    the two differences along each count. The differences come first: those between equal values are 0.
    """
    up, down = (values[0], values[1]), (values[2], values[3])
    left, right = (values[0], values[2]), (values[1], values[3])
    by_row = vector.fma((ends[0], ends[0]), up, vector.mul((ends[1], ends[1]), down))
    by_column = vector.fma((ends[2], ends[2]), left, vector.mul((ends[3], ends[3]), right))
    first = vector.mul((sides[0], sides[2]), (by_row[0], by_column[0]))
    return vector.fma((sides[1], sides[3]), (by_row[1], by_column[1]), first)


@borrowing
def add_slopes(  # type: ignore[no-untyped-def]
    places, at, ends, sides, tables, c, count, grad_out, grad_at, samples, sample_at, sample_step, read, g
):
    """Return what some channels give to the gradients of a tap's offsets of the kernel."""
    zero, pixels = vector.zeros(tables, 0), g.Ho * g.Wo
    step = table_step(tables, g)
    down = across = zero
    for k in range(count):
        kernel = vector.load(tables, vector.shift(neighbours(g), (c + k) * step))
        values = vector.looked_up(kernel, places, (at, at, at, at))
        slopes = slopes_of(values, ends, sides)
        grad = vector.load_where(grad_out, grad_at + k * pixels, 1, read)
        sample = vector.load_where(samples, sample_at + k * sample_step, 1, read)
        down, across = vector.fma(vector.mul(grad, slopes), sample, (down, across))
    return down, across
