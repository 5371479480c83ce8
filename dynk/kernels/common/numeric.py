"""Element access for CPU kernels: storage type in memory, accumulator type in registers.

Each function is plain Python, which runs when the compiler is off, and an overload that kernels compile. Indices must
not be negative: the overloads leave out Python's wrap-around, which would keep LLVM from vectorising.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.np import arrayobj

from dynk.kernels.common.compile import borrowing
from dynk.kernels.common.dtypes import narrow, widen
from dynk.kernels.common.lowering import VECTOR_BYTES
from dynk.kernels.common.vector_types import lowered

# Numba is typed in part only.
intrinsic: Any = extending.intrinsic
overload: Any = extending.overload

DTYPE_OF_STORAGE = {np.dtype(np.int16): "float16", np.dtype(np.uint16): "bfloat16"}


def load(array: Any, i: Any) -> Any:
    """Return element `i` in the accumulator type."""
    name = DTYPE_OF_STORAGE.get(array.dtype)
    return array[i] if name is None else np.float32(widen(array[i : i + 1], name)[0])


def store(array: Any, i: Any, value: Any) -> None:
    """Write element `i`, rounded once to the storage type."""
    name = DTYPE_OF_STORAGE.get(array.dtype)
    array[i] = value if name is None else narrow(np.asarray([value], np.float64), name)[0]


def _allocated(zero: bool, context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    """Return a new array that begins where a line of the cache does, so that no vector of it lies across two."""
    kind = _accumulator_array(*kinds)
    itemsize = ir.Constant(values[1].type, kind.dtype.bitwidth // 8)
    size = builder.mul(values[1], itemsize)
    memory = context.nrt.meminfo_alloc_aligned(builder, size, VECTOR_BYTES)
    with builder.if_then(cgutils.is_null(builder, memory), likely=False):
        context.call_conv.return_user_exc(builder, MemoryError, ("no memory for the sums",))
    data = context.nrt.meminfo_data(builder, memory)
    if zero:
        cgutils.memset(builder, data, size, 0)
    array = arrayobj.make_array(kind)(context, builder)
    data = builder.bitcast(data, context.get_data_type(kind.dtype).as_pointer())
    arrayobj.populate_array(array, data, [values[1]], [itemsize], itemsize, memory)
    return array._getvalue()


def _accumulator_array(like: Any, size: Any) -> Any:
    return types.Array(types.float64 if like.dtype == types.float64 else types.float32, 1, "C")


@lowered(partial(_allocated, True), _accumulator_array, packed=True)
def accumulators(like: Any, size: Any) -> Any:
    """Return `size` zeros of the accumulator type of `like`."""
    return np.zeros(size, np.float64 if like.dtype == np.float64 else np.float32)


@lowered(partial(_allocated, False), _accumulator_array, packed=True)
def unset(like: Any, size: Any) -> Any:
    """Return `size` elements of the accumulator type of `like`, to be written before they are read."""
    return np.empty(size, np.float64 if like.dtype == np.float64 else np.float32)


@borrowing
def fill(array, value):  # type: ignore[no-untyped-def]
    """Set every element of an accumulator array; a slice assignment would take far longer to compile."""
    for i in range(array.size):
        array[i] = value


@overload(load)
def _load(array, i):  # type: ignore[no-untyped-def]
    if array.dtype == types.int16:
        return lambda array, i: _from_float16(array[np.uintp(i)])
    if array.dtype == types.uint16:
        return lambda array, i: _from_bits(np.uint32(array[np.uintp(i)]) << np.uint32(16))
    return lambda array, i: array[np.uintp(i)]


@overload(store)
def _store(array, i, value):  # type: ignore[no-untyped-def]
    if array.dtype == types.int16:

        def store_float16(array, i, value):  # type: ignore[no-untyped-def]
            array[np.uintp(i)] = _to_float16(np.float32(value))

        return store_float16
    if array.dtype == types.uint16:

        def store_bfloat16(array, i, value):  # type: ignore[no-untyped-def]
            bits = _to_bits(np.float32(value))
            tie_to_even = (bits >> np.uint32(16)) & np.uint32(1)
            rounded = (bits + np.uint32(0x7FFF) + tie_to_even) >> np.uint32(16)
            quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
            is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            array[np.uintp(i)] = np.uint16(quiet_nan if is_nan else rounded)

        return store_bfloat16

    def store_plain(array, i, value):  # type: ignore[no-untyped-def]
        array[np.uintp(i)] = value

    return store_plain


@intrinsic
def _from_float16(context: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def _to_float16(context: Any, value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


@intrinsic
def _from_bits(context: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _to_bits(context: Any, value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate
