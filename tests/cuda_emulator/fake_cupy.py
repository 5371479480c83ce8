"""The few names of CuPy that a launcher uses, over NumPy arrays and the emulator."""

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .launch import POISON, DeviceArray
from .raw_module import Kernel, RawModule

__all__ = ["Kernel", "RawModule", "asarray", "empty", "zeros"]

_ALIGNMENT = 256  # of device memory


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike = float) -> DeviceArray:
    """Return an array of poison (NaN in every float type) whose bytes count as uninitialised until written."""
    return _allocate(shape, np.dtype(dtype), initialised=False)


def zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike = float) -> DeviceArray:
    """Return an array of zeros."""
    array = _allocate(shape, np.dtype(dtype), initialised=True)
    array.fill(0)
    return array


def asarray(values: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> DeviceArray:
    """Return a copy of the values."""
    values = np.asarray(values, dtype)
    array = _allocate(values.shape, values.dtype, initialised=True)
    array[...] = values
    return array


def _allocate(shape: int | tuple[int, ...], dtype: np.dtype[Any], *, initialised: bool) -> DeviceArray:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape) * dtype.itemsize
    owner = np.ndarray.__new__(DeviceArray, (size + _ALIGNMENT,), np.uint8)
    owner.fill(POISON)
    owner.initialised = np.full(owner.size, initialised, np.uint8)
    start = -owner.ctypes.data % _ALIGNMENT
    return cast("DeviceArray", owner[start : start + size].view(dtype).reshape(shape))
