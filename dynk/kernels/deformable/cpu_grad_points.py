"""The gradients of the offsets and of the mask on the CPU: sums over the channels at the pixels of a tile.

The derivatives of each sample by its coordinates are formed before anything is multiplied with them: infinite gradients
times a difference are not the difference of infinite numbers.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.common.products import CHAIN, VECTORS, add_to, ceil_div, padded, place, tile_pixels
from dynk.kernels.deformable.cpu_depthwise import sampled
from dynk.kernels.deformable.cpu_grad_samples import grad_block, groups_of, room_of
from dynk.kernels.deformable.cpu_points import (
    CORNERS,
    MOVED,
    READS,
    deform_geometry,
    is_depthwise,
    tile_of,
)
from dynk.kernels.deformable.cpu_samples import (
    corner_shares,
    form_samples,
    plan_image,
    plan_of,
    plan_scope,
    rows_of,
    run_of,
)
from dynk.kernels.deformable.cpu_tables import add_slopes, neighbours, reads_as_it_is, slope_weights, slopes_of


@borrowing
def grad_points_tasks(like, g):  # type: ignore[no-untyped-def]
    return g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))


@inlined
def grad_points_task(  # type: ignore[no-untyped-def]
    task, form, grad_out, x, weight, tables, kernel_offset, data_offset, mask,
    grad_kernel_offset, grad_data_offset, grad_mask, like, geometry,
):  # fmt: skip
    g = deform_geometry(geometry)
    tiles, taps, width = ceil_div(g.Ho * g.Wo, tile_pixels(like)), g.kh * g.kw, tile_pixels(like)
    of_image, of_scope = grad_data_offset.size + grad_mask.size > 0, grad_kernel_offset.size > 0
    dense, most, channels = not is_depthwise(g), grad_block(g), g.C // groups_of(g)
    tile = tile_of(task // tiles, task % tiles * width, g.Ho * g.Wo, like, g)
    plan, room = plan_of(like, 1 if dense else 0, like, 0, g), room_of(most, like, g)
    samples = accumulators(like, most * taps * vector.lanes(like) if of_scope else 0)
    places = np.zeros(taps * width if of_scope and dense else 0, np.int64)
    image_sums, scope_sums = accumulators(like, 3 * taps * width), accumulators(like, 2 * taps * width)
    recent_image, recent_scope = accumulators(like, image_sums.size), accumulators(like, scope_sums.size)
    blocks = 0
    for group in range(groups_of(g)):
        c = 0
        while c < channels:
            channel = group * channels + c
            count = run_of(channel, min(most, channels - c), g)
            plan_image(plan, tile, data_offset, channel, 0, g.H, g)
            plan_scope(plan, tile, kernel_offset, channel, g)
            if of_image or dense:
                form(plan, tile, grad_out, weight, tables, kernel_offset, group, c, count, room, True, c == 0, g)
            if of_image:
                for v in range(tile.vectors):
                    _add_image(plan, tile, v, x, mask, channel, count, room.samples, recent_image, g)
            if of_scope:
                if dense:
                    _place_rows(plan.scope, tile, VECTORS * vector.lanes(like), vector.lanes(like), places, g)
                for v in range(tile.vectors):
                    if not reads_as_it_is(tables, tile, g):
                        form_samples(plan, tile, v, x, mask, channel, count, samples, 0, vector.lanes(like), g)
                    _add_scope(
                        plan, tile, v, grad_out, x, weight, tables, channel, count, samples, room.columns, places,
                        recent_scope, g,
                    )  # fmt: skip
            c += count
            blocks += 1
            image_ends, scope_ends = (channel + count) % (g.C // g.Gd) == 0, (channel + count) % (g.C // g.Gk) == 0
            if blocks % CHAIN == 0 or image_ends:
                add_to(image_sums, recent_image)
            if blocks % CHAIN == 0 or scope_ends:
                add_to(scope_sums, recent_scope)
            if image_ends:
                _write_image(tile, channel // (g.C // g.Gd), image_sums, grad_data_offset, grad_mask, g)
            if scope_ends and of_scope:
                _write_scope(tile, channel // (g.C // g.Gk), scope_sums, grad_kernel_offset, g)


@borrowing
def _add_image(plan, tile, v, x, mask, channel, count, samples, sums, g):  # type: ignore[no-untyped-def]
    """Add what some channels give to the gradients of the offsets of the data and of the mask."""
    image, size, width, taps, plane = plan.image, vector.lanes(samples), tile.rows.size, g.kh * g.kw, g.H * g.W
    inside, zero = vector.between(0, tile.pixels - v * size), vector.zeros(samples, 0)
    masks_at = (tile.n * g.Gd + channel // (g.C // g.Gd)) * taps * g.Ho * g.Wo + tile.first + v * size
    for t in range(taps):
        at = t * width + v * size
        corners, shares = vector.flagged(samples, image.flags, at, CORNERS), corner_shares(image, at)
        ends, sides = slope_weights(image, at)
        down = across = both = zero
        factor = zero
        if g.has_mask != 0:
            factor = vector.load_where(mask, masks_at + t * g.Ho * g.Wo, 1, inside)
        for c in range(count):
            here = (tile.n * g.C + channel + c) * plane
            grad = vector.load(samples, place(c * taps + t, v, padded(count * taps), VECTORS, samples))
            if g.has_data != 0:
                starts = (here, here + 1, here + g.W, here + g.W + 1)
                values = vector.gather(x, starts, image.elements, at, corners)
                (value,) = vector.dot(values, shares, (zero,))
                slope, other = slopes_of(values, ends, sides)
                product = grad
                if g.has_mask != 0:
                    product = vector.mul(grad, factor)
                down, across = vector.fma(product, slope, down), vector.fma(product, other, across)
            else:
                value = vector.gather(x, here, image.elements, at, corners[0])
            both = vector.fma(grad, value, both)
        there = vector.flagged(samples, image.flags, at, (MOVED[0], MOVED[1], READS))
        is_sampled = sampled(samples, plan.scope, at, g)
        there = vector.masked(there, (is_sampled, is_sampled, is_sampled))
        terms = vector.where(there, (down, across, both), (zero, zero, zero))
        rows = vector.spaced(t * 3 * width + v * size, width, (0, 1, 2))
        vector.store(sums, rows, vector.add(vector.load(sums, rows), terms))


@borrowing
def _place_rows(scope, tile, step, size, places, g):  # type: ignore[no-untyped-def]
    """Set where each tap's low position stands in the columns of a channel, from a vector's first element on."""
    for k in range(places.size):
        places[k] = scope.elements[k] * step + k % tile.rows.size % size


@borrowing
def _add_scope(  # type: ignore[no-untyped-def]
    plan, tile, v, grad_out, x, weight, tables, channel, count, samples, columns, places, sums, g
):
    """Add what some channels give to the gradients of the offsets of the kernel."""
    scope, size, width, taps = plan.scope, vector.lanes(samples), tile.rows.size, g.kh * g.kw
    inside, zero, many = vector.between(0, tile.pixels - v * size), vector.zeros(samples, 0), g.O // g.C
    step = VECTORS * size
    if reads_as_it_is(tables, tile, g):  # whose channels are far apart
        ahead, down = tile.first + v * size + size, ((g.kh - 1) * g.dil_h - g.pad_h) * g.W
        for c in range(tile.n * g.C + channel, tile.n * g.C + channel + count):
            vector.prefetch(grad_out, c * g.Ho * g.Wo + ahead)
            vector.prefetch(x, c * g.H * g.W + ahead + down)
    for t in range(taps):
        at = t * width + v * size
        corners = vector.flagged(samples, scope.flags, at, CORNERS)
        ends, sides = slope_weights(scope, at)
        down = across = zero
        if tables.size > 0 and many == 1:
            start, first = tile.n * g.C + channel, tile.first + v * size
            here = start * g.Ho * g.Wo + first
            there = vector.flagged(samples, plan.image.flags, at, READS)
            if reads_as_it_is(tables, tile, g):
                shift = (t // g.kw * g.dil_h - g.pad_h) * g.W + t % g.kw * g.dil_w - g.pad_w
                down, across = add_slopes(
                    scope.places, at, ends, sides, tables, channel, count, grad_out, here,
                    x, start * g.H * g.W + first + shift, g.H * g.W, there, g,
                )  # fmt: skip
            else:
                down, across = add_slopes(
                    scope.places, at, ends, sides, tables, channel, count, grad_out, here,
                    samples, t * size, taps * size, there, g,
                )  # fmt: skip
        else:
            for c in range(count):
                sample, slope, other = vector.load(samples, (c * taps + t) * size), zero, zero
                if columns.size > 0:
                    here = place(c * rows_of(g), v, padded(count * rows_of(g)), VECTORS, columns)
                    starts = (here, here + step, here + g.Sw * step, here + (g.Sw + 1) * step)
                    values = vector.gather(columns, starts, places, at, corners)
                    slope, other = slopes_of(values, ends, sides)
                else:
                    end = (channel + c + 1) * many
                    for first in range((channel + c) * many, end, CHAIN):
                        chain_y = chain_x = zero
                        for o in range(first, min(first + CHAIN, end)):
                            here = (tile.n * g.O + o) * g.Ho * g.Wo + tile.first + v * size
                            grad = vector.load_where(grad_out, here, 1, inside)
                            starts = vector.shift(neighbours(g), o * g.Sh * g.Sw)
                            values = vector.gather(weight, starts, scope.elements, at, corners)
                            by_y, by_x = slopes_of(values, ends, sides)
                            chain_y, chain_x = vector.fma(grad, by_y, chain_y), vector.fma(grad, by_x, chain_x)
                        slope, other = vector.add(chain_y, slope), vector.add(chain_x, other)
                down, across = vector.fma(sample, slope, down), vector.fma(sample, other, across)
        read = vector.flagged(samples, plan.image.flags, at, READS)
        there = vector.masked(vector.flagged(samples, scope.flags, at, MOVED), (read, read))
        terms = vector.where(there, (down, across), (zero, zero))
        rows = vector.spaced(t * 2 * width + v * size, width, (0, 1))
        vector.store(sums, rows, vector.add(vector.load(sums, rows), terms))


@borrowing
def _write_image(tile, block, sums, grad_data_offset, grad_mask, g):  # type: ignore[no-untyped-def]
    """Write the gradients of a block's offsets of the data and of its mask, and clear the sums."""
    size, width, taps, plane = vector.lanes(sums), tile.rows.size, g.kh * g.kw, g.Ho * g.Wo
    zero = vector.zeros(sums, 0)
    for t in range(taps):
        point = (tile.n * g.Gd + block) * taps + t
        for v in range(tile.vectors):
            here, inside = tile.first + v * size, vector.between(0, tile.pixels - v * size)
            rows = vector.spaced(t * 3 * width + v * size, width, (0, 1, 2))
            down, across, both = vector.load(sums, rows)
            vector.store(sums, rows, (zero, zero, zero))
            if grad_data_offset.size > 0:
                to = 2 * point * plane + here
                vector.store_where(grad_data_offset, (to, to + plane), 1, (down, across), (inside, inside))
            if grad_mask.size > 0:
                vector.store_where(grad_mask, point * plane + here, 1, both, inside)


@borrowing
def _write_scope(tile, block, sums, grad_kernel_offset, g):  # type: ignore[no-untyped-def]
    """Write the gradients of a block's offsets of the kernel, and clear the sums."""
    size, width, taps, plane = vector.lanes(sums), tile.rows.size, g.kh * g.kw, g.Ho * g.Wo
    zero = vector.zeros(sums, 0)
    for t in range(taps):
        for v in range(tile.vectors):
            inside = vector.between(0, tile.pixels - v * size)
            rows = vector.spaced(t * 2 * width + v * size, width, (0, 1))
            values = vector.load(sums, rows)
            vector.store(sums, rows, (zero, zero))
            to = ((tile.n * g.Gk + block) * taps + t) * 2 * plane + tile.first + v * size
            vector.store_where(grad_kernel_offset, (to, to + plane), 1, values, (inside, inside))
