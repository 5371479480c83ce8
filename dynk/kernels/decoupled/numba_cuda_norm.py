"""Numba CUDA kernels of `filter_norm` and their launch.

One thread owns one filter: it subtracts the filter's first tap before it sums, so that equal taps give exactly 0, and
scales deviations by their largest before it squares them. Kernels take flat arrays and the integers of `NormGeometry`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.dtypes import STORAGE
from dynk.kernels.common.numba_cuda_kernels import CHAIN, THREADS, chunks_for, lanes_for, launch, load, merge, sum_lanes
from dynk.kernels.decoupled.geometry import NormGeometry

Ints = tuple[int, ...]


def filter_norm_forward(cuda: Any, plan: Plan, f: Any, scale: Any, shift: Any, out: Any) -> None:
    """Run DDF Eq. 3 on flat arrays; None where scale or shift is absent. No workspace."""
    absent = cuda.absent(plan.dtype)
    scale = absent if scale is None else scale
    shift = absent if shift is None else shift
    launch(cuda, filter_norm_forward_kernel, plan.geometry[0], f, scale, shift, out, _eps(plan), *_layout(plan))


def filter_norm_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    f: Any,
    scale: Any,
    shift: Any,
    grad_f: Any,
    grad_scale: Any,
    grad_shift: Any,
) -> None:
    """Write the gradients that are not None.

    The workspace is two numbers per filter for `grad_scale`, and a number per CHAIN filters at most for the partial
    sums of it and of `grad_shift`.
    """
    g = NormGeometry(*plan.geometry)
    filters, taps, has_scale, _, extents, f_strides, scale_strides, shift_strides = _layout(plan)
    absent = cuda.absent(plan.dtype)
    eps = _eps(plan)
    if grad_f is not None:
        arrays = (grad_out, f, absent if scale is None else scale, grad_f)
        layout = (filters, taps, has_scale, extents, f_strides, scale_strides)
        launch(cuda, filter_norm_backward_f_kernel, filters, *arrays, eps, *layout)
    if grad_scale is not None:
        mean = cuda.workspace(filters, plan.dtype)
        divisor = cuda.workspace(filters, plan.dtype)
        args = (f, mean, divisor, eps, filters, taps, extents, f_strides)
        launch(cuda, filter_norm_statistics_kernel, filters, *args)
        arrays = (grad_out, f, mean, divisor)
        _unbroadcast(cuda, plan, arrays, grad_scale, 1, g.scale_size, scale_strides)
    if grad_shift is not None:
        arrays = (grad_out, absent, absent, absent)
        _unbroadcast(cuda, plan, arrays, grad_shift, 0, g.shift_size, shift_strides)


def _unbroadcast(
    cuda: Any,
    plan: Plan,
    arrays: tuple[Any, ...],
    target: Any,
    normalised: int,
    size: int,
    target_strides: Ints,
) -> None:
    """Sum grad_out, or its product with the normalised filters, over the dimensions that broadcasting repeated."""
    _, taps, _, _, extents, f_strides, _, _ = _layout(plan)
    repeats = math.prod(e for e, stride in zip(extents, target_strides[2:], strict=True) if stride == 0)
    lanes = lanes_for(repeats)
    chunks = chunks_for(repeats, lanes)
    partial = target if chunks == 1 else cuda.workspace(chunks * size, plan.dtype)
    args = (normalised, size, repeats, chunks, lanes, taps, extents, f_strides, target_strides)
    launch(cuda, filter_norm_backward_broadcast_kernel, size * chunks * lanes, *arrays, partial, *args)
    if chunks > 1:
        merge(cuda, partial, target, size, chunks)


class _Layout(NamedTuple):
    """`NormGeometry` as kernels take it; strides are those of the two tap axes, then of the filters' dimensions."""

    filters: int
    taps: Ints
    has_scale: int
    has_shift: int
    extents: Ints
    f_strides: Ints
    scale_strides: Ints
    shift_strides: Ints


def _layout(plan: Plan) -> _Layout:
    a = plan.geometry
    return _Layout(a[0], a[1:3], a[9], a[10], a[11:17], a[3:5] + a[17:23], a[5:7] + a[23:29], a[7:9] + a[29:35])


