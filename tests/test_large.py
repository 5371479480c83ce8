"""Arrays of more than 2**31 elements, on every backend's kernels, in little memory.

The arrays are anonymous mappings that reserve address space alone (MAP_NORESERVE): pages that nobody writes to cost
nothing. A public call would write to all of them, so only the far end of the work is run. The last image holds values,
all before it are zeros; kernels get the geometry of the whole batch, and what they write for the last image must be
what the reference says of that image alone. An index that wraps around reads or writes elsewhere. The gradients of
arrays that all images share read one large image with strides so wide that there are few outputs: these calls are run
whole.

- The entry points of the CPU kernels are compiled again with a `prange` that yields its last tasks only.
- CUDA C and Numba CUDA kernels run on the emulator, through their launch functions, with only the last image's blocks
  of each grid and with every check on: bounds, and in CUDA C signed overflow of the indices. Both widths of index are
  run, 32 bits with the largest arrays that get them.
"""

from __future__ import annotations

import math
import mmap
import re
import sys
from collections import Counter
from functools import cache
from types import FunctionType
from typing import Any

import numba
import numpy as np
import pytest
from cuda_emulator import emulated, emulator_unavailable
from emulated import EmulatedCupy, EmulatedNumba

from dynk._operator import Plan, operators
from dynk.kernels.common import cuda_launch
from dynk.kernels.common.dtypes import STORAGE
from dynk.kernels.common.run_cpu import arrays_read, kernel_of
from dynk.kernels.deformable import cupy_raw_call, cupy_raw_gather
from dynk.testing import Call, assert_close, rounded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mappings that reserve address space alone")
on_emulator = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

LIMIT = 2**31
LAST_TASKS = 32  # at least those of the last image
MAP_NORESERVE = 0x4000  # mmap has the name from Python 3.13 on

# Operator, shapes for each image of the batch, of the arrays that all images share as they are, and options.
Case = tuple[str, tuple[Any, ...], dict[str, Any]]
SHARED = {"weight", "bias", "seed"}


