"""Filters of 3 x 3 taps that lie side by side, as in `cpu_norm_vectors`: here all taps stay in registers.

A vector of filters at a time. Whatever the range of the type does not hold safely is left to `cpu_norm_rows`.
"""

from __future__ import annotations

from dynk.kernels.common import vector
from dynk.kernels.common.compile import borrowing
from dynk.kernels.decoupled.cpu_norm_runs import (
    BLOCK,
    F_TAPS,
    HAS_SCALE,
    HAS_SHIFT,
    KH,
    KW,
    LAST,
    SCALE,
    SCALE_TAPS,
    SHIFT,
    SHIFT_TAPS,
)
from dynk.kernels.decoupled.cpu_norm_vectors import LARGEST, LEAST, MOST, limit, side_by_side

NINE = (0, 1, 2, 3, 4, 5, 6, 7, 8)


@borrowing
def nine_side_by_side(f, geometry):  # type: ignore[no-untyped-def]
    """Return whether whole blocks are for this file."""
    return side_by_side(f, geometry) and geometry[KH] == 3 and geometry[KW] == 3


@borrowing
def forward_nine(at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps):  # type: ignore[no-untyped-def]
    """Do for a block what `forward_vectors` does."""
    size, left, taps = vector.lanes(f), 0, _taps(F_TAPS, geometry)
    for k in range(0, BLOCK, size):
        start = vector.shift(taps, at_f + k)
        deviations, _, inverse, in_range = _statistics(f, start, eps)
        left |= (vector.between(0, size) & ~in_range) << k
        gains = _gains(inverse, scale, at_scale, k, geometry)
        if geometry[HAS_SHIFT] == 0:
            vector.store(out, start, vector.mul(deviations, gains))
        else:
            bias = _parameters(shift, at_shift, k, SHIFT, SHIFT_TAPS, geometry)
            vector.store(out, start, vector.fma(deviations, gains, bias))
    return left


@borrowing
def backward_nine(  # type: ignore[no-untyped-def]
    at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums, slot, geometry, eps
):
    """Do for a block what `backward_vectors` does, by the same equation."""
    size, left, left_sums, taps = vector.lanes(f), 0, 0, _taps(F_TAPS, geometry)
    for k in range(0, BLOCK, size):
        start = vector.shift(taps, at_f + k)
        deviations, std, inverse, in_range = _statistics(f, start, eps)
        z, grads = vector.mul(deviations, inverse), vector.load(grad_out, start)
        left_sums |= (vector.between(0, size) & ~in_range) << k
        if want_f != 0:
            h = vector.mul(grads, _gains(inverse, scale, at_scale, k, geometry))
            sum_h, slope, most = _sum(h), _dot(h, z), limit(f, LARGEST)
            known = in_range & vector.within(sum_h, -most, most) & vector.within(slope, -most, most)
            left |= (vector.between(0, size) & ~known) << k
            minus_mean = vector.mul(sum_h, vector.filled(f, 0, -1.0 / 9))
            share = vector.div(vector.filled(f, 0, -1.0 / 8), vector.mul(std, inverse))
            vector.store(grad_f, start, vector.fma(z, vector.mul(slope, share), vector.add(h, minus_mean)))
        at_slot = at_sums + k
        if wanted[0] >= 0:
            _accumulate(sums, wanted[0] + at_slot, slot, vector.mul(grads, z), in_range, f)
        if wanted[1] >= 0:
            _accumulate(sums, wanted[1] + at_slot, slot, grads, in_range, f)
    return left, left_sums


@borrowing
def _statistics(f, start, eps):  # type: ignore[no-untyped-def]
    """Return the deviations from the mean, the standard deviation, 1 / (it + eps), and where all is in range."""
    values = vector.load(f, start)
    relative = vector.add(values, vector.mul(values[0], vector.filled(f, 0, -1.0)))
    deviations = vector.add(relative, vector.mul(_sum(relative), vector.filled(f, 0, -1.0 / 9)))
    squares = _dot(deviations, deviations)
    in_range = vector.within(squares, limit(f, LEAST), limit(f, MOST))
    std = vector.sqrt(vector.mul(squares, vector.filled(f, 0, 1.0 / 8)))
    inverse = vector.div(vector.filled(f, 0, 1.0), vector.add(std, vector.filled(f, 0, eps)))
    return deviations, std, inverse, in_range


@borrowing
def _sum(taps):  # type: ignore[no-untyped-def]
    """Return the sum over nine taps, of rows first."""
    rows = vector.add(vector.add(taps[0::3], taps[1::3]), taps[2::3])
    return vector.add(vector.add(rows[0], rows[1]), rows[2])


@borrowing
def _dot(a, b):  # type: ignore[no-untyped-def]
    """Return the sum of products over nine taps, of rows first."""
    rows = vector.fma(a[2::3], b[2::3], vector.fma(a[1::3], b[1::3], vector.mul(a[0::3], b[0::3])))
    return vector.add(vector.add(rows[0], rows[1]), rows[2])


@borrowing
def _gains(inverse, scale, at_scale, k, geometry):  # type: ignore[no-untyped-def]
    """Return what the deviation of each tap is multiplied with."""
    if geometry[HAS_SCALE] == 0:
        return _nine(inverse)
    if geometry[SCALE_TAPS] + geometry[SCALE_TAPS + 1] == 0:
        return _nine(vector.mul(_parameters(scale, at_scale, k, SCALE, SCALE_TAPS, geometry)[0], inverse))
    return vector.mul(_parameters(scale, at_scale, k, SCALE, SCALE_TAPS, geometry), inverse)


@borrowing
def _parameters(array, start, k, operand, taps, geometry):  # type: ignore[no-untyped-def]
    """Return scale or shift of each tap for a vector of filters."""
    at = vector.shift(_taps(taps, geometry), start)
    if geometry[operand + LAST] == 0:
        return vector.broadcast(array, at)
    return vector.load(array, vector.shift(at, k))


@borrowing
def _taps(taps, geometry):  # type: ignore[no-untyped-def]
    """Return how far from the first each tap is."""
    down, right = geometry[taps], geometry[taps + 1]
    return (
        *(0, right, 2 * right),
        *(down, down + right, down + 2 * right),
        *(2 * down, 2 * down + right, 2 * down + 2 * right),
    )


@borrowing
def _nine(a):  # type: ignore[no-untyped-def]
    return a, a, a, a, a, a, a, a, a


@borrowing
def _accumulate(sums, at, slot, terms, mask, f):  # type: ignore[no-untyped-def]
    """Add the terms of each tap to its sums, or of all taps to those of the one slot there is."""
    zeros = vector.zeros(f, 0)
    if slot == 0:
        vector.accumulate(sums, at, vector.where(mask, _sum(terms), zeros))
    else:
        vector.accumulate(sums, vector.spaced(at, slot, NINE), vector.where(_nine(mask), terms, _nine(zeros)))
