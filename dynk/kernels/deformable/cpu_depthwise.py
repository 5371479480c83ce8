"""Depth-wise weights on the CPU: what each tap multiplies a channel with at each pixel, and the output that it gives.

Where a tap reads in the scope is the same for all channels of a block; what it reads there are four numbers of each
kernel. A scope of no more positions than a vector has lanes is held in a register, and looked up in by permutation:
in four of them, one for each neighbour, so that all are looked up at the same places.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import embedded, inlined
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

BLOCK = 16  # channels whose samples are formed at once
TASKS = 32  # tasks that are worth while


@inlined
def is_depthwise(g):  # type: ignore[no-untyped-def]
    """Return whether each channel is convolved by itself; blocks of channels then take no heed of groups."""
    return g.groups == g.C


@inlined
def table_step(like, g):  # type: ignore[no-untyped-def]
    """Return how far the tables of two kernels are apart."""
    return vector.lanes(like) + g.Sw + 1


@inlined
def tables_of(weight, like, g):  # type: ignore[no-untyped-def]
    """Return all kernels, each with room behind it to load it from its second row on: none where that will not do.

    That is where kernels are too large for a vector, or not finite: what is beside the kernel is read too.
    """
    size, positions, step = vector.lanes(like), g.Sh * g.Sw, table_step(like, g)
    fits = is_depthwise(g) and g.has_kernel != 0 and positions <= size
    tables = accumulators(like, g.O * step + size if fits else 0)
    check = zero = vector.zeros(like, 0)
    for o in range(g.O if fits else 0):
        kernel = vector.load_where(weight, o * positions, 1, vector.between(0, positions))
        check = vector.fma(kernel, zero, check)  # 0 unless a value is not finite
        vector.store(tables, o * step, kernel)
    return tables if vector.total(check) == 0 else accumulators(like, 0)


@inlined
def read_kernels(scope, at, weight, tables, o, g):  # type: ignore[no-untyped-def]
    """Return what kernel o holds at the four positions around some points; anything finite where there is none."""
    size = vector.lanes(scope.low_y)
    if tables.size > 0:
        start = o * (size + g.Sw + 1)
        kernel = vector.load(tables, (start, start + 1, start + g.Sw, start + g.Sw + 1))
        return vector.looked_up(kernel, scope.places, (at, at, at, at))
    start = o * g.Sh * g.Sw
    starts = (start, start + 1, start + g.Sw, start + g.Sw + 1)
    corners = vector.flagged(scope.low_y, scope.flags, at, CORNERS)
    return vector.gather(weight, starts, scope.elements, at, corners)


@inlined
def form_filters(scope, v, width, weight, tables, o, filters, g):  # type: ignore[no-untyped-def]
    """Set row t to what tap t multiplies with, for output channel o at a vector of pixels."""
    size, taps = vector.lanes(filters), g.kh * g.kw
    zero = vector.zeros(filters, 0)
    for t in range(taps):
        if g.has_kernel != 0:
            at = t * width + v * size
            values = read_kernels(scope, at, weight, tables, o, g)
            (value,) = vector.dot(values, corner_shares(scope, at), (zero,))
        else:
            value = vector.broadcast(weight, o * taps + t)
        vector.store(filters, t * size, value)


@inlined
def sampled(like, scope, at, g):  # type: ignore[no-untyped-def]
    """Return the mask of the pixels whose tap reads the kernel."""
    if g.has_kernel != 0:
        return vector.flagged(like, scope.flags, at, READS)
    return -1


@inlined
def _parts(like, g):  # type: ignore[no-untyped-def]
    """Return among how many tasks the channels of a tile are shared out."""
    tiles = g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like))
    return min(ceil_div(TASKS, tiles), ceil_div(g.C, BLOCK))


@inlined
def depthwise_tasks(like, g):  # type: ignore[no-untyped-def]
    return g.N * ceil_div(g.Ho * g.Wo, tile_pixels(like)) * _parts(like, g)


@embedded
def depthwise_task(  # type: ignore[no-untyped-def]
    task, x, weight, tables, kernel_offset, data_offset, mask, bias, out, like, geometry
):
    """Make a tile of some channels of the output."""
    g = deform_geometry(geometry)
    tiles, parts, taps, many = ceil_div(g.Ho * g.Wo, tile_pixels(like)), _parts(like, g), g.kh * g.kw, g.O // g.C
    first, n = task // parts % tiles * tile_pixels(like), task // parts // tiles
    size = vector.lanes(like)
    tile, plan = tile_of(n, first, g.Ho * g.Wo, like, g), plan_of(like, False, g)
    samples, filters = accumulators(like, BLOCK * taps * size), accumulators(like, taps * size)
    c, end = g.C * (task % parts) // parts, g.C * (task % parts + 1) // parts
    while c < end:
        run = run_of(c, end - c, g)
        plan_image(plan, tile, data_offset, c, 0, g.H, g)
        plan_scope(plan, tile, kernel_offset, c, g)
        for v in range(tile.vectors):
            for channel in range(c, c + run, BLOCK):
                block = min(BLOCK, c + run - channel)
                form_samples(plan, tile, v, x, mask, channel, block, samples, 0, size, g)
                for o in range(channel * many, (channel + block) * many):
                    form_filters(plan.scope, v, tile.rows.size, weight, tables, o, filters, g)
                    _output(plan, tile, v, o, samples, (o // many - channel) * taps * size, filters, bias, out, g)
        c += run


@inlined
def _output(plan, tile, v, o, samples, start, filters, bias, out, g):  # type: ignore[no-untyped-def]
    """Write a vector of an output channel: the products of samples and filters."""
    size, taps, plane = vector.lanes(samples), g.kh * g.kw, g.Ho * g.Wo
    total = vector.zeros(samples, 0)
    for first in range(0, taps, CHAIN):
        chain = vector.zeros(samples, 0)
        for t in range(first, min(first + CHAIN, taps)):
            at = t * tile.rows.size + v * size
            read = vector.flagged(samples, plan.image.flags, at, READS) & sampled(samples, plan.scope, at, g)
            product = vector.fma(vector.load(filters, t * size), vector.load(samples, start + t * size), chain)
            chain = vector.where(read, product, chain)
        total = vector.add(chain, total)
    if g.has_bias != 0:
        total = vector.add(vector.broadcast(bias, o), total)
    here = tile.first + v * size
    vector.store_where(out, (tile.n * g.O + o) * plane + here, 1, total, vector.between(0, plane - here))
