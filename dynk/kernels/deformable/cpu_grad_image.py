"""The gradient of the image on the CPU.

A task owns the planes of a block of channels, or a band of rows of them, goes through all tiles that read it, and adds
in their order. Without offsets of the data the pixels of a vector read different elements of a plane, no more than one
for each tap. With them anything may be read any number of times, so that pixels are added one after another, in
float64, to planes whose elements hold vectors of channels.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, load, store
from dynk.kernels.common.products import CHAIN, PANELS, VECTORS, ceil_div, padded, place, tile_pixels
from dynk.kernels.deformable.cpu_depthwise import sampled
from dynk.kernels.deformable.cpu_grad_samples import grad_block, groups_of, room_of
from dynk.kernels.deformable.cpu_points import CORNERS, READS, deform_geometry, is_depthwise, tile_of
from dynk.kernels.deformable.cpu_samples import forget, plan_image, plan_of, plan_scope, run_of
from dynk.kernels.deformable.cpu_tables import reads_as_it_is, spread_grads

PLANES = 2**19  # numbers of the gradient that a task holds, at most, but for a single row of a few channels
TASKS = 8  # tasks that are worth while
CHANNELS = 8  # that an element of a plane holds in a vector, with offsets of the data


@borrowing
def _sets(g):  # type: ignore[no-untyped-def]
    """Return how many sums a pixel has: taps are shared out among them, no more than CHAIN to each."""
    return 1 if g.has_data != 0 else ceil_div(g.kh * g.kw, CHAIN)


@borrowing
def _block_and_rows(g):  # type: ignore[no-untyped-def]
    """Return the channels and the rows of a task."""
    channels, row = g.C // groups_of(g), _sets(g) * g.W
    block = min(channels, max(grad_block(g), ceil_div(channels, ceil_div(TASKS, g.N * groups_of(g)))))
    block = min(block, max(CHANNELS, PLANES // (row * g.H) // CHANNELS * CHANNELS))
    held = ceil_div(block, CHANNELS) * CHANNELS if g.has_data != 0 else block
    return block, min(g.H, max(1, PLANES // (row * held)))


@borrowing
def grad_image_tasks(g):  # type: ignore[no-untyped-def]
    block, rows = _block_and_rows(g)
    return g.N * groups_of(g) * ceil_div(g.C // groups_of(g), block) * ceil_div(g.H, rows)


@inlined
def grad_image_task(  # type: ignore[no-untyped-def]
    task, form, grad_out, weight, tables, kernel_offset, data_offset, mask, grad_x, like, geometry
):
    g = deform_geometry(geometry)
    channels, most = g.C // groups_of(g), grad_block(g)
    block, rows = _block_and_rows(g)
    bands, blocks = ceil_div(g.H, rows), ceil_div(channels, block)
    first_row, c = task % bands * rows, task // bands % blocks * block
    group, n = task // bands // blocks % groups_of(g), task // bands // blocks // groups_of(g)
    end_row, count = min(g.H, first_row + rows), min(block, channels - c)
    band = (end_row - first_row) * g.W
    held = ceil_div(count, CHANNELS) * CHANNELS
    planes = accumulators(like, 0 if g.has_data != 0 else _sets(g) * count * band)
    elements = np.zeros(held * band if g.has_data != 0 else 0, np.float64)
    turned = np.zeros(vector.lanes(like) * min(most, count) if g.has_data != 0 else 0, np.float64)
    masks = np.empty(g.kh * g.kw * PANELS * VECTORS, np.int64)
    room, plan = room_of(min(most, count), like, g), plan_of(like, 0 if is_depthwise(g) else 1, like, 0, g)
    first, end = _readers(first_row, end_row, g)
    for pixel in range(first, end, tile_pixels(like)):
        tile = tile_of(n, pixel, end, like, g)
        forget(plan)
        if reads_as_it_is(tables, tile, g):
            _spread_blocks(
                plan, tile, grad_out, tables, kernel_offset, data_offset, c, count, planes, masks, first_row, end_row, g
            )
        for k in range(0, 0 if reads_as_it_is(tables, tile, g) else count, most):
            many, channel = min(most, count - k), group * channels + c + k
            new = pixel == first or count > most
            form(plan, tile, grad_out, weight, tables, kernel_offset, group, c + k, many, room, new, k == 0, g)
            done = 0
            while done < many:
                run = run_of(channel + done, many - done, g)
                plan_image(plan, tile, data_offset, channel + done, first_row, end_row, g)
                plan_scope(plan, tile, kernel_offset, channel + done, g)
                for v in range(tile.vectors):
                    at = place(done * g.kh * g.kw, v, padded(many * g.kh * g.kw), VECTORS, room.samples)
                    if g.has_data != 0:
                        _scatter(
                            plan, tile, v, mask, channel + done, run, room.samples, at, turned,
                            elements, k + done, held, first_row, end_row, g,
                        )  # fmt: skip
                    else:
                        _spread(
                            plan, tile, v, mask, channel + done, run, room.samples, at,
                            planes, (k + done) * band - first_row * g.W, count * band, band, g,
                        )  # fmt: skip
                done += run
    start = ((n * g.C + group * channels + c) * g.H + first_row) * g.W
    if g.has_data != 0:
        for k in range(count):
            for element in range(band):
                store(grad_x, start + k * g.H * g.W + element, elements[element * held + k])
    else:
        _write_planes(planes, count, band, grad_x, start, g)


@borrowing
def _spread_blocks(  # type: ignore[no-untyped-def]
    plan, tile, grad_out, tables, kernel_offset, data_offset, c, count, planes, masks, first_row, end_row, g
):
    """Add what kernels in tables send to the elements that their taps read."""
    band, done = (end_row - first_row) * g.W, 0
    while done < count:
        run = run_of(c + done, count - done, g)
        plan_image(plan, tile, data_offset, c + done, first_row, end_row, g)
        plan_scope(plan, tile, kernel_offset, c + done, g)
        spread_grads(plan, tile, grad_out, tables, c + done, run, planes, done * band - first_row * g.W, band, masks, g)
        done += run


@borrowing
def _readers(first_row, end_row, g):  # type: ignore[no-untyped-def]
    """Return the first pixel that may read some rows of the image, and the end of these pixels."""
    if g.has_data != 0:
        return 0, g.Ho * g.Wo
    first = max(0, ceil_div(first_row + g.pad_h - (g.kh - 1) * g.dil_h, g.stride_h))
    end = min(g.Ho, ceil_div(end_row + g.pad_h, g.stride_h))
    return first * g.Wo, max(first, end) * g.Wo


@borrowing
def _spread(  # type: ignore[no-untyped-def]
    plan, tile, v, mask, channel, count, samples, at, planes, to, set_step, step, g
):
    """Add the gradients of some channels' samples to the elements that their taps read."""
    image, size, width, taps = plan.image, vector.lanes(samples), tile.rows.size, g.kh * g.kw
    flat, inside = tile.flat, vector.between(0, tile.pixels - v * size)
    masks_at = (tile.n * g.Gd + channel // (g.C // g.Gd)) * taps * g.Ho * g.Wo + tile.first + v * size
    for t in range(taps):
        point = t * width + v * size
        read = vector.flagged(samples, image.flags, point, READS) & sampled(samples, plan.scope, point, g)
        shift = (t // g.kw * g.dil_h - g.pad_h) * g.W + t % g.kw * g.dil_w - g.pad_w + tile.first + v * size
        for c in range(count):
            value = vector.load(samples, at + (c * taps + t) * VECTORS * size)
            if g.has_mask != 0:
                value = vector.mul(value, vector.load_where(mask, masks_at + t * g.Ho * g.Wo, 1, inside))
            here = to + t // CHAIN * set_step + c * step
            if flat:
                total = vector.add(vector.load_where(planes, here + shift, 1, read), value)
                vector.store_where(planes, here + shift, 1, total, read)
            else:
                total = vector.add(vector.gather(planes, here, image.elements, point, read), value)
                vector.scatter(planes, here, image.elements, point, total, read)


@borrowing
def _scatter(  # type: ignore[no-untyped-def]
    plan, tile, v, mask, channel, count, samples, at, turned, elements, first, held, first_row, end_row, g
):
    """Add the gradients of some channels' samples to the four elements around the point that their taps read."""
    image, scope, size, width, taps = plan.image, plan.scope, vector.lanes(samples), tile.rows.size, g.kh * g.kw
    masks_at = (tile.n * g.Gd + channel // (g.C // g.Gd)) * taps * g.Ho * g.Wo + tile.first
    for t in range(taps):
        _turn(samples, at + t * VECTORS * size, taps * VECTORS * size, turned, count)
        for k in range(v * size, min(v * size + size, tile.pixels)):
            point = t * width + k
            flags = image.flags[point]
            if flags & READS != READS or (g.has_kernel != 0 and scope.flags[point] & READS != READS):
                continue
            for corner in range(4):
                row = image.rows[point] + corner // 2
                if flags & CORNERS[corner] != CORNERS[corner] or row < first_row or row >= end_row:
                    continue
                share = image.high_y[point] if corner >= 2 else image.low_y[point]
                share *= image.high_x[point] if corner % 2 == 1 else image.low_x[point]
                if g.has_mask != 0:
                    share *= load(mask, masks_at + t * g.Ho * g.Wo + k)
                factor = vector.filled(elements, 0, np.float64(share))
                to = ((row - first_row) * g.W + image.columns[point] + corner % 2) * held + first
                for c in range(0, count, CHANNELS):
                    own = vector.between(0, count - c)
                    value = vector.load_where(turned, (k - v * size) * count + c, 1, own)
                    total = vector.fma(factor, value, vector.load_where(elements, to + c, 1, own))
                    vector.store_where(elements, to + c, 1, total, own)


@borrowing
def _turn(samples, start, step, turned, count):  # type: ignore[no-untyped-def]
    """Copy a vector of each of some channels, so that each pixel of it holds all channels."""
    size = vector.lanes(samples)
    if count >= size:
        for k in range(0, count, size):
            c = min(k, count - size)  # the last ones overlap those before
            vector.turn(samples, start + c * step, step, turned, c, count)
        return
    for c in range(count):
        for lane in range(size):
            store(turned, lane * count + c, load(samples, start + c * step + lane))


@borrowing
def _write_planes(planes, count, band, grad_x, to, g):  # type: ignore[no-untyped-def]
    """Write the sums of a band of some channels, which start at `to` of the gradient."""
    size = vector.lanes(planes)
    for c in range(count):
        for k in range(0, band, size):
            mask = vector.between(0, band - k)
            total = vector.load_where(planes, c * band + k, 1, mask)
            for which in range(1, _sets(g)):
                total = vector.add(vector.load_where(planes, (which * count + c) * band + k, 1, mask), total)
            vector.store_where(grad_x, to + c * g.H * g.W + k, 1, total, mask)
