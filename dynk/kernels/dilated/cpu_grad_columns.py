"""Gradients of the columns on the CPU, and what is made of them: the gradients of the image and of the dilations.

The gradient of a tile's columns is one more product, of the transposed weights with grad_out; it is formed for a block
of channels at a time. Each of its numbers goes to one pixel for each dilation: a task of the image's gradient owns a
block of channels, or a band of rows of them, goes through all tiles that read it, and adds in their order.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill
from dynk.kernels.common.products import (
    CHAIN,
    ROWS,
    VECTORS,
    ceil_div,
    everywhere,
    load_planes,
    load_rows,
    multiply,
    padded,
    place,
    tile_pixels,
)
from dynk.kernels.dilated import geometry as of_geometry
from dynk.kernels.dilated.cpu_rows import settle
from dynk.kernels.dilated.cpu_tiles import dilation_geometry, masks_of, starts_of, tap_row, tile_of

OUTS = 256  # output channels that are summed over at once
TERMS = 144  # rows of columns whose gradient is formed at once, about
PARTS = 2**20  # numbers of the dilations' gradient that blocks of channels hold, at most
PLANES = 2**19  # numbers of the image's gradient that a task holds, at most, but for a single row of a single channel


is_depthwise = borrowing(of_geometry.is_depthwise)


@borrowing
def _groups(g):  # type: ignore[no-untyped-def]
    """Return the number of groups that blocks of channels must not cross."""
    return 1 if is_depthwise(g) else g.groups


@borrowing
def grad_block(channels, taps):  # type: ignore[no-untyped-def]
    """Return how many channels' gradients are formed at once."""
    return min(channels, 32, ceil_div(TERMS, taps))


