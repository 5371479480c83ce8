"""The operators as JAX functions: inside jit, differentiable any number of times in reverse mode, and batchable.

Each public function hands its arrays and options to `_apply`, which knows operators by their declarations alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from dynk import _dispatch
from dynk._operator import Operator, Options, operators
from dynk_jax._ffi import Call, bind, own

__all__ = ["ddf", "ddf_upsample", "filter_norm"]

_OPERATORS = operators()


def ddf(
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
) -> jax.Array:
    r"""Apply a decoupled dynamic filter (DDF Eq. 2).

    .. math::
        out_{n,c,y,x} = \sum_{ij} f(spatial_{n,g,i,j,y,x}, channel_{n,c,i,j}) \, X_{n,c,\,tap(y,i),\,tap(x,j)}

    where f is the product ("mul") or the sum ("add") of the two filters, or the one that is given; channel c uses group
    g = c // (C/G). A read outside the image contributes 0.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    spatial : array (N, G, kh, kw, Ho, Wo) or None
        A filter for each pixel, shared by the C/G channels of a group. Ho = ceil(H/stride), Wo = ceil(W/stride).
    channel : array (N, C, kh, kw) or None
        A filter for each channel, shared by all pixels.
    stride, dilation : int or (h, w), default 1
        Step between output anchors and between taps, in pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.

    Returns
    -------
    jax.Array (N, C, Ho, Wo)
        Of the dtype of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or option, while tracing.
    TypeError
        For a wrong dtype or type; under forward-mode differentiation (jvp, jacfwd), which is not supported.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    See Also
    --------
    dynk.ddf : the same on arrays of any kind, with the gradient as `dynk.ddf_backward`.

    Notes
    -----
    `jax.vmap` makes the mapped axis part of N; an array without it is repeated. JAX remembers what it has traced: write
    `with dynk.backend(...)` inside the function that is compiled, not around its calls. Over several devices use
    `jax.shard_map`; under automatic partitioning every device computes the whole result.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> x, channel = jnp.ones((1, 1, 3, 3)), jnp.full((1, 1, 3, 3), 0.5)
    >>> jax.jit(dynk_jax.ddf)(x, None, channel)[0, 0]
    Array([[2. , 3. , 2. ],
           [3. , 4.5, 3. ],
           [2. , 3. , 2. ]], dtype=float32)
    >>> jax.grad(lambda channel: dynk_jax.ddf(x, None, channel).sum())(channel)[0, 0]
    Array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
    """
    return _apply("ddf", (x, spatial, channel), stride=stride, dilation=dilation, combine=combine)


def ddf_upsample(
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    scale: int,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
) -> jax.Array:
    r"""Upsample by decoupled dynamic filters, one filter for each sub-pixel (DDF-Up, DDF section 3.4).

    .. math::
        out_{n,c,\,y s+p,\,x s+q} = ddf(X, spatial_{n,g,p,q}, channel_{n,c,p,q})_{n,c,y,x}

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    spatial : array (N, G, s, s, kh, kw, H, W) or None
        A filter for each sub-pixel (p, q) of each pixel, shared by the C/G channels of a group.
    channel : array (N, C, s, s, kh, kw) or None
        A filter for each sub-pixel and channel, shared by all pixels.
    scale : int
        Upsampling factor s.
    dilation : int or (h, w), default 1
        Step between taps, in input pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.

    Returns
    -------
    jax.Array (N, C, s*H, s*W)
        Of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    See Also
    --------
    dynk.ddf_upsample : the same on arrays of any kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> nearest = jnp.ones((1, 1, 2, 2, 1, 1))
    >>> dynk_jax.ddf_upsample(jnp.array([[[[1.0, 2.0]]]]), None, nearest, scale=2)[0, 0]
    Array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]], dtype=float32)
    """
    return _apply("ddf_upsample", (x, spatial, channel), scale=scale, dilation=dilation, combine=combine)


def filter_norm(
    f: Any,
    scale: Any = None,
    shift: Any = None,
    *,
    axes: tuple[int, int],
    eps: float = 1e-10,
) -> jax.Array:
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
        Broadcast with `f` as NumPy does, without enlarging it.
    axes : (int, int)
        The two tap axes of `f`; negative ones count from the end.
    eps : float, default 1e-10
        Added to the standard deviation.

    Returns
    -------
    jax.Array of the shape of `f`
        Of its dtype.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; ValueError too for filters of a single tap, which have no unbiased standard deviation.

    See Also
    --------
    dynk.filter_norm : the same on arrays of any kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> filters = jnp.array([[[[1.0, 2.0, 3.0]]]])
    >>> dynk_jax.filter_norm(filters, axes=(2, 3))
    Array([[[[-1.,  0.,  1.]]]], dtype=float32)
    """
    return _apply("filter_norm", (f, scale, shift), axes=axes, eps=eps)


