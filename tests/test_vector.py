"""The vectors of the CPU kernels: compiled code and plain Python agree on every operation and storage type."""

from __future__ import annotations

import platform

import numba
import numpy as np
import pytest

from dynk.kernels.common import vector
from dynk.kernels.common.dtypes import FLOATS, STORAGE, narrow, widen

SIZE = 128
MASKS = {"none": 0, "first": 1, "some": 0b10110, "edge": 0b11111100, "all": -1}

each_dtype = pytest.mark.parametrize("dtype", FLOATS)
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def numbers(dtype, seed=0):
    """Return small integers, of which every sum of products is exact in every type."""
    values = np.random.default_rng(seed).integers(-4, 5, SIZE)
    return narrow(values.astype(np.float64), dtype)


def agree(function, *arrays):
    """Run a function compiled and as plain Python on copies of the arrays; return the arrays."""
    results = []
    for run in (numba.njit(function), function):
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]
        run(*copies)
        results.append(copies)
    for compiled, plain in zip(*results, strict=True):
        np.testing.assert_array_equal(compiled, plain)
    return results[0]


def arithmetic(a, b, out, mask):
    starts = (0, vector.lanes(a))
    x, y = vector.load(a, starts), vector.broadcast(b, vector.shift(starts, 1))
    z = vector.load(b, vector.spaced(vector.opaque(2), 16, (0, 1)))
    done = vector.fma(x, y, vector.where(mask, vector.add(x, z), vector.mul(x, z)))
    vector.store(out, starts, done)
    single = vector.dot(x, y, (vector.zeros(a, 0),))[0]
    vector.store(out, 32, vector.add(single, vector.zipped(x[0], x[1], 0)))
    vector.store(out, 48, vector.zipped(x[0], x[1], 1))
    out[64] = out[65] if vector.total(single) > 0 else out[66]


@each_dtype
@each_mask
def test_arithmetic(dtype, mask):
    a, b = numbers(dtype), numbers(dtype, 1)
    out = agree(arithmetic, a, b, numbers(dtype, 2), mask)[2]
    size = vector.lanes(a)
    x, y, z = (widen(v, dtype)[:size] for v in (a, b, b[2:]))
    chosen = np.array([mask >> lane & 1 for lane in range(size)], bool)
    expected = x * y[1] + np.where(chosen, x + z, x * z)
    np.testing.assert_array_equal(widen(out, dtype)[:size], expected)


def slid(source, out, by):
    low, high = vector.load(source, (0, 1)), vector.load(source, (20, 21))
    vector.store(out, (0, 32), vector.slid(low, high, by))


def unzipped(source, out):
    low, high = vector.load(source, (0, 1)), vector.load(source, (20, 21))
    vector.store(out, (0, 32), vector.unzipped(low, high, 0))
    vector.store(out, (16, 48), vector.unzipped(low, high, 1))


@each_dtype
def test_unzipped(dtype):
    source = numbers(dtype)
    out, size = agree(unzipped, source, numbers(dtype, 1))[1], vector.lanes(source)
    for first, start in ((0, 0), (1, 32)):
        both = np.concatenate([source[first : first + size], source[20 + first : 20 + first + size]])
        np.testing.assert_array_equal(out[start : start + size], both[::2])
        np.testing.assert_array_equal(out[start + 16 : start + 16 + size], both[1::2])


def turned(source, out, sums):
    size = vector.lanes(source)
    vector.turn(source, 1, 17, out, 2, 16)
    vector.turn(source, 0, size, sums, 1, size)


@each_dtype
def test_turned(dtype):
    source, empty = narrow(np.random.default_rng(0).integers(-9, 9, 300).astype(np.float64), dtype), np.zeros(300)
    _, out, sums = agree(turned, source, narrow(empty, dtype), empty)
    size = vector.lanes(source)
    square = np.lib.stride_tricks.as_strided(source[1:], (size, size), (17 * source.itemsize, source.itemsize))
    np.testing.assert_array_equal(out[2 : 2 + 16 * size].reshape(size, 16)[:, :size], square.T)
    np.testing.assert_array_equal(
        sums[1 : 1 + size * size], widen(source, dtype)[: size * size].reshape(size, -1).T.ravel()
    )


