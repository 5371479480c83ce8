"""The sums over taps that the forward kernel and the gradient of the image share.

A task first gathers the spatial filters of its band, in the order in which its vectors take them, and for each pack of
channels their own filters; a filter that a call does not have is 1. So the sums read both in sequence, whatever the
storage type, the direction and the kind of call.
"""

from __future__ import annotations

from dynk.kernels.common import numeric, vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import fill, unset
from dynk.kernels.decoupled.cpu_results import ROOM, write
from dynk.kernels.decoupled.cpu_sweep import (
    FIELDS,
    FILTER,
    FIRST_FILTER,
    FIRST_RESULT,
    FIRST_VALUE,
    TAP,
    VALUE,
    WEIGHT,
    WHOLE,
    ahead,
    vectors_of,
)

CHAIN = 64  # terms that are added one to the other


@inlined
def sum_band(  # type: ignore[no-untyped-def]
    n, c0, c1, first, last, values, start, margins, spatial, channel, result, sweep, taps, reach, sub_pixels, planes, g,
    side_by_side,
):  # fmt: skip
    """Write the sums of all taps for the vectors first <= v < last of some channels.

    Values of channel c0 begin at `start`; `margins` is not 0 where so much may be read around those of all channels as
    vectors reach. `sub_pixels` results of each position use one set of taps after the other, of which none stands
    farther than `reach` elements from its position; `planes` are the sizes of a channel's planes of values and results.
    `side_by_side` forms the sums of four channels where rows of a filter read values side by side.
    """
    size = vector.lanes(values)
    tables = vectors_of(sweep, taps, first, last, size)
    share, columns, count = g.C // g.G, _columns_of(taps, reach, sweep, g), tables[0].size // FIELDS
    filters = unset(values, count * sub_pixels * taps.size // TAP * size)
    weights = unset(values, sub_pixels * taps.size // TAP * 4)
    if g.has_channel == 0:
        fill(weights, 1)
    ring = unset(values, 4 * ROOM * size)
    past = 1 if result.size * result.itemsize > vector.STREAM_BYTES else 0
    margin, c = reach + 2 * size, c0
    while c < c1:
        image, at = n * g.C + c, start + (c - c0) * planes[0]
        if c == c0 or (g.has_spatial != 0 and c % share == 0):
            _gather_filters(n * g.G + c // share, spatial, filters, tables, taps, sub_pixels, g)
        room = min(c1, (c // share + 1) * share) - c  # channels that share a spatial filter
        number = 4 if room >= 4 else 1
        if g.has_channel != 0:
            _gather_weights(image, number, channel, weights, taps, sub_pixels, g)
        if number == 1:
            _sums(
                0, count, at, image, (0,), values, filters, weights, result, tables, sweep, taps, sub_pixels, planes,
                past, g
            )  # fmt: skip
            c += 1
            continue
        pack = (0, 1, 2, 3)
        begin, end = 0, count if columns > 0 else 0  # vectors around which so much is inside the array
        while margins == 0 and begin < end and at + tables[0][begin * FIELDS + FIRST_VALUE] < margin:
            begin += 1
        past_end = at + 3 * planes[0] + margin - values.size
        while margins == 0 and begin < end and past_end + tables[0][end * FIELDS - FIELDS + FIRST_VALUE] > 0:
            end -= 1
        finite = True
        if begin < end:
            finite = side_by_side(
                columns, begin, end, at, image, pack, values, filters, weights, ring, result, tables, sweep, taps,
                sub_pixels, planes, past, g,
            )  # fmt: skip
        if not finite:
            vector.drain()
        for v0, v1 in ((0, begin), (begin, begin if finite else end), (end, count)):
            if v0 < v1:
                _sums(
                    v0, v1, at, image, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes,
                    past, g
                )  # fmt: skip
        c += 4
    vector.drain()


@borrowing
def _columns_of(taps, reach, sweep, g):  # type: ignore[no-untyped-def]
    """Return the columns of a filter whose rows read values side by side and for which there is code, else 0."""
    fits = g.add == 0 and (g.kw == 3 or g.kw == 5) and sweep.value_step == 1
    fits = fits and g.stride_w == 1 and g.kw * TAP <= taps.size <= CHAIN * TAP and reach <= g.H * g.W
    return g.kw if fits and taps[TAP + VALUE] - taps[VALUE] == 1 else 0


@borrowing
def _gather_filters(group, spatial, filters, tables, taps, sub_pixels, g):  # type: ignore[no-untyped-def]
    """Fill [vector][sub-pixel][tap][lane] with the filters of a group, or 1, and with 0 where a tap is outside."""
    fields, masks = tables
    size, count = vector.lanes(filters), taps.size // TAP
    zero, one = vector.filled(filters, 0, 0.0), vector.filled(filters, 0, 1.0)
    start, to = group * g.scale * g.scale * g.kh * g.kw * g.Ho * g.Wo, 0
    for v in range(fields.size // FIELDS):
        whole = fields[v * FIELDS + WHOLE] != 0
        for pq in range(sub_pixels):
            at = start + fields[v * FIELDS + FIRST_FILTER] + pq * count * g.Ho * g.Wo
            for k in range(count):
                here = at + vector.pick(taps, k * TAP + FILTER)
                if g.has_spatial == 0:
                    vector.store(filters, to, vector.where(vector.pick(masks, v * count + k), one, zero))
                elif whole:
                    vector.store(filters, to, vector.load(spatial, here))
                else:
                    vector.store(filters, to, vector.load_where(spatial, here, 1, vector.pick(masks, v * count + k)))
                to += size


@borrowing
def _gather_weights(image, number, channel, weights, taps, sub_pixels, g):  # type: ignore[no-untyped-def]
    """Fill [sub-pixel][tap][channel] with the filters of a few channels."""
    count, all_taps = taps.size // TAP, g.scale * g.scale * g.kh * g.kw
    for pq in range(sub_pixels):
        for k in range(count):
            for u in range(number):
                at = (image + u) * all_taps + pq * count + taps[k * TAP + WEIGHT]
                weights[(pq * count + k) * number + u] = numeric.load(channel, at)


@borrowing
def _sums(  # type: ignore[no-untyped-def]
    begin, end, start, image, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past, g
):
    """Form the sums of a pack of channels for the vectors begin <= v < end."""
    fields, masks = tables
    count, size = taps.size // TAP, vector.lanes(values)
    source, target = vector.spaced(start, planes[0], pack), vector.spaced(image * planes[1], planes[1], pack)
    adding = g.add != 0 and g.has_spatial != 0 and g.has_channel != 0
    sub_row = sweep.result_row // g.scale
    for v in range(begin, end):
        starts = vector.shift(source, vector.pick(fields, v * FIELDS + FIRST_VALUE))
        if past != 0:
            vector.prefetch(values, vector.shift(source, ahead(v, FIRST_VALUE, fields, len(pack) * planes[0])))
        to = vector.shift(target, vector.pick(fields, v * FIELDS + FIRST_RESULT))
        whole = vector.pick(fields, v * FIELDS + WHOLE) != 0
        even = vector.zeros(values, pack)
        for pq in range(sub_pixels):
            d, w = (v * sub_pixels + pq) * count * size, vector.shift(pack, pq * count * len(pack))
            total = vector.zeros(values, pack)
            for first in range(0, count, CHAIN):
                chain = vector.zeros(values, pack)
                for k in range(first, min(count, first + CHAIN)):
                    at = vector.shift(starts, vector.pick(taps, k * TAP + VALUE))
                    f = vector.load(filters, d + k * size)
                    u = vector.broadcast(weights, vector.shift(w, k * len(pack)))
                    both = vector.add(f, u) if adding else vector.mul(f, u)
                    if whole:
                        chain = vector.fma(both, vector.load(values, at), chain)
                    else:
                        mask = vector.pick(masks, v * count + k)
                        x = vector.load_where(values, at, sweep.value_step, mask)
                        chain = vector.where(mask, vector.fma(both, x, chain), chain)
                total = chain if first == 0 else vector.add(total, chain)
            write(result, to, even, total, pq, fields, v, sub_row, sub_pixels, past, sweep, g)
            even = total
