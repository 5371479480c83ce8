"""The CUDA kernels for rows of whole vectors: on the emulator, and what their machine code is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from cuda_emulator.toolchain import cuda_include_folders
from emulated import EmulatedCupy
from hypothesis import given
from hypothesis import strategies as st

from dynk._arrays import numpy_view
from dynk.decoupled import DDF, DDF_UPSAMPLE
from dynk.kernels import common
from dynk.kernels.common.cuda_bytes import kernel_bytes
from dynk.kernels.decoupled import cupy_raw, cupy_raw_tiles
from dynk.kernels.decoupled.cupy_raw_tiles import FilterGeometry
from dynk.testing import Call, assert_close, rounded, strategies

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

# dtype, kernel size, pixels of a thread
KINDS = [("float32", 3, 4), ("float16", 3, 8), ("float16", 3, 4), ("bfloat16", 5, 4), ("float64", 3, 2)]
each_kind = pytest.mark.parametrize(("dtype", "k", "pixels"), KINDS)


def normal(dtype: str, *shape: int) -> Any:
    return rounded(np.random.default_rng(shape).standard_normal(shape), dtype)


def filters_call(op: Any, dtype: str, N: int, C: int, G: int, H: int, W: int, k: int, **options: Any) -> Call:
    one = (1, 1) if op is DDF_UPSAMPLE else ()
    arrays = normal(dtype, N, C, H, W), normal(dtype, N, G, *one, k, k, H, W), normal(dtype, N, C, *one, k, k)
    return Call(op, arrays, options | ({"scale": 1} if one else {}))


def check(call: Call, grad_out: Any) -> list[str]:
    """Assert that forward and backward on the emulator agree with the reference; return what was launched."""
    cuda = EmulatedCupy(call.op)
    assert_close(cuda.forward(call), *call.expected_forward())
    gradients = cuda.backward(call, grad_out)
    for name, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds, what=name)
    return [name for name in cuda.launched if not name.startswith("sum_partials")]


@pytest.fixture(params=["idle", "busy"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few channels, as launched while a device is idle, and of as many as there may be."""
    if request.param == "busy":
        monkeypatch.setattr(cupy_raw_tiles, "BUSY", 1)


# ---- against the reference -------------------------------------------------------------------------------------------


@st.composite
def tiled_calls(draw: st.DrawFn, op: Any, dtype: str, k: int, pixels: int) -> Call:
    """Draw a call of the tiled kernels: rows of one tile or several, the last full or not, in one to three columns."""
    columns, H = draw(st.sampled_from([(4, 17), (8, 9), (33, 5), (13, 20), (3, 45), (5, 35)]))
    W, groups = columns * pixels, draw(st.integers(1, 2))
    if pixels == 4 and dtype == "float16" and columns % 2 == 0:
        W += pixels  # else a thread would own 8
    C = groups * draw(st.sampled_from([1, 3, 5]))
    has_spatial, has_channel = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    one = (1, 1) if op is DDF_UPSAMPLE else ()
    special = draw(st.booleans())

    def array(*shape: int) -> Any:
        return draw(strategies.arrays(dtype, shape, allow_nan=special, allow_infinity=special))

    arrays = (
        array(1, C, H, W),
        array(1, groups, *one, k, k, H, W) if has_spatial else None,
        array(1, C, *one, k, k) if has_channel else None,
    )
    return Call(op, arrays, {"combine": draw(st.sampled_from(["mul", "add"]))} | ({"scale": 1} if one else {}))


@emulation
@each_kind
@given(data=st.data())
def test_tiles_equal_reference(dtype: str, k: int, pixels: int, data: st.DataObject) -> None:
    call = data.draw(tiled_calls(data.draw(st.sampled_from([DDF, DDF_UPSAMPLE])), dtype, k, pixels))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        launched = check(call, data.draw(strategies.grad_outs(call)))
    assert all(name.startswith(("ddf_stencil", "ddf_backward_filters")) for name in launched)
    assert f", {pixels}, false>" in launched[0]


@emulation
@pytest.mark.usefixtures("device")
@each_kind
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_normal_numbers_in_many_tiles_and_blocks_of_channels(dtype: str, k: int, pixels: int, combine: str) -> None:
    call = filters_call(DDF, dtype, 2, 36, 2, 13, 36 * pixels + (pixels if pixels == 4 else 0), k, combine=combine)
    check(call, normal(dtype, 1, *call.plan.out_shape)[0])


