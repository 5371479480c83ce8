"""The sums over taps that the forward kernel and the gradient of the image share.

A task first gathers the spatial filters of its band, in the order in which its vectors take them, and for each pack of
channels their own filters; a filter that a call does not have is 1. So the sums read both in sequence, whatever the
storage type, the direction and the kind of call.
"""

from __future__ import annotations

from dynk.kernels.common import numeric, vector
from dynk.kernels.common.compile import borrowing, embedded
from dynk.kernels.common.numeric import fill, unset
from dynk.kernels.decoupled.cpu_sweep import (
    FIELDS,
    FILTER,
    FIRST_FILTER,
    FIRST_RESULT,
    FIRST_VALUE,
    FULL,
    LOWER,
    POSITIONS,
    TAP,
    UPPER,
    VALUE,
    WEIGHT,
    WHOLE,
    reach_of,
    vectors_of,
)

CHAIN = 64  # terms that are added one to the other
# A result that is larger is written past the caches, which would have to read it first and could not keep it.
STREAM_BYTES = 32 << 20


@embedded
def sum_band(  # type: ignore[no-untyped-def]
    n, c0, c1, first, last, values, spatial, channel, result, sweep, taps, sub_pixels, planes, g
):
    """Write the sums of all taps for the vectors first <= v < last of some channels.

    `sub_pixels` results of each position use one set of taps after the other; `planes` are the sizes of a channel's
    plane of values and of results.
    """
    size = vector.lanes(values)
    tables = vectors_of(sweep, taps, first, last, size)
    fields, masks = tables
    share, side = g.C // g.G, _square_of(taps, sweep, g)
    reach, count = reach_of(taps) + 2 * size, fields.size // FIELDS
    filters = unset(values, (count if g.has_spatial != 0 else 1) * sub_pixels * taps.size // TAP * size)
    weights = unset(values, sub_pixels * taps.size // TAP * 4)
    if g.has_spatial == 0:
        fill(filters, 1)
    if g.has_channel == 0:
        fill(weights, 1)
    past = 1 if result.size * result.itemsize > STREAM_BYTES else 0
    c = c0
    while c < c1:
        if g.has_spatial != 0 and (c == c0 or c % share == 0):
            _gather_filters(n * g.G + c // share, spatial, filters, fields, masks, taps, sub_pixels, g)
        room = min(c1, (c // share + 1) * share) - c  # channels that share a spatial filter
        number = 4 if room >= 4 else 1
        if g.has_channel != 0:
            _gather_weights(n * g.C + c, number, channel, weights, taps, sub_pixels, g)
        if number == 1:
            _sums(
                0, count, n, c, (0,), values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past, g
            )
            c += 1
            continue
        pack, start = (0, 1, 2, 3), (n * g.C + c) * planes[0]
        begin, end = 0, count if side > 0 else 0  # vectors around which so much is inside the array
        while begin < end and start + fields[begin * FIELDS + FIRST_VALUE] < reach:
            begin += 1
        while begin < end and start + 3 * planes[0] + fields[end * FIELDS - FIELDS + FIRST_VALUE] + reach > values.size:
            end -= 1
        if side == 3:
            _sums_3x3(
                begin, end, n, c, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past,
                g
            )  # fmt: skip
        elif side == 5:
            _sums_5x5(
                begin, end, n, c, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past,
                g
            )  # fmt: skip
        for v0, v1 in ((0, begin), (end, count)):
            if v0 < v1:
                _sums(
                    v0, v1, n, c, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past,
                    g
                )  # fmt: skip
        c += 4
    vector.drain()


@borrowing
def _square_of(taps, sweep, g):  # type: ignore[no-untyped-def]
    """Return the side of a square filter whose rows read values side by side and for which there is code, else 0."""
    count = taps.size // TAP
    side = 3 if count == 9 else 5 if count == 25 else 0
    fits = g.add == 0 and g.kh == side and g.kw == side and sweep.value_step == 1
    return side if fits and taps[TAP + VALUE] - taps[VALUE] == 1 else 0


@borrowing
def _gather_filters(group, spatial, filters, fields, masks, taps, sub_pixels, g):  # type: ignore[no-untyped-def]
    """Fill [vector][sub-pixel][tap][lane] with the filters of a group, 0 where a tap is outside."""
    size, count = vector.lanes(filters), taps.size // TAP
    start, to = group * g.scale * g.scale * g.kh * g.kw * g.Ho * g.Wo, 0
    for v in range(fields.size // FIELDS):
        whole = fields[v * FIELDS + WHOLE] != 0
        for pq in range(sub_pixels):
            at = start + fields[v * FIELDS + FIRST_FILTER] + pq * count * g.Ho * g.Wo
            for k in range(count):
                here = at + vector.pick(taps, k * TAP + FILTER)
                if whole:
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


def _channel_sums(side: int):  # type: ignore[no-untyped-def]
    """Return a function that forms the sums of a pack of channels for the vectors begin <= v < end.

    With `side` it is for square filters whose rows read values side by side, multiplied, and for vectors so far inside
    the array that taps beyond the border may be read, though not used; with 0 for anything.
    """

    @borrowing
    def sums(  # type: ignore[no-untyped-def]
        begin, end, n, c, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past, g
    ):
        fields, masks = tables
        count, size = side * side if side > 0 else taps.size // TAP, vector.lanes(values)
        plane = vector.spaced((n * g.C + c) * planes[0], planes[0], pack)
        target = vector.spaced((n * g.C + c) * planes[1], planes[1], pack)
        corner, row = (taps[VALUE], taps[side * TAP + VALUE] - taps[VALUE]) if side > 0 else (0, 0)
        adding = g.add != 0 and g.has_spatial != 0 and g.has_channel != 0
        each = sub_pixels * count * size if g.has_spatial != 0 else 0
        sub_row = sweep.result_row // g.scale
        for v in range(begin, end):
            starts = vector.shift(plane, vector.pick(fields, v * FIELDS + FIRST_VALUE))
            to = vector.shift(target, vector.pick(fields, v * FIELDS + FIRST_RESULT))
            whole = vector.pick(fields, v * FIELDS + WHOLE) != 0
            full = vector.pick(fields, v * FIELDS + FULL) != 0
            even = vector.zeros(values, pack)
            for pq in range(sub_pixels):
                d, w = v * each + pq * count * size, vector.shift(pack, pq * count * len(pack))
                total = vector.zeros(values, pack)
                if side > 0 and whole:
                    for i in range(side):
                        at = vector.shift(starts, corner + i * row)
                        low, high = vector.load(values, at), vector.load(values, vector.shift(at, size))
                        for j in range(side):
                            f = vector.load(filters, d + (i * side + j) * size)
                            u = vector.broadcast(weights, vector.shift(w, (i * side + j) * len(pack)))
                            total = vector.fma(vector.mul(f, u), vector.slid(low, high, j), total)
                elif side > 0:
                    for i in range(side):
                        at = vector.shift(starts, corner + i * row)
                        low, high = vector.load(values, at), vector.load(values, vector.shift(at, size))
                        for j in range(side):
                            mask, before = vector.pick(masks, v * count + i * side + j), total
                            f = vector.load(filters, d + (i * side + j) * size)
                            u = vector.broadcast(weights, vector.shift(w, (i * side + j) * len(pack)))
                            after = vector.fma(vector.mul(f, u), vector.slid(low, high, j), total)
                            total = vector.where(mask, after, before)
                else:
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
                # Masked stores cost far more than others.
                if sub_pixels == 4:
                    if pq % 2 == 1:
                        low, high = vector.zipped(even, total, 0), vector.zipped(even, total, 1)
                        start = vector.shift(to, pq // 2 * sub_row)
                        if full:
                            vector.stream(result, start, low, past)
                            vector.stream(result, vector.shift(start, size), high, past)
                        else:
                            rest = vector.pick(fields, v * FIELDS + UPPER)
                            vector.store_where(result, start, 1, low, vector.pick(fields, v * FIELDS + LOWER))
                            vector.store_where(result, vector.shift(start, size), 1, high, rest)
                    even = total
                elif full and sweep.result_step == 1:
                    vector.stream(result, to, total, past)
                else:
                    sub_pixel = pq // g.scale * sub_row + pq % g.scale if sub_pixels > 1 else 0
                    mask = vector.pick(fields, v * FIELDS + POSITIONS)
                    vector.store_where(result, vector.shift(to, sub_pixel), sweep.result_step, total, mask)

    return sums


_sums, _sums_3x3, _sums_5x5 = _channel_sums(0), _channel_sums(3), _channel_sums(5)
