"""The gradient of dense weights on the CPU: sums over all pixels.

A task takes a block of channels and goes through a share of the tiles of all images. In its product the columns are
read number by number and grad_out, transposed, is read in panels of output channels. How tiles are shared out depends
on the shape alone.
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
    multiply,
    padded,
    place,
    tile_pixels,
    transpose_planes,
)
from dynk.kernels.deformable.cpu_dense import block_of
from dynk.kernels.deformable.cpu_points import READS, deform_geometry, tile_of
from dynk.kernels.deformable.cpu_samples import forget, form_columns, plan_image, plan_of, rows_of

OUTS = 256  # output channels of a task, at most
TASKS = 32  # tasks that are worth while
PARTIALS = 2**20  # numbers of all partial sums together, at most, where there are several of a gradient


@borrowing
def dense_shares(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the tiles of all images are shared out."""
    size, tiles = g.O * (g.C // g.groups) * rows_of(g), g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))
    return max(1, min(tiles, min(ceil_div(TASKS, _blocks(g)), PARTIALS // size)))


@borrowing
def _blocks(g):  # type: ignore[no-untyped-def]
    """Return the number of blocks of channels that the gradient has."""
    channels = g.C // g.groups
    return g.groups * ceil_div(channels, block_of(channels, rows_of(g))) * ceil_div(g.O // g.groups, OUTS)


@borrowing
def grad_dense_tasks(like, g):  # type: ignore[no-untyped-def]
    return _blocks(g) * dense_shares(like, g)


@inlined
def grad_dense_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, kernel_offset, data_offset, mask, turned, partials, grad_weight, like, geometry
):
    """Write a share's sum for a block of channels: to the gradient, or to that of its share where there are several."""
    g = deform_geometry(geometry)
    size, tiles, shares = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like)), dense_shares(like, g)
    outs, channels, terms = g.O // g.groups, g.C // g.groups, rows_of(g)
    block, share, part = block_of(channels, terms), task // _blocks(g), task % _blocks(g)
    blocks, out_blocks = ceil_div(channels, block), ceil_div(outs, OUTS)
    c, first = part % blocks * block, part // blocks % out_blocks * OUTS
    group = part // blocks // out_blocks
    count, many = min(block, channels - c), min(OUTS, outs - first)
    vectors, width = ceil_div(many, size), tile_pixels(like)
    rows, panels = padded(count) * terms, ceil_div(vectors, VECTORS)
    plan = plan_of(like, 1, turned, 0, g)
    samples = accumulators(like, count * g.kh * g.kw * size if g.has_kernel != 0 else 0)
    columns = accumulators(like, tile_pixels(like) * rows)
    grads = accumulators(like, panels * VECTORS * size * tile_pixels(like))
    recent = accumulators(like, panels * VECTORS * size * rows)
    total = accumulators(like, recent.size)
    for k in range(g.N * tiles * share // shares, g.N * tiles * (share + 1) // shares):
        tile = tile_of(k // tiles, k % tiles * tile_pixels(like), g.Ho * g.Wo, like, g)
        forget(plan)
        form_columns(
            plan, tile, x, kernel_offset, data_offset, mask, group * channels + c, count, samples, columns,
            PANELS * VECTORS, g,
        )  # fmt: skip
        start = (tile.n * g.O + group * outs + first) * g.Ho * g.Wo + tile.first
        finite = transpose_planes(grad_out, start, g.Ho * g.Wo, many, tile.pixels, grads)
        if finite or g.has_kernel != 0:
            for v in range(0, vectors, VECTORS):
                for row in range(0, count * terms, ROWS):
                    multiply(
                        columns, row * width, width, 1,
                        grads, place(0, v, width, VECTORS, grads), VECTORS * size, tile.pixels,
                        min(VECTORS, vectors - v), plan.everywhere, 0,
                        recent, place(row, v, rows, VECTORS, recent), VECTORS * size,
                    )  # fmt: skip
        else:
            for channel in range(count):
                plan_image(plan, tile, data_offset, group * channels + c + channel, 0, g.H, g)
                for t in range(terms):
                    _add_read(plan.image, tile, t, columns, channel * terms + t, grads, vectors, recent, rows)
        if k % CHAIN == CHAIN - 1:
            add_to(total, recent)
    add_to(total, recent)
    for o in range(many):
        to = ((group * outs + first + o) * channels + c) * terms
        for k in range(count * terms):
            value = load(total, place(k, o // size, rows, VECTORS, total) + o % size)
            if shares == 1:
                store(grad_weight, to + k, value)
            else:
                store(partials, share * grad_weight.size + to + k, value)


@borrowing
def _add_read(image, tile, t, columns, row, grads, vectors, sums, rows):  # type: ignore[no-untyped-def]
    """Add the products of a row of columns with grad_out at the pixels whose tap is read: of what is not all finite.

    In the order of `multiply`: what is finite of them is the same to the bit.
    """
    width = tile.rows.size
    for v in range(vectors):
        to = place(row, v, rows, VECTORS, sums)
        total = vector.zeros(sums, 0)
        for first in range(0, tile.pixels, CHAIN):
            chain = vector.zeros(columns, 0)
            for pixel in range(first, min(first + CHAIN, tile.pixels)):
                if image.flags[t * width + pixel] & READS == READS:
                    grad = vector.load(grads, place(pixel, v, width, VECTORS, grads))
                    chain = vector.fma(vector.broadcast(columns, row * width + pixel), grad, chain)
            total = vector.add(chain, total)
        vector.store(sums, to, vector.add(vector.load(sums, to), total))
