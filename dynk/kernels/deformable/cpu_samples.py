"""What the taps see: samples of the image at the points of a tile, and columns of them.

Samples have a row of pixels for each channel and tap. Dense weights without kernel offsets are multiplied with them as
they are; with kernel offsets with columns, which have a row for each channel and position of the scope: what all taps
see that read the position, each by the weight with which it does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.common.products import CHAIN, VECTORS, ceil_div, everywhere, place, tile_pixels
from dynk.kernels.deformable.cpu_points import (
    CORNERS,
    READS,
    Points,
    deform_geometry,
    new_points,
    place_in_image,
    place_in_scope,
    read_at,
)

TURNED = 2**22  # numbers of all images that are turned at once, at most


class Plan(NamedTuple):
    """Where the taps of a tile read, for the blocks of channels that were asked for last."""

    image: Points
    scope: Points
    blocks: Any  # numbers of these blocks: of the image, of the scope, of the image whose reads NaN shares went by
    shares: Any  # weight of each position in each tap, by vector, position and tap; where weights are dense
    masks: Any  # of the pixels whose tap reads the position, in the same order
    everywhere: Any  # masks of all pixels
    turned: Any  # images whose pixels hold all channels one after another, or nothing
    first: int  # number of the first of these images
    scratch: Any  # what a vector of pixels sees there, and the weights with which it does


@inlined
def plan_of(like, dense, turned, first, g):  # type: ignore[no-untyped-def]
    """Return a plan of nothing yet; `dense` tells whether columns of positions are wanted."""
    size = vector.lanes(like)
    points, shares = (
        g.kh * g.kw * tile_pixels(like),
        g.kh * g.kw * g.Sh * g.Sw if dense != 0 and g.has_kernel != 0 else 0,
    )
    return Plan(
        new_points(like, points),
        new_points(like, points if g.has_kernel != 0 else 0),
        np.full(3, -1),
        accumulators(like, shares * tile_pixels(like)),
        np.zeros(shares * tile_pixels(like) // vector.lanes(like), np.int64),
        everywhere(VECTORS),
        turned,
        first,
        accumulators(like, size * (size + 4) if turned.size > 0 else 0),
    )


@borrowing
def forget(plan):  # type: ignore[no-untyped-def]
    """Make the plan one of nothing: the next tile comes."""
    plan.blocks[0] = -1
    plan.blocks[1] = -1


@borrowing
def run_of(channel, count, g):  # type: ignore[no-untyped-def]
    """Return how many of `count` channels from `channel` on are in the same blocks as the first."""
    of_image, of_scope = g.C // g.Gd, g.C // g.Gk
    return min(count, min(of_image - channel % of_image, of_scope - channel % of_scope))


@borrowing
def plan_image(plan, tile, data_offset, channel, first_row, end_row, g):  # type: ignore[no-untyped-def]
    """Have the plan tell where the taps of a channel read in the image."""
    block = channel // (g.C // g.Gd)
    if plan.blocks[0] != block:
        place_in_image(tile, data_offset, block, first_row, end_row, plan.image, g)
        plan.blocks[0] = block


@borrowing
def plan_scope(plan, tile, kernel_offset, channel, g):  # type: ignore[no-untyped-def]
    """Have the plan tell where the taps of a channel read in the scope."""
    block = channel // (g.C // g.Gk)
    if g.has_kernel == 0:
        return
    if plan.blocks[1] != block:
        place_in_scope(tile, kernel_offset, block, plan.scope, g)
        plan.blocks[2] = -1
        if plan.shares.size > 0:
            _share_out(plan, tile, g)
        plan.blocks[1] = block
    elif plan.blocks[2] >= 0 and plan.blocks[2] != plan.blocks[0]:
        _share_out(plan, tile, g)


@borrowing
def _share_out(plan, tile, g):  # type: ignore[no-untyped-def]
    """Set with which weight each tap reads each position of the scope."""
    scope, shares, masks = plan.scope, plan.shares, plan.masks
    taps, positions, width = g.kh * g.kw, g.Sh * g.Sw, tile.rows.size
    size = width // (masks.size // (taps * positions))
    fill(shares, 0)
    fill(masks, 0)
    for t in range(taps):
        for k in range(tile.pixels):
            point, v, lane = t * width + k, k // size, k % size
            for corner in range(4):
                position, share = read_at(scope, point, corner, g.Sw)
                if position >= 0:
                    at = (v * positions + position) * taps + t
                    shares[at * size + lane] = share
                    masks[at] |= 1 << lane
            share = scope.low_y[point] * scope.low_x[point]
            if scope.flags[point] & READS == READS and share != share:  # NaN for all of the column
                plan.blocks[2] = plan.blocks[0]
                if plan.blocks[0] < 0 or plan.image.flags[point] & READS == READS:  # but not of what is not read
                    at = v * positions * taps + t
                    shares[at * size + lane] = share
                    masks[at] |= 1 << lane


@borrowing
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
        if flat and g.has_data == 0 and g.has_mask == 0:
            for c in range(count):
                value = vector.load_where(x, start + c * plane + shift, 1, read)
                vector.store(samples, to + (c * taps + t) * step, value)
            continue
        if plan.turned.size > 0:
            _turn_back(plan, tile, at, channel, count, samples, to + t * step, taps * step, g)
            for c in range(count if g.has_mask != 0 else 0):
                here = to + (c * taps + t) * step
                vector.store(samples, here, vector.where(read, vector.mul(vector.load(samples, here), factor), zero))
            continue
        for c in range(count):
            here = start + c * plane
            if g.has_data != 0:
                starts = (here, here + 1, here + g.W, here + g.W + 1)
                values = vector.gather(x, starts, image.elements, at, corners)
                (value,) = vector.dot(values, shares, (zero,))
            else:
                value = vector.gather(x, here, image.elements, at, read)
            if g.has_mask != 0:
                value = vector.mul(value, factor)
            vector.store(samples, to + (c * taps + t) * step, vector.where(read, value, zero))


@borrowing
def _turn_back(plan, tile, at, channel, count, samples, to, step, g):  # type: ignore[no-untyped-def]
    """Set rows of samples, one for each channel, to what a tap sees in images that hold channels in a row."""
    image, turned, scratch, size = plan.image, plan.turned, plan.scratch, vector.lanes(samples)
    wide, shares = turned_step(samples, g), size * size
    vector.store(scratch, vector.spaced(shares, size, (0, 1, 2, 3)), corner_shares(image, at))
    start = (tile.n - plan.first) * g.H * g.W * wide + channel
    for c in range(0, count, size):
        for lane in range(size):
            flags, total = load(image.flags, at + lane), vector.zeros(samples, 0)
            if flags & READS == READS:
                here = start + load(image.elements, at + lane) * wide + c
                total = vector.mul(vector.broadcast(scratch, shares + lane), total)  # NaN where a coordinate is
                for corner in range(4):
                    if flags & CORNERS[corner] == CORNERS[corner]:
                        share = vector.broadcast(scratch, shares + corner * size + lane)
                        values = vector.load(turned, here + (corner // 2 * g.W + corner % 2) * wide)
                        total = vector.fma(share, values, total)
            vector.store(scratch, lane * size, total)
        vector.turn(scratch, 0, size, scratch, 0, size)
        for k in range(min(size, count - c)):
            vector.store(samples, to + (c + k) * step, vector.load(scratch, k * size))


@borrowing
def turned_step(like, g):  # type: ignore[no-untyped-def]
    """Return how far the pixels of images that hold channels in a row are apart."""
    return ceil_div(g.C, vector.lanes(like)) * vector.lanes(like)


@borrowing
def images_turned(like, g):  # type: ignore[no-untyped-def]
    """Return how many images are turned at once, 0 where that is not worth while or they are too large."""
    if g.has_data == 0 or g.C // g.groups < vector.lanes(like) // 2:
        return 0
    return min(g.N, TURNED // (g.H * g.W * turned_step(like, g)))


@borrowing
def turned_size(images, like, g):  # type: ignore[no-untyped-def]
    """Return how many numbers some turned images take, with a vector behind them."""
    return images * g.H * g.W * turned_step(like, g) + vector.lanes(like) if images > 0 else 0


@borrowing
def turn_task(task, x, first, turned, like, geometry):  # type: ignore[no-untyped-def]
    """Turn a row of an image."""
    g = deform_geometry(geometry)
    n, y, wide, plane = task // g.H, task % g.H, turned_step(like, g), g.H * g.W
    start, to = (first + n) * g.C * plane + y * g.W, (n * plane + y * g.W) * wide
    turn_planes(x, start, plane, g.W, g.C, turned, to, wide)


@borrowing
def turn_planes(source, start, plane, pixels, channels, turned, to, wide):  # type: ignore[no-untyped-def]
    """Set rows of `wide` numbers, from `to` on, to the channels of pixels that follow each other from `start` on."""
    size = vector.lanes(turned)
    if min(channels, pixels) >= size:
        for k in range(0, channels, size):
            for v in range(0, pixels, size):
                c, pixel = min(k, channels - size), min(v, pixels - size)  # the last ones overlap those before
                vector.turn(source, start + c * plane + pixel, plane, turned, to + pixel * wide + c, wide)
        return
    for pixel in range(pixels):
        for c in range(channels):
            store(turned, to + pixel * wide + c, load(source, start + c * plane + pixel))


@borrowing
def corner_shares(points, at):  # type: ignore[no-untyped-def]
    """Return the weights of the four positions around some points."""
    low_y, high_y = vector.load(points.low_y, at), vector.load(points.high_y, at)
    low_x, high_x = vector.load(points.low_x, at), vector.load(points.high_x, at)
    return vector.mul((low_y, low_y, high_y, high_y), (low_x, high_x, low_x, high_x))


@borrowing
def rows_of(g):  # type: ignore[no-untyped-def]
    """Return how many rows of columns a channel has where weights are dense."""
    return g.Sh * g.Sw if g.has_kernel != 0 else g.kh * g.kw


@borrowing
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


@borrowing
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


@borrowing
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
