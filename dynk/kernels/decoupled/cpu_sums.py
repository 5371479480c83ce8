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
    share = g.C // g.G
    c = c0
    while c < c1:
        room = min(c1, (c // share + 1) * share) - c  # channels that share a spatial filter
        if room >= 4:
            _sum_channels(
                n, c, (0, 1, 2, 3), values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g
            )
            c += 4
        else:
            _sum_channels(n, c, (0,), values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g)
            c += 1


@inlined
def _sum_channels(  # type: ignore[no-untyped-def]
    n, c, pack, values, spatial, channel, result, fields, masks, sweep, taps, sub_pixels, planes, g
):
    mode, count = combination(g), taps.size // TAP
    all_taps = g.scale * g.scale * g.kh * g.kw
    plane = vector.spaced((n * g.C + c) * planes[0], planes[0], pack)
    target = vector.spaced((n * g.C + c) * planes[1], planes[1], pack)
    weight = vector.spaced((n * g.C + c) * all_taps, all_taps, pack)
    filters = (n * g.G + c // (g.C // g.G)) * all_taps * g.Ho * g.Wo
    sub_row = sweep.result_row // g.scale
    for v in range(fields.size // FIELDS):
        at = v * FIELDS
        starts = vector.shift(plane, fields[at + FIRST_VALUE])
        to = vector.shift(target, fields[at + FIRST_RESULT])
        positions, whole = fields[at + COUNT], fields[at + WHOLE] != 0
        previous = vector.zeros(values, pack)
        for pq in range(sub_pixels):
            d = filters + fields[at + FIRST_FILTER] + pq * count * g.Ho * g.Wo
            w = vector.shift(weight, pq * count)
            if whole:
                total = _sum_whole(values, starts, 1, spatial, d, channel, w, taps, masks, 0, count, mode)
            else:
                total = _sum_masked(
                    values, starts, sweep.value_step, spatial, d, channel, w, taps, masks, v * count, count, mode
                )
            if sub_pixels == 4:
                if pq % 2 == 1:
                    _store_pairs(result, vector.shift(to, pq // 2 * sub_row), previous, total, 2 * positions)
                previous = total
            elif whole and sweep.result_step == 1:
                vector.store(result, to, total)
            else:
                sub_pixel = pq // g.scale * sub_row + pq % g.scale if sub_pixels > 1 else 0
                mask = vector.between(0, positions)
                vector.store_where(result, vector.shift(to, sub_pixel), sweep.result_step, total, mask)


@embedded
def _store_pairs(result, to, even, odd, count):  # type: ignore[no-untyped-def]
    size = vector.lanes(result)
    vector.store_where(result, to, 1, vector.zipped(even, odd, 0), vector.between(0, count))
    vector.store_where(result, vector.shift(to, size), 1, vector.zipped(even, odd, 1), vector.between(0, count - size))


def _tap_sum(masked: bool):  # type: ignore[no-untyped-def]
    """Return a function that sums the taps of a vector of positions for a pack of channels."""

    @embedded
    def sum_taps(values, starts, step, spatial, d, channel, w, taps, masks, m, count, mode):  # type: ignore[no-untyped-def]
        total = vector.zeros(values, starts)
        for first in range(0, count, CHAIN):
            chain = vector.zeros(values, starts)
            for k in range(first, min(count, first + CHAIN)):
                at = vector.shift(starts, taps[k * TAP + VALUE])
                before = chain
                x = vector.load_where(values, at, step, masks[m + k]) if masked else vector.load(values, at)
                if mode == CHANNEL:
                    chain = vector.fma(vector.broadcast(channel, vector.shift(w, taps[k * TAP + WEIGHT])), x, chain)
                else:
                    here = d + taps[k * TAP + FILTER]
                    f = vector.load_where(spatial, here, 1, masks[m + k]) if masked else vector.load(spatial, here)
                    if mode == SPATIAL:
                        chain = vector.fma(f, x, chain)
                    else:
                        weight = vector.broadcast(channel, vector.shift(w, taps[k * TAP + WEIGHT]))
                        both = vector.mul(f, weight) if mode == PRODUCT else vector.add(f, weight)
                        chain = vector.fma(both, x, chain)
                if masked:
                    chain = vector.where(masks[m + k], chain, before)
            total = chain if first == 0 else vector.add(total, chain)
        return total

    return sum_taps


_sum_whole, _sum_masked = _tap_sum(masked=False), _tap_sum(masked=True)
