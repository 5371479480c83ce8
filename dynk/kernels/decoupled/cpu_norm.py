"""Numba CPU kernels of `filter_norm`, float64 inside whatever the storage type.

The unit of work is a run: up to RUN filters that are neighbours along the last dimension, side by side in rows of
float64, so that loops over the taps are vector work also where a filter's own taps lie far apart.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import inlined, kernel
from dynk.kernels.common.numeric import fill, load, store
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS, NormGeometry

RUN = 64
LAST = MAX_NORM_DIMS - 1
# Positions in the geometry array; the first of MAX_NORM_DIMS where there is one for each dimension.
FILTERS, KH, KW, F_TAPS, SCALE_TAPS, SHIFT_TAPS, HAS_SCALE, HAS_SHIFT, EXTENT, F, SCALE, SHIFT = (
    NormGeometry._fields.index(name)
    for name in (
        "filters",
        "kh",
        "kw",
        "f_kh",
        "scale_kh",
        "shift_kh",
        "has_scale",
        "has_shift",
        "extent_0",
        "f_0",
        "scale_0",
        "shift_0",
    )
)


@kernel
def filter_norm_forward(f, scale, shift, out, geometry, reals):  # type: ignore[no-untyped-def]
    """DDF Eq. 3: (f - mean) / (std + eps) * scale + shift over the taps of each filter."""
    for task in prange(_runs(geometry, F, True)):
        _forward_run(np.int64(task), f, scale, shift, out, geometry, reals[0])


@kernel
def filter_norm_backward(  # type: ignore[no-untyped-def]
    grad_out, f, scale, shift, grad_f, grad_scale, grad_shift, geometry, reals
):
    """Gradients of `filter_norm_forward`; an output of size 0 is not wanted."""
    eps = reals[0]
    if grad_f.size > 0:
        for task in prange(_runs(geometry, F, True)):
            _grad_f_run(np.int64(task), grad_out, f, scale, grad_f, geometry, eps)
    for operand in (SCALE, SHIFT):
        grad = grad_scale if operand == SCALE else grad_shift
        if geometry[FILTERS] == 0:  # an empty batch: a sum of nothing
            for k in range(grad.size):
                store(grad, k, 0.0)
        elif grad.size > 0:
            parts = _parts(geometry, operand)
            kept = _runs(geometry, operand, True)
            partial = np.empty(kept * parts * _sums_size(geometry) if parts > 1 else 0, np.float64)
            for task in prange(kept * parts):
                _broadcast_task(np.int64(task), parts, grad_out, f, grad, partial, geometry, operand, eps)
            if parts > 1:
                for task in prange(kept):
                    _merge_parts(np.int64(task), parts, grad, partial, geometry, operand)


# ---- runs of filters -------------------------------------------------------------------------------------------------


@inlined
def _is_kept(geometry, operand, d):  # type: ignore[no-untyped-def]
    """Return whether an operand varies along dimension d; its gradient sums over the others."""
    return geometry[operand + d] != 0 or geometry[EXTENT + d] == 1


@inlined
def _run_length(geometry):  # type: ignore[no-untyped-def]
    return min(RUN, geometry[EXTENT + LAST])


@inlined
def _runs(geometry, operand, kept):  # type: ignore[no-untyped-def]
    """Return the number of runs along the dimensions that an operand keeps, or along the others."""
    runs = 1 if geometry[FILTERS] > 0 else 0
    for d in range(MAX_NORM_DIMS):
        if _is_kept(geometry, operand, d) == kept:
            extent = geometry[EXTENT + d]
            runs *= (extent + RUN - 1) // RUN if d == LAST else extent
    return runs


@inlined
def _locate(kept, summed, operand, geometry):  # type: ignore[no-untyped-def]
    """Return the offsets into f, scale and shift where a run starts, and its length."""
    at_f, at_scale, at_shift, count = 0, 0, 0, 1
    for back in range(MAX_NORM_DIMS):
        d = LAST - back
        extent = geometry[EXTENT + d]
        steps = (extent + RUN - 1) // RUN if d == LAST else extent
        if _is_kept(geometry, operand, d):
            index, kept = kept % steps, kept // steps
        else:
            index, summed = summed % steps, summed // steps
        if d == LAST:
            index *= RUN
            count = min(RUN, extent - index)
        at_f += index * geometry[F + d]
        at_scale += index * geometry[SCALE + d]
        at_shift += index * geometry[SHIFT + d]
    return at_f, at_scale, at_shift, count


@inlined
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


@inlined
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


@inlined
def _normalised(value, first, mean, std, eps):  # type: ignore[no-untyped-def]
    return 0.0 if std == 0.0 else (value - first - mean) / (std + eps)


@inlined
def _rows(count):  # type: ignore[no-untyped-def]
    return np.empty(count, np.float64), np.empty(count, np.float64), np.empty(count, np.float64)


@inlined
def _forward_run(task, f, scale, shift, out, geometry, eps):  # type: ignore[no-untyped-def]
    at_f, at_scale, at_shift, count = _locate(task, 0, F, geometry)
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
                store(out, start + k * step, z * gain[k] + bias[k])


# ---- backward --------------------------------------------------------------------------------------------------------


@inlined
def _grad_f_run(task, grad_out, f, scale, grad_f, geometry, eps):  # type: ignore[no-untyped-def]
    """grad_f = (h - mean h) / (std + eps) - z * sum(h z) / ((T - 1) std) with h = grad_out * scale."""
    kh, kw = geometry[KH], geometry[KW]
    at_f, at_scale, _, count = _locate(task, 0, F, geometry)
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
                through_mean[k] += h
                through_std[k] += h * _normalised(row[k], first[k], mean[k], std[k], eps)
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
                store(grad_f, start + k * step, 0.0 if std[k] == 0.0 else value)


@inlined
def _parts(geometry, operand):  # type: ignore[no-untyped-def]
    """Return into how many parts the sum over the dimensions that an operand does not keep is split.

    A part sums at least 64 runs, so that their partial sums are at most 1/64 of f.
    """
    return max(1, min(64, _runs(geometry, operand, False) // 64))


@inlined
def _sums_size(geometry):  # type: ignore[no-untyped-def]
    return geometry[KH] * geometry[KW] * _run_length(geometry)


@inlined
def _broadcast_task(  # type: ignore[no-untyped-def]
    task, parts, grad_out, f, grad, partial, geometry, operand, eps
):
    """Sum one part of the gradient of scale (grad_out * z) or of shift (grad_out), over whole filters."""
    normalise = operand == SCALE
    kept, part = task // parts, task % parts
    summed = _runs(geometry, operand, False)
    width = _run_length(geometry)
    first, mean, std = _rows(width)
    row, value = np.empty(width, np.float64), np.empty(width, np.float64)
    size = _sums_size(geometry)
    sums = np.zeros(size, np.float64)
    for run in range(part * summed // parts, (part + 1) * summed // parts):
        at_f, _, _, count = _locate(kept, run, operand, geometry)
        if normalise:
            _statistics(f, at_f, count, geometry, first, mean, std, value)
        for i in range(geometry[KH]):
            for j in range(geometry[KW]):
                start = (i * geometry[KW] + j) * width
                _read(row, count, grad_out, at_f, F, F_TAPS, i, j, geometry)
                if normalise:
                    _read(value, count, f, at_f, F, F_TAPS, i, j, geometry)
                    for k in range(count):
                        row[k] *= _normalised(value[k], first[k], mean[k], std[k], eps)
                for k in range(count):
                    store(sums, start + k, load(sums, start + k) + row[k])
    if parts == 1:
        _write_sums(kept, sums, grad, geometry, operand)
    else:
        for k in range(size):
            partial[task * size + k] = sums[k]


@inlined
def _merge_parts(kept, parts, grad, partial, geometry, operand):  # type: ignore[no-untyped-def]
    size = _sums_size(geometry)
    sums = np.zeros(size, np.float64)
    for part in range(parts):
        start = (kept * parts + part) * size
        for k in range(size):
            sums[k] += partial[start + k]
    _write_sums(kept, sums, grad, geometry, operand)


@inlined
def _write_sums(kept, sums, grad, geometry, operand):  # type: ignore[no-untyped-def]
    """Add up what falls on the same element of the gradient, over lanes and taps, and write it."""
    kh, kw, width = geometry[KH], geometry[KW], _run_length(geometry)
    _, at_scale, at_shift, count = _locate(kept, 0, operand, geometry)
    at = at_scale if operand == SCALE else at_shift
    taps = SCALE_TAPS if operand == SCALE else SHIFT_TAPS
    step, step_i, step_j = geometry[operand + LAST], geometry[taps], geometry[taps + 1]
    for i in range(kh if step_i != 0 else 1):
        for j in range(kw if step_j != 0 else 1):
            for k in range(count if step != 0 else 1):
                total = 0.0
                for ii in range(i, i + 1 if step_i != 0 else kh):
                    for jj in range(j, j + 1 if step_j != 0 else kw):
                        for kk in range(k, k + 1 if step != 0 else width):
                            total += sums[(ii * kw + jj) * width + kk]
                store(grad, at + i * step_i + j * step_j + k * step, total)
