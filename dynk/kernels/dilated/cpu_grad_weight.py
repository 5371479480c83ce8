"""The gradient of the weights on the CPU: sums over all pixels.

A task takes a block of channels and goes through a share of the tiles of all images. In its
product the columns are read number by number and grad_out, transposed, is read in panels of output channels. How tiles
are shared out depends on the shape alone.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load, store
from dynk.kernels.common.products import (
    CHAIN,
    PANELS,
    ROWS,
    VECTORS,
    add_to,
    ceil_div,
    everywhere,
    multiply,
    padded,
    place,
    tile_pixels,
    transpose_planes,
)
from dynk.kernels.dilated.cpu_columns import form_columns
from dynk.kernels.dilated.cpu_forward import block_of
from dynk.kernels.dilated.cpu_tiles import dilation_geometry, seen, tile_of

OUTS = 256  # output channels of a task, at most
TASKS = 32  # tasks that are worth while
PARTIALS = 2**20  # numbers of all partial sums together, at most, where there are several of a gradient


@borrowing
def shares_of(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the tiles of all images are shared out."""
    size = g.O * (g.C // g.groups) * g.kh * g.kw
    tiles = g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))
    return max(1, min(tiles, min(ceil_div(TASKS, _blocks(g)), PARTIALS // size)))


@borrowing
def _blocks(g):  # type: ignore[no-untyped-def]
    """Return the number of blocks of channels that the gradient has."""
    channels = g.C // g.groups
    return g.groups * ceil_div(channels, block_of(channels, g.kh * g.kw)) * ceil_div(g.O // g.groups, OUTS)


@borrowing
def grad_weight_tasks(like, g):  # type: ignore[no-untyped-def]
    return _blocks(g) * shares_of(like, g)


@inlined
def grad_weight_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, mixture, partials, grad_weight, like, geometry
):
    """Write a share's sum for a block of channels: to the gradient, or to that of its share where there are several."""
    g = dilation_geometry(geometry)
    size, tiles, shares = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like)), shares_of(like, g)
    outs, channels, taps = g.O // g.groups, g.C // g.groups, g.kh * g.kw
    block, share = block_of(channels, taps), task // _blocks(g)
    part = task % _blocks(g)
    blocks, out_blocks = ceil_div(channels, block), ceil_div(outs, OUTS)
    c, first = part % blocks * block, part // blocks % out_blocks * OUTS
    group = part // blocks // out_blocks
    count, many = min(block, channels - c), min(OUTS, outs - first)
    vectors = ceil_div(many, size)
    rows, panels = padded(count) * taps, ceil_div(vectors, VECTORS)
    columns = accumulators(like, tile_pixels(like) * rows)
    grads = accumulators(like, panels * VECTORS * size * tile_pixels(like))
    kept = accumulators(like, grads.size)
    recent = accumulators(like, panels * VECTORS * size * rows)
    total = accumulators(like, recent.size)
    for k in range(g.N * tiles * share // shares, g.N * tiles * (share + 1) // shares):
        tile = tile_of(k // tiles, k % tiles * tile_pixels(like), g.Ho * g.Wo, 0, g.H, mixture, like, geometry)
        form_columns(tile, x, group * channels + c, count, columns, PANELS * VECTORS, g)
        start = (tile.n * g.O + group * outs + first) * g.Ho * g.Wo + tile.first
        finite = transpose_planes(grad_out, start, g.Ho * g.Wo, many, tile.pixels, grads)
        _multiply_columns(tile, columns, count, grads, kept, finite, vectors, recent, rows, g)
        if k % CHAIN == CHAIN - 1:
            add_to(total, recent)
    add_to(total, recent)
    for o in range(many):
        to = ((group * outs + first + o) * channels + c) * taps
        for k in range(count * taps):
            value = load(total, place(k, o // size, rows, VECTORS, total) + o % size)
            if shares == 1:
                store(grad_weight, to + k, value)
            else:
                store(partials, share * grad_weight.size + to + k, value)


@inlined
def _multiply_columns(  # type: ignore[no-untyped-def]
    tile, columns, count, grads, kept, finite, vectors, sums, rows, g
):
    """Add the products of columns and grad_out.

    Where a tap is not read its column is 0. That is enough for finite gradients; others are multiplied tap by tap, and
    are 0 themselves where the tap is not read.
    """
    size, taps = vector.lanes(columns), g.kh * g.kw
    width, panel, masks = PANELS * VECTORS * size, VECTORS * size, everywhere(VECTORS)
    if finite:
        for v in range(0, vectors, VECTORS):
            for row in range(0, count * taps, ROWS):
                multiply(
                    columns, row * width, width, 1, grads, place(0, v, width, VECTORS, grads), panel, tile.pixels,
                    min(VECTORS, vectors - v), masks, 0, sums, place(row, v, rows, VECTORS, sums), panel,
                )  # fmt: skip
        return
    for t in range(taps):
        _keep_seen(tile, t, grads, kept, vectors, g)
        for v in range(0, vectors, VECTORS):
            for row in range(0, count, ROWS):
                k = row * taps + t
                multiply(
                    columns, k * width, taps * width, 1, kept, place(0, v, width, VECTORS, kept), panel, tile.pixels,
                    min(VECTORS, vectors - v), masks, 0, sums, place(k, v, rows, VECTORS, sums), taps * panel,
                )  # fmt: skip


@borrowing
def _keep_seen(tile, t, grads, kept, vectors, g):  # type: ignore[no-untyped-def]
    """Copy transposed gradients, but 0 for the pixels at which a tap is not read."""
    size = vector.lanes(grads)
    for pixel in range(tile.pixels):
        mask = seen(tile, pixel // size, t // g.kw, t % g.kw, g)
        for v in range(vectors):
            here = place(pixel, v, PANELS * VECTORS * size, VECTORS, grads)
            values = vector.zeros(grads, 0)
            if mask >> pixel % size & 1:
                values = vector.load(grads, here)
            vector.store(kept, here, values)
