"""Where the taps of a kernel start in a scope that is larger than it, for the layers of the adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def uniform_grid(kernel: int, scope: int) -> Array:
    """Return the points of an axis of the scope at which the taps of a kernel start, from one end to the other."""
    return np.linspace(0, scope - 1, kernel) if kernel > 1 else np.array([(scope - 1) / 2])


def grid_offsets(kernel: tuple[int, int], scope: tuple[int, int]) -> Array:
    """Return the offsets (kh, kw, 2) that put the taps of a kernel on the uniform grid."""
    moved: Any = [uniform_grid(k, s) - np.arange(k) - (s - k) / 2 for k, s in zip(kernel, scope, strict=True)]
    return np.stack(np.meshgrid(*moved, indexing="ij"), -1)


def sampling(kernel: int, scope: int) -> tuple[Array, Array]:
    """Return the matrix that samples an axis of the scope on the uniform grid, and its smallest right inverse."""
    matrix = np.maximum(0, 1 - abs(uniform_grid(kernel, scope)[:, None] - np.arange(scope)))
    return matrix, np.linalg.pinv(matrix)
