"""Philox4x32-10, the counter-based random number generator, for every backend that is written in Python.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A block of four 32-bit words is a
function of a 128-bit counter and a 64-bit key and of nothing else, so that any element's number can be drawn by itself.

One source serves NumPy arrays, Numba's CPU compiler and Numba CUDA: words are held in 64-bit unsigned integers, whose
products cannot overflow. `philox.cuh` is its counterpart in CUDA C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynk.kernels.common.compile import inlined

ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

# An element's number is 52 bits: the first word above the upper 20 bits of the second, and a half.
_ABOVE, _DROPPED = np.uint64(20), np.uint64(12)
_STEP = 2.0**-52


def make(compiler: Callable[[Callable[..., Any]], Any]) -> tuple[Any, Any]:
    """Return `block` and `uniform` as a compiler makes them.

    block(c0, c1, c2, c3, k0, k1) -> the four words of a counter and a key, each a word in a uint64.

    uniform(index, k0, k1) -> the float64 of counter (index low, index high, 0, 0): (m + 1/2) / 2**52 with an integer m
    of 52 bits, so that it is exact, and neither 0 nor 1.
    """

    @compiler
    def block(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
        for _ in range(ROUNDS):
            product_0 = _MULTIPLIER_0 * c0
            product_1 = _MULTIPLIER_1 * c2
            c0 = (product_1 >> _HALF) ^ c1 ^ k0
            c1 = product_1 & _LOW
            c2 = (product_0 >> _HALF) ^ c3 ^ k1
            c3 = product_0 & _LOW
            k0 = (k0 + _WEYL_0) & _LOW
            k1 = (k1 + _WEYL_1) & _LOW
        return c0, c1, c2, c3

    @compiler
    def uniform(index, k0, k1):  # type: ignore[no-untyped-def]
        zero = index & np.uint64(0)
        first, second, _, _ = block(index & _LOW, index >> _HALF, zero, zero, k0, k1)
        return (((first << _ABOVE) | (second >> _DROPPED)) + 0.5) * _STEP

    return block, uniform


def _as_it_is(function: Callable[..., Any]) -> Any:
    return function


array_block, array_uniform = make(_as_it_is)
block, uniform = make(inlined)
