"""`deformable_conv2d` and `deformable_conv2d_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.deformable._points import BOUNDARY, refuse_derivative
from dynk.kernels.deformable.geometry import BOUNDARIES, DeformGeometry


class DeformableConv2dGradients(NamedTuple):
    """Gradients of `deformable_conv2d`, each of its argument's shape and dtype; None where there is none."""

    x: Any
    weight: Any
    kernel_offset: Any
    data_offset: Any
    mask: Any
    bias: Any


def deformable_conv2d(
    x: Any,
    weight: Any,
    kernel_offset: Any = None,
    data_offset: Any = None,
    mask: Any = None,
    bias: Any = None,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    kernel_boundary: str = "clip",
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Convolve with kernels, with images, or with both sampled at points that move from pixel to pixel (DK Eq. 11).

    .. math::
        out_{n,o,y,x} &= bias_o + \sum_{cij} W_{o,c}(k_i, k_j) \, mask_{n,i,j,y,x} \, X_{n,c}(p_y, p_x) \\
        (k_i, k_j) &= (i + (Sh - kh)/2, \; j + (Sw - kw)/2) + kernel\_offset_{n,i,j,:,y,x} \\
        (p_y, p_x) &= (y \, stride - padding + i \, dilation, \; ...) + data\_offset_{n,i,j,:,y,x}

    Both are sampled bilinearly. Without `data_offset` this is a local deformable kernel (DK Eq. 7), without
    `kernel_offset` a deformable convolution, modulated by `mask` (DCN v1 and v2), without both a convolution. Ho = (H +
    2*padding - dilation*(kh - 1) - 1) // stride + 1, likewise Wo.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    weight : array (O, C/groups, Sh, Sw)
        The kernel; with `kernel_offset` the scope that its taps are sampled from.
    kernel_offset : array (N, Gk, kh, kw, 2, Ho, Wo), optional
        How far (dy, dx) each tap's point in the scope moves, for each of Gk blocks of channels.
    data_offset : array (N, Gd, kh, kw, 2, Ho, Wo), optional
        How far (dy, dx) each tap's point in the image moves, for each of Gd blocks of channels.
    mask : array (N, Gd, kh, kw, Ho, Wo), optional
        Weighs each tap.
    bias : array (O,), optional
        Is added to the output.
    kernel_size : int or (h, w), optional
        The taps (kh, kw) that are sampled; as many as `kernel_offset` has, or (Sh, Sw) without it, if None.
    stride : int or (h, w), default 1
        Step between output pixels.
    padding : int or (h, w), default 0
        How far the first pixel's first tap lies outside the image.
    dilation : int or (h, w), default 1
        Step between taps.
    groups : int, default 1
        Blocks of channels that are convolved each by itself; divides C and O. C groups are a depth-wise convolution.
    kernel_boundary : {"clip", "zeros"}, default "clip"
        Whether points outside the scope are moved to its border, as in DK, or read zeros there, as the image does.
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
        For a wrong shape or option.
    TypeError
        For a wrong dtype or type, or arrays of different kinds.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    See Also
    --------
    sample_kernel : one sampled kernel for each image, for global deformable kernels.

    Notes
    -----
    The image is 0 at and beyond one pixel outside, and its neighbours outside count 0: this is the rule of
    `torchvision.ops.deform_conv2d`, whose offsets are these but for a reshape. Coordinates are formed in float32
    (float64 for float64), as are all sums; the result is rounded once. A NaN coordinate makes its outputs NaN, an
    infinite one lies outside. The workspace does not grow with the image: it is at most 64 MiB on CUDA; on the CPU, for
    float32, 16 MiB and for each thread about 6 MiB and T * (30 + S) KiB, with T = kh*kw and S = Sh*Sw, and twice that
    for float64.

    References
    ----------
    Deformable Kernels: Adapting Effective Receptive Fields for Object Deformation, ICLR 2020. Deformable Convolutional
    Networks, ICCV 2017. Deformable ConvNets v2: More Deformable, Better Results, CVPR 2019.

    Examples
    --------
    A kernel of one tap, moved by half a position in a scope of two, and a pixel that looks half a pixel to the right:

    >>> import numpy as np, dynk
    >>> x = np.array([[[[1.0, 2.0, 4.0]]]])
    >>> scope = np.array([[[[1.0, 3.0]]]])
    >>> kernel_offset = np.zeros((1, 1, 1, 1, 2, 1, 3))
    >>> kernel_offset[:, :, 0, 0, 1] = -0.5, 0, 0.5
    >>> dynk.deformable_conv2d(x, scope, kernel_offset)[0, 0]
    array([[ 1.,  4., 12.]])
    >>> data_offset = np.zeros((1, 1, 1, 1, 2, 1, 3))
    >>> data_offset[:, :, 0, 0, 1] = 0.5
    >>> dynk.deformable_conv2d(x, np.ones((1, 1, 1, 1)), None, data_offset)[0, 0]
    array([[1.5, 3. , 2. ]])
    """
    options = _options(kernel_size, stride, padding, dilation, groups, kernel_boundary)
    arrays = (x, weight, kernel_offset, data_offset, mask, bias)
    return _dispatch.forward(DEFORMABLE_CONV2D, arrays, options, out, backend)


def deformable_conv2d_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    kernel_offset: Any = None,
    data_offset: Any = None,
    mask: Any = None,
    bias: Any = None,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    kernel_boundary: str = "clip",
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> DeformableConv2dGradients:
    """Return the gradients of `deformable_conv2d` with respect to its arrays.

    Parameters
    ----------
    grad_out : array of the shape of the output
        Gradient of a scalar with respect to the output of `deformable_conv2d`.
    x, weight, kernel_offset, data_offset, mask, bias
        As given to `deformable_conv2d`.
    kernel_size, stride, padding, dilation, groups, kernel_boundary, backend
        As given to `deformable_conv2d`.
    needs : collection of {"x", "weight", "kernel_offset", "data_offset", "mask", "bias"}, optional
        The gradients wanted; all that exist if None. Nothing else is computed.
    grads : DeformableConv2dGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    DeformableConv2dGradients
        In the order of the arguments, each of its argument's shape and dtype, None where that is None or not in
        `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `deformable_conv2d`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits, though samples scatter. At a
    point on a position the derivative of a bilinear value is the right-sided one (DK Eq. 13); a clipped coordinate has
    none. The gradients of a tap with a NaN coordinate are of no use, those of all else are what they are without it.
    The workspace is that of `deformable_conv2d`, and on the CPU 4 MiB (8 for float64), or one gradient of the weight if
    that is more.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x = np.array([[[[1.0, 2.0, 4.0]]]])
    >>> data_offset = np.zeros((1, 1, 1, 1, 2, 1, 3))
    >>> data_offset[:, :, 0, 0, 1] = 0.5
    >>> weight, grad_out = np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 3))
    >>> gradients = dynk.deformable_conv2d_backward(grad_out, x, weight, None, data_offset)
    >>> gradients.x[0, 0]
    array([[0.5, 1. , 1. ]])
    >>> gradients.data_offset[0, 0, 0, 0, 1]
    array([[ 1.,  2., -4.]])
    """
    function = "deformable_conv2d_backward"
    options = _options(kernel_size, stride, padding, dilation, groups, kernel_boundary, function=function)
    arrays = (x, weight, kernel_offset, data_offset, mask, bias)
    return DeformableConv2dGradients(
        *_dispatch.backward(DEFORMABLE_CONV2D, grad_out, arrays, options, needs, grads, backend)
    )


def _options(
    kernel_size: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
    kernel_boundary: Any = BOUNDARY,
    *,
    function: str = "deformable_conv2d",
) -> Options:
    return (
        None if kernel_size is None else _checks.pair(function, "kernel_size", kernel_size),
        _checks.pair(function, "stride", stride),
        _checks.pair(function, "padding", padding, least=0),
        _checks.pair(function, "dilation", dilation),
        _checks.integer(function, "groups", groups),
        _checks.choice(function, "kernel_boundary", kernel_boundary, BOUNDARIES),
    )


@lru_cache(maxsize=4096)
def _plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, DEFORMABLE_CONV2D, dtypes)
    kernel_size, stride, padding, dilation, groups, kernel_boundary = options
    x, weight, kernel_offset, data_offset, mask, bias = shapes
    sizes: dict[str, int] = {}
    _checks.bind(function, "x", x or (), "N C H W", sizes)
    _groups_divide(function, groups, "C", sizes["C"])
    sizes["C/groups"] = sizes["C"] // groups
    _checks.bind(function, "weight", weight or (), "O C/groups Sh Sw", sizes)
    _groups_divide(function, groups, "O", sizes["O"])
    sizes["kh"], sizes["kw"] = _kernel_size(function, kernel_size, sizes, kernel_offset)
    sizes["Ho"], sizes["Wo"] = _output_size(function, sizes, stride, padding, dilation)
    sizes["2"] = 2
    if kernel_offset is not None:
        _checks.bind(function, "kernel_offset", kernel_offset, "N Gk kh kw 2 Ho Wo", sizes)
        _checks.divides(function, "kernel_offset", sizes["Gk"], "Gk", "C", sizes["C"])
    if data_offset is not None:
        _checks.bind(function, "data_offset", data_offset, "N Gd kh kw 2 Ho Wo", sizes)
        _checks.divides(function, "data_offset", sizes["Gd"], "Gd", "C", sizes["C"])
    if mask is not None:
        _checks.bind(function, "mask", mask, "N Gd kh kw Ho Wo", sizes)
        _checks.divides(function, "mask", sizes["Gd"], "Gd", "C", sizes["C"])
    if bias is not None:
        _checks.bind(function, "bias", bias, "O", sizes)
    blocks = sizes.get("Gk", 1), sizes.get("Gd", 1)
    extents = [sizes[name] for name in ("N", "C", "O", "H", "W", "Sh", "Sw", "kh", "kw", "Ho", "Wo")]
    flags = (int(shape is not None) for shape in (kernel_offset, data_offset, mask, bias))
    clip = BOUNDARIES.index(kernel_boundary)
    geometry = DeformGeometry._make((*extents, *blocks, *stride, *padding, *dilation, groups, clip, *flags))
    return Plan(dtype, (geometry.N, geometry.O, geometry.Ho, geometry.Wo), geometry, options=options)


def _groups_divide(function: str, groups: int, dim: str, extent: int) -> None:
    if extent % groups:
        msg = f"{function}: groups must divide {dim} = {extent}, got {groups}"
        raise ValueError(msg)


def _kernel_size(
    function: str, kernel_size: tuple[int, int] | None, sizes: dict[str, int], kernel_offset: tuple[int, ...] | None
) -> tuple[int, int]:
    """Return (kh, kw), of the option, of the offsets or of the weight."""
    scope = sizes["Sh"], sizes["Sw"]
    if kernel_offset is None:
        if kernel_size is not None and kernel_size != scope:
            msg = f"{function}: kernel_size must be (Sh, Sw) = {scope} without kernel_offset, got {kernel_size}"
            raise ValueError(msg)
        return scope
    if kernel_size is not None:
        return kernel_size
    given = {"N": sizes["N"], "2": 2}
    _checks.bind(function, "kernel_offset", kernel_offset, "N Gk kh kw 2 Ho Wo", given)
    return given["kh"], given["kw"]


def _output_size(
    function: str, sizes: dict[str, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    for extent, step in zip((sizes["kh"], sizes["kw"]), dilation, strict=True):
        _checks.reach(function, extent, step)
    padded = sizes["H"] + 2 * padding[0], sizes["W"] + 2 * padding[1]
    kernel = (sizes["kh"] - 1) * dilation[0] + 1, (sizes["kw"] - 1) * dilation[1] + 1
    if kernel[0] > padded[0] or kernel[1] > padded[1]:
        msg = f"{function}: x must have a padded image of at least the dilated kernel's {kernel}, got {padded}"
        raise ValueError(msg)
    return (padded[0] - kernel[0]) // stride[0] + 1, (padded[1] - kernel[1]) // stride[1] + 1


def _derivative(index: int, tangent: Any, arrays: tuple[Any, ...], options: Options) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: linear in each argument but offsets and bias."""
    x, weight, kernel_offset, data_offset, mask, _ = arrays
    if index == 5:  # nothing but the bias is left; x ** 0 is 1 whatever x is
        still = None if kernel_offset is None else kernel_offset**0 - 1
        return (x**0 - 1, weight**0 - 1, still, None, None, tangent), options
    if index in (2, 3):
        refuse_derivative("deformable_conv2d", DEFORMABLE_CONV2D.arrays[index])
    moved = [x, weight, kernel_offset, data_offset, mask, None]
    moved[index] = tangent
    return tuple(moved), options


DEFORMABLE_CONV2D = Operator(
    name="deformable_conv2d",
    family="deformable",
    launcher="deformable_conv2d",
    arrays=("x", "weight", "kernel_offset", "data_offset", "mask", "bias"),
    optional=frozenset({"kernel_offset", "data_offset", "mask", "bias"}),
    coordinates=frozenset({"kernel_offset", "data_offset"}),
    options={
        "kernel_size": ("int[2]?", None),
        "stride": ("int[2]", 1),
        "padding": ("int[2]", 0),
        "dilation": ("int[2]", 1),
        "groups": ("int", 1),
        "kernel_boundary": ("str", BOUNDARY),
    },
    canonical=_options,
    plan=_plan,
    gradients=DeformableConv2dGradients,
    samples=(
        # local deformable kernels, depth-wise
        (
            ((2, 8, 9, 17), (8, 1, 4, 4), (2, 1, 3, 3, 2, 9, 17), None, None, (8,)),
            {"padding": 1, "groups": 8},
        ),
        (
            ((1, 6, 8, 9), (12, 1, 3, 5), (1, 2, 3, 2, 2, 5, 5), None, None, None),
            {"stride": (2, 3), "padding": (2, 3), "dilation": (1, 2), "groups": 6, "kernel_boundary": "zeros"},
        ),
        # dense ones
        (
            ((2, 5, 7, 18), (7, 5, 4, 4), (2, 1, 3, 3, 2, 7, 18), None, None, (7,)),
            {"kernel_size": 3, "padding": 1},
        ),
        (
            ((1, 6, 8, 9), (4, 3, 3, 3), (1, 3, 2, 3, 2, 5, 5), None, None, None),
            {"stride": 2, "padding": (1, 1), "groups": 2, "kernel_boundary": "zeros"},
        ),
        # deformable convolution v1 and v2, dense, grouped and depth-wise
        (
            ((2, 6, 9, 17), (5, 6, 3, 3), None, (2, 1, 3, 3, 2, 9, 17), None, (5,)),
            {"padding": 1},
        ),
        (
            ((1, 12, 10, 11), (6, 6, 3, 2), None, (1, 4, 3, 2, 2, 4, 5), (1, 4, 3, 2, 4, 5), (6,)),
            {"stride": (3, 2), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        ),
        (
            ((2, 4, 8, 9), (4, 1, 3, 3), None, (2, 2, 3, 3, 2, 8, 9), (2, 2, 3, 3, 8, 9), None),
            {"padding": 1, "groups": 4},
        ),
        # both, a mask alone, and a plain convolution
        (
            ((2, 4, 7, 9), (4, 1, 4, 4), (2, 2, 3, 3, 2, 7, 9), (2, 1, 3, 3, 2, 7, 9), (2, 1, 3, 3, 7, 9), (4,)),
            {"padding": 1, "groups": 4},
        ),
        (
            ((1, 4, 7, 9), (3, 4, 3, 3), (1, 2, 2, 2, 2, 6, 8), (1, 2, 2, 2, 2, 6, 8), None, (3,)),
            {},
        ),
        (((1, 3, 6, 7), (2, 3, 3, 3), None, None, (1, 3, 3, 3, 6, 7), None), {"padding": 1}),
        (((2, 3, 6, 7), (2, 3, 3, 3), None, None, None, (2,)), {"padding": 1}),
    ),
    derivative=_derivative,
    batched=frozenset({"x", "kernel_offset", "data_offset", "mask"}),
)
