"""Any array in, the same kind of array out, without a copy.

A `Kind` knows one array library: how to read an array's metadata, how to view its memory as a kernel does and how to
make a new array on the same device. Kinds are found by the type of the array through `sys.modules`; no library is
imported that the caller has not imported already.

Views. On the CPU a view is an `np.ndarray` of the storage type (see `kernels.common.dtypes`). On CUDA it is a
`CudaView`, which every CUDA library can wrap. Once all of a call is checked, `compact` copies what is not contiguous;
that copy is the only one made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from dynk._operator import Shape
from dynk.kernels.common.dtypes import ITEMSIZE, STORAGE

CPU = ("cpu", 0)
_LINE = 64  # bytes
_LARGE = 1 << 16  # bytes of an array from which on its place pays
Device = tuple[str, int]


class CudaView:
    """Memory of a CUDA device as a kernel sees it; `owner` keeps it alive.

    `strides` are in bytes, None for C-contiguous memory.
    """

    __slots__ = ("device", "dtype", "owner", "pointer", "shape", "strides")

    def __init__(
        self, owner: Any, pointer: int, shape: Shape, dtype: str, device: int, strides: Shape | None = None
    ) -> None:
        self.owner = owner
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.strides = None if strides == contiguous_strides(shape, dtype) else strides

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": STORAGE[self.dtype].str,
            "data": (self.pointer, False),
            "strides": self.strides,
            "version": 3,
        }


View = npt.NDArray[Any] | CudaView


def contiguous_strides(shape: Shape, dtype: str) -> Shape:
    """Return the strides in bytes of a C-contiguous array."""
    strides = []
    step = ITEMSIZE[dtype]
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


class Kind(Protocol):
    """One array library."""

    name: str

    def describe(self, array: Any) -> tuple[Shape, str, Device]:
        """Return shape, dtype name and device; raises TypeError for an array no kernel could read."""

    def view(self, array: Any, dtype: str) -> View:
        """Return the array's memory as it lies; TypeError if it has none."""

    def writable(self, array: Any) -> str | None:
        """Return why `array` cannot be written to as a C-contiguous output, None where it can and will be."""

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        """Return new uninitialised memory as a view, and the object that `finish` turns into the caller's array."""

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        """Return the array to hand to the caller, once the memory that `allocate` returned is written.

        `like` is an array argument of the call.
        """

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        """Return a new array of integers with values that are on the host; `like` is an array of the call."""

    def stream(self, device: Device) -> int:
        """Return the handle of the caller's current stream; 0 on the CPU."""


class Borrowed(NamedTuple):
    """The array arguments of one call as metadata."""

    kind: Kind
    device: Device
    shapes: tuple[Shape | None, ...]
    dtypes: tuple[str | None, ...]


def borrow(function: str, names: tuple[str, ...], arrays: tuple[Any, ...]) -> Borrowed:
    """Read the metadata of a call's arrays, which must be of one kind and on one device."""
    kind: Kind | None = None
    device: Device = CPU
    owner = ""
    shapes: list[Shape | None] = []
    dtypes: list[str | None] = []
    for name, array in zip(names, arrays, strict=True):
        if array is None:
            shapes.append(None)
            dtypes.append(None)
            continue
        its_kind = _KIND_OF_TYPE.get(type(array)) or _find_kind(function, name, array)
        try:
            shape, dtype, its_device = its_kind.describe(array)
        except (TypeError, NotImplementedError) as error:
            msg = f"{function}: {name} must be {error}"
            raise type(error)(msg) from None
        except Exception as error:  # subclasses and foreign arrays may raise anything
            msg = f"{function}: {name} must be a working array, got {_type_name(type(array))}: {error}"
            raise TypeError(msg) from error
        if kind is None:
            kind, device, owner = its_kind, its_device, name
        elif its_kind is not kind:
            msg = f"{function}: {name} must be an array of the kind of {owner}, {kind.name}, got {its_kind.name}"
            raise TypeError(msg)
        elif its_device != device:
            where, there = show_device(device), show_device(its_device)
            msg = f"{function}: {name} must be on the device of {owner}, {where}, got {there}"
            raise ValueError(msg)
        shapes.append(shape)
        dtypes.append(dtype)
    if kind is None:
        msg = f"{function}: at least one of {', '.join(names)} must be an array, got None for each"
        raise TypeError(msg)
    return Borrowed(kind, device, tuple(shapes), tuple(dtypes))


def overlap(a: View, b: View) -> bool:
    """Return whether the bytes that two views of one device span have any in common."""
    if isinstance(a, CudaView) or isinstance(b, CudaView):
        (a_first, a_end), (b_first, b_end) = memory_range(a), memory_range(b)
        return a_first < b_end and b_first < a_end
    return np.may_share_memory(a, b)


def memory_range(view: Any) -> tuple[int, int]:
    """Return the first byte of a CUDA view's memory and the one behind its last."""
    first: int = view.pointer
    if 0 in view.shape:
        return first, first
    strides = view.strides or contiguous_strides(view.shape, view.dtype)
    steps = [(extent - 1) * step for extent, step in zip(view.shape, strides, strict=True)]
    end = first + sum(max(step, 0) for step in steps) + ITEMSIZE[view.dtype]
    return first + sum(min(step, 0) for step in steps), end


def show_device(device: Device) -> str:
    """Return a device as PyTorch writes it: "cpu", "cuda:0"."""
    return device[0] if device == CPU else f"{device[0]}:{device[1]}"


# ---- NumPy ---------------------------------------------------------------------------------------------------------

_NUMPY_NAMES: dict[Any, str] = {
    np.dtype(np.float16): "float16",
    np.dtype(np.float32): "float32",
    np.dtype(np.float64): "float64",
    np.dtype(np.int32): "int32",
    np.dtype(np.int64): "int64",
}


def numpy_name(dtype: np.dtype[Any]) -> str:
    name = _NUMPY_NAMES.get(dtype)
    if name is None:
        # ml_dtypes' bfloat16 is a user dtype that NumPy knows by name only.
        name = "bfloat16" if dtype.name == "bfloat16" and dtype.itemsize == 2 else dtype.newbyteorder("=").name
        if not dtype.isnative:
            msg = f"in native byte order, got {dtype.str}"
            raise TypeError(msg)
        _NUMPY_NAMES[dtype] = name
    return name


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # whoever passes a bfloat16 NumPy array has it

    return np.dtype(ml_dtypes.bfloat16)


def numpy_view(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return an array of the storage type over the memory of `array`, as it lies."""
    if type(array) is not np.ndarray:
        array = np.asarray(array)  # subclasses may change what indexing and reshaping mean
    storage = STORAGE[dtype]
    return array if array.dtype is storage or array.dtype == storage else array.view(storage)


def compact(view: View | None) -> View | None:
    """Return a view that is C-contiguous and aligned where it is the CPU's, of a copy if need be."""
    if not isinstance(view, np.ndarray) or (view.flags.c_contiguous and view.flags.aligned):
        return view
    return np.array(view, order="C")


def on_line(shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array to be written that begins with a line of the cache, as those of PyTorch and JAX do.

    A large array of NumPy's own begins 16 bytes behind: most vectors of it lie across two lines, which costs up to half
    the speed.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)


class _Numpy:
    name = "NumPy"

    def describe(self, array: npt.NDArray[Any]) -> tuple[Shape, str, Device]:
        if type(array) is not np.ndarray:
            array = np.asarray(array)  # what subclasses say of themselves need not be so
        dtype = array.dtype
        return array.shape, _NUMPY_NAMES.get(dtype) or numpy_name(dtype), CPU

    def view(self, array: npt.NDArray[Any], dtype: str) -> View:
        return numpy_view(array, dtype)

    def writable(self, array: npt.NDArray[Any]) -> str | None:
        array = np.asarray(array)
        if not array.flags.writeable:
            return "writeable, got a read-only array"
        if not (array.flags.c_contiguous and array.flags.aligned):
            return f"C-contiguous, got strides {array.strides}"
        return None

    def allocate(self, shape: Shape, dtype: str, device: Device) -> tuple[View, Any]:
        large = math.prod(shape) * ITEMSIZE[dtype] >= _LARGE
        array = on_line(shape, _numpy_dtype(dtype)) if large else np.empty(shape, _numpy_dtype(dtype))
        return array.view(STORAGE[dtype]), array

    def finish(self, memory: Any, dtype: str, like: Any) -> Any:
        return memory

    def send(self, values: npt.NDArray[Any], device: Device, like: Any) -> Any:
        return values

    def stream(self, device: Device) -> int:
        return 0


NUMPY: Kind = _Numpy()
_KIND_OF_TYPE: dict[type, Kind] = {np.ndarray: NUMPY}


# ---- everything else is looked up once per type ----------------------------------------------------------------------


def register(match: Callable[[type], bool], kind: Kind) -> None:
    """Add a kind of array; `match` is asked once per type, in the order of registration."""
    _MATCHERS.append((match, kind))


_MATCHERS: list[tuple[Callable[[type], bool], Kind]] = []


def _find_kind(function: str, name: str, array: Any) -> Kind:
    from dynk import _kinds  # registers the other libraries on the first array that is not plain NumPy

    cls = type(array)
    if isinstance(array, np.ma.MaskedArray):
        msg = f"{function}: {name} must be an array without a mask, got {_type_name(cls)}"
        raise TypeError(msg)
    for match, kind in _MATCHERS:
        if match(cls):
            _KIND_OF_TYPE[cls] = kind
            return kind
    if _kinds.is_jax_tracer(array):
        msg = f"{function}: {name} is traced by JAX; inside jit, grad and vmap call dynk_jax.{function} instead"
        raise TypeError(msg)
    msg = (
        f"{function}: {name} must be a NumPy, CuPy, Numba CUDA, PyTorch or JAX array or an object with __dlpack__, "
        f"got {_type_name(cls)}"
    )
    raise TypeError(msg)


def _type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def loaded(module: str) -> Any:
    """Return a module if the process has imported it, else None."""
    return sys.modules.get(module)
