"""The CUDA kernels of the deformable family on the emulator: the paths that shapes and options choose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from deformable_cases import nan_taps
from emulated import EmulatedCupy
from hypothesis import given
from hypothesis import strategies as st

from dynk.deformable import DEFORMABLE_CONV2D, SAMPLE_KERNEL
from dynk.kernels.common import cuda_launch
from dynk.kernels.common.dtypes import ITEMSIZE, accumulator
from dynk.kernels.deformable import cupy_raw_call, cupy_raw_gather, cupy_raw_sample
from dynk.kernels.deformable.geometry import WORKSPACE, DeformGeometry
from dynk.testing import Call, assert_close, rounded, strategies

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))
CASES = [(op, dtype) for op in (DEFORMABLE_CONV2D, SAMPLE_KERNEL) for dtype in cuda_launch.ELEMENT]


def check(call: Call, grad_out: Any = None) -> EmulatedCupy:
    """Assert that results agree with the reference; return the runtime."""
    runtime = EmulatedCupy(call.op)
    if 0 in call.plan.out_shape:
        return runtime  # such calls launch nothing
    grad_out = normal(call.plan.dtype, *call.plan.out_shape) if grad_out is None else grad_out
    assert_close(runtime.forward(call), *call.expected_forward())
    gradients = runtime.backward(call, grad_out)
    for name, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds, what=name)
    return runtime


def normal(dtype: str, *shape: int) -> Any:
    return rounded(np.random.default_rng([*shape]).standard_normal(shape), dtype)


def call_of(
    dtype: str,
    image: tuple[int, int, int, int],
    outputs: int,
    *,
    scope: tuple[int, int] = (4, 4),
    k: tuple[int, int] = (3, 3),
    moves: str = "kernel data mask",
    Gk: int = 1,
    Gd: int = 1,
    reach: float = 1.0,
    **options: Any,
) -> Call:
    """Return a call of normally distributed arrays, with a bias; `moves` names the offsets given."""
    (N, C, H, W), stride, padding = image, options.get("stride", 1), options.get("padding", 1)
    dilation = options.get("dilation", (1, 1))
    reach_h, reach_w = (k[0] - 1) * dilation[0] + 1, (k[1] - 1) * dilation[1] + 1
    pixels = (H + 2 * padding - reach_h) // stride + 1, (W + 2 * padding - reach_w) // stride + 1

    def offsets(blocks: int) -> Any:
        return rounded(reach * np.random.default_rng(blocks).standard_normal((N, blocks, *k, 2, *pixels)), dtype)

    arrays = (
        normal(dtype, *image),
        normal(dtype, outputs, C // options.get("groups", 1), *(scope if "kernel" in moves else k)),
        offsets(Gk) if "kernel" in moves else None,
        offsets(Gd) if "data" in moves else None,
        normal(dtype, N, Gd, *k, *pixels) if "mask" in moves else None,
        normal(dtype, outputs),
    )
    return Call(DEFORMABLE_CONV2D, arrays, {"kernel_size": k, "padding": 1} | options)


@emulation
@pytest.mark.parametrize(("op", "dtype"), CASES)
@given(data=st.data())
def test_equals_reference(op: Any, dtype: str, data: st.DataObject) -> None:
    special = data.draw(st.booleans())
    call = data.draw(strategies.calls(op, dtype, allow_nan=special, allow_infinity=special, small=True))
    grad_out = data.draw(strategies.grad_outs(call))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        check(call, grad_out)


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
def test_several_tiles_and_the_rest_of_one(dtype: str) -> None:
    check(call_of(dtype, (2, 5, 7, 13), 66, moves="kernel"))
    check(call_of(dtype, (1, 70, 6, 5), 3, k=(2, 2), moves="data mask"))
    check(call_of(dtype, (2, 70, 6, 9), 70, groups=70))


@emulation
@pytest.mark.parametrize("moves", ["kernel", "data", "mask", "kernel data mask", ""])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 3])
def test_groups_and_strides(moves: str, groups: int, stride: int) -> None:
    check(call_of("float32", (2, 6, 8, 9), 12, moves=moves, groups=groups, stride=stride, Gk=3, Gd=2, padding=2))


@emulation
@pytest.mark.parametrize(
    ("k", "scope"), [((1, 1), (3, 4)), ((2, 5), (9, 9)), ((7, 7), (1, 1)), ((9, 8), (2, 3)), ((2, 2), (21, 20))]
)
@pytest.mark.parametrize("groups", [1, 4])
def test_kernel_sizes_and_scopes(k: tuple[int, int], scope: tuple[int, int], groups: int) -> None:
    call = call_of("float32", (1, 4, 9, 8), 4, k=k, scope=scope, moves="kernel data", groups=groups, reach=3.0)
    check(call)


@emulation
@pytest.mark.parametrize("outputs", [4, 5])
def test_which_calls_are_depthwise(outputs: int) -> None:
    """Groups of one channel with few outputs, or with kernel offsets, whose rules differ from those of dense ones."""
    for moves, depthwise in [("data", outputs == 4), ("kernel", True)]:
        cuda = check(call_of("float32", (1, 2, 5, 6), 2 * outputs, groups=2, moves=moves))
        assert ("deform_columns<float, int>" in cuda.launched) is not depthwise


@emulation
@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@pytest.mark.parametrize("moves", ["kernel", "kernel data mask", "kernel mask", "data", "data mask"])
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
def test_scopes_in_shared_memory(dtype: str, moves: str, boundary: str) -> None:
    """Several blocks of outputs, of offsets and of pixels, the last of each with a rest."""
    call = call_of(dtype, (2, 70, 5, 7), 70, groups=70, moves=moves, kernel_boundary=boundary, reach=2.0)
    gathered, moved = ["forward"] * ("data" not in moves), ["backward_kernel"] * ("kernel" in moves)
    assert in_shared_memory(check(call)) == ["forward", *gathered, *moved, "backward_weight"]
    call = call_of(dtype, (1, 36, 6, 7), 72, groups=36, moves=moves, kernel_boundary=boundary, Gk=2, Gd=3, k=(2, 3))
    assert in_shared_memory(check(call)) == ["forward", "backward_weight"]


@emulation
@pytest.mark.parametrize(
    ("k", "scope"),
    [
        ((1, 1), (2, 2)),
        ((7, 7), (4, 5)),
        ((3, 3), (9, 9)),
        ((8, 8), (1, 1)),
        ((13, 5), (2, 2)),
        ((2, 3), (11, 12)),
        ((1, 2), (30, 31)),
    ],
)
def test_what_fits_shared_memory(k: tuple[int, int], scope: tuple[int, int]) -> None:
    """As many taps at a time, and as many outputs, as fit; more than 64 taps or 128 positions take other kernels."""
    call = call_of("float32", (1, 9, 13, 7), 9, k=k, scope=scope, moves="kernel data mask", groups=9)
    filters, sums = k != (13, 5) and scope != (30, 31), k != (13, 5) and scope[0] < 9
    names = ["forward", "backward_kernel"] * filters + ["backward_weight"] * sums
    assert in_shared_memory(check(call)) == names


@emulation
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("moves", ["kernel mask", "kernel data mask", "data mask"])
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
def test_scopes_in_shared_memory_skip_what_no_tap_reads(bad: float, moves: str, boundary: str) -> None:
    """What lies beyond the scope, outside the image or in the next output's filter is no factor of anything."""
    call = call_of("float32", (1, 8, 5, 6), 8, moves=moves, groups=8, kernel_boundary=boundary, reach=2.0)
    arrays = [None if array is None else array.copy() for array in call.arrays]
    arrays[1][3] = arrays[0][0, 5] = bad
    arrays[4][0, 0, 1, 1, 2:4] = bad
    arrays[1][5, 0, 0] = bad  # of the taps above the first row, if nothing moves them
    arrays[2 if "kernel" in moves else 3][0, 0, 0, 0, :, 0] = bad
    call = call.with_arrays(*arrays)
    grad_out = normal("float32", *call.plan.out_shape)
    grad_out[0, 6, 2] = bad
    moved = {"backward_kernel"} if "kernel" in moves else set()
    assert set(in_shared_memory(check(call, grad_out))) == {"forward", "backward_weight", *moved}


