"""What the launchers of CUDA C kernels share: the names of types in C++, index widths and launch shapes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

# dtype to the type of an element, and to the type in which it is summed
ELEMENT = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float", "float64": "double"}
ACCUMULATOR = {"float16": "float", "bfloat16": "float", "float32": "float", "float64": "double"}
INDEX: dict[np.dtype[Any], str] = {np.dtype(np.int32): "int", np.dtype(np.int64): "long long"}

WARP = 32
THREADS = 256  # of a block at most, as the kernels' launch bounds say
MAX_BLOCK_Z = 64  # of a block's threads along z, CUDA's limit
MAX_TAPS = 49  # taps that a thread can hold in registers; kernels of more are compiled for any size
MAX_EDGES = 19  # kh + kw: a thread holds numbers for each row and column too
BUSY = 2**17  # threads that keep a large GPU busy: sums are split until there are so many
CHAIN = 64  # terms added one after the other before chains are merged

# Beyond the last element a block may still compute this many indices.
_MARGIN = 2**13


def divide_up(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // divisor)


def power_of_two(number: int) -> int:
    """Return the largest power of two that is at most `number`."""
    return 1 << (number.bit_length() - 1)


def index_dtype(*extents: int) -> np.dtype[Any]:
    """Return int32 where every element count and coordinate fits it, else int64."""
    return np.dtype(np.int32 if max(extents) + _MARGIN < 2**31 else np.int64)


def levels(terms: int) -> int:
    """Return the template argument LEVELS of `Chains` for a sum of so many terms."""
    return 1 if terms <= CHAIN else 2 if terms <= CHAIN**2 else 3


def kernel_size(kh: int, kw: int, most: int = MAX_TAPS) -> tuple[int, int]:
    """Return the size that a kernel is compiled for, 0 x 0 for any: no thread may hold more than its registers."""
    return (kh, kw) if kh * kw <= most and kh + kw <= MAX_EDGES else (0, 0)


def tile(height: int, width: int, threads: int) -> tuple[int, int]:
    """Return the (x, y) extents of a block of at most `threads` threads over a plane: a warp along x, if it is wide."""
    x = min(WARP, threads, 1 << (width - 1).bit_length())
    y = min(threads // x, 1 << (height - 1).bit_length())
    return x, y


@lru_cache(maxsize=4096)
def by_value(numbers: tuple[int, ...], index: np.dtype[Any]) -> Any:
    """Return integers as a struct that a kernel takes by value."""
    packed = np.array(tuple(numbers), index)
    return packed.view(np.dtype((np.void, packed.nbytes)))[0]


def sum_partials(cuda: Any, source: str, dtype: str, partial: Any, out: Any, elements: int, parts: int) -> None:
    """Write the sums over the parts of partial (parts, elements) to `out`."""
    index = index_dtype(parts * elements)
    lanes = 1 if parts < WARP else WARP
    grid = (divide_up(elements * lanes, THREADS),)
    expression = f"sum_partials<{ELEMENT[dtype]}, {INDEX[index]}, {lanes}>"
    cuda.launch(source, expression, grid, (THREADS,), (partial, out, index.type(elements), index.type(parts)))
