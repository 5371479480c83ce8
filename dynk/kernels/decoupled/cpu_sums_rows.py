"""The sums over taps for filters whose rows read values side by side: each loads two vectors for its row of values.

The vectors begin <= v < end stand so far inside the array that taps beyond the border may be read. Their filters are 0,
so that they change a sum only where it is not finite then: the functions return whether all sums are finite.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing
from dynk.kernels.decoupled.cpu_results import write
from dynk.kernels.decoupled.cpu_sweep import FIELDS, FIRST_RESULT, FIRST_VALUE, TAP, VALUE, ahead


def _row_sums(columns: int):  # type: ignore[no-untyped-def]
    """Return a function that forms the sums of four channels for filters with so many columns."""

    @borrowing
    def sums(  # type: ignore[no-untyped-def]
        begin, end, start, image, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past,
        g
    ):  # fmt: skip
        fields, count, size = tables[0], taps.size // TAP, vector.lanes(values)
        source, target = vector.spaced(start, planes[0], pack), vector.spaced(image * planes[1], planes[1], pack)
        doubt, sub_row = vector.zeros(values, 0), sweep.result_row // g.scale
        for v in range(begin, end):
            starts = vector.shift(source, vector.pick(fields, v * FIELDS + FIRST_VALUE))
            if past != 0:
                vector.prefetch(values, vector.shift(source, ahead(v, FIRST_VALUE, fields, len(pack) * planes[0])))
            to = vector.shift(target, vector.pick(fields, v * FIELDS + FIRST_RESULT))
            even = vector.zeros(values, pack)
            for pq in range(sub_pixels):
                d, w = (v * sub_pixels + pq) * count * size, vector.shift(pack, pq * count * len(pack))
                total = vector.zeros(values, pack)
                for k in range(0, count, columns):
                    at = vector.shift(starts, vector.pick(taps, k * TAP + VALUE))
                    low, high = vector.load(values, at), vector.load(values, vector.shift(at, size))
                    for j in range(columns):
                        f = vector.load(filters, d + (k + j) * size)
                        u = vector.broadcast(weights, vector.shift(w, (k + j) * len(pack)))
                        total = vector.fma(vector.mul(f, u), vector.slid(low, high, j), total)
                z = vector.zero_or_nan(total)
                doubt = vector.add(doubt, vector.add(vector.add(z[0], z[1]), vector.add(z[2], z[3])))
                write(result, to, even, total, pq, fields, v, sub_row, sub_pixels, past, sweep, g)
                even = total
        return vector.within(doubt, 0.0, 0.0) == vector.between(0, size)

    return sums


_sums_of_3, _sums_of_5 = _row_sums(3), _row_sums(5)


@borrowing
def sums_of_rows(  # type: ignore[no-untyped-def]
    columns, begin, end, start, image, pack, values, filters, weights, ring, result, tables, sweep, taps, sub_pixels,
    planes, past, g,
):  # fmt: skip
    """Form the sums of four channels for filters with three or five columns."""
    if columns == 3:
        return _sums_of_3(
            begin, end, start, image, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes,
            past, g,
        )  # fmt: skip
    return _sums_of_5(
        begin, end, start, image, pack, values, filters, weights, result, tables, sweep, taps, sub_pixels, planes, past,
        g,
    )  # fmt: skip