@emulation
def test_sums_of_scopes_in_shared_memory_are_staged() -> None:
    check_of_one_sign(call_of("float32", (1, 8, 60, 60), 8, k=(1, 1), scope=(2, 2), moves="kernel", groups=8))
    check_of_one_sign(call_of("float32", (1, 1, 90, 90), 1, k=(2, 2), scope=(1, 1), moves="kernel", groups=1))
    check_of_one_sign(call_of("float32", (1, 300, 3, 4), 300, moves="kernel", groups=300))


@emulation
@pytest.mark.parametrize("stride", [1, 2])
def test_strides_and_borders_of_scopes_in_shared_memory(stride: int) -> None:
    """The gradient of the image looks for the output pixels that read it, of which some pixels have none."""
    call = call_of("float32", (2, 9, 8, 9), 9, moves="kernel mask", groups=9, stride=stride, dilation=(1, 2), padding=2)
    assert in_shared_memory(check(call)) == ["forward", "forward", "backward_kernel", "backward_weight"]


@emulation
def test_kernel_offsets_of_many_images_are_done_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * 9 * 2 * 4 * 5
    monkeypatch.setattr(cupy_raw_call, "COLUMNS", 4 * 2 * size)
    call = call_of("float32", (3, 9, 4, 5), 9, moves="kernel", groups=9, Gk=3)
    cuda = check(call)
    assert in_shared_memory(cuda).count("backward_kernel") == 2
    monkeypatch.setattr(cupy_raw_call, "COLUMNS", 4 * size - 1)
    cuda = check(call)
    assert "backward_kernel" not in in_shared_memory(cuda)
    assert "deform_backward_kernel<float, int, false>" in cuda.launched


