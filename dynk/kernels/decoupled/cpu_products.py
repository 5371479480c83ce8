"""The gradients of both filters: sums of grad_out * x over the channels of a group, and over all positions.

One pass forms both, since their terms share the product. A task takes a band of positions and all channels of some
groups; it keeps the band's sums over channels in `rows`, and adds up what it finds for a channel to one number for each
tap. `merge_parts` then adds the bands.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import numeric, vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import accumulators, fill
from dynk.kernels.decoupled.cpu_apart import room_for, take_apart
from dynk.kernels.decoupled.cpu_sums import CHAIN
from dynk.kernels.decoupled.cpu_sweep import (
    FIELDS,
    FIRST_FILTER,
    FIRST_RESULT,
    FIRST_VALUE,
    POSITIONS,
    TAP,
    VALUE,
    WHOLE,
    Split,
    ahead,
    ceil,
    reach_of,
    split,
    vectors_of,
)


@borrowing
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
    first, last = band * s.band, min(band * s.band + s.band, s.vectors)
    fields, masks = vectors_of(sweep, taps, first, last, size)
    all_taps, share = g.scale * g.scale * g.kh * g.kw, g.C // g.G
    want_spatial = grad_spatial.size > 0
    lanes = fields.size // FIELDS * size if want_spatial else 0
    rows = accumulators(x, all_taps * lanes)
    done = accumulators(x, all_taps * lanes if share > CHAIN else 0)
    sums = accumulators(x, all_taps * size * 4)
    unit = accumulators(x, 1)
    unit[0] = 1
    # Where there are sub-pixels, those of the band's positions are taken apart; lanes beyond the band read the margin.
    top, bottom = first * size, min(last * size, g.Ho * g.Wo)
    span = bottom - top if g.scale > 1 else 0
    grads = room_for(grad_out, 4, size, span, g) if span > 0 else grad_out
    c = c0
    while c < c1:
        room = min(c1, (c // share + 1) * share) - c  # channels that share a spatial filter
        if want_spatial and c % share % CHAIN == 0 and c % share > 0:
            for k in range(rows.size):
                done[k] += rows[k]
            fill(rows, 0)
        count = 4 if room >= 4 else 1
        fill(sums, 0)
        planes = ((n * g.C + c) * g.Ho * g.Wo, g.Ho * g.Wo, 0)
        if span > 0:
            take_apart(grad_out, n * g.C + c, count, top, bottom, grads, size, span, g)
            planes = (size - top, g.scale * g.scale * span, span)
        _add_channels(n, c, count, grads, planes, x, spatial, channel, rows, sums, unit, fields, masks, sweep, taps, g)
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


@borrowing
def merge_parts(n, bands, parts, grad_channel, g):  # type: ignore[no-untyped-def]
    """Add up what the bands of an image found, in float64."""
    size = g.C * g.scale * g.scale * g.kh * g.kw
    for k in range(size):
        total = 0.0
        for band in range(bands):
            total += np.float64(parts[(n * bands + band) * size + k])
        numeric.store(grad_channel, n * size + k, parts.dtype.type(total))


@borrowing
def _write_rows(first, rows, grad_spatial, fields, all_taps, g):  # type: ignore[no-untyped-def]
    size, count = vector.lanes(rows), fields.size // FIELDS
    for k in range(all_taps):
        for v in range(count):
            to = (first + k) * g.Ho * g.Wo + fields[v * FIELDS + FIRST_FILTER]
            mask = fields[v * FIELDS + POSITIONS]
            vector.store_where(grad_spatial, to, 1, vector.load(rows, (k * count + v) * size), mask)


@borrowing
def _add_channels(  # type: ignore[no-untyped-def]
    n, c, count, grads, planes, x, spatial, channel, rows, sums, unit, fields, masks, sweep, taps, g
):
    """Add the products of four channels or one to the sums of every tap.

    `planes` are where the gradients of the outputs begin in `grads`, and how far apart those of channels and sub-pixels
    are.
    """
    filter_taps, vectors = g.kh * g.kw, fields.size // FIELDS
    reach, image = reach_of(taps) + vector.lanes(x), n * g.C + c
    inside = sweep.value_step == 1 and image * g.H * g.W >= reach and (image + 4) * g.H * g.W + reach <= x.size
    inside = inside and (planes[2] > 0 or (image + 4) * g.Ho * g.Wo + vector.lanes(x) <= grads.size)
    for pq in range(g.scale * g.scale):
        for first in range(0, vectors, CHAIN):
            last = min(first + CHAIN, vectors)
            k = 0
            while k < filter_taps:
                if count == 1:
                    _add_four(
                        first, last, n, c, pq, k, (0,), (0,), (0,), grads, planes, x, spatial, channel, rows, sums,
                        unit, fields, masks, sweep, taps, g
                    )  # fmt: skip
                    k += 1
                elif k + 3 > filter_taps or not inside:
                    _add_four(
                        first, last, n, c, pq, k, (0, 1, 2, 3), (0, 0, 0, 0), (0,), grads, planes, x, spatial, channel,
                        rows, sums, unit, fields, masks, sweep, taps, g
                    )  # fmt: skip
                    k += 1
                else:
                    _add_twelve(
                        first, last, n, c, pq, k, (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3),
                        (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2), (0, 1, 2), grads, planes, x, spatial, channel, rows, sums,
                        unit, fields, masks, sweep, taps, g
                    )  # fmt: skip
                    k += 3


def _add_products(side_by_side: bool):  # type: ignore[no-untyped-def]
    """Return a function that adds the products of some taps and channels to their sums.

    It takes the vectors first <= v < last of sub-pixel pq. `of_channels` and `of_taps` number the channel, from c on,
    and the tap, from k on, of each product; `numbers` are the numbers of the taps. `side_by_side` is for values and
    results without steps between them that lie so far inside their arrays that all lanes may be read.
    """

    @inlined
    def add_products(  # type: ignore[no-untyped-def]
        first, last, n, c, pq, k, of_channels, of_taps, numbers, grads, planes, x, spatial, channel, rows, sums, unit,
        fields, masks, sweep, taps, g
    ):  # fmt: skip
        size, count, vectors = vector.lanes(x), g.kh * g.kw, fields.size // FIELDS
        tap, all_taps, image = pq * count + k, g.scale * g.scale * count, n * g.C + c
        plane, filter_plane = g.H * g.W, g.Ho * g.Wo
        step = 1 if side_by_side else sweep.value_step
        product = g.has_spatial != 0 and g.add == 0
        values = vector.spaced(image * plane, plane, of_channels)
        values = vector.shift(values, vector.pick(taps, vector.spaced(k * TAP + VALUE, TAP, of_taps)))
        results = vector.spaced(planes[0] + pq * planes[2], planes[1], of_channels)
        group = n * g.G + c // (g.C // g.G)
        filters = vector.spaced((group * all_taps + tap) * filter_plane, filter_plane, of_taps)
        if g.has_channel != 0 and g.add == 0:
            weight = vector.spaced(image * all_taps + tap, all_taps, of_channels)
            weights = vector.broadcast(channel, vector.shift(weight, of_taps))
        else:
            weights = vector.broadcast(unit, vector.spaced(0, 0, of_taps))
        total = vector.zeros(x, of_taps)
        fetching = side_by_side and k == 0 and planes[2] == 0 and x.size * x.itemsize > vector.STREAM_BYTES
        for v in range(first, last):
            value, result = fields[v * FIELDS + FIRST_VALUE], fields[v * FIELDS + FIRST_RESULT]
            if fetching:
                read = image * plane + ahead(v, FIRST_VALUE, fields, 4 * plane)
                vector.prefetch(x, vector.spaced(read, plane, (0, 1, 2, 3)))
                read = planes[0] + ahead(v, FIRST_RESULT, fields, 4 * planes[1])
                vector.prefetch(grads, vector.spaced(read, planes[1], (0, 1, 2, 3)))
            here = vector.shift(filters, fields[v * FIELDS + FIRST_FILTER])
            row = vector.spaced((tap * vectors + v) * size, vectors * size, numbers)
            if side_by_side and fields[v * FIELDS + WHOLE] != 0:
                grad, own = (
                    vector.load(grads, vector.shift(results, result)),
                    vector.load(x, vector.shift(values, value)),
                )
                terms = vector.mul(grad, own)
                if product:
                    total = vector.fma(vector.load(spatial, here), terms, total)
                else:
                    total = vector.fma(grad, own, total)
                if rows.size > 0:
                    vector.store(rows, row, vector.dot(weights, terms, vector.load(rows, row)))
            else:
                positions = fields[v * FIELDS + POSITIONS]
                mask = vector.pick(masks, vector.spaced(v * count + k, 1, of_taps))
                if side_by_side:
                    grad = vector.load(grads, vector.shift(results, result))
                    own = vector.load(x, vector.shift(values, value))
                else:
                    grad = vector.load_where(grads, vector.shift(results, result), 1, positions)
                    own = vector.load_where(x, vector.shift(values, value), step, mask)
                terms = vector.mul(grad, own)
                if product:
                    after = vector.fma(vector.load_where(spatial, here, 1, mask), terms, total)
                else:
                    after = vector.fma(grad, own, total)
                total = vector.where(mask, after, total)
                if rows.size > 0:
                    before = vector.load(rows, row)
                    inside = vector.pick(masks, vector.spaced(v * count + k, 1, numbers))
                    vector.store(rows, row, vector.where(inside, vector.dot(weights, terms, before), before))
        at = vector.shift(vector.spaced(tap * 4 * size, size, of_channels), vector.spaced(0, 4 * size, of_taps))
        vector.store(sums, at, vector.add(vector.load(sums, at), total))

    return add_products


_add_twelve, _add_four = _add_products(side_by_side=True), _add_products(side_by_side=False)