def _eps(plan: Plan) -> Any:
    """Return eps in the element type, so that a float32 kernel does no float64 arithmetic."""
    return STORAGE[plan.dtype].type(plan.reals[0])


# ---- kernels -------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _offset(number, extents, strides):  # type: ignore[no-untyped-def]
    """Return where filter `number`, row-major in the extents, begins in an array."""
    offset = number % extents[5] * strides[7]
    number = number // extents[5]
    offset += number % extents[4] * strides[6]
    number = number // extents[4]
    offset += number % extents[3] * strides[5]
    number = number // extents[3]
    offset += number % extents[2] * strides[4]
    number = number // extents[2]
    offset += number % extents[1] * strides[3]
    return offset + number // extents[1] * strides[2]


@cuda.jit(device=True)
def _statistics(f, base, eps, taps, strides):  # type: ignore[no-untyped-def]
    """Return a filter's mean less its first tap, its deviation, and what to divide by; for equal taps 0, 0 and 1."""
    kh, kw = taps
    real = f.dtype.type
    zero = real(0)
    first = load(f, base)
    total = part = zero
    count = 0
    for i in range(kh):
        for j in range(kw):
            part += load(f, base + i * strides[0] + j * strides[1]) - first
            count += 1
            if count == CHAIN:
                total += part
                part = zero
                count = 0
    mean = (total + part) / real(kh * kw)
    largest = zero
    for i in range(kh):
        for j in range(kw):
            d = abs(load(f, base + i * strides[0] + j * strides[1]) - first - mean)
            if not d <= largest:  # true for NaN too, which then stays
                largest = d
    if largest == zero:
        return zero, zero, real(1)
    total = part = zero
    count = 0
    for i in range(kh):
        for j in range(kw):
            d = (load(f, base + i * strides[0] + j * strides[1]) - first - mean) / largest
            part += d * d
            count += 1
            if count == CHAIN:
                total += part
                part = zero
                count = 0
    std = largest * math.sqrt((total + part) / real(kh * kw - 1))
    return mean, std, std + eps


@cuda.jit
def filter_norm_forward_kernel(  # type: ignore[no-untyped-def]
    f, scale, shift, out, eps, filters, taps, has_scale, has_shift, extents, f_strides, scale_strides, shift_strides
):
    """One thread for each filter."""
    number = cuda.grid(1)
    if number >= filters:
        return
    base = _offset(number, extents, f_strides)
    scale_at = _offset(number, extents, scale_strides)
    shift_at = _offset(number, extents, shift_strides)
    kh, kw = taps
    mean, _, divisor = _statistics(f, base, eps, taps, f_strides)
    first = load(f, base)
    for i in range(kh):
        for j in range(kw):
            at = base + i * f_strides[0] + j * f_strides[1]
            z = (load(f, at) - first - mean) / divisor
            if has_scale:
                z *= load(scale, scale_at + i * scale_strides[0] + j * scale_strides[1])
            if has_shift:
                z += load(shift, shift_at + i * shift_strides[0] + j * shift_strides[1])
            out[at] = z


@cuda.jit
def filter_norm_backward_f_kernel(  # type: ignore[no-untyped-def]
    grad_out, f, scale, grad_f, eps, filters, taps, has_scale, extents, f_strides, scale_strides
):
    """One thread for each filter: (h - mean h) / (std + eps) - z * sum(h z) / ((T - 1) std), h = grad_out * scale."""
    number = cuda.grid(1)
    if number >= filters:
        return
    kh, kw = taps
    real = f.dtype.type
    zero = real(0)
    base = _offset(number, extents, f_strides)
    scale_at = _offset(number, extents, scale_strides)
    mean, std, divisor = _statistics(f, base, eps, taps, f_strides)
    first = load(f, base)
    gain = real(1)
    total_h = part_h = total_hz = part_hz = zero
    count = 0
    for i in range(kh):
        for j in range(kw):
            at = base + i * f_strides[0] + j * f_strides[1]
            if has_scale:
                gain = load(scale, scale_at + i * scale_strides[0] + j * scale_strides[1])
            h = load(grad_out, at) * gain
            part_h += h
            part_hz += h * ((load(f, at) - first - mean) / divisor)
            count += 1
            if count == CHAIN:
                total_h += part_h
                total_hz += part_hz
                part_h = part_hz = zero
                count = 0
    mean_h = (total_h + part_h) / real(kh * kw)
    slope = zero
    if std != zero:
        slope = (total_hz + part_hz) / real(kh * kw - 1) / std
    for i in range(kh):
        for j in range(kw):
            at = base + i * f_strides[0] + j * f_strides[1]
            grad = zero
            if std != zero:
                if has_scale:
                    gain = load(scale, scale_at + i * scale_strides[0] + j * scale_strides[1])
                z = (load(f, at) - first - mean) / divisor
                grad = (load(grad_out, at) * gain - mean_h) / divisor - z * slope
            grad_f[at] = grad


