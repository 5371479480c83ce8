"""XLA FFI handlers compiled by Numba: a CPU kernel inside jit, without the interpreter.

A handler gets the address of an `XLA_FFI_CallFrame`. It and all it points to are read as arrays of 64-bit words; the
names below are the positions of the fields in the structs of XLA's `ffi/api/c_api.h`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, from_dtype, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from dynk.kernels.common.dtypes import STORAGE
from dynk_jax._python import OLD_MINOR

FRAME_WORDS, FRAME_EXTENSION, FRAME_API, FRAME_ARGS, FRAME_RETS, FRAME_ATTRS = 21, 1, 2, 9, 14, 20
BUFFER_WORDS, BUFFER_DATA, BUFFER_RANK, BUFFER_DIMS = 6, 3, 4, 5
ARRAY_WORDS, ARRAY_SIZE, ARRAY_DATA = 3, 1, 2
API_WORDS, API_VERSION, API_ERROR_CREATE = 7, 4, 6
EXTENSION_WORDS, EXTENSION_METADATA = 4, 3
METADATA_WORDS, METADATA_VERSION, METADATA_TRAITS = 5, 3, 4
ERROR_WORDS, ERROR_MESSAGE, ERROR_CODE, INTERNAL = 4, 2, 3, 13

_FAILURE = ctypes.create_string_buffer(b"dynk: the kernel ran out of memory or failed")
_FAILURE_ADDRESS = ctypes.addressof(_FAILURE)


def handler(kernel: Any, inputs: int, dtypes: tuple[str, ...]) -> Any:
    """Return a Numba cfunc that runs a compiled kernel on the buffers of a call frame.

    The call has three attributes, which XLA sorts by name: the plan's `geometry` and `reals`, and `slots`, which says
    where each array of the kernel stands among the call's arguments or results (-1: absent), then how many elements of
    the kernel's each element there is.

    Parameters
    ----------
    kernel
        Numba dispatcher taking flat arrays, its inputs then its outputs, then geometry and reals.
    inputs
        How many arrays it reads.
    dtypes
        The element type of each array.
    """
    arrays = len(dtypes)
    call = _caller(kernel, dtypes)

    @cfunc(types.intp(types.intp))
    def handle(address):  # type: ignore[no-untyped-def]
        frame = _words(address, FRAME_WORDS)
        if frame[FRAME_EXTENSION] != 0:
            return _describe(frame)
        attributes = _words(frame[FRAME_ATTRS], 3)
        geometry = _words(attributes[0], ARRAY_WORDS)
        reals = _words(attributes[1], ARRAY_WORDS)
        slots = _words(_words(attributes[2], ARRAY_WORDS)[ARRAY_DATA], 2 * arrays)
        memory = np.zeros(2 * arrays + 4, np.int64)  # address and element count of each of the kernel's arguments
        for i in range(arrays):
            if slots[i] >= 0:
                buffers = frame[FRAME_ARGS] if i < inputs else frame[FRAME_RETS]
                buffer = _words(_words(buffers, slots[i] + 1)[slots[i]], BUFFER_WORDS)
                memory[2 * i], memory[2 * i + 1] = buffer[BUFFER_DATA], slots[arrays + i]
                for extent in _words(buffer[BUFFER_DIMS], buffer[BUFFER_RANK]):
                    memory[2 * i + 1] *= extent
        memory[-4], memory[-3] = geometry[ARRAY_DATA], geometry[ARRAY_SIZE]
        memory[-2], memory[-1] = reals[ARRAY_DATA], reals[ARRAY_SIZE]
        return 0 if call(memory) else _failure(frame)

    return handle


def _caller(kernel: Any, dtypes: tuple[str, ...]) -> Any:
    """Return a function that calls a kernel on the memory of its arguments and returns whether it succeeded.

    The kernel is compiled, or taken from Numba's cache, and called at its address: an ordinary call would link it into
    the handler and generate its machine code once more.
    """
    elements = [*(from_dtype(STORAGE[dtype]) for dtype in dtypes), types.int64, types.float64]
    kinds = tuple(types.Array(element, 1, "C") for element in elements)
    kernel.compile(kinds)
    compiled = kernel.overloads[kinds]
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)

    @intrinsic
    def call(typing_context, memory):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            words = context.make_array(memory)(context, builder, arguments[0]).data
            values = []
            for i, kind in enumerate(kinds):
                data, size = (builder.load(cgutils.gep(builder, words, 2 * i + k)) for k in range(2))
                array = context.make_array(kind)(context, builder)
                itemsize = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
                pointer = builder.inttoptr(data, array.data.type)
                populate_array(array, pointer, [size], [itemsize], itemsize, meminfo=None)
                values.append(array._getvalue())
            function_type = context.call_conv.get_function_type(types.none, kinds)
            function = builder.inttoptr(ir.Constant(ir.IntType(64), address), function_type.as_pointer())
            status, _ = context.call_conv.call_function(builder, function, types.none, kinds, values)
            return status.is_ok

        return types.boolean(memory), generate

    return call


@njit
def _describe(frame):  # type: ignore[no-untyped-def]
    """Answer XLA's query for a handler's metadata: version 0 of the API with the runtime's minor, no traits."""
    metadata = _words(_words(frame[FRAME_EXTENSION], EXTENSION_WORDS)[EXTENSION_METADATA], METADATA_WORDS)
    minor = OLD_MINOR
    if frame[FRAME_API] != 0:
        minor = _words(frame[FRAME_API], API_WORDS)[API_VERSION] >> 32
    metadata[METADATA_VERSION] = minor << 32
    metadata[METADATA_TRAITS] = 0
    return 0


@njit
def _failure(frame):  # type: ignore[no-untyped-def]
    """Return a new XLA_FFI_Error."""
    error = np.zeros(ERROR_WORDS, np.int64)
    error[0] = ERROR_WORDS * 8
    error[ERROR_MESSAGE] = _FAILURE_ADDRESS
    error[ERROR_CODE] = INTERNAL
    create = _words(frame[FRAME_API], API_WORDS)[API_ERROR_CREATE]
    return _call_word(create, error.ctypes.data)  # type: ignore[call-arg]


@njit
def _words(address, count):  # type: ignore[no-untyped-def]
    """Return the 64-bit words of a C struct."""
    return carray(_pointer(address), (count,), np.int64)  # type: ignore[call-arg]


@intrinsic
def _pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """Turn an integer into a `void*`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@intrinsic
def _call_word(typing_context, function, argument):  # type: ignore[no-untyped-def]
    """Call a C function of one word, by its address."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        word = ir.IntType(64)
        pointer = builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(pointer, [builder.bitcast(arguments[1], word)])

    return types.intp(types.intp, types.uintp), generate
