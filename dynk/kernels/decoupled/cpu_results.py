"""How vectors of sums become results.

Large results are written past the caches. This pays only for whole lines of them, and what a vector holds begins
somewhere in a line. So vectors of four channels go to a ring of slots first, at the same place of a line, and from
there line by line to the result.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing
from dynk.kernels.decoupled.cpu_sweep import FIELDS, FULL, LOWER, POSITIONS, UPPER

SLOTS = 8
LAG = 4  # vectors after which a line is written: sooner, its loads would wait for the stores
ROOM = SLOTS + 1  # vectors of a channel: the last line of a ring ends in the first slot


@borrowing
def places_in_line(result, to):  # type: ignore[no-untyped-def]
    """Return for each of four elements of the result how many others of its line are before it."""
    size, first = vector.lanes(result), result.ctypes.data // result.itemsize
    return (first + to[0]) % size, (first + to[1]) % size, (first + to[2]) % size, (first + to[3]) % size


@borrowing
def put(ring, i, places, value):  # type: ignore[no-untyped-def]
    """Store vector i of each of four channels."""
    size = vector.lanes(ring)
    slots = vector.spaced(0, ROOM * size, (0, 1, 2, 3))
    vector.store(ring, vector.shift(vector.shift(slots, places), i % SLOTS * size), value)
    if i % SLOTS == SLOTS - 1:
        vector.store(ring, slots, vector.load(ring, vector.shift(slots, SLOTS * size)))


@borrowing
def stream_line(ring, i, places, result, to):  # type: ignore[no-untyped-def]
    """Write line i of four channels, whose first results are at `to`; it is neither their first nor their last."""
    size = vector.lanes(ring)
    line = vector.load(ring, vector.spaced(i % SLOTS * size, ROOM * size, (0, 1, 2, 3)))
    vector.stream(result, vector.shift(vector.shift(to, i * size), vector.spaced(0, -1, places)), line)


@borrowing
def write_line(ring, i, places, count, result, to):  # type: ignore[no-untyped-def]
    """Write line i of four channels with `count` results each, of which the first are at `to`."""
    size = vector.lanes(ring)
    for u in range(4):
        lanes = vector.between(places[u] - i * size, places[u] + count - i * size)
        line = vector.load(ring, (u * ROOM + i % SLOTS) * size)
        vector.store_where(result, to[u] - places[u] + i * size, 1, line, lanes)


@borrowing
def write_whole(result, to, total, past):  # type: ignore[no-untyped-def]
    """Write vectors that hold nothing but results."""
    if past != 0:
        vector.stream(result, to, total)
    else:
        vector.store(result, to, total)


@borrowing
def write(result, to, even, total, pq, fields, v, sub_row, sub_pixels, past, sweep, g):  # type: ignore[no-untyped-def]
    """Write the results of sub-pixel pq of a vector; where there are four, each two at once."""
    size = vector.lanes(result)
    full = vector.pick(fields, v * FIELDS + FULL) != 0
    # Masked stores cost far more than others.
    if sub_pixels == 4:
        if pq % 2 == 1:
            low, high = vector.zipped(even, total, 0), vector.zipped(even, total, 1)
            start = vector.shift(to, pq // 2 * sub_row)
            if full:
                write_whole(result, start, low, past)
                write_whole(result, vector.shift(start, size), high, past)
            else:
                rest = vector.pick(fields, v * FIELDS + UPPER)
                vector.store_where(result, start, 1, low, vector.pick(fields, v * FIELDS + LOWER))
                vector.store_where(result, vector.shift(start, size), 1, high, rest)
    elif full and sweep.result_step == 1:
        write_whole(result, to, total, past)
    else:
        sub_pixel = pq // g.scale * sub_row + pq % g.scale if sub_pixels > 1 else 0
        mask = vector.pick(fields, v * FIELDS + POSITIONS)
        vector.store_where(result, vector.shift(to, sub_pixel), sweep.result_step, total, mask)
