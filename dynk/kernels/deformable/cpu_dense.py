"""The output of `deformable_conv2d` on the CPU where weights are dense: a task makes a tile of a block of channels."""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.common.products import (
    CHAIN,
    ROWS,
    VECTORS,
    add_to,
    ceil_div,
    load_rows,
    multiply,
    padded,
    place,
    tile_pixels,
)
from dynk.kernels.deformable.cpu_points import READS, deform_geometry, tile_of
from dynk.kernels.deformable.cpu_samples import form_columns, plan_image, plan_of, rows_of

OUTS = 512  # output channels of a task, at most
TERMS = 256  # rows of columns that are formed at once, about


@borrowing
def block_of(channels, rows):  # type: ignore[no-untyped-def]
    """Return how many channels' columns are formed at once: blocks are of much the same size."""
    return ceil_div(channels, ceil_div(channels, min(64, max(1, TERMS // rows))))


@borrowing
def dense_tasks(like, g):  # type: ignore[no-untyped-def]
    blocks = ceil_div(g.O // g.groups, OUTS)
    return g.N * g.groups * blocks * ceil_div(g.Ho * g.Wo, tile_pixels(like))


@inlined
def dense_task(  # type: ignore[no-untyped-def]
    task, x, weight, kernel_offset, data_offset, mask, bias, turned, first_image, out, like, geometry
):
    g = deform_geometry(geometry)
    size, tiles = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like))
    outs, channels, terms = g.O // g.groups, g.C // g.groups, rows_of(g)
    blocks = ceil_div(outs, OUTS)
    group, n = task // tiles // blocks % g.groups, task // tiles // blocks // g.groups
    first = task // tiles % blocks * OUTS
    rows, block = min(OUTS, outs - first), block_of(channels, terms)
    o = group * outs + first
    tile = tile_of(n, task % tiles * tile_pixels(like), g.Ho * g.Wo, like, g)
    plan = plan_of(like, 1, turned, first_image, g)
    samples = accumulators(like, block * g.kh * g.kw * size if g.has_kernel != 0 else 0)
    columns = accumulators(like, tile_pixels(like) * block * terms)
    weights = accumulators(like, padded(rows) * block * terms + size)
    totals = accumulators(like, tile_pixels(like) * padded(rows))
    for c in range(0, channels, block):
        count, channel = min(block, channels - c), group * channels + c
        form_columns(plan, tile, x, kernel_offset, data_offset, mask, channel, count, samples, columns, VECTORS, g)
        finite = load_rows(weight, (o * channels + c) * terms, channels * terms, rows, count * terms, weights, 0)
        if finite or g.has_kernel != 0:
            for v in range(0, tile.vectors, VECTORS):
                for row in range(0, rows, ROWS):
                    multiply(
                        weights, row * count * terms, count * terms, 1,
                        columns, place(0, v, count * terms, VECTORS, columns), VECTORS * size, count * terms,
                        min(VECTORS, tile.vectors - v), plan.everywhere, 0,
                        totals, place(row, v, padded(rows), VECTORS, totals), VECTORS * size,
                    )  # fmt: skip
        else:
            chains, sums = accumulators(like, totals.size), accumulators(like, totals.size)
            for k in range(count):
                plan_image(plan, tile, data_offset, channel + k, 0, g.H, g)
                _multiply_read(plan, tile, weights, columns, k, count, chains, sums, rows, g)
            add_to(sums, chains)
            add_to(totals, sums)
    for row in range(rows):
        to = (n * g.O + o + row) * g.Ho * g.Wo + tile.first
        for v in range(tile.vectors):
            total = vector.load(totals, place(row, v, padded(rows), VECTORS, totals))
            if g.has_bias != 0:
                total = vector.add(vector.broadcast(bias, o + row), total)
            vector.store_where(out, to + v * size, 1, total, vector.between(0, tile.pixels - v * size))


@borrowing
def _multiply_read(plan, tile, weights, columns, k, channels, chains, sums, rows, g):  # type: ignore[no-untyped-def]
    """Add the products of the weights with a channel's columns, where its taps are read: of weights not all finite.

    In the order of `multiply`, whose chains go on from channel to channel: what is finite is the same to the bit.
    """
    size, taps = vector.lanes(columns), g.kh * g.kw
    flags = plan.image.flags
    for v in range(tile.vectors):
        at = place(k * taps, v, channels * taps, VECTORS, columns)
        for row in range(rows):
            to = place(row, v, padded(rows), VECTORS, sums)
            chain, total = vector.load(chains, to), vector.load(sums, to)
            for t in range(taps):
                if (k * taps + t) % CHAIN == 0:
                    chain, total = vector.zeros(columns, 0), vector.add(chain, total)
                factor = vector.broadcast(weights, (row * channels + k) * taps + t)
                product = vector.fma(factor, vector.load(columns, at + t * VECTORS * size), chain)
                read = vector.flagged(columns, flags, t * tile.rows.size + v * size, READS)
                chain = vector.where(read, product, chain)
            vector.store(chains, to, chain)
            vector.store(sums, to, total)
