"""How a call is recorded, and how it is differentiated; the same for every operator.

No single mechanism of PyTorch gives everything, so a call takes one of three ways:

- compiled, traced, within torch.func or forward-mode differentiation, or with tensors that are not plain: to the
  `torch.library` operator, whose kernels (`_library`) come back here at each level that differentiates;
- with a tensor that requires grad: to an `autograd.Function`, which costs far less;
- else to the kernel itself.

Derivatives rest on two maps of an operator `op`, linear in one vector per argument (None for a zero one):

- `tangent`: the directional derivative J v;
- `curvature`: the Hessian of <grad_out, op(...)> times v.

The gradient of <v, backward> is the first with respect to grad_out and the second with respect to the arguments; and
since a Hessian is symmetric, the second is the forward-mode derivative of the backward as well.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad

from dynk import _dispatch
from dynk._operator import Operator, Options
from dynk_torch import _kernel
from dynk_torch._kernel import Needs, Tensors

_transforms_active = torch._C._are_functorch_transforms_active


def call(op: Operator, tensors: tuple[Any, ...], options: tuple[Any, ...]) -> Tensor:
    """Run an operator on what a caller passed."""
    for name, tensor in zip(op.arrays, tensors, strict=True):
        if tensor is not None and not isinstance(tensor, Tensor):
            msg = f"{op.name}: {name} must be a torch.Tensor, got {type(tensor).__name__}"
            raise TypeError(msg)
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        tensors = tuple([None if t is None else _autocast(t) for t in tensors])
    if torch.compiler.is_compiling():
        return _library_forward(op, tensors, options)
    return forward(op, tensors, op.canonical(*options))


def _check_dense(op: Operator, tensors: Tensors) -> None:
    """Refuse what PyTorch's dispatcher has no words of dynk for."""
    for name, tensor in zip(op.arrays, tensors, strict=True):
        if tensor is None:
            continue
        try:
            dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
            _ = torch.Size(tensor.shape), tensor.dtype, tensor.device
        except Exception as error:  # subclasses may raise anything
            msg = f"{op.name}: {name} must be a working tensor, got {type(tensor).__name__}: {error}"
            raise TypeError(msg) from error
        if not dense:
            msg = f"{op.name}: {name} must be a dense tensor, got {type(tensor).__name__} of layout {tensor.layout}"
            raise TypeError(msg)


def _autocast(tensor: Tensor) -> Tensor:
    """Cast a tensor to the autocast dtype of its device, but not float64: so do PyTorch's own operators."""
    device = tensor.device.type
    eligible = tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.to(torch.get_autocast_dtype(device)) if eligible and torch.is_autocast_enabled(device) else tensor


def forward(op: Operator, tensors: Tensors, options: Options) -> Tensor:
    """Return the operator's output."""
    if torch.compiler.is_compiling() or transformed() or not _kernel.plain(tensors):
        if not torch.compiler.is_compiling():
            _check_dense(op, tensors)
        return _library_forward(op, tensors, options)
    if requires_grad(tensors):
        return Forward.apply(op, options, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return _kernel.forward(op, tensors, options)


def backward(op: Operator, grad_out: Tensor, tensors: Tensors, options: Options, needs: Needs) -> Tensors:
    """Return one gradient per argument, None where not needed."""
    if not any(needs):
        return (None,) * len(needs)
    everything = (grad_out, *tensors)
    if torch.compiler.is_compiling() or transformed() or not _kernel.plain(everything):
        grads = getattr(torch.ops.dynk, f"{op.name}_backward").default(*everything, *options, needs)
        return tuple(grad if needed else None for grad, needed in zip(grads, needs, strict=True))
    if requires_grad(everything):
        found = Backward.apply(op, options, needs, *everything)  # type: ignore[no-untyped-call]
        return spread(found, needs)
    return spread(_kernel.backward(op, everything, options, needs), needs)


def _library_forward(op: Operator, tensors: Tensors, options: tuple[Any, ...]) -> Tensor:
    return getattr(torch.ops.dynk, op.name).default(*tensors, *options)  # type: ignore[no-any-return]


def transformed() -> bool:
    """Return whether a torch.func transform or forward-mode differentiation is going on."""
    return _transforms_active() or (forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled())


def requires_grad(tensors: Tensors) -> bool:
    """Return whether reverse-mode differentiation records a call with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def spread(found: tuple[Tensor | None, ...], needs: Needs) -> Tensors:
    """Return one entry per argument from those of the needed ones."""
    entries = iter(found)
    return tuple([next(entries) if needed else None for needed in needs])


# ---- derivatives -----------------------------------------------------------------------------------------------------


def tangent(op: Operator, tensors: Tensors, options: Options, vectors: Tensors) -> Tensor:
    """Return the operator's directional derivative along one vector (or None) per argument."""
    if op.derivative is None:
        return _own(op).tangent(tensors, options, vectors)  # type: ignore[no-any-return]
    terms = [
        forward(op, *op.derivative(i, vector, tensors, options))
        for i, vector in enumerate(vectors)
        if vector is not None
    ]
    return sum(terms[1:], terms[0])


def curvature(
    op: Operator, grad_out: Tensor, tensors: Tensors, options: Options, vectors: Tensors, wanted: Needs
) -> Tensors:
    """Return the Hessian of <grad_out, op(tensors)> times one vector (or None) per argument, where wanted."""
    if op.derivative is None:
        return _own(op).curvature(grad_out, tensors, options, vectors, wanted)  # type: ignore[no-any-return]
    total: list[Tensor | None] = [None] * len(tensors)
    for i, vector in enumerate(vectors):
        if vector is None:
            continue
        arguments, its_options = op.derivative(i, vector, tensors, options)
        # The derivative along argument i is independent of it, and of the arguments that it leaves out.
        needs = tuple(want and k != i and arguments[k] is not None for k, want in enumerate(wanted))
        for k, grad in enumerate(backward(op, grad_out, arguments, its_options, needs)):
            total[k] = _add(total[k], grad)
    return tuple(total)


def _own(op: Operator) -> Any:
    module = own(op)
    if module is None:
        msg = f"{op.name}: the gradient has no derivative, and there is no forward mode"
        raise NotImplementedError(msg)
    return module


@cache
def own(op: Operator) -> Any:
    """Return the module `_<operator>` of one that has no `derivative`, None where there is none.

    It brings the operator's own tangent and curvature, and `fold`, how torch.vmap maps it.
    """
    name = f"dynk_torch._{op.name}"
    if op.derivative is not None or importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


# ---- autograd functions ----------------------------------------------------------------------------------------------


class Forward(Function):
    """The operator, recorded for differentiation."""

    @staticmethod
    def forward(ctx: Any, op: Operator, options: Options, *tensors: Tensor | None) -> Tensor:
        ctx.call = op, options
        ctx.backend = _dispatch._requested.get()
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)  # what does not move has no tangent, rather than one of zeros
        if not _transforms_active():
            return forward(op, tensors, options)
        with _level_below():
            return _library_forward(op, tensors, options)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> Tensors:
        op, options = ctx.call
        if grad_out is None:
            return (None,) * (2 + len(op.arrays))
        with _recorded_backend(ctx):
            return (None, None, *backward(op, grad_out, ctx.saved_tensors, options, ctx.needs_input_grad[2:]))

    @staticmethod
    def jvp(ctx: Any, _op: None, _options: None, *tangents: Tensor | None) -> Tensor:
        op, options = ctx.call
        return tangent(op, ctx.saved_tensors, options, tangents)


