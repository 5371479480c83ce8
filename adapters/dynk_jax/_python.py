"""XLA FFI handlers in Python: how the CUDA backends, and the reference, run inside jit.

The structs are those of XLA's `ffi/api/c_api.h`, version 0. A handler returns NULL or an `XLA_FFI_Error*`.
"""

from __future__ import annotations

import ast
import ctypes
import math
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dynk._arrays import CudaView, Device, View
from dynk._operator import Operator, Options, Shape
from dynk.kernels.common.dtypes import ITEMSIZE, STORAGE

OLD_MINOR = 1  # of versions of XLA that do not tell theirs when they ask for a handler's
_EXECUTE = 3
_INTERNAL = 13
_DTYPES = {10: "float16", 11: "float32", 12: "float64", 16: "bfloat16", 4: "int32", 5: "int64"}


class _Version(Structure):
    _fields_ = (("struct_size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _Api(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("version", _Version),
        ("internal", c_void_p),
        ("error_create", c_void_p),
        ("error_get_message", c_void_p),
        ("error_destroy", c_void_p),
        ("handler_register", c_void_p),
        ("stream_get", c_void_p),
        ("type_register", c_void_p),
        ("execution_context_get", c_void_p),
        ("state_set", c_void_p),
        ("state_get", c_void_p),
        ("device_memory_allocate", c_void_p),
        ("device_memory_free", c_void_p),
        ("thread_pool_schedule", c_void_p),
        ("thread_pool_num_threads", c_void_p),
        ("future_create", c_void_p),
        ("future_set_available", c_void_p),
        ("future_set_error", c_void_p),
        ("run_id_get", c_void_p),
        ("device_ordinal_get", c_void_p),
    )


class _Buffer(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    )


class _Buffers(Structure):  # XLA_FFI_Args and XLA_FFI_Rets
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("buffers", POINTER(POINTER(_Buffer))),
    )


class _Span(Structure):
    _fields_ = (("pointer", c_void_p), ("size", c_size_t))


class _Array(Structure):
    _fields_ = (("dtype", c_int), ("size", c_size_t), ("data", c_void_p))


class _Attributes(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", c_void_p),
        ("names", POINTER(POINTER(_Span))),
        ("values", POINTER(c_void_p)),
    )


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _Extension(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    )


class _Frame(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


class _ErrorCreate(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("message", c_char_p),
        ("code", c_int),
    )


class _ErrorPointer(Structure):  # of XLA_FFI_Error_GetMessage and XLA_FFI_Error_Destroy
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("error", c_void_p),
        ("message", c_char_p),
    )


class _StreamGet(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("context", c_void_p),
        ("stream", c_void_p),
    )


class _OrdinalGet(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("context", c_void_p),
        ("ordinal", c_int32),
    )


_Callback = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_ApiFunction = ctypes.CFUNCTYPE(c_void_p, c_void_p)


class Handler(NamedTuple):
    """A C function that calls Python; it lives as long as this object."""

    address: int
    callback: Any


def handler(op: Operator, direction: str, runner: Any) -> Handler:
    """Return a handler that runs `<op>_<direction>` on a backend.

    The call has two attributes: `options`, the plan's, and `slots`, which says where each array of the kernel stands
    among the call's arguments or results (-1: absent).
    """

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        try:
            if frame.extension:
                _describe(frame)
            elif frame.stage == _EXECUTE:
                _run(frame, op, direction, runner)
        except BaseException as error:  # nothing may escape into XLA
            return _error(frame, f"{type(error).__name__}: {error}")
        return None

    callback = _Callback(handle)
    return Handler(ctypes.cast(callback, c_void_p).value or 0, callback)


def _describe(frame: Any) -> None:
    """Answer XLA's query for a handler's metadata: major version 0 of the API with the runtime's minor, and no traits.

    Without traits XLA never records the call into a command buffer.
    """
    metadata = frame.extension.contents.metadata.contents
    metadata.version.major = 0
    metadata.version.minor = frame.api.contents.version.minor if frame.api else OLD_MINOR
    metadata.traits = 0


