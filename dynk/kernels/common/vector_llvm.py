"""The LLVM side of `vector`: the code of each operation, for one element of each pack among the arguments."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from dynk.kernels.common.compile import config
from dynk.kernels.common.vector_types import LANES, vector_of

_WORD = ir.IntType(64)
_PIECE = 16  # bytes of a write past the caches, and their alignment: that of any allocator


# ---- parts -----------------------------------------------------------------------------------------------------------


def _i32(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def _integers(numbers: list[int], width: int = 32) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(width), len(numbers)), numbers)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _spread(builder: Any, value: Any, count: int) -> Any:
    kind = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _i32(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _integers([0] * count))


def _bits(builder: Any, mask: Any, count: int) -> Any:
    return builder.bitcast(builder.trunc(mask, ir.IntType(count)), ir.VectorType(ir.IntType(1), count))


def _storage(array: Any) -> tuple[Any, str, int]:
    """Return the LLVM vector of stored elements, its name and the alignment of its elements."""
    count, size = vector_of(array).lanes, array.dtype.bitwidth
    if size == 16:
        return ir.VectorType(ir.IntType(16), count), f"v{count}i16", 2
    return vector_of(array).ir, f"v{count}f{size}", size // 8


def _pointer(context: Any, builder: Any, array: Any, data: Any, i: Any) -> Any:
    return builder.gep(context.make_array(array)(context, builder, data).data, [i])


def _vector_pointer(context: Any, builder: Any, array: Any, data: Any, i: Any, count: int = 0) -> Any:
    kind = _storage(array)[0]
    kind = ir.VectorType(kind.element, count or kind.count)
    return builder.bitcast(_pointer(context, builder, array, data, i), kind.as_pointer())


def _pointers(context: Any, builder: Any, array: Any, data: Any, i: Any, step: Any) -> Any:
    """Return a vector of pointers to every `step`-th element."""
    count = vector_of(array).lanes
    start = builder.ptrtoint(_pointer(context, builder, array, data, i), _WORD)
    step_bytes = builder.mul(step, ir.Constant(_WORD, array.dtype.bitwidth // 8))
    steps = builder.mul(_integers(list(range(count)), 64), _spread(builder, step_bytes, count))
    kind = _pointer(context, builder, array, data, i).type
    return builder.inttoptr(builder.add(_spread(builder, start, count), steps), ir.VectorType(kind, count))


def _check(context: Any, builder: Any, array: Any, data: Any, i: Any, step: Any, mask: Any) -> None:
    """Raise IndexError where a lane of the mask is outside the array, in the bounds-checking mode."""
    if not config.BOUNDSCHECK:
        return
    (size,) = cgutils.unpack_tuple(builder, context.make_array(array)(context, builder, data).shape)
    for lane in range(max(LANES.values())):
        taken = builder.trunc(builder.lshr(mask, ir.Constant(_WORD, lane)), ir.IntType(1))
        element = builder.add(i, builder.mul(step, ir.Constant(_WORD, lane)))
        outside = builder.icmp_unsigned(">=", element, size)
        with builder.if_then(builder.and_(taken, outside)):
            context.call_conv.return_user_exc(builder, IndexError, ("vector: index out of bounds",))


def _lanes_of(count: int) -> Any:
    """Return the mask of all lanes of a vector."""
    return ir.Constant(_WORD, (1 << count) - 1)


def _widened(builder: Any, array: Any, value: Any) -> Any:
    """Convert stored elements to the accumulator type."""
    count = value.type.count
    singles = ir.VectorType(ir.FloatType(), count)
    if array.dtype == types.int16:
        return builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), count)), singles)
    if array.dtype == types.uint16:
        words = builder.zext(value, ir.VectorType(ir.IntType(32), count))
        return builder.bitcast(builder.shl(words, _integers([16] * count)), singles)
    return value


def _narrowed(builder: Any, array: Any, value: Any) -> Any:
    """Round accumulators to the storage type, to nearest and ties to even."""
    count = value.type.count
    if isinstance(value.type.element, ir.DoubleType) and array.dtype != types.float64:
        value = builder.fptrunc(value, ir.VectorType(ir.FloatType(), count))
    shorts = ir.VectorType(ir.IntType(16), count)
    if array.dtype == types.int16:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), count)), shorts)
    if array.dtype != types.uint16:
        return value
    bits = builder.bitcast(value, ir.VectorType(ir.IntType(32), count))
    high = builder.lshr(bits, _integers([16] * count))
    tie_to_even = builder.and_(high, _integers([1] * count))
    sum_of_all = builder.add(builder.add(bits, _integers([0x7FFF] * count)), tie_to_even)
    rounded = builder.lshr(sum_of_all, _integers([16] * count))
    quiet_nan = builder.or_(high, _integers([0x40] * count))
    return builder.trunc(builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, rounded), shorts)


# ---- memory ----------------------------------------------------------------------------------------------------------


def lanes(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return ir.Constant(_WORD, vector_of(kinds[0]).lanes)


def zeros(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return ir.Constant(vector_of(kinds[0]).ir, None)


def broadcast(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array = kinds[0]
    _check(context, builder, array, values[0], values[1], ir.Constant(_WORD, 1), ir.Constant(_WORD, 1))
    element = builder.load(_pointer(context, builder, array, *values))
    return _widened(builder, array, _spread(builder, element, vector_of(array).lanes))


def load(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array = kinds[0]
    _check(context, builder, array, values[0], values[1], ir.Constant(_WORD, 1), _lanes_of(vector_of(array).lanes))
    loaded = builder.load(_vector_pointer(context, builder, array, *values), align=_storage(array)[2])
    return _widened(builder, array, loaded)


def filled(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    kind = vector_of(kinds[0]).ir
    _, _, number = values
    return _spread(
        builder, number if number.type == kind.element else builder.fptrunc(number, kind.element), kind.count
    )


def load_where(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array, (data, i, step, mask) = kinds[0], values
    kind, name, align = _storage(array)
    _check(context, builder, array, data, i, step, builder.and_(mask, _lanes_of(kind.count)))
    rest = [_i32(align), _bits(builder, mask, kind.count), ir.Constant(kind, None)]
    with builder.if_else(builder.icmp_signed("==", step, ir.Constant(_WORD, 1))) as (then, otherwise):
        with then:
            pointer = _vector_pointer(context, builder, array, data, i)
            together, block = _call(builder, f"llvm.masked.load.{name}.p0", kind, [pointer, *rest]), builder.block
        with otherwise:
            pointers = _pointers(context, builder, array, data, i, step)
            apart = _call(builder, f"llvm.masked.gather.{name}.v{kind.count}p0", kind, [pointers, *rest])
            other_block = builder.block
    loaded = builder.phi(kind)
    loaded.add_incoming(together, block)
    loaded.add_incoming(apart, other_block)
    return _widened(builder, array, loaded)


def store(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i, value) = kinds[0], values
    _check(context, builder, array, data, i, ir.Constant(_WORD, 1), _lanes_of(value.type.count))
    pointer = _vector_pointer(context, builder, array, data, i, value.type.count)
    builder.store(_narrowed(builder, array, value), pointer, align=_storage(array)[2])


def accumulate(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (sums, i, value) = kinds[0], values
    _check(context, builder, array, sums, i, ir.Constant(_WORD, 1), _lanes_of(value.type.count))
    pointer = _vector_pointer(context, builder, array, sums, i, value.type.count)
    kind, align = pointer.type.pointee, array.dtype.bitwidth // 8
    widened = value if value.type == kind else builder.fpext(value, kind)
    builder.store(builder.fadd(builder.load(pointer, align=align), widened), pointer, align=align)


def stream(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i, value) = kinds[0], values
    _check(context, builder, array, data, i, ir.Constant(_WORD, 1), _lanes_of(value.type.count))
    stored = _narrowed(builder, array, value)
    pointer = _vector_pointer(context, builder, array, data, i)
    place = builder.and_(builder.ptrtoint(pointer, _WORD), ir.Constant(_WORD, _PIECE - 1))
    aligned = builder.icmp_unsigned("==", place, ir.Constant(_WORD, 0))
    with builder.if_else(aligned) as (then, otherwise):
        with then:
            count = _PIECE * 8 // array.dtype.bitwidth
            first = builder.bitcast(pointer, ir.VectorType(stored.type.element, count).as_pointer())
            hint = builder.module.add_metadata([_i32(1)])
            for k in range(stored.type.count // count):
                lanes = _integers(list(range(k * count, (k + 1) * count)))
                piece = builder.shuffle_vector(stored, stored, lanes)
                builder.store(piece, builder.gep(first, [_i32(k)]), align=_PIECE).set_metadata("nontemporal", hint)
        with otherwise:
            builder.store(stored, pointer, align=_storage(array)[2])


def drain(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    builder.fence("seq_cst")


def prefetch(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i) = kinds[0], values
    pointer = builder.bitcast(_pointer(context, builder, array, data, i), ir.IntType(8).as_pointer())
    _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, _i32(0), _i32(3), _i32(1)])


def store_where(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (data, i, step, value, mask) = kinds[0], values
    kind, name, align = _storage(array)
    _check(context, builder, array, data, i, step, builder.and_(mask, _lanes_of(kind.count)))
    stored, rest = _narrowed(builder, array, value), [_i32(align), _bits(builder, mask, kind.count)]
    with builder.if_else(builder.icmp_signed("==", step, ir.Constant(_WORD, 1))) as (then, otherwise):
        with then:
            pointer = _vector_pointer(context, builder, array, data, i)
            _call(builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), [stored, pointer, *rest])
        with otherwise:
            pointers = _pointers(context, builder, array, data, i, step)
            scatter = f"llvm.masked.scatter.{name}.v{kind.count}p0"
            _call(builder, scatter, ir.VoidType(), [stored, pointers, *rest])


def gather(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    array, (*_, mask) = kinds[0], values
    kind, name, align = _storage(array)
    rest = [_i32(align), _bits(builder, mask, kind.count), ir.Constant(kind, None)]
    pointers = _pointed(context, builder, kinds, values[:4], mask)
    return _widened(
        builder, array, _call(builder, f"llvm.masked.gather.{name}.v{kind.count}p0", kind, [pointers, *rest])
    )


def scatter(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    array, (*_, value, mask) = kinds[0], values
    kind, name, align = _storage(array)
    pointers = _pointed(context, builder, kinds, values[:4], mask)
    rest = [pointers, _i32(align), _bits(builder, mask, kind.count)]
    stored = _narrowed(builder, array, value)
    _call(builder, f"llvm.masked.scatter.{name}.v{kind.count}p0", ir.VoidType(), [stored, *rest])


def _pointed(context: Any, builder: Any, kinds: Any, values: Any, mask: Any) -> Any:
    """Return a vector of pointers to the elements at start + offsets[at + lane]."""
    array, offsets, (data, start, table, at) = kinds[0], kinds[2], values
    count = vector_of(array).lanes
    one, every = ir.Constant(_WORD, 1), _lanes_of(count)
    _check(context, builder, offsets, table, at, one, every)
    words = ir.VectorType(_WORD, count)
    place = builder.bitcast(_pointer(context, builder, offsets, table, at), words.as_pointer())
    steps = builder.load(place, align=8)
    if config.BOUNDSCHECK:
        for lane in range(count):
            element = builder.add(start, builder.extract_element(steps, _i32(lane)))
            own = builder.and_(builder.lshr(mask, ir.Constant(_WORD, lane)), one)
            _check(context, builder, array, data, element, one, own)
    first = _pointer(context, builder, array, data, start)
    step_bytes = builder.mul(steps, _integers([array.dtype.bitwidth // 8] * count, 64))
    addresses = builder.add(_spread(builder, builder.ptrtoint(first, _WORD), count), step_bytes)
    return builder.inttoptr(addresses, ir.VectorType(first.type, count))


def flagged(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    (_, flags, i, bits), count = values, vector_of(kinds[0]).lanes
    loaded = _integers_at(context, builder, kinds[1], flags, i, count)
    wanted = _spread(builder, builder.trunc(bits, ir.IntType(32)), count)
    has_all = builder.icmp_signed("==", builder.and_(loaded, wanted), wanted)
    return builder.zext(builder.bitcast(has_all, ir.IntType(count)), _WORD)


def looked_up(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    table, places, i = values
    count = table.type.count
    loaded = _integers_at(context, builder, kinds[1], places, i, count)
    if "+avx512f" in context.codegen().magic_tuple()[2]:
        is_double = isinstance(table.type.element, ir.DoubleType)
        if is_double:
            loaded = builder.zext(loaded, ir.VectorType(_WORD, count))
        return _call(builder, f"llvm.x86.avx512.permvar.{'df' if is_double else 'sf'}.512", table.type, [table, loaded])
    # Elsewhere it is a table in memory.
    result = ir.Constant(table.type, ir.Undefined)
    for lane in range(count):
        element = builder.extract_element(table, builder.extract_element(loaded, _i32(lane)))
        result = builder.insert_element(result, element, _i32(lane))
    return result


def _integers_at(context: Any, builder: Any, array: Any, data: Any, i: Any, count: int) -> Any:
    """Return `count` elements of an int32 array."""
    _check(context, builder, array, data, i, ir.Constant(_WORD, 1), _lanes_of(count))
    kind = ir.VectorType(ir.IntType(32), count)
    return builder.load(builder.bitcast(_pointer(context, builder, array, data, i), kind.as_pointer()), align=4)


# ---- indices and masks -----------------------------------------------------------------------------------------------


def between(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    zero, one, most = (ir.Constant(_WORD, number) for number in (0, 1, 32))  # a shift by 64 is undefined
    ends = []
    for end in values:
        least = builder.select(builder.icmp_signed("<", end, zero), zero, end)
        ends.append(builder.select(builder.icmp_signed(">", least, most), most, least))
    mask = builder.sub(builder.shl(one, ends[1]), builder.shl(one, ends[0]))
    return builder.select(builder.icmp_signed("<", *ends), mask, zero)


def shift(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.add(*values)


def opaque(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    nothing = ir.InlineAsm(ir.FunctionType(_WORD, [_WORD]), "", "=r,0")  # instructions, but a result in a register
    return builder.call(nothing, values)


def masked(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.and_(*values)


def pick(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    _check(context, builder, kinds[0], values[0], values[1], ir.Constant(_WORD, 1), ir.Constant(_WORD, 1))
    return builder.load(_pointer(context, builder, kinds[0], *values))


def spaced(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.add(values[0], builder.mul(values[1], values[2]))


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def add(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.fadd(*values)


def mul(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.fmul(*values)


def div(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.fdiv(*values)


def sqrt(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    (a,) = values
    name = "f64" if isinstance(a.type.element, ir.DoubleType) else "f32"
    return _call(builder, f"llvm.sqrt.v{a.type.count}{name}", a.type, [a])


def within(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    value, *ends = values
    kind = value.type
    if isinstance(kind.element, ir.FloatType):
        ends = [builder.fptrunc(end, kind.element) for end in ends]
    low, high = (_spread(builder, end, kind.count) for end in ends)
    is_in = builder.and_(builder.fcmp_ordered("<=", low, value), builder.fcmp_ordered("<=", value, high))
    return builder.zext(builder.bitcast(is_in, ir.IntType(kind.count)), _WORD)


def zero_or_nan(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.fsub(values[0], values[0])


def fma(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    # Not llvm.fma, which is a call to a slow function where the processor has no such instruction.
    kind = values[0].type
    name = "f64" if isinstance(kind.element, ir.DoubleType) else "f32"
    return _call(builder, f"llvm.fmuladd.v{kind.count}{name}", kind, list(values))


def dot(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    a, b, c = values
    size, count = kinds[0].count, kinds[2].count
    sums = [builder.extract_value(c, k) for k in range(count)]
    for k in range(size):
        product = [builder.extract_value(a, k), builder.extract_value(b, k), sums[k * count // size]]
        sums[k * count // size] = fma(context, builder, kinds, product)
    return context.make_tuple(builder, kinds[2], sums)


def outer(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    a, b, c = values
    width = kinds[1].count
    sums = []
    for k in range(kinds[2].count):
        product = [
            builder.extract_value(a, k // width),
            builder.extract_value(b, k % width),
            builder.extract_value(c, k),
        ]
        sums.append(fma(context, builder, kinds, product))
    return context.make_tuple(builder, kinds[2], sums)


def where(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    return builder.select(_bits(builder, values[0], values[1].type.count), *values[1:])


def zipped(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    even, odd, upper = values
    count = even.type.count
    halves = [
        builder.shuffle_vector(even, odd, _integers([k // 2 + k % 2 * count for k in range(first, first + count)]))
        for first in (0, count)
    ]
    return builder.select(builder.icmp_signed("!=", upper, ir.Constant(_WORD, 0)), *reversed(halves))


def unzipped(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    low, high, odd = values
    count = low.type.count
    parts = [builder.shuffle_vector(low, high, _integers(list(range(first, 2 * count, 2)))) for first in (0, 1)]
    return builder.select(builder.icmp_signed("!=", odd, ir.Constant(_WORD, 0)), *reversed(parts))


def turn(context: Any, builder: Any, kinds: Any, values: Any) -> None:
    source, array = kinds[0], kinds[3]
    data, i, step, out, to, to_step = values
    count = vector_of(source).lanes
    rows = []
    for _ in range(count):
        rows.append(load(context, builder, kinds, [data, i]))
        i = builder.add(i, step)
    halves = [_integers([k // 2 + k % 2 * count for k in range(first, first + count)]) for first in (0, count)]
    for _ in range(count.bit_length() - 1):  # as cards are shuffled
        pairs = zip(rows[: count // 2], rows[count // 2 :], strict=True)
        rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in halves]
    for row in rows:
        value = row
        if array.dtype == types.float64 and isinstance(row.type.element, ir.FloatType):
            value = builder.fpext(row, ir.VectorType(ir.DoubleType(), count))
        store(context, builder, [array], [out, to, value])
        to = builder.add(to, to_step)


def slid(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    low, high, by = values
    result = low
    for k in range(1, 8):
        moved = builder.shuffle_vector(low, high, _integers(list(range(k, k + low.type.count))))
        result = builder.select(builder.icmp_signed("==", by, ir.Constant(_WORD, k)), moved, result)
    return result


def total(context: Any, builder: Any, kinds: Any, values: Any) -> Any:
    (value,) = values
    while value.type.count > 1:
        half = value.type.count // 2
        low, high = (builder.shuffle_vector(value, value, _integers(list(range(k, k + half)))) for k in (0, half))
        value = builder.fadd(low, high)
    return builder.extract_element(value, _i32(0))
