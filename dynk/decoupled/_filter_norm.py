"""`filter_norm` and `filter_norm_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shape, Shapes
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS, NormGeometry


class FilterNormGradients(NamedTuple):
    """Gradients of `filter_norm`, each of its argument's shape and dtype; None where there is none."""

    f: Any
    scale: Any
    shift: Any


def filter_norm(
    f: Any,
    scale: Any = None,
    shift: Any = None,
    *,
    axes: tuple[int, int],
    eps: float = 1e-10,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Normalise each filter over its taps (DDF Eq. 3).

    .. math::
        out = (f - mean(f)) / (std(f) + eps) \cdot scale + shift

    with mean and the unbiased standard deviation over the two tap axes. Where all taps of a filter are equal the
    normalised filter is 0, and its gradient is defined as 0.

    Parameters
    ----------
    f : array of any shape
        Filters, such as spatial ones (N, G, kh, kw, Ho, Wo) with `axes=(2, 3)`. float16, bfloat16, float32 or float64,
        like every array of the call.
    scale, shift : array, optional
        Broadcast with `f` as NumPy does, without enlarging it: (G, 1, 1, 1, 1) for one number per group of spatial
        filters, (C, kh, kw) for one per channel and tap of channel filters.
    axes : (int, int)
        The two tap axes of `f`; negative ones count from the end.
    eps : float, default 1e-10
        Added to the standard deviation.
    out : array of the shape of `f`, optional
        A C-contiguous array to write to.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array of the shape of `f`
        Of its kind, dtype and device.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; ValueError too for filters of a single tap, which have no unbiased standard deviation.

    References
    ----------
    Decoupled Dynamic Filter Networks, CVPR 2021.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> filters = np.array([[[[1.0, 2.0, 3.0]]]])
    >>> dynk.filter_norm(filters, axes=(2, 3))
    array([[[[-1.,  0.,  1.]]]])
    """
    options = _norm_options(axes, eps)
    return _dispatch.forward(FILTER_NORM, (f, scale, shift), options, out, backend)


def filter_norm_backward(
    grad_out: Any,
    f: Any,
    scale: Any = None,
    shift: Any = None,
    *,
    axes: tuple[int, int],
    eps: float = 1e-10,
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> FilterNormGradients:
    """Return the gradients of `filter_norm` with respect to its arrays.

    Parameters
    ----------
    grad_out : array of the shape of `f`
        Gradient of a scalar with respect to the output of `filter_norm`.
    f, scale, shift, axes, eps, backend
        As given to `filter_norm`.
    needs : collection of {"f", "scale", "shift"}, optional
        The gradients wanted; all that exist if None. Nothing else is computed.
    grads : FilterNormGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    FilterNormGradients
        (f, scale, shift), each of its argument's shape and dtype, None where the argument is None or not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `filter_norm`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. Those of scale and shift take a
    workspace of partial sums, at most 1/64 of the size of `f`, and on CUDA two numbers per filter; the CPU needs a few
    rows of 64 numbers and the sums of 256 filters for each thread besides.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> filters = np.array([[[[1.0, 2.0, 3.0]]]])
    >>> dynk.filter_norm_backward(np.ones((1, 1, 1, 3)), filters, axes=(2, 3)).f.round(6) + 0.0
    array([[[[0., 0., 0.]]]])
    """
    options = _norm_options(axes, eps, function="filter_norm_backward")
    return FilterNormGradients(
        *_dispatch.backward(FILTER_NORM, grad_out, (f, scale, shift), options, needs, grads, backend)
    )


def _norm_options(axes: Any, eps: Any = 1e-10, *, function: str = "filter_norm") -> Options:
    if not isinstance(axes, tuple | list):
        msg = f"{function}: axes must be a pair of ints, got {_checks.brief(axes)}"
        raise TypeError(msg)
    if len(axes) != 2:
        msg = f"{function}: axes must be a pair of ints, got {_checks.brief(axes)}"
        raise ValueError(msg)
    first, second = (_checks.integer(function, "axes", axis, least=-64, most=63) for axis in axes)
    return (first, second), _checks.real(function, "eps", eps, least=0.0)


@lru_cache(maxsize=4096)
def _norm_plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, FILTER_NORM, dtypes)
    axes, eps = options
    f, scale, shift = shapes
    shape: Shape = f or ()
    taps = []
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            msg = f"{function}: axes must lie within the {len(shape)} dimensions of f, got {axes}"
            raise ValueError(msg)
        taps.append(axis % len(shape))
    if taps[0] == taps[1]:
        msg = f"{function}: axes must be two different axes of f, got {axes}"
        raise ValueError(msg)
    if any(extent < 1 for extent in shape[1:]) or (0 in taps and shape[0] < 1):
        msg = f"{function}: f must have extents of at least 1 but for a leading batch, got {shape}"
        raise ValueError(msg)
    if shape[taps[0]] * shape[taps[1]] == 1:
        msg = f"{function}: f must have at least 2 taps (one has no unbiased deviation), got shape {shape}"
        raise ValueError(msg)
    f_strides = _element_strides(shape, shape)
    scale_strides = _broadcast_strides(function, "scale", scale, shape)
    shift_strides = _broadcast_strides(function, "shift", shift, shape)
    operands = (f_strides, scale_strides, shift_strides)
    others = [d for d in range(len(shape)) if d not in taps]
    rows = [(shape[d], *(strides[d] for strides in operands)) for d in others]
    collapsed = _collapse(rows)
    if len(collapsed) > MAX_NORM_DIMS:
        msg = f"{function}: f must have at most {MAX_NORM_DIMS} dimensions besides its taps, got shape {shape}"
        raise ValueError(msg)
    padded = [(1, 0, 0, 0)] * (MAX_NORM_DIMS - len(collapsed)) + collapsed
    columns = [number for column in zip(*padded, strict=True) for number in column]
    i, j = taps
    filters = 1
    for d in others:
        filters *= shape[d]
    taps_and_strides = (shape[i], shape[j], *(strides[d] for strides in operands for d in (i, j)))
    presence = (int(scale is not None), int(shift is not None))
    sizes = (filters * shape[i] * shape[j], _size(scale), _size(shift))
    geometry = NormGeometry._make((filters, *taps_and_strides, *presence, *columns, *sizes))
    return Plan(dtype, shape, geometry, (eps,), options)


def _size(shape: Shape | None) -> int:
    size = 0 if shape is None else 1
    for extent in shape or ():
        size *= extent
    return size


def _element_strides(shape: Shape, full: Shape) -> list[int]:
    """Return strides in elements of a contiguous array of `shape` broadcast to `full`."""
    strides = [0] * len(full)
    step = 1
    for back in range(1, len(shape) + 1):
        if shape[-back] != 1:
            strides[-back] = step
        step *= shape[-back]
    return strides


def _broadcast_strides(function: str, argument: str, shape: Shape | None, full: Shape) -> list[int]:
    if shape is None:
        return [0] * len(full)
    if len(shape) > len(full) or any(
        shape[-back] not in (1, full[-back]) for back in range(1, min(len(shape), len(full)) + 1)
    ):
        msg = f"{function}: {argument} must broadcast to the shape of f, {full}, got {shape}"
        raise ValueError(msg)
    return _element_strides(shape, full)


def _collapse(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Merge neighbouring dimensions (extent, strides) that every operand steps through as one."""
    merged: list[tuple[int, ...]] = []
    for extent, *strides in rows:
        if extent == 1:
            continue
        if merged:
            outer, *outer_strides = merged[-1]
            if all(big == small * extent for big, small in zip(outer_strides, strides, strict=True)):
                merged[-1] = (outer * extent, *strides)
                continue
        merged.append((extent, *strides))
    return merged


FILTER_NORM = Operator(
    name="filter_norm",
    family="decoupled",
    launcher="filter_norm",
    arrays=("f", "scale", "shift"),
    optional=frozenset({"scale", "shift"}),
    options={"axes": ("int[2]", None), "eps": ("float", 1e-10)},
    canonical=_norm_options,
    plan=_norm_plan,
    gradients=FilterNormGradients,
    samples=(
        (((2, 4, 3, 3, 9, 11), (4, 1, 1, 1, 1), (4, 1, 1, 1, 1)), {"axes": (2, 3)}),
        (((3, 5, 3, 2), (5, 3, 2), (5, 1, 1)), {"axes": (-2, -1)}),
        (((2, 2, 2, 2, 5, 5, 6, 3), (1,), None), {"axes": (4, 5), "eps": 1e-3}),
        (((7, 9), None, None), {"axes": (0, 1)}),
    ),
    batched=frozenset(),
)