@borrowing
def weights_size(block, like, g):  # type: ignore[no-untyped-def]
    return 0 if is_depthwise(g) else min(OUTS, g.O // g.groups) * block * g.kh * g.kw + vector.lanes(like)


@borrowing
def grads_size(like, g):  # type: ignore[no-untyped-def]
    return 0 if is_depthwise(g) else tile_pixels(like) * min(OUTS, g.O // g.groups)


@inlined
def form_dense(  # type: ignore[no-untyped-def]
    tile, grad_out, weight, group, c, count, weights, grads, columns, new_weights, new_grads, g
):
    """Form the gradient of the columns of `count` channels from channel c of a group on.

    Unless they are new, `weights` and `grads` hold what the last call copied, where that was all of them.
    """
    taps, outs, width = g.kh * g.kw, g.O // g.groups, VECTORS * vector.lanes(columns)
    rows, masks = count * taps, everywhere(VECTORS)
    fill(columns, 0)
    for first in range(0, outs, OUTS):
        many, o = min(OUTS, outs - first), group * outs + first
        if new_weights or outs > OUTS:
            load_rows(weight, (o * (g.C // g.groups) + c) * taps, g.C // g.groups * taps, many, rows, weights, 0)
        if new_grads or outs > OUTS:
            start = (tile.n * g.O + o) * g.Ho * g.Wo + tile.first
            load_planes(grad_out, start, g.Ho * g.Wo, many, tile.pixels, grads)
        for v in range(0, tile.vectors, VECTORS):
            for row in range(0, rows, ROWS):
                multiply(
                    weights, row, 1, rows, grads, place(0, v, many, VECTORS, grads), width, many,
                    min(VECTORS, tile.vectors - v), masks, 0, columns,
                    place(row, v, padded(rows), VECTORS, columns), width,
                )  # fmt: skip


# ---- the gradient of the image ---------------------------------------------------------------------------------------


@borrowing
def _sets(g):  # type: ignore[no-untyped-def]
    """Return how many sums a pixel has: taps of dilations are shared out among them, no more than CHAIN to each."""
    return ceil_div(g.D * g.kh * g.kw, CHAIN)


@borrowing
def _block_and_rows(g):  # type: ignore[no-untyped-def]
    """Return the channels and the rows of a task of the image's gradient."""
    block = grad_block(g.C // _groups(g), g.kh * g.kw)
    if block >= 16 and _sets(g) * block * g.H * g.W > PLANES:
        block = block // 2  # longer bands are worth more than longer blocks
    block = min(block, max(1, PLANES // (_sets(g) * g.W)))
    return block, min(g.H, max(1, PLANES // (_sets(g) * block * g.W)))


@borrowing
def grad_x_tasks(g):  # type: ignore[no-untyped-def]
    block, rows = _block_and_rows(g)
    return g.N * _groups(g) * ceil_div(g.C // _groups(g), block) * ceil_div(g.H, rows)


@borrowing
def blocks_with_shares(g):  # type: ignore[no-untyped-def]
    """Return how many blocks of channels make parts of the dilations' gradient with the image's, or 0 if none does.

    That saves a product of three, where a block has all rows and the parts are few.
    """
    block, rows = _block_and_rows(g)
    blocks = _groups(g) * ceil_div(g.C // _groups(g), block)
    return blocks if rows == g.H and blocks * g.N * g.D * g.Ho * g.Wo <= PARTS else 0


@inlined
def grad_x_task(  # type: ignore[no-untyped-def]
    task, form, grad_out, x, weight, mixture, grad_x, parts, again, like, geometry
):
    """Make a band of rows of some channels; if `again`, only what was not finite or is not now.

    `form` is the function that forms the gradient of the columns. `parts`, if there are any, get what the channels give
    to the gradient of the dilations' weights.
    """
    g = dilation_geometry(geometry)
    channels, taps = g.C // _groups(g), g.kh * g.kw
    block, rows = _block_and_rows(g)
    bands, blocks = ceil_div(g.H, rows), ceil_div(channels, block)
    first_row, c = task % bands * rows, task // bands % blocks * block
    group, n = task // bands // blocks % _groups(g), task // bands // blocks // _groups(g)
    end_row, count = min(g.H, first_row + rows), min(block, channels - c)
    band = (end_row - first_row) * g.W
    planes = accumulators(like, _sets(g) * count * band)
    columns = accumulators(like, tile_pixels(like) * padded(count * taps))
    weights, grads = accumulators(like, weights_size(count, like, g)), accumulators(like, grads_size(like, g))
    sums = accumulators(like, tile_pixels(like) * g.D if parts.size > 0 else 0)
    first, end = _readers(first_row, end_row, geometry)
    for pixel in range(first, end, tile_pixels(like)):
        tile = tile_of(n, pixel, end, first_row, end_row, mixture, like, geometry)
        is_first = pixel == first
        form(tile, grad_out, weight, group, c, count, weights, grads, columns, is_first, True, g)
        for v in range(tile.vectors):
            for k in range(taps * g.D):
                _spread(tile, v, k // g.D, k % g.D, columns, count, planes, k // CHAIN, first_row, band, g)
        if parts.size > 0:
            fill(sums, 0)
            _add_all_shares(tile, x, group * channels + c, count, columns, sums, g)
            _write_shares(tile, sums, parts, ((group * blocks + c // block) * g.N + n) * g.D, again, g)
    to = ((n * g.C + group * channels + c) * g.H + first_row) * g.W
    _write_planes(planes, count, band, grad_x, to, again, g)


@borrowing
def _readers(first_row, end_row, geometry):  # type: ignore[no-untyped-def]
    """Return the first pixel whose taps may be in some rows of the image, and the end of these pixels."""
    g = dilation_geometry(geometry)
    above, below = 0, 0
    for d in range(g.D):
        above, below = min(above, tap_row(0, d, geometry)), max(below, tap_row(g.kh - 1, d, geometry))
    first = max(0, ceil_div(first_row - below, g.stride_h))
    end = min(g.Ho, ceil_div(end_row - above, g.stride_h))
    return first * g.Wo, end * g.Wo


@borrowing
def _spread(tile, v, tap, d, columns, count, planes, which, first_row, band, g):  # type: ignore[no-untyped-def]
    """Add the share of dilation d in the gradient of a tap to the pixels that it read."""
    size, taps = vector.lanes(columns), g.kh * g.kw
    (mask,) = masks_of(tile, v, tap // g.kw, tap % g.kw, (d,), g)
    if mask == 0:
        return
    (start,) = starts_of(tile, which * count * band - first_row * g.W, v, tap // g.kw, tap % g.kw, (d,), columns, g)
    share = vector.load(tile.shares, (v * g.D + d) * size)
    flat, anchors = tile.flat, tile.anchors
    for c in range(count):
        grad = vector.load(columns, place(c * taps + tap, v, padded(count * taps), VECTORS, columns))
        to = start + c * band
        if flat:
            total = vector.fma(share, grad, vector.load_where(planes, to, 1, mask))
            vector.store_where(planes, to, 1, total, mask)
        else:
            total = vector.fma(share, grad, vector.gather(planes, to, anchors, v * size, mask))
            vector.scatter(planes, to, anchors, v * size, total, mask)


@borrowing
def _write_planes(planes, count, band, grad_x, to, again, g):  # type: ignore[no-untyped-def]
    """Write the sums of a band of some channels, which start at `to` of the gradient."""
    size = vector.lanes(planes)
    for c in range(count):
        for k in range(0, band, size):
            mask = vector.between(0, band - k)
            total = vector.load_where(planes, c * band + k, 1, mask)
            for which in range(1, _sets(g)):
                total = vector.add(vector.load_where(planes, (which * count + c) * band + k, 1, mask), total)
            settle(grad_x, to + c * g.H * g.W + k, total, again, mask)


# ---- the gradient of the dilations' weights --------------------------------------------------------------------------


@borrowing
def grad_shares_tasks(like, g):  # type: ignore[no-untyped-def]
    return g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))


@inlined
def grad_shares_task(  # type: ignore[no-untyped-def]
    task, form, grad_out, x, weight, mixture, grad_dilation_weights, again, like, geometry
):
    """Sum over all channels and taps at the pixels of a tile, `form` and `again` as for `grad_x_task`."""
    g = dilation_geometry(geometry)
    size, tiles = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like))
    channels, taps = g.C // _groups(g), g.kh * g.kw
    block, n = grad_block(channels, taps), task // tiles
    tile = tile_of(n, task % tiles * tile_pixels(like), g.Ho * g.Wo, 0, g.H, mixture, like, geometry)
    columns = accumulators(like, tile_pixels(like) * padded(block * taps))
    weights, grads = accumulators(like, weights_size(block, like, g)), accumulators(like, grads_size(like, g))
    sums = accumulators(like, tile.vectors * g.D * size)
    for group in range(_groups(g)):
        for c in range(0, channels, block):
            count = min(block, channels - c)
            form(tile, grad_out, weight, group, c, count, weights, grads, columns, True, c == 0, g)
            _add_all_shares(tile, x, group * channels + c, count, columns, sums, g)
    _write_shares(tile, sums, grad_dilation_weights, n * g.D, again, g)


@borrowing
def _add_all_shares(tile, x, channel, count, columns, sums, g):  # type: ignore[no-untyped-def]
    for v in range(tile.vectors):
        for d in range(0, g.D - 2, 3):
            _add_shares(tile, v, x, channel, count, columns, sums, (d, d + 1, d + 2), g)
        for d in range(g.D // 3 * 3, g.D):
            _add_shares(tile, v, x, channel, count, columns, sums, (d,), g)


@borrowing
def _write_shares(tile, sums, to, plane, again, g):  # type: ignore[no-untyped-def]
    """Write the sums of a tile to the planes of the dilations that begin with number `plane`."""
    size = vector.lanes(sums)
    for v in range(tile.vectors):
        for d in range(g.D):
            at = (plane + d) * g.Ho * g.Wo + tile.first + v * size
            total = vector.load(sums, (v * g.D + d) * size)
            settle(to, at, total, again, vector.between(0, tile.pixels - v * size))


@borrowing
def _add_shares(tile, v, x, channel, count, columns, sums, dilations, g):  # type: ignore[no-untyped-def]
    """Add the products of some channels' columns and their gradients, for some dilations."""
    size, plane, taps = vector.lanes(columns), g.H * g.W, g.kh * g.kw
    total = vector.zeros(columns, dilations)
    flat, anchors = tile.flat, tile.anchors
    for tap in range(taps):
        masks = masks_of(tile, v, tap // g.kw, tap % g.kw, dilations, g)
        starts = starts_of(tile, (tile.n * g.C + channel) * plane, v, tap // g.kw, tap % g.kw, dilations, columns, g)
        chain = vector.zeros(columns, dilations)
        for c in range(count):
            grad = vector.load(columns, place(c * taps + tap, v, padded(count * taps), VECTORS, columns))
            if flat:
                values = vector.load_where(x, vector.shift(starts, c * plane), 1, masks)
            else:
                values = vector.gather(x, vector.shift(starts, c * plane), anchors, v * size, masks)
            chain = vector.where(masks, vector.fma(grad, values, chain), chain)
        total = vector.add(chain, total)
    here = vector.spaced(v * g.D * size, size, dilations)
    vector.store(sums, here, vector.add(vector.load(sums, here), total))