def cases(kh: int, kw: int) -> dict[str, Case]:
    """Return the cases; kh and kw stand for the kernel size."""
    taps, size = (kh, kw), (8, 16)
    across, filters, attention = (8, 2, *size), (8, *taps, *size), (8, 2, 2, *size)
    dilations = {"dilations": (1, 2, 3, 4)}
    padded = {"padding": (kh // 2, kw // 2), "kernel_size": taps}
    anchors = tuple(extent + 2 * (k // 2) - k + 1 for extent, k in zip(size, taps, strict=True))
    moved, masked = (4, *taps, 2, *anchors), (4, *taps, *anchors)
    one = (1, 1, 1, 2, *size)  # tap of all channels: taps come before pixels in the order of the blocks
    return {
        "images": ("ddf", ((8, 16, 64), (1, kh, kw, 16, 64), (8, kh, kw)), {"dilation": 3}),
        "channel filters": ("ddf", ((8, 2, 2), None, (8, kh, kw)), {}),
        "outputs": ("ddf_upsample", ((8, 8, 32), (1, 2, 2, kh, kw, 8, 32), (8, 2, 2, kh, kw)), {"scale": 2}),
        "filters": ("filter_norm", ((1, kh, kw, 16, 64), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)), {"axes": (2, 3)}),
        "kernels": ("dynamic_filter", ((2, *size), (4, 2, *taps, *size)), {}),
        "samples": ("ls_dfn", ((2, *size), across, filters, attention, filters), {"samples": 2, "sample_stride": 2}),
        "shares": ("adaptive_dilation_conv2d", ((4, *size), (2, 4, *taps), (4, *size), (2,)), dilations),
        "shares of channels": (
            "adaptive_dilation_conv2d", ((4, *size), (4, 1, *taps), (4, *size), (4,)), dilations | {"groups": 4},
        ),
        "logits": ("gumbel_softmax", ((8, *size), (2,)), {}),
        "offsets": ("deformable_conv2d", ((4, *size), (2, 4, 4, 4), moved, moved, masked, (2,)), padded),
        "offsets of channels": (
            "deformable_conv2d",
            ((4, *size), (4, 1, 4, 4), one, one, (1, 1, 1, *size), (4,)),
            {"kernel_size": 1, "groups": 4},
        ),
        "sampled kernels": ("sample_kernel", ((64, 4, 4, 4), (8, *taps, 2)), {"kernel_size": taps}),
    }  # fmt: skip


each_case = pytest.mark.parametrize("case", list(cases(1, 1)))


def sparse(shape: tuple[int, ...], dtype: str) -> Any:
    """Return zeros in which only the pages that are written to cost memory."""
    storage = STORAGE[dtype]
    size = max(1, math.prod(shape)) * storage.itemsize
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return np.frombuffer(memory, storage, math.prod(shape)).reshape(shape)


class LargeCall:
    """A call whose largest array has more than 2**31 elements, or just so few that they get 32-bit indices."""

    def __init__(self, case: Case, dtype: str, *, beyond: bool = True) -> None:
        name, shapes, options = case
        self.op = op = operators()[name]
        rng = np.random.default_rng(0)
        named = dict(zip(op.arrays, shapes, strict=True))
        batched = {array: (1, *shape) for array, shape in named.items() if shape is not None and array not in SHARED}
        small = [self.small(rng, array, batched.get(array, shape), dtype) for array, shape in named.items()]
        self.last = Call(op, tuple(small), options)  # of the last image alone
        self.grad_out = rounded(rng.standard_normal(self.last.plan.out_shape), dtype)
        largest = max(math.prod(shape) for shape in (*batched.values(), self.grad_out.shape))
        self.N = LIMIT // largest + 1 if beyond else (LIMIT - cuda_launch._MARGIN - 1) // largest
        if name == "gumbel_softmax":  # its noise goes by the index of an element
            self.last = Call(op, self.last.arrays, options | {"offset": (self.N - 1) * largest})
        shapes = tuple((self.N, *batched[array][1:]) if array in batched else shape for array, shape in named.items())
        dtypes = tuple(None if array is None else array.dtype.name for array in small)
        self.plan: Plan = op.plan(name, shapes, dtypes, op.canonical(**options))
        assert (self.N * largest > LIMIT) == beyond

    @staticmethod
    def small(rng: Any, name: str, shape: Any, dtype: str) -> Any:
        if shape is None:
            return None
        return rng.integers(0, 99, shape, "int32") if name == "seed" else rounded(rng.standard_normal(shape), dtype)

    def input(self, last: Any) -> Any:
        """Return an array of zeros for all images but the last."""
        array = self.output(last.shape)
        array[-1] = last[0].view(array.dtype)
        array.flags.writeable = False
        return array

    def shared(self, array: Any) -> Any:
        return None if array is None else array.view(STORAGE[self.plan.dtype])

    def output(self, shape: tuple[int, ...]) -> Any:
        return sparse((self.N, *shape[1:]), self.plan.dtype)

    def arguments(self) -> tuple[list[Any], Any, list[Any]]:
        """Return the inputs, grad_out and the arrays of the gradients: of those that have one for each image."""
        inputs, gradients = [], []
        for name, array in zip(self.op.arrays, self.last.arrays, strict=True):
            own = array is not None and name not in SHARED
            inputs.append(self.input(array) if own else array if name == "seed" else self.shared(array))
            gradients.append(self.output(array.shape) if own else None)
        return inputs, self.input(self.grad_out), gradients

    def assert_right(self, out: Any, gradients: list[Any]) -> None:
        """Assert that the last image of each result is right."""
        names = ("out", *self.last.op.arrays)
        expected, magnitudes = zip(
            self.last.expected_forward(), self.last.expected_backward(self.grad_out), strict=True
        )
        wants = (expected[0], *expected[1]), (magnitudes[0], *magnitudes[1])
        for name, result, want, magnitude in zip(names, (out, *gradients), *wants, strict=True):
            if result is not None:
                values = result[-1:].view(self.grad_out.dtype)
                assert_close(values, want, magnitude, what=name)


@numba.njit
def last_tasks(count):  # type: ignore[no-untyped-def]
    return range(max(0, count - LAST_TASKS), count)


@cache
def of_last_tasks(kernel: Any) -> Any:
    """Return an entry point of the CPU kernels that runs only the last tasks of each of its loops."""
    entry = kernel.py_func
    names = {**entry.__globals__, "prange": last_tasks}
    return numba.njit(error_model="numpy")(FunctionType(entry.__code__, names, entry.__name__))


@each_case
def test_cpu(case: str) -> None:
    call = LargeCall(cases(3, 3)[case], "float16")
    inputs, grad_out, gradients = call.arguments()
    out = call.output(call.last.plan.out_shape)

    def run(direction: str, inputs: list[Any], outputs: list[Any]) -> None:
        kernel = of_last_tasks(kernel_of(call.op, direction, call.plan))
        absent = sparse((0,), call.plan.dtype)
        results = [absent if array is None else array.reshape(-1) for array in outputs]
        given = arrays_read(call.op, direction, tuple(inputs), absent)
        kernel(*given, *results, call.plan.geometry_array, call.plan.reals_array)

    run("forward", inputs, [out])
    run("backward", [grad_out, *inputs], gradients)
    call.assert_right(out, gradients)


class _LastImage:
    """Runs only the blocks of the last of N images, in workspace that costs nothing until it is written to.

    A call that takes one part of the batch after the other launches the same kernels for each: the last two run, all
    blocks of them, so that the last image is whole.
    """

    N: int

    def run(self, launch: Any, *args: Any) -> None:
        """Call a launch function: once to count what it launches."""
        self.parts: Counter[Any] = Counter()
        self.to_come: Counter[Any] | None = None
        launch(self, *args)
        self.to_come = Counter(self.parts)
        launch(self, *args)

    def launch(self, *args: Any) -> None:
        kernel = args[1] if isinstance(args[0], str) else args[0]
        grid = next(argument for argument in args if isinstance(argument, tuple))[0]
        if self.to_come is None:
            self.parts[kernel] += 1
        else:
            self.to_come[kernel] -= 1
            if self.to_come[kernel] < 2:
                blocks = grid if self.parts[kernel] > 2 else cuda_launch.divide_up(grid, self.N)
                with emulated(last_blocks=blocks + 2):  # one may be cut, one may be idle
                    super().launch(*args)  # type: ignore[misc]

    def workspace(self, count: int, dtype: str) -> Any:
        return sparse((count,), dtype)


class LastImageCupy(_LastImage, EmulatedCupy):
    pass


class LastImageNumba(_LastImage, EmulatedNumba):
    pass


def flat(array: Any) -> Any:
    return None if array is None else array.reshape(-1)


# Bytes of the workspace for columns, and for lists: parts of a batch that the emulator does in a second.
SOME_IMAGES = 1 << 19


def run_all(cuda: Any, launchers: Any, call: LargeCall, passed: Any) -> None:
    """Launch the output, then each gradient by itself, and assert that the last image of each is right."""
    inputs, grad_out, gradients = call.arguments()
    out, nothing = call.output(call.last.plan.out_shape), [None] * len(gradients)
    cuda.N = call.N
    forward, backward = (getattr(launchers, f"{call.op.launcher}_{name}") for name in ("forward", "backward"))
    cuda.run(forward, call.plan, *map(passed, (*inputs, out)))
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            wanted = *nothing[:i], gradient, *nothing[i + 1 :]
            cuda.run(backward, call.plan, *map(passed, (grad_out, *inputs, *wanted)))
    call.assert_right(out, gradients)


# Kernel sizes and types that other tests compile too, for either width of index.
@on_emulator
@each_case
@pytest.mark.parametrize(("kh", "kw", "index"), [(3, 3, "long long"), (2, 4, "int")])
def test_cuda_c(case: str, kh: int, kw: int, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_raw_call, "COLUMNS", SOME_IMAGES)
    monkeypatch.setattr(cupy_raw_gather, "LISTS", SOME_IMAGES)
    call = LargeCall(cases(kh, kw)[case], "float16", beyond=index == "long long")
    cuda = LastImageCupy(call.op)
    run_all(cuda, cuda.launchers, call, lambda array: array)
    assert {"int", "long long"} & set(re.split("[<>]|, ", " ".join(cuda.launched))) == {index}


@on_emulator
@each_case
def test_numba_cuda(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    for name in ("COLUMNS", "SAMPLES", "LISTS"):
        monkeypatch.setattr(f"dynk.kernels.deformable.numba_cuda_conv.{name}", SOME_IMAGES)
    call = LargeCall(cases(3, 3)[case], "float32")
    launchers = call.op.launchers("numba_cuda")
    run_all(LastImageNumba(), launchers, call, flat)


# ---- gradients of what all images share ------------------------------------------------------------------------------

SPACE = 2**10  # between the pixels that are read
CHANNELS, EXTENT = 130, 5  # 130 * (4 * 2**10 + 1)**2 > 2**31
SPACED = [("adaptive_dilation_conv2d", 1), ("adaptive_dilation_conv2d", CHANNELS), ("deformable_conv2d", 1),
          ("deformable_conv2d", CHANNELS)]  # fmt: skip


def spaced(name: str, groups: int, dtype: str) -> tuple[Call, Call]:
    """Return a call that reads every SPACE-th row and column of a large image, and that of these pixels alone."""
    rng, outputs = np.random.default_rng(0), 2 if groups == 1 else groups
    x = rounded(rng.standard_normal((1, CHANNELS, EXTENT, EXTENT)), dtype)
    if name == "adaptive_dilation_conv2d":
        weight, others = (3, 3), ((1, 2, EXTENT, EXTENT), (outputs,))
        near: dict[str, Any] = {"dilations": (1, 2)}
        far: dict[str, Any] = {"dilations": (SPACE, 2 * SPACE), "stride": SPACE}
    else:
        weight, others = (4, 4), ((1, 1, 3, 3, 2, EXTENT, EXTENT), None, (1, 1, 3, 3, EXTENT, EXTENT), (outputs,))
        near = {"padding": 1, "kernel_size": 3}
        far = {"padding": SPACE, "stride": SPACE, "dilation": SPACE, "kernel_size": 3}
    shapes = (outputs, CHANNELS // groups, *weight), *others
    rest = [None if shape is None else rounded(rng.standard_normal(shape), dtype) for shape in shapes]
    extent = (EXTENT - 1) * SPACE + 1
    image = sparse((1, CHANNELS, extent, extent), dtype).view(x.dtype)
    image[:, :, ::SPACE, ::SPACE] = x
    assert image.size > LIMIT
    op, own = operators()[name], {"groups": groups}
    return Call(op, (image, *rest), far | own), Call(op, (x, *rest), near | own)


each_spaced = pytest.mark.parametrize(("name", "groups"), SPACED)


@each_spaced
def test_shared_on_the_cpu(name: str, groups: int) -> None:
    large, small = spaced(name, groups, "float16")
    grad_out = rounded(np.random.default_rng(1).standard_normal(small.plan.out_shape), "float16")
    assert_close(large.forward(), *small.expected_forward())
    gradients = large.backward(grad_out, needs=("weight", "bias"))
    assert_shared(small, grad_out, gradients)


@on_emulator
@each_spaced
def test_shared_in_cuda_c(name: str, groups: int) -> None:
    large, small = spaced(name, groups, "float16")
    cuda = EmulatedCupy(large.op)

    def stored(array: Any) -> Any:
        return None if array is None else array.view(STORAGE["float16"])

    launch_shared(cuda, cuda.launchers, large, small, stored)


@on_emulator
@each_spaced
def test_shared_in_numba_cuda(name: str, groups: int) -> None:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    large, small = spaced(name, groups, "float32")
    launch_shared(EmulatedNumba(), large.op.launchers("numba_cuda"), large, small, flat)


def launch_shared(cuda: Any, launchers: Any, large: Call, small: Call, passed: Any) -> None:
    """Launch the output and the gradients of the arrays that all images share, and assert that they are right."""
    dtype = small.plan.dtype
    grad_out = rounded(np.random.default_rng(1).standard_normal(small.plan.out_shape), dtype)
    out = np.zeros_like(grad_out)
    pairs = list(zip(large.op.arrays, large.arrays, strict=True))
    gradients = [np.zeros_like(array) if name in SHARED else None for name, array in pairs]
    forward, backward = (getattr(launchers, f"{large.op.launcher}_{name}") for name in ("forward", "backward"))
    forward(cuda, large.plan, *map(passed, (*large.arrays, out)))
    backward(cuda, large.plan, *map(passed, (grad_out, *large.arrays, *gradients)))
    assert_close(out, *small.expected_forward())
    assert_shared(small, grad_out, gradients)


def assert_shared(call: Call, grad_out: Any, gradients: Any) -> None:
    """Assert that the gradients of the arrays that all images share are right."""
    for array, gradient, *bounds in zip(call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if array in SHARED:
            assert_close(gradient, *bounds, what=array)
