"""`dynamic_filter` and `dynamic_filter_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.kernels.sampled.geometry import REDUCTIONS, SampleGeometry
from dynk.sampled._sampling import check_reach, integers, output_shape, refuse_derivative_of_max, sampling


class DynamicFilterGradients(NamedTuple):
    """Gradients of `dynamic_filter`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    kernel: Any


def dynamic_filter(
    x: Any,
    kernel: Any,
    *,
    samples: int = 1,
    sample_stride: int = 1,
    dilation: int | tuple[int, int] = 1,
    reduce: str = "sum",
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Apply a kernel of its own to each pixel, around a grid of samples (DFN; LS-DFN Eqs. 2 and 5).

    .. math::
        sample_{n,a,b,o,y,x} = \sum_{cij} X_{n,c,\,tap(y_h,i),\,tap(x_h,j)} \, kernel_{n,o,c,i,j,y,x}

    Sample (a, b), 0 <= a, b < s, is centred at y_h = y + (a - (s-1)//2)*sample_stride and likewise in x; its tap (i, j)
    reads row y_h + (i - (kh-1)//2)*dilation. A read outside the image contributes 0. One sample is the dynamic filter
    network.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    kernel : array (N, O, C, kh, kw, H, W)
        A whole convolution kernel for each pixel.
    samples : int, default 1
        Samples per side s, at most 64.
    sample_stride : int, default 1
        Step between samples, in pixels.
    dilation : int or (h, w), default 1
        Step between taps, in pixels.
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
    ls_dfn : the same for kernels composed of two parts, at a fraction of the cost.

    Notes
    -----
    Sums are formed in float32 (float64 for float64) and rounded once. The samples are not stored. The workspace, in the
    accumulation type, is 5 rows of W numbers for each thread on the CPU; for "sum" and "mean", where what the samples
    see is summed first, 130 rows of the larger of W and 1024 numbers, 64 more where C*kh*kw > 4096.

    References
    ----------
    Dynamic Filter Networks, NIPS 2016. Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x = np.arange(6.0).reshape(1, 1, 2, 3)
    >>> kernel = np.ones((1, 1, 1, 1, 1, 2, 3))
    >>> dynk.dynamic_filter(x, kernel, samples=3)[0, 0]
    array([[ 8., 15., 12.],
           [ 8., 15., 12.]])
    >>> dynk.dynamic_filter(x, kernel, samples=3, reduce="max")[0, 0]
    array([[4., 5., 5.],
           [4., 5., 5.]])
    """
    options = _options(samples, sample_stride, dilation, reduce)
    return _dispatch.forward(DYNAMIC_FILTER, (x, kernel), options, out, backend)


def dynamic_filter_backward(
    grad_out: Any,
    x: Any,
    kernel: Any,
    *,
    samples: int = 1,
    sample_stride: int = 1,
    dilation: int | tuple[int, int] = 1,
    reduce: str = "sum",
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> DynamicFilterGradients:
    """Return the gradients of `dynamic_filter` with respect to its arrays.

    Parameters
    ----------
    grad_out : array of the shape of the output
        Gradient of a scalar with respect to the output of `dynamic_filter`.
    x, kernel, samples, sample_stride, dilation, reduce, backend
        As given to `dynamic_filter`.
    needs : collection of {"x", "kernel"}, optional
        The gradients wanted; both if None. Nothing else is computed.
    grads : DynamicFilterGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    DynamicFilterGradients
        (x, kernel), each of its argument's shape and dtype, None where it is not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `dynamic_filter`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. For "max" only the chosen samples
    take part: others are not multiplied by 0. The workspace is, for each thread on the CPU, 5 rows of W numbers in the
    accumulation type, and for "max" a number for each output, of 16 bits on the CPU and 32 on CUDA, which says what
    sample was chosen. For "sum" and "mean" it is the larger of 66 rows of the larger of W and 1024 numbers, and of 3
    times (5 times where O > 4096 or kh*kw > 64) the larger of 2**16 and (2*r + 1)*W numbers, where r = (s -
    1)*sample_stride + (kh - 1)*dilation.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, kernel = np.ones((1, 1, 2, 3)), np.ones((1, 1, 1, 1, 1, 2, 3))
    >>> dynk.dynamic_filter_backward(np.ones((1, 1, 2, 3)), x, kernel, samples=3).kernel[0, 0, 0, 0, 0]
    array([[4., 6., 4.],
           [4., 6., 4.]])
    """
    options = _options(samples, sample_stride, dilation, reduce, function="dynamic_filter_backward")
    return DynamicFilterGradients(
        *_dispatch.backward(DYNAMIC_FILTER, grad_out, (x, kernel), options, needs, grads, backend)
    )


def _options(
    samples: Any = 1,
    sample_stride: Any = 1,
    dilation: Any = 1,
    reduce: Any = "sum",
    *,
    function: str = "dynamic_filter",
) -> Options:
    return sampling(function, samples, sample_stride, dilation, reduce)


@lru_cache(maxsize=4096)
def _plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, DYNAMIC_FILTER, dtypes)
    samples, sample_stride, dilation, reduce = options
    x, kernel = shapes
    sizes: dict[str, int] = {}
    _checks.bind(function, "x", x or (), "N C H W", sizes)
    _checks.bind(function, "kernel", kernel or (), "N O C kh kw H W", sizes)
    check_reach(function, samples, sample_stride, (sizes["kh"], sizes["kw"]), dilation)
    geometry = SampleGeometry(
        **sizes,
        samples=samples,
        sample_stride=sample_stride,
        dilation_h=dilation[0],
        dilation_w=dilation[1],
        reduce=REDUCTIONS.index(reduce),
        has_across=0,
        has_within=0,
        has_sample_attention=0,
        has_position_attention=0,
        kernel_residual=0,
        sample_residual=0,
        position_residual=0,
    )
    return Plan(dtype, output_shape(sizes, samples, reduce), geometry, options=options)


def _derivative(index: int, tangent: Any, arrays: tuple[Any, ...], options: Options) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: linear in each argument."""
    refuse_derivative_of_max("dynamic_filter", options[3])
    x, kernel = arrays
    return ((tangent, kernel) if index == 0 else (x, tangent)), options


DYNAMIC_FILTER = Operator(
    name="dynamic_filter",
    family="sampled",
    launcher="dynamic_filter",
    arrays=("x", "kernel"),
    optional=frozenset(),
    options={
        "samples": ("int", 1),
        "sample_stride": ("int", 1),
        "dilation": ("int[2]", 1),
        "reduce": ("str", "sum"),
    },
    canonical=_options,
    plan=_plan,
    gradients=DynamicFilterGradients,
    samples=(
        (((2, 3, 9, 17), (2, 2, 3, 3, 3, 9, 17)), {}),
        (((1, 4, 6, 35), (1, 2, 4, 2, 3, 6, 35)), {"samples": 3, "sample_stride": 2, "reduce": "mean"}),
        ((integers(2, 2, 7, 8), integers(2, 3, 2, 3, 3, 7, 8)), {"samples": 2, "dilation": (1, 2), "reduce": "max"}),
        (((1, 2, 5, 6), (1, 1, 2, 1, 5, 5, 6)), {"samples": 3, "sample_stride": 3, "reduce": "none"}),
    ),
    derivative=_derivative,
    batched=frozenset({"x", "kernel"}),
)
