"""Explicit vectors for CPU kernels: storage type in memory, accumulator type in registers.

A *vector* holds `lanes(array)` numbers of the accumulator type, float32 or float64. LLVM lowers it to as many registers
as the processor needs, so the same kernel is right and vectorised on AVX-512, AVX2 and NEON. A *pack* is a tuple of
vectors, one for each channel (or whatever a kernel takes several of at once). Every operation takes vectors and packs
alike: what is a tuple is worked through element by element, what is not is shared.

A *mask* is an integer whose bit l says whether lane l takes part. Lanes that do not are neither read nor written, and
`where` keeps what they hold out of a result, NaN and infinity included.

Each function is plain Python, which runs when the compiler is off, and an overload that kernels compile. There a vector
is a NumPy array. Indices must not be negative. Overloads check them only in Numba's bounds-checking mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.datamodel import models

from dynk.kernels.common import numeric
from dynk.kernels.common.compile import config, inlined
from dynk.kernels.common.dtypes import narrow, widen
from dynk.kernels.common.numeric import DTYPE_OF_STORAGE

# Numba is typed in part only.
intrinsic: Any = extending.intrinsic
overload: Any = extending.overload

LANES = {"float32": 16, "float64": 8}  # 64 bytes


# ---- plain Python ----------------------------------------------------------------------------------------------------


def _each(function: Callable[..., Any], *arguments: Any) -> Any:
    """Apply a function of vectors to packs."""
    sizes = {len(a) for a in arguments if isinstance(a, tuple)}
    if not sizes:
        return function(*arguments)
    (size,) = sizes
    return tuple(function(*(a[k] if isinstance(a, tuple) else a for a in arguments)) for k in range(size))


def lanes(array: Any) -> Any:
    """Return the number of lanes of the vectors that `array` is read in."""
    return LANES["float64" if array.dtype == np.float64 else "float32"]


@extending.register_jitable
def between(first, last):  # type: ignore[no-untyped-def]
    """Return the mask of the lanes first <= l < last; both may lie outside the vector."""
    first, last = max(first, 0), max(last, 0)
    return 0 if last <= first else (1 << min(last, 32)) - (1 << first)


def shift(starts: Any, by: Any) -> Any:
    """Add an integer to an index or to each of a tuple of indices."""
    return _each(lambda start: start + by, starts)


def spaced(first: Any, step: Any, numbers: Any) -> Any:
    """Return first + step * number, for a number or each of a tuple."""
    return _each(lambda number: first + step * number, numbers)


def zeros(array: Any, starts: Any) -> Any:
    """Return zero vectors in the form in which `load(array, starts)` returns vectors."""
    return _each(lambda _: np.zeros(lanes(array), _accumulator(array)), starts)


def broadcast(array: Any, i: Any) -> Any:
    """Return element `i` in every lane."""
    return _each(lambda i: np.full(lanes(array), numeric.load(array, i), _accumulator(array)), i)


def load(array: Any, i: Any) -> Any:
    """Return the elements from `i` on."""
    return _each(lambda i: _gather(array, i, 1, -1), i)


def load_where(array: Any, i: Any, step: Any, mask: Any) -> Any:
    """Return every `step`-th element from `i` on, 0 in the lanes that `mask` excludes."""
    return _each(lambda i: _gather(array, i, step, mask), i)


def store(array: Any, i: Any, value: Any) -> None:
    """Write the elements from `i` on, rounded once to the storage type."""
    _each(lambda i, value: _scatter(array, i, 1, value, -1), i, value)


def store_where(array: Any, i: Any, step: Any, value: Any, mask: Any) -> None:
    """Write every `step`-th element from `i` on, in the lanes that `mask` includes."""
    _each(lambda i, value: _scatter(array, i, step, value, mask), i, value)


def store_pairs(array: Any, i: Any, even: Any, odd: Any, count: Any) -> None:
    """Write the first `count` lanes of `even` and `odd` in turn from `i` on."""

    def write(i: Any, even: Any, odd: Any) -> None:
        _scatter(array, i, 2, even, between(0, count))
        _scatter(array, i + 1, 2, odd, between(0, count))

    _each(write, i, even, odd)


def add(a: Any, b: Any) -> Any:
    """Return a + b."""
    return _each(_silently(np.add), a, b)


def mul(a: Any, b: Any) -> Any:
    """Return a * b."""
    return _each(_silently(np.multiply), a, b)


def fma(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the processor can."""
    return _each(_silently(lambda a, b, c: a * b + c), a, b, c)


