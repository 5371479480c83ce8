"""The gradient of the samples on the CPU, from which those of the image, the offsets and the mask are made.

With dense weights it is one more product, of the transposed weights with grad_out; with kernel offsets that gives the
gradient of the columns. It is formed for a block of channels at a time, in panels of VECTORS vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill
from dynk.kernels.common.products import (
    CHAIN,
    ROWS,
    VECTORS,
    ceil_div,
    load_planes,
    load_rows,
    multiply,
    padded,
    place,
    tile_pixels,
)
from dynk.kernels.deformable.cpu_depthwise import BLOCK, form_filters
from dynk.kernels.deformable.cpu_points import is_depthwise
from dynk.kernels.deformable.cpu_samples import plan_scope, rows_of, run_of, share_positions

OUTS = 256  # output channels that are summed over at once
TERMS = 144  # rows of columns whose gradient is formed at once, about


class Room(NamedTuple):
    """What the gradient of the samples of a tile is formed in."""

    weights: Any
    grads: Any
    columns: Any  # gradient of the columns, with dense weights and kernel offsets
    samples: Any  # gradient of the samples, a row for each channel and tap
    filters: Any
    chain: Any  # part of the gradient of one channel's samples


@borrowing
def groups_of(g):  # type: ignore[no-untyped-def]
    """Return the number of groups that blocks of channels must not cross."""
    return 1 if is_depthwise(g) else g.groups


@borrowing
def grad_block(g):  # type: ignore[no-untyped-def]
    """Return how many channels' gradients are formed at once."""
    return min(g.C // groups_of(g), 32, ceil_div(TERMS, max(g.kh * g.kw, rows_of(g) if not is_depthwise(g) else 1)))


@inlined
def room_of(block, like, g):  # type: ignore[no-untyped-def]
    """Return room for the gradients of `block` channels."""
    size, width, taps, outs = vector.lanes(like), tile_pixels(like), g.kh * g.kw, min(OUTS, g.O // g.groups)
    dense = not is_depthwise(g)
    return Room(
        accumulators(like, outs * padded(block * rows_of(g)) + size if dense else 0),
        accumulators(like, width * outs if dense else 0),
        accumulators(like, width * padded(block * rows_of(g)) if dense and g.has_kernel != 0 else 0),
        accumulators(like, width * padded(block * taps)),
        accumulators(like, BLOCK * taps * size),
        accumulators(like, taps * size),
    )


@borrowing
def form_dense(  # type: ignore[no-untyped-def]
    plan, tile, grad_out, weight, tables, kernel_offset, group, c, count, room, new_weights, new_grads, g
):
    """Form the gradient of the samples of `count` channels from channel c of a group on.

    Unless they are new, the room holds the weights and grad_out of the last call, where that was all of them.
    """
    columns = room.columns if g.has_kernel != 0 else room.samples
    _form_grad_columns(plan, tile, grad_out, weight, group, c, count, room, columns, new_weights, new_grads, g)
    taps, rows, channel, done = g.kh * g.kw, rows_of(g), group * (g.C // g.groups) + c, 0
    step = VECTORS * vector.lanes(columns)
    while done < count and g.has_kernel != 0:
        run = run_of(channel + done, count - done, g)
        plan_scope(plan, tile, kernel_offset, channel + done, g)
        for k in range(done, done + run):
            for v in range(tile.vectors):
                start = place(k * rows, v, padded(count * rows), VECTORS, columns)
                to = place(k * taps, v, padded(count * taps), VECTORS, columns)
                share_positions(plan, tile, v, columns, start, step, room.samples, to, step, g)
        done += run


@borrowing
def _form_grad_columns(  # type: ignore[no-untyped-def]
    plan, tile, grad_out, weight, group, c, count, room, columns, new_weights, new_grads, g
):
    outs, width, terms = g.O // g.groups, VECTORS * vector.lanes(columns), rows_of(g)
    rows, masks = count * terms, plan.everywhere
    fill(columns, 0)
    for first in range(0, outs, OUTS):
        many, o = min(OUTS, outs - first), group * outs + first
        if new_weights or outs > OUTS:
            start = (o * (g.C // g.groups) + c) * terms
            load_rows(weight, start, g.C // g.groups * terms, many, rows, room.weights, 0)
        if new_grads or outs > OUTS:
            start = (tile.n * g.O + o) * g.Ho * g.Wo + tile.first
            load_planes(grad_out, start, g.Ho * g.Wo, many, tile.pixels, room.grads)
        for v in range(0, tile.vectors, VECTORS):
            for row in range(0, rows, ROWS):
                multiply(
                    room.weights, row, 1, rows, room.grads, place(0, v, many, VECTORS, room.grads), width, many,
                    min(VECTORS, tile.vectors - v), masks, 0, columns,
                    place(row, v, padded(rows), VECTORS, columns), width,
                )  # fmt: skip


@borrowing
def form_depthwise(  # type: ignore[no-untyped-def]
    plan, tile, grad_out, weight, tables, kernel_offset, group, c, count, room, new_weights, new_grads, g
):
    """Form the gradient of the samples of `count` channels from channel c on."""
    many, done = g.O // g.C, 0
    while done < count:
        run = run_of(c + done, count - done, g)
        plan_scope(plan, tile, kernel_offset, c + done, g)
        for v in range(tile.vectors):
            for first in range((c + done) * many, (c + done + run) * many, BLOCK):
                outs = min(BLOCK, (c + done + run) * many - first)
                form_filters(plan.scope, v, tile.rows.size, weight, tables, first, outs, room.filters, g)
                _add_products(tile, v, grad_out, first, outs, c, count, room, g)
        done += run


@borrowing
def _add_products(tile, v, grad_out, first, outs, c, count, room, g):  # type: ignore[no-untyped-def]
    """Add the gradient that some output channels send to the samples of their channels, of which c is the first."""
    samples, filters, chain = room.samples, room.filters, room.chain
    size, taps, many = vector.lanes(samples), g.kh * g.kw, g.O // g.C
    inside, step = vector.between(0, tile.pixels - v * size), VECTORS * size
    for o in range(first, first + outs):
        own = o % many
        grad = vector.load_where(grad_out, (tile.n * g.O + o) * g.Ho * g.Wo + tile.first + v * size, 1, inside)
        to = place((o // many - c) * taps, v, padded(count * taps), VECTORS, samples)
        for t in range(taps):
            product = vector.mul(vector.load(filters, ((o - first) * taps + t) * size), grad)
            if own % CHAIN > 0:
                product = vector.add(vector.load(chain, t * size), product)
            if own < many - 1 and own % CHAIN < CHAIN - 1:
                vector.store(chain, t * size, product)
            else:
                if own >= CHAIN:
                    product = vector.add(vector.load(samples, to + t * step), product)
                vector.store(samples, to + t * step, product)
