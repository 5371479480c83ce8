"""Launches the CUDA C kernels of `filter_norm.cu`, as `cupy_raw.py` does those of `ddf`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    ACCUMULATOR,
    BUSY,
    CHAIN,
    ELEMENT,
    INDEX,
    THREADS,
    WARP,
    by_value,
    divide_up,
    index_dtype,
    kernel_size,
    sum_partials,
)
from dynk.kernels.common.dtypes import accumulator
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS, NormGeometry

SOURCE, SUMS = "filter_norm.cu", "kernels.cu"
MAX_PARTS = 1024
_PER_FILTER = ("filter_norm_forward", "filter_norm_backward_f", "filter_norm_statistics")


def filter_norm_forward(cuda: Any, plan: Plan, f: Any, scale: Any, shift: Any, out: Any) -> None:
    """Write out = filter_norm(f, scale, shift)."""
    _per_filter(cuda, plan, "filter_norm_forward", (f, scale, shift, out))


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
    """Write the gradients of `filter_norm` that are not None.

    The workspace is 2 numbers per filter for the gradient of scale, and at most 1024 per element of scale and shift.
    """
    g = NormGeometry(*plan.geometry)
    if grad_f is not None and g.filters > 0:
        _per_filter(cuda, plan, "filter_norm_backward_f", (grad_out, f, scale, grad_f))
    if grad_scale is not None and g.scale_size > 0:
        statistics = cuda.workspace(2 * g.filters, accumulator(plan.dtype))
        if g.filters > 0:
            _per_filter(cuda, plan, "filter_norm_statistics", (f, statistics))
        _backward_scale(cuda, plan, g, grad_out, f, statistics, grad_scale)
    if grad_shift is not None and g.shift_size > 0:
        _backward_scale(cuda, plan, g, grad_out, f, None, grad_shift)


def _per_filter(cuda: Any, plan: Plan, kernel: str, arrays: tuple[Any, ...]) -> None:
    g = NormGeometry(*plan.geometry)
    index = _norm_index(g)
    kh, kw = kernel_size(g.kh, g.kw)
    eps = np.float64(plan.reals[0]) if plan.dtype == "float64" else np.float32(plan.reals[0])
    expression = f"{kernel}<{ELEMENT[plan.dtype]}, {INDEX[index]}, {kh}, {kw}>"
    threads = min(THREADS, divide_up(g.filters, WARP) * WARP)
    cuda.launch(SOURCE, expression, (divide_up(g.filters, threads),), (threads,), (*arrays, by_value(g, index), eps))


def _backward_scale(
    cuda: Any, plan: Plan, g: NormGeometry, grad_out: Any, f: Any, statistics: Any, gradient: Any
) -> None:
    """Write the gradient of scale, or without statistics that of shift."""
    index = _norm_index(g)
    reduction, contiguous = _reduction(g, of_scale=statistics is not None)
    elements, terms = reduction[:2]
    # A warp sums an element, unless that reads f out of order or leaves lanes idle.
    lanes = 1 if terms < WARP or (contiguous and elements >= BUSY // WARP) else WARP
    parts = max(1, min(divide_up(terms, lanes * CHAIN), divide_up(BUSY, elements * lanes), MAX_PARTS))
    segment = max(1, divide_up(terms, parts))
    parts = max(1, divide_up(terms, segment))

    out = gradient if parts == 1 else cuda.workspace(parts * elements, accumulator(plan.dtype))
    total = ACCUMULATOR[plan.dtype] if parts > 1 else ELEMENT[plan.dtype]
    normalised = "true" if statistics is not None else "false"
    expression = f"filter_norm_backward_scale<{ELEMENT[plan.dtype]}, {INDEX[index]}, {lanes}, {normalised}, {total}>"
    args = (grad_out, f, statistics, out, by_value(reduction, index), index.type(segment), index.type(parts))
    cuda.launch(SOURCE, expression, (divide_up(parts * elements * lanes, THREADS),), (THREADS,), args)
    if parts > 1:
        sum_partials(cuda, SUMS, plan.dtype, out, gradient, elements, parts)


def _norm_index(g: NormGeometry) -> np.dtype[Any]:
    return index_dtype(g.f_size, 2 * g.filters)


@lru_cache(maxsize=4096)
def _reduction(g: NormGeometry, *, of_scale: bool) -> tuple[tuple[int, ...], bool]:
    """Return the struct Reduction of `filter_norm.cu`, and whether neighbouring elements are neighbours in f."""
    strides = g[11 + 2 * MAX_NORM_DIMS : 11 + 4 * MAX_NORM_DIMS]
    own = strides[:MAX_NORM_DIMS] if of_scale else strides[MAX_NORM_DIMS:]
    own_taps = (g.scale_kh, g.scale_kw) if of_scale else (g.shift_kh, g.shift_kw)
    extents = g[11 : 11 + MAX_NORM_DIMS]
    numbers = [1]
    for extent in reversed(extents[1:]):
        numbers.insert(0, numbers[0] * extent)
    # (extent, stride in f, step of the filter's number, stride in scale or shift) of each dimension
    dims = list(zip(extents, g[11 + MAX_NORM_DIMS : 11 + 2 * MAX_NORM_DIMS], numbers, own, strict=True))
    dims += [(g.kh, g.f_kh, 0, own_taps[0]), (g.kw, g.f_kw, 0, own_taps[1])]
    kept = sorted((dim for dim in dims if dim[3] != 0), key=lambda dim: -dim[3])
    summed = sorted((dim for dim in dims if dim[3] == 0), key=lambda dim: -dim[1])
    elements = g.scale_size if of_scale else g.shift_size
    columns = zip(*((extent, f, number) for extent, f, number, _ in kept + summed), strict=True)
    terms = g.f_size // elements
    flat = [number for column in columns for number in column]
    return (elements, terms, g.filters, len(kept), len(summed), *flat), bool(kept) and kept[-1][1] == 1


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for, but for kernel sizes.

    Those are 3 x 3, any size (0 x 0) and, with 32-bit indices, the largest: 7 x 7 (the most taps) and 3 x 16 (the
    longest edges).
    """
    found = []
    for dtype, element in ELEMENT.items():
        for index in INDEX.values():
            types = f"{element}, {index}"
            for kh, kw in ((3, 3), (0, 0), *(((7, 7), (3, 16)) if index == "int" else ())):
                found += [f"{kernel}<{types}, {kh}, {kw}>" for kernel in _PER_FILTER]
            found += [
                f"filter_norm_backward_scale<{types}, {lanes}, {normalised}, {total}>"
                for total in dict.fromkeys((element, ACCUMULATOR[dtype]))
                for lanes in (1, WARP)
                for normalised in ("true", "false")
            ]
    return [(SOURCE, expression) for expression in found]
