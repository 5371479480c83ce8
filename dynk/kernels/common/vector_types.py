"""Numba's type of a vector, and how calls of the functions of `vector` become code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core.datamodel import models

LANES = {"float32": 16, "float64": 8}  # 64 bytes


class VectorType(types.Type):
    """Numba's type of a vector."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = LANES[dtype.name]
        super().__init__(name=f"vector({dtype}, {self.lanes})")

    @property
    def ir(self) -> Any:
        """Return the type in LLVM."""
        return ir.VectorType(ir.DoubleType() if self.dtype == types.float64 else ir.FloatType(), self.lanes)


@extending.register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.ir)  # type: ignore[no-untyped-call]


def lowered(generate: Callable[..., Any], result: Callable[..., Any], packed: bool = False) -> Callable[[Any], Any]:
    """Return a decorator that tells the compiler what to make of a call of the function; in Python it stays as it is.

    Lighter on compile time than an overload, which is a function of its own for each combination of types.

    Parameters
    ----------
    generate
        `generate(context, builder, kinds, values)` returns the value for one element of each pack among the arguments.
    result
        Returns the type of that value from the types of one element.
    packed
        Both get whole packs instead.
    """

    def decorate(function: Any) -> Any:
        @extending.type_callable(function)
        def typed(context: Any) -> Any:
            def typer(*arguments: Any) -> Any:
                if packed:
                    return result(*arguments)(*arguments)
                return _signature(result, arguments)

            typer.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
            return typer

        @extending.lower_builtin(function, *[types.Any] * len(inspect.signature(function).parameters))
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            if packed:
                return generate(context, builder, signature.args, values)
            return _lift(generate, context, builder, signature, values)

        return function

    return decorate


def _signature(result: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    taken = [_word(a) for a in arguments]
    sizes = {a.count for a in taken if isinstance(a, types.UniTuple)}
    one = result(*(a.dtype if isinstance(a, types.UniTuple) else a for a in taken))
    if not sizes or one == types.void:
        return one(*taken)
    (size,) = sizes
    return types.UniTuple(one, size)(*taken)


def _word(kind: Any) -> Any:
    """Return the type in which an argument is passed: integers as machine words."""
    if isinstance(kind, types.Integer):
        return types.intp
    members: Any = getattr(kind, "types", ())
    if isinstance(kind, types.BaseTuple) and isinstance(members[0], types.Integer):
        return types.UniTuple(types.intp, len(members))
    return kind


def _lift(generate: Callable[..., Any], context: Any, builder: Any, signature: Any, values: Any) -> Any:
    packs = [isinstance(a, types.UniTuple) for a in signature.args]
    kinds = [a.dtype if pack else a for a, pack in zip(signature.args, packs, strict=True)]
    if not any(packs):
        done = generate(context, builder, kinds, values)
        return context.get_dummy_value() if signature.return_type == types.void else done
    parts = []
    for k in range(next(a.count for a in signature.args if isinstance(a, types.UniTuple))):
        one = [builder.extract_value(v, k) if pack else v for v, pack in zip(values, packs, strict=True)]
        parts.append(generate(context, builder, kinds, one))
    if signature.return_type == types.void:
        return context.get_dummy_value()
    return context.make_tuple(builder, signature.return_type, parts)


def vector_of(array: Any, *_: Any) -> Any:
    """Return the type of the vectors that an array is read in."""
    return VectorType(types.float64 if array.dtype == types.float64 else types.float32)
