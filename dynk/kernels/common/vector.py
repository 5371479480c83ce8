"""Explicit vectors for CPU kernels: storage type in memory, accumulator type in registers.

A *vector* holds `lanes(array)` numbers of the accumulator type, float32 or float64. LLVM lowers it to as many registers
as the processor needs, so the same kernel is right and vectorised on AVX-512, AVX2 and NEON. A *pack* is a tuple of
vectors, one for each channel, or whatever a kernel takes several of at once. Every operation takes numbers and tuples
of them alike: what is a tuple is worked through element by element, what is not is shared.

A *mask* is an integer whose bit l says whether lane l takes part. Lanes that do not are neither read nor written, and
`where` keeps what they hold out of a result, NaN and infinity included.

Each function is plain Python, which runs when the compiler is off and takes NumPy arrays for vectors; kernels get the
code that `vector_llvm` makes for it. There indices are checked in Numba's bounds-checking mode only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import repeat, starmap
from typing import Any

import numpy as np
from numba import types

from dynk.kernels.common import numeric, vector_llvm
from dynk.kernels.common.dtypes import FLOATS, STORAGE, narrow, widen
from dynk.kernels.common.vector_types import LANES, lowered, vector_of


def _each(function: Callable[..., Any], *arguments: Any) -> Any:
    """Apply a function of numbers or vectors to tuples of them too."""
    size = next((len(a) for a in arguments if isinstance(a, tuple)), 0)
    if size == 0:
        return function(*arguments)
    elements = (a if isinstance(a, tuple) else repeat(a, size) for a in arguments)
    return tuple(starmap(function, zip(*elements, strict=True)))


def _index(*_: Any) -> Any:
    return types.intp


def _nothing(*_: Any) -> Any:
    return types.void


def _as_first(*arguments: Any) -> Any:
    return arguments[0]


def _as_second(*arguments: Any) -> Any:
    return arguments[1]


# ---- indices and masks -----------------------------------------------------------------------------------------------


@lowered(vector_llvm.lanes, _index)
def lanes(array: Any) -> Any:
    """Return the number of lanes of the vectors that `array` is read in."""
    return LANES["float64" if array.dtype == np.float64 else "float32"]


@lowered(vector_llvm.between, _index)
def between(first: Any, last: Any) -> Any:
    """Return the mask of the lanes first <= l < last; both may lie outside the vector."""

    def mask(first: int, last: int) -> int:
        first, last = min(max(first, 0), 32), min(max(last, 0), 32)
        return 0 if last <= first else (1 << last) - (1 << first)

    return _each(mask, first, last)


@lowered(vector_llvm.shift, _index)
def shift(start: Any, by: Any) -> Any:
    """Return start + by."""
    return _each(lambda start, by: start + by, start, by)


@lowered(vector_llvm.opaque, _index)
def opaque(i: Any) -> Any:
    """Return i, of which the compiler then knows nothing: it does not form more places in advance than it can hold."""
    return i


@lowered(vector_llvm.spaced, _index)
def spaced(first: Any, step: Any, number: Any) -> Any:
    """Return first + step * number."""
    return _each(lambda first, step, number: first + step * number, first, step, number)


@lowered(vector_llvm.pick, _index)
def pick(array: Any, i: Any) -> Any:
    """Return element `i` of an array of indices or masks."""
    return _each(lambda i: array[i], i)


@lowered(vector_llvm.masked, _index)
def masked(mask: Any, other: Any) -> Any:
    """Return the mask of the lanes that are in both."""
    return _each(lambda mask, other: mask & other, mask, other)


@lowered(vector_llvm.flagged, _index)
def flagged(array: Any, flags: Any, i: Any, bits: Any) -> Any:
    """Return the mask of the lanes of a vector of `array` whose int32 flags, from `i` on, have all of some bits."""

    def read(i: Any, bits: Any) -> int:
        size = lanes(array)
        chosen = _elements(flags, i, 1, _chosen(-1, size))
        return sum(1 << lane for lane in range(size) if flags[chosen[lane]] & bits == bits)

    return _each(read, i, bits)


# ---- memory ----------------------------------------------------------------------------------------------------------


@lowered(vector_llvm.zeros, vector_of)
def zeros(array: Any, i: Any) -> Any:
    """Return zeros in the form in which `load(array, i)` returns its elements."""
    return _each(lambda _: np.zeros(lanes(array), _accumulator(array)), i)


@lowered(vector_llvm.broadcast, vector_of)
def broadcast(array: Any, i: Any) -> Any:
    """Return element `i` in every lane."""
    return _each(lambda i: np.full(lanes(array), numeric.load(array, i), _accumulator(array)), i)


@lowered(vector_llvm.load, vector_of)
def load(array: Any, i: Any) -> Any:
    """Return the elements from `i` on."""
    return load_where(array, i, 1, -1)


@lowered(vector_llvm.filled, vector_of)
def filled(array: Any, i: Any, number: Any) -> Any:
    """Return a float64 number in every lane, in the form in which `load(array, i)` returns its elements."""
    return _each(lambda i, number: np.full(lanes(array), number, _accumulator(array)), i, number)


@lowered(vector_llvm.load_where, vector_of)
def load_where(array: Any, i: Any, step: Any, mask: Any) -> Any:
    """Return every `step`-th element from `i` on, 0 in the lanes that `mask` excludes."""

    def read(i: Any, mask: Any) -> Any:
        chosen = _chosen(mask, lanes(array))
        result = np.zeros(lanes(array), _accumulator(array))
        result[chosen] = widen(array[_elements(array, i, step, chosen)], _DTYPE_OF[array.dtype])
        return result

    return _each(read, i, mask)


@lowered(vector_llvm.store, _nothing)
def store(array: Any, i: Any, value: Any) -> None:
    """Write the elements from `i` on, rounded to the storage type."""

    def write(i: Any, value: Any) -> None:
        _write(array, i, 1, value, -1)

    _each(write, i, value)


@lowered(vector_llvm.accumulate, _nothing)
def accumulate(sums: Any, i: Any, value: Any) -> None:
    """Add a vector to the float64 elements from `i` on."""

    def add_to(i: Any, value: Any) -> None:
        sums[_elements(sums, i, 1, _chosen(-1, value.size))] += value

    _each(_ieee(add_to), i, value)


# A result that is larger is written past the caches, which would have to read it first and could not keep it.
STREAM_BYTES = 32 << 20


@lowered(vector_llvm.stream, _nothing)
def stream(array: Any, i: Any, value: Any) -> None:
    """Write as `store` does, but past the caches where the place is aligned; `drain` must follow."""
    store(array, i, value)


@lowered(vector_llvm.drain, _nothing)
def drain() -> None:
    """Wait until what was written past the caches is seen by every thread."""


@lowered(vector_llvm.prefetch, _nothing)
def prefetch(array: Any, i: Any) -> None:
    """Have the caches fetch element `i`, which may lie anywhere, for a load to come."""


@lowered(vector_llvm.store_where, _nothing)
def store_where(array: Any, i: Any, step: Any, value: Any, mask: Any) -> None:
    """Write every `step`-th element from `i` on, in the lanes that `mask` includes."""
    _each(lambda i, value, mask: _write(array, i, step, value, mask), i, value, mask)


def _write(array: Any, i: Any, step: Any, value: Any, mask: Any) -> None:
    chosen = _chosen(mask, value.size)
    array[_elements(array, i, step, chosen)] = narrow(value[chosen].astype(np.float64), _DTYPE_OF[array.dtype])


_DTYPE_OF = {STORAGE[name]: name for name in FLOATS}


@lowered(vector_llvm.gather, vector_of)
def gather(array: Any, start: Any, offsets: Any, at: Any, mask: Any) -> Any:
    """Return for each lane l the element start + offsets[at + l], 0 in the lanes that `mask` excludes."""

    def read(start: Any, at: Any, mask: Any) -> Any:
        chosen, elements = _pointed(array, start, offsets, at, mask)
        result = np.zeros(lanes(array), _accumulator(array))
        result[chosen] = widen(array[elements], _DTYPE_OF[array.dtype])
        return result

    return _each(read, start, at, mask)


@lowered(vector_llvm.scatter, _nothing)
def scatter(array: Any, start: Any, offsets: Any, at: Any, value: Any, mask: Any) -> None:
    """Write for each lane l that `mask` includes the element start + offsets[at + l]."""

    def write(start: Any, at: Any, value: Any, mask: Any) -> None:
        chosen, elements = _pointed(array, start, offsets, at, mask)
        array[elements] = narrow(value[chosen].astype(np.float64), _DTYPE_OF[array.dtype])

    _each(write, start, at, value, mask)


def _accumulator(array: Any) -> type:
    return np.float64 if array.dtype == np.float64 else np.float32


@cache
def _chosen(mask: Any, size: Any) -> Any:
    """Return the lanes of a mask."""
    return np.array([lane for lane in range(size) if mask >> lane & 1], np.int64)


def _elements(array: Any, i: Any, step: Any, chosen: Any) -> Any:
    """Return the elements that lanes stand for."""
    return _checked(array, i + step * chosen)


def _pointed(array: Any, start: Any, offsets: Any, at: Any, mask: Any) -> tuple[Any, Any]:
    """Return the lanes of a mask and the elements that their offsets stand for."""
    chosen = _chosen(mask, lanes(array))
    return chosen, _checked(array, start + offsets[at + chosen])


def _checked(array: Any, elements: Any) -> Any:
    if elements.size and not 0 <= elements.min() <= elements.max() < array.size:
        msg = f"vector: elements {elements.min()} to {elements.max()} of an array of {array.size}"
        raise IndexError(msg)
    return elements


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _ieee(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that follows IEEE arithmetic without warnings, as compiled code does."""

    def silent(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return silent


@lowered(vector_llvm.add, _as_second)
def add(a: Any, b: Any) -> Any:
    """Return a + b."""
    return _each(_ieee(np.add), a, b)


@lowered(vector_llvm.mul, _as_second)
def mul(a: Any, b: Any) -> Any:
    """Return a * b."""
    return _each(_ieee(np.multiply), a, b)


@lowered(vector_llvm.div, _as_second)
def div(a: Any, b: Any) -> Any:
    """Return a / b."""
    return _each(_ieee(np.divide), a, b)


@lowered(vector_llvm.sqrt, lambda a: a)
def sqrt(a: Any) -> Any:
    """Return the square root of a."""
    return _each(_ieee(np.sqrt), a)


@lowered(vector_llvm.within, _index)
def within(a: Any, low: Any, high: Any) -> Any:
    """Return the mask of the lanes low <= a <= high, numbers of float64; NaN is not."""

    def inside(a: Any) -> int:
        return sum(1 << lane for lane in range(a.size) if a.dtype.type(low) <= a[lane] <= a.dtype.type(high))

    return _each(inside, a)


@lowered(vector_llvm.zero_or_nan, lambda a: a)
def zero_or_nan(a: Any) -> Any:
    """Return 0 in the lanes that are finite, NaN in the others."""
    return _each(_ieee(lambda a: a - a), a)


@lowered(vector_llvm.fma, _as_second)
def fma(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the processor can."""
    return _each(_ieee(lambda a, b, c: a * b + c), a, b, c)


@lowered(vector_llvm.where, _as_second)
def where(mask: Any, a: Any, b: Any) -> Any:
    """Return a in the lanes of the mask, b in the others."""

    def one(mask: Any, a: Any, b: Any) -> Any:
        result, chosen = b.copy(), _chosen(mask, a.size)
        result[chosen] = a[chosen]
        return result

    return _each(one, mask, a, b)


@lowered(vector_llvm.zipped, _as_second)
def zipped(even: Any, odd: Any, upper: Any) -> Any:
    """Return the lanes of two vectors in turn: those of their lower or of their upper halves."""

    def one(even: Any, odd: Any) -> Any:
        half = even.size // 2
        return np.stack([even, odd], 1).reshape(2, -1)[1 if upper else 0][: 2 * half]

    return _each(one, even, odd)


@lowered(vector_llvm.unzipped, _as_second)
def unzipped(low: Any, high: Any, odd: Any) -> Any:
    """Return the even or the odd lanes of two vectors that follow each other."""
    return _each(lambda low, high: np.concatenate([low, high])[1 if odd else 0 :: 2], low, high)


@lowered(vector_llvm.looked_up, _as_first)
def looked_up(table: Any, places: Any, i: Any) -> Any:
    """Return for each lane l the lane places[i + l] of a vector; `places` are int32."""

    def one(table: Any, i: Any) -> Any:
        return table[_checked(table, places[_elements(places, i, 1, _chosen(-1, table.size))])]

    return _each(one, table, i)


@lowered(vector_llvm.turn, _nothing)
def turn(source: Any, i: Any, step: Any, out: Any, to: Any, to_step: Any) -> None:
    """Transpose as many vectors as one has lanes, `step` elements apart from `i` on.

    What is written is `to_step` elements apart from `to` on.
    """
    square = np.stack([load(source, i + k * step) for k in range(lanes(source))])
    for k, lane in enumerate(square.T):
        store(out, to + k * to_step, lane)


@lowered(vector_llvm.slid, _as_second)
def slid(low: Any, high: Any, by: Any) -> Any:
    """Return the vector that begins `by` lanes into `low` and goes on into `high`; 0 <= by < 8.

    Where the compiler knows `by`, that is one instruction, cheaper than a load across the lines of a cache.
    """
    return _each(lambda low, high: np.concatenate([low, high])[by : by + low.size], low, high)


@lowered(vector_llvm.dot, lambda a, b, c: c, packed=True)
def dot(a: Any, b: Any, c: Any) -> Any:
    """Return each vector of pack c plus the sum of a * b over its share of their vectors, in their order."""
    share = len(a) // len(c)
    sums = list(c)
    for k, product in enumerate(zip(a, b, strict=True)):
        sums[k // share] = fma(*product, sums[k // share])
    return tuple(sums)


@lowered(vector_llvm.outer, lambda a, b, c: c, packed=True)
def outer(a: Any, b: Any, c: Any) -> Any:
    """Return pack c plus the products of every vector of pack a with every vector of pack b, row by row."""
    pairs = [(one, other) for one in a for other in b]
    return tuple(fma(*pair, total) for pair, total in zip(pairs, c, strict=True))


@lowered(vector_llvm.total, lambda a: a.dtype)
def total(a: Any) -> Any:
    """Return the sum of a vector's lanes: halves onto each other."""
    return _each(_total, a)


def _total(a: Any) -> Any:
    while a.size > 1:
        a = add(a[: a.size // 2], a[a.size // 2 :])
    return a[0]
