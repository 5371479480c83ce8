"""The sums over taps that the forward kernel and the gradient of the image share."""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import embedded, inlined
from dynk.kernels.decoupled.cpu_sweep import (
    COUNT,
    FIELDS,
    FILTER,
    FIRST_FILTER,
    FIRST_RESULT,
    FIRST_VALUE,
    TAP,
    VALUE,
    WEIGHT,
    WHOLE,
    reach_of,
    vectors_of,
)

CHAIN = 64  # terms that are added one to the other
# What the filter of a tap is.
SPATIAL, CHANNEL, PRODUCT, SUM = range(4)


@inlined
def combination(g):  # type: ignore[no-untyped-def]
    """Return what the filters of a call are."""
    if g.has_channel == 0:
        return SPATIAL
    if g.has_spatial == 0:
        return CHANNEL
    return SUM if g.add != 0 else PRODUCT


@embedded
def sum_band(  # type: ignore[no-untyped-def]
    n, c0, c1, first, last, values, spatial, channel, result, sweep, taps, sub_pixels, planes, g
):
    """Write the sums of all taps for the vectors first <= v < last of some channels.

    `sub_pixels` results of each position use one set of taps after the other; `planes` are the sizes of a channel's
    plane of values and of results.
    """
    fields, masks = vectors_of(sweep, taps, first, last, vector.lanes(values))
    share, count = g.C // g.G, taps.size // TAP
    fast = combination(g) == PRODUCT and sweep.value_step == 1
    reach = reach_of(taps) + vector.lanes(values)
    c = c0
    while c < c1:
        room = min(c1, (c // share + 1) * share) - c  # channels that share a spatial filter
        if room < 4:
            _sums(n, c, (0,), values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g)
            c += 1
            continue
        pack, start = (0, 1, 2, 3), (n * g.C + c) * planes[0]
        inside = start >= reach and start + 4 * planes[0] + reach <= values.size
        if fast and inside and count == 9:
            _sums_3x3(n, c, pack, values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g)
        elif fast and inside and count == 25:
            _sums_5x5(n, c, pack, values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g)
        else:
            _sums(n, c, pack, values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g)
        c += 4


def _channel_sums(unrolled: int):  # type: ignore[no-untyped-def]
    """Return a function that forms the sums of a pack of channels.

    With `unrolled` it is for so many taps, products of both filters, values side by side and planes that lie so far
    inside their array that taps beyond the border may be read, though not used; with 0 for anything.
    """

    @inlined
    def sums(  # type: ignore[no-untyped-def]
        n, c, pack, values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g
    ):
        count = unrolled if unrolled > 0 else taps.size // TAP
        mode = PRODUCT if unrolled > 0 else combination(g)
        step = 1 if unrolled > 0 else sweep.value_step
        all_taps = g.scale * g.scale * g.kh * g.kw
        plane = vector.spaced((n * g.C + c) * planes[0], planes[0], pack)
        target = vector.spaced((n * g.C + c) * planes[1], planes[1], pack)
        weights = vector.spaced((n * g.C + c) * all_taps, all_taps, pack)
        filters = (n * g.G + c // (g.C // g.G)) * all_taps * g.Ho * g.Wo
        sub_row = sweep.result_row // g.scale
        for v in range(fields.size // FIELDS):
            fields_at = v * FIELDS
            starts = vector.shift(plane, fields[fields_at + FIRST_VALUE])
            to = vector.shift(target, fields[fields_at + FIRST_RESULT])
            positions, whole = fields[fields_at + COUNT], fields[fields_at + WHOLE] != 0
            even = vector.zeros(values, pack)
            for pq in range(sub_pixels):
                d = filters + fields[fields_at + FIRST_FILTER] + pq * count * g.Ho * g.Wo
                w = vector.shift(weights, pq * count)
                total = vector.zeros(values, pack)
                for first in range(0, count, CHAIN):
                    chain = vector.zeros(values, pack)
                    if whole:
                        for k in range(first, min(count, first + CHAIN)):
                            x = vector.load(values, vector.shift(starts, taps[k * TAP + VALUE]))
                            here, weight = d + taps[k * TAP + FILTER], vector.shift(w, taps[k * TAP + WEIGHT])
                            if mode == CHANNEL:
                                chain = vector.fma(vector.broadcast(channel, weight), x, chain)
                            elif mode == SPATIAL:
                                chain = vector.fma(vector.load(spatial, here), x, chain)
                            else:
                                f, u = vector.load(spatial, here), vector.broadcast(channel, weight)
                                both = vector.mul(f, u) if mode == PRODUCT else vector.add(f, u)
                                chain = vector.fma(both, x, chain)
                    else:
                        for k in range(first, min(count, first + CHAIN)):
                            mask, before = masks[v * count + k], chain
                            at = vector.shift(starts, taps[k * TAP + VALUE])
                            x = vector.load(values, at) if unrolled > 0 else vector.load_where(values, at, step, mask)
                            here, weight = d + taps[k * TAP + FILTER], vector.shift(w, taps[k * TAP + WEIGHT])
                            if mode == CHANNEL:
                                chain = vector.fma(vector.broadcast(channel, weight), x, chain)
                            elif mode == SPATIAL:
                                chain = vector.fma(vector.load_where(spatial, here, 1, mask), x, chain)
                            else:
                                f, u = vector.load_where(spatial, here, 1, mask), vector.broadcast(channel, weight)
                                both = vector.mul(f, u) if mode == PRODUCT else vector.add(f, u)
                                chain = vector.fma(both, x, chain)
                            chain = vector.where(mask, chain, before)
                    total = chain if first == 0 else vector.add(total, chain)
                if sub_pixels == 4:
                    if pq % 2 == 1:
                        low, high = vector.zipped(even, total, 0), vector.zipped(even, total, 1)
                        start, size = vector.shift(to, pq // 2 * sub_row), vector.lanes(values)
                        vector.store_where(result, start, 1, low, vector.between(0, 2 * positions))
                        rest = vector.between(0, 2 * positions - size)
                        vector.store_where(result, vector.shift(start, size), 1, high, rest)
                    even = total
                elif whole and sweep.result_step == 1:
                    vector.store(result, to, total)
                else:
                    sub_pixel = pq // g.scale * sub_row + pq % g.scale if sub_pixels > 1 else 0
                    mask = vector.between(0, positions)
                    vector.store_where(result, vector.shift(to, sub_pixel), sweep.result_step, total, mask)

    return sums


_sums, _sums_3x3, _sums_5x5 = _channel_sums(0), _channel_sums(9), _channel_sums(25)
