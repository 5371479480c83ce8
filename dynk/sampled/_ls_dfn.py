"""`ls_dfn` and `ls_dfn_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.kernels.sampled.geometry import REDUCTIONS, SampleGeometry
from dynk.sampled._sampling import check_reach, integers, output_shape, refuse_derivative_of_max, sampling


class LsDfnGradients(NamedTuple):
    """Gradients of `ls_dfn`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    across: Any
    within: Any
    sample_attention: Any
    position_attention: Any


def ls_dfn(
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any = None,
    position_attention: Any = None,
    *,
    samples: int,
    sample_stride: int,
    dilation: int | tuple[int, int] = 1,
    kernel_residual: bool = True,
    attention_residual: bool | tuple[bool, bool] = True,
    reduce: str = "sum",
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Apply dynamic filters with a large sampling field (LS-DFN Eqs. 4 and 5).

    .. math::
        K_{o,c,i,j}(y, x) &= within_{o,i,j,y,x} + [(i,j) = centre] \, (across_{o,c,y,x} + 1/C) \\
        sample_{a,b,o,y,x} &= A^s_{o,a,b,y,x} \sum_{cij} X_{c,\,tap(y_h,i),\,tap(x_h,j)} \,
            K_{o,c,i,j}(y, x) \, A^p_{o,i,j,y_h,x_h}

    for each image of the batch. Sample (a, b), 0 <= a, b < s, is centred at y_h = y + (a - (s-1)//2)*sample_stride and
    likewise in x; its tap (i, j) reads row y_h + (i - (kh-1)//2)*dilation, and a read outside the image contributes 0.
    The centre of the kernel is ((kh-1)//2, (kw-1)//2). 1/C is added with `kernel_residual` only. The attentions are 1 +
    the arrays given, or these alone without `attention_residual`, and 1 where no array is given.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    across : array (N, O, C, H, W) or None
        The part of the kernel that mixes channels, at its centre. None is 0.
    within : array (N, O, kh, kw, H, W) or None
        The part of the kernel that is shared by all input channels. None is 0.
    sample_attention : array (N, O, s, s, H, W), optional
        Weighs the samples of each pixel.
    position_attention : array (N, O, kh, kw, H, W), optional
        Weighs the taps of a sample, taken from the pixel at its centre. Outside the image the array counts as 0: taps
        of a sample centred there have the attention 1 with the residual; without it they are not read.
    samples : int
        Samples per side s, at most 64.
    sample_stride : int
        Step between samples, in pixels.
    dilation : int or (h, w), default 1
        Step between taps, in pixels.
    kernel_residual : bool, default True
        Whether 1/C is added at the centre of the kernel: the operator then starts as a mean over channels.
    attention_residual : bool or (sample, position), default True
        Whether 1 is added to the attentions.
    reduce : {"sum", "mean", "max", "none"}, default "sum"
        How the s*s samples become one output. Of equal largest samples "max" takes the first in row-major order, and a
        NaN is larger than all else, as for `numpy.argmax`.
    out : array of the shape of the output, optional
        A C-contiguous array to write to; the call then allocates nothing for contiguous inputs but the workspace.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array (N, O, H, W), or (N, s, s, O, H, W) for "none"
        Of the kind, dtype and device of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or option.
    TypeError
        For a wrong dtype or type, or arrays of different kinds.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    See Also
    --------
    dynamic_filter : the same for kernels that are not composed of two parts.
    dynk.sampled.from_author_layout : takes tensors of the layout of the authors' code.

    Notes
    -----
    `within` and the attentions do not depend on the input channel, so the sum over channels is taken of the image
    first: a pixel costs s*s*(kh*kw*O + O*C) multiplications and not s*s*kh*kw*O*C. Neither samples nor composed kernels
    are stored. Sums are formed in float32 (float64 for float64) and rounded once. The workspace, in the accumulation
    type, is one channel sum (N, 1, H, W) and, for each thread on the CPU, copies and sums of (s + 3)*C +
    4*(s*s + (s + 1)*kh*kw + s + 64) rows of W numbers, 4*s*s more for over 4096 channels, each padded by up to four
    vectors of 64 bytes and s*sample_stride numbers.

    Without attention, what the samples see is summed first for "sum" and "mean" on the CPU: a pixel costs kh*kw*O + O*C
    multiplications, and each thread has 130 rows of the larger of W and 1024 numbers instead, 64 more for over 4096
    channels.

    References
    ----------
    Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018. Its Eqs. 6 and 7 exchange `across` and
    `within`; its text is followed here.

    Examples
    --------
    Without any filter yet, the kernel residual gives the channel mean, summed over the samples inside the image:

    >>> import numpy as np, dynk
    >>> x = np.arange(12.0).reshape(1, 2, 2, 3)
    >>> across, within = np.zeros((1, 1, 2, 2, 3)), np.zeros((1, 1, 3, 3, 2, 3))
    >>> dynk.ls_dfn(x, across, within, samples=1, sample_stride=1)[0, 0]
    array([[3., 4., 5.],
           [6., 7., 8.]])
    >>> dynk.ls_dfn(x, across, within, samples=3, sample_stride=1)[0, 0]
    array([[20., 33., 24.],
           [20., 33., 24.]])
    """
    options = _options(samples, sample_stride, dilation, kernel_residual, attention_residual, reduce)
    arrays = (x, across, within, sample_attention, position_attention)
    return _dispatch.forward(LS_DFN, arrays, options, out, backend)


def ls_dfn_backward(
    grad_out: Any,
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any = None,
    position_attention: Any = None,
    *,
    samples: int,
    sample_stride: int,
    dilation: int | tuple[int, int] = 1,
    kernel_residual: bool = True,
    attention_residual: bool | tuple[bool, bool] = True,
    reduce: str = "sum",
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> LsDfnGradients:
    """Return the gradients of `ls_dfn` with respect to its arrays.

    Parameters
    ----------
    grad_out : array of the shape of the output
        Gradient of a scalar with respect to the output of `ls_dfn`.
    x, across, within, sample_attention, position_attention
        As given to `ls_dfn`.
    samples, sample_stride, dilation, kernel_residual, attention_residual, reduce, backend
        As given to `ls_dfn`.
    needs : collection of {"x", "across", "within", "sample_attention", "position_attention"}, optional
        The gradients wanted; all that exist if None. Nothing else is computed.
    grads : LsDfnGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    LsDfnGradients
        In the order of the arguments, each of its argument's shape and dtype, None where that is None or not in
        `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ls_dfn`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. For "max" only the chosen samples
    take part: others are not multiplied by 0. The workspace, in the accumulation type, is the channel sum and its
    gradient, (N, 1, H, W) each, and for each thread on the CPU as many rows of W numbers, padded as in `ls_dfn`, as the
    largest of 192*(s*s + 2) + 2048 (the image; 4096 where s*(O + 63) > 4096), s*C + 12*s*s (the filters), s*C +
    16*s*s + 4*(s + 33)*kh*kw + 4*s + 256 (the attentions; 4*s*s more for over 4096 channels) and for "max" those of
    `ls_dfn`, which then has a number for each output besides, of 16 bits on the CPU and 32 on CUDA, which says what
    sample was chosen. Without attention, each thread has for "sum" and "mean" the larger of 66 rows of the larger of W
    and 1024 numbers, and of 3 times (5 times where O > 4096 or kh*kw > 64) the larger of 2**16 and (2*r + 1)*W numbers,
    where r = (s - 1)*sample_stride + (kh - 1)*dilation.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x = np.ones((1, 2, 2, 3))
    >>> across, within = np.zeros((1, 1, 2, 2, 3)), np.zeros((1, 1, 1, 1, 2, 3))
    >>> gradients = dynk.ls_dfn_backward(np.ones((1, 1, 2, 3)), x, across, within, samples=3, sample_stride=1)
    >>> gradients.within[0, 0, 0, 0]
    array([[ 8., 12.,  8.],
           [ 8., 12.,  8.]])
    >>> gradients.position_attention is None
    True
    """
    options = _options(
        samples, sample_stride, dilation, kernel_residual, attention_residual, reduce, function="ls_dfn_backward"
    )
    arrays = (x, across, within, sample_attention, position_attention)
    return LsDfnGradients(*_dispatch.backward(LS_DFN, grad_out, arrays, options, needs, grads, backend))


def _options(
    samples: Any,
    sample_stride: Any,
    dilation: Any = 1,
    kernel_residual: Any = True,
    attention_residual: Any = True,
    reduce: Any = "sum",
    *,
    function: str = "ls_dfn",
) -> Options:
    *where, reduce = sampling(function, samples, sample_stride, dilation, reduce)
    residual = _checks.flag(function, "kernel_residual", kernel_residual)
    return (*where, residual, _flags(function, "attention_residual", attention_residual), reduce)


def _flags(function: str, argument: str, value: Any) -> tuple[bool, bool]:
    """Return a bool or a (sample, position) pair as a pair of bools."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            msg = f"{function}: {argument} must be a bool or a (sample, position) pair, got {_checks.brief(value)}"
            raise ValueError(msg)
        return _checks.flag(function, argument, value[0]), _checks.flag(function, argument, value[1])
    one = _checks.flag(function, argument, value)
    return one, one


@lru_cache(maxsize=4096)
def _plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, LS_DFN, dtypes)
    samples, sample_stride, dilation, kernel_residual, (sample_residual, position_residual), reduce = options
    x, across, within, sample_attention, position_attention = shapes
    sizes: dict[str, int] = {}
    _checks.bind(function, "x", x or (), "N C H W", sizes)
    if across is None and within is None:
        msg = f"{function}: across and within must not both be None"
        raise ValueError(msg)
    if across is not None:
        _checks.bind(function, "across", across, "N O C H W", sizes)
    if within is not None:
        _checks.bind(function, "within", within, "N O kh kw H W", sizes)
    if sample_attention is not None:
        _bind_samples(function, sample_attention, sizes, samples)
    if position_attention is not None:
        _checks.bind(function, "position_attention", position_attention, "N O kh kw H W", sizes)
    kh, kw = sizes.setdefault("kh", 1), sizes.setdefault("kw", 1)  # the centre alone
    check_reach(function, samples, sample_stride, (kh, kw), dilation)
    geometry = SampleGeometry(
        **sizes,
        samples=samples,
        sample_stride=sample_stride,
        dilation_h=dilation[0],
        dilation_w=dilation[1],
        reduce=REDUCTIONS.index(reduce),
        has_across=int(across is not None),
        has_within=int(within is not None),
        has_sample_attention=int(sample_attention is not None),
        has_position_attention=int(position_attention is not None),
        kernel_residual=int(kernel_residual),
        sample_residual=int(sample_residual),
        position_residual=int(position_residual),
    )
    return Plan(dtype, output_shape(sizes, samples, reduce), geometry, options=options)


def _bind_samples(function: str, shape: tuple[int, ...], sizes: dict[str, int], samples: int) -> None:
    """Match the shape of the sample attention, whose s is an option."""
    named = {**sizes, "s": samples}
    _checks.bind(function, "sample_attention", shape, "N O s s H W", named)


def _derivative(index: int, tangent: Any, arrays: tuple[Any, ...], options: Options) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: the operator is affine in each argument."""
    *where, kernel_residual, (sample_residual, position_residual), reduce = options
    refuse_derivative_of_max("ls_dfn", reduce)
    x, across, within, sample_attention, position_attention = arrays
    if index == 0:
        return (tangent, across, within, sample_attention, position_attention), options
    if index == 1:
        across, within, kernel_residual = tangent, None, False
    elif index == 2:
        across, within, kernel_residual = None, tangent, False
    elif index == 3:
        sample_attention, sample_residual = tangent, False
    else:
        position_attention, position_residual = tangent, False
    moved = (x, across, within, sample_attention, position_attention)
    return moved, (*where, kernel_residual, (sample_residual, position_residual), reduce)


LS_DFN = Operator(
    name="ls_dfn",
    family="sampled",
    launcher="ls_dfn",
    arrays=("x", "across", "within", "sample_attention", "position_attention"),
    optional=frozenset({"across", "within", "sample_attention", "position_attention"}),
    options={
        "samples": ("int", None),
        "sample_stride": ("int", None),
        "dilation": ("int[2]", 1),
        "kernel_residual": ("bool", True),
        "attention_residual": ("bool[2]", True),
        "reduce": ("str", "sum"),
    },
    canonical=_options,
    plan=_plan,
    gradients=LsDfnGradients,
    samples=(
        (
            ((2, 3, 9, 35), (2, 2, 3, 9, 35), (2, 2, 3, 3, 9, 35), (2, 2, 3, 3, 9, 35), (2, 2, 3, 3, 9, 35)),
            {"samples": 3, "sample_stride": 2},
        ),
        (
            ((1, 5, 8, 9), (1, 3, 5, 8, 9), (1, 3, 3, 5, 8, 9), (1, 3, 2, 2, 8, 9), (1, 3, 3, 5, 8, 9)),
            {
                "samples": 2,
                "sample_stride": 4,
                "dilation": (2, 1),
                "kernel_residual": False,
                "attention_residual": False,
                "reduce": "mean",
            },
        ),
        (
            (
                integers(2, 4, 7, 8),
                integers(2, 3, 4, 7, 8),
                integers(2, 3, 3, 3, 7, 8),
                integers(2, 3, 3, 3, 7, 8),
                integers(1, 2, 3, 3, 3, 7, 8)[0],
            ),
            {"samples": 3, "sample_stride": 1, "reduce": "max"},
        ),
        (((2, 4, 7, 6), (2, 2, 4, 7, 6), None, None, None), {"samples": 3, "sample_stride": 1, "reduce": "none"}),
        (
            ((1, 4, 7, 6), None, (1, 2, 2, 1, 7, 6), None, (1, 2, 2, 1, 7, 6)),
            {"samples": 5, "sample_stride": 2, "attention_residual": (True, False)},
        ),
    ),
    derivative=_derivative,
    batched=frozenset({"x", "across", "within", "sample_attention", "position_attention"}),
)
