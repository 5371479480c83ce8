"""DLPack producers whose metadata is wrong, lies or changes."""

from __future__ import annotations

import collections
import ctypes
import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz_values import WRONG_DTYPES, Thunks


class Producer:
    """A bare DLPack producer; `export` makes the capsule, `device` is what it says of its device."""

    def __init__(self, export: Any, device: Any = (1, 0)) -> None:
        self.export = export
        self.device = device

    def __dlpack_device__(self) -> Any:
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.export(**keywords) if callable(self.export) else self.export


class Tensor(ctypes.Structure):
    """DLManagedTensor, with what fields a producer might get wrong."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_KEPT: collections.deque[Any] = collections.deque(maxlen=64)  # what recent capsules point to


def capsule(
    shape: tuple[int, ...], *, ndim: int | None = None, name: bytes = b"dltensor", strides: Any = None, **fields: Any
) -> Any:
    """Return a DLPack capsule of unreadable memory that says of itself what it is told to."""
    extents = (ctypes.c_int64 * max(len(shape), 70))(*shape)
    steps = None if strides is None else (ctypes.c_int64 * 70)(*strides)
    tensor = Tensor(data=64, device_type=1, ndim=len(shape) if ndim is None else ndim, code=2, bits=32, lanes=1)
    tensor.shape = ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64))
    if steps is not None:
        tensor.strides = ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64))
    for field, value in fields.items():
        setattr(tensor, field, value)
    _KEPT.append((tensor, extents, steps, name))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(ctypes.addressof(tensor), name, None)


def dlpack_producers(valid: Any) -> Thunks:
    """Return producers whose metadata is wrong, lies or changes; none of their memory may ever be read."""
    shape = valid.shape

    def lying(**fields: Any) -> Callable[[], Any]:
        return lambda: Producer(lambda **keywords: capsule(shape, **fields))

    def raises(**keywords: Any) -> Any:
        msg = "no export"
        raise BufferError(msg)

    thunks: Thunks = {
        f"DLPack dtype {name}": lambda d=dtype: Producer(np.zeros(shape, d).__dlpack__)
        for name, dtype in WRONG_DTYPES.items()
        if name in ("bool", "int8", "uint16", "complex64")
    }
    thunks |= {
        "DLPack raises": lambda: Producer(raises),
        "DLPack None": lambda: Producer(None),
        "DLPack text": lambda: Producer("dltensor"),
        "DLPack without keywords": lambda: Producer(lambda: None),
        "DLPack array for a capsule": lambda: Producer(lambda **keywords: valid),
        "DLPack exports once": lambda: Producer(iter([valid.copy().__dlpack__()]).__next__),
        "DLPack used capsule": lambda: Producer(_used(valid)),
        "DLPack name": lying(name=b"tensor"),
        "DLPack 70 dimensions": lambda: Producer(lambda **keywords: capsule((1,) * 70)),
        "DLPack -1 dimensions": lying(ndim=-1),
        "DLPack negative extents": lambda: Producer(lambda **keywords: capsule(tuple(-e for e in shape))),
        "DLPack 3 bits": lying(bits=3),
        "DLPack 0 bits": lying(bits=0),
        "DLPack lanes": lying(lanes=4),
        "DLPack code": lying(code=250),
        "DLPack bfloat16": lying(code=4, bits=16),
        "DLPack integers with huge extents": lambda: Producer(
            lambda **keywords: capsule((*shape[:-1], 1 << 40), code=0)
        ),
        "DLPack booleans, wild strides": lying(code=6, strides=[1 << 61, -(1 << 61)] * 35),
        "DLPack booleans, wild offset": lying(code=6, byte_offset=1 << 63),
    }
    devices: dict[str, Any] = {
        "another": (8, 0),
        "host memory": (3, 0),
        "undefined": (1 << 40, 0),
        "negative": (-1, -1),
        "CUDA": (2, 99),
        "None": None,
        "text": ("cpu", 0),
        "number": 1,
        "three": (1, 0, 0),
        "enum": (fractions.Fraction(5, 2), 0),
        "NaN": (float("nan"), 0),
        "raising": RuntimeError("no device"),
        "raising NotImplementedError": NotImplementedError("no device"),
    }
    thunks |= {
        f"DLPack device {name}": lambda d=device: Producer(valid.__dlpack__, d) for name, device in devices.items()
    }
    return thunks


def _used(valid: Any) -> Any:
    once = valid.copy().__dlpack__()
    np.from_dlpack(Producer(lambda **keywords: once))
    return once
