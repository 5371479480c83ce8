"""What the taps see: samples of the image at the points of a tile, and columns of them.

Samples have a row of pixels for each channel and tap. Dense weights without kernel offsets are multiplied with them as
they are; with kernel offsets with columns, which have a row for each channel and position of the scope: what all taps
see that read the position, each by the weight with which it does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.common.products import CHAIN, place, tile_pixels
from dynk.kernels.deformable.cpu_points import (
    CORNERS,
    READS,
    Points,
    place_in_image,
    place_in_scope,
    points_of,
)


class Plan(NamedTuple):
    """Where the taps of a tile read, for the blocks of channels that were asked for last."""

    image: Points
    scope: Points
    blocks: Any  # the numbers of these blocks: of the image, of the scope
    shares: Any  # weight of each position in each tap, by vector, position and tap; where weights are dense
    masks: Any  # of the pixels whose tap reads the position, in the same order


@inlined
def plan_of(like, dense, g):  # type: ignore[no-untyped-def]
    """Return a plan of nothing yet; `dense` tells whether columns of positions are wanted."""
    shares = g.kh * g.kw * g.Sh * g.Sw if dense and g.has_kernel != 0 else 0
    return Plan(
        points_of(like, True, g),
        points_of(like, g.has_kernel != 0, g),
        np.full(2, -1),
        accumulators(like, shares * tile_pixels(like)),
        np.zeros(shares * tile_pixels(like) // vector.lanes(like), np.int64),
    )


@inlined
def forget(plan):  # type: ignore[no-untyped-def]
    """Make the plan one of nothing: the next tile comes."""
    plan.blocks[0] = -1
    plan.blocks[1] = -1


@inlined
def run_of(channel, count, g):  # type: ignore[no-untyped-def]
    """Return how many of `count` channels from `channel` on are in the same blocks as the first."""
    of_image, of_scope = g.C // g.Gd, g.C // g.Gk
    return min(count, min(of_image - channel % of_image, of_scope - channel % of_scope))


@inlined
def plan_image(plan, tile, data_offset, channel, first_row, end_row, g):  # type: ignore[no-untyped-def]
    """Have the plan tell where the taps of a channel read in the image."""
    block = channel // (g.C // g.Gd)
    if plan.blocks[0] != block:
        place_in_image(tile, data_offset, block, first_row, end_row, plan.image, g)
        plan.blocks[0] = block


@inlined
def plan_scope(plan, tile, kernel_offset, channel, g):  # type: ignore[no-untyped-def]
    """Have the plan tell where the taps of a channel read in the scope."""
    block = channel // (g.C // g.Gk)
    if g.has_kernel != 0 and plan.blocks[1] != block:
        place_in_scope(tile, kernel_offset, block, plan.scope, g)
        if plan.shares.size > 0:
            _share_out(plan, tile, g)
        plan.blocks[1] = block


@inlined
def _share_out(plan, tile, g):  # type: ignore[no-untyped-def]
    """Set with which weight each tap reads each position of the scope."""
    scope, shares, masks = plan.scope, plan.shares, plan.masks
    taps, positions, width = g.kh * g.kw, g.Sh * g.Sw, tile.rows.size
    size = width // (masks.size // (taps * positions))
    for k in range(shares.size):
        shares[k] = 0
    for k in range(masks.size):
        masks[k] = 0
    for t in range(taps):
        for k in range(tile.pixels):
            point, v, lane = t * width + k, k // size, k % size
            for corner in range(4):
                own = CORNERS[corner] | READS
                if scope.flags[point] & own == own:
                    share = scope.high_y[point] if corner >= 2 else scope.low_y[point]
                    share *= scope.high_x[point] if corner % 2 == 1 else scope.low_x[point]
                    position = scope.elements[point] + corner // 2 * g.Sw + corner % 2
                    at = (v * positions + position) * taps + t
                    shares[at * size + lane] = share
                    masks[at] |= 1 << lane
            share = scope.low_y[point] * scope.low_x[point]
            if scope.flags[point] & READS == READS and share != share:  # NaN for all of the column
                at = v * positions * taps + t
                shares[at * size + lane] = share
                masks[at] |= 1 << lane


@inlined
def form_samples(plan, tile, v, x, mask, channel, count, samples, to, step, g):  # type: ignore[no-untyped-def]
    """Set row c * T + t, of vector v, to what tap t sees of the c-th channel from `channel` on; 0 where it is skipped.

    The channels are in one block. Rows start at `to` and are `step` elements apart.
    """
    image, size, plane = plan.image, vector.lanes(samples), g.H * g.W
    taps, width, pixels = g.kh * g.kw, tile.rows.size, g.Ho * g.Wo
    start, flat, inside = (tile.n * g.C + channel) * plane, tile.flat, vector.between(0, tile.pixels - v * size)
    masks_at = (tile.n * g.Gd + channel // (g.C // g.Gd)) * taps * pixels + tile.first + v * size
    zero = vector.zeros(samples, 0)
    for t in range(taps):
        at = t * width + v * size
        read = vector.flagged(samples, image.flags, at, READS)
        shift = (t // g.kw * g.dil_h - g.pad_h) * g.W + t % g.kw * g.dil_w - g.pad_w + tile.first + v * size
        corners = vector.flagged(samples, image.flags, at, CORNERS)
        shares = corner_shares(image, at)
        factor = zero
        if g.has_mask != 0:
            factor = vector.load_where(mask, masks_at + t * pixels, 1, inside)
        for c in range(count):
            here = start + c * plane
            if g.has_data != 0:
                starts = (here, here + 1, here + g.W, here + g.W + 1)
                values = vector.gather(x, starts, image.elements, at, corners)
                (value,) = vector.dot(values, shares, (zero,))
            elif flat:
                value = vector.load_where(x, here + shift, 1, read)
            else:
                value = vector.gather(x, here, image.elements, at, read)
            if g.has_mask != 0:
                value = vector.mul(value, factor)
            vector.store(samples, to + (c * taps + t) * step, vector.where(read, value, zero))


@inlined
def corner_shares(points, at):  # type: ignore[no-untyped-def]
    """Return the weights of the four positions around some points."""
    low_y, high_y = vector.load(points.low_y, at), vector.load(points.high_y, at)
    low_x, high_x = vector.load(points.low_x, at), vector.load(points.high_x, at)
    return vector.mul((low_y, low_y, high_y, high_y), (low_x, high_x, low_x, high_x))


@inlined
def rows_of(g):  # type: ignore[no-untyped-def]
    """Return how many rows of columns a channel has where weights are dense."""
    return g.Sh * g.Sw if g.has_kernel != 0 else g.kh * g.kw


@inlined
def form_columns(  # type: ignore[no-untyped-def]
    plan, tile, x, kernel_offset, data_offset, mask, channel, count, samples, columns, panel, g
):
    """Form the columns of some channels from `channel` on, in panels of `panel` vectors."""
    size, taps, rows = vector.lanes(columns), g.kh * g.kw, rows_of(g)
    done = 0
    while done < count:
        run = run_of(channel + done, count - done, g)
        plan_image(plan, tile, data_offset, channel + done, 0, g.H, g)
        plan_scope(plan, tile, kernel_offset, channel + done, g)
        for v in range(tile.vectors):
            to, step = place(done * rows, v, count * rows, panel, columns), panel * size
            if g.has_kernel != 0:
                form_samples(plan, tile, v, x, mask, channel + done, run, samples, 0, size, g)
                for c in range(run):
                    _gather_positions(plan, tile, v, samples, c * taps * size, columns, to + c * rows * step, step, g)
            else:
                form_samples(plan, tile, v, x, mask, channel + done, run, columns, to, step, g)
        done += run


@inlined
def _gather_positions(plan, tile, v, samples, start, columns, to, step, g):  # type: ignore[no-untyped-def]
    """Set the rows of a channel's positions to what the taps see that read them."""
    size, taps = vector.lanes(columns), g.kh * g.kw
    shares, masks, zero = plan.shares, plan.masks, vector.zeros(columns, 0)
    for position in range(g.Sh * g.Sw):
        at = (v * g.Sh * g.Sw + position) * taps
        total = zero
        for first in range(0, taps, CHAIN):
            chain = zero
            for t in range(first, min(first + CHAIN, taps)):
                if masks[at + t] != 0:
                    product = vector.fma(
                        vector.load(shares, (at + t) * size), vector.load(samples, start + t * size), chain
                    )
                    chain = vector.where(masks[at + t], product, chain)
            total = vector.add(chain, total)
        vector.store(columns, to + position * step, total)


@inlined
def share_positions(plan, tile, v, columns, start, step, samples, to, to_step, g):  # type: ignore[no-untyped-def]
    """Set the rows of a channel's taps to the sum of the positions that they read: its columns' gradients to theirs."""
    size, taps, positions = vector.lanes(columns), g.kh * g.kw, g.Sh * g.Sw
    shares, masks = plan.shares, plan.masks
    for t in range(taps):
        total = vector.zeros(columns, 0)
        for position in range(positions):  # four of them at most in each lane
            at = (v * positions + position) * taps + t
            if masks[at] != 0:
                product = vector.fma(
                    vector.load(shares, at * size), vector.load(columns, start + position * step), total
                )
                total = vector.where(masks[at], product, total)
        vector.store(samples, to + t * to_step, total)