@emulation
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("channels", [1, 16, 33])
def test_normal_numbers_in_blocks_of_channels_that_are_full_or_not(channels: int) -> None:
    call = filters_call(DDF, "float32", 1, channels, 1, 16, 16, 3)
    launched = check(call, normal("float32", 1, *call.plan.out_shape)[0])
    assert launched == [
        "ddf_stencil<float, int, 3, 3, MUL, 4, false>",
        "ddf_stencil<float, int, 3, 3, MUL, 4, true>",
        "ddf_backward_filters<float, int, 3, 3, MUL, 4, true, true>",
    ]


@emulation
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("needs", [("spatial",), ("channel",), ("x", "channel")])
def test_normal_numbers_of_the_needed_gradients_alone(k: int, needs: tuple[str, ...]) -> None:
    call = filters_call(DDF, "float32", 1, 5, 1, 16, 16, k)
    grad_out = normal("float32", 1, *call.plan.out_shape)[0]
    gradients = EmulatedCupy(DDF).backward(call, grad_out, needs)
    for name, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        assert (gradient is None) == (name not in needs)
        if gradient is not None:
            assert_close(gradient, *bounds, what=name)


@emulation
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("k", [3, 5])
def test_taps_outside_the_image_are_skipped(k: int, bad: float) -> None:
    call = filters_call(DDF, "float32", 1, 3, 1, 16, 16, k)
    x, spatial, channel = call.arrays
    r = k // 2
    y, i = np.mgrid[:16, :k]
    outside = (y + i - r < 0) | (y + i - r >= 16)  # of a row and the row of a tap
    poisoned = spatial.copy()
    poisoned[:, :, outside.T[:, None, :, None] | outside.T[None, :, None, :]] = bad
    poisoned = Call(DDF, (x, poisoned, channel), {})
    grad_out = normal("float32", 1, *call.plan.out_shape)[0]
    assert np.array_equal(EmulatedCupy(DDF).forward(poisoned), EmulatedCupy(DDF).forward(call))
    clean, dirty = (EmulatedCupy(DDF).backward(each, grad_out) for each in (call, poisoned))
    for expected, gradient in zip(clean, dirty, strict=True):
        assert np.array_equal(gradient, expected)


# ---- the same bits ---------------------------------------------------------------------------------------------------


def misaligned(array: Any) -> Any:
    """Return a copy one element behind what a vector may be loaded from."""
    copy = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    copy[...] = array
    return copy


@emulation
@each_kind
def test_alignment_changes_no_bit(dtype: str, k: int, pixels: int) -> None:
    call = filters_call(DDF, dtype, 1, 17, 1, 9, 34 * pixels, k)
    arrays = [numpy_view(array, dtype) for array in call.arrays]
    grad_out = numpy_view(normal(dtype, 1, *call.plan.out_shape)[0], dtype)

    def results(*off: str) -> list[bytes]:
        def place(array: Any, name: str) -> Any:
            return misaligned(array) if name in off else np.array(array)

        cuda, names = EmulatedCupy(DDF), DDF.arrays
        given = [place(*pair) for pair in zip(arrays, names, strict=True)]
        out = place(np.zeros_like(arrays[0]), "out")
        gradients = [place(np.zeros_like(array), f"grad_{name}") for array, name in zip(arrays, names, strict=True)]
        cupy_raw.ddf_forward(cuda, call.plan, *given, out)
        cupy_raw.ddf_backward(cuda, call.plan, place(grad_out, "grad_out"), *given, *gradients)
        assert not any("ddf_forward" in name for name in cuda.launched)
        return [np.asarray(result).tobytes() for result in (out, *gradients)]

    expected = results()
    for name in ("x", "spatial", "channel", "grad_out", "out", "grad_x", "grad_spatial", "grad_channel"):
        assert results(name) == expected, name


@emulation
def test_tiles_add_in_the_order_of_the_kernels_for_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    call = filters_call(DDF, "float32", 1, 5, 1, 16, 16, 3)
    grad_out = normal("float32", 1, *call.plan.out_shape)[0]
    out, grad_x = EmulatedCupy(DDF).forward(call), EmulatedCupy(DDF).backward(call, grad_out, ("x",))[0]
    monkeypatch.setattr(cupy_raw_tiles, "stencil_pixels", lambda *call: 0)
    cuda = EmulatedCupy(DDF)
    assert cuda.forward(call).tobytes() == out.tobytes()
    assert cuda.backward(call, grad_out, ("x",))[0].tobytes() == grad_x.tobytes()
    assert [name.partition("<")[0] for name in cuda.launched] == ["ddf_forward", "ddf_backward_x"]


