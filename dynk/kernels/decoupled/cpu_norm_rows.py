"""Blocks of filters that lie anyhow, float64 inside whatever the storage type.

The filters of a block stand side by side in rows, so that loops over the taps are vector work also where a filter's own
taps lie far apart.
"""

from __future__ import annotations

import numpy as np

from dynk.kernels.common.compile import borrowing, inlined
from dynk.kernels.common.numeric import fill, load, store
from dynk.kernels.decoupled.cpu_norm_runs import (
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

ALL = -1  # the mask of all filters of a block


@inlined
def forward_rows(  # type: ignore[no-untyped-def]
    count, mask, at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps
):
    """Write the normalised filters of a block that are in the mask."""
    first, mean, std = _rows(count)
    row, gain, bias = _rows(count)
    _statistics(f, at_f, count, geometry, first, mean, std, row)
    fill(gain, 1)
    fill(bias, 0)
    step = geometry[F + LAST]
    for i in range(geometry[KH]):
        for j in range(geometry[KW]):
            _read(row, count, f, at_f, F, F_TAPS, i, j, geometry)
            if geometry[HAS_SCALE] != 0:
                _read(gain, count, scale, at_scale, SCALE, SCALE_TAPS, i, j, geometry)
            if geometry[HAS_SHIFT] != 0:
                _read(bias, count, shift, at_shift, SHIFT, SHIFT_TAPS, i, j, geometry)
            start = at_f + i * geometry[F_TAPS] + j * geometry[F_TAPS + 1]
            for k in range(count):
                z = _normalised(row[k], first[k], mean[k], std[k], eps)
                if mask >> k & 1:
                    store(out, start + k * step, z * gain[k] + bias[k])


@inlined
def backward_rows(  # type: ignore[no-untyped-def]
    count, mask, mask_sums, at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums, slot, geometry,
    eps
):  # fmt: skip
    """Write a block's grad_f = (h - mean h) / (std + eps) - z * sum(h z) / ((T - 1) std) with h = grad_out * scale.

    And add its terms to the sums of scale (grad_out * z) and of shift (grad_out), of which `wanted` tells the places or
    -1; `slot` is how far those of one tap are from those of the next. `mask` is of the filters whose grad_f is written,
    `mask_sums` of those whose terms are added.
    """
    kh, kw = geometry[KH], geometry[KW]
    first, mean, std = _rows(count)
    row, grad, gain = _rows(count)
    _statistics(f, at_f, count, geometry, first, mean, std, row)
    through_mean, through_std = np.zeros(count, np.float64), np.zeros(count, np.float64)
    fill(gain, 1)
    for i in range(kh):
        for j in range(kw):
            _read(row, count, f, at_f, F, F_TAPS, i, j, geometry)
            _read(grad, count, grad_out, at_f, F, F_TAPS, i, j, geometry)
            if geometry[HAS_SCALE] != 0:
                _read(gain, count, scale, at_scale, SCALE, SCALE_TAPS, i, j, geometry)
            for k in range(count):
                h = grad[k] * gain[k]
                row[k] = _normalised(row[k], first[k], mean[k], std[k], eps)
                through_mean[k] += h
                through_std[k] += h * row[k]
            start = at_sums + (i * kw + j) * slot
            if wanted[0] >= 0:
                for k in range(count):
                    if mask_sums >> k & 1:
                        sums[wanted[0] + start + k] += grad[k] * row[k]
            if wanted[1] >= 0:
                for k in range(count):
                    if mask_sums >> k & 1:
                        sums[wanted[1] + start + k] += grad[k]
    if want_f != 0:
        for k in range(count):
            through_mean[k] /= kh * kw
            through_std[k] /= (kh * kw - 1) * std[k]
        step = geometry[F + LAST]
        for i in range(kh):
            for j in range(kw):
                _read(row, count, f, at_f, F, F_TAPS, i, j, geometry)
                _read(grad, count, grad_out, at_f, F, F_TAPS, i, j, geometry)
                if geometry[HAS_SCALE] != 0:
                    _read(gain, count, scale, at_scale, SCALE, SCALE_TAPS, i, j, geometry)
                start = at_f + i * geometry[F_TAPS] + j * geometry[F_TAPS + 1]
                for k in range(count):
                    z = _normalised(row[k], first[k], mean[k], std[k], eps)
                    value = (grad[k] * gain[k] - through_mean[k]) / (std[k] + eps) - z * through_std[k]
                    if mask >> k & 1:
                        store(grad_f, start + k * step, 0.0 if std[k] == 0.0 else value)


@borrowing
def _read(row, count, array, start, operand, taps, i, j, geometry):  # type: ignore[no-untyped-def]
    """Read tap (i, j) of a run's filters into a row."""
    start += i * geometry[taps] + j * geometry[taps + 1]
    step = geometry[operand + LAST]
    if step == 1:
        for k in range(count):
            store(row, k, np.float64(load(array, start + k)))
    else:
        for k in range(count):
            store(row, k, np.float64(load(array, start + k * step)))


@inlined
def _statistics(f, start, count, geometry, first, mean, std, row):  # type: ignore[no-untyped-def]
    """Fill the rows of first taps, of means less the first tap and of unbiased standard deviations.

    All is relative to the first tap, so that a filter of equal taps has a deviation of exactly 0.
    """
    kh, kw = geometry[KH], geometry[KW]
    _read(first, count, f, start, F, F_TAPS, 0, 0, geometry)
    fill(mean, 0)
    fill(std, 0)
    for i in range(kh):
        for j in range(kw):
            _read(row, count, f, start, F, F_TAPS, i, j, geometry)
            for k in range(count):
                mean[k] += row[k] - first[k]
    for k in range(count):
        mean[k] /= kh * kw
    unit = np.ones(count, np.float64)
    if f.itemsize == 8:  # squares of the narrower types cannot leave the range of float64
        _largest_deviations(unit, f, start, count, geometry, first, mean, row)
    for i in range(kh):
        for j in range(kw):
            _read(row, count, f, start, F, F_TAPS, i, j, geometry)
            for k in range(count):
                d = (row[k] - first[k] - mean[k]) / unit[k]
                std[k] += d * d
    for k in range(count):
        std[k] = unit[k] * np.sqrt(std[k] / (kh * kw - 1))


@borrowing
def _largest_deviations(largest, f, start, count, geometry, first, mean, row):  # type: ignore[no-untyped-def]
    """Fill a row with the largest deviation of each filter from its mean, 1 where there is none."""
    fill(largest, 0)
    for i in range(geometry[KH]):
        for j in range(geometry[KW]):
            _read(row, count, f, start, F, F_TAPS, i, j, geometry)
            for k in range(count):
                largest[k] = max(largest[k], abs(row[k] - first[k] - mean[k]))
    for k in range(count):
        if largest[k] == 0.0:
            largest[k] = 1.0


@borrowing
def _normalised(value, first, mean, std, eps):  # type: ignore[no-untyped-def]
    return 0.0 if std == 0.0 else (value - first - mean) / (std + eps)


@inlined
def _rows(count):  # type: ignore[no-untyped-def]
    return np.empty(count, np.float64), np.empty(count, np.float64), np.empty(count, np.float64)
