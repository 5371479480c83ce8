"""The gradients of both filters: sums of grad_out * x over the channels of a group, and over all positions.

One pass forms both, since their terms share the product. A task takes a band of positions and all channels of some
groups; it keeps the band's sums over channels in `rows`, and adds up what it finds for a channel to one number for each
tap. `merge_parts` then adds the bands.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import numeric, vector
from dynk.kernels.common.compile import inlined, innermost
from dynk.kernels.common.numeric import accumulators, fill
from dynk.kernels.decoupled.cpu_sums import CHAIN
from dynk.kernels.decoupled.cpu_sweep import (
    COUNT,
    FIELDS,
    FIRST_FILTER,
    FIRST_RESULT,
    FIRST_VALUE,
    TAP,
    VALUE,
    WHOLE,
    Split,
    ceil,
    split,
    vectors_of,
)


@inlined
def split_products(x, sweep, want_spatial, g):  # type: ignore[no-untyped-def]
    """Return the tasks; where sums over channels are wanted, each takes whole groups."""
    # Twice for the spatial filter and the sums over channels.
    s = split(x, sweep, 2 * g.scale * g.scale * g.kh * g.kw, g.C)
    share = g.C // g.G
    block = ceil(s.block, share) * share if want_spatial else s.block
    return Split(s.vectors, s.band, s.bands, block, ceil(g.C, block))


@inlined
def products_band(  # type: ignore[no-untyped-def]
    n, c0, c1, band, s, grad_out, x, spatial, channel, grad_spatial, grad_channel, parts, sweep, taps, g
):
    """Form the terms of one band for the channels c0 <= c < c1."""
    size = vector.lanes(x)
    first = band * s.band
    fields, masks = vectors_of(sweep, taps, first, min(first + s.band, s.vectors), size)
    all_taps, share = g.scale * g.scale * g.kh * g.kw, g.C // g.G
    want_spatial = grad_spatial.size > 0
    span = fields.size // FIELDS * size if want_spatial else 0
    rows = accumulators(x, all_taps * span)
    done = accumulators(x, all_taps * span if share > CHAIN else 0)
    sums = accumulators(x, all_taps * size * 4)
    unit = accumulators(x, 1)
    unit[0] = 1
    c = c0
    while c < c1:
        room = min(c1, (c // share + 1) * share) - c  # channels that share a spatial filter
        if want_spatial and c % share % CHAIN == 0 and c % share > 0:
            for k in range(rows.size):
                done[k] += rows[k]
            fill(rows, 0)
        count = 4 if room >= 4 else 1
        fill(sums, 0)
        if count == 4:
            _add_channels(
                n, c, (0, 1, 2, 3), grad_out, x, spatial, channel, rows, sums, unit, fields, masks, sweep, taps, g
            )
        else:
            _add_channels(n, c, (0,), grad_out, x, spatial, channel, rows, sums, unit, fields, masks, sweep, taps, g)
        if grad_channel.size > 0:
            for u in range(count):
                for k in range(all_taps):
                    total = vector.total(vector.load(sums, (k * 4 + u) * size))
                    if s.bands == 1:
                        numeric.store(grad_channel, (n * g.C + c + u) * all_taps + k, total)
                    else:
                        parts[((n * s.bands + band) * g.C + c + u) * all_taps + k] = total
        c += count
        if want_spatial and c % share == 0:
            if share > CHAIN:
                for k in range(rows.size):
                    rows[k] += done[k]
                fill(done, 0)
            _write_rows((n * g.G + (c - 1) // share) * all_taps, rows, grad_spatial, fields, all_taps, g)
            fill(rows, 0)


@inlined
def merge_parts(n, bands, parts, grad_channel, g):  # type: ignore[no-untyped-def]
    """Add up what the bands of an image found, in float64."""
    size = g.C * g.scale * g.scale * g.kh * g.kw
    for k in range(size):
        total = 0.0
        for band in range(bands):
            total += np.float64(parts[(n * bands + band) * size + k])
        numeric.store(grad_channel, n * size + k, parts.dtype.type(total))


@inlined
def _write_rows(first, rows, grad_spatial, fields, all_taps, g):  # type: ignore[no-untyped-def]
    size, count = vector.lanes(rows), fields.size // FIELDS
    for k in range(all_taps):
        for v in range(count):
            to = (first + k) * g.Ho * g.Wo + fields[v * FIELDS + FIRST_FILTER]
            mask = vector.between(0, fields[v * FIELDS + COUNT])
            vector.store_where(grad_spatial, to, 1, vector.load(rows, (k * count + v) * size), mask)


@inlined
def _add_channels(  # type: ignore[no-untyped-def]
    n, c, pack, grad_out, x, spatial, channel, rows, sums, unit, fields, masks, sweep, taps, g
):
    sub_pixels, count, vectors = g.scale * g.scale, g.kh * g.kw, fields.size // FIELDS
    plane = vector.spaced((n * g.C + c) * g.H * g.W, g.H * g.W, pack)
    area = sub_pixels * g.Ho * g.Wo
    grads = vector.spaced((n * g.C + c) * area, area, pack)
    weight = vector.spaced((n * g.C + c) * sub_pixels * count, sub_pixels * count, pack)
    filters = (n * g.G + c // (g.C // g.G)) * sub_pixels * count * g.Ho * g.Wo
    for pq in range(sub_pixels):
        grad = vector.shift(grads, pq // g.scale * g.Wo * g.scale + pq % g.scale)
        for first in range(0, vectors, CHAIN):
            last = min(first + CHAIN, vectors)
            k = 0
            while k < count:
                width = 3 if k + 3 <= count else 1
                if width == 3:
                    _three_taps(
                        first, last, k, pq, plane, grad, weight, filters, pack, grad_out, x, spatial, channel, rows,
                        sums, unit, fields, masks, sweep, taps, g
                    )  # fmt: skip
                else:
                    _one_tap(
                        first, last, k, pq, plane, grad, weight, filters, pack, grad_out, x, spatial, channel, rows,
                        sums, unit, fields, masks, sweep, taps, g
                    )  # fmt: skip
                k += width


@innermost
def _add_sum(sums, tap, pack, s):  # type: ignore[no-untyped-def]
    size = vector.lanes(sums)
    at = vector.spaced(tap * 4 * size, size, pack)
    vector.store(sums, at, vector.add(vector.load(sums, at), s))


@innermost
def _weights(channel, unit, weight, tap, pack, g):  # type: ignore[no-untyped-def]
    """Return what a tap's products are multiplied by before they are summed over channels."""
    if g.has_channel != 0 and g.add == 0:
        return vector.broadcast(channel, vector.shift(weight, tap))
    return vector.broadcast(unit, vector.spaced(0, 0, pack))


