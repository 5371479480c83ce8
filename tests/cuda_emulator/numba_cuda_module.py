"""``cuda``: the stand-in for the ``numba.cuda`` module inside emulated kernels."""

# mypy: ignore-errors
# Numba's extension interface carries no types.

import math
import types as python_types
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_constant
from numba.extending import intrinsic, models, overload, overload_attribute, register_model, typeof_impl

from .numba_arrays import (
    ATOMIC,
    INT,
    POINTER,
    READ,
    WRITE,
    CheckedArray,
    call_runtime,
    checked_element,
    element_index,
    make_array,
    place_number,
)

cuda = python_types.ModuleType("emulated_cuda")
cuda.shared = python_types.ModuleType("emulated_cuda.shared")
cuda.local = python_types.ModuleType("emulated_cuda.local")
cuda.atomic = python_types.ModuleType("emulated_cuda.atomic")
cuda.warpsize = 32

# ---- threadIdx, blockIdx, blockDim, gridDim, laneid, grid, gridsize


class _Dim3:
    def __init__(self, number: int) -> None:
        self.number = number


class _Dim3Type(types.Type):
    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"Dim3({number})")


@typeof_impl.register(_Dim3)
def _typeof_dim3(value: _Dim3, context: Any) -> _Dim3Type:
    return _Dim3Type(value.number)


register_model(_Dim3Type)(models.OpaqueModel)


@lower_constant(_Dim3Type)
def _dim3_constant(context: Any, builder: Any, dim: _Dim3Type, value: _Dim3) -> Any:
    return context.get_dummy_value()


