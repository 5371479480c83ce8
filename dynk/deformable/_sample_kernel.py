"""`sample_kernel` and `sample_kernel_backward`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dynk import _checks, _dispatch
from dynk._operator import Dtypes, Operator, Options, Plan, Shapes
from dynk.deformable._points import BOUNDARY, refuse_derivative
from dynk.kernels.deformable.geometry import BOUNDARIES, SampleGeometry


class SampleKernelGradients(NamedTuple):
    """Gradients of `sample_kernel`, each of its argument's shape and dtype; None where there is none."""

    weight: Any
    kernel_offset: Any


def sample_kernel(
    weight: Any,
    kernel_offset: Any,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    kernel_boundary: str = "clip",
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Sample a kernel for each image from a larger one, bilinearly (DK Eq. 12; global deformable kernels).

    .. math::
        out_{n,o,c,i,j} = W_{o,c}(i + (Sh - kh)/2 + dy_{n,i,j}, \; j + (Sw - kw)/2 + dx_{n,i,j})

    Parameters
    ----------
    weight : array (O, I, Sh, Sw)
        The scope. float16, bfloat16, float32 or float64, like every array of the call.
    kernel_offset : array (N, Gk, kh, kw, 2)
        How far (dy, dx) each tap's point moves, for each of Gk blocks of the O kernels.
    kernel_size : int or (h, w), optional
        The taps (kh, kw) that are sampled; as many as `kernel_offset` has if None.
    kernel_boundary : {"clip", "zeros"}, default "clip"
        Whether points outside the scope are moved to its border, as in DK, or read zeros there.
    out : array (N, O, I, kh, kw), optional
        A C-contiguous array to write to; the call then allocates nothing for contiguous inputs.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array (N, O, I, kh, kw)
        Of the kind, dtype and device of `weight`. Reshaped to (N, C, kh, kw) depth-wise kernels it is the `channel`
        argument of `dynk.ddf`, with `spatial` None.

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
    deformable_conv2d : a sampled kernel for each pixel.

    References
    ----------
    Deformable Kernels: Adapting Effective Receptive Fields for Object Deformation, ICLR 2020.

    Examples
    --------
    The middle of a scope of two, and the end of it:

    >>> import numpy as np, dynk
    >>> scope = np.array([[[[1.0, 3.0]]]])
    >>> offsets = np.zeros((2, 1, 1, 1, 2))
    >>> offsets[:, 0, 0, 0, 1] = 0, 5
    >>> dynk.sample_kernel(scope, offsets).ravel()
    array([2., 3.])
    """
    options = _options(kernel_size, kernel_boundary)
    return _dispatch.forward(SAMPLE_KERNEL, (weight, kernel_offset), options, out, backend)


def sample_kernel_backward(
    grad_out: Any,
    weight: Any,
    kernel_offset: Any,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    kernel_boundary: str = "clip",
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> SampleKernelGradients:
    """Return the gradients of `sample_kernel` with respect to its arrays.

    Parameters
    ----------
    grad_out : array of the shape of the output
        Gradient of a scalar with respect to the output of `sample_kernel`.
    weight, kernel_offset, kernel_size, kernel_boundary, backend
        As given to `sample_kernel`.
    needs : collection of {"weight", "kernel_offset"}, optional
        The gradients wanted; both if None. Nothing else is computed.
    grads : SampleKernelGradients or tuple, optional
        C-contiguous arrays to write to, None where one is to be allocated or not wanted.

    Returns
    -------
    SampleKernelGradients
        In the order of the arguments, each of its argument's shape and dtype, None where it is not in `needs`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `sample_kernel`.

    Notes
    -----
    Gradients are deterministic: the same call on the same device gives the same bits. At a point on a position the
    derivative is the right-sided one (DK Eq. 13); a clipped coordinate has none.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> scope, offsets = np.array([[[[1.0, 3.0]]]]), np.zeros((1, 1, 1, 1, 2))
    >>> gradients = dynk.sample_kernel_backward(np.ones((1, 1, 1, 1, 1)), scope, offsets)
    >>> gradients.weight.ravel(), gradients.kernel_offset.ravel()
    (array([0.5, 0.5]), array([0., 2.]))
    """
    options = _options(kernel_size, kernel_boundary, function="sample_kernel_backward")
    arrays = (weight, kernel_offset)
    return SampleKernelGradients(*_dispatch.backward(SAMPLE_KERNEL, grad_out, arrays, options, needs, grads, backend))


def _options(kernel_size: Any = None, kernel_boundary: Any = BOUNDARY, *, function: str = "sample_kernel") -> Options:
    return (
        None if kernel_size is None else _checks.pair(function, "kernel_size", kernel_size),
        _checks.choice(function, "kernel_boundary", kernel_boundary, BOUNDARIES),
    )


@lru_cache(maxsize=4096)
def _plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    dtype = _checks.common_dtype(function, SAMPLE_KERNEL, dtypes)
    kernel_size, kernel_boundary = options
    weight, kernel_offset = shapes
    sizes: dict[str, int] = {}
    _checks.bind(function, "weight", weight or (), "O I Sh Sw", sizes)
    if kernel_size is not None:
        sizes["kh"], sizes["kw"] = kernel_size
    sizes["2"] = 2
    _checks.bind(function, "kernel_offset", kernel_offset or (), "N Gk kh kw 2", sizes)
    _checks.divides(function, "kernel_offset", sizes["Gk"], "Gk", "O", sizes["O"])
    extents = [sizes[name] for name in ("N", "O", "I", "Sh", "Sw", "kh", "kw", "Gk")]
    geometry = SampleGeometry._make((*extents, BOUNDARIES.index(kernel_boundary)))
    out_shape = (geometry.N, geometry.O, geometry.I, geometry.kh, geometry.kw)
    return Plan(dtype, out_shape, geometry, options=options)


def _derivative(index: int, tangent: Any, arrays: tuple[Any, ...], options: Options) -> tuple[tuple[Any, ...], Options]:
    """Return the call that is the derivative along `tangent`: the operator is linear in the weight."""
    if index == 1:
        refuse_derivative("sample_kernel", "kernel_offset")
    return (tangent, arrays[1]), options


SAMPLE_KERNEL = Operator(
    name="sample_kernel",
    family="deformable",
    launcher="sample_kernel",
    arrays=("weight", "kernel_offset"),
    optional=frozenset(),
    coordinates=frozenset({"kernel_offset"}),
    options={"kernel_size": ("int[2]?", None), "kernel_boundary": ("str", BOUNDARY)},
    canonical=_options,
    plan=_plan,
    gradients=SampleKernelGradients,
    samples=(
        (((8, 1, 4, 4), (3, 1, 3, 3, 2)), {"kernel_size": 3}),
        (((6, 5, 3, 4), (2, 3, 2, 3, 2)), {"kernel_boundary": "zeros"}),
        (((9, 7, 2, 2), (2, 1, 1, 1, 2)), {}),
    ),
    derivative=_derivative,
    batched=frozenset({"kernel_offset"}),
)