def check_of_one_sign(call: Call) -> None:
    """Check sums whose roundings do not cancel: of terms that are all positive, but for the derivatives."""
    x, weight, kernel_offset, data_offset, mask, bias = call.arrays
    positive = [None if array is None else np.abs(array) for array in (x, weight, mask, bias)]
    call = call.with_arrays(*positive[:2], kernel_offset, data_offset, *positive[2:])
    check(call, np.abs(normal("float32", *call.plan.out_shape)))


def in_shared_memory(cuda: EmulatedCupy) -> list[str]:
    """Return the kernels of scopes in shared memory that were launched."""
    prefix = "deform_scope_"
    return [name.removeprefix(prefix).partition("<")[0] for name in cuda.launched if name.startswith(prefix)]


@emulation
def test_long_sums_are_staged() -> None:
    check_of_one_sign(call_of("float32", (1, 300, 3, 4), 2, moves="kernel"))
    check_of_one_sign(call_of("float32", (1, 130, 3, 4), 130, groups=130))
    check_of_one_sign(call_of("float32", (1, 2, 3, 4), 70, moves="kernel data"))
    check_of_one_sign(call_of("float32", (1, 1, 60, 60), 5, k=(1, 1), moves="data"))
    check_of_one_sign(call_of("float32", (1, 1, 60, 60), 1, k=(1, 1), moves="data"))


