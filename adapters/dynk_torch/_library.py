"""The operators as `torch.library` operators, for compilers, tracers and whatever else needs a name with a schema.

`dynk::<name>(arrays..., options...) -> Tensor` and
`dynk::<name>_backward(Tensor grad_out, arrays..., options..., bool[] needs) -> (Tensor, ...)`: one gradient per array,
an empty tensor where it is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynk._operator import Operator, Options, operators
from dynk_torch import _autograd, _kernel, _vmap

_LIBRARY = torch.library.Library("dynk", "FRAGMENT")


def register_all() -> None:
    """Register every operator of dynk."""
    for op in operators().values():
        _register_forward(op)
        _register_backward(op)


def _register_forward(op: Operator) -> None:
    count = len(op.arrays)

    def split(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Options]:
        return tuple(args[:count]), op.canonical(*args[count:])

    def kernel(*args: Any) -> Tensor:
        tensors, options = split(args)
        return _kernel.forward(op, tuple(map(_kernel.base, tensors)), options)

    def fake(*args: Any) -> Tensor:
        tensors, options = split(args)
        plan = _symbolic_plan(op, op.name, tensors, options)
        return _device_of(op.name, op.arrays, tensors).new_empty(plan.out_shape)

    def autograd(*args: Any) -> Tensor:
        tensors, options = split(args)
        if _autograd.transformed() or _autograd.requires_grad(tensors):
            return _autograd.record(_autograd.Forward, op, options, *tensors)  # type: ignore[no-any-return]
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)  # type: ignore[no-any-return]

    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        tensors, options = split(args)
        return _vmap.forward(op, info.batch_size, tuple(in_dims[:count]), tensors, options), 0

    arguments = [*_tensor_arguments(op), *_option_arguments(op)]
    overload = _define(op.name, arguments, "Tensor", kernel, fake, autograd, vmap)


def _register_backward(op: Operator) -> None:
    count = len(op.arrays)

    def split(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Options, tuple[bool, ...]]:
        everything, needs = tuple(args[: count + 1]), tuple(args[-1])
        if len(needs) != count or any(needed and t is None for needed, t in zip(needs, everything[1:], strict=True)):
            msg = f"{op.name}_backward: needs must have a bool for each of {op.arrays}, False for None, got {needs}"
            raise ValueError(msg)
        return everything, op.canonical(*args[count + 1 : -1]), needs

    def fill(found: tuple[Tensor, ...], everything: tuple[Any, ...], needs: tuple[bool, ...]) -> tuple[Tensor, ...]:
        grads = iter(found)
        return tuple(next(grads) if needed else everything[0].new_empty(0) for needed in needs)

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        everything, options, needs = split(args)
        return fill(_kernel.backward(op, tuple(map(_kernel.base, everything)), options, needs), everything, needs)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        everything, options, needs = split(args)
        name, grad_out = f"{op.name}_backward", everything[0]
        plan = _symbolic_plan(op, name, everything[1:], options)
        _device_of(name, ("grad_out", *op.arrays), everything)
        if tuple(grad_out.shape) != plan.out_shape or _dtype_name(grad_out) != plan.dtype:
            expected, given = f"{plan.dtype} {plan.out_shape}", f"{_dtype_name(grad_out)} {tuple(grad_out.shape)}"
            msg = f"{name}: grad_out must have the dtype and shape of the output, {expected}, got {given}"
            raise ValueError(msg)
        found = [t.new_empty(t.shape) for t, needed in zip(everything[1:], needs, strict=True) if needed]
        return fill(tuple(found), everything, needs)

    def autograd(*args: Any) -> tuple[Tensor, ...]:
        everything, options, needs = split(args)
        if _autograd.transformed() or _autograd.requires_grad(everything):
            return fill(_autograd.record(_autograd.Backward, op, options, needs, *everything), everything, needs)
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)  # type: ignore[no-any-return]

    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        everything, options, needs = split(args)
        dims = tuple(in_dims[: count + 1])
        grads = _vmap.backward(op, info.batch_size, dims, everything, options, needs)
        found = tuple(everything[0].new_empty(0) if grad is None else grad for grad in grads)
        return found, tuple(None if grad is None else 0 for grad in grads)

    arguments = ["Tensor grad_out", *_tensor_arguments(op), *_option_arguments(op, defaults=False), "bool[] needs"]
    results = f"({', '.join(['Tensor'] * count)})"
    overload = _define(f"{op.name}_backward", arguments, results, kernel, fake, autograd, vmap)


def _define(
    name: str,
    arguments: list[str],
    results: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: Callable[..., Any],
    vmap: Callable[..., Any],
) -> Any:
    """Define an operator with its implementations and return it."""
    _LIBRARY.define(f"{name}({', '.join(arguments)}) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    _LIBRARY.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"dynk::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"dynk::{name}", vmap, lib=_LIBRARY)
    return getattr(torch.ops.dynk, name).default


def _tensor_arguments(op: Operator) -> list[str]:
    return [f"Tensor{'?' if name in op.optional else ''} {name}" for name in op.arrays]


def _option_arguments(op: Operator, *, defaults: bool = True) -> list[str]:
    arguments = []
    for name, (kind, default) in op.options.items():
        required = (default is None and not kind.endswith("?")) or kind.endswith("[][]")  # schemas know no such default
        shown = f'"{default}"' if isinstance(default, str) else list(default) if isinstance(default, tuple) else default
        arguments.append(f"{kind} {name}" + (f"={shown}" if defaults and not required else ""))
    return arguments


def _symbolic_plan(op: Operator, function: str, tensors: tuple[Any, ...], options: Options) -> Any:
    """Check a call whose sizes may be symbols, which the memory of plans cannot hold."""
    shapes = tuple(None if t is None else tuple(t.shape) for t in tensors)
    dtypes = tuple(None if t is None else _dtype_name(t) for t in tensors)
    return op.plan.__wrapped__(function, shapes, dtypes, options)


def _dtype_name(tensor: Tensor) -> str:
    return _kernel.DTYPE_NAMES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")


def _device_of(function: str, names: tuple[str, ...], tensors: tuple[Any, ...]) -> Tensor:
    """Return the first of the tensors, whose device all must share; kernels check that themselves."""
    given = [(name, tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None]
    owner, first = given[0]
    for name, tensor in given:
        if tensor.device != first.device:
            msg = f"{function}: {name} must be on the device of {owner}, {first.device}, got {tensor.device}"
            raise ValueError(msg)
    return first  # type: ignore[no-any-return]
