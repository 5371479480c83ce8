"""The CUDA C kernels of the sampled family on the emulator: the paths that shapes and options choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from emulated import EmulatedCupy, EmulatedNumba
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_c import check, check_normal, normal
from test_cuda_tiles import COPIED, compiled_to_ptx

from dynk.kernels.common import cuda_launch
from dynk.kernels.sampled import cupy_raw
from dynk.kernels.sampled.geometry import REDUCTIONS, SampleGeometry
from dynk.sampled import DYNAMIC_FILTER, LS_DFN
from dynk.testing import Call, assert_close, strategies

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))
each_operator = pytest.mark.parametrize("op", [DYNAMIC_FILTER, LS_DFN], ids=lambda op: op.name)


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@each_operator
@given(data=st.data())
def test_samples_equal_reference(op: Any, dtype: str, data: st.DataObject) -> None:
    special = data.draw(st.booleans())
    call = data.draw(strategies.calls(op, dtype, allow_nan=special, allow_infinity=special))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        check(call, data.draw(strategies.grad_outs(call)))


# ---- calls of normally distributed numbers ---------------------------------------------------------------------------


def ls_dfn_arrays(dtype: str, N: int, C: int, O: int, H: int, W: int, s: int, k: int = 1) -> tuple[Any, ...]:  # noqa: E741
    """Return every array of a call of `ls_dfn`."""
    within, sampled = (N, O, k, k, H, W), (N, O, s, s, H, W)
    shapes = (N, C, H, W), (N, O, C, H, W), within, sampled, (*within, 1)
    return tuple(normal(dtype, *shape).reshape(shape[:6]) for shape in shapes)


def dynamic_arrays(dtype: str, N: int, C: int, O: int, H: int, W: int, k: int) -> tuple[Any, ...]:  # noqa: E741
    return normal(dtype, N, C, H, W), normal(dtype, N, O, C, k, k, H, W)


def check_ls_dfn(arrays: tuple[Any, ...], samples: int, step: int = 1, **options: Any) -> EmulatedCupy:
    return check_normal(LS_DFN, arrays, samples=samples, sample_stride=step, **options)


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@pytest.mark.parametrize("width", [40, 41], ids=["whole vectors", "odd rows"])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_planes_of_several_blocks(dtype: str, width: int, reduce: str) -> None:
    """And of pixels, outputs and channels that fill no block."""
    arrays = ls_dfn_arrays(dtype, 2, 11, 5, 5, width, 2, 3)
    check_ls_dfn(arrays, 2, 3, reduce=reduce, dilation=(1, 2))
    image, kernel = dynamic_arrays(dtype, 1, 3, 5, 5, width, 2)
    check_normal(DYNAMIC_FILTER, (image, kernel), samples=2, sample_stride=4, reduce=reduce)


@emulation
def test_misaligned_arrays() -> None:
    arrays = ls_dfn_arrays("float32", 1, 5, 3, 4, 8, 2)
    call = Call(LS_DFN, arrays, {"samples": 2, "sample_stride": 1})
    shifted = np.empty(arrays[1].size + 1, np.float32)[1:].reshape(arrays[1].shape)
    shifted[...] = arrays[1]
    other = call.with_arrays(arrays[0], shifted, *arrays[2:])
    assert EmulatedCupy(LS_DFN).forward(other).tobytes() == EmulatedCupy(LS_DFN).forward(call).tobytes()


@emulation
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("samples", [3, 5, 9, 10])
def test_samples_of_several_threads_and_turns(samples: int, reduce: str) -> None:
    check_ls_dfn(ls_dfn_arrays("float32", 1, 3, 2, 4, 9, samples), samples, reduce=reduce)
    arrays = dynamic_arrays("float32", 1, 2, 2, 4, 9, 2)
    check_normal(DYNAMIC_FILTER, arrays, samples=samples, sample_stride=2, reduce=reduce)


@emulation
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [64, 65, 128, 129, 300])
def test_many_channels(dtype: str, channels: int) -> None:
    """Of one block and more: where a block has not all of them `across` is read once more for the attentions."""
    cuda = check_ls_dfn(ls_dfn_arrays(dtype, 1, channels, 3, 2, 3, 3), 3)
    gathers = sum(name.startswith("sampled_backward_gather") for name in cuda.launched)
    assert gathers == (1 if channels <= (64 if dtype == "float64" else 128) else 2)
    check_normal(DYNAMIC_FILTER, dynamic_arrays(dtype, 1, channels, 2, 2, 3, 3))


@emulation
def test_long_sums_are_staged() -> None:
    check_ls_dfn(ls_dfn_arrays("float32", 1, 2, 70, 3, 4, 9), 9)
    check_ls_dfn(ls_dfn_arrays("float32", 1, 2, 1, 9, 10, 1, 9), 1)


@emulation
@pytest.mark.parametrize("dense", [False, True], ids=["ls_dfn", "dynamic_filter"])
@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_sums_of_more_than_64_chains_have_a_third_stage(backend: str, dense: bool) -> None:
    """Of equal terms, which round alike: of one chain after the other the error would exceed the bound."""
    x, across, s = np.full((1, 40001, 1, 1), 0.1, np.float32), np.full((1, 1, 40001, 1, 1), 0.1, np.float32), 3
    options = {"samples": s, "sample_stride": 1, "reduce": "max"}
    if dense:
        call = Call(DYNAMIC_FILTER, (x, across.reshape(1, 1, 40001, 1, 1, 1, 1)), options)
    else:
        call = Call(LS_DFN, (x, across, None, None, None), {**options, "kernel_residual": False})
    cuda = EmulatedCupy(call.op) if backend == "cupy" else EmulatedNumba()
    assert_close(cuda.forward(call), *call.expected_forward())


@emulation
@pytest.mark.parametrize("absent", [(1,), (2,), (3,), (4,), (1, 3), (1, 4), (2, 3, 4)])
@pytest.mark.parametrize("residual", [False, True])
def test_absent_arguments(absent: tuple[int, ...], residual: bool) -> None:
    arrays = ls_dfn_arrays("float32", 1, 5, 2, 6, 7, 3, 3)
    arrays = tuple(None if number in absent else array for number, array in enumerate(arrays))
    check_ls_dfn(arrays, 3, 2, kernel_residual=residual, attention_residual=residual)


@emulation
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_taps_outside_the_image_are_skipped(bad: float) -> None:
    """What only taps outside would use changes no bit of a result."""
    image, across = normal("float32", 1, 3, 6, 7), normal("float32", 1, 2, 3, 6, 7)
    within = normal("float32", 1, 2, 3, 3, 6, 7)
    grad_out = normal("float32", 1, 2, 6, 7)
    poisoned = within.copy()
    poisoned[:, :, 0, :, 0], poisoned[:, :, 2, :, -1] = bad, bad
    poisoned[:, :, :, 0, :, 0], poisoned[:, :, :, 2, :, -1] = bad, bad
    clean, dirty = (
        Call(LS_DFN, (image, across, filters, None, None), {"samples": 1, "sample_stride": 1})
        for filters in (within, poisoned)
    )
    assert EmulatedCupy(LS_DFN).forward(dirty).tobytes() == EmulatedCupy(LS_DFN).forward(clean).tobytes()
    for gradient, expected in zip(
        EmulatedCupy(LS_DFN).backward(dirty, grad_out), EmulatedCupy(LS_DFN).backward(clean, grad_out), strict=True
    ):
        assert (gradient is None and expected is None) or gradient.tobytes() == expected.tobytes()


@emulation
@each_operator
def test_nan_is_the_largest_and_of_equals_the_first_is_taken(op: Any) -> None:
    """The samples are the image: 1, then 2 several times, in rows where NaN follows or does not."""
    rows = [[1, 2, 2, 1, 2, 0, 2, 2, 1, 0, 0]] * 2
    image = np.array(rows, np.float32).reshape(1, 1, 2, 11)
    image[0, 0, 1, 6:8] = np.nan
    one = np.ones((1, 1, 1, 2, 11), np.float32)
    arrays = (image, one.reshape(1, 1, 1, 1, 1, 2, 11)) if op is DYNAMIC_FILTER else (image, one, None, None, None)
    options: dict[str, Any] = {"samples": 9, "sample_stride": 1, "reduce": "max"}
    call = Call(op, arrays, options if op is DYNAMIC_FILTER else options | {"kernel_residual": False})
    check(call, np.arange(22, dtype=np.float32).reshape(1, 1, 2, 11) + 1)


# ---- what is launched ------------------------------------------------------------------------------------------------

ALL = {"samples": 3, "sample_stride": 1}


@emulation
@pytest.mark.parametrize(
    ("needs", "launched"),
    [
        ((), []),
        (("x",), ["sum", "gather"]),
        (("across",), ["across"]),
        (("within",), ["within"]),
        (("sample_attention",), ["sample", "gather"]),
        (("position_attention",), ["position", "gather"]),
        (("x", "sample_attention", "position_attention"), ["sample", "position", "sum", "gather"]),
    ],
)
def test_only_needed_gradients_are_launched(needs: tuple[str, ...], launched: list[str]) -> None:
    """And `across` is read once for all that gathers from it."""
    call = Call(LS_DFN, ls_dfn_arrays("float32", 1, 9, 2, 4, 5, 3, 3), ALL)
    cuda = EmulatedCupy(LS_DFN)
    cuda.backward(call, normal("float32", 1, 2, 4, 5), needs)
    names = [name.partition("<")[0].removeprefix("sampled_backward_") for name in cuda.launched]
    assert [name for name in names if name != "sampled_channel_sum"] == launched


@emulation
@pytest.mark.parametrize("absent", [(), (3,), (4,), (3, 4)], ids=["both attentions", "positions", "samples", "none"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_workspace_is_as_small_as_documented(reduce: str, absent: tuple[int, ...]) -> None:
    """Neither samples, nor kernels, nor shifted features are stored."""
    N, C, O, H, W, s = 2, 19, 10, 5, 9, 3  # noqa: E741
    arrays = ls_dfn_arrays("float32", N, C, O, H, W, s, 3)
    arrays = tuple(None if number in absent else array for number, array in enumerate(arrays))
    call = Call(LS_DFN, arrays, {"samples": s, "sample_stride": 2, "reduce": reduce})
    pixels, outputs = N * H * W, N * O * H * W
    backward = [pixels, outputs, pixels] if reduce == "max" else [pixels, pixels]
    for cuda in (EmulatedCupy(LS_DFN), EmulatedNumba()):
        cuda.forward(call)
        cuda.backward(call, normal("float32", N, O, H, W))
        assert cuda.workspaces == [pixels, *backward]


@emulation
@each_operator
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_order_of_threads_changes_no_bit(op: Any, reduce: str) -> None:
    arrays = (
        dynamic_arrays("float32", 1, 9, 5, 6, 30, 3)
        if op is DYNAMIC_FILTER
        else ls_dfn_arrays("float32", 1, 19, 5, 6, 30, 5, 3)
    )
    call = Call(op, arrays, {"samples": 5, "sample_stride": 2, "reduce": reduce})
    grad_out = normal("float32", *call.plan.out_shape)
    results = []
    for order in ORDERS:
        with emulated(mode="fast", order=order, seed=5):
            cuda = EmulatedCupy(op)
            results.append([array.tobytes() for array in (cuda.forward(call), *cuda.backward(call, grad_out))])
    assert results[0] == results[1] == results[2]


@emulation
def test_large_tensors_get_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_raw, "index_dtype", lambda *extents: np.dtype(np.int64))
    cuda = check_ls_dfn(ls_dfn_arrays("float16", 1, 130, 3, 3, 17, 9, 3), 9, 2)
    cuda.launched += check_normal(DYNAMIC_FILTER, dynamic_arrays("float16", 1, 9, 3, 3, 17, 3), reduce="max").launched
    assert all("__half, long long" in name for name in cuda.launched)


def test_index_width_follows_the_largest_tensor() -> None:
    def width(dense: bool, **extents: int) -> str:
        g = SampleGeometry(*[1] * len(SampleGeometry._fields))._replace(**extents)
        return cupy_raw._index(g, dense).name

    assert width(False, N=2**8, C=2**10, O=2**6, W=2**6) == "int32"
    assert width(False, N=2**8, C=2**10, O=2**6, W=2**7) == "int64"  # across
    assert width(False, N=2**8, C=2**10, O=2**6, W=2**7, has_across=0) == "int32"
    assert width(True, N=2**8, C=2**10, O=2**6, W=2**4, kh=8) == "int64"  # kernel
    assert width(False, H=2**15, W=2**13, samples=3) == "int64"  # sample_attention
    assert width(False, H=2**15, W=2**13, kh=9, kw=1) == "int64"  # within
    assert width(False, H=2**15, W=2**16) == "int64"
    assert width(False, W=2**20, sample_stride=2**31) == "int64"


@pytest.mark.parametrize("dense", ["false", "true"])
@pytest.mark.parametrize("dtype", ["__half", "float", "double"])
def test_the_big_tensor_is_read_by_16_bytes(dtype: str, dense: str) -> None:
    source = Path(cupy_raw.__file__).with_name(cupy_raw.FORWARD)
    ptx = compiled_to_ptx(f"sampled_forward<{dtype}, int, {dense}>", source)
    assert set(COPIED.findall(ptx)) == {"16"}


class Recorder:
    """The runtime object of launch functions; notes blocks and shared memory."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, int, int]] = []

    def launch(self, source: str, expression: str, grid: Any, block: Any, args: Any, shared: int = 0) -> None:
        self.launched.append((expression, int(np.prod(block)), shared))

    def workspace(self, count: int, dtype: str) -> Any:
        return object()