def _run(frame: Any, op: Operator, direction: str, runner: Any) -> None:
    count = len(op.arrays) + (direction == "backward")
    attributes = _attributes(frame.attributes)
    slots = _slots(attributes["slots"])
    buffers = [frame.arguments.buffers[slot].contents if slot >= 0 else None for slot in slots[:count]]
    results = [frame.results.buffers[slot].contents if slot >= 0 else None for slot in slots[count:]]
    arrays = buffers if direction == "forward" else buffers[1:]
    plan = op.plan(
        op.name,
        tuple(None if buffer is None else _shape(buffer) for buffer in arrays),
        tuple(None if buffer is None else _DTYPES[buffer.dtype] for buffer in arrays),
        _options(attributes["options"]),
    )
    device, stream = _place(frame, runner)
    inputs = tuple(None if buffer is None else _view(buffer, device) for buffer in buffers)
    outputs = tuple(None if buffer is None else _view(buffer, device) for buffer in results)
    if any(view is not None and 0 not in view.shape for view in outputs):
        runner.run(op, direction, plan, inputs, outputs, device, stream)


def _place(frame: Any, runner: Any) -> tuple[Device, int]:
    """Return the device the call is to run on and its stream."""
    if runner.DEVICE == "cpu":
        return ("cpu", 0), 0
    api = frame.api.contents
    if api.struct_size < ctypes.sizeof(_Api):
        msg = "this version of XLA tells a handler no device; a newer JAX is needed"
        raise NotImplementedError(msg)
    ordinal = _OrdinalGet(ctypes.sizeof(_OrdinalGet), None, frame.context, 0)
    _check(frame, _ApiFunction(api.device_ordinal_get)(ctypes.addressof(ordinal)))
    stream = _StreamGet(ctypes.sizeof(_StreamGet), None, frame.context, None)
    _check(frame, _ApiFunction(api.stream_get)(ctypes.addressof(stream)))
    return (runner.DEVICE, ordinal.ordinal), stream.stream or 0


def _view(buffer: Any, device: Device) -> View:
    """Return the memory of an XLA_FFI_Buffer, as a backend takes it."""
    shape, dtype = _shape(buffer), _DTYPES[buffer.dtype]
    if device[0] == "cuda":
        return CudaView(None, buffer.data or 0, shape, dtype, device[1])
    if 0 in shape:
        return np.empty(shape, STORAGE[dtype])
    memory: Any = (ctypes.c_char * (math.prod(shape) * ITEMSIZE[dtype])).from_address(buffer.data)
    view: npt.NDArray[Any] = np.ndarray(shape, STORAGE[dtype], memory)
    return view


def _shape(buffer: Any) -> Shape:
    return tuple(buffer.dims[: buffer.rank])


def _attributes(attributes: Any) -> dict[str, int]:
    """Return the address of each attribute's value by name."""
    spans = (attributes.names[i].contents for i in range(attributes.size))
    names = [ctypes.string_at(span.pointer, span.size).decode() for span in spans]
    return {name: attributes.values[i] for i, name in enumerate(names)}


def _slots(address: int) -> list[int]:
    array = _Array.from_address(address)
    return list((c_int64 * array.size).from_address(array.data))


def _options(address: int) -> Options:
    span = _Span.from_address(address)
    return _parsed(ctypes.string_at(span.pointer, span.size))


@lru_cache(maxsize=4096)
def _parsed(text: bytes) -> Options:
    options: Options = ast.literal_eval(text.decode())
    return options


def _check(frame: Any, error: int | None) -> None:
    """Raise what an API function returned, if anything."""
    if not error:
        return
    api = frame.api.contents
    pointer = _ErrorPointer(ctypes.sizeof(_ErrorPointer), None, error, None)
    _ApiFunction(api.error_get_message)(ctypes.addressof(pointer))
    message = (pointer.message or b"").decode(errors="replace")
    _ApiFunction(api.error_destroy)(ctypes.addressof(pointer))
    msg = f"XLA: {message}"
    raise RuntimeError(msg)


def _error(frame: Any, message: str) -> int | None:
    """Return a new XLA_FFI_Error, which XLA will own."""
    create = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message.encode(), _INTERNAL)
    error: int | None = _ApiFunction(frame.api.contents.error_create)(ctypes.addressof(create))
    return error
