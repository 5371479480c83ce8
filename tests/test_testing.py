"""The error bound bites: planted errors are caught in every dtype, and what is right passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dynk.decoupled import DDF, FILTER_NORM
from dynk.kernels.common.dtypes import EPS, FLOATS, LARGEST, accumulator
from dynk.testing import ERROR_FACTOR, Call, assert_close, rounded, strategies, values

Array = npt.NDArray[np.float64]
each_dtype = pytest.mark.parametrize("dtype", FLOATS)

# What is one precision too low for each type: an error that a kernel may make by converting too early.
COARSER = {"float64": "float32", "float32": "bfloat16", "float16": "bfloat16"}


def random_call(dtype: str, *, k: int = 3, H: int = 11, W: int = 13) -> Call:
    rng = np.random.default_rng(5)
    shapes = (2, 4, H, W), (2, 2, k, k, H, W), (2, 4, k, k)
    return Call(DDF, tuple(rounded(rng.standard_normal(shape), dtype) for shape in shapes), {})


def norm_call(dtype: str, eps: float) -> Call:
    f = rounded(np.random.default_rng(6).standard_normal((4, 5, 3, 3)), dtype)
    return Call(FILTER_NORM, (f, None, None), {"axes": (2, 3), "eps": eps})


def changed(call: Call, index: int, change: Callable[[Any], Any]) -> Array:
    """Return the exact output of a call of which one array is not what it should be."""
    arrays = [values(a) for a in call.arrays]
    arrays[index] = change(arrays[index])
    return Call(call.op, tuple(arrays), call.options).expected_forward()[0]


# ---- planted errors --------------------------------------------------------------------------------------------------


def dropped_tap(dtype: str) -> tuple[Call, Array]:
    def drop(channel: Array) -> Array:
        channel[0, 0, 2, 1] = 0.0
        return channel

    call = random_call(dtype)
    return call, changed(call, 2, drop)


def shifted_taps(dtype: str) -> tuple[Call, Array]:
    call = random_call(dtype)
    return call, changed(call, 2, lambda channel: np.roll(channel, 1, axis=-1))


def flipped_kernel(dtype: str) -> tuple[Call, Array]:
    call = random_call(dtype)
    return call, changed(call, 2, lambda channel: channel[..., ::-1, ::-1].copy())


def border_repeated(dtype: str) -> tuple[Call, Array]:
    """The image is continued by its border pixels, not by 0."""
    call = random_call(dtype)
    x, spatial, channel = map(values, call.arrays)
    around = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded = np.pad(x, around, "edge"), np.pad(spatial, ((0, 0), (0, 0), *around)), channel
    return call, Call(DDF, padded, {}).expected_forward()[0][:, :, 1:-1, 1:-1]


def wrong_group(dtype: str) -> tuple[Call, Array]:
    """Channel c uses group c % G, not c // (C/G)."""
    call = random_call(dtype)
    order = [0, 2, 1, 3]
    x, spatial, channel = map(values, call.arrays)
    out = Call(DDF, (x[:, order], spatial, channel[:, order]), {}).expected_forward()[0]
    return call, out[:, order]


def deviation_of_the_population(dtype: str) -> tuple[Call, Array]:
    call = norm_call(dtype, 0.0)
    return call, call.expected_forward()[0] * np.sqrt(9 / 8)


def eps_under_the_root(dtype: str) -> tuple[Call, Array]:
    call = norm_call(dtype, 0.1)
    f = values(call.arrays[0])
    centred = f - f.mean((2, 3), keepdims=True)
    return call, centred / np.sqrt(f.var((2, 3), ddof=1, keepdims=True) + 0.1)


def eps_forgotten(dtype: str) -> tuple[Call, Array]:
    return norm_call(dtype, 0.1), norm_call(dtype, 0.0).expected_forward()[0]


PLANTED = [
    dropped_tap,
    shifted_taps,
    flipped_kernel,
    border_repeated,
    wrong_group,
    deviation_of_the_population,
    eps_under_the_root,
    eps_forgotten,
]


@each_dtype
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_error_is_caught(plant: Callable[[str], tuple[Call, Array]], dtype: str) -> None:
    call, wrong = plant(dtype)
    expected, magnitude = call.expected_forward()
    assert_close(rounded(expected, dtype), expected, magnitude)
    with pytest.raises(AssertionError, match="elements of"):
        assert_close(rounded(wrong, dtype), expected, magnitude)


@pytest.mark.parametrize("dtype", COARSER)
def test_an_input_rounded_too_coarsely_is_caught(dtype: str) -> None:
    call = random_call(dtype)
    wrong = changed(call, 0, lambda x: values(rounded(x, COARSER[dtype])))
    with pytest.raises(AssertionError):
        assert_close(rounded(wrong, dtype), *call.expected_forward())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_formed_in_the_half_type_are_caught(dtype: str) -> None:
    call = random_call(dtype, k=5)
    x, spatial, channel = map(values, call.arrays)
    total = np.zeros(call.plan.out_shape)
    for i in range(5):
        for j in range(5):
            one = np.zeros_like(channel)
            one[..., i, j] = channel[..., i, j]
            total = values(rounded(total + Call(DDF, (x, spatial, one), {}).expected_forward()[0], dtype))
    with pytest.raises(AssertionError):
        assert_close(rounded(total, dtype), *call.expected_forward())


@each_dtype
def test_a_result_two_spacings_off_is_caught_where_nothing_cancels(dtype: str) -> None:
    """Beyond the rounding of the result the bound grants the sum's own error only: none of it shows in a half type."""
    spacings = 2.5 if dtype in ("float16", "bfloat16") else ERROR_FACTOR + 2
    off = rounded([1.0 + spacings * EPS[dtype] * 1.2], dtype)
    with pytest.raises(AssertionError):
        assert_close(off, [1.0], [1.0])
    assert_close(rounded([1.0 + EPS[dtype]], dtype), [1.0], [1.0])