@each_dtype
@pytest.mark.parametrize("by", range(8))
def test_slid(dtype, by):
    source = numbers(dtype)
    out, size = agree(slid, source, numbers(dtype, 1), by)[1], vector.lanes(source)
    np.testing.assert_array_equal(out[:size], np.concatenate([source[:size], source[20:]])[by : by + size])


def roots(source, out):
    pack = (0, 1)
    x, three = vector.load(source, pack), vector.filled(source, pack, 3.0)
    vector.store(out, pack, vector.div(vector.add(vector.sqrt(vector.mul(x, x)), three), three))


@each_dtype
def test_roots_and_quotients(dtype):
    source = numbers(dtype)
    out, size = (
        agree(roots, source, numbers("float64" if dtype == "float64" else "float32", 1))[1],
        vector.lanes(source),
    )
    x = widen(source, dtype)[1 : size + 1].astype(out.dtype)
    np.testing.assert_array_equal(out[1 : size + 1], (np.abs(x) + 3) / 3)


def doubtful(source, out):
    vector.store(out, (0, vector.lanes(source)), vector.zero_or_nan(vector.load(source, (0, 1))))


@each_dtype
def test_lanes_that_are_not_finite(dtype):
    source = numbers(dtype)
    source[2:5] = narrow(np.array([np.nan, np.inf, -np.inf]), dtype)
    out, size = agree(doubtful, source, numbers(dtype, 1))[1], vector.lanes(source)
    expected = np.where(np.isfinite(widen(source, dtype)), 0, np.nan)
    np.testing.assert_array_equal(widen(out, dtype)[: 2 * size], np.append(expected[:size], expected[1 : size + 1]))


def summed(source, sums):
    vector.accumulate(sums, (0, 20), vector.load(source, (3, 5)))
    vector.accumulate(sums, (0, 20), vector.load(source, (7, 9)))


@each_dtype
def test_sums_in_float64(dtype):
    source, size = numbers(dtype), vector.lanes(numbers(dtype))
    sums = agree(summed, source, np.zeros(40))[1]
    x = widen(source, dtype).astype(np.float64)
    np.testing.assert_array_equal(sums[:size], x[3 : 3 + size] + x[7 : 7 + size])
    np.testing.assert_array_equal(sums[20 : 20 + size], x[5 : 5 + size] + x[9 : 9 + size])


def inside(source, masks, low, high):
    masks[0], masks[1] = vector.within(vector.load(source, (0, 1)), low, high)


@each_dtype
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 0.0), (1.0, -1.0), (-np.inf, np.inf)])
def test_lanes_within_two_numbers(dtype, low, high):
    source = numbers(dtype)
    source[1:4] = narrow(np.array([np.nan, np.inf, 0.0]), dtype)
    masks = agree(inside, source, np.zeros(2, np.int64), low, high)[1]
    x = widen(source, dtype)
    for first in (0, 1):
        own = x[first : first + vector.lanes(source)]
        assert masks[first] == sum(1 << lane for lane in np.flatnonzero((own >= low) & (own <= high)).tolist())


def masked(source, out, step, mask):
    vector.store_where(out, 3, step, vector.load_where(source, 5, step, mask), mask)


@each_dtype
@each_mask
@pytest.mark.parametrize("step", [1, 2, 3])
def test_masks_and_steps(dtype, mask, step):
    source, before = numbers(dtype), numbers(dtype, 1)
    out = agree(masked, source, before, step, mask)[1]
    expected = before.copy()
    for lane in range(vector.lanes(source)):
        if mask >> lane & 1:
            expected[3 + lane * step] = source[5 + lane * step]
    np.testing.assert_array_equal(out, expected)


