"""Blocks of filters that lie side by side, in vectors of float64: those of spatial filters.

Of the storage types but float64, whose squares may leave its range. Within it they do not, so a filter is read twice
only: sums of d and of d * d give its mean and its deviation, where d = f - first tap keeps the difference of the two
from cancelling to less than 1/T of what is subtracted.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common import numeric, vector
from dynk.kernels.common.compile import embedded, inlined
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

PACK = (0, 8, 16, 24)
FILTERS_OF_PACK = 32


@embedded
def side_by_side(f, geometry):  # type: ignore[no-untyped-def]
    """Return whether whole blocks are for this file; from filter to filter scale and shift then step by 0 or 1."""
    return f.itemsize < 8 and geometry[F + LAST] == 1


@embedded
def forward_vectors(at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps):  # type: ignore[no-untyped-def]
    """Write the normalised filters of a block."""
    kh, kw = geometry[KH], geometry[KW]
    for k in range(0, BLOCK, FILTERS_OF_PACK):
        start = vector.shift(PACK, at_f + k)
        minus_center, _, inverse = _statistics(f, start, geometry, eps)
        gain, bias = inverse, vector.doubles(0.0, PACK)
        for i in range(kh):
            for j in range(kw):
                if geometry[HAS_SCALE] != 0 and _is_new(SCALE_TAPS, i, j, geometry):
                    gain = vector.mul(inverse, _parameter(scale, at_scale, k, SCALE, SCALE_TAPS, i, j, geometry))
                if geometry[HAS_SHIFT] != 0 and _is_new(SHIFT_TAPS, i, j, geometry):
                    bias = _parameter(shift, at_shift, k, SHIFT, SHIFT_TAPS, i, j, geometry)
                at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
                d = vector.add(vector.load_doubles(f, at), minus_center)
                vector.store(out, at, vector.fma(d, gain, bias))


@embedded
def backward_vectors(  # type: ignore[no-untyped-def]
    at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums, slot, geometry, eps
):
    """Do for a block what `backward_rows` does."""
    kh, kw = geometry[KH], geometry[KW]
    zeros = vector.doubles(0.0, PACK)
    for k in range(0, BLOCK, FILTERS_OF_PACK):
        start = vector.shift(PACK, at_f + k)
        minus_center, std, inverse = _statistics(f, start, geometry, eps)
        gain = vector.doubles(1.0, PACK)
        through_mean, through_std, of_scale, of_shift = zeros, zeros, zeros, zeros
        for i in range(kh):
            for j in range(kw):
                if geometry[HAS_SCALE] != 0 and _is_new(SCALE_TAPS, i, j, geometry):
                    gain = _parameter(scale, at_scale, k, SCALE, SCALE_TAPS, i, j, geometry)
                at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
                d = vector.add(vector.load_doubles(f, at), minus_center)
                z, grad = vector.mul(d, inverse), vector.load_doubles(grad_out, at)
                h = vector.mul(grad, gain)
                through_mean, through_std = vector.add(through_mean, h), vector.fma(h, z, through_std)
                of_scale, of_shift = vector.fma(grad, z, of_scale), vector.add(of_shift, grad)
                if slot != 0 or i * kw + j == kh * kw - 1:
                    at_slot = at_sums + k + (i * kw + j) * slot
                    if wanted[0] >= 0:
                        _add_to(sums, wanted[0] + at_slot, of_scale)
                    if wanted[1] >= 0:
                        _add_to(sums, wanted[1] + at_slot, of_shift)
                    of_scale, of_shift = zeros, zeros
        if want_f != 0:
            minus_mean_h = vector.mul(through_mean, vector.doubles(-1.0 / (kh * kw), PACK))
            minus_slope = vector.div(through_std, vector.mul(std, vector.doubles(1.0 - kh * kw, PACK)))
            for i in range(kh):
                for j in range(kw):
                    if geometry[HAS_SCALE] != 0 and _is_new(SCALE_TAPS, i, j, geometry):
                        gain = _parameter(scale, at_scale, k, SCALE, SCALE_TAPS, i, j, geometry)
                    at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
                    d = vector.add(vector.load_doubles(f, at), minus_center)
                    h = vector.fma(vector.load_doubles(grad_out, at), gain, minus_mean_h)
                    value = vector.mul(vector.fma(d, minus_slope, h), inverse)
                    vector.store(grad_f, at, vector.unless_zero(std, value))


@inlined
def _statistics(f, start, geometry, eps):  # type: ignore[no-untyped-def]
    """Return -mean, the deviation and 1 / (deviation + eps), which is 0 for equal taps.

    float64 holds the mean of narrower taps so well that what is lost is nothing beside their least deviation.
    """
    kh, kw = geometry[KH], geometry[KW]
    minus_first = vector.mul(vector.load_doubles(f, start), vector.doubles(-1.0, PACK))
    total = vector.doubles(0.0, PACK)
    squares = total
    for i in range(kh):
        for j in range(kw):
            at = vector.shift(start, i * geometry[F_TAPS] + j * geometry[F_TAPS + 1])
            d = vector.add(vector.load_doubles(f, at), minus_first)
            total, squares = vector.add(total, d), vector.fma(d, d, squares)
    minus_mean = vector.mul(total, vector.doubles(-1.0 / (kh * kw), PACK))
    variance = vector.mul(vector.fma(total, minus_mean, squares), vector.doubles(1.0 / (kh * kw - 1), PACK))
    std = vector.sqrt(variance)
    inverse = vector.div(vector.doubles(1.0, PACK), vector.add(std, vector.doubles(eps, PACK)))
    return vector.add(minus_first, minus_mean), std, vector.unless_zero(std, inverse)


@inlined
def _is_new(taps, i, j, geometry):  # type: ignore[no-untyped-def]
    """Return whether tap (i, j) may have another scale or shift than the one before."""
    return i + j == 0 or geometry[taps] + geometry[taps + 1] != 0


@inlined
def _parameter(array, start, k, operand, taps, i, j, geometry):  # type: ignore[no-untyped-def]
    """Return scale or shift of tap (i, j) for a pack of filters."""
    at = start + i * geometry[taps] + j * geometry[taps + 1]
    if geometry[operand + LAST] == 0:
        return vector.doubles(np.float64(numeric.load(array, at)), PACK)
    return vector.load_doubles(array, vector.shift(PACK, at + k))


@inlined
def _add_to(sums, start, values):  # type: ignore[no-untyped-def]
    at = vector.shift(PACK, start)
    vector.store(sums, at, vector.add(vector.load(sums, at), values))
