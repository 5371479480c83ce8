"""`ddf` and `ddf_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.decoupled._filter import combination, filter_derivative, filter_plan


class DdfGradients(NamedTuple):
    """Gradients of `ddf`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    spatial: Any
    channel: Any


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
    Sums are formed in float32 (float64 for float64) and rounded once. No memory besides the output is used but, on the
    CPU, for each thread the spatial filters of a band of positions (up to 7x7 taps: some 400 kB) and a table of at most
    1024 * (kh*kw + 9) integers.

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
        (x, spatial, channel), each of its argument's shape and dtype, None where that is None or not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. Sums over pixels and channels are
    formed in stages. The workspace, in the accumulation type, is at most 1/64 of the size of `x` on CUDA. On the CPU it
    is for each thread the filters or their gradients of a band of positions and the table, as `ddf` uses them, and,
    where an image has several bands, a channel filter gradient for each: at most kh*kw/512 of the
    size of `x`.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, channel = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    >>> dynk.ddf_backward(np.ones((1, 1, 3, 3)), x, None, channel).x[0, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    options = _ddf_options(stride, dilation, combine, function="ddf_backward")
    return DdfGradients(*_dispatch.backward(DDF, grad_out, (x, spatial, channel), options, needs, grads, backend))


def _ddf_options(stride: Any = 1, dilation: Any = 1, combine: Any = "mul", *, function: str = "ddf") -> Options:
    return (
        _checks.pair(function, "stride", stride),
        _checks.pair(function, "dilation", dilation),
        combination(function, combine),
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
    return filter_plan(function, dtype, shapes, options, out_shape, sizes, 1, *options)


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
    samples=(
        (((2, 6, 17, 23), (2, 2, 3, 3, 17, 23), (2, 6, 3, 3)), {}),
        (((1, 4, 12, 37), (1, 1, 5, 2, 6, 13), (1, 4, 5, 2)), {"stride": (2, 3), "dilation": 2, "combine": "add"}),
        (((2, 3, 9, 8), (2, 3, 1, 3, 9, 8), None), {"dilation": (1, 2)}),
        (((2, 5, 9, 8), None, (2, 5, 7, 7)), {}),
    ),
    derivative=filter_derivative,
    batched=frozenset({"x", "spatial", "channel"}),
)