@cuda.jit
def filter_norm_statistics_kernel(  # type: ignore[no-untyped-def]
    f, mean, divisor, eps, filters, taps, extents, f_strides
):
    """One thread for each filter: what `filter_norm_backward_broadcast_kernel` normalises with."""
    number = cuda.grid(1)
    if number >= filters:
        return
    base = _offset(number, extents, f_strides)
    its_mean, _, its_divisor = _statistics(f, base, eps, taps, f_strides)
    mean[number] = its_mean
    divisor[number] = its_divisor


@cuda.jit(device=True)
def _coordinate(element, repeat, extent, stride):  # type: ignore[no-untyped-def]
    """Return a coordinate and the rest of `repeat`: taken from it where broadcast (stride 0), else from `element`."""
    if stride == 0:
        return repeat % extent, repeat // extent
    return element // stride % extent, repeat


@cuda.jit
def filter_norm_backward_broadcast_kernel(  # type: ignore[no-untyped-def]
    grad_out, f, mean, divisor, partial,
    normalised, size, repeats, chunks, lanes, taps, extents, f_strides, target_strides,
):  # fmt: skip
    """One group of lanes for each element of scale (`normalised`) or shift and chunk of the filters that it reached."""
    shared = cuda.shared.array(THREADS, grad_out.dtype)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    chunk = unit // size
    element = unit - chunk * size
    zero = grad_out.dtype.type(0)
    total = zero
    if chunk < chunks:
        # A tap axis that the target has is fixed by the element, the others are summed over.
        kh, kw = taps
        i_begin, i_end, j_begin, j_end = 0, kh, 0, kw
        if target_strides[0] != 0:
            i_begin = element // target_strides[0] % kh
            i_end = i_begin + 1
        if target_strides[1] != 0:
            j_begin = element // target_strides[1] % kw
            j_end = j_begin + 1
        part = zero
        count = 0
        for repeat in range(chunk * lanes + lane, repeats, chunks * lanes):
            i5, rest = _coordinate(element, repeat, extents[5], target_strides[7])
            i4, rest = _coordinate(element, rest, extents[4], target_strides[6])
            i3, rest = _coordinate(element, rest, extents[3], target_strides[5])
            i2, rest = _coordinate(element, rest, extents[2], target_strides[4])
            i1, rest = _coordinate(element, rest, extents[1], target_strides[3])
            i0, rest = _coordinate(element, rest, extents[0], target_strides[2])
            number = i0 * extents[1] + i1
            number = number * extents[2] + i2
            number = number * extents[3] + i3
            number = number * extents[4] + i4
            number = number * extents[5] + i5
            base = _offset(number, extents, f_strides)
            for i in range(i_begin, i_end):
                for j in range(j_begin, j_end):
                    at = base + i * f_strides[0] + j * f_strides[1]
                    if normalised:
                        part += load(grad_out, at) * (
                            (load(f, at) - load(f, base) - load(mean, number)) / load(divisor, number)
                        )
                    else:
                        part += load(grad_out, at)
                    count += 1
                    if count == CHAIN:
                        total += part
                        part = zero
                        count = 0
        total += part
    total = sum_lanes(shared, total, lanes)
    if chunk < chunks and lane == 0:
        partial[chunk * size + element] = total