@given(
    st.sampled_from(list(cuda_launch.ELEMENT)),
    st.integers(1, 64),
    st.sampled_from([1, 3, 64, 256, 5000]),
    st.sampled_from([1, 3, 24, 300]),
    st.sampled_from([(1, 1), (9, 9), (200, 300), (2**13, 2**12)]),
)
def test_a_block_takes_no_more_than_any_gpu_gives(dtype: str, s: int, C: int, O: int, size: tuple[int, int]) -> None:  # noqa: E741
    filters, sampled = (1, O, 3, 3, *size), (1, O, s, s, *size)
    shapes = (1, C, *size), (1, O, C, *size), filters, sampled, filters
    options = LS_DFN.canonical(samples=s, sample_stride=1, reduce="max")
    plan = LS_DFN.plan("ls_dfn", shapes, (dtype,) * 5, options)
    cuda, arrays = Recorder(), [object()] * 5
    cupy_raw.ls_dfn_forward(cuda, plan, *arrays, object())
    cupy_raw.ls_dfn_backward(cuda, plan, object(), *arrays, *arrays)
    for expression, threads, shared in cuda.launched:
        most = 512 if expression.startswith("sampled_backward_sum") else 256
        if expression.startswith(("sampled_forward", "sampled_backward_gather")):
            most = 384 if "long long" in expression else 512
        assert threads <= most, expression
        assert shared <= 48 << 10, expression
