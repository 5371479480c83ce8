"""The output of `adaptive_dilation_conv2d` on the CPU: a task makes a tile of a block of channels."""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load
from dynk.kernels.common.products import (
    PANELS,
    ROWS,
    VECTORS,
    ceil_div,
    everywhere,
    load_rows,
    multiply,
    padded,
    place,
    tile_pixels,
)
from dynk.kernels.dilated.cpu_columns import form_columns
from dynk.kernels.dilated.cpu_tiles import dilation_geometry, seen_by_tap, tile_of

OUTS = 512  # output channels of a task, at most
TERMS = 256  # rows of columns that are formed at once, about
PACKED = 4 << 20  # weights that are copied once for all tasks, at most


@borrowing
def block_of(channels, taps):  # type: ignore[no-untyped-def]
    """Return how many channels' columns are formed at once: blocks are of much the same size."""
    return ceil_div(channels, ceil_div(channels, min(64, max(1, TERMS // taps))))


@borrowing
def forward_tasks(like, g):  # type: ignore[no-untyped-def]
    blocks = ceil_div(g.O // g.groups, OUTS)
    return g.N * g.groups * blocks * ceil_div(g.Ho * g.Wo, tile_pixels(like))


@borrowing
def packed_units(like, g):  # type: ignore[no-untyped-def]
    """Return in how many pieces the weights are copied once for all tasks, 0 if each task copies what it reads."""
    pieces = ceil_div(g.C // g.groups, block_of(g.C // g.groups, g.kh * g.kw))
    units = g.groups * ceil_div(g.O // g.groups, OUTS) * pieces
    return units if units * packed_size(like, g) <= PACKED else 0


@borrowing
def packed_size(like, g):  # type: ignore[no-untyped-def]
    """Return the room for a piece: the weights of a block of outputs for a block of channels, and a vector."""
    rows = padded(min(OUTS, g.O // g.groups))
    return rows * block_of(g.C // g.groups, g.kh * g.kw) * g.kh * g.kw + vector.lanes(like)


@borrowing
def pack_weights(unit, weight, packed, finite, geometry):  # type: ignore[no-untyped-def]
    """Copy a piece of the weights, and say whether all of it is finite."""
    g = dilation_geometry(geometry)
    outs, channels, taps = g.O // g.groups, g.C // g.groups, g.kh * g.kw
    block = block_of(channels, taps)
    pieces, blocks = ceil_div(channels, block), ceil_div(outs, OUTS)
    c, first = unit % pieces * block, unit // pieces % blocks * OUTS
    start = ((unit // pieces // blocks * outs + first) * channels + c) * taps
    rows, count = min(OUTS, outs - first), min(block, channels - c) * taps
    to = unit * packed_size(packed, g)
    finite[unit] = int(load_rows(weight, start, channels * taps, rows, count, packed, to))


@inlined
def forward_task(  # type: ignore[no-untyped-def]
    task, x, weight, packed, pieces_finite, mixture, bias, out, like, geometry
):
    """Make a tile; the weights are in `packed`, unless there is no piece of them."""
    g = dilation_geometry(geometry)
    size, tiles = vector.lanes(like), ceil_div(g.Ho * g.Wo, tile_pixels(like))
    outs, channels, taps = g.O // g.groups, g.C // g.groups, g.kh * g.kw
    blocks = ceil_div(outs, OUTS)
    group, n = task // tiles // blocks % g.groups, task // tiles // blocks // g.groups
    first = task // tiles % blocks * OUTS
    rows, block = min(OUTS, outs - first), block_of(channels, taps)
    o = group * outs + first
    tile = tile_of(n, task % tiles * tile_pixels(like), g.Ho * g.Wo, 0, g.H, mixture, like, geometry)
    columns = accumulators(like, PANELS * VECTORS * size * block * taps)
    weights = packed if pieces_finite.size > 0 else accumulators(like, padded(rows) * block * taps + size)
    unit = (group * blocks + first // OUTS) * ceil_div(channels, block)
    kept = accumulators(like, ROWS * block * taps)
    totals = accumulators(like, PANELS * VECTORS * size * padded(rows))
    masks = seen_by_tap(tile, g)
    for c in range(0, channels, block):
        count = min(block, channels - c)
        form_columns(tile, x, group * channels + c, count, columns, VECTORS, g)
        if pieces_finite.size > 0:
            piece = unit + c // block
            finite, at = pieces_finite[piece] != 0, piece * packed_size(like, g)
        else:
            start, at = (o * channels + c) * taps, 0
            finite = load_rows(weight, start, channels * taps, rows, count * taps, weights, at)
        for v in range(0, tile.vectors, VECTORS):
            for row in range(0, rows, ROWS):
                _multiply_columns(
                    weights, at, kept, row, columns, count, v, tile.vectors, finite, masks, totals, rows, g
                )
    for row in range(rows):
        to = (n * g.O + o + row) * g.Ho * g.Wo + tile.first
        for v in range(tile.vectors):
            total = vector.load(totals, place(row, v, padded(rows), VECTORS, totals))
            if g.has_bias != 0:
                total = vector.add(vector.broadcast(bias, o + row), total)
            vector.store_where(out, to + v * size, 1, total, vector.between(0, tile.pixels - v * size))


@inlined
def _multiply_columns(  # type: ignore[no-untyped-def]
    weights, start, kept, row, columns, channels, v, vectors, finite, masks, totals, rows, g
):
    """Add the products of ROWS rows of weights with a panel of columns to the totals.

    Where a tap is not read its column is 0, which is enough for finite weights. Others are set to 0 themselves for the
    pixels that do not read their tap, and sums of the same numbers in the same order are the same as ever.
    """
    taps = g.kh * g.kw
    terms, width = channels * taps, VECTORS * vector.lanes(columns)
    b_at, to = place(0, v, terms, VECTORS, columns), place(row, v, padded(rows), VECTORS, totals)
    at, many = start + row * terms, min(VECTORS, vectors - v)
    if finite:
        multiply(weights, at, terms, 1, columns, b_at, width, terms, many, masks, taps * vectors, totals, to, width)
        return
    for u in range(many):
        left = vector.between(0, vector.lanes(columns))
        while left != 0:
            like_first = _keep_read(weights, at, kept, terms, left, masks, v + u, vectors, g)
            shift = u * vector.lanes(columns)
            which = everywhere(1)
            which[0] = like_first
            multiply(kept, 0, terms, 1, columns, b_at + shift, width, terms, 1, which, 0, totals, to + shift, width)
            left &= ~like_first


@borrowing
def _keep_read(weights, at, kept, terms, left, masks, v, vectors, g):  # type: ignore[no-untyped-def]
    """Copy ROWS rows of weights, but 0 for the taps that the first pixel left does not read.

    Returns the mask of the pixels left that read the same taps.
    """
    taps, alike, lane = g.kh * g.kw, left, 0
    while not left >> lane & 1:
        lane += 1
    for t in range(taps):
        mask = masks[t * vectors + v]
        is_read = mask >> lane & 1 != 0
        alike &= mask if is_read else ~mask
        for k in range(t, ROWS * terms, taps):
            kept[k] = load(weights, at + k) if is_read else 0
    return alike
