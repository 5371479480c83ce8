"""The four element types and how they are stored.

NumPy, Numba and CUDA launchers all see *storage* arrays: float32 and float64 as themselves, the two half types as
16-bit integers. float16 is stored as int16 and bfloat16 as uint16, so that the storage type alone tells them apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int32", "int64")

STORAGE: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.int16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}
ITEMSIZE = {name: storage.itemsize for name, storage in STORAGE.items()}

# Spacing of 1.0, largest finite value and smallest positive value of each type.
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}


def accumulator(dtype: str) -> str:
    """Return the type in which products and sums of `dtype` are formed."""
    return "float64" if dtype == "float64" else "float32"


def widen(storage: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return the float64 values of a storage array; integer arguments come back as they are."""
    if dtype in INTEGERS:
        return storage
    if dtype == "float16":
        return storage.view(np.float16).astype(np.float64)
    if dtype == "bfloat16":
        return (storage.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return storage.astype(np.float64)


def narrow(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    """Round float64 values once to `dtype`, to nearest and ties to even, and return the storage array."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "float16":
            return np.asarray(values, np.float16).view(np.int16)
        if dtype == "bfloat16":
            return _to_bfloat16(np.asarray(values, np.float64))
        return np.asarray(values, STORAGE[dtype])


def _to_bfloat16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    # Round float64 -> float32 to odd first, so that the second rounding sees every discarded bit.
    widened = single.astype(np.float64)
    inexact = np.isfinite(values) & np.isfinite(widened) & (widened != values)
    toward_zero = np.where(inexact & (np.abs(widened) > np.abs(values)), bits - np.uint32(1), bits)
    odd = np.where(inexact, toward_zero | np.uint32(1), bits)
    rounded = (odd + np.uint32(0x7FFF) + ((odd >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(single), quiet_nan, rounded).astype(np.uint16)
