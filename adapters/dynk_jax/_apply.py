"""How any operator is applied: checked, run and differentiated, by its declaration alone."""

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

_OPERATORS = operators()

Arrays = tuple[Any, ...]


class _Static(NamedTuple):
    """What does not change under differentiation."""

    op: Operator
    options: Options
    backend: str | None


class _Wanted(tuple[bool, ...]):
    """For each array whether its gradient is wanted."""

    def residual(self) -> np.ndarray[Any, Any]:
        """Return an array whose size says it.

        JAX keeps one structure for the residuals of a function, whatever is differentiated, but shapes for each.
        """
        return np.zeros(sum(wanted << i for i, wanted in enumerate(self)), np.bool_)

    @classmethod
    def of(cls, residual: Any, count: int) -> _Wanted:
        """Return what a residual says of so many arrays."""
        return cls(bool(residual.size >> i & 1) for i in range(count))


def apply(name: str, arrays: Arrays, **options: Any) -> jax.Array:
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
    return _forward(static, values), (values, wanted.residual())


def _forward_bwd(static: _Static, residuals: Any, grad_out: Any) -> Any:
    values, residual = residuals
    if isinstance(grad_out, SymbolicZero):
        return (None,)
    return (_backward(static, _Wanted.of(residual, len(values)), grad_out, values),)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _backward(static: _Static, wanted: _Wanted, grad_out: Any, arrays: Arrays) -> Arrays:
    """Run an operator's gradient; None where it is not wanted."""
    names, given = _present(static.op, arrays)
    needs = tuple(name for name, want in zip(static.op.arrays, wanted, strict=True) if want)
    grads = iter(bind(Call(static.op, "backward", static.options, names, needs, static.backend), grad_out, *given))
    return tuple(next(grads) if want else None for want in wanted)


def _backward_fwd(static: _Static, wanted: _Wanted, grad_out: Any, arrays: Arrays) -> Any:
    (grad_value, *values), needed = _perturbed((grad_out, *arrays))
    return _backward(static, wanted, grad_value, tuple(values)), (grad_value, tuple(values), needed.residual())


def _backward_bwd(static: _Static, wanted: _Wanted, residuals: Any, cotangents: Arrays) -> Any:
    grad_out, arrays, residual = residuals
    needed = _Wanted.of(residual, 1 + len(arrays))
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
