"""Products of matrices, of which one is read number by number and the other in panels of VECTORS vectors.

A product takes ROWS rows of the one and a panel of the other, so that each number loaded serves several sums. Chains of
CHAIN products are summed in registers, then merged.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import load, store

VECTORS = 3  # of pixels that a product takes at once
PANELS = 4  # of VECTORS vectors each that a tile of pixels has
ROWS = 8
CHAIN = 64

_FOUR = (0, 1, 2, 3)
_EIGHT = (0, 1, 2, 3, 4, 5, 6, 7)
_THREE = (0, 1, 2)
_COLUMN_OF_ALL, _COLUMN_OF_EIGHT = _THREE * ROWS, (0,) * ROWS
_ROW_OF_ALL = tuple(k // VECTORS for k in range(ROWS * VECTORS))


@borrowing
def ceil_div(a, b):  # type: ignore[no-untyped-def]
    """Return a / b, rounded up; a may be negative."""
    return -(-a // b)


@borrowing
def tile_pixels(like):  # type: ignore[no-untyped-def]
    """Return the most pixels of a tile."""
    return PANELS * VECTORS * vector.lanes(like)


@inlined
def everywhere(count):  # type: ignore[no-untyped-def]
    """Return masks of all lanes."""
    masks = np.empty(count, np.int64)
    for k in range(count):
        masks[k] = -1
    return masks


@borrowing
def place(k, v, rows, panel, like):  # type: ignore[no-untyped-def]
    """Return where vector v of row k stands among panels of `rows` rows of `panel` vectors."""
    return ((v // panel * rows + k) * panel + v % panel) * vector.lanes(like)


@borrowing
def padded(rows):  # type: ignore[no-untyped-def]
    """Return the number of rows that products of all of them take."""
    return ceil_div(rows, ROWS) * ROWS


@borrowing
def multiply(  # type: ignore[no-untyped-def]
    a, at, row_step, step, b, b_at, b_step, terms, vectors, masks, mask_at, sums, to, sum_step
):
    """Add the products of ROWS rows of a with up to VECTORS vectors of b to as many sums, where masks say so.

    Term q of row r is a[at + r * row_step + q * step] * b[b_at + q * b_step ...]; its sums start at to + r * sum_step.
    """
    if vectors == VECTORS:
        _multiply(
            a, at, row_step, step, b, b_at, b_step, terms, masks, mask_at, sums, to, sum_step,
            _THREE, _COLUMN_OF_ALL, _ROW_OF_ALL,
        )  # fmt: skip
    else:
        for v in range(vectors):
            shift = v * vector.lanes(b)
            _multiply(
                a, at, row_step, step, b, b_at + shift, b_step, terms, masks, mask_at + v, sums, to + shift, sum_step,
                (0,), _COLUMN_OF_EIGHT, _EIGHT,
            )  # fmt: skip


@borrowing
def _multiply(  # type: ignore[no-untyped-def]
    a, at, row_step, step, b, b_at, b_step, terms, masks, mask_at, sums, to, sum_step, columns, column_of, row_of
):
    size = vector.lanes(b)
    rows, panel = vector.spaced(at, row_step, _EIGHT), vector.spaced(b_at, size, columns)
    total = vector.zeros(b, row_of)
    for first in range(0, terms, CHAIN):
        chain = vector.zeros(b, row_of)
        for q in range(first, min(first + CHAIN, terms)):
            factors = vector.broadcast(a, vector.shift(rows, q * step))
            chain = vector.outer(factors, vector.load(b, vector.shift(panel, q * b_step)), chain)
        total = vector.add(chain, total)
    here = vector.spaced(vector.spaced(to, size, column_of), sum_step, row_of)
    before = vector.load(sums, here)
    which = vector.pick(masks, vector.shift(column_of, mask_at))
    vector.store(sums, here, vector.where(which, vector.add(before, total), before))


@borrowing
def load_rows(array, start, row_step, rows, count, to, to_at):  # type: ignore[no-untyped-def]
    """Copy `rows` runs of `count` numbers to rows that follow each other; return whether all are finite.

    Up to a vector behind the last row is written too.
    """
    size = vector.lanes(to)
    zero, zeros = vector.zeros(to, 0), vector.zeros(to, _FOUR)
    check, checks = zero, zeros  # 0 unless a value is not finite; the sums of a pack do not wait for each other
    for row in range(rows):
        at, here = start + row * row_step, to_at + row * count
        packed = count - count % (4 * size)
        for k in range(0, packed, 4 * size):
            values = vector.load(array, vector.spaced(at + k, size, _FOUR))
            checks = vector.fma(values, zeros, checks)
            vector.store(to, vector.spaced(here + k, size, _FOUR), values)
        for k in range(packed, count, size):
            rest = vector.load_where(array, at + k, 1, vector.between(0, count - k))
            check = vector.fma(rest, zero, check)
            vector.store(to, here + k, rest)
    for k in range(4):
        check = vector.add(check, checks[k])
    return vector.total(check) == 0


@borrowing
def add_to(sums, more):  # type: ignore[no-untyped-def]
    """Add an array of sums to another, and clear it."""
    size = vector.lanes(sums)
    zero = vector.zeros(sums, 0)
    for k in range(0, sums.size, size):
        vector.store(sums, k, vector.add(vector.load(sums, k), vector.load(more, k)))
        vector.store(more, k, zero)


@borrowing
def load_planes(array, start, plane, planes, pixels, to):  # type: ignore[no-untyped-def]
    """Copy `pixels` numbers of each of some planes, from `start` of the first on, to the rows of panels."""
    size = vector.lanes(to)
    for row in range(planes):
        for v in range(ceil_div(pixels, size)):
            here = start + row * plane + v * size
            values = vector.load_where(array, here, 1, vector.between(0, pixels - v * size))
            vector.store(to, place(row, v, planes, VECTORS, to), values)


@borrowing
def transpose_planes(array, start, plane, planes, pixels, to):  # type: ignore[no-untyped-def]
    """Copy what `load_planes` does, pixel by pixel: a tile has a row for each. Return whether all are finite."""
    size = vector.lanes(to)
    zero = vector.zeros(to, 0)
    check = zero
    for v in range(ceil_div(planes, size)):
        mask = vector.between(0, planes - v * size)
        for pixel in range(pixels):
            values = vector.load_where(array, start + v * size * plane + pixel, plane, mask)
            check = vector.fma(values, zero, check)  # 0 unless a value is not finite
            vector.store(to, place(pixel, v, tile_pixels(to), VECTORS, to), values)
    return vector.total(check) == 0


@borrowing
def add_shares(partials, shares, first, end, sums):  # type: ignore[no-untyped-def]
    """Write the sums, from `first` to `end`, of arrays of partial sums that follow each other."""
    for k in range(first, end):
        total = load(partials, k)
        for share in range(1, shares):
            total += load(partials, share * sums.size + k)
        store(sums, k, total)


@borrowing
def sum_planes(array, first, step, planes, plane, like):  # type: ignore[no-untyped-def]
    """Return the sum of every `step`-th plane from `first` on: chains of vectors, sums of chains, the sum of these."""
    size = vector.lanes(like)
    chain = some = total = vector.zeros(like, 0)
    terms = 0
    for n in range(planes):
        for k in range(0, plane, size):
            mask = vector.between(0, plane - k)
            chain = vector.add(vector.load_where(array, (first + n * step) * plane + k, 1, mask), chain)
            terms += 1
            if terms % CHAIN == 0:
                some, chain = vector.add(chain, some), vector.zeros(like, 0)
            if terms % (CHAIN * CHAIN) == 0:
                total, some = vector.add(some, total), vector.zeros(like, 0)
    return vector.total(vector.add(total, vector.add(some, chain)))
