"""`ddf_upsample` and `ddf_upsample_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.decoupled._filter import combination, filter_derivative, filter_plan


class DdfUpsampleGradients(NamedTuple):
    """Gradients of `ddf_upsample`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    spatial: Any
    channel: Any


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
        (x, spatial, channel), each of its argument's shape and dtype, None where that is None or not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Notes
    -----
    As of `ddf_backward`.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, nearest = np.ones((1, 1, 1, 2)), np.ones((1, 1, 2, 2, 1, 1))
    >>> dynk.ddf_upsample_backward(np.ones((1, 1, 2, 4)), x, None, nearest, scale=2, needs=["x"]).x[0, 0]
    array([[4., 4.]])
    """
    options = _upsample_options(scale, dilation, combine, function="ddf_upsample_backward")
    return DdfUpsampleGradients(
        *_dispatch.backward(DDF_UPSAMPLE, grad_out, (x, spatial, channel), options, needs, grads, backend)
    )


def _upsample_options(
    scale: Any, dilation: Any = 1, combine: Any = "mul", *, function: str = "ddf_upsample"
) -> Options:
    return (
        _checks.integer(function, "scale", scale),
        _checks.pair(function, "dilation", dilation),
        combination(function, combine),
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
    return filter_plan(function, dtype, shapes, options, out_shape, sizes, scale, (1, 1), *options[1:])


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
    samples=(
        (((2, 6, 9, 11), (2, 2, 2, 2, 3, 3, 9, 11), (2, 6, 2, 2, 3, 3)), {"scale": 2}),
        (((1, 4, 5, 7), (1, 1, 3, 3, 5, 5, 5, 7), (1, 4, 3, 3, 5, 5)), {"scale": 3, "combine": "add"}),
        (((1, 2, 5, 7), (1, 2, 2, 2, 2, 4, 5, 7), None), {"scale": 2, "dilation": 2}),
        (((1, 3, 5, 7), None, (1, 3, 4, 4, 3, 3)), {"scale": 4}),
    ),
    derivative=filter_derivative,
    batched=frozenset({"x", "spatial", "channel"}),
)
