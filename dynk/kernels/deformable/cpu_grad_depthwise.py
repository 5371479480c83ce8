"""The gradient of depth-wise weights on the CPU: sums over all pixels.

A task takes a block of channels and goes through a share of the tiles of all images. With kernel offsets the gradient
is a product of matrices: of the terms of each output channel, pixel by pixel and tap by tap, with the weights of the
positions of the scope that the tap reads there, which are those of all channels of a block.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.common.products import (
    CHAIN,
    PANELS,
    ROWS,
    VECTORS,
    add_to,
    ceil_div,
    multiply,
    tile_pixels,
)
from dynk.kernels.deformable.cpu_points import CORNERS, READS, deform_geometry, tile_of
from dynk.kernels.deformable.cpu_samples import forget, form_samples, plan_image, plan_of, plan_scope, run_of

OUTS = 256  # output channels of a task, at most, but for those of a single channel
TASKS = 16  # tasks that are worth while
PARTIALS = 2**20  # numbers of all partial sums together, at most, where there are several of a gradient
TILES = CHAIN // (PANELS * VECTORS)  # whose vectors are summed in one chain


@borrowing
def block_of_task(g):  # type: ignore[no-untyped-def]
    """Return how many channels a task takes."""
    return max(1, min(g.C, OUTS // (g.O // g.C)))


@borrowing
def depthwise_shares(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the tiles of all images are shared out."""
    tiles, size = g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like)), g.O * g.Sh * g.Sw
    return max(1, min(tiles, min(ceil_div(TASKS, ceil_div(g.C, block_of_task(g))), PARTIALS // size)))


@borrowing
def grad_depthwise_tasks(like, g):  # type: ignore[no-untyped-def]
    return ceil_div(g.C, block_of_task(g)) * depthwise_shares(like, g)


@inlined
def grad_depthwise_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, kernel_offset, data_offset, mask, partials, grad_weight, like, geometry
):
    """Write a share's sum for a block of channels: to the gradient, or to that of its share where there are several."""
    g = deform_geometry(geometry)
    size, tiles, shares = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like)), depthwise_shares(like, g)
    taps, positions, many, blocks = g.kh * g.kw, g.Sh * g.Sw, g.O // g.C, ceil_div(g.C, block_of_task(g))
    c, share = task % blocks * block_of_task(g), task // blocks
    count = min(block_of_task(g), g.C - c)
    row = ceil_div(positions, size) * size if g.has_kernel != 0 else taps * size  # numbers that a channel's sums take
    plan = plan_of(like, 0, like, 0, g)
    samples, terms = accumulators(like, ROWS * taps * size), accumulators(like, ROWS * taps * size)
    shares_of_taps = accumulators(like, taps * size * row if g.has_kernel != 0 else 0)
    totals = accumulators(like, 2 * positions if g.has_kernel != 0 else 0)
    recent = accumulators(like, (count * many + ROWS) * row)
    total = accumulators(like, recent.size)
    for k in range(g.N * tiles * share // shares, g.N * tiles * (share + 1) // shares):
        tile = tile_of(k // tiles, k % tiles * tile_pixels(like), g.Ho * g.Wo, like, g)
        forget(plan)
        done = 0
        while done < count:
            run = run_of(c + done, count - done, g)
            plan_image(plan, tile, data_offset, c + done, 0, g.H, g)
            plan_scope(plan, tile, kernel_offset, c + done, g)
            for v in range(tile.vectors):
                if g.has_kernel != 0:
                    _lay_out(plan.scope, v, tile.rows.size, shares_of_taps, row, g)
                _add_channels(
                    plan, tile, v, grad_out, x, mask, c + done, run, samples, terms, totals, shares_of_taps, row,
                    recent, done * many * row, g,
                )  # fmt: skip
            done += run
        if k % TILES == TILES - 1:
            add_to(total, recent)
    add_to(total, recent)
    for o in range(count * many):
        to = (c * many + o) * positions
        for k in range(positions):
            if g.has_kernel != 0:
                value = load(total, o * row + k)
            else:
                value = vector.total(vector.load(total, o * row + k * size))
            store_sum(value, to + k, share, shares, partials, grad_weight)


@borrowing
def store_sum(value, to, share, shares, partials, grad_weight):  # type: ignore[no-untyped-def]
    """Store a share's sum: as an element of the gradient, or of the sums of this share where there are several."""
    if shares == 1:
        store(grad_weight, to, value)
    else:
        store(partials, share * grad_weight.size + to, value)


@borrowing
def _add_channels(  # type: ignore[no-untyped-def]
    plan, tile, v, grad_out, x, mask, channel, count, samples, terms, totals, shares, row, sums, to, g
):
    """Add what a vector of pixels gives to the gradients of the weights of some channels, which are in one block."""
    size, taps, many = vector.lanes(samples), g.kh * g.kw, g.O // g.C
    used = ceil_div(g.Sh * g.Sw, size)
    for first in range(0, count * many, ROWS):
        end = min(first + ROWS, count * many)
        low, high = first // many, (end - 1) // many + 1
        if tile.flat and g.has_data == 0 and g.has_mask == 0:
            shift = tile.first + v * size - g.pad_h * g.W - g.pad_w
            finite = _form_terms(
                plan.image.flags, tile, v, grad_out, channel, first, end, x,
                (tile.n * g.C + channel) * g.H * g.W + shift, g.H * g.W, g.dil_h * g.W, g.dil_w, terms, g,
            )  # fmt: skip
        else:
            form_samples(plan, tile, v, x, mask, channel + low, high - low, samples, 0, size, g)
            finite = _form_terms(
                plan.image.flags, tile, v, grad_out, channel, first, end, samples,
                -low * taps * size, taps * size, g.kw * size, size, terms, g,
            )  # fmt: skip
        if g.has_kernel == 0:
            for k in range((end - first) * taps):
                here = to + first * row + k * size
                vector.store(sums, here, vector.add(vector.load(sums, here), vector.load(terms, k * size)))
        elif finite:
            for panel in range(0, used, VECTORS):
                multiply(
                    terms, 0, taps * size, 1, shares, panel * size, row, taps * size,
                    min(VECTORS, used - panel), plan.everywhere, 0, sums, to + first * row + panel * size, row,
                )  # fmt: skip
        else:
            for k in range(ROWS):
                _add_row(plan.scope, tile, v, terms, k * taps * size, totals, sums, to + (first + k) * row, g)


@borrowing
def _form_terms(  # type: ignore[no-untyped-def]
    flags, tile, v, grad_out, channel, first, end, samples, start, step, down, across, terms, g
):
    """Set what each tap of ROWS output channels gives at a vector of pixels, to 0 from `end` on; return whether finite.

    What tap (i, j) of the c-th channel sees is at start + c * step + i * down + j * across of the samples.
    """
    size, width, taps, many = vector.lanes(terms), tile.rows.size, g.kh * g.kw, g.O // g.C
    here, inside = tile.first + v * size, vector.between(0, tile.pixels - v * size)
    zero = vector.zeros(terms, 0)
    check = zero
    for k in range(first, end):
        at = (tile.n * g.O + channel * many + k) * g.Ho * g.Wo + here
        grad = vector.load_where(grad_out, at, 1, inside)
        vector.prefetch(grad_out, at + size)
        for i in range(g.kh):
            for j in range(g.kw):
                t = i * g.kw + j
                read = vector.flagged(terms, flags, t * width + v * size, READS)
                sample = vector.load_where(samples, start + k // many * step + i * down + j * across, 1, read)
                term = vector.where(read, vector.mul(grad, sample), zero)
                check = vector.fma(term, zero, check)  # 0 unless a term is not finite
                vector.store(terms, ((k - first) * taps + t) * size, term)
    for k in range((end - first) * taps, ROWS * taps):
        vector.store(terms, k * size, zero)
    return vector.total(check) == 0


@borrowing
def _lay_out(scope, v, width, shares, row, g):  # type: ignore[no-untyped-def]
    """Set for each tap and pixel of a vector a row of `row` numbers: the weight of each position of the scope."""
    taps = g.kh * g.kw
    size, zero = shares.size // (taps * row), vector.zeros(shares, 0)
    for k in range(0, shares.size, size):
        vector.store(shares, k, zero)
    for t in range(taps):
        for lane in range(size):
            point, to = t * width + v * size + lane, (t * size + lane) * row
            flags = load(scope.flags, point)
            if flags & READS == READS and flags & CORNERS[0] == CORNERS[0]:
                to += load(scope.elements, point)
                low_y, high_y = load(scope.low_y, point), load(scope.high_y, point)
                low_x, high_x = load(scope.low_x, point), load(scope.high_x, point)
                store(shares, to, low_y * low_x)
                if flags & CORNERS[1] == CORNERS[1]:
                    store(shares, to + 1, low_y * high_x)
                if flags & CORNERS[2] == CORNERS[2]:
                    store(shares, to + g.Sw, high_y * low_x)
                if flags & CORNERS[3] == CORNERS[3]:
                    store(shares, to + g.Sw + 1, high_y * high_x)


@borrowing
def _share_of(scope, point, corner, g):  # type: ignore[no-untyped-def]
    """Return a position that a point reads, -1 if there is none, and its weight."""
    share = scope.high_y[point] if corner >= 2 else scope.low_y[point]
    share *= scope.high_x[point] if corner % 2 == 1 else scope.low_x[point]
    wanted = CORNERS[corner] | READS
    position = scope.elements[point] + corner // 2 * g.Sw + corner % 2
    return position if scope.flags[point] & wanted == wanted else -1, share


@borrowing
def _add_row(scope, tile, v, terms, start, totals, sums, to, g):  # type: ignore[no-untyped-def]
    """Add the products of a channel's terms, not all of them finite, with the weights of the positions read.

    In the order of `multiply`: what is finite of the sums is the same to the bit.
    """
    size, width, taps, positions = vector.lanes(terms), tile.rows.size, g.kh * g.kw, totals.size // 2
    fill(totals, 0)  # the chain of each position, then the sum of its chains
    for k in range(taps * size):
        if k % CHAIN == 0:
            _merge(totals, positions)
        for corner in range(4):
            position, share = _share_of(scope, k // size * width + v * size + k % size, corner, g)
            if position >= 0:
                totals[position] += share * terms[start + k]
    _merge(totals, positions)
    for position in range(positions):
        sums[to + position] += totals[positions + position]


@borrowing
def _merge(totals, positions):  # type: ignore[no-untyped-def]
    """Add chains to their sums, and begin new ones."""
    for position in range(positions):
        totals[positions + position] += totals[position]
        totals[position] = 0