def dot(a: Any, b: Any, total: Any) -> Any:
    """Return total + the sum of a * b over the vectors of packs, in their order."""
    for product in zip(*(v if isinstance(v, tuple) else (v,) for v in (a, b)), strict=True):
        total = fma(*product, total)
    return total


def where(mask: Any, a: Any, b: Any) -> Any:
    """Return a in the lanes of the mask, b in the others."""
    return _each(lambda a, b: np.where([mask >> lane & 1 for lane in range(a.size)], a, b), a, b)


def total(a: Any) -> Any:
    """Return the sum of a vector's lanes: halves onto each other."""
    while a.size > 1:
        a = add(a[: a.size // 2], a[a.size // 2 :])
    return a[0]


def _accumulator(array: Any) -> type:
    return np.float64 if array.dtype == np.float64 else np.float32


def _dtype(array: Any) -> str:
    return DTYPE_OF_STORAGE.get(array.dtype, array.dtype.name)


def _silently(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that follows IEEE arithmetic without a warning, as compiled code does."""

    def silent(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return silent


def _indices(array: Any, i: Any, step: Any, mask: Any) -> tuple[Any, Any]:
    """Return the lanes of a mask and the elements that they stand for."""
    chosen = np.array([lane for lane in range(lanes(array)) if mask >> lane & 1], np.int64)
    elements = i + step * chosen
    if chosen.size and not 0 <= elements.min() <= elements.max() < array.size:
        msg = f"vector: elements {elements.min()} to {elements.max()} of an array of {array.size}"
        raise IndexError(msg)
    return chosen, elements


def _gather(array: Any, i: Any, step: Any, mask: Any) -> Any:
    chosen, elements = _indices(array, i, step, mask)
    result = np.zeros(lanes(array), _accumulator(array))
    result[chosen] = widen(array[elements], _dtype(array))
    return result


def _scatter(array: Any, i: Any, step: Any, value: Any, mask: Any) -> None:
    chosen, elements = _indices(array, i, step, mask)
    array[elements] = narrow(value[chosen].astype(np.float64), _dtype(array))


# ---- compiled: types and lifting -------------------------------------------------------------------------------------


class VectorType(types.Type):  # type: ignore[misc]
    """Numba's type of a vector."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = LANES[dtype.name]
        super().__init__(name=f"vector({dtype}, {self.lanes})")

    @property
    def ir(self) -> Any:
        """Return the type in LLVM."""
        return ir.VectorType(ir.DoubleType() if self.dtype == types.float64 else ir.FloatType(), self.lanes)


@extending.register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.ir)


def _vector_of(array: Any) -> VectorType:
    return VectorType(types.float64 if array.dtype == types.float64 else types.float32)


def _lift(generate: Callable[..., Any], result: Any, *arguments: Any) -> Any:
    """Return the signature and the code generator of an intrinsic that works through packs.

    `generate(context, builder, kinds, values)` returns the value for one element; `result` is its type.
    """
    tuples = [a for a in arguments if isinstance(a, types.BaseTuple)]
    size = len(tuples[0]) if tuples else 0
    if any(len(t) != size for t in tuples):
        msg = "packs must be of one size"
        raise TypeError(msg)
    taken = [_word(a) for a in arguments]
    returned = types.UniTuple(result, size) if tuples and result != types.void else result

    def generate_all(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = [a.dtype if isinstance(a, types.UniTuple) else a for a in signature.args]
        if not tuples:
            done = generate(context, builder, kinds, values)
            return context.get_dummy_value() if result == types.void else done
        parts = []
        for k in range(size):
            picked = (
                builder.extract_value(value, k) if isinstance(a, types.UniTuple) else value
                for a, value in zip(signature.args, values, strict=True)
            )
            parts.append(generate(context, builder, kinds, list(picked)))
        return context.get_dummy_value() if result == types.void else context.make_tuple(builder, returned, parts)

    return returned(*taken), generate_all


def _word(kind: Any) -> Any:
    """Return the type in which an argument is passed: integers as machine words."""
    if isinstance(kind, types.Integer):
        return types.intp
    if isinstance(kind, types.BaseTuple) and isinstance(kind[0], types.Integer):
        return types.UniTuple(types.intp, len(kind))
    return kind


def _element(a: Any) -> Any:
    return a.dtype if isinstance(a, types.UniTuple) else a


# ---- compiled: code for one vector -----------------------------------------------------------------------------------


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _spread(builder: Any, value: Any, count: int) -> Any:
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _i32(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _lane_numbers([0] * count))


def _i32(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def _lane_numbers(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _bits(builder: Any, mask: Any, count: int) -> Any:
    return builder.bitcast(builder.trunc(mask, ir.IntType(count)), ir.VectorType(ir.IntType(1), count))


def _storage(array: Any, count: int) -> tuple[Any, str]:
    """Return the LLVM vector of `count` stored elements and its name."""
    scalar, name = {
        types.int16: (ir.IntType(16), "i16"),
        types.uint16: (ir.IntType(16), "i16"),
        types.float32: (ir.FloatType(), "f32"),
        types.float64: (ir.DoubleType(), "f64"),
    }[array.dtype]
    return ir.VectorType(scalar, count), f"v{count}{name}"


def _pointer(context: Any, builder: Any, array: Any, value: Any, i: Any) -> Any:
    return builder.gep(context.make_array(array)(context, builder, value).data, [i])


def _pointers(context: Any, builder: Any, array: Any, value: Any, i: Any, step: Any, count: int) -> Any:
    """Return a vector of pointers to every `step`-th element."""
    word = ir.IntType(64)
    numbers = ir.Constant(ir.VectorType(word, count), list(range(count)))
    offsets = builder.add(_spread(builder, i, count), builder.mul(numbers, _spread(builder, step, count)))
    data = context.make_array(array)(context, builder, value).data
    itemsize = ir.Constant(ir.VectorType(word, count), [array.dtype.bitwidth // 8] * count)
    start = _spread(builder, builder.ptrtoint(data, word), count)
    address = builder.add(start, builder.mul(offsets, itemsize))
    return builder.inttoptr(address, ir.VectorType(data.type, count))


def _widened(builder: Any, array: Any, value: Any) -> Any:
    """Convert stored elements to the accumulator type."""
    count = value.type.count
    singles = ir.VectorType(ir.FloatType(), count)
    if array.dtype == types.int16:
        return builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), count)), singles)
    if array.dtype == types.uint16:
        words = builder.zext(value, ir.VectorType(ir.IntType(32), count))
        return builder.bitcast(builder.shl(words, _lane_numbers([16] * count)), singles)
    return value


def _narrowed(builder: Any, array: Any, value: Any) -> Any:
    """Round accumulators to the storage type."""
    count = value.type.count
    shorts = ir.VectorType(ir.IntType(16), count)
    if array.dtype == types.int16:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), count)), shorts)
    if array.dtype != types.uint16:
        return value
    bits = builder.bitcast(value, ir.VectorType(ir.IntType(32), count))
    high = builder.lshr(bits, _lane_numbers([16] * count))
    tie_to_even = builder.and_(high, _lane_numbers([1] * count))
    rounded = builder.lshr(
        builder.add(builder.add(bits, _lane_numbers([0x7FFF] * count)), tie_to_even), _lane_numbers([16] * count)
    )
    quiet_nan = builder.or_(high, _lane_numbers([0x40] * count))
    return builder.trunc(builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, rounded), shorts)