@emulation
@pytest.mark.parametrize("order", ["reverse", "random"])
def test_order_of_threads_changes_no_bit(order: Any) -> None:
    call = filters_call(DDF, "float32", 1, 37, 1, 19, 36, 3)
    grad_out = normal("float32", 1, *call.plan.out_shape)[0]
    with emulated(order="sequential"):
        expected = EmulatedCupy(DDF).backward(call, grad_out)
    with emulated(order=order, seed=5):
        gradients = EmulatedCupy(DDF).backward(call, grad_out)
    assert [g.tobytes() for g in gradients] == [g.tobytes() for g in expected]


# ---- what is chosen --------------------------------------------------------------------------------------------------


def plan(shape: tuple[int, ...], k: int, dtype: str, **options: Any) -> Any:
    N, C, H, W = shape
    stride = options.get("stride", 1)
    spatial = (N, 1, k, k, -(-H // stride), -(-W // stride))
    return DDF.plan("ddf", (shape, spatial, (N, C, k, k)), (dtype,) * 3, DDF.canonical(**options))


@pytest.mark.parametrize(
    ("shape", "k", "dtype", "options", "stencil", "filters"),
    [
        ((2, 256, 200, 300), 3, "float32", {}, 4, 4),
        ((2, 256, 200, 300), 3, "float16", {}, 4, 4),
        ((2, 256, 200, 304), 3, "bfloat16", {}, 8, 4),
        ((2, 256, 200, 304), 5, "float16", {}, 4, 4),
        ((2, 256, 200, 302), 3, "float64", {}, 2, 2),
        ((8, 64, 56, 56), 5, "float32", {}, 4, 4),
        ((2, 256, 200, 302), 3, "float32", {}, 0, 0),
        ((2, 256, 200, 301), 3, "float64", {}, 0, 0),
        ((2, 256, 200, 300), 7, "float32", {}, 0, 0),
        ((2, 256, 200, 300), 3, "float32", {"stride": 2}, 0, 0),
        ((2, 256, 200, 300), 3, "float32", {"dilation": 2}, 0, 0),
        ((2, 4096, 1, 300), 3, "float32", {}, 0, 0),
        ((1, 2**10, 2**10, 2**11), 3, "float32", {}, 0, 0),
    ],
)
def test_shapes_choose_the_kernel(
    shape: tuple[int, ...], k: int, dtype: str, options: dict[str, Any], stencil: int, filters: int
) -> None:
    g = FilterGeometry(*plan(shape, k, dtype, **options).geometry)
    index = cupy_raw._filter_index(g)
    assert cupy_raw_tiles.stencil_pixels(g, dtype, index) == stencil
    assert cupy_raw_tiles.filters_pixels(g, dtype, index) == filters


class Recorder:
    """The runtime object of launch functions; notes shared memory."""

    def __init__(self) -> None:
        self.shared: list[int] = []

    def launch(self, source: str, expression: str, grid: Any, block: Any, args: Any, shared: int = 0) -> None:
        self.shared.append(shared)

    def workspace(self, count: int, dtype: str) -> Any:
        return object()


@given(
    st.sampled_from(["float32", "float16", "float64"]),
    st.sampled_from([3, 5]),
    st.sampled_from([1, 3, 64, 256, 5000]),
    st.integers(1, 400),
    st.integers(1, 50),
)
def test_a_block_takes_what_shared_memory_every_gpu_has(dtype: str, k: int, C: int, H: int, columns: int) -> None:
    cuda, arrays = Recorder(), [object()] * 3
    call = plan((1, C, H, 8 * columns), k, dtype)
    cupy_raw.ddf_forward(cuda, call, *arrays, object())
    cupy_raw.ddf_backward(cuda, call, object(), *arrays, *arrays)
    static = 2 * 8 * 25 * 8
    assert all(shared + static <= 48 << 10 for shared in cuda.shared)
    g = FilterGeometry(*call.geometry)
    for pixels in cupy_raw_tiles.PIXELS[dtype]:
        columns, rows = cupy_raw_tiles._tile(g, pixels) if g.W % pixels == 0 else (1, 1)
        assert columns * rows <= 256
        assert (columns + 2) * (rows + k - 1) <= 2 * 256  # COPIES


@pytest.mark.parametrize(("combine", "factors"), [("mul", 1), ("add", 0)])
def test_model_of_bytes_counts_each_operand_of_a_kernel_once(combine: str, factors: int) -> None:
    N, C, H, W = shape = (2, 256, 200, 300)
    call = plan(shape, 3, "float32", combine=combine)
    images, spatial, channel = 4 * N * C * H * W, 4 * N * 9 * H * W, 4 * N * C * 9
    shapes = shape, (N, 1, 3, 3, H, W), (N, C, 3, 3)
    forward = kernel_bytes(DDF, "forward", call, shapes)
    assert [moved for _, moved in forward] == [2 * images + spatial + channel]
    names, moved = zip(*kernel_bytes(DDF, "backward", call, shapes), strict=True)
    assert [name.partition("<")[0] for name in names] == [
        *("ddf_stencil", "ddf_backward_filters", "sum_partials", "sum_partials"),
    ]
    parts, tiles = 4, 60
    assert moved == (
        2 * images + spatial + channel,
        2 * images + (1 + factors + parts) * spatial + (1 + factors + tiles) * channel,
        (parts + 1) * spatial,
        (tiles + 1) * channel,
    )


# ---- machine code ----------------------------------------------------------------------------------------------------


TILES = Path(cupy_raw_tiles.__file__).with_name(cupy_raw_tiles.SOURCE)


def compiled_to_ptx(expression: str, source: Path = TILES, architecture: int = 90) -> str:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    folder = source.parent
    include = (Path(common.__file__).parent, folder, *cuda_include_folders())
    flags = "-std=c++17", f"-arch=compute_{architecture}", *(f"-I{path}" for path in include)
    options = [flag.encode() for flag in flags]

    def call(function: str, *arguments: Any) -> Any:
        status, *results = getattr(nvrtc, f"nvrtc{function}")(*arguments)
        assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, (function, status)
        return results[0] if results else None

    program = call("CreateProgram", source.read_bytes(), source.name.encode(), 0, None, None)
    try:
        call("AddNameExpression", program, expression.encode())
        call("CompileProgram", program, len(options), options)
        ptx = b" " * call("GetPTXSize", program)
        call("GetPTX", program, ptx)
    finally:
        call("DestroyProgram", program)
    return ptx.decode()


COPIED = re.compile(r"cp\.async\.\w+\.shared\.global \[\S+\], \[\S+\], (\d+)")


@pytest.mark.parametrize(
    "expression",
    [
        "ddf_stencil<float, int, 3, 3, MUL, 4, false>",
        "ddf_stencil<float, int, 5, 5, MUL, 4, true>",
        "ddf_stencil<__half, int, 3, 3, MUL, 8, false>",
        "ddf_stencil<__nv_bfloat16, int, 3, 3, ADD, 8, true>",
        "ddf_stencil<double, int, 3, 3, MUL, 2, false>",
        "ddf_backward_filters<float, int, 3, 3, MUL, 4, true, true>",
        "ddf_backward_filters<double, int, 3, 3, MUL, 2, true, true>",
    ],
)
def test_memory_is_accessed_by_16_bytes(expression: str) -> None:
    ptx = compiled_to_ptx(expression)
    vector = r"\.(v4\.[a-z]32|v2\.[a-z]64)"
    assert set(COPIED.findall(ptx)) == {"16"}
    assert len(re.findall(rf"ld\.global(\.nc)?{vector}", ptx)) >= 6  # the filters of most taps
    assert re.search(rf"st\.global{vector}", ptx)
    assert re.search(rf"ld\.shared{vector}", ptx)


@pytest.mark.parametrize("kernel", ["ddf_stencil<{}, false>", "ddf_backward_filters<{}, true, true>"])
def test_halves_in_rows_of_odd_multiples_of_4_are_accessed_by_8_bytes(kernel: str) -> None:
    ptx = compiled_to_ptx(kernel.format("__half, int, 3, 3, MUL, 4"))
    assert set(COPIED.findall(ptx)) == {"8"}
