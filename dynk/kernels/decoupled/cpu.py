"""Numba CPU kernels of the filter operators; those of `filter_norm` are in `cpu_norm`.

Every entry point splits its work into tasks by the geometry alone, never by the number of threads, and every result is
formed by one task in a fixed order: results do not depend on the number of threads. Inner loops run along rows, with
the columns where a tap is inside the image known beforehand, so that LLVM vectorises them without fast-math. A sum of
more than CHAIN terms is formed in stages.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import inlined, kernel
from dynk.kernels.common.numeric import accumulators, fill, load, store
from dynk.kernels.decoupled.cpu_norm import filter_norm_backward, filter_norm_forward
from dynk.kernels.decoupled.cpu_sums import sum_band
from dynk.kernels.decoupled.cpu_sweep import (
    filter_geometry,
    over_anchors,
    over_pixels,
    split,
    taps_of_anchors,
    taps_of_pixels,
)

__all__ = ["ddf_backward", "ddf_forward", "filter_norm_backward", "filter_norm_forward"]

CHAIN = 64
# A task of the forward kernel: few enough rows and channels for many tasks, enough channels for each filter row read.
ROWS = 16
CHANNELS = 32


@kernel
def ddf_forward(x, spatial, channel, out, geometry, reals):  # type: ignore[no-untyped-def]
    """DDF Eq. 2, for `ddf` and `ddf_upsample`."""
    g = filter_geometry(geometry)
    s = split(x, over_anchors(g), g.has_spatial * g.scale * g.scale * g.kh * g.kw, g.C)
    tasks = g.N * s.bands * s.blocks
    if tasks == 1:  # waking the threads costs more
        _forward_task(0, x, spatial, channel, out, geometry)
    else:
        for task in prange(tasks):
            _forward_task(np.int64(task), x, spatial, channel, out, geometry)


@kernel
def ddf_backward(  # type: ignore[no-untyped-def]
    grad_out, x, spatial, channel, grad_x, grad_spatial, grad_channel, geometry, reals
):
    """Gradients of `ddf_forward`; an output of size 0 is not wanted."""
    g = filter_geometry(geometry)
    if grad_x.size > 0:
        phases = g.stride_h * g.stride_w
        s = split(grad_x, over_pixels(0, g), g.has_spatial * g.scale * g.scale * g.kh * g.kw, g.C)
        for task in prange(g.N * phases * s.bands * s.blocks):
            _grad_x_task(np.int64(task), grad_out, spatial, channel, grad_x, geometry)
    if grad_spatial.size > 0:
        for task in prange(g.N * g.G * g.Ho):
            _grad_spatial_task(np.int64(task), grad_out, x, channel, grad_spatial, geometry)
    if grad_channel.size > 0:
        for task in prange(g.N * _ceil(g.C, _sharing_channels(g))):
            _grad_channel_task(np.int64(task), grad_out, x, spatial, grad_channel, geometry)


# ---- forward ---------------------------------------------------------------------------------------------------------


@inlined
def _forward_task(task, x, spatial, channel, out, geometry):  # type: ignore[no-untyped-def]
    g = filter_geometry(geometry)
    sweep = over_anchors(g)
    sub_pixels = g.scale * g.scale
    s = split(x, sweep, g.has_spatial * sub_pixels * g.kh * g.kw, g.C)
    n, c0, v0 = task // (s.bands * s.blocks), task % s.blocks * s.block, task // s.blocks % s.bands * s.band
    c1, v1 = min(c0 + s.block, g.C), min(v0 + s.band, s.vectors)
    planes = (g.H * g.W, sub_pixels * g.Ho * g.Wo)
    sum_band(n, c0, c1, v0, v1, x, spatial, channel, out, sweep, taps_of_anchors(g), sub_pixels, planes, g)


@inlined
def _grad_x_task(task, grad_out, spatial, channel, grad_x, geometry):  # type: ignore[no-untyped-def]
    g = filter_geometry(geometry)
    s = split(grad_x, over_pixels(0, g), g.has_spatial * g.scale * g.scale * g.kh * g.kw, g.C)
    phases = g.stride_h * g.stride_w
    n, phase = task // (phases * s.bands * s.blocks), task // (s.bands * s.blocks) % phases
    c0, v0 = task % s.blocks * s.block, task // s.blocks % s.bands * s.band
    sweep = over_pixels(phase, g)
    own = split(grad_x, sweep, 1, g.C)
    c1, v1 = min(c0 + s.block, g.C), max(v0, min(v0 + s.band, own.vectors))
    planes = (g.scale * g.scale * g.Ho * g.Wo, g.H * g.W)
    sum_band(n, c0, c1, v0, v1, grad_out, spatial, channel, grad_x, sweep, taps_of_pixels(phase, g), 1, planes, g)


@inlined
def _grad_spatial_task(task, grad_out, x, channel, grad_spatial, geometry):  # type: ignore[no-untyped-def]
    """Sum over the channels of a group, for one row of anchors and every tap."""
    g = filter_geometry(geometry)
    y, group, n = task % g.Ho, task // g.Ho % g.G, task // g.Ho // g.G
    columns = _columns(g)
    rows, totals = accumulators(x, g.kw * g.Wo), accumulators(x, g.kw * g.Wo)  # a row for each tap of a kernel row
    for pq in range(g.scale * g.scale):
        for i in range(g.kh):
            _grad_spatial_rows(n, group, y, pq, i, grad_out, x, channel, rows, totals, columns, g)
            first_tap = ((n * g.G + group) * g.scale * g.scale + pq) * g.kh * g.kw + i * g.kw
            for j in range(g.kw):
                start = ((first_tap + j) * g.Ho + y) * g.Wo
                for k in range(g.Wo):
                    store(grad_spatial, start + k, load(rows, j * g.Wo + k))


@inlined
def _grad_spatial_rows(  # type: ignore[no-untyped-def]
    n, group, y, pq, i, grad_out, x, channel, rows, totals, columns, g
):
    fill(rows, 0)
    h = y * g.stride_h + (i - (g.kh - 1) // 2) * g.dilation_h
    if h < 0 or h >= g.H:
        return
    terms = 0
    for c in range(group * (g.C // g.G), (group + 1) * (g.C // g.G)):
        terms = _stage(terms, rows, totals)
        for j in range(g.kw):
            first, count = columns[2 * j], columns[2 * j + 1]
            weight = rows.dtype.type(1)
            if g.has_channel != 0 and g.add == 0:
                weight = load(channel, (((n * g.C + c) * g.scale * g.scale + pq) * g.kh + i) * g.kw + j)
            w = first * g.stride_w + (j - (g.kw - 1) // 2) * g.dilation_w
            image = ((n * g.C + c) * g.H + h) * g.W + w
            start = _output(n, c, y, first, pq, g)
            _add_product(rows, j * g.Wo + first, weight, grad_out, start, g.scale, x, image, g.stride_w, count)
    _merge(terms, rows, totals)


@inlined
def _sharing_channels(g):  # type: ignore[no-untyped-def]
    """Return how many channels a task of grad_channel takes: more share a filter row read, fewer make more tasks."""
    return max(1, min(8, g.N * g.C // 16))


@inlined
def _grad_channel_task(task, grad_out, x, spatial, grad_channel, geometry):  # type: ignore[no-untyped-def]
    """Sum over all pixels for some channels: rows of a band term by term, then along the row, then bands in float64."""
    g = filter_geometry(geometry)
    block = _sharing_channels(g)
    blocks = _ceil(g.C, block)
    c0, n = task % blocks * block, task // blocks
    c1 = min(c0 + block, g.C)
    taps = g.scale * g.scale * g.kh * g.kw
    sums = np.zeros(block * taps, np.float64)
    columns = _columns(g)
    rows = accumulators(x, g.kw * g.Wo)
    for y0 in range(0, g.Ho, CHAIN):
        for c in range(c0, c1):
            for pq in range(g.scale * g.scale):
                for i in range(g.kh):
                    _grad_channel_rows(n, c, y0, pq, i, grad_out, x, spatial, rows, columns, g)
                    for j in range(g.kw):
                        sums[(c - c0) * taps + (pq * g.kh + i) * g.kw + j] += _sum(rows, j * g.Wo, g.Wo)
    for k in range((c1 - c0) * taps):
        store(grad_channel, (n * g.C + c0) * taps + k, rows.dtype.type(sums[k]))


@inlined
def _grad_channel_rows(  # type: ignore[no-untyped-def]
    n, c, y0, pq, i, grad_out, x, spatial, rows, columns, g
):
    """Add up the rows of the band from y0 on, for each tap of kernel row i."""
    fill(rows, 0)
    group = c // (g.C // g.G)
    for y in range(y0, min(y0 + CHAIN, g.Ho)):
        h = y * g.stride_h + (i - (g.kh - 1) // 2) * g.dilation_h
        if h < 0 or h >= g.H:
            continue
        for j in range(g.kw):
            first, count = columns[2 * j], columns[2 * j + 1]
            w = first * g.stride_w + (j - (g.kw - 1) // 2) * g.dilation_w
            image = ((n * g.C + c) * g.H + h) * g.W + w
            start = _output(n, c, y, first, pq, g)
            at = j * g.Wo + first
            if g.has_spatial != 0 and g.add == 0:
                tap = (((n * g.G + group) * g.scale * g.scale + pq) * g.kh + i) * g.kw + j
                d = (tap * g.Ho + y) * g.Wo + first
                _add_filtered_product(rows, at, spatial, d, grad_out, start, g.scale, x, image, g.stride_w, count)
            else:
                one = rows.dtype.type(1)
                _add_product(rows, at, one, grad_out, start, g.scale, x, image, g.stride_w, count)


# ---- helpers ---------------------------------------------------------------------------------------------------------


@inlined
def _ceil(extent, step):  # type: ignore[no-untyped-def]
    return (extent + step - 1) // step


@inlined
def _output(n, c, y, anchor, pq, g):  # type: ignore[no-untyped-def]
    """Return where the output of sub-pixel pq = p*s + q of the anchor (y, anchor) stands."""
    row = ((n * g.C + c) * g.Ho + y) * g.scale + pq // g.scale
    return (row * g.Wo + anchor) * g.scale + pq % g.scale


@inlined
def _columns(g):  # type: ignore[no-untyped-def]
    """Return for each tap column the first anchor at which it is inside the image, and how many there are."""
    columns = np.zeros(2 * g.kw, np.int64)
    for j in range(g.kw):
        offset = (j - (g.kw - 1) // 2) * g.dilation_w
        first = max(0, _ceil(-offset, g.stride_w))
        last = min(g.Wo - 1, (g.W - 1 - offset) // g.stride_w)
        if last >= first:
            columns[2 * j], columns[2 * j + 1] = first, last - first + 1
    return columns


@inlined
def _stage(terms, row, total):  # type: ignore[no-untyped-def]
    """Count one more term of a chain; move a full chain from `row` to `total` first."""
    if terms > 0 and terms % CHAIN == 0:
        for k in range(row.size):
            done = load(total, k) if terms > CHAIN else total.dtype.type(0)
            store(total, k, done + load(row, k))
            store(row, k, row.dtype.type(0))
    return terms + 1


@inlined
def _merge(terms, row, total):  # type: ignore[no-untyped-def]
    """Add the chains that `_stage` moved away back to `row`."""
    if terms > CHAIN:
        for k in range(row.size):
            store(row, k, load(total, k) + load(row, k))


@inlined
def _add_filtered(  # type: ignore[no-untyped-def]
    row, first, row_step, spatial, channel, n, c, pq, i, j, y, anchor, values, start, step, count, g
):
    """Add filter * values to a row, for `count` anchors from (y, anchor) on."""
    tap = (pq * g.kh + i) * g.kw + j
    taps = g.scale * g.scale * g.kh * g.kw
    gain, bias = row.dtype.type(1), row.dtype.type(0)
    if g.has_channel != 0:
        weight = load(channel, (n * g.C + c) * taps + tap)
        if g.add != 0:
            bias = weight
        else:
            gain = weight
    if g.has_spatial == 0:
        weight = bias if g.add != 0 else gain
        if row_step == 1 and step == 1:
            for k in range(count):
                store(row, first + k, load(row, first + k) + weight * load(values, start + k))
        else:
            for k in range(count):
                at = first + k * row_step
                store(row, at, load(row, at) + weight * load(values, start + k * step))
        return
    group = c // (g.C // g.G)
    d = (((n * g.G + group) * taps + tap) * g.Ho + y) * g.Wo + anchor
    if row_step == 1 and step == 1:
        for k in range(count):
            f = load(spatial, d + k) * gain + bias
            store(row, first + k, load(row, first + k) + f * load(values, start + k))
    else:
        for k in range(count):
            f = load(spatial, d + k) * gain + bias
            at = first + k * row_step
            store(row, at, load(row, at) + f * load(values, start + k * step))


@inlined
def _add_product(row, first, weight, a, a0, a_step, b, b0, b_step, count):  # type: ignore[no-untyped-def]
    """Add weight * a * b to a row."""
    if a_step == 1 and b_step == 1:
        for k in range(count):
            product = load(a, a0 + k) * load(b, b0 + k)
            store(row, first + k, load(row, first + k) + weight * product)
    else:
        for k in range(count):
            product = load(a, a0 + k * a_step) * load(b, b0 + k * b_step)
            store(row, first + k, load(row, first + k) + weight * product)


@inlined
def _add_filtered_product(row, first, d, d0, a, a0, a_step, b, b0, b_step, count):  # type: ignore[no-untyped-def]
    """Add d * a * b to a row."""
    if a_step == 1 and b_step == 1:
        for k in range(count):
            product = load(a, a0 + k) * load(b, b0 + k)
            store(row, first + k, load(row, first + k) + load(d, d0 + k) * product)
    else:
        for k in range(count):
            product = load(a, a0 + k * a_step) * load(b, b0 + k * b_step)
            store(row, first + k, load(row, first + k) + load(d, d0 + k) * product)


@inlined
def _sum(row, start, count):  # type: ignore[no-untyped-def]
    """Sum part of a row, which is overwritten: halves onto each other as long as that is vector work, then float64."""
    while count > CHAIN:
        half = count // 2
        for k in range(half):
            store(row, start + k, load(row, start + k) + load(row, start + count - half + k))
        count -= half
    total = 0.0
    for k in range(count):
        total += load(row, start + k)
    return total
