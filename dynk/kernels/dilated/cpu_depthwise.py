"""Depth-wise adaptive dilation on the CPU: each channel is convolved by itself, so there is no product of matrices.

The output is made row by row (`cpu_rows`) where that does. Else, and for the gradients, columns are those of the dense
operator, of a block of channels at a time. What multiplies them is one number of the weights for each tap and output:
sums stay in vectors of pixels.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, store
from dynk.kernels.common.products import CHAIN, PANELS, VECTORS, add_to, ceil_div, padded, place, tile_pixels
from dynk.kernels.dilated.cpu_columns import form_columns
from dynk.kernels.dilated.cpu_rows import parts_of, rows_of, settle, sum_rows
from dynk.kernels.dilated.cpu_tiles import dilation_geometry, seen_by_tap, tile_of

TERMS = 144  # rows of columns that are formed at once, about
TASKS = 32  # tasks that are worth while


@borrowing
def _block(g):  # type: ignore[no-untyped-def]
    """Return how many channels' columns are formed at once."""
    return min(g.C, max(1, TERMS // (g.kh * g.kw)))


@inlined
def _parts(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the channels of a tile are shared out."""
    tiles = g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))
    return min(ceil_div(TASKS, tiles), ceil_div(g.C, _block(g)))


@inlined
def depthwise_tasks(like, geometry):  # type: ignore[no-untyped-def]
    g = dilation_geometry(geometry)
    rows = rows_of(1, geometry, g)
    if rows > 0:
        return g.N * ceil_div(g.Ho, rows) * parts_of(rows, g)
    return g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like)) * _parts(like, g)


@inlined
def depthwise_task(task, x, weight, mixture, bias, out, like, geometry):  # type: ignore[no-untyped-def]
    """Make some rows of some channels of the output, or where that does not do, a tile of them."""
    g = dilation_geometry(geometry)
    rows, finite = rows_of(1, geometry, g), False
    parts = parts_of(rows, g) if rows > 0 else _parts(like, g)
    bands = ceil_div(g.Ho, rows) if rows > 0 else ceil_div(g.Ho * g.Wo, tile_pixels(like))
    n, band, part = task // parts // bands, task // parts % bands, task % parts
    c0, c1 = g.C * part // parts, g.C * (part + 1) // parts
    first, last = band * tile_pixels(like), min((band + 1) * tile_pixels(like), g.Ho * g.Wo)
    if rows > 0:
        y0, y1 = g.Ho * band // bands, g.Ho * (band + 1) // bands
        first, last = y0 * g.Wo, y1 * g.Wo
        finite = sum_rows(n, y0, y1, c0, c1, x, weight, mixture, bias, out, like, geometry, g)
    if not finite:
        columns = accumulators(like, tile_pixels(like) * _block(g) * g.kh * g.kw)
        for start in range(first, last, tile_pixels(like)):
            _sum_columns(n, start, last, rows > 0, c0, c1, x, weight, mixture, bias, out, columns, like, geometry)


@inlined
def _sum_columns(  # type: ignore[no-untyped-def]
    n, first, last, again, c0, c1, x, weight, mixture, bias, out, columns, like, geometry
):
    """Make a tile of some channels, before pixel `last`; if `again`, only what was not finite or is not now."""
    g = dilation_geometry(geometry)
    tile = tile_of(n, first, last, 0, g.H, mixture, like, geometry)
    masks = seen_by_tap(tile, g)
    for c in range(c0, c1, _block(g)):
        count = min(_block(g), c1 - c)
        form_columns(tile, x, c, count, columns, VECTORS, g)
        for k in range(count):
            for o in range((c + k) * (g.O // g.C), (c + k + 1) * (g.O // g.C)):
                for v in range(tile.vectors):
                    _output(n, o, v, first, last, again, columns, k, count, weight, bias, masks, tile.vectors, out, g)


@borrowing
def _output(  # type: ignore[no-untyped-def]
    n, o, v, first, last, again, columns, k, count, weight, bias, masks, vectors, out, g
):
    """Write a vector of an output channel: the products of channel k's columns with a kernel."""
    size, plane, taps = vector.lanes(columns), g.Ho * g.Wo, g.kh * g.kw
    at = place(k * taps, v, count * taps, VECTORS, columns)
    total = vector.zeros(columns, 0)
    for start in range(0, taps, CHAIN):
        chain = vector.zeros(columns, 0)
        for t in range(start, min(start + CHAIN, taps)):
            column = vector.load(columns, at + t * VECTORS * size)
            products = vector.fma(vector.broadcast(weight, o * taps + t), column, chain)
            chain = vector.where(masks[t * vectors + v], products, chain)
        total = vector.add(chain, total)
    if g.has_bias != 0:
        total = vector.add(vector.broadcast(bias, o), total)
    here = (n * g.O + o) * plane + first + v * size
    settle(out, here, total, again, vector.between(0, last - first - v * size))


@borrowing
def form_depthwise(  # type: ignore[no-untyped-def]
    tile, grad_out, weight, group, channel, count, weights, grads, columns, new_weights, new_grads, g
):
    """Form the gradient of the columns of some channels, as `form_dense` does, without copies of the weights."""
    size, taps, many = vector.lanes(columns), g.kh * g.kw, g.O // g.C
    rows = padded(count * taps)
    for c in range(count):
        for v in range(tile.vectors):
            to = place(c * taps, v, rows, VECTORS, columns)
            mask = vector.between(0, tile.pixels - v * size)
            for o in range((channel + c) * many, (channel + c + 1) * many):
                grad = vector.load_where(grad_out, (tile.n * g.O + o) * g.Ho * g.Wo + tile.first + v * size, 1, mask)
                for t in range(taps):
                    here = to + t * VECTORS * size
                    product = vector.mul(vector.broadcast(weight, o * taps + t), grad)
                    if o > (channel + c) * many:
                        product = vector.add(vector.load(columns, here), product)
                    vector.store(columns, here, product)


# ---- the gradient of the weights -------------------------------------------------------------------------------------


@inlined
def depthwise_shares(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the tiles of all images are shared out."""
    tiles = g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))
    return max(1, min(tiles, ceil_div(TASKS, ceil_div(g.C, _block(g)))))


@inlined
def depthwise_weight_tasks(like, g):  # type: ignore[no-untyped-def]
    return ceil_div(g.C, _block(g)) * depthwise_shares(like, g)


@inlined
def depthwise_weight_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, mixture, partials, grad_weight, like, geometry
):
    """Write a share's sum for a block of channels, as `grad_weight_task` does."""
    g = dilation_geometry(geometry)
    size, tiles, taps = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like)), g.kh * g.kw
    block, many, shares = _block(g), g.O // g.C, depthwise_shares(like, g)
    blocks = ceil_div(g.C, block)
    c, share = task % blocks * block, task // blocks
    count = min(block, g.C - c)
    columns = accumulators(like, tile_pixels(like) * count * taps)
    recent = accumulators(like, count * many * taps * size)
    total = accumulators(like, recent.size)
    for k in range(g.N * tiles * share // shares, g.N * tiles * (share + 1) // shares):
        tile = tile_of(k // tiles, k % tiles * tile_pixels(like), g.Ho * g.Wo, 0, g.H, mixture, like, geometry)
        form_columns(tile, x, c, count, columns, PANELS * VECTORS, g)
        masks = seen_by_tap(tile, g)
        start = (tile.n * g.O + c * many) * g.Ho * g.Wo + tile.first
        for o in range(count * many):
            at = o // many * taps * PANELS * VECTORS * size
            _sum_products(
                grad_out, start + o * g.Ho * g.Wo, tile.pixels, columns, at, masks, recent, o * taps * size, g
            )
        if k % CHAIN == CHAIN - 1:
            add_to(total, recent)
    add_to(total, recent)
    for k in range(count * many * taps):
        to, value = c * many * taps + k, vector.total(vector.load(total, k * size))
        if shares == 1:
            store(grad_weight, to, value)
        else:
            store(partials, share * grad_weight.size + to, value)


@borrowing
def _sum_products(grad_out, start, pixels, columns, at, masks, sums, to, g):  # type: ignore[no-untyped-def]
    """Add the products of one channel of grad_out with the columns of each tap, where it is read."""
    size, taps = vector.lanes(columns), g.kh * g.kw
    vectors = ceil_div(pixels, size)
    for t in range(taps):
        total = vector.load(sums, to + t * size)
        chain = vector.zeros(columns, 0)
        for v in range(vectors):
            grad = vector.load_where(grad_out, start + v * size, 1, vector.between(0, pixels - v * size))
            column = vector.load(columns, at + (t * PANELS * VECTORS + v) * size)
            chain = vector.where(masks[t * vectors + v], vector.fma(grad, column, chain), chain)
        vector.store(sums, to + t * size, vector.add(chain, total))
