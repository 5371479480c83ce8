"""The CUDA kernels of `adaptive_dilation_conv2d` on the emulator: the paths that shapes and options choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from emulated import EmulatedCupy
from hypothesis import given
from hypothesis import strategies as st

from dynk.dilated import ADAPTIVE_DILATION_CONV2D
from dynk.kernels.common import cuda_launch
from dynk.kernels.dilated import cupy_raw_dilation
from dynk.kernels.dilated.geometry import DilationGeometry
from dynk.testing import Call, assert_close, rounded, strategies, values

numba_cuda_package = pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from emulated import emulated_numba  # noqa: E402

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))
NUMBA = ("float32", "float64")


def floating(call: Call) -> list[str]:
    """Return the names of the arguments that have a gradient."""
    named = zip(call.op.arrays, call.arrays, strict=True)
    return [name for name, array in named if array is not None and array.dtype.kind != "i"]


def check(runtime: Any, call: Call, grad_out: Any) -> Any:
    """Assert that a runtime's results agree with the reference; return the runtime."""
    if 0 in call.plan.out_shape:
        return runtime  # such calls launch nothing
    assert_close(runtime.forward(call), *call.expected_forward())
    gradients = runtime.backward(call, grad_out, floating(call))
    for name, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds, what=name)
    return runtime


def runtimes(dtype: str) -> list[Any]:
    return [EmulatedCupy(ADAPTIVE_DILATION_CONV2D), *(emulated_numba() if dtype in NUMBA else [])]


def normal(dtype: str, *shape: int) -> Any:
    return rounded(np.random.default_rng([*shape]).standard_normal(shape), dtype)