@intrinsic
def _index(typing_context: Any, which: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.trunc(call_runtime(builder, "emu_numba_index", args[0]), ir.IntType(32))

    return types.int32(types.int64), codegen


def _define_axis(axis: int, name: str) -> None:
    @overload_attribute(_Dim3Type, name)
    def attribute(dim):
        which = 3 * dim.number + axis
        return lambda dim: _index(which)


for _number, _name in enumerate(("threadIdx", "blockIdx", "blockDim", "gridDim")):
    setattr(cuda, _name, _Dim3(_number))
for _number, _name in enumerate("xyz"):
    _define_axis(_number, _name)


def _position(axis: int) -> Any:
    raise NotImplementedError


@overload(_position)
def _position_overload(axis):
    return lambda axis: types.int64(_index(3 + axis)) * _index(6 + axis) + _index(axis)


def _grid_function(name: str, one: Callable[[int], Any], two: Any, three: Any) -> None:
    def stub(ndim: int) -> Any:
        raise NotImplementedError

    stub.__name__ = name
    setattr(cuda, name, stub)

    @overload(stub, prefer_literal=True)
    def grid(ndim):
        return {1: one, 2: two, 3: three}.get(getattr(ndim, "literal_value", None))


_grid_function(
    "grid",
    lambda ndim: _position(0),
    lambda ndim: (_position(0), _position(1)),
    lambda ndim: (_position(0), _position(1), _position(2)),
)


def _extent(axis: int) -> Any:
    raise NotImplementedError


@overload(_extent)
def _extent_overload(axis):
    return lambda axis: types.int64(_index(6 + axis)) * _index(9 + axis)


_grid_function(
    "gridsize",
    lambda ndim: _extent(0),
    lambda ndim: (_extent(0), _extent(1)),
    lambda ndim: (_extent(0), _extent(1), _extent(2)),
)

# ---- barriers and warp operations


def _define(holder: python_types.ModuleType, name: str) -> Callable[[Callable[..., Any]], Any]:
    """Put the decorated function into a stand-in module, as an intrinsic."""

    def decorate(function: Callable[..., Any]) -> Any:
        defined = intrinsic(prefer_literal=True)(function)
        setattr(holder, name, defined)
        return defined

    return decorate


@_define(cuda, "syncthreads")
def _syncthreads(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        call_runtime(builder, "emu_numba_barrier", place_number())
        return context.get_dummy_value()

    return types.none(), codegen


@_define(cuda, "syncwarp")
def _syncwarp(typing_context: Any, *mask: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = INT(0xFFFFFFFF)
        if mask:
            lanes = context.cast(builder, builder.extract_value(args[0], 0), mask[0], types.int64)
        call_runtime(builder, "emu_numba_warp", lanes, POINTER(None), POINTER(None), 0, -2, place_number())
        return context.get_dummy_value()

    return types.none(types.BaseTuple.from_types(mask)), codegen


for _name in ("threadfence", "threadfence_block", "threadfence_system"):

    @intrinsic
    def _fence(typing_context: Any) -> Any:
        return types.none(), lambda context, builder, sig, args: context.get_dummy_value()

    setattr(cuda, _name, _fence)


def _define_shuffle(name: str, source_of: Callable[[Any, Any, Any], Any]) -> None:
    """Define a shuffle; ``source_of(builder, lane, operand)`` emits the lane to copy from, 32 or more: its own."""

    @intrinsic
    def shuffle(typing_context: Any, mask: Any, value: Any, operand: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            mask_value, given, offset = args
            lane = call_runtime(builder, "emu_numba_lane")
            source = source_of(builder, lane, offset)
            source = builder.select(builder.icmp_unsigned("<", source, INT(32)), source, lane)
            element = context.get_data_type(sig.args[1])
            memory, result = (cgutils.alloca_once(builder, element) for _ in range(2))
            context.pack_value(builder, sig.args[1], given, memory)
            pointers = [builder.bitcast(pointer, POINTER) for pointer in (memory, result)]
            size = context.get_abi_sizeof(element)
            call_runtime(builder, "emu_numba_warp", mask_value, *pointers, size, source, place_number())
            return context.unpack_value(builder, sig.args[1], result)

        value = types.unliteral(value)
        if not isinstance(value, (types.Integer, types.Float)):
            return None
        return value(types.int64, value, types.int64), codegen

    setattr(cuda, name, shuffle)


_define_shuffle("shfl_sync", lambda builder, lane, source: builder.and_(source, INT(31)))
_define_shuffle("shfl_up_sync", lambda builder, lane, delta: builder.sub(lane, delta))
_define_shuffle("shfl_down_sync", lambda builder, lane, delta: builder.add(lane, delta))
_define_shuffle("shfl_xor_sync", lambda builder, lane, mask: builder.xor(lane, mask))

# ---- shared and local arrays


def _literal_shape(shape: Any) -> tuple[int, ...] | None:
    parts = shape.types if isinstance(shape, types.BaseTuple) else (shape,)
    values = [getattr(part, "literal_value", None) for part in parts]
    return tuple(values) if values and None not in values else None


def _row_major(shape: tuple[int, ...], size: int) -> tuple[list[Any], list[Any]]:
    strides = [size * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [INT(extent) for extent in shape], [INT(stride) for stride in strides]


_n_shared_arrays = 0


@_define(cuda.shared, "array")
def _shared_array(typing_context: Any, shape: Any, dtype: Any) -> Any:
    extents = _literal_shape(shape)
    if extents is None:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        global _n_shared_arrays
        size = context.get_abi_sizeof(context.get_data_type(sig.return_type.dtype))
        if extents == (0,):  # dynamic shared memory: one for all, as large as the launch says
            memory = call_runtime(builder, "emu_numba_shared_array", 0, -1)
            count = builder.udiv(call_runtime(builder, "emu_numba_dynamic_bytes"), INT(size))
            return make_array(context, builder, sig.return_type, memory, [count], [INT(size)])
        _n_shared_arrays += 1  # each call in the source is an array of its own
        memory = call_runtime(builder, "emu_numba_shared_array", _n_shared_arrays, size * math.prod(extents))
        return make_array(context, builder, sig.return_type, memory, *_row_major(extents, size))

    return CheckedArray(dtype.dtype, len(extents))(shape, dtype), codegen


@_define(cuda.local, "array")
def _local_array(typing_context: Any, shape: Any, dtype: Any) -> Any:
    extents = _literal_shape(shape)
    if extents is None:
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = context.get_data_type(sig.return_type.dtype)
        memory = builder.bitcast(cgutils.alloca_once(builder, element, size=math.prod(extents)), POINTER)
        shape_strides = _row_major(extents, context.get_abi_sizeof(element))
        return make_array(context, builder, sig.return_type, memory, *shape_strides)

    return CheckedArray(dtype.dtype, len(extents))(shape, dtype), codegen


# ---- atomics, fma


def _define_atomic(name: str, updated: Callable[[Any, Any, Any, bool], Any]) -> None:
    @intrinsic
    def atomic(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
        wanted = element_index(array, index)
        if wanted is None:
            return None

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = checked_element(context, builder, sig, *args[:2], READ | WRITE | ATOMIC)
            old = context.unpack_value(builder, array.dtype, pointer)
            new = updated(builder, old, args[2], isinstance(array.dtype, types.Float))
            context.pack_value(builder, array.dtype, new, pointer)
            return old

        return array.dtype(array, wanted, array.dtype), codegen

    setattr(cuda.atomic, name, atomic)


def _added(builder: Any, old: Any, value: Any, is_float: bool) -> Any:
    return builder.fadd(old, value) if is_float else builder.add(old, value)


def _larger(builder: Any, old: Any, value: Any, is_float: bool) -> Any:
    compare = builder.fcmp_ordered if is_float else builder.icmp_signed
    return builder.select(compare(">", old, value), old, value)


def _smaller(builder: Any, old: Any, value: Any, is_float: bool) -> Any:
    compare = builder.fcmp_ordered if is_float else builder.icmp_signed
    return builder.select(compare("<", old, value), old, value)


_define_atomic("add", _added)
_define_atomic("max", _larger)
_define_atomic("min", _smaller)


@_define(cuda, "fma")
def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    number = types.unliteral(a)
    if not isinstance(number, types.Float):
        return None
    return number(number, number, number), lambda context, builder, sig, args: builder.fma(*args)