# ---- NaN, infinity, overflow -----------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (np.inf, np.nan),
        (np.nan, np.inf),
        (-np.inf, np.inf),
        (np.nan, 1.0),
        (np.inf, 1.0),
        (1.0, np.nan),
        (1.0, np.inf),
        (60000.0, np.inf),
    ],
)
def test_nan_and_infinity_must_meet_their_like(dtype: str, got: float, expected: float) -> None:
    for magnitude in (1.0, expected):
        with pytest.raises(AssertionError):
            assert_close(rounded([got], dtype), [expected], [abs(magnitude)])


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_that_are_right_pass(dtype: str, value: float) -> None:
    assert_close(rounded([value], dtype), [value], [abs(value)])


@each_dtype
def test_overflow_is_accepted_only_near_the_end_of_the_range(dtype: str) -> None:
    infinite = rounded([np.inf], dtype)
    assert_close(infinite, [LARGEST[dtype]], [LARGEST[dtype]])
    with pytest.raises(AssertionError):
        assert_close(infinite, [LARGEST[dtype] / 2], [LARGEST[dtype] / 2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_terms_beyond_the_accumulator_may_overflow(dtype: str) -> None:
    """inf - inf on the way to a finite sum; a half type's terms are summed in float32."""
    beyond = 4 * LARGEST[accumulator(dtype)]
    assert_close(rounded([np.nan], dtype), [1.0], [beyond])


# ---- the bound itself ------------------------------------------------------------------------------------------------


@each_dtype
def test_the_bound_scales_with_the_condition_of_the_sum(dtype: str) -> None:
    """1 computed from terms of 2**20 may be off by what a sum of terms of 1 may not."""
    condition = 2.0**20
    error = 4 * EPS[accumulator(dtype)] * condition
    computed = rounded([1.0 + max(error, 4 * EPS[dtype])], dtype)
    with pytest.raises(AssertionError):
        assert_close(computed, [1.0], [1e-3])
    if error >= 4 * EPS[dtype]:
        assert_close(computed, [1.0], [condition])


def test_the_shape_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"grad: shape \(2, 1\), expected \(2,\)"):
        assert_close(np.ones((2, 1)), [1.0, 1.0], [1.0, 1.0], what="grad")


def test_the_message_names_the_worst_element() -> None:
    computed = np.array([[1.0, 1.1], [1.5, 1.0]])
    with pytest.raises(AssertionError, match=r"result: 2 of 4 elements of float64 \(2, 2\) .* \(1, 0\): got .*1\.5"):
        assert_close(computed, np.ones((2, 2)), 1.0)


def test_an_error_beside_a_nan_is_not_hidden() -> None:
    with pytest.raises(AssertionError, match=r"1 of 2"):
        assert_close(np.array([np.nan, 2.0]), [np.nan, 1.0], [np.nan, 1.0])


# ---- strategies ------------------------------------------------------------------------------------------------------


@each_dtype
@given(data=st.data())
def test_arrays_keep_their_promises(dtype: str, data: st.DataObject) -> None:
    nan, infinity = data.draw(st.booleans()), data.draw(st.booleans())
    array = data.draw(strategies.arrays(dtype, (3, 4, 5), allow_nan=nan, allow_infinity=infinity))
    assert array.dtype.name == dtype
    assert array.shape == (3, 4, 5)
    assert nan or not np.isnan(values(array)).any()
    assert infinity or not np.isinf(values(array)).any()


@pytest.mark.parametrize("layout", strategies.LAYOUTS)
def test_a_layout_changes_no_value(layout: str) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(strategies.LAYOUTS[layout](array), array)


def test_layouts_are_what_they_are_called() -> None:
    laid_out = {name: layout(np.ones((2, 3, 4))) for name, layout in strategies.LAYOUTS.items()}
    assert not laid_out["read-only"].flags.writeable
    assert min(laid_out["reversed"].strides) < 0
    assert [name for name, a in laid_out.items() if a.flags.c_contiguous] == ["contiguous", "read-only"]


def test_calls_reach_what_a_kernel_must_not_get_wrong() -> None:
    drawn: list[Call] = []

    @settings(max_examples=400, derandomize=True, database=None, phases=[Phase.generate])
    @given(strategies.calls("ddf", "float32", allow_nan=True, allow_infinity=True))
    def draw(call: Call) -> None:
        drawn.append(call)

    draw()
    geometries = [call.plan.geometry for call in drawn]
    assert {(call.arrays[1] is None, call.arrays[2] is None) for call in drawn} == {
        (False, False),
        (False, True),
        (True, False),
    }
    assert {call.options["combine"] for call in drawn} == {"mul", "add"}
    assert {g.kh for g in geometries} == {g.kw for g in geometries} == set(range(1, 8))
    assert {g.N for g in geometries} == {0, 1, 2, 3}
    assert max(g.W for g in geometries) > 64
    assert max(g.H for g in geometries) > 64
    assert max(g.C for g in geometries) > 64
    assert any(1 < g.G < g.C for g in geometries)
    assert any(g.kh != g.kw for g in geometries)
    assert any(g.stride_h != g.stride_w for g in geometries)
    assert any(g.dilation_h > g.H for g in geometries)
    images = [call.arrays[0] for call in drawn]
    assert any(np.isnan(x).any() and np.isinf(x).any() for x in images)
    assert any(not x.flags.c_contiguous for x in images)
    assert any(not x.flags.writeable for x in images)
