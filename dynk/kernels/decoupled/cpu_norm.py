"""Numba CPU kernels of `filter_norm`.

`cpu_norm_runs` says how work is cut, by the geometry alone; blocks of filters are done by `cpu_norm_nine` or
`cpu_norm_vectors` where they lie side by side, and by `cpu_norm_rows`, in float64 whatever the storage type, elsewhere.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import borrowing, inlined, kernel
from dynk.kernels.common.numeric import store
from dynk.kernels.decoupled.cpu_norm_nine import backward_nine, forward_nine, nine_side_by_side
from dynk.kernels.decoupled.cpu_norm_rows import ALL, backward_rows, forward_rows
from dynk.kernels.decoupled.cpu_norm_runs import (
    BLOCK,
    FILTERS,
    KH,
    KW,
    LAST,
    SCALE,
    SHIFT,
    F,
    locate,
    parameter_taps,
    run_length,
    runs,
)
from dynk.kernels.decoupled.cpu_norm_vectors import backward_vectors, forward_vectors, side_by_side
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS


@kernel
def filter_norm_forward(f, scale, shift, out, geometry, reals):  # type: ignore[no-untyped-def]
    """DDF Eq. 3: (f - mean) / (std + eps) * scale + shift over the taps of each filter."""
    for task in prange(runs(geometry, F, True)):
        _forward_run(np.int64(task), f, scale, shift, out, geometry, reals[0])


@kernel
def filter_norm_backward(  # type: ignore[no-untyped-def]
    grad_out, f, scale, shift, grad_f, grad_scale, grad_shift, geometry, reals
):
    """Gradients of `filter_norm_forward`; an output of size 0 is not wanted."""
    if geometry[FILTERS] == 0:  # an empty batch: sums of nothing
        for k in range(grad_scale.size):
            store(grad_scale, k, 0.0)
        for k in range(grad_shift.size):
            store(grad_shift, k, 0.0)
    else:
        # One sweep over the filters, cut into the elements of scale or of shift; two if both are wanted and differ.
        want_scale, want_shift = int(grad_scale.size > 0), int(grad_shift.size > 0)
        apart = want_scale * want_shift * _differ(geometry)
        for sweep in range(1 + apart):
            if sweep == 0:
                want_f, sum_scale, sum_shift = int(grad_f.size > 0), want_scale, want_shift - apart
            else:
                want_f, sum_scale, sum_shift = 0, 0, 1
            operand = SCALE if sum_scale == 1 else (SHIFT if sum_shift == 1 else F)
            parts = _parts(geometry, operand)
            tasks = runs(geometry, operand, True) * parts * max(want_f, sum_scale, sum_shift)
            partial = np.empty(tasks * 2 * _sums_size(geometry, operand) if parts > 1 else 0, np.float64)
            for task in prange(tasks):
                _backward_task(
                    np.int64(task), parts, grad_out, f, scale, grad_f, grad_scale, grad_shift, partial, operand,
                    want_f, sum_scale, sum_shift, geometry, reals[0]
                )  # fmt: skip
            if parts > 1:
                for kept in prange(tasks // parts):
                    _merge_parts(
                        np.int64(kept), parts, grad_scale, grad_shift, partial, operand, sum_scale, sum_shift, geometry
                    )


@inlined
def _forward_run(task, f, scale, shift, out, geometry, eps):  # type: ignore[no-untyped-def]
    at_f, at_scale, at_shift, count = locate(task, 0, F, geometry)
    nine, vectors = nine_side_by_side(f, geometry), side_by_side(f, geometry)
    for k in range(0, count, BLOCK):
        block, left = min(BLOCK, count - k), ALL
        if nine and block == BLOCK:
            left = forward_nine(at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps)
        elif vectors and block == BLOCK:
            left = forward_vectors(at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps)
        if left != 0:
            forward_rows(block, left, at_f, at_scale, at_shift, f, scale, shift, out, geometry, eps)
        at_f += block * geometry[F + LAST]
        at_scale += block * geometry[SCALE + LAST]
        at_shift += block * geometry[SHIFT + LAST]


# ---- backward --------------------------------------------------------------------------------------------------------


@borrowing
def _differ(geometry):  # type: ignore[no-untyped-def]
    """Return 1 where scale and shift do not have the same steps, so that their gradients sum over other filters."""
    for d in range(MAX_NORM_DIMS):
        if geometry[SCALE + d] != geometry[SHIFT + d]:
            return 1
    scale, shift = parameter_taps(SCALE), parameter_taps(SHIFT)
    return int(geometry[scale] != geometry[shift] or geometry[scale + 1] != geometry[shift + 1])


@borrowing
def _slots(geometry, operand):  # type: ignore[no-untyped-def]
    """Return how many sums a filter has: one for each tap, or one if an element is for all taps."""
    taps = parameter_taps(operand)
    return 1 if geometry[taps] + geometry[taps + 1] == 0 else geometry[KH] * geometry[KW]


@borrowing
def _width(geometry, operand):  # type: ignore[no-untyped-def]
    """Return how many filters have sums of their own: those of a run, or of a block if an element is for all."""
    return min(BLOCK, run_length(geometry)) if geometry[operand + LAST] == 0 else run_length(geometry)


@borrowing
def _sums_size(geometry, operand):  # type: ignore[no-untyped-def]
    """Return the number of sums that a task keeps for an operand, none for f."""
    return 0 if operand == F else _slots(geometry, operand) * _width(geometry, operand)


@borrowing
def _parts(geometry, operand):  # type: ignore[no-untyped-def]
    """Return into how many parts the sum over the dimensions that an operand does not keep is split.

    A part sums so many filters that the partial sums of both parameters are at most 1/64 of f.
    """
    filters = runs(geometry, operand, False) * run_length(geometry)
    return max(1, min(64, filters // (128 * _width(geometry, operand))))


@inlined
def _backward_task(  # type: ignore[no-untyped-def]
    task, parts, grad_out, f, scale, grad_f, grad_scale, grad_shift, partial, operand, want_f, sum_scale, sum_shift,
    geometry, eps
):  # fmt: skip
    """Go through one part of the filters that share an element of an operand."""
    kept, part = task // parts, task % parts
    summed = runs(geometry, operand, False)
    size, width = _sums_size(geometry, operand), _width(geometry, operand)
    sums = np.zeros(2 * size, np.float64)
    wanted = (sum_scale - 1, size if sum_shift == 1 else -1)
    slot = 0 if operand == F or _slots(geometry, operand) == 1 else width
    nine, vectors = nine_side_by_side(f, geometry), side_by_side(f, geometry)
    for run in range(part * summed // parts, (part + 1) * summed // parts):
        at_f, at_scale, _, count = locate(kept, run, operand, geometry)
        for k in range(0, count, BLOCK):
            block, left, left_sums = min(BLOCK, count - k), ALL, ALL
            at_sums = 0 if geometry[operand + LAST] == 0 else k
            if nine and block == BLOCK:
                left, left_sums = backward_nine(
                    at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums, slot, geometry, eps
                )
            elif vectors and block == BLOCK:
                left, left_sums = backward_vectors(
                    at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums, slot, geometry, eps
                )
            if left | left_sums != 0:
                backward_rows(
                    block, left, left_sums, at_f, at_scale, grad_out, f, scale, grad_f, want_f, sums, wanted, at_sums,
                    slot, geometry, eps
                )  # fmt: skip
            at_f += block * geometry[F + LAST]
            at_scale += block * geometry[SCALE + LAST]
    if parts == 1:
        _write_sums(kept, sums, grad_scale, grad_shift, operand, sum_scale, sum_shift, geometry)
    else:
        for k in range(2 * size):
            partial[task * 2 * size + k] = sums[k]


@inlined
def _merge_parts(  # type: ignore[no-untyped-def]
    kept, parts, grad_scale, grad_shift, partial, operand, sum_scale, sum_shift, geometry
):
    size = 2 * _sums_size(geometry, operand)
    sums = np.zeros(size, np.float64)
    for part in range(parts):
        start = (kept * parts + part) * size
        for k in range(size):
            sums[k] += partial[start + k]
    _write_sums(kept, sums, grad_scale, grad_shift, operand, sum_scale, sum_shift, geometry)


@borrowing
def _write_sums(  # type: ignore[no-untyped-def]
    kept, sums, grad_scale, grad_shift, operand, sum_scale, sum_shift, geometry
):
    """Add up what falls on the same element of a gradient, over filters and taps, and write it."""
    _, at_scale, at_shift, count = locate(kept, 0, operand, geometry)
    at = at_scale if operand == SCALE else at_shift
    slots, width = _slots(geometry, operand), _width(geometry, operand)
    kh, kw = (1, 1) if slots == 1 else (geometry[KH], geometry[KW])
    taps = parameter_taps(operand)
    step, step_i, step_j = geometry[operand + LAST], geometry[taps], geometry[taps + 1]
    for parameter in range(1 - sum_scale, 1 + sum_shift):
        grad, first = grad_scale if parameter == 0 else grad_shift, parameter * slots * width
        for i in range(kh if step_i != 0 else 1):
            for j in range(kw if step_j != 0 else 1):
                for k in range(count if step != 0 else 1):
                    total = 0.0
                    for ii in range(i, i + 1 if step_i != 0 else kh):
                        for jj in range(j, j + 1 if step_j != 0 else kw):
                            for kk in range(k, k + 1 if step != 0 else width):
                                total += sums[first + (ii * kw + jj) * width + kk]
                    store(grad, at + i * step_i + j * step_j + k * step, total)
