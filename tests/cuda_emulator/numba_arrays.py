"""The arrays of emulated Numba kernels: every access to an element goes through the checker."""

# mypy: ignore-errors
# Numba's extension interface carries no types.

import linecache
import operator
import sys
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_untracked
from numba.core.lowering import Lower
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import lower_builtin, lower_getattr, models, overload, register_model

from .errors import Place

# ---- source places: where C++ kernels have a code address, these have a number with its top bit set

_PLACE_BIT = 1 << 63
_places: list[Place] = []


def place_number() -> int:
    """Return the number of the Python line that Numba is lowering."""
    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("self"), Lower):
        assert frame.f_back is not None
        frame = frame.f_back
    lowering = frame.f_locals["self"]
    file, line = lowering.func_ir.loc.filename, lowering.loc.line
    _places.append(Place(Path(file).name, line, linecache.getline(file, line).strip()))
    return (_PLACE_BIT | len(_places) - 1) - (1 << 64)  # the same bits, signed


def find_place(number: int) -> Place | None:
    """Return the place of that number."""
    return _places[number & ~_PLACE_BIT] if number & _PLACE_BIT else None


# ---- calls into the runtime

INT = ir.IntType(64)
POINTER = ir.IntType(8).as_pointer()
RUNTIME_FUNCTIONS = {
    "emu_numba_index": (INT, [INT]),
    "emu_numba_lane": (INT, []),
    "emu_numba_barrier": (ir.VoidType(), [INT]),
    "emu_numba_warp": (ir.VoidType(), [INT, POINTER, POINTER, INT, INT, INT]),
    "emu_numba_shared_array": (POINTER, [INT, INT]),
    "emu_numba_dynamic_bytes": (INT, []),
    "emu_numba_access": (ir.VoidType(), [INT] * 4),
    "emu_numba_bad_index": (ir.VoidType(), [INT] * 2),
}


READ, WRITE, ATOMIC = 1, 2, 4  # the bits of an access, as in runtime.h


def call_runtime(builder: Any, name: str, *arguments: Any) -> Any:
    """Emit a call; plain integers become constants."""
    result, parameters = RUNTIME_FUNCTIONS[name]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)
    return builder.call(function, [INT(a) if isinstance(a, int) else a for a in arguments])


# ---- the array type


class CheckedArray(types.Type):
    """The type of every array that a kernel sees: arguments, shared and local arrays."""

    def __init__(self, dtype: Any, ndim: int) -> None:
        self.dtype, self.ndim = dtype, ndim
        self.extents = types.UniTuple(types.int64, ndim)
        super().__init__(f"CheckedArray({dtype}, {ndim}d)")


@register_model(CheckedArray)
class _CheckedArrayModel(models.StructModel):
    def __init__(self, manager: Any, array: CheckedArray) -> None:
        members = [("data", types.voidptr), ("shape", array.extents), ("strides", array.extents)]
        super().__init__(manager, array, members)


def make_array(context: Any, builder: Any, array: CheckedArray, data: Any, shape: Any, strides: Any) -> Any:
    """Return the array of that memory; shape and strides (in bytes) are sequences of values."""
    struct = cgutils.create_struct_proxy(array)(context, builder)
    struct.data = data
    struct.shape, struct.strides = cgutils.pack_array(builder, shape), cgutils.pack_array(builder, strides)
    return struct._getvalue()


def checked_element(context: Any, builder: Any, sig: Any, array: Any, index: Any, kind: int) -> Any:
    """Emit the checks of one access; return the address of the element. The array and index types are sig's first."""
    array_type, index_type = sig.args[:2]
    struct = cgutils.create_struct_proxy(array_type)(context, builder, value=array)
    place = place_number()
    offset = INT(0)
    indices = cgutils.unpack_tuple(builder, index) if isinstance(index_type, types.BaseTuple) else [index]
    for axis, i in enumerate(indices):
        extent, stride = (builder.extract_value(member, axis) for member in (struct.shape, struct.strides))
        outside = builder.icmp_unsigned(">=", i, extent)  # negative too: no kernel means an index to wrap around
        with builder.if_then(outside, likely=False):
            call_runtime(builder, "emu_numba_bad_index", int(bool(kind & WRITE)), place)
        offset = builder.add(offset, builder.mul(i, stride))
    address = builder.add(builder.ptrtoint(struct.data, INT), offset)
    element = context.get_data_type(array_type.dtype)
    call_runtime(builder, "emu_numba_access", address, context.get_abi_sizeof(element), kind, place)
    return builder.inttoptr(address, element.as_pointer())


def element_index(array: Any, index: Any) -> Any:
    """Return the type to cast an index to; None where it is not one element of a CheckedArray."""
    if not isinstance(array, CheckedArray):
        return None
    if isinstance(index, types.Integer):
        return types.int64 if array.ndim == 1 else None
    parts = index.types if isinstance(index, types.BaseTuple) else ()
    whole = len(parts) == array.ndim and all(isinstance(part, types.Integer) for part in parts)
    return types.UniTuple(types.int64, array.ndim) if whole else None


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        array, index = args
        wanted = element_index(array, index)
        return signature(array.dtype, array, wanted) if wanted else None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        array, index, _ = args
        wanted = element_index(array, index)
        return signature(types.none, array, wanted, array.dtype) if wanted else None


@lower_builtin(operator.getitem, CheckedArray, types.Any)
def _get_item(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pointer = checked_element(context, builder, sig, *args, READ)
    return context.unpack_value(builder, sig.return_type, pointer)


@lower_builtin(operator.setitem, CheckedArray, types.Any, types.Any)
def _set_item(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array, index, value = args
    pointer = checked_element(context, builder, sig, array, index, WRITE)
    context.pack_value(builder, sig.args[2], value, pointer)
    return context.get_dummy_value()


@infer_getattr
class _Attributes(AttributeTemplate):
    key = CheckedArray

    def resolve_shape(self, array: CheckedArray) -> Any:
        return array.extents

    def resolve_size(self, array: CheckedArray) -> Any:
        return types.int64

    def resolve_dtype(self, array: CheckedArray) -> Any:
        return types.DType(array.dtype)


@lower_getattr(CheckedArray, "dtype")
def _dtype(context: Any, builder: Any, array: CheckedArray, value: Any) -> Any:
    return context.get_dummy_value()


@lower_getattr(CheckedArray, "shape")
def _shape(context: Any, builder: Any, array: CheckedArray, value: Any) -> Any:
    struct = cgutils.create_struct_proxy(array)(context, builder, value=value)
    return impl_ret_untracked(context, builder, array.extents, struct.shape)


@lower_getattr(CheckedArray, "size")
def _size(context: Any, builder: Any, array: CheckedArray, value: Any) -> Any:
    struct = cgutils.create_struct_proxy(array)(context, builder, value=value)
    size = INT(1)
    for axis in range(array.ndim):
        size = builder.mul(size, builder.extract_value(struct.shape, axis))
    return size


@overload(len)
def _len(array):
    if isinstance(array, CheckedArray):
        return lambda array: array.shape[0]
    return None
