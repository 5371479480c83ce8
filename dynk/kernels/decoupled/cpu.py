"""Numba CPU kernels of the filter operators; those of `filter_norm` are in `cpu_norm`.

Every entry point splits its work into tasks by the geometry alone, never by the number of threads, and every result is
formed by one task in a fixed order: results do not depend on the number of threads. Inner loops are explicit vectors:
`cpu_sweep` says what a vector of positions reads, `cpu_sums` sums over taps (`cpu_sums_rows` and `cpu_sums_nine` where
rows of a filter read values side by side), `cpu_products` forms the gradients of the filters. A sum of more than CHAIN
terms is formed in stages.

Workspace: for each thread the tables of one band (`vectors_of`) with its spatial filters or, for the gradients of the
filters, its sums over channels, a few lines of results, and for gradients through sub-pixels those of some channels;
besides, one gradient of the channel filters for each band where there are several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from dynk.kernels.common import vector
from dynk.kernels.common.compile import Choice, borrowing, inlined, kernel
from dynk.kernels.common.numeric import accumulators
from dynk.kernels.decoupled.cpu_apart import room_for, take_apart
from dynk.kernels.decoupled.cpu_norm import filter_norm_backward, filter_norm_forward
from dynk.kernels.decoupled.cpu_products import merge_parts, products_band, split_products
from dynk.kernels.decoupled.cpu_sums import sum_band
from dynk.kernels.decoupled.cpu_sums_nine import are_nine, sums_of_nine
from dynk.kernels.decoupled.cpu_sums_rows import sums_of_rows
from dynk.kernels.decoupled.cpu_sweep import (
    anchors_of,
    filter_geometry,
    over_anchors,
    over_pixels,
    over_positions,
    reach_of,
    split,
    taps_of_anchors,
    taps_of_pixels,
)
from dynk.kernels.decoupled.geometry import FilterGeometry

CHANNELS_APART = 16  # whose sub-pixels a task holds at once

__all__ = ["ddf_backward", "ddf_forward", "filter_norm_backward", "filter_norm_forward"]


@kernel
def ddf_nine_forward(x, spatial, channel, out, geometry, reals):  # type: ignore[no-untyped-def]
    tasks = _forward_tasks(x, geometry)
    if tasks == 1:  # waking the threads costs more
        _forward_task(0, x, spatial, channel, out, geometry, sums_of_nine)
    else:
        for task in prange(tasks):
            _forward_task(np.int64(task), x, spatial, channel, out, geometry, sums_of_nine)


@kernel
def ddf_rows_forward(x, spatial, channel, out, geometry, reals):  # type: ignore[no-untyped-def]
    tasks = _forward_tasks(x, geometry)
    if tasks == 1:
        _forward_task(0, x, spatial, channel, out, geometry, sums_of_rows)
    else:
        for task in prange(tasks):
            _forward_task(np.int64(task), x, spatial, channel, out, geometry, sums_of_rows)


@Choice
def ddf_forward(g: FilterGeometry) -> Any:
    """DDF Eq. 2, for `ddf` and `ddf_upsample`."""
    return ddf_nine_forward if are_nine(g) else ddf_rows_forward


@kernel
def ddf_nine_backward(  # type: ignore[no-untyped-def]
    grad_out, x, spatial, channel, grad_x, grad_spatial, grad_channel, geometry, reals
):
    for task in prange(_grad_x_tasks(grad_x, geometry)):
        _grad_x_task(np.int64(task), grad_out, spatial, channel, grad_x, geometry, sums_of_nine)
    bands, tasks, images = _filters_tasks(x, grad_spatial, grad_channel, geometry)
    parts = accumulators(x, bands * grad_channel.size if images > 0 else 0)
    for task in prange(tasks):
        _filters_task(np.int64(task), grad_out, x, spatial, channel, grad_spatial, grad_channel, parts, geometry)
    for n in prange(images):
        merge_parts(np.int64(n), bands, parts, grad_channel, filter_geometry(geometry))


@kernel
def ddf_rows_backward(  # type: ignore[no-untyped-def]
    grad_out, x, spatial, channel, grad_x, grad_spatial, grad_channel, geometry, reals
):
    for task in prange(_grad_x_tasks(grad_x, geometry)):
        _grad_x_task(np.int64(task), grad_out, spatial, channel, grad_x, geometry, sums_of_rows)
    bands, tasks, images = _filters_tasks(x, grad_spatial, grad_channel, geometry)
    parts = accumulators(x, bands * grad_channel.size if images > 0 else 0)
    for task in prange(tasks):
        _filters_task(np.int64(task), grad_out, x, spatial, channel, grad_spatial, grad_channel, parts, geometry)
    for n in prange(images):
        merge_parts(np.int64(n), bands, parts, grad_channel, filter_geometry(geometry))


@Choice
def ddf_backward(g: FilterGeometry) -> Any:
    """Gradients of `ddf_forward`; an output of size 0 is not wanted."""
    return ddf_nine_backward if are_nine(g) else ddf_rows_backward


# ---- forward ---------------------------------------------------------------------------------------------------------


@borrowing
def _forward_tasks(x, geometry):  # type: ignore[no-untyped-def]
    g = filter_geometry(geometry)
    s = split(x, over_anchors(g), g.has_spatial * g.scale * g.scale * g.kh * g.kw, g.C)
    return g.N * s.bands * s.blocks


@inlined
def _forward_task(task, x, spatial, channel, out, geometry, side_by_side):  # type: ignore[no-untyped-def]
    g = filter_geometry(geometry)
    sweep = over_anchors(g)
    sub_pixels = g.scale * g.scale
    s = split(x, sweep, g.has_spatial * sub_pixels * g.kh * g.kw, g.C)
    n, c0, v0 = task // (s.bands * s.blocks), task % s.blocks * s.block, task // s.blocks % s.bands * s.band
    c1, v1 = min(c0 + s.block, g.C), min(v0 + s.band, s.vectors)
    planes = (g.H * g.W, sub_pixels * g.Ho * g.Wo)
    taps = taps_of_anchors(g)
    sum_band(
        n, c0, c1, v0, v1, x, (n * g.C + c0) * planes[0], 0, spatial, channel, out, sweep, taps, reach_of(taps),
        sub_pixels, planes, g, side_by_side,
    )  # fmt: skip


@borrowing
def _grad_x_tasks(grad_x, geometry):  # type: ignore[no-untyped-def]
    g = filter_geometry(geometry)
    s = split(grad_x, over_pixels(0, g), g.has_spatial * g.scale * g.scale * g.kh * g.kw, g.C)
    return g.N * g.stride_h * g.stride_w * s.bands * s.blocks if grad_x.size > 0 else 0


@inlined
def _grad_x_task(task, grad_out, spatial, channel, grad_x, geometry, side_by_side):  # type: ignore[no-untyped-def]
    g = filter_geometry(geometry)
    s = split(grad_x, over_pixels(0, g), g.has_spatial * g.scale * g.scale * g.kh * g.kw, g.C)
    phases = g.stride_h * g.stride_w
    n, phase = task // (phases * s.bands * s.blocks), task // (s.bands * s.blocks) % phases
    c0, v0 = task % s.blocks * s.block, task // s.blocks % s.bands * s.band
    sweep = over_pixels(phase, g)
    own = split(grad_x, sweep, 1, g.C)
    c1, v1 = min(c0 + s.block, g.C), max(v0, min(v0 + s.band, own.vectors))
    taps, size = taps_of_pixels(phase, 0, g), vector.lanes(grad_x)
    reach, top, span, count, values = reach_of(taps), 0, 0, max(1, c1 - c0), grad_out
    margin = min(reach, g.H * g.W) + 2 * size
    if g.scale > 1 and v0 < v1:
        count = min(count, CHANNELS_APART)
        top, span = anchors_of(v0 * size, v1 * size, sweep, taps)
        taps, values = taps_of_pixels(phase, span, g), room_for(grad_out, count, margin, span, g)
    planes = (g.scale * g.scale * span if span > 0 else g.Ho * g.Wo, g.H * g.W)
    for c in range(c0, c1, count):
        last, start = min(c + count, c1), (n * g.C + c) * planes[0]
        if span > 0:
            take_apart(grad_out, n * g.C + c, last - c, top, top + span, values, margin, span, g)
            start = margin - top
        sum_band(
            n, c, last, v0, v1, values, start, span, spatial, channel, grad_x, sweep, taps, reach, 1, planes, g,
            side_by_side,
        )  # fmt: skip


@borrowing
def _filters_tasks(x, grad_spatial, grad_channel, geometry):  # type: ignore[no-untyped-def]
    """Return the bands of the filters' gradients, their tasks, and the images whose bands are to be added up."""
    g = filter_geometry(geometry)
    s = split_products(x, over_positions(g), grad_spatial.size > 0, g)
    tasks = g.N * s.bands * s.blocks if grad_spatial.size > 0 or grad_channel.size > 0 else 0
    return s.bands, tasks, g.N if grad_channel.size > 0 and s.bands > 1 else 0


@inlined
def _filters_task(  # type: ignore[no-untyped-def]
    task, grad_out, x, spatial, channel, grad_spatial, grad_channel, parts, geometry
):
    g = filter_geometry(geometry)
    sweep = over_positions(g)
    s = split_products(x, sweep, grad_spatial.size > 0, g)
    n, band, c0 = task // (s.bands * s.blocks), task // s.blocks % s.bands, task % s.blocks * s.block
    products_band(
        n, c0, min(c0 + s.block, g.C), band, s, grad_out, x, spatial, channel, grad_spatial, grad_channel, parts, sweep,
        taps_of_anchors(g), g
    )  # fmt: skip
