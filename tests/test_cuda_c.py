"""The CUDA C kernels and their launch functions on the emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from emulated import EmulatedCupy
from hypothesis import given
from hypothesis import strategies as st

from dynk.decoupled import DDF, DDF_UPSAMPLE, FILTER_NORM
from dynk.kernels.common import cuda_launch
from dynk.kernels.decoupled import cupy_raw, cupy_raw_norm
from dynk.testing import Call, assert_close, rounded, strategies

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))


# The sizes are few because each is compiled for each type: an odd one, one that is even or not square, and once the
# kernels for any size.
SIZES = [
    ("float32", 3, 3),
    ("float32", 2, 4),
    ("float16", 3, 3),
    ("float16", 2, 4),
    ("bfloat16", 5, 5),
    ("bfloat16", 2, 4),
    ("float64", 3, 3),
    ("float64", 8, 7),
]
each_size = pytest.mark.parametrize(("dtype", "kh", "kw"), SIZES)


@st.composite
def filter_calls(draw: st.DrawFn, op: Any, dtype: str, kh: int, kw: int) -> Call:
    """Draw a call of a fixed kernel size, with blocks of channels that are full or not."""
    groups, in_group = draw(st.integers(1, 2)), draw(st.sampled_from([8, 9, 16]))
    N, C = draw(st.integers(1, 2 if kh * kw < 30 else 1)), groups * in_group
    H, W = draw(st.sampled_from([(7, 9), (1, 1), (2, 40), (35, 2), (5, 1)]))
    modes = [(True, True), (True, False), (False, True)]
    has_spatial, has_channel = draw(st.sampled_from(modes))
    options = {
        "dilation": (draw(st.integers(1, 3)), draw(st.integers(1, 12))),
        "combine": draw(st.sampled_from(["mul", "add"])),
    }
    if op is DDF:
        stride_h, stride_w = options["stride"] = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        subpixels, anchors = (), (-(-H // stride_h), -(-W // stride_w))
    else:
        scale = options["scale"] = draw(st.integers(1, 3 if kh * kw < 30 else 2))
        subpixels, anchors = (scale, scale), (H, W)
    special = draw(st.booleans())

    def array(*shape: int) -> Any:
        return draw(strategies.arrays(dtype, shape, allow_nan=special, allow_infinity=special))

    arrays = (
        array(N, C, H, W),
        array(N, groups, *subpixels, kh, kw, *anchors) if has_spatial else None,
        array(N, C, *subpixels, kh, kw) if has_channel else None,
    )
    return Call(op, arrays, options)


@st.composite
def norm_calls(draw: st.DrawFn, dtype: str, kh: int, kw: int) -> Call:
    """Draw a call of a fixed kernel size: spatial or channel filters, scale and shift of any broadcastable shape."""
    shape, axes = draw(
        st.sampled_from(
            [
                ((2, 3, kh, kw, 4, 5), (2, 3)),
                ((3, 5, kh, kw), (2, 3)),
                ((2, kw, 3, 2, kh, 3), (4, 1)),
                ((kh, kw), (0, 1)),
                ((0, 3, kh, kw), (2, 3)),
                ((70, 3, kh, kw), (2, 3)),
            ]
        )
    )
    special = draw(st.booleans())

    def array(shape: tuple[int, ...]) -> Any:
        return draw(strategies.arrays(dtype, shape, allow_nan=special, allow_infinity=special))

    def parameter() -> Any:
        if draw(st.booleans()):
            return None
        kept = tuple(extent if draw(st.booleans()) else 1 for extent in shape)
        return array(kept[draw(st.integers(0, len(kept))) :])

    return Call(
        FILTER_NORM,
        (array(shape), parameter(), parameter()),
        {"axes": axes, "eps": draw(st.sampled_from([1e-10, 1e-3]))},
    )


def check(call: Call, grad_out: Any) -> EmulatedCupy:
    """Assert that forward and backward on the emulator agree with the reference; return the runtime object."""
    cuda = EmulatedCupy(call.op)
    if all(array is None or array.size == 0 for array in call.arrays):
        return cuda  # such calls launch nothing
    if 0 not in call.plan.out_shape:
        assert_close(cuda.forward(call), *call.expected_forward())
    gradients = cuda.backward(call, grad_out)
    for name, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds, what=name)
    return cuda


@emulation
@each_size
@pytest.mark.parametrize("op", [DDF, DDF_UPSAMPLE], ids=lambda op: op.name)
@given(data=st.data())
def test_filters_equal_reference(op: Any, dtype: str, kh: int, kw: int, data: st.DataObject) -> None:
    call = data.draw(filter_calls(op, dtype, kh, kw))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        check(call, data.draw(strategies.grad_outs(call)))


@emulation
@each_size
@given(data=st.data())
def test_norm_equals_reference(dtype: str, kh: int, kw: int, data: st.DataObject) -> None:
    call = data.draw(norm_calls(dtype, kh, kw))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        check(call, data.draw(strategies.grad_outs(call)))


def normal(dtype: str, *shape: int) -> Any:
    return rounded(np.random.default_rng(shape).standard_normal(shape), dtype)


def check_normal(op: Any, arrays: tuple[Any, ...], **options: Any) -> EmulatedCupy:
    call = Call(op, arrays, options)
    return check(call, normal(call.plan.dtype, *call.plan.out_shape, 1)[..., 0])


@emulation
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_every_channel_may_have_its_own_group(combine: str) -> None:
    arrays = normal("float32", 2, 11, 6, 7), normal("float32", 2, 11, 3, 3, 6, 7), normal("float32", 2, 11, 3, 3)
    check_normal(DDF, arrays, combine=combine)


@emulation
def test_channels_of_a_small_group_are_summed_in_two_slices() -> None:
    check_normal(
        DDF, (normal("float32", 1, 5, 6, 7), normal("float32", 1, 1, 3, 3, 6, 7), normal("float32", 1, 5, 3, 3))
    )


@emulation
def test_pixels_are_summed_in_parts() -> None:
    image = normal("float32", 1, 8, 48, 50)
    cuda = check_normal(DDF, (image, normal("float32", 1, 1, 3, 3, 48, 50), normal("float32", 1, 8, 3, 3)))
    assert any(name.startswith("sum_partials") for name in cuda.launched)
    assert sum(cuda.workspaces) * 64 <= image.size


@emulation
def test_sums_over_many_channels_are_merged() -> None:
    arrays = normal("float32", 1, 3200, 1, 2), normal("float32", 1, 1, 3, 3, 1, 2), normal("float32", 1, 3200, 3, 3)
    cuda = check_normal(DDF, arrays)
    assert "ddf_backward_spatial<float, int, 3, 3, MUL, 2>" in cuda.launched


@emulation
@pytest.mark.parametrize(("dtype", "kh", "kw"), [("float32", 3, 3), ("float64", 8, 7)])
def test_equal_taps_give_exactly_zero(dtype: str, kh: int, kw: int) -> None:
    filters = np.repeat(normal(dtype, 7, 1), kh * kw, axis=1).reshape(7, kh, kw)
    call = Call(FILTER_NORM, (filters, normal(dtype, 1), None), {"axes": (1, 2), "eps": 0.0})
    grad_out = normal(dtype, 7, kh, kw)
    grad_out[3, 0, 0] = np.nan
    cuda = EmulatedCupy(FILTER_NORM)
    assert (cuda.forward(call) == 0).all()
    assert (cuda.backward(call, grad_out)[0] == 0).all()


@emulation
def test_filters_are_summed_in_parts() -> None:
    cuda = check_normal(
        FILTER_NORM,
        (normal("float32", 1, 1, 3, 3, 90, 90), normal("float32", 1), normal("float32", 3, 1, 1)),
        axes=(2, 3),
    )
    assert {"sum_partials<float, int, 1>", "sum_partials<float, int, 32>"} <= set(cuda.launched)


@emulation
def test_large_tensors_get_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cuda_launch, cupy_raw, cupy_raw_norm):
        monkeypatch.setattr(module, "index_dtype", lambda *extents: np.dtype(np.int64))
    image, spatial, channel = (normal("float16", *s) for s in ((1, 8, 48, 50), (1, 1, 3, 3, 48, 50), (1, 8, 3, 3)))
    cuda = check_normal(DDF, (image, spatial, channel))
    cuda.launched += check_normal(FILTER_NORM, (spatial, normal("float16", 1), None), axes=(2, 3)).launched
    assert all("__half, long long" in name for name in cuda.launched)


def test_index_width_follows_the_largest_tensor() -> None:
    def width(*shape: int) -> str:
        N, C, H, W = shape
        plan = DDF.plan("ddf", (shape, (N, 1, 3, 3, H, W), (N, C, 3, 3)), ("float32",) * 3, ((1, 1), (1, 1), "mul"))
        return cupy_raw._filter_index(cupy_raw.FilterGeometry(*plan.geometry)).name

    assert width(1, 1, 2**13, 2**14) == "int32"
    assert width(1, 1, 2**14, 2**14) == "int64"  # the spatial filters
    assert width(2, 2**10, 2**10, 2**10) == "int64"


@emulation
@pytest.mark.parametrize("order", ["sequential", "reverse", "random"])
def test_order_of_threads_changes_no_bit(order: Any) -> None:
    arrays = normal("float32", 1, 19, 48, 50), normal("float32", 1, 1, 3, 3, 48, 50), normal("float32", 1, 19, 3, 3)
    call = Call(DDF, arrays, {})
    grad_out = normal("float32", *call.plan.out_shape)
    with emulated(mode="fast", order="sequential"):
        expected = EmulatedCupy(DDF).backward(call, grad_out)
    with emulated(order=order, seed=5):
        gradients = EmulatedCupy(DDF).backward(call, grad_out)
    assert [g.tobytes() for g in gradients] == [g.tobytes() for g in expected]


@emulation
@pytest.mark.parametrize("needs", [(), ("x",), ("spatial",), ("channel",), ("x", "channel")])
def test_only_needed_gradients_are_launched(needs: tuple[str, ...]) -> None:
    arrays = normal("float32", 1, 9, 5, 6), normal("float32", 1, 1, 3, 3, 5, 6), normal("float32", 1, 9, 3, 3)
    cuda = EmulatedCupy(DDF)
    cuda.backward(Call(DDF, arrays, {}), normal("float32", 1, 9, 5, 6), needs)
    assert [name.partition("<")[0] for name in cuda.launched] == [f"ddf_backward_{name}" for name in needs]
