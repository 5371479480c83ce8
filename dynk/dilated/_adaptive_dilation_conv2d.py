"""`adaptive_dilation_conv2d` and `adaptive_dilation_conv2d_backward`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.kernels.common.dtypes import INTEGERS
from dynk.kernels.dilated.geometry import MAX_DILATIONS, DilationGeometry, steps


class AdaptiveDilationConv2dGradients(NamedTuple):
    """Gradients of `adaptive_dilation_conv2d`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    weight: Any
    dilation_weights: Any
    bias: Any


def adaptive_dilation_conv2d(
    x: Any,
    weight: Any,
    dilation_weights: Any,
    bias: Any = None,
    *,
    dilations: Sequence[int | tuple[int, int]] = (1, 2, 4),
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Convolve with a dilation of its own for each pixel, or a mixture of dilations (PAD Eq. 1).

    .. math::
        out_{n,o,y,x} = bias_o + \sum_{cij} weight_{o,c,i,j} \sum_d P_{n,d,y,x} \, X_{n,c,\,tap_d(y,i),\,tap_d(x,j)}

    Tap (i, j) of candidate d reads row y*stride + (i - (kh-1)//2)*dilations[d], and likewise in x. A read outside the
    image contributes 0; Ho = ceil(H/stride), Wo = ceil(W/stride). The kernel is shared by all candidates, so the image
    is mixed and not the results: the cost is that of one convolution.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every floating array of the call.
    weight : array (O, C/groups, kh, kw)
        The kernel, as of an ordinary convolution.
    dilation_weights : array (N, D, Ho, Wo), or array of int32 or int64 (N, Ho, Wo)
        The weight P of each candidate at each pixel; they need not sum to 1. Or the index into `dilations` of the one
        candidate that a pixel takes; there is no gradient for it.
    bias : array (O,), optional
        Is added to the output.
    dilations : sequence of int or (h, w), default (1, 2, 4)
        The step between taps of each of the D candidates, 1 to 8 of them.
    stride : int or (h, w), default 1
        Step between output pixels.
    groups : int, default 1
        Blocks of channels that are convolved each by itself; divides C and O. C groups are a depth-wise convolution.
    out : array (N, O, Ho, Wo), optional
        A C-contiguous array to write to; the call then allocates nothing for contiguous inputs but the workspace.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array (N, O, Ho, Wo)
        Of the kind, dtype and device of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or option, and on the CPU for an index that is not one of a candidate.
    TypeError
        For a wrong dtype or type, or arrays of different kinds.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    Notes
    -----
    Where values are not looked at before the launch, on CUDA and in compiled JAX programs, a pixel whose index is not
    one of a candidate becomes NaN. Columns are mixed, and all sums formed, in float32 (float64 for float64); the result
    is rounded once. The columns are formed tile by tile: the workspace does not grow with the image. For kernels of up
    to 7 x 7 it is at most 2 MiB for each thread on the CPU (4 for float64) and 16 MiB (32) for all together; on CUDA
    there is none.

    References
    ----------
    PAD-Nets: Learning Dynamic Receptive Fields via Pixel-wise Adaptive Dilation, ICLR 2020 submission.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x = np.arange(5.0).reshape(1, 1, 1, 5)
    >>> weight = np.ones((1, 1, 1, 3))
    >>> half = np.full((1, 2, 1, 5), 0.5)
    >>> dynk.adaptive_dilation_conv2d(x, weight, half, dilations=(1, 2))[0, 0]
    array([[1.5, 3.5, 6. , 6.5, 6.5]])
    >>> index = np.array([[[0, 0, 1, 1, 1]]])
    >>> dynk.adaptive_dilation_conv2d(x, weight, index, dilations=(1, 2))[0, 0]
    array([[1., 3., 6., 4., 6.]])
    """
    arrays = (x, weight, dilation_weights, bias)
    return _dispatch.forward(ADAPTIVE_DILATION_CONV2D, arrays, _options(dilations, stride, groups), out, backend)


def adaptive_dilation_conv2d_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    dilation_weights: Any,
    bias: Any = None,
    *,
    dilations: Sequence[int | tuple[int, int]] = (1, 2, 4),
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> AdaptiveDilationConv2dGradients:
    """Return the gradients of `adaptive_dilation_conv2d` with respect to its floating arrays.

    Parameters
    ----------
    grad_out : array (N, O, Ho, Wo)
        Gradient of a scalar with respect to the output of `adaptive_dilation_conv2d`.
    x, weight, dilation_weights, bias, dilations, stride, groups, backend
        As given to `adaptive_dilation_conv2d`.
    needs : collection of {"x", "weight", "dilation_weights", "bias"}, optional
        The gradients wanted; all that exist if None. Nothing else is computed.
    grads : AdaptiveDilationConv2dGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    AdaptiveDilationConv2dGradients
        In the order of the arguments, each of its argument's shape and dtype, None where that is None, holds indices or
        is not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `adaptive_dilation_conv2d`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. A pixel whose index is not one of
    a candidate, where that does not raise, makes the gradient of `weight` NaN and adds nothing to that of `x`. The
    workspace does not grow with the image: for kernels of up to 7 x 7 it is at most 3 MiB for each thread on the CPU (5
    for float64) and 8 MiB (16) for all together, more where a channel of a depth-wise convolution has over 100 outputs,
    and 64 MiB on CUDA.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, weight = np.ones((1, 1, 1, 5)), np.ones((1, 1, 1, 3))
    >>> half = np.full((1, 2, 1, 5), 0.5)
    >>> grad_out = np.ones((1, 1, 1, 5))
    >>> gradients = dynk.adaptive_dilation_conv2d_backward(grad_out, x, weight, half, dilations=(1, 2))
    >>> gradients.x[0, 0]
    array([[2. , 2.5, 3. , 2.5, 2. ]])
    >>> gradients.dilation_weights[0, :, 0]
    array([[2., 3., 3., 3., 2.],
           [2., 2., 3., 2., 2.]])
    """
    options = _options(dilations, stride, groups, function="adaptive_dilation_conv2d_backward")
    arrays = (x, weight, dilation_weights, bias)
    return AdaptiveDilationConv2dGradients(
        *_dispatch.backward(ADAPTIVE_DILATION_CONV2D, grad_out, arrays, options, needs, grads, backend)
    )


def _options(
    dilations: Any = (1, 2, 4), stride: Any = 1, groups: Any = 1, *, function: str = "adaptive_dilation_conv2d"
) -> Options:
    if not isinstance(dilations, Sequence) or isinstance(dilations, str | bytes):
        msg = f"{function}: dilations must be a sequence of ints or (h, w) pairs, got {_checks.brief(dilations)}"
        raise TypeError(msg)
    if not 1 <= len(dilations) <= MAX_DILATIONS:
        msg = f"{function}: dilations must have 1 to {MAX_DILATIONS} entries, got {_checks.brief(dilations)}"
        raise ValueError(msg)
    return (
        tuple(_checks.pair(function, f"dilations[{d}]", dilation) for d, dilation in enumerate(dilations)),
        _checks.pair(function, "stride", stride),
        _checks.integer(function, "groups", groups),
    )


@lru_cache(maxsize=4096)
def _plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, ADAPTIVE_DILATION_CONV2D, dtypes)
    dilations, stride, groups = options
    x, weight, dilation_weights, bias = shapes
    sizes: dict[str, int] = {}
    _checks.bind(function, "x", x or (), "N C H W", sizes)
    N, C, H, W = sizes.values()
    _divides(function, groups, "C", C)
    sizes["C/groups"] = C // groups
    _checks.bind(function, "weight", weight or (), "O C/groups kh kw", sizes)
    _divides(function, groups, "O", sizes["O"])
    for d, dilation in enumerate(dilations):
        for extent, step in zip((sizes["kh"], sizes["kw"]), dilation, strict=True):
            _checks.reach(function, extent, step, f"dilations[{d}]")
    hard = dtypes[2] in INTEGERS
    sizes |= {"D": len(dilations), "Ho": -(-H // stride[0]), "Wo": -(-W // stride[1])}
    _checks.bind(function, "dilation_weights", dilation_weights or (), "N Ho Wo" if hard else "N D Ho Wo", sizes)
    if bias is not None:
        _checks.bind(function, "bias", bias, "O", sizes)
    flags = int(hard), int(bias is not None)
    extents = (N, C, *(sizes[name] for name in ("O", "H", "W", "kh", "kw", "Ho", "Wo", "D")))
    geometry = DilationGeometry._make((*extents, *stride, groups, *flags, *steps(dilations)))
    return Plan(dtype, (N, geometry.O, geometry.Ho, geometry.Wo), geometry, options=options)


def _divides(function: str, groups: int, dim: str, extent: int) -> None:
    if extent % groups:
        msg = f"{function}: groups must divide {dim} = {extent}, got {groups}"
        raise ValueError(msg)


def _check_indices(function: str, plan: Plan, arrays: tuple[Any, ...]) -> None:
    """Check that every index is that of a candidate."""
    g = DilationGeometry(*plan.geometry)
    indices = arrays[2]
    if not g.hard or not indices.size or (indices.min() >= 0 and indices.max() < g.D):
        return
    first = np.argwhere((indices < 0) | (indices >= g.D))[0]
    place = tuple(int(i) for i in first)
    msg = f"{function}: dilation_weights must hold indices from 0 to D - 1 = {g.D - 1}, got {indices[place]} at {place}"
    raise ValueError(msg)


def _derivative(index: int, tangent: Any, arrays: tuple[Any, ...], options: Options) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: linear in each argument but for the bias."""
    x, weight, dilation_weights, _ = arrays
    if index == 3:  # nothing but the bias is left; x ** 0 is 1 whatever x is
        return (x**0 - 1, weight**0 - 1, dilation_weights, tangent), options
    moved = [x, weight, dilation_weights, None]
    moved[index] = tangent
    return tuple(moved), options


ADAPTIVE_DILATION_CONV2D = Operator(
    name="adaptive_dilation_conv2d",
    family="dilated",
    launcher="adaptive_dilation_conv2d",
    arrays=("x", "weight", "dilation_weights", "bias"),
    optional=frozenset({"bias"}),
    options={
        "dilations": ("int[][]", (1, 2, 4)),
        "stride": ("int[2]", 1),
        "groups": ("int", 1),
    },
    canonical=_options,
    plan=_plan,
    gradients=AdaptiveDilationConv2dGradients,
    samples=(
        (((2, 5, 9, 17), (7, 5, 3, 3), (2, 3, 9, 17), (7,)), {}),
        (
            ((1, 12, 10, 19), (6, 4, 3, 2), (1, 2, 5, 7), None),
            {"dilations": ((1, 3), 2), "stride": (2, 3), "groups": 3},
        ),
        (((2, 6, 9, 35), (6, 1, 3, 3), (2, 3, 9, 35), (6,)), {"groups": 6}),
        (((1, 3, 8, 9), (6, 1, 5, 5), (1, 1, 4, 5), None), {"dilations": (2,), "stride": 2, "groups": 3}),
        (
            ((2, 4, 7, 11), (5, 4, 3, 3), np.arange(2 * 7 * 11, dtype=np.int32).reshape(2, 7, 11) % 3, (5,)),
            {},
        ),
        (
            ((1, 4, 9, 10), (8, 1, 2, 3), np.arange(5 * 5, dtype=np.int64).reshape(1, 5, 5) % 2, None),
            {"dilations": (3, (1, 2)), "stride": 2, "groups": 4},
        ),
    ),
    derivative=_derivative,
    batched=frozenset({"x", "dilation_weights"}),
    integers=frozenset({"dilation_weights"}),
    check_values=_check_indices,
)