def call_of(
    dtype: str,
    N: int,
    C: int,
    outputs: int,
    H: int,
    W: int,
    *,
    k: int = 3,
    D: int = 3,
    hard: bool = False,
    **given: Any,
) -> Call:
    """Return a call of normally distributed arrays, with a bias."""
    options: dict[str, Any] = {"dilations": tuple(range(1, D + 1)), "stride": 1, "groups": 1} | given
    anchors = -(-H // options["stride"]), -(-W // options["stride"])
    choice = np.random.default_rng(0).integers(0, D, (N, *anchors)) if hard else normal(dtype, N, D, *anchors)
    weight = normal(dtype, outputs, C // options["groups"], k, k)
    return Call(ADAPTIVE_DILATION_CONV2D, (normal(dtype, N, C, H, W), weight, choice, normal(dtype, outputs)), options)


def check_normal(dtype: str, *shape: int, **options: Any) -> list[Any]:
    call = call_of(dtype, *shape, **options)
    return [check(runtime, call, normal(dtype, *call.plan.out_shape)) for runtime in runtimes(dtype)]


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@given(data=st.data())
def test_equals_reference(dtype: str, data: st.DataObject) -> None:
    special = data.draw(st.booleans())
    call = data.draw(
        strategies.calls(ADAPTIVE_DILATION_CONV2D, dtype, allow_nan=special, allow_infinity=special, small=True)
    )
    grad_out = data.draw(strategies.grad_outs(call))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        for runtime in runtimes(dtype):
            check(runtime, call, grad_out)


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@pytest.mark.parametrize("hard", [False, True])
def test_several_tiles_and_the_rest_of_one(dtype: str, hard: bool) -> None:
    check_normal(dtype, 2, 9, 66, 7, 13, hard=hard)
    check_normal(dtype, 1, 70, 3, 6, 5, k=2, D=8, hard=hard)


@emulation
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_groups_and_strides(groups: int, stride: int) -> None:
    check_normal("float32", 2, 6, 12, 8, 9, groups=groups, stride=stride, D=2)


@emulation
@pytest.mark.parametrize("k", [1, 2, 5, 7])
@pytest.mark.parametrize("groups", [1, 4])
def test_kernel_sizes(k: int, groups: int) -> None:
    check_normal("float32", 1, 4, 4, 9, 8, k=k, groups=groups)


@emulation
@pytest.mark.parametrize("outputs", [4, 5])
def test_outputs_decide_whether_a_group_of_one_input_is_depthwise(outputs: int) -> None:
    cuda_c, _ = check_normal("float32", 1, 2, 2 * outputs, 5, 6, groups=2)
    names = {name.partition("<")[0] for name in cuda_c.launched} - {"sum_partials", "dilation_backward_bias"}
    assert all(name.startswith("dilation_depthwise") == (outputs == 4) for name in names)


@emulation
def test_long_sums_are_staged() -> None:
    check_normal("float32", 1, 500, 2, 3, 4)
    check_normal("float32", 1, 2, 70, 3, 4)
    check_normal("float32", 1, 130, 130, 3, 4, groups=130, D=2)
    check_normal("float32", 1, 1, 5, 70, 70, k=1, D=1)
    check_normal("float32", 1, 1, 1, 90, 90, k=1, D=1)


@emulation
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_nothing_multiplies_are_skipped(groups: int, bad: float) -> None:
    """A tap that is outside the image in every dilation reads nothing, whatever its weight or its gradient."""
    call = call_of("float32", 1, 3, 6, 4, 5, groups=groups, dilations=(4, 5, 6))
    x, weight, shares, bias = call.arrays
    weight = weight.copy()
    weight[:, :, 0, :] = bad  # of the rows of the image, 4 apart, none is read by taps of the top
    poisoned = call.with_arrays(x, weight, shares, bias)
    grad_out = normal("float32", 1, 6, 4, 5)
    for runtime in runtimes("float32"):
        check(runtime, poisoned, grad_out)
        assert runtime.forward(poisoned).tobytes() == runtime.forward(call).tobytes()
        assert np.isfinite(runtime.backward(poisoned, grad_out, ["x"])[0]).all()


@emulation
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_an_index_of_no_dilation_is_nan_and_reads_nothing(groups: int, width: Any) -> None:
    call = call_of("float32", 1, 4, 8, 5, 6, groups=groups, hard=True)
    x, weight, indices, bias = call.arrays
    indices = indices.astype(width)
    indices[0, 2, 3], indices[0, 0, 0] = 3, -1
    if width is np.int64:
        indices[0, 4, 4] = 2**32  # whose low word is that of a dilation
    wrong = call.with_arrays(x, weight, indices, bias)
    grad_out = normal("float32", 1, 8, 5, 6)
    for runtime in runtimes("float32"):
        out = values(runtime.forward(wrong))
        assert np.array_equal(np.isnan(out[0, 0]), (indices[0] < 0) | (indices[0] > 2))
        check(runtime, wrong, grad_out)


@emulation
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("hard", [False, True])
def test_gradients_of_an_empty_batch_are_zero_and_read_nothing(groups: int, hard: bool) -> None:
    call = call_of("float32", 0, 4, 8, 5, 6, groups=groups, hard=hard)
    for runtime in runtimes("float32"):
        gradients = runtime.backward(call, normal("float32", *call.plan.out_shape), ["weight", "bias"])
        for name, array, gradient in zip(call.op.arrays, call.arrays, gradients, strict=True):
            assert (gradient is not None) == (name in ("weight", "bias"))
            assert gradient is None or (gradient.shape == array.shape and not gradient.any())


# ---- what is launched ------------------------------------------------------------------------------------------------

KERNELS = {
    "x": ["dilation_backward_x"],
    "weight": ["dilation_backward_weight"],
    "dilation_weights": ["dilation_backward_shares"],
    "bias": ["dilation_backward_bias", "sum_partials"],
}


@emulation
@pytest.mark.parametrize("needs", [(), *[(name,) for name in KERNELS]])
def test_only_needed_gradients_are_launched(needs: tuple[str, ...]) -> None:
    call = call_of("float32", 1, 4, 5, 4, 5)
    cuda = EmulatedCupy(ADAPTIVE_DILATION_CONV2D)
    cuda.backward(call, normal("float32", 1, 5, 4, 5), needs)
    assert [name.partition("<")[0] for name in cuda.launched] == [k for name in needs for k in KERNELS[name]]
    for numba in emulated_numba():
        gradients = numba.backward(call, normal("float32", 1, 5, 4, 5), needs)
        assert [g is not None for g in gradients] == [name in needs for name in call.op.arrays]
        assert bool(numba.launched) == bool(needs)


@emulation
def test_sums_of_many_pixels_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And into no more than the workspace holds."""
    size, workspace = 8 * 2 * 9, 3
    monkeypatch.setattr(cupy_raw_dilation, "WORKSPACE", 4 * size * workspace)
    call = call_of("float32", 2, 2, 8, 40, 40, D=2)
    cuda = EmulatedCupy(ADAPTIVE_DILATION_CONV2D)
    check(cuda, call, normal("float32", 2, 8, 40, 40))
    assert max(cuda.workspaces) == workspace * size
    assert "dilation_backward_weight<float, int, float>" in cuda.launched


@emulation
def test_sums_over_many_channels_are_staged_in_a_part_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_raw_dilation, "WORKSPACE", 0)  # no room for a second part
    call = call_of("float32", 1, 500, 2, 3, 4)
    cuda = check(EmulatedCupy(ADAPTIVE_DILATION_CONV2D), call, normal("float32", 1, 2, 3, 4))
    assert "dilation_backward_shares<float, int, float>" in cuda.launched


@emulation
@pytest.mark.parametrize("groups", [1, 16])
def test_order_of_threads_changes_no_bit(groups: int) -> None:
    call = call_of("float32", 1, 16, 16, 6, 30, groups=groups)
    grad_out = normal("float32", *call.plan.out_shape)
    results = []
    for order in ORDERS:
        with emulated(mode="fast", order=order, seed=5):
            for number, runtime in enumerate(runtimes("float32")):
                arrays = runtime.forward(call), *runtime.backward(call, grad_out)
                results.append((number, [array.tobytes() for array in arrays]))
    assert all(other in results[:2] for other in results)


@emulation
@pytest.mark.parametrize("groups", [1, 2])
def test_large_tensors_get_64_bit_indices(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_raw_dilation, "index_dtype", lambda *extents: np.dtype(np.int64))
    call = call_of("float16", 1, 2, 6, 5, 6, groups=groups)
    cuda = check(EmulatedCupy(ADAPTIVE_DILATION_CONV2D), call, normal("float16", 1, 6, 5, 6))
    assert all("__half, long long" in name for name in cuda.launched if not name.startswith("sum_partials"))


def test_index_width_follows_the_largest_tensor() -> None:
    def width(**extents: int) -> str:
        g = DilationGeometry(*[1] * len(DilationGeometry._fields))._replace(**extents)
        return cupy_raw_dilation._index(g).name

    assert width(N=2**8, C=2**10, H=2**6, W=2**6) == "int32"
    assert width(N=2**8, C=2**10, H=2**6, W=2**7) == "int64"
    assert width(N=2**8, O=2**10, Ho=2**6, Wo=2**7) == "int64"
    assert width(N=2**10, D=8, Ho=2**9, Wo=2**9) == "int64"
    assert width(O=2**15, C=2**13, kh=3, kw=3) == "int64"
    assert width(H=2**20, kh=3, dilation_h7=2**30) == "int64"
    assert width(W=2**20, kw=3, dilation_w7=2**30) == "int64"