@emulation
@pytest.mark.parametrize("groups", [1, 4])
def test_taps_that_all_reach_one_cell(groups: int) -> None:
    """Thousands of terms in one element of the gradient of the image, none in the others."""
    call = call_of("float32", (1, 4, 20, 20), 4, moves="data mask", groups=groups)
    x, weight, _, offset, mask, bias = call.arrays
    y, x_of = np.meshgrid(np.arange(20), np.arange(20), indexing="ij")
    i, j = np.meshgrid(np.arange(3) - 1, np.arange(3) - 1, indexing="ij")
    offset = offset.copy()
    offset[0, 0, :, :, 0] = 7.25 - y - i[..., None, None]
    offset[0, 0, :, :, 1] = 12.5 - x_of - j[..., None, None]
    call = call.with_arrays(x, weight, None, offset, mask, bias)
    check(call)
    gradient = EmulatedCupy(call.op).backward(call, normal("float32", *call.plan.out_shape), ["x"])[0]
    assert np.count_nonzero(gradient) == 4 * 4


@emulation
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**30, 2.0**31])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
def test_no_offset_reads_out_of_bounds(bad: float, groups: int, boundary: str) -> None:
    call = call_of("float32", (1, 4, 5, 6), 4, groups=groups, kernel_boundary=boundary)
    x, weight, kernel_offset, data_offset, mask, bias = call.arrays
    for offset in (kernel_offset, data_offset):
        offset[0, 0, 0, 1, 0, 2] = bad
        offset[0, 0, 2, 2, 1, :, 3] = bad
    check(call.with_arrays(x, weight, kernel_offset, data_offset, mask, bias))


@emulation
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("data", [False, True])
def test_where_a_tap_is_in_its_kernel_matters_to_what_it_sees_alone(groups: int, data: bool) -> None:
    call = nan_taps("float32", groups, data=data)
    assert_close(EmulatedCupy(call.op).forward(call), *call.expected_forward())


@emulation
@pytest.mark.parametrize("groups", [1, 4])
def test_gradients_of_an_empty_batch_are_zero_and_read_nothing(groups: int) -> None:
    call = call_of("float32", (0, 4, 5, 6), 4, groups=groups)
    wanted = ["weight", "bias"]
    gradients = EmulatedCupy(DEFORMABLE_CONV2D).backward(call, normal("float32", 0, 4, 5, 6), wanted)
    assert [name for name, gradient in zip(call.op.arrays, gradients, strict=True) if gradient is not None] == wanted
    assert not any(gradient.any() for gradient in gradients if gradient is not None)
    call = Call(SAMPLE_KERNEL, (normal("float32", 4, 2, 3, 3), normal("float32", 0, 1, 3, 3, 2)), {})
    assert not EmulatedCupy(SAMPLE_KERNEL).backward(call, normal("float32", 0, 4, 2, 3, 3), ["weight"])[0].any()


# ---- what is launched ------------------------------------------------------------------------------------------------

DENSE_KERNELS = {
    "x": ["deform_list", "deform_places", "deform_list", "deform_backward_columns", "deform_backward_x"],
    "weight": ["deform_columns", "deform_backward_weight"],
    "kernel_offset": ["deform_backward_columns", "deform_backward_kernel"],
    "data_offset": ["deform_backward_columns", "deform_backward_data"],
    "mask": ["deform_backward_columns", "deform_backward_data"],
    "bias": ["deform_backward_bias", "sum_partials"],
}


@emulation
@pytest.mark.parametrize("needs", [(), *[(name,) for name in DENSE_KERNELS]])
def test_only_needed_gradients_are_launched(needs: tuple[str, ...]) -> None:
    call = call_of("float32", (1, 4, 4, 5), 5)
    cuda = EmulatedCupy(DEFORMABLE_CONV2D)
    gradients = cuda.backward(call, normal("float32", 1, 5, 4, 5), needs)
    assert [name.partition("<")[0] for name in cuda.launched] == [k for name in needs for k in DENSE_KERNELS[name]]
    assert [gradient is not None for gradient in gradients] == [name in needs for name in call.op.arrays]