class Backward(Function):
    """The operator's backward, recorded for differentiation; returns the needed gradients alone."""

    @staticmethod
    def forward(ctx: Any, op: Operator, options: Options, needs: Needs, *everything: Any) -> tuple[Tensor, ...]:
        ctx.call = op, options, needs
        ctx.backend = _dispatch._requested.get()
        ctx.save_for_backward(*everything)
        ctx.save_for_forward(*everything)
        ctx.set_materialize_grads(False)
        grad_out, *tensors = everything
        if not _transforms_active():
            grads = backward(op, grad_out, tuple(tensors), options, needs)
        else:
            with _level_below():
                grads = backward(op, grad_out, tuple(tensors), options, needs)
        return tuple([grad for grad in grads if grad is not None])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
        op, options, needs = ctx.call
        grad_out, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * (3 + len(wanted))
        vectors = spread(cotangents, needs)
        with _recorded_backend(ctx):
            by_grad = tangent(op, tuple(tensors), options, vectors) if wanted[0] else None
            return (None, None, None, by_grad, *curvature(op, grad_out, tuple(tensors), options, vectors, wanted[1:]))

    @staticmethod
    def jvp(ctx: Any, _op: None, _options: None, _needs: None, *tangents: Tensor | None) -> Tensors:
        op, options, needs = ctx.call
        grad_out, *tensors = ctx.saved_tensors
        of_grad, *of_tensors = tangents
        linear: Tensors = (None,) * len(needs)
        if of_grad is not None:
            linear = backward(op, of_grad, tuple(tensors), options, needs)
        bent = curvature(op, grad_out, tuple(tensors), options, tuple(of_tensors), needs)
        moved = [_add(a, b) for a, b, needed in zip(linear, bent, needs, strict=True) if needed]
        still = [tensor for tensor, needed in zip(tensors, needs, strict=True) if needed]
        return tuple([torch.zeros_like(t) if m is None else m for m, t in zip(moved, still, strict=True)])


def _recorded_backend(ctx: Any) -> AbstractContextManager[None]:
    """Ask for the backend of the recorded call again: PyTorch may run a backward in a thread that knows of none."""
    if ctx.backend is None or _dispatch._requested.get() is not None:
        return nullcontext()
    return _dispatch.backend(ctx.backend)


def record(function: type[Function], *args: Any) -> Any:
    """Apply a function from within the dispatcher: at the torch.func level that is being processed, if there is one."""
    if not _transforms_active():
        return function.apply(*args)
    with enable_single_level_autograd_function():
        return super(Function, function).apply(*args)  # type: ignore[misc]


@contextmanager
def _level_below() -> Iterator[None]:
    """Let the dispatcher go on to the torch.func level below, which differentiates on its own."""
    # A Function has turned differentiation off for whatever it calls.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        yield
