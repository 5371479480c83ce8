"""The sums over taps for filters of 3 x 3 that read values side by side, without stride and sub-pixels.

Values that one vector ends with are those that the next begins with: each is loaded once, where `cpu_sums_rows` loads
it twice. Most of these loads lie across two lines of the cache.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing
from dynk.kernels.decoupled.cpu_results import LAG, places_in_line, put, stream_line, write_line, write_whole
from dynk.kernels.decoupled.cpu_sweep import FIELDS, FIRST_RESULT, FIRST_VALUE, FULL, POSITIONS, TAP, VALUE, ahead
from dynk.kernels.decoupled.geometry import FilterGeometry


def are_nine(g: FilterGeometry) -> bool:
    """Return whether there is code for these filters here."""
    near = g.stride_h == g.stride_w == g.dilation_w == g.scale == 1
    return near and g.kh == g.kw == 3 and g.add == 0


@borrowing
def sums_of_nine(  # type: ignore[no-untyped-def]
    columns, begin, end, start, image, pack, values, filters, weights, ring, result, tables, sweep, taps, sub_pixels,
    planes, past, g,
):  # fmt: skip
    """Do what `sums_of_rows` does for filters of three rows and columns."""
    fields, size = tables[0], vector.lanes(values)
    source, target = vector.spaced(start, planes[0], pack), vector.spaced(image * planes[1], planes[1], pack)
    rows = vector.pick(taps, VALUE), vector.pick(taps, 3 * TAP + VALUE), vector.pick(taps, 6 * TAP + VALUE)
    doubt, due = vector.zeros(values, 0), np.int64(-1)
    low_0 = low_1 = low_2 = vector.zeros(values, pack)
    to_first = vector.shift(target, fields[begin * FIELDS + FIRST_RESULT])
    in_line, results = places_in_line(result, to_first), planes[1] - fields[begin * FIELDS + FIRST_RESULT]
    results = min(results, (end - begin) * size)
    lined = in_line[0] + in_line[1] + in_line[2] + in_line[3] == 0  # vectors are lines of the result, and need no ring
    # The first line begins before the first result: it is written between two parts of the loop, not within its turns.
    middle = min(end, begin + LAG)
    for part in range(2):
        for v in range(begin if part == 0 else middle, middle if part == 0 else end):
            first = vector.pick(fields, v * FIELDS + FIRST_VALUE)
            starts = vector.shift(source, first)
            if past != 0:
                vector.prefetch(values, vector.shift(source, ahead(v, FIRST_VALUE, fields, len(pack) * planes[0])))
            if first != due:
                low_0 = vector.load(values, vector.shift(starts, rows[0]))
                low_1 = vector.load(values, vector.shift(starts, rows[1]))
                low_2 = vector.load(values, vector.shift(starts, rows[2]))
            due, starts, d = first + size, vector.shift(starts, size), v * 9 * size
            total = vector.zeros(values, pack)
            total, low_0 = _add_row(0, starts, rows[0], d, low_0, total, values, filters, weights, pack)
            total, low_1 = _add_row(3, starts, rows[1], d, low_1, total, values, filters, weights, pack)
            total, low_2 = _add_row(6, starts, rows[2], d, low_2, total, values, filters, weights, pack)
            z = vector.zero_or_nan(total)
            doubt = vector.add(doubt, vector.add(vector.add(z[0], z[1]), vector.add(z[2], z[3])))
            if past == 0 or lined:
                to = vector.shift(target, vector.pick(fields, v * FIELDS + FIRST_RESULT))
                if vector.pick(fields, v * FIELDS + FULL) != 0:
                    write_whole(result, to, total, past)
                else:
                    vector.store_where(result, to, 1, total, vector.pick(fields, v * FIELDS + POSITIONS))
            else:
                put(ring, v - begin, in_line, total)
                if v - begin > LAG:
                    stream_line(ring, v - begin - LAG, in_line, result, to_first)
        if past != 0 and not lined and part == 0:
            write_line(ring, 0, in_line, results, result, to_first)
    if past != 0 and not lined:
        for i in range(max(1, end - begin - LAG), end - begin + 1):
            write_line(ring, i, in_line, results, result, to_first)
    return vector.within(doubt, 0.0, 0.0) == vector.between(0, size)


@borrowing
def _add_row(k, starts, row, d, low, total, values, filters, weights, pack):  # type: ignore[no-untyped-def]
    """Return the sums with the taps of a row from tap k on added, and the values that follow `low`."""
    size = vector.lanes(values)
    high = vector.load(values, vector.shift(starts, row))
    for j in range(3):
        f = vector.load(filters, d + (k + j) * size)
        u = vector.broadcast(weights, vector.shift(pack, (k + j) * len(pack)))
        total = vector.fma(vector.mul(f, u), vector.slid(low, high, j), total)
    return total, high