@emulation
def test_gradients_that_need_the_same_of_the_columns_share_it() -> None:
    cuda = check(call_of("float32", (2, 4, 5, 7), 3))
    assert cuda.launched.count("deform_backward_columns<float, int>") == 1
    assert cuda.launched.count("deform_columns<float, int>") == 2  # forward, and for the gradient of the weight


def shrink(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    """Give the launch functions only a part of their workspace."""
    for module, name in [
        (cupy_raw_call, "COLUMNS"),
        (cupy_raw_call, "PARTIAL"),
        (cupy_raw_gather, "LISTS"),
        (cupy_raw_gather, "CARRIED"),
    ]:
        monkeypatch.setattr(module, name, getattr(module, name) // factor)


@emulation
@pytest.mark.parametrize("factor", [2**10, 2**13])
@pytest.mark.parametrize(("dtype", "groups"), [("float32", 1), ("float32", 4), ("float16", 2)])
def test_a_small_workspace_is_enough(factor: int, dtype: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit at once is done in parts: of images, of blocks, of channels, of pixels and of rows."""
    shrink(monkeypatch, factor)
    cuda = check(call_of(dtype, (3, 4, 10, 12), 4, groups=groups, Gd=2, Gk=2))
    assert max(cuda.workspaces) * ITEMSIZE[accumulator(dtype)] <= WORKSPACE // factor // 2


@emulation
def test_a_row_of_cells_may_be_longer_than_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_raw_gather, "LISTS", 8 * 64)
    check(call_of("float16", (1, 1, 2, 70), 1, moves="data", padding=1))


@emulation
@pytest.mark.parametrize("groups", [1, 16])
def test_order_of_threads_changes_no_bit(groups: int) -> None:
    call = call_of("float32", (1, 16, 6, 11), 16, groups=groups, reach=3.0)
    grad_out = normal("float32", *call.plan.out_shape)
    results = []
    for order in ORDERS:
        with emulated(mode="fast", order=order, seed=5):
            runtime = EmulatedCupy(DEFORMABLE_CONV2D)
            arrays = runtime.forward(call), *runtime.backward(call, grad_out)
            results.append([array.tobytes() for array in arrays])
    assert all(other == results[0] for other in results)


@emulation
@pytest.mark.parametrize("groups", [1, 2])
def test_large_tensors_get_64_bit_indices(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cupy_raw_call, cupy_raw_sample):
        monkeypatch.setattr(module, "index_dtype", lambda *extents: np.dtype(np.int64))
    cuda = check(call_of("float16", (1, 2, 5, 6), 6, groups=groups))
    wide = [name for name in cuda.launched if not name.startswith("sum_partials")]
    assert all("__half, long long" in name or name == "deform_places<long long>" for name in wide)
    offset = normal("float16", 2, 1, 3, 3, 2)
    cuda = check(Call(SAMPLE_KERNEL, (normal("float16", 2, 3, 4, 4), offset), {}))
    assert all("__half, long long" in name for name in cuda.launched)


def test_index_width_follows_the_largest_tensor() -> None:
    def width(**extents: int) -> str:
        g = DeformGeometry(*[1] * len(DeformGeometry._fields))._replace(**extents)
        return cupy_raw_call._index(g).name

    assert width(N=2**8, C=2**10, H=2**6, W=2**6) == "int32"
    assert width(N=2**8, C=2**10, H=2**6, W=2**7) == "int64"
    assert width(N=2**8, O=2**10, Ho=2**6, Wo=2**7) == "int64"
    assert width(N=2**8, Gk=2**6, kh=3, kw=3, Ho=2**8, Wo=2**8) == "int64"
    assert width(N=2**8, Gd=2**6, kh=3, kw=3, Ho=2**8, Wo=2**8) == "int64"
    assert width(O=2**15, C=2**12, Sh=4, Sw=4) == "int64"
    assert width(H=2**20, kh=3, dil_h=2**29) == "int64"
    assert width(W=2**20, pad_w=2**29) == "int64"
