"""Packs of filters that lie side by side, in vectors of the accumulator type: those of spatial filters.

All is relative to a filter's first tap, so that what is large and common to all taps costs no digits, and sums are of
rows of taps first. Whatever the range of the type does not hold safely is left to `cpu_norm_rows`: a filter
whose squared deviations add up to almost nothing, as those of equal taps, or to very much, or are not numbers.
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
    F,
)

VECTORS = (0, 1, 2, 3)  # of a pack
LEAST, MOST = (1e-20, 1e-200), (1e30, 1e200)  # sums of squares, of float32 and of float64
LARGEST = (1e36, 1e300)  # sums of gradients


@borrowing
def side_by_side(f, geometry):  # type: ignore[no-untyped-def]
    """Return whether whole blocks are for this file; from filter to filter scale and shift then step by 0 or 1."""
    return geometry[F + LAST] == 1


@borrowing
def forward_vectors(at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps):  # type: ignore[no-untyped-def]
    """Write the normalised filters of a block, and return the mask of those that it could not do."""
    kh, kw, size, left = geometry[KH], geometry[KW], vector.lanes(f), 0
    for k in range(0, BLOCK, len(VECTORS) * size):
        start = vector.spaced(at_f + k, size, VECTORS)
        minus_first, minus_mean, _, inverse, in_range = _statistics(f, start, geometry, eps)
        left |= _others(f, in_range) << k
        gain, bias = inverse, vector.zeros(f, start)
        for i in range(kh):
            for j in range(kw):
                if geometry[HAS_SCALE] != 0 and _is_new(SCALE_TAPS, i, j, geometry):
                    gain = vector.mul(inverse, _parameter(scale, at_scale, k, SCALE, SCALE_TAPS, i, j, geometry))
                if geometry[HAS_SHIFT] != 0 and _is_new(SHIFT_TAPS, i, j, geometry):
                    bias = _parameter(shift, at_shift, k, SHIFT, SHIFT_TAPS, i, j, geometry)
                at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
                deviation = vector.add(vector.add(vector.load(f, at), minus_first), minus_mean)
                vector.store(out, at, vector.fma(deviation, gain, bias))
    return left


@borrowing
def backward_vectors(  # type: ignore[no-untyped-def]
    at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums, slot, geometry, eps
):
    """Do for a block what `backward_rows` does; return the masks of the filters it left out, of grad_f and of the sums.

    With h = grad_out * scale / (std + eps), of which no product leaves the range where the gradient does not:
    grad_f = h - mean h - z * sum(h z) * (std + eps) / ((T - 1) std).
    """
    kh, kw, size, left, left_sums = geometry[KH], geometry[KW], vector.lanes(f), 0, 0
    for k in range(0, BLOCK, len(VECTORS) * size):
        start = vector.spaced(at_f + k, size, VECTORS)
        minus_first, minus_mean, std, inverse, in_range = _statistics(f, start, geometry, eps)
        zeros, gain = vector.zeros(f, start), inverse
        minus_mean_h, minus_slope = zeros, zeros
        for i in range(kh if want_f != 0 else 0):
            row_h, row_hz = zeros, zeros
            for j in range(kw):
                if geometry[HAS_SCALE] != 0 and _is_new(SCALE_TAPS, i, j, geometry):
                    gain = vector.mul(inverse, _parameter(scale, at_scale, k, SCALE, SCALE_TAPS, i, j, geometry))
                at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
                deviation = vector.add(vector.add(vector.load(f, at), minus_first), minus_mean)
                h = vector.mul(vector.load(grad_out, at), gain)
                row_h, row_hz = vector.add(row_h, h), vector.fma(h, vector.mul(deviation, inverse), row_hz)
            minus_mean_h, minus_slope = vector.add(minus_mean_h, row_h), vector.add(minus_slope, row_hz)
        most = limit(f, LARGEST)
        sums_in_range = vector.masked(vector.within(minus_mean_h, -most, most), vector.within(minus_slope, -most, most))
        left |= _others(f, vector.masked(in_range, sums_in_range)) << k
        left_sums |= _others(f, in_range) << k
        minus_mean_h = vector.mul(minus_mean_h, vector.filled(f, start, -1.0 / (kh * kw)))
        share = vector.div(vector.filled(f, start, -1.0 / max(1, kh * kw - 1)), vector.mul(std, inverse))
        minus_slope = vector.mul(minus_slope, share)
        of_scale, of_shift = zeros, zeros
        for i in range(kh):
            for j in range(kw):
                if geometry[HAS_SCALE] != 0 and _is_new(SCALE_TAPS, i, j, geometry):
                    gain = vector.mul(inverse, _parameter(scale, at_scale, k, SCALE, SCALE_TAPS, i, j, geometry))
                at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
                deviation = vector.add(vector.add(vector.load(f, at), minus_first), minus_mean)
                z, grad = vector.mul(deviation, inverse), vector.load(grad_out, at)
                if want_f != 0:
                    vector.store(grad_f, at, vector.fma(z, minus_slope, vector.fma(grad, gain, minus_mean_h)))
                of_scale, of_shift = vector.fma(grad, z, of_scale), vector.add(of_shift, grad)
                if slot != 0 or i * kw + j == kh * kw - 1:
                    at_slot = vector.spaced(at_sums + k + (i * kw + j) * slot, size, VECTORS)
                    if wanted[0] >= 0:
                        own = vector.where(in_range, of_scale, zeros)
                        vector.accumulate(sums, vector.shift(at_slot, wanted[0]), own)
                    if wanted[1] >= 0:
                        own = vector.where(in_range, of_shift, zeros)
                        vector.accumulate(sums, vector.shift(at_slot, wanted[1]), own)
                    of_scale, of_shift = zeros, zeros
    return left, left_sums


@borrowing
def _statistics(f, start, geometry, eps):  # type: ignore[no-untyped-def]
    """Return -first tap, -mean of what is more than it, the deviation, 1 / (it + eps), and where all is in range."""
    kh, kw = geometry[KH], geometry[KW]
    zeros = vector.zeros(f, start)
    minus_first = vector.mul(vector.load(f, start), vector.filled(f, start, -1.0))
    total, squares = zeros, zeros
    for i in range(kh):
        row = zeros
        for j in range(kw):
            at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
            row = vector.add(row, vector.add(vector.load(f, at), minus_first))
        total = vector.add(total, row)
    minus_mean = vector.mul(total, vector.filled(f, start, -1.0 / (kh * kw)))
    for i in range(kh):
        row = zeros
        for j in range(kw):
            at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
            deviation = vector.add(vector.add(vector.load(f, at), minus_first), minus_mean)
            row = vector.fma(deviation, deviation, row)
        squares = vector.add(squares, row)
    in_range = vector.within(squares, limit(f, LEAST), limit(f, MOST))
    std = vector.sqrt(vector.mul(squares, vector.filled(f, start, 1.0 / max(1, kh * kw - 1))))
    inverse = vector.div(vector.filled(f, start, 1.0), vector.add(std, vector.filled(f, start, eps)))
    return minus_first, minus_mean, std, inverse, in_range


@borrowing
def _others(f, masks):  # type: ignore[no-untyped-def]
    """Return the mask of the filters of a pack that are not in its masks."""
    size, found = vector.lanes(f), 0
    for v in range(len(VECTORS)):
        found |= (vector.between(0, size) & ~masks[v]) << v * size
    return found


@borrowing
def limit(f, limits):  # type: ignore[no-untyped-def]
    """Return the one of two numbers that is for an array's accumulator type."""
    return limits[1] if f.itemsize == 8 else limits[0]


@borrowing
def _is_new(taps, i, j, geometry):  # type: ignore[no-untyped-def]
    """Return whether tap (i, j) may have another scale or shift than the one before."""
    return i + j == 0 or geometry[taps] + geometry[taps + 1] != 0


@borrowing
def _parameter(array, start, k, operand, taps, i, j, geometry):  # type: ignore[no-untyped-def]
    """Return scale or shift of tap (i, j) for a pack of filters."""
    at = start + i * geometry[taps] + j * geometry[taps + 1]
    if geometry[operand + LAST] == 0:
        return vector.broadcast(array, vector.spaced(at, 0, VECTORS))
    return vector.load(array, vector.spaced(at + k, vector.lanes(array), VECTORS))