# ---- any operator ----------------------------------------------------------------------------------------------------

Arrays = tuple[Any, ...]


class _Static(NamedTuple):
    """What does not change under differentiation."""

    op: Operator
    options: Options
    backend: str | None


@jax.tree_util.register_static
class _Wanted(tuple[bool, ...]):
    """For each array whether its gradient is wanted; a residual that JAX does not trace."""


def _apply(name: str, arrays: Arrays, **options: Any) -> jax.Array:
    op = _OPERATORS[name]
    canonical = op.canonical(**options)
    arrays = tuple(_readable(name, argument, array) for argument, array in zip(op.arrays, arrays, strict=True))
    shapes = tuple(None if a is None else tuple(a.shape) for a in arrays)
    dtypes = tuple(None if a is None else a.dtype.name for a in arrays)
    op.plan(name, shapes, dtypes, canonical)
    for argument, array, dtype in zip(op.arrays, arrays, dtypes, strict=True):
        if isinstance(array, np.ndarray) and jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            msg = f"{name}: {argument} must have a dtype that JAX keeps, got {dtype} without jax_enable_x64"
            raise TypeError(msg)
    converted = tuple(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays)
    out: jax.Array = _forward_jit(_Static(op, canonical, _dispatch._requested.get()), _equally_varying(converted))
    return out


def _readable(function: str, argument: str, array: Any) -> Any:
    """Return an argument that JAX can read: a JAX array, a plain NumPy array or None."""
    if array is None or isinstance(array, jax.core.Tracer):
        return array
    if isinstance(array, jax.Array):
        if array.is_deleted():
            msg = f"{function}: {argument} must be alive, got a JAX array whose buffer was deleted or donated"
            raise TypeError(msg)
        return array
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        msg = f"{function}: {argument} must be a JAX or NumPy array, got {type(array).__name__}"
        raise TypeError(msg)
    plain = np.asarray(array)  # what subclasses say of themselves need not be so
    if not plain.dtype.isnative:
        msg = f"{function}: {argument} must be in native byte order, got {plain.dtype.str}"
        raise TypeError(msg)
    return plain


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(static: _Static, arrays: Arrays) -> Any:
    """Run an operator."""
    names, given = _present(static.op, arrays)
    (out,) = bind(Call(static.op, "forward", static.options, names, (), static.backend), *given)
    return out


def _forward_fwd(static: _Static, arrays: Arrays) -> Any:
    values, wanted = _perturbed(arrays)
    return _forward(static, values), (values, wanted)


def _forward_bwd(static: _Static, residuals: Any, grad_out: Any) -> Any:
    values, wanted = residuals
    if isinstance(grad_out, SymbolicZero):
        return (None,)
    return (_backward(static, wanted, grad_out, values),)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _backward(static: _Static, wanted: _Wanted, grad_out: Any, arrays: Arrays) -> Arrays:
    """Run an operator's gradient; None where it is not wanted."""
    names, given = _present(static.op, arrays)
    needs = tuple(name for name, want in zip(static.op.arrays, wanted, strict=True) if want)
    grads = iter(bind(Call(static.op, "backward", static.options, names, needs, static.backend), grad_out, *given))
    return tuple(next(grads) if want else None for want in wanted)


