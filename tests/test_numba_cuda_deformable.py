"""The Numba CUDA kernels of `deformable_conv2d` and `sample_kernel` on the emulator: the paths that shapes choose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from deformable_cases import nan_taps

from dynk._operator import operators
from dynk.kernels.deformable.geometry import WORKSPACE
from dynk.testing import Call, assert_close

numba_cuda_package = pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
import numba  # noqa: E402
from emulated import EmulatedNumba  # noqa: E402

from dynk.kernels.deformable import numba_cuda_conv  # noqa: E402

DEFORMABLE_CONV2D = operators()["deformable_conv2d"]
SAMPLE_KERNEL = operators()["sample_kernel"]

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))
compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the emulator runs what Numba compiles")
pytestmark = [emulation, compiled]

# Which arguments a call has: offsets of the kernel, offsets of the data, a mask.
FORMS = {
    "local": (True, False, False),
    "dcn": (False, True, False),
    "dcn2": (False, True, True),
    "both": (True, True, True),
    "masked": (False, False, True),
    "plain": (False, False, False),
}
each_form = pytest.mark.parametrize("form", FORMS)
each_kind = pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "grouped", "depthwise"])


def normal(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([*shape]).standard_normal(shape).astype(dtype)


def call_of(
    form: str,
    N: int = 2,
    C: int = 4,
    outputs: int = 4,
    H: int = 6,
    W: int = 7,
    *,
    scope: tuple[int, int] = (4, 4),
    k: tuple[int, int] = (3, 3),
    Gk: int = 1,
    Gd: int = 1,
    dtype: str = "float32",
    **options: Any,
) -> Call:
    """Return a call of normally distributed arrays, offsets included."""
    moves_kernel, moves_data, has_mask = FORMS[form]
    options = {"padding": 1, "groups": 1} | options
    stride = options.get("stride", 1)
    pixels = [(extent + 2 * options["padding"] - taps) // stride + 1 for extent, taps in zip((H, W), k, strict=True)]
    arrays = (
        normal(N, C, H, W, dtype=dtype),
        normal(outputs, C // options["groups"], *(scope if moves_kernel else k), dtype=dtype),
        normal(N, Gk, *k, 2, *pixels, dtype=dtype) if moves_kernel else None,
        normal(N, Gd, *k, 2, *pixels, dtype=dtype) * 2 if moves_data else None,
        normal(N, Gd, *k, *pixels, dtype=dtype) if has_mask else None,
        normal(outputs, dtype=dtype),
    )
    return Call(DEFORMABLE_CONV2D, arrays, options)


def check(call: Call, grad_out: Any = None) -> EmulatedNumba:
    """Assert that results agree with the reference; return the runtime."""
    runtime = EmulatedNumba()
    if grad_out is None:
        grad_out = normal(*call.plan.out_shape, dtype=call.plan.dtype)
    assert_close(runtime.forward(call), *call.expected_forward(), what="out")
    gradients = runtime.backward(call, grad_out)
    for name, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds, what=name)
    return runtime


@each_form
@each_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forms(form: str, groups: int, dtype: str) -> None:
    check(call_of(form, outputs=8, groups=groups, Gk=2, Gd=4, dtype=dtype))


@pytest.mark.parametrize("boundary", ["clip", "zeros"])
@pytest.mark.parametrize(("scope", "k"), [((1, 1), (1, 1)), ((1, 1), (2, 3)), ((9, 9), (1, 7)), ((2, 5), (4, 2))])
@each_kind
def test_scopes(boundary: str, scope: tuple[int, int], k: tuple[int, int], groups: int) -> None:
    check(call_of("both", N=1, padding=3, scope=scope, k=k, groups=groups, kernel_boundary=boundary))


@pytest.mark.parametrize("form", ["both", "dcn"])
def test_several_tiles_and_the_rest_of_one(form: str) -> None:
    check(call_of(form, C=18, outputs=66, Gk=3, Gd=2, scope=(3, 2)))


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 6])
def test_blocks_of_channels_of_every_size(blocks: int) -> None:
    """Threads take four or eight channels that have the same offsets, and the rest of a segment."""
    for groups in (1, 4 * blocks):
        check(call_of("both", N=1, C=4 * blocks, outputs=4 * blocks, Gk=4, Gd=2, groups=groups))


@pytest.mark.parametrize("outputs", [4, 8, 12, 20])
def test_outputs_of_depthwise(outputs: int) -> None:
    check(call_of("both", outputs=outputs, groups=4, Gd=2))


def positive(call: Call) -> Call:
    """Return the call with positive factors in (0.5, 1): the error of a long chain of their products is seen."""
    x, weight, kernel_offset, data_offset, mask, bias = call.arrays
    x, weight, mask, bias = (None if a is None else 0.5 + np.abs(a) % 0.5 for a in (x, weight, mask, bias))
    return call.with_arrays(x, weight, kernel_offset, data_offset, mask, bias)


LONG_SUMS = {
    "inputs": {"form": "plain", "C": 900, "outputs": 2, "H": 4, "W": 5},
    "outputs": {"form": "dcn", "C": 2, "outputs": 6000, "H": 2, "W": 3, "k": (1, 1)},
    "outputs of one input": {"form": "local", "C": 1, "outputs": 6000, "H": 2, "W": 3, "k": (1, 1), "scope": (1, 2)},
    "pixels": {"form": "plain", "C": 2, "outputs": 9, "H": 90, "W": 90, "k": (1, 1), "padding": 0},
    "pixels of one input": {"form": "plain", "C": 1, "outputs": 9, "H": 90, "W": 90, "k": (1, 1), "padding": 0},
}


@pytest.mark.parametrize("case", LONG_SUMS)
def test_long_sums_are_staged(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_cuda_conv, "PARTIAL", 0)
    monkeypatch.setattr(numba_cuda_conv, "lanes_for", lambda terms: 1)
    call = positive(call_of(N=1, **LONG_SUMS[case]))
    with emulated(mode="fast"):
        check(call, np.abs(normal(*call.plan.out_shape)) + 1)


@pytest.mark.parametrize("groups", [1, 2], ids=["dense", "depthwise"])
def test_many_taps_on_one_place_are_staged(groups: int) -> None:
    """All taps of a kernel are clipped to a corner of its scope, or look at one pixel."""
    call = positive(call_of("local", N=1, C=2, H=52, W=52, scope=(1, 2), k=(45, 45), padding=0, groups=groups))
    x, weight, kernel_offset, *rest = call.arrays
    grad_out = np.abs(normal(*call.plan.out_shape)) + 1
    with emulated(mode="fast"):
        check(call.with_arrays(x, weight, kernel_offset * 0 + 99, *rest), grad_out)
    call = positive(call_of("dcn", N=1, C=2, H=3, W=2, k=(9, 9), padding=4, groups=groups))
    x, weight, kernel_offset, data_offset, *rest = call.arrays
    down, right = np.meshgrid(np.arange(9), np.arange(9), indexing="ij")
    to_pixel = 5.25 - np.stack([down, right], -1)[..., None, None] + np.zeros_like(data_offset)
    with emulated(mode="fast"):
        check(call.with_arrays(x, weight, kernel_offset, to_pixel.astype(np.float32), *rest))


@each_form
@each_kind
def test_chunks(form: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with images for which the workspace does not suffice: pixels are cut anywhere."""
    whole = check(call_of(form, groups=groups, Gd=2))
    monkeypatch.setattr(numba_cuda_conv, "COLUMNS", 4 * 4 * 16 * 10)
    monkeypatch.setattr(numba_cuda_conv, "SAMPLES", 2 * 4 * 2 * 9 * 17)
    monkeypatch.setattr(numba_cuda_conv, "PARTIAL", 4 * 64 * 4 * 3)
    cut = check(call_of(form, groups=groups, Gd=2))
    assert len(cut.launched) > len(whole.launched)


