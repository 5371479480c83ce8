"""Decoupled dynamic filters: `ddf`, `ddf_upsample`, `filter_norm` and their gradients.

Paper: Decoupled Dynamic Filter Networks, CVPR 2021 (DDF).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shape, Shapes
from dynk.kernels.decoupled.geometry import MAX_NORM_DIMS, FilterGeometry, NormGeometry

__all__ = [
    "DdfGradients",
    "DdfUpsampleGradients",
    "FilterNormGradients",
    "ddf",
    "ddf_backward",
    "ddf_upsample",
    "ddf_upsample_backward",
    "filter_norm",
    "filter_norm_backward",
]

COMBINE = ("mul", "add")


class DdfGradients(NamedTuple):
    """Gradients of `ddf`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    spatial: Any
    channel: Any


class DdfUpsampleGradients(NamedTuple):
    """Gradients of `ddf_upsample`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    spatial: Any
    channel: Any


class FilterNormGradients(NamedTuple):
    """Gradients of `filter_norm`, each of its argument's shape and dtype; None where there is none."""

    f: Any
    scale: Any
    shift: Any


# ---- ddf -----------------------------------------------------------------------------------------------------------


def ddf(
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Apply a decoupled dynamic filter (DDF Eq. 2).

    .. math::
        out_{n,c,y,x} = \sum_{ij} f(spatial_{n,g,i,j,y,x}, channel_{n,c,i,j}) \, X_{n,c,\,tap(y,i),\,tap(x,j)}

    where f is the product ("mul") or the sum ("add") of the two filters, or the one that is given; channel c uses group
    g = c // (C/G). Tap (i, j) of the output (y, x) reads row y*stride + (i - (kh-1)//2)*dilation and likewise in x; a
    read outside the image contributes 0.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    spatial : array (N, G, kh, kw, Ho, Wo) or None
        A filter for each pixel, shared by the C/G channels of a group. Ho = ceil(H/stride), Wo = ceil(W/stride).
        Alone (channel None) it is involution.
    channel : array (N, C, kh, kw) or None
        A filter for each channel, shared by all pixels. Alone it is a depth-wise convolution with a kernel per sample.
    stride, dilation : int or (h, w), default 1
        Step between output anchors and between taps, in pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.
    out : array (N, C, Ho, Wo), optional
        A C-contiguous array to write to; the call then allocates nothing for contiguous inputs.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array (N, C, Ho, Wo)
        Of the kind, dtype and device of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or option.
    TypeError
        For a wrong dtype or type, or arrays of different kinds.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    Notes
    -----
    Sums are formed in float32 (float64 for float64) and rounded once. No memory besides the output is used.

    References
    ----------
    Decoupled Dynamic Filter Networks, CVPR 2021.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> spatial = np.ones((1, 1, 3, 3, 3, 3))
    >>> channel = np.full((1, 1, 3, 3), 0.5)
    >>> dynk.ddf(x, spatial, channel)[0, 0]
    array([[ 4. ,  7.5,  6. ],
           [10.5, 18. , 13.5],
           [10. , 16.5, 12. ]])
    """
    options = _ddf_options(stride, dilation, combine)
    return _dispatch.forward(DDF, (x, spatial, channel), options, out, backend)


def ddf_backward(
    grad_out: Any,
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> DdfGradients:
    """Return the gradients of `ddf` with respect to its arrays.

    Parameters
    ----------
    grad_out : array (N, C, Ho, Wo)
        Gradient of a scalar with respect to the output of `ddf`.
    x, spatial, channel, stride, dilation, combine, backend
        As given to `ddf`.
    needs : collection of {"x", "spatial", "channel"}, optional
        The gradients wanted; all that exist if None. Nothing else is computed.
    grads : DdfGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    DdfGradients
        (x, spatial, channel), each of its argument's shape and dtype, None where the argument is None or not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. Sums over pixels and channels are
    formed in stages; the workspace is at most 1/64 of the size of `x` in the accumulation type plus one row per thread.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, channel = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    >>> dynk.ddf_backward(np.ones((1, 1, 3, 3)), x, None, channel).x[0, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    options = _ddf_options(stride, dilation, combine)
    gradients = _dispatch.backward(DDF, grad_out, (x, spatial, channel), options, needs, grads, backend)
    return gradients  # type: ignore[no-any-return]


def _ddf_options(stride: Any = 1, dilation: Any = 1, combine: Any = "mul") -> Options:
    return (
        _checks.pair("ddf", "stride", stride),
        _checks.pair("ddf", "dilation", dilation),
        combine if combine in COMBINE else _checks.choice("ddf", "combine", combine, COMBINE),
    )


@lru_cache(maxsize=4096)
def _ddf_plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, DDF, dtypes)
    (stride_h, stride_w), *_ = options
    x, spatial, channel = shapes
    sizes: dict[str, int] = {}
    _checks.bind(function, "x", x or (), "N C H W", sizes)
    sizes["Ho"], sizes["Wo"] = -(-sizes["H"] // stride_h), -(-sizes["W"] // stride_w)
    if spatial is not None:
        _checks.bind(function, "spatial", spatial, "N G kh kw Ho Wo", sizes)
    if channel is not None:
        _checks.bind(function, "channel", channel, "N C kh kw", sizes)
    out_shape = (sizes["N"], sizes["C"], sizes["Ho"], sizes["Wo"])
    return _filter_plan(function, dtype, shapes, options, out_shape, sizes, 1, *options)


def _filter_plan(
    function: str,
    dtype: str,
    shapes: Shapes,
    options: Options,
    out_shape: Shape,
    sizes: dict[str, int],
    scale: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    combine: str,
) -> Plan:
    """Make the plan that `ddf` and `ddf_upsample` share once their shapes are bound."""
    _, spatial, channel = shapes
    if spatial is None and channel is None:
        msg = f"{function}: spatial and channel must not both be None"
        raise ValueError(msg)
    groups = sizes.get("G", 1)
    _checks.divides(function, "spatial", groups, "G", "C", sizes["C"])
    _checks.reach(function, sizes["kh"], dilation[0])
    _checks.reach(function, sizes["kw"], dilation[1])
    geometry = FilterGeometry(
        N=sizes["N"],
        C=sizes["C"],
        G=groups,
        H=sizes["H"],
        W=sizes["W"],
        Ho=sizes["Ho"],
        Wo=sizes["Wo"],
        kh=sizes["kh"],
        kw=sizes["kw"],
        scale=scale,
        stride_h=stride[0],
        stride_w=stride[1],
        dilation_h=dilation[0],
        dilation_w=dilation[1],
        has_spatial=int(spatial is not None),
        has_channel=int(channel is not None),
        add=int(combine == "add"),
    )
    return Plan(dtype, out_shape, geometry, options=options)


def _filter_derivative(
    index: int, tangent: Any, arrays: tuple[Any, ...], options: Options
) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: linear in each argument, or in the pair for "add"."""
    x, spatial, channel = arrays
    if index == 0:
        return (tangent, spatial, channel), options
    adds = options[-1] == "add"
    if index == 1:
        return (x, tangent, None if adds else channel), options
    return (x, None if adds else spatial, tangent), options


# ---- ddf_upsample --------------------------------------------------------------------------------------------------


def ddf_upsample(
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    scale: int,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Upsample by decoupled dynamic filters, one filter for each sub-pixel (DDF-Up, DDF section 3.4).

    .. math::
        out_{n,c,\,y s+p,\,x s+q} = ddf(X, spatial_{n,g,p,q}, channel_{n,c,p,q})_{n,c,y,x}

    The interleaved result is written by one kernel: there is no stack and no pixel-shuffle pass.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    spatial : array (N, G, s, s, kh, kw, H, W) or None
        A filter for each sub-pixel (p, q) of each pixel, shared by the C/G channels of a group. Softmax-normalised over
        its taps and alone (channel None) it is CARAFE.
    channel : array (N, C, s, s, kh, kw) or None
        A filter for each sub-pixel and channel, shared by all pixels.
    scale : int
        Upsampling factor s.
    dilation : int or (h, w), default 1
        Step between taps, in input pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.
    out : array (N, C, s*H, s*W), optional
        A C-contiguous array to write to.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array (N, C, s*H, s*W)
        Of the kind, dtype and device of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    References
    ----------
    Decoupled Dynamic Filter Networks, CVPR 2021.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x = np.array([[[[1.0, 2.0]]]])
    >>> nearest = np.ones((1, 1, 2, 2, 1, 1))
    >>> dynk.ddf_upsample(x, None, nearest, scale=2)[0, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    """
    options = _upsample_options(scale, dilation, combine)
    return _dispatch.forward(DDF_UPSAMPLE, (x, spatial, channel), options, out, backend)


def ddf_upsample_backward(
    grad_out: Any,
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    scale: int,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> DdfUpsampleGradients:
    """Return the gradients of `ddf_upsample` with respect to its arrays.

    Parameters
    ----------
    grad_out : array (N, C, s*H, s*W)
        Gradient of a scalar with respect to the output of `ddf_upsample`.
    x, spatial, channel, scale, dilation, combine, backend
        As given to `ddf_upsample`.
    needs : collection of {"x", "spatial", "channel"}, optional
        The gradients wanted; all that exist if None. Nothing else is computed.
    grads : DdfUpsampleGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    DdfUpsampleGradients
        (x, spatial, channel), each of its argument's shape and dtype, None where the argument is None or not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, nearest = np.ones((1, 1, 1, 2)), np.ones((1, 1, 2, 2, 1, 1))
    >>> dynk.ddf_upsample_backward(np.ones((1, 1, 2, 4)), x, None, nearest, scale=2, needs=["x"]).x[0, 0]
    array([[4., 4.]])
    """
    options = _upsample_options(scale, dilation, combine)
    gradients = _dispatch.backward(DDF_UPSAMPLE, grad_out, (x, spatial, channel), options, needs, grads, backend)
    return gradients  # type: ignore[no-any-return]


def _upsample_options(scale: Any, dilation: Any = 1, combine: Any = "mul") -> Options:
    return (
        _checks.integer("ddf_upsample", "scale", scale),
        _checks.pair("ddf_upsample", "dilation", dilation),
        combine if combine in COMBINE else _checks.choice("ddf_upsample", "combine", combine, COMBINE),
    )


@lru_cache(maxsize=4096)
def _upsample_plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, DDF_UPSAMPLE, dtypes)
    scale = options[0]
    x, spatial, channel = shapes
    sizes: dict[str, int] = {"s": scale}
    _checks.bind(function, "x", x or (), "N C H W", sizes)
    if spatial is not None:
        _checks.bind(function, "spatial", spatial, "N G s s kh kw H W", sizes)
    if channel is not None:
        _checks.bind(function, "channel", channel, "N C s s kh kw", sizes)
    sizes["Ho"], sizes["Wo"] = sizes["H"], sizes["W"]
    out_shape = (sizes["N"], sizes["C"], scale * sizes["H"], scale * sizes["W"])
    return _filter_plan(function, dtype, shapes, options, out_shape, sizes, scale, (1, 1), *options[1:])


# ---- filter_norm ---------------------------------------------------------------------------------------------------


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

    Examples
    --------
    >>> import numpy as np, dynk
    >>> filters = np.array([[[[1.0, 2.0, 3.0]]]])
    >>> dynk.filter_norm_backward(np.ones((1, 1, 1, 3)), filters, axes=(2, 3)).f.round(6) + 0.0
    array([[[[0., 0., 0.]]]])
    """
    options = _norm_options(axes, eps)
    gradients = _dispatch.backward(FILTER_NORM, grad_out, (f, scale, shift), options, needs, grads, backend)
    return gradients  # type: ignore[no-any-return]


def _norm_options(axes: Any, eps: Any = 1e-10) -> Options:
    if not isinstance(axes, tuple | list) or len(axes) != 2:
        msg = f"filter_norm: axes must be a pair of ints, got {axes!r}"
        raise TypeError(msg)
    first, second = (_checks.integer("filter_norm", "axes", axis, least=-64, most=63) for axis in axes)
    return (first, second), _checks.real("filter_norm", "eps", eps, least=0.0)


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
    others = [d for d in range(len(shape)) if d not in taps]
    rows = [(shape[d], f_strides[d], scale_strides[d], shift_strides[d]) for d in others]
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
    geometry = NormGeometry(
        filters,
        shape[i],
        shape[j],
        f_strides[i],
        f_strides[j],
        scale_strides[i],
        scale_strides[j],
        shift_strides[i],
        shift_strides[j],
        int(scale is not None),
        int(shift is not None),
        *columns,
        filters * shape[i] * shape[j],
        _size(scale),
        _size(shift),
    )
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


def _collapse(rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Merge neighbouring dimensions (extent, strides) that every operand steps through as one."""
    merged: list[tuple[int, int, int, int]] = []
    for extent, *strides in rows:
        if extent == 1:
            continue
        if merged:
            outer, *outer_strides = merged[-1]
            if all(big == small * extent for big, small in zip(outer_strides, strides, strict=True)):
                merged[-1] = (outer * extent, *strides)  # type: ignore[assignment]
                continue
        merged.append((extent, *strides))  # type: ignore[arg-type]
    return merged


# ---- declarations --------------------------------------------------------------------------------------------------

DDF = Operator(
    name="ddf",
    family="decoupled",
    launcher="ddf",
    arrays=("x", "spatial", "channel"),
    optional=frozenset({"spatial", "channel"}),
    options={"stride": ("int[2]", 1), "dilation": ("int[2]", 1), "combine": ("str", "mul")},
    canonical=_ddf_options,
    plan=_ddf_plan,
    gradients=DdfGradients,
    derivative=_filter_derivative,
    batched=frozenset({"x", "spatial", "channel"}),
)
DDF_UPSAMPLE = Operator(
    name="ddf_upsample",
    family="decoupled",
    launcher="ddf",
    arrays=("x", "spatial", "channel"),
    optional=frozenset({"spatial", "channel"}),
    options={"scale": ("int", None), "dilation": ("int[2]", 1), "combine": ("str", "mul")},
    canonical=_upsample_options,
    plan=_upsample_plan,
    gradients=DdfUpsampleGradients,
    derivative=_filter_derivative,
    batched=frozenset({"x", "spatial", "channel"}),
)
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
    batched=frozenset(),
)
OPERATORS = (DDF, DDF_UPSAMPLE, FILTER_NORM)