def _load_one(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array, count = kinds[0], _vector_of(kinds[0]).lanes
    pointer = _pointer(context, builder, array, *values)
    loaded = builder.load(builder.bitcast(pointer, _storage(array, count)[0].as_pointer()))
    loaded.align = array.dtype.bitwidth // 8
    return _widened(builder, array, loaded)


def _broadcast_one(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array, count = kinds[0], _vector_of(kinds[0]).lanes
    return _widened(builder, array, _spread(builder, builder.load(_pointer(context, builder, array, *values)), count))


def _load_lanes(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array, (data, i, mask) = kinds[0], values
    vector, name = _storage(array, _vector_of(array).lanes)
    pointer = builder.bitcast(_pointer(context, builder, array, data, i), vector.as_pointer())
    arguments = [pointer, _i32(array.dtype.bitwidth // 8), _bits(builder, mask, vector.count), ir.Constant(vector, None)]
    return _widened(builder, array, _call(builder, f"llvm.masked.load.{name}.p0", vector, arguments))


def _load_strided(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array, (data, i, step, mask) = kinds[0], values
    vector, name = _storage(array, _vector_of(array).lanes)
    pointers = _pointers(context, builder, array, data, i, step, vector.count)
    arguments = [pointers, _i32(array.dtype.bitwidth // 8), _bits(builder, mask, vector.count), ir.Constant(vector, None)]
    loaded = _call(builder, f"llvm.masked.gather.{name}.v{vector.count}p0", vector, arguments)
    return _widened(builder, array, loaded)


def _store_one(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i, value) = kinds[0], values
    narrow_value = _narrowed(builder, array, value)
    pointer = builder.bitcast(_pointer(context, builder, array, data, i), narrow_value.type.as_pointer())
    builder.store(narrow_value, pointer, align=array.dtype.bitwidth // 8)


def _store_lanes(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i, value, mask) = kinds[0], values
    narrow_value = _narrowed(builder, array, value)
    _, name = _storage(array, value.type.count)
    pointer = builder.bitcast(_pointer(context, builder, array, data, i), narrow_value.type.as_pointer())
    bits = _bits(builder, mask, value.type.count)
    arguments = [narrow_value, pointer, _i32(array.dtype.bitwidth // 8), bits]
    _call(builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), arguments)


def _store_strided(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i, step, value, mask) = kinds[0], values
    _, name = _storage(array, value.type.count)
    pointers = _pointers(context, builder, array, data, i, step, value.type.count)
    bits = _bits(builder, mask, value.type.count)
    arguments = [_narrowed(builder, array, value), pointers, _i32(array.dtype.bitwidth // 8), bits]
    _call(builder, f"llvm.masked.scatter.{name}.v{value.type.count}p0", ir.VoidType(), arguments)


def _zip(low: bool) -> Callable[..., Any]:
    """Return code that lays the lower or upper halves of two vectors lane by lane."""

    def generate(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
        count = kinds[0].lanes
        first = 0 if low else count // 2
        return builder.shuffle_vector(*values, _lane_numbers([first + k // 2 + k % 2 * count for k in range(count)]))

    return generate


def _where_one(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.select(_bits(builder, values[0], values[1].type.count), *values[1:])


def _fma_one(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    kind = kinds[0]  # not llvm.fma, which is a call to a slow function where the processor has no such instruction
    return _call(builder, f"llvm.fmuladd.v{kind.lanes}f{kind.dtype.bitwidth}", kind.ir, values)


def _total_one(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    (value,) = values
    while value.type.count > 1:
        half = value.type.count // 2
        low, high = (
            builder.shuffle_vector(value, value, _lane_numbers(list(range(k, k + half)))) for k in (0, half)
        )
        value = builder.fadd(low, high)
    return builder.extract_element(value, _i32(0))


# ---- compiled: intrinsics and overloads ------------------------------------------------------------------------------


def _intrinsic(arity: int, generate: Callable[..., Any], result: Callable[..., Any]) -> Any:
    """Return an intrinsic that lifts `generate`; `result` gives its type from the types of one element's arguments."""

    def typed(*arguments: Any) -> Any:
        return _lift(generate, result(*map(_element, arguments)), *arguments)

    forms: dict[int, Callable[..., Any]] = {
        1: lambda context, a: typed(a),
        2: lambda context, a, b: typed(a, b),
        3: lambda context, a, b, c: typed(a, b, c),
        4: lambda context, a, b, c, d: typed(a, b, c, d),
        5: lambda context, a, b, c, d, e: typed(a, b, c, d, e),
    }
    return intrinsic(forms[arity])


def _of_array(array: Any, *_: Any) -> Any:
    return _vector_of(array)


def _of_vectors(*arguments: Any) -> Any:
    return arguments[-1]


def _nothing(*_: Any) -> Any:
    return types.void


_load = _intrinsic(2, _load_one, _of_array)
_load_masked = _intrinsic(3, _load_lanes, _of_array)
_load_apart = _intrinsic(4, _load_strided, _of_array)
_store = _intrinsic(3, _store_one, _nothing)
_store_masked = _intrinsic(4, _store_lanes, _nothing)
_store_apart = _intrinsic(5, _store_strided, _nothing)
_zeros = _intrinsic(2, lambda context, builder, kinds, values: ir.Constant(_vector_of(kinds[0]).ir, None), _of_array)
_broadcast = _intrinsic(2, _broadcast_one, _of_array)
_shift = _intrinsic(2, lambda context, builder, kinds, values: builder.add(*values), lambda *_: types.intp)
_spaced = _intrinsic(
    3,
    lambda context, builder, kinds, values: builder.add(values[0], builder.mul(values[1], values[2])),
    lambda *_: types.intp,
)
_add = _intrinsic(2, lambda context, builder, kinds, values: builder.fadd(*values), _of_vectors)
_mul = _intrinsic(2, lambda context, builder, kinds, values: builder.fmul(*values), _of_vectors)
_fma = _intrinsic(3, _fma_one, _of_vectors)
_where = _intrinsic(3, _where_one, _of_vectors)
_total = _intrinsic(1, _total_one, lambda a: a.dtype)
_zip_low = _intrinsic(2, _zip(low=True), _of_vectors)
_zip_high = _intrinsic(2, _zip(low=False), _of_vectors)


@inlined
def _check(array, starts, step, mask):  # type: ignore[no-untyped-def]
    for start in starts:
        for lane in range(lanes(array)):
            if mask >> lane & 1 and not 0 <= start + lane * step < array.size:
                raise IndexError("vector: index out of bounds")  # noqa: EM101 - the compiler wants a constant


@inlined
def _check_one(array, start, step, mask):  # type: ignore[no-untyped-def]
    _check(array, (start,), step, mask)


@inlined
def _check_nothing(array, start, step, mask):  # type: ignore[no-untyped-def]
    pass


def _checking(i: Any) -> Any:
    """Return the check of an access at the index or indices `i`."""
    if not config.BOUNDSCHECK:
        return _check_nothing
    return _check if isinstance(i, types.BaseTuple) else _check_one


@overload(lanes)
def _lanes(array):  # type: ignore[no-untyped-def]
    count = _vector_of(array).lanes
    return lambda array: count


@overload(load)
def _load_overload(array, i):  # type: ignore[no-untyped-def]
    check = _checking(i)

    def compiled(array, i):  # type: ignore[no-untyped-def]
        check(array, i, 1, -1)
        return _load(array, i)

    return compiled


@overload(load_where)
def _load_where_overload(array, i, step, mask):  # type: ignore[no-untyped-def]
    check = _checking(i)

    def compiled(array, i, step, mask):  # type: ignore[no-untyped-def]
        check(array, i, step, mask)
        if step == 1:
            return _load_masked(array, i, mask)
        return _load_apart(array, i, step, mask)

    return compiled


@overload(store)
def _store_overload(array, i, value):  # type: ignore[no-untyped-def]
    check = _checking(i)

    def compiled(array, i, value):  # type: ignore[no-untyped-def]
        check(array, i, 1, -1)
        _store(array, i, value)

    return compiled


@overload(store_where)
def _store_where_overload(array, i, step, value, mask):  # type: ignore[no-untyped-def]
    check = _checking(i)

    def compiled(array, i, step, value, mask):  # type: ignore[no-untyped-def]
        check(array, i, step, mask)
        if step == 1:
            _store_masked(array, i, value, mask)
        else:
            _store_apart(array, i, step, value, mask)

    return compiled


@overload(store_pairs)
def _store_pairs_overload(array, i, even, odd, count):  # type: ignore[no-untyped-def]
    def compiled(array, i, even, odd, count):  # type: ignore[no-untyped-def]
        size = lanes(array)
        store_where(array, i, 1, _zip_low(even, odd), between(0, 2 * count))
        store_where(array, shift(i, size), 1, _zip_high(even, odd), between(0, 2 * count - size))

    return compiled


@overload(broadcast)
def _broadcast_overload(array, i):  # type: ignore[no-untyped-def]
    check = _checking(i)

    def compiled(array, i):  # type: ignore[no-untyped-def]
        check(array, i, 1, 1)
        return _broadcast(array, i)

    return compiled


@overload(dot)
def _dot_overload(a, b, total):  # type: ignore[no-untyped-def]
    if not isinstance(a, types.BaseTuple):
        return lambda a, b, total: _fma(a, b, total)

    def compiled(a, b, total):  # type: ignore[no-untyped-def]
        for k in range(len(a)):
            total = _fma(a[k], b[k], total)
        return total

    return compiled


overload(shift)(lambda starts, by: lambda starts, by: _shift(starts, by))
overload(spaced)(lambda first, step, numbers: lambda first, step, numbers: _spaced(first, step, numbers))
overload(zeros)(lambda array, starts: lambda array, starts: _zeros(array, starts))
overload(add)(lambda a, b: lambda a, b: _add(a, b))
overload(mul)(lambda a, b: lambda a, b: _mul(a, b))
overload(fma)(lambda a, b, c: lambda a, b, c: _fma(a, b, c))
overload(where)(lambda mask, a, b: lambda mask, a, b: _where(mask, a, b))
overload(total)(lambda a: lambda a: _total(a))