def _backward_fwd(static: _Static, wanted: _Wanted, grad_out: Any, arrays: Arrays) -> Any:
    (grad_value, *values), needed = _perturbed((grad_out, *arrays))
    return _backward(static, wanted, grad_value, tuple(values)), (grad_value, tuple(values), needed)


def _backward_bwd(static: _Static, wanted: _Wanted, residuals: Any, cotangents: Arrays) -> Any:
    grad_out, arrays, needed = residuals
    if all(v is None or isinstance(v, SymbolicZero) for v in cotangents):
        return None, None
    if static.op.derivative is None:
        return _through_formula(static, wanted, grad_out, arrays, cotangents)
    return _through_operator(static, grad_out, arrays, needed, cotangents)


def _through_operator(static: _Static, grad_out: Any, arrays: Arrays, needed: _Wanted, cotangents: Arrays) -> Any:
    """Differentiate L = sum_i <v_i, grad_i> = <grad_out, sum_i op(derivative(i, v_i))>, v_i being the cotangents."""
    op, options, backend = static
    grads: list[Any] = [None] * len(needed)
    for i, cotangent in enumerate(cotangents):
        if cotangent is None or isinstance(cotangent, SymbolicZero):
            continue
        along, along_options = op.derivative(i, cotangent, arrays, options)  # type: ignore[misc]
        tangent = _Static(op, along_options, backend)
        kept = _Wanted(need and k != i and along[k] is not None for k, need in enumerate(needed[1:]))
        terms = [
            _forward(tangent, along) if needed[0] else None,
            *(_backward(tangent, kept, grad_out, along) if any(kept) else (None,) * len(kept)),
        ]
        grads = [_add(total, term) for total, term in zip(grads, terms, strict=True)]
    return grads[0], tuple(grads[1:])


def _through_formula(static: _Static, wanted: _Wanted, grad_out: Any, arrays: Arrays, cotangents: Arrays) -> Any:
    """Differentiate the gradient of the operator's equation in jax.numpy."""
    formula = getattr(own(static.op), "formula", None)
    if formula is None:
        msg = f"{static.op.name}: the gradient has no derivative"
        raise NotImplementedError(msg)

    def gradients(grad_out: Any, arrays: Arrays) -> Arrays:
        _, pull = jax.vjp(lambda arrays: formula(arrays, static.options), arrays)
        (grads,) = pull(grad_out)
        return tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))

    _, pull = jax.vjp(gradients, grad_out, arrays)
    return pull(jax.tree.map(_materialised, cotangents))


_forward.defvjp(_forward_fwd, _forward_bwd, symbolic_zeros=True)
_backward.defvjp(_backward_fwd, _backward_bwd, symbolic_zeros=True)
_forward_jit = jax.jit(_forward, static_argnums=(0,), inline=True)  # outside jit, one fast call


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _present(op: Operator, arrays: Arrays) -> tuple[tuple[str, ...], list[Any]]:
    """Return the names of the arrays that are given, and these arrays."""
    names = tuple(name for name, array in zip(op.arrays, arrays, strict=True) if array is not None)
    return names, [array for array in arrays if array is not None]


def _perturbed(primals: Arrays) -> tuple[Arrays, _Wanted]:
    """Return the values of a rule's primals, and which of them are being differentiated."""
    values = tuple(None if primal is None else primal.value for primal in primals)
    return values, _Wanted(
        primal is not None and primal.perturbed and jnp.issubdtype(primal.value.dtype, jnp.floating)
        for primal in primals
    )


def _materialised(cotangent: Any) -> Any:
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent


def _add(total: Any, term: Any) -> Any:
    if total is None or term is None:
        return term if total is None else total
    return total + term


def _equally_varying(arrays: Arrays) -> Arrays:
    """Make all arrays vary over the same axes of a shard_map, so that JAX sums the gradients of those that did not."""
    axes = [frozenset() if a is None else jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset[Any]().union(*axes)
    return tuple(
        array if array is None or own == union else jax.lax.pcast(array, tuple(sorted(union - own)), to="varying")
        for array, own in zip(arrays, axes, strict=True)
    )