def looked_up(source, places, out):
    tables = vector.load(source, (0, 1, 30))
    vector.store(out, (0, 16, 32), vector.looked_up(tables, places, (2, 20, 21)))


@each_dtype
def test_looked_up(dtype):
    source, out = numbers(dtype), numbers(dtype, 1)
    size = vector.lanes(source)
    places = np.random.default_rng(2).integers(0, size, 40).astype(np.int32)
    out = agree(looked_up, source, places, out)[2]
    for to, table, at in ((0, 0, 2), (16, 1, 20), (32, 30, 21)):
        np.testing.assert_array_equal(out[to : to + size], source[table + places[at : at + size]])


@numba.njit
def _flagged(like, flags):  # type: ignore[no-untyped-def]
    return vector.flagged(like, flags, 3, (1, 4, 5)), vector.flagged(like, flags, 4, 4)


@each_dtype
def test_flagged(dtype):
    like, flags = numbers(dtype), np.random.default_rng(0).integers(0, 8, 20).astype(np.int32)
    masks = [
        sum(1 << lane for lane in range(vector.lanes(like)) if flags[at + lane] & bits == bits)
        for at, bits in ((3, 1), (3, 4), (3, 5), (4, 4))
    ]
    assert _flagged(like, flags) == _flagged.py_func(like, flags) == (tuple(masks[:3]), masks[3])


def pointed(source, out, offsets, mask):
    values = vector.gather(source, (5, 7), offsets, 3, mask)
    vector.scatter(out, 2, offsets, 3, vector.add(values[0], values[1]), mask)


@each_dtype
@each_mask
def test_elements_at_offsets(dtype, mask):
    source, before = numbers(dtype), numbers(dtype, 1)
    offsets = np.random.default_rng(2).permutation(SIZE - 7)[: 3 + vector.lanes(source)]
    out = agree(pointed, source, before, offsets, mask)[1]
    expected = widen(before, dtype)
    wide = widen(source, dtype)
    for lane in range(vector.lanes(source)):
        if mask >> lane & 1:
            expected[2 + offsets[3 + lane]] = wide[5 + offsets[3 + lane]] + wide[7 + offsets[3 + lane]]
    np.testing.assert_array_equal(widen(out, dtype), expected)


def all_products(a, b, out):
    size = vector.lanes(a)
    rows, columns = vector.broadcast(a, (0, 1, 2)), vector.load(b, (0, size))
    sums = vector.outer(rows, columns, vector.load(out, vector.spaced(0, 16, (0, 1, 2, 3, 4, 5))))
    vector.store(out, vector.spaced(0, 16, (0, 1, 2, 3, 4, 5)), sums)