def _product(masked: bool):  # type: ignore[no-untyped-def]
    """Return a function that adds a tap's products of a vector of positions to both sums."""

    @innermost
    def product(grad, x, at, step, spatial, d, weights, s, rows, row, mask, g):  # type: ignore[no-untyped-def]
        h = vector.mul(grad, vector.load_where(x, at, step, mask) if masked else vector.load(x, at))
        if rows.size > 0:
            before = vector.load(rows, row)
            after = vector.dot(weights, h, before)
            vector.store(rows, row, vector.where(mask, after, before) if masked else after)
        if g.has_spatial != 0 and g.add == 0:
            f = vector.load_where(spatial, d, 1, mask) if masked else vector.load(spatial, d)
            after_s = vector.fma(f, h, s)
        else:
            after_s = vector.add(h, s)
        return vector.where(mask, after_s, s) if masked else after_s

    return product


_product_whole, _product_masked = _product(masked=False), _product(masked=True)


def _tap_loop(width: int):  # type: ignore[no-untyped-def]
    """Return a function that takes `width` taps from k on through the vectors first <= v < last."""

    @inlined
    def add_taps(  # type: ignore[no-untyped-def]
        first, last, k, pq, plane, grad_plane, weight, filters, pack, grad_out, x, spatial, channel, rows, sums, unit,
        fields, masks, sweep, taps, g
    ):  # fmt: skip
        size, count, vectors = vector.lanes(x), g.kh * g.kw, fields.size // FIELDS
        tap, area = pq * count + k, g.Ho * g.Wo
        k1, k2 = k + (width > 1), k + 2 * (width > 1)
        o0, o1, o2 = taps[k * TAP + VALUE], taps[k1 * TAP + VALUE], taps[k2 * TAP + VALUE]
        w0 = _weights(channel, unit, weight, tap, pack, g)
        w1 = _weights(channel, unit, weight, tap + k1 - k, pack, g)
        w2 = _weights(channel, unit, weight, tap + k2 - k, pack, g)
        s0 = s1 = s2 = vector.zeros(x, pack)
        for v in range(first, last):
            start = vector.shift(plane, fields[v * FIELDS + FIRST_VALUE])
            go = vector.shift(grad_plane, fields[v * FIELDS + FIRST_RESULT])
            d = filters + tap * area + fields[v * FIELDS + FIRST_FILTER]
            row = (tap * vectors + v) * size
            if fields[v * FIELDS + WHOLE] != 0 and g.scale == 1:
                grad = vector.load(grad_out, go)
                s0 = _product_whole(grad, x, vector.shift(start, o0), 1, spatial, d, w0, s0, rows, row, -1, g)
                if width > 1:
                    d, row = d + area, row + vectors * size
                    s1 = _product_whole(grad, x, vector.shift(start, o1), 1, spatial, d, w1, s1, rows, row, -1, g)
                    d, row = d + area, row + vectors * size
                    s2 = _product_whole(grad, x, vector.shift(start, o2), 1, spatial, d, w2, s2, rows, row, -1, g)
            else:
                grad = vector.load_where(grad_out, go, g.scale, vector.between(0, fields[v * FIELDS + COUNT]))
                m, step = v * count + k, sweep.value_step
                s0 = _product_masked(
                    grad, x, vector.shift(start, o0), step, spatial, d, w0, s0, rows, row, masks[m], g
                )
                if width > 1:
                    d, row = d + area, row + vectors * size
                    s1 = _product_masked(
                        grad, x, vector.shift(start, o1), step, spatial, d, w1, s1, rows, row, masks[m + 1], g
                    )
                    d, row = d + area, row + vectors * size
                    s2 = _product_masked(
                        grad, x, vector.shift(start, o2), step, spatial, d, w2, s2, rows, row, masks[m + 2], g
                    )
        _add_sum(sums, tap, pack, s0)
        if width > 1:
            _add_sum(sums, tap + 1, pack, s1)
            _add_sum(sums, tap + 2, pack, s2)

    return add_taps


_three_taps, _one_tap = _tap_loop(3), _tap_loop(1)
