"""The output of `adaptive_dilation_conv2d` on the CPU: a task makes a tile of a block of channels."""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.dilated.cpu_columns import form_columns, place
from dynk.kernels.dilated.cpu_products import ROWS, load_rows, multiply, padded
from dynk.kernels.dilated.cpu_tiles import (
    PANELS,
    VECTORS,
    ceil_div,
    dilation_geometry,
    seen_by_tap,
    tile_of,
    tile_pixels,
)

OUTS = 512  # output channels of a task, at most
TERMS = 256  # rows of columns that are formed at once, about


@inlined
def block_of(channels, taps):  # type: ignore[no-untyped-def]
    """Return how many channels' columns are formed at once: blocks are of much the same size."""
    return ceil_div(channels, ceil_div(channels, min(64, max(1, TERMS // taps))))


@inlined
def forward_tasks(like, g):  # type: ignore[no-untyped-def]
    blocks = ceil_div(g.O // g.groups, OUTS)
    return g.N * g.groups * blocks * ceil_div(g.Ho * g.Wo, tile_pixels(like))


@inlined
def forward_task(task, x, weight, dilation_weights, bias, out, like, geometry):  # type: ignore[no-untyped-def]
    g = dilation_geometry(geometry)
    size, tiles = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like))
    outs, channels, taps = g.O // g.groups, g.C // g.groups, g.kh * g.kw
    blocks = ceil_div(outs, OUTS)
    group, n = task // tiles // blocks % g.groups, task // tiles // blocks // g.groups
    first = task // tiles % blocks * OUTS
    rows, block = min(OUTS, outs - first), block_of(channels, taps)
    o = group * outs + first
    tile = tile_of(n, task % tiles * tile_pixels(like), g.Ho * g.Wo, 0, g.H, dilation_weights, like, geometry)
    columns = accumulators(like, PANELS * VECTORS * size * block * taps)
    weights = accumulators(like, padded(rows) * block * taps + size)
    totals = accumulators(like, PANELS * VECTORS * size * padded(rows))
    masks = seen_by_tap(tile, g)
    for c in range(0, channels, block):
        count = min(block, channels - c)
        form_columns(tile, x, group * channels + c, count, columns, VECTORS, g)
        finite = load_rows(weight, (o * channels + c) * taps, channels * taps, rows, count * taps, weights)
        for v in range(0, tile.vectors, VECTORS):
            for row in range(0, rows, ROWS):
                _multiply_columns(weights, row, columns, count, v, tile.vectors, finite, masks, totals, rows, g)
    for row in range(rows):
        to = (n * g.O + o + row) * g.Ho * g.Wo + tile.first
        for v in range(tile.vectors):
            total = vector.load(totals, place(row, v, padded(rows), VECTORS, totals))
            if g.has_bias != 0:
                total = vector.add(vector.broadcast(bias, o + row), total)
            vector.store_where(out, to + v * size, 1, total, vector.between(0, tile.count - v * size))


@inlined
def _multiply_columns(  # type: ignore[no-untyped-def]
    weights, row, columns, channels, v, vectors, finite, masks, totals, rows, g
):
    """Add the products of ROWS rows of weights with a panel of columns to the totals.

    Where a tap is not read its column is 0. That is enough for finite weights; others are multiplied tap by tap, and
    products that there are none of are left out.
    """
    taps = g.kh * g.kw
    terms, width = channels * taps, VECTORS * vector.lanes(columns)
    many = min(VECTORS, vectors - v)
    at, b_at = row * terms, place(0, v, terms, VECTORS, columns)
    to = place(row, v, padded(rows), VECTORS, totals)
    if finite:
        multiply(weights, at, terms, 1, columns, b_at, width, terms, many, masks, taps * vectors, totals, to, width)
    else:
        for t in range(taps):
            multiply(
                weights, at + t, terms, taps, columns, b_at + t * width, taps * width, channels, many,
                masks, t * vectors + v, totals, to, width,
            )  # fmt: skip