@each_dtype
def test_products_of_all_with_all(dtype):
    a, b, before = numbers(dtype), numbers(dtype, 1), numbers(dtype, 2)
    out = agree(all_products, a, b, before)[2]
    size = vector.lanes(a)
    x, y, z = (widen(v, dtype) for v in (a, b, before))
    for k in range(6):
        column = slice(k % 2 * size, (k % 2 + 1) * size)
        expected = z[16 * k : 16 * k + size] + x[k // 2] * y[column]
        np.testing.assert_array_equal(widen(out, dtype)[16 * k : 16 * k + size], expected)


def tail(source, out, count):
    mask = vector.between(0, count)
    vector.store_where(out, out.size - count, 1, vector.load_where(source, source.size - count, 1, mask), mask)


@each_dtype
def test_lanes_beyond_an_array_are_not_touched(dtype):
    agree(tail, numbers(dtype), numbers(dtype, 1), 3)


def left_out(source, out, mask):
    x = vector.load(source, 0)
    vector.store(out, 0, vector.where(mask, vector.fma(x, x, x), vector.zeros(source, 0)))


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_a_mask_excludes_does_not_leak(dtype, value):
    source = numbers(dtype)
    source[1] = narrow(np.array([value]), dtype)[0]
    out = agree(left_out, source, numbers(dtype), ~2)[1]
    assert np.isfinite(widen(out, dtype)).all()


@each_dtype
def test_stores_round_as_scalars_do(dtype):
    accumulator = np.float64 if dtype == "float64" else np.float32
    rng = np.random.default_rng(0)
    values = np.append(rng.standard_normal(13), [np.nan, np.inf, 1e-42]).astype(accumulator)

    def convert(values, out):
        for start in range(0, 16, vector.lanes(values)):
            vector.store(out, start, vector.load(values, start))

    out = agree(convert, values, np.zeros(16, STORAGE[dtype]))[1]
    np.testing.assert_array_equal(widen(out, dtype), widen(narrow(values.astype(np.float64), dtype), dtype))


def streamed(source, out, first):
    for k in range(2):
        vector.stream(out, first + k * vector.lanes(out), vector.load(source, k * vector.lanes(out)))
    vector.drain()


@each_dtype
@pytest.mark.parametrize("first", range(9))
def test_writes_past_the_caches_are_the_same(dtype, first):
    """At every alignment to their pieces of 16 bytes."""
    source, before = numbers(dtype), numbers(dtype, 1)
    out = agree(streamed, source, before, first)[1]
    count = 2 * vector.lanes(out)
    np.testing.assert_array_equal(out[first : first + count], source[:count])
    np.testing.assert_array_equal(
        np.delete(out, range(first, first + count)), np.delete(before, range(first, first + count))
    )


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for an instruction of x86")
def test_writes_past_the_caches_are_in_the_machine_code():
    compiled = numba.njit(streamed)
    compiled(numbers("float32"), numbers("float32"), 0)
    (code,) = compiled.inspect_asm().values()
    assert "movnt" in code


def fetched(source, out):
    for at in (-(10**9), 0, 10**9):
        vector.prefetch(source, at)
    vector.store(out, 0, vector.load(source, 0))


@each_dtype
def test_what_is_fetched_ahead_may_lie_anywhere(dtype):
    source = numbers(dtype)
    out = agree(fetched, source, numbers(dtype, 1))[1]
    np.testing.assert_array_equal(out[: vector.lanes(out)], source[: vector.lanes(out)])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for an instruction of x86")
def test_fetching_ahead_is_in_the_machine_code():
    compiled = numba.njit(fetched)
    compiled(numbers("float32"), numbers("float32"))
    (code,) = compiled.inspect_asm().values()
    assert "prefetch" in code


@pytest.mark.parametrize(
    ("first", "last", "lanes"),
    [
        (0, 3, {0, 1, 2}),
        (-5, 1, {0}),
        (2, 2, set()),
        (4, 3, set()),
        (14, 40, {14, 15}),
        (66, 70, set()),
        (65, 2**40 + 3, set()),
        (-(2**40), 2**40, set(range(16))),
    ],
)
def test_between(first, last, lanes):
    for function in (vector.between, numba.njit(lambda a, b: vector.between(a, b))):
        assert {lane for lane in range(16) if function(first, last) >> lane & 1} == lanes


def test_plain_python_checks_its_indices():
    with pytest.raises(IndexError, match="vector: elements"):
        vector.load(np.zeros(20, np.float32), 5)
    with pytest.raises(IndexError, match="vector: elements"):
        vector.store_where(np.zeros(20, np.float32), -1, 1, np.zeros(16, np.float32), 1)


@numba.njit
def _of_both(masks):  # type: ignore[no-untyped-def]
    return vector.masked(vector.pick(masks, (0, 1)), masks[2])


def test_masked_keeps_the_lanes_that_are_in_both():
    masks = np.array([0b1100, 0b1010, 0b0110], np.int64)
    assert _of_both(masks) == vector.masked((0b1100, 0b1010), 0b0110) == (0b0100, 0b0010)
