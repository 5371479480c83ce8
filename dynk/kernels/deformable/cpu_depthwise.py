"""Depth-wise weights on the CPU: what each tap multiplies a channel with at each pixel, and the output it gives."""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.common.products import CHAIN, ceil_div, tile_pixels
from dynk.kernels.deformable.cpu_points import CORNERS, READS, deform_geometry, tile_of
from dynk.kernels.deformable.cpu_samples import (
    corner_shares,
    form_samples,
    plan_image,
    plan_of,
    plan_scope,
    run_of,
)
from dynk.kernels.deformable.cpu_tables import make_outputs, neighbours, reads_as_it_is, table_step

BLOCK = 16  # channels whose samples, or filters, are formed at once
TASKS = 32  # tasks that are worth while


@borrowing
def form_filters(scope, v, width, weight, tables, first, outs, filters, g):  # type: ignore[no-untyped-def]
    """Set row (o - first) * T + t to what tap t multiplies with, for some output channels at a vector of pixels."""
    size, taps, positions, step = vector.lanes(filters), g.kh * g.kw, g.Sh * g.Sw, table_step(filters, g)
    has_tables, zero = tables.size > 0, vector.zeros(filters, 0)
    for t in range(taps):
        at = t * width + v * size
        if g.has_kernel != 0:
            shares = corner_shares(scope, at)
            corners = vector.flagged(filters, scope.flags, at, CORNERS)
            for o in range(outs):
                if has_tables:
                    kernel = vector.load(tables, vector.shift(neighbours(g), (first + o) * step))
                    values = vector.looked_up(kernel, scope.places, (at, at, at, at))
                else:
                    starts = vector.shift(neighbours(g), (first + o) * positions)
                    values = vector.gather(weight, starts, scope.elements, at, corners)
                (value,) = vector.dot(values, shares, (zero,))
                vector.store(filters, (o * taps + t) * size, value)
        else:
            for o in range(outs):
                vector.store(filters, (o * taps + t) * size, vector.broadcast(weight, (first + o) * taps + t))


@borrowing
def sampled(like, scope, at, g):  # type: ignore[no-untyped-def]
    """Return the mask of the pixels whose tap reads the kernel."""
    if g.has_kernel != 0:
        return vector.flagged(like, scope.flags, at, READS)
    return -1


@borrowing
def _parts(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the channels of a tile are shared out."""
    tiles = g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))
    return min(ceil_div(TASKS, tiles), ceil_div(g.C, BLOCK))


@borrowing
def depthwise_tasks(like, g):  # type: ignore[no-untyped-def]
    return g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like)) * _parts(like, g)


@inlined
def depthwise_task(  # type: ignore[no-untyped-def]
    task, x, weight, tables, kernel_offset, data_offset, mask, bias, out, like, geometry
):
    """Make a tile of some channels of the output."""
    g = deform_geometry(geometry)
    tiles, parts, taps = ceil_div(g.Ho * g.Wo, tile_pixels(like)), _parts(like, g), g.kh * g.kw
    first, n = task // parts % tiles * tile_pixels(like), task // parts // tiles
    size = vector.lanes(like)
    tile, plan = tile_of(n, first, g.Ho * g.Wo, like, g), plan_of(like, 0, like, 0, g)
    samples, filters = accumulators(like, BLOCK * taps * size), accumulators(like, BLOCK * taps * size)
    masks = np.empty(taps, np.int64)
    c, end = g.C * (task % parts) // parts, g.C * (task % parts + 1) // parts
    while c < end:
        run = run_of(c, end - c, g)
        plan_image(plan, tile, data_offset, c, 0, g.H, g)
        plan_scope(plan, tile, kernel_offset, c, g)
        pairs = 0
        if reads_as_it_is(tables, tile, g):
            pairs = run // 2 * 2
            make_outputs(plan, tile, x, tables, bias, c, pairs, filters, masks, out, g)
        c, run = c + pairs, run - pairs
        _make_outputs(plan, tile, x, weight, tables, mask, bias, c, run, samples, filters, masks, out, g)
        c += run


@borrowing
def _make_outputs(  # type: ignore[no-untyped-def]
    plan, tile, x, weight, tables, mask, bias, c, count, samples, filters, masks, out, g
):
    """Make the outputs of some channels, which are in one block, at the pixels of a tile."""
    size, taps, many, width = vector.lanes(samples), g.kh * g.kw, g.O // g.C, tile.rows.size
    for v in range(tile.vectors):
        for t in range(taps):
            at = t * width + v * size
            masks[t] = vector.flagged(samples, plan.image.flags, at, READS) & sampled(samples, plan.scope, at, g)
        for first in range(c, c + count, BLOCK):
            block = min(BLOCK, c + count - first)
            form_samples(plan, tile, v, x, mask, first, block, samples, 0, size, g)
            for o in range(first * many, (first + block) * many, BLOCK):
                outs = min(BLOCK, (first + block) * many - o)
                form_filters(plan.scope, v, width, weight, tables, o, outs, filters, g)
                _multiply(tile, v, first, o, outs, samples, filters, masks, bias, out, g)


@borrowing
def _multiply(tile, v, channel, first, outs, samples, filters, masks, bias, out, g):  # type: ignore[no-untyped-def]
    """Write a vector of some output channels: the products of samples, from `channel` on, and filters."""
    size, taps, plane = vector.lanes(samples), g.kh * g.kw, g.Ho * g.Wo
    here, many = tile.first + v * size, g.O // g.C
    for o in range(first, first + outs):
        at, row = (o // many - channel) * taps, (o - first) * taps
        total = vector.zeros(samples, 0)
        for start in range(0, taps, CHAIN):
            chain = vector.zeros(samples, 0)
            for t in range(start, min(start + CHAIN, taps)):
                factor, sample = vector.load(filters, (row + t) * size), vector.load(samples, (at + t) * size)
                chain = vector.where(masks[t], vector.fma(factor, sample, chain), chain)
            total = vector.add(chain, total)
        if g.has_bias != 0:
            total = vector.add(vector.broadcast(bias, o), total)
        vector.store_where(out, (tile.n * g.O + o) * plane + here, 1, total, vector.between(0, plane - here))