@pytest.mark.parametrize("lists", [1, 7])
def test_cells_share_lists(lists: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with images of more cells than there is memory for."""
    monkeypatch.setattr(numba_cuda_conv, "LISTS", 3 * numba_cuda_conv.INT * lists)
    runtime = check(call_of("both", Gd=2))
    assert 3 * lists + 1 in runtime.workspaces


@each_kind
@each_form
def test_order_of_threads_changes_no_bit(form: str, groups: int) -> None:
    call = call_of(form, N=1, groups=groups, Gd=2)
    grad_out = normal(*call.plan.out_shape)
    results = set()
    for order in ORDERS:
        with emulated(mode="fast", order=order, seed=5):
            runtime = EmulatedNumba()
            arrays = runtime.forward(call), *runtime.backward(call, grad_out)
            results.add(b"".join(array.tobytes() for array in arrays if array is not None))
    assert len(results) == 1


# ---- points that are not there, and numbers that are none ------------------------------------------------------------

WILD = [np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**31, -(2.0**63), -1.0, 0.0]


@each_kind
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wild_offsets_read_nothing_outside(groups: int, boundary: str, dtype: str) -> None:
    """The emulator reports a read outside an array; gradients of a tap whose offset is NaN are of no use."""
    call = call_of("both", groups=groups, kernel_boundary=boundary, dtype=dtype)
    for which in (2, 3):
        arrays = list(call.arrays)
        arrays[which] = np.random.default_rng(0).choice([*WILD, 0.5, -0.25, 1.5], arrays[which].shape).astype(dtype)
        check(call.with_arrays(*arrays))


@each_kind
@pytest.mark.parametrize("which", [2, 3])
def test_a_nan_offset_is_seen_in_its_pixel_alone(groups: int, which: int) -> None:
    call = call_of("both", groups=groups, outputs=8)
    arrays = list(call.arrays)
    arrays[which] = arrays[which].copy()
    arrays[which][1, 0, 1, 2, 1, 3, 4] = np.nan
    arrays[5 - which] = arrays[5 - which] * 0  # the tap is inside, of the image or of the scope
    out = EmulatedNumba().forward(call.with_arrays(*arrays))
    assert np.isnan(out[1, :, 3, 4]).all()
    assert np.isnan(out).sum() == 8


@each_kind
@pytest.mark.parametrize("form", ["dcn", "plain", "local"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_nothing_reads_is_skipped(groups: int, form: str, bad: float) -> None:
    """Weights of taps that are outside the image, and gradients that meet only those; but for dense local kernels."""
    call = call_of(form, N=1, H=3, W=4, groups=groups, k=(3, 3), padding=4)
    x, weight, kernel_offset, data_offset, *rest = call.arrays
    grad_out = normal(*call.plan.out_shape)
    grad_out[:, 1, 0] = bad  # of a row that reads nothing
    if data_offset is not None:
        data_offset = data_offset * 0
    if form != "local" or groups == 4:
        check(call.with_arrays(x, weight, kernel_offset, data_offset, *rest), grad_out)
    weight = weight.copy()
    weight[1, :, 0] = bad
    check(call.with_arrays(x, weight, kernel_offset, data_offset, *rest), grad_out)
    image = x.copy()
    image[0, :, 1, 2] = bad
    check(call.with_arrays(image, weight, kernel_offset, data_offset, *rest), grad_out)


# ---- what is launched, and in how much memory ------------------------------------------------------------------------

ARGUMENTS = DEFORMABLE_CONV2D.arrays


@each_kind
@pytest.mark.parametrize("needs", [(), *[(name,) for name in ARGUMENTS]], ids=lambda needs: "-".join(needs))
def test_only_needed_gradients_are_launched(needs: tuple[str, ...], groups: int) -> None:
    call = call_of("both", groups=groups)
    runtime = EmulatedNumba()
    gradients = runtime.backward(call, normal(*call.plan.out_shape), needs)
    assert [gradient is not None for gradient in gradients] == [name in needs for name in ARGUMENTS]
    assert bool(runtime.launched) == bool(needs)
    lists = any("scattered" in name for name in runtime.launched)
    assert lists == ("x" in needs)
    assert any("weight" in name for name in runtime.launched) == ("weight" in needs)


@each_kind
def test_an_empty_batch_has_no_gradient_and_reads_nothing(groups: int) -> None:
    call = call_of("both", N=0, groups=groups)
    gradients = EmulatedNumba().backward(call, normal(*call.plan.out_shape))
    assert all(not np.asarray(gradient).any() for gradient in gradients)
    assert [gradient.shape for gradient in gradients] == [array.shape for array in call.arrays]


class Memory:
    """A runtime object that launches nothing and adds up what a call allocates."""

    def __init__(self, dtype: str) -> None:
        self.bytes = 0
        self.sizes = {dtype: np.dtype(dtype).itemsize, "int32": 4}

    def launch(self, kernel: Any, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        assert grid[0] < 2**31

    def workspace(self, count: int, dtype: str) -> Any:
        self.bytes += count * self.sizes[dtype]
        return SimpleNamespace(size=count)

    def absent(self, dtype: str) -> Any:
        return SimpleNamespace(size=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", [1, 256])
@pytest.mark.parametrize("extent", [1, 64, 1500])
@pytest.mark.parametrize("scope", [(4, 4), (9, 9)])
@pytest.mark.parametrize("taps", [3, 9])
def test_workspace_is_bounded(dtype: str, groups: int, extent: int, scope: tuple[int, int], taps: int) -> None:
    shapes = (
        (2, 256, extent, extent),
        (512, 256 // groups, *scope),
        (2, 8, taps, taps, 2, extent, extent),
        (2, 256, taps, taps, 2, extent, extent),
        (2, 256, taps, taps, extent, extent),
        (512,),
    )
    options = DEFORMABLE_CONV2D.canonical(padding=taps // 2, groups=groups)
    plan = DEFORMABLE_CONV2D.plan("deformable_conv2d", shapes, (dtype,) * 6, options)
    arrays = [SimpleNamespace(size=int(np.prod(shape))) for shape in shapes]
    out = SimpleNamespace(size=int(np.prod(plan.out_shape)))
    for launch, args in (
        (numba_cuda_conv.deformable_conv2d_forward, (*arrays, out)),
        (numba_cuda_conv.deformable_conv2d_backward, (out, *arrays, *arrays)),
    ):
        memory = Memory(dtype)
        launch(memory, plan, *args)
        assert memory.bytes <= WORKSPACE


# ---- sample_kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (130, 1, 1, 3), (2, 150, 9, 2)])
def test_sampled_kernels(dtype: str, boundary: str, shape: tuple[int, ...]) -> None:
    for offset in (normal(3, 2, 3, 5, 2, dtype=dtype), np.zeros((70, 1, 1, 1, 2), dtype)):
        wild = np.random.default_rng(0).choice(WILD, offset.shape).astype(dtype)
        for values in (offset, wild):
            check(Call(SAMPLE_KERNEL, (normal(*shape, dtype=dtype), values), {"kernel_boundary": boundary}))


def test_sampled_kernels_of_an_empty_batch() -> None:
    call = Call(SAMPLE_KERNEL, (normal(6, 5, 4, 4), np.zeros((0, 2, 3, 3, 2), np.float32)), {})
    gradients = EmulatedNumba().backward(call, normal(*call.plan.out_shape))
    assert not np.asarray(gradients[0]).any()
    assert gradients[1].shape == call.arrays[1].shape


@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("data", [False, True])
def test_where_a_tap_is_in_its_kernel_matters_to_what_it_sees_alone(groups: int, data: bool) -> None:
    call = nan_taps("float32", groups, data=data)
    assert_close(EmulatedNumba().forward(call), *call.expected_forward())
