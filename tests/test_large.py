"""Arrays of more than 2**31 elements, on every backend's kernels, in little memory.

The arrays are anonymous mappings that reserve address space alone (MAP_NORESERVE): pages that nobody writes to cost
nothing. A public call would write to all of them, so only the far end of the work is run. The last image holds values,
all before it are zeros; kernels get the geometry of the whole batch, and what they write for the last image must be
what the reference says of that image alone. An index that wraps around reads or writes elsewhere.

- The entry points of the CPU kernels are compiled again with a `prange` that yields its last tasks only.
- CUDA C and Numba CUDA kernels run on the emulator, through their launch functions, with only the last image's blocks
  of each grid and with every check on: bounds, and in CUDA C signed overflow of the indices. Both widths of index are
  run, 32 bits with the largest arrays that get them.
"""

from __future__ import annotations

import math
import mmap
import sys
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
from dynk.testing import Call, assert_close, rounded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mappings that reserve address space alone")
on_emulator = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

LIMIT = 2**31
LAST_TASKS = 16  # at least those of the last image
MAP_NORESERVE = 0x4000  # mmap has the name from Python 3.13 on

# Operator, shapes for each image of the batch and options by case; kh and kw stand for the kernel size.
Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def cases(kh: int, kw: int) -> dict[str, Case]:
    return {
        "images": ("ddf", ((8, 16, 64), (1, kh, kw, 16, 64), (8, kh, kw)), {"dilation": 3}),
        "channel filters": ("ddf", ((8, 2, 2), None, (8, kh, kw)), {}),
        "outputs": ("ddf_upsample", ((8, 8, 32), (1, 2, 2, kh, kw, 8, 32), (8, 2, 2, kh, kw)), {"scale": 2}),
        "filters": ("filter_norm", ((1, kh, kw, 16, 64), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)), {"axes": (2, 3)}),
    }


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
        rng = np.random.default_rng(0)
        small = [None if shape is None else rounded(rng.standard_normal((1, *shape)), dtype) for shape in shapes]
        self.last = Call(operators()[name], tuple(small), options)  # of the last image alone
        self.grad_out = rounded(rng.standard_normal(self.last.plan.out_shape), dtype)
        op, out_shape = self.last.op, self.last.plan.out_shape[1:]
        largest = max(math.prod(shape) for shape in (*shapes, out_shape) if shape is not None)
        self.N = LIMIT // largest + 1 if beyond else (LIMIT - cuda_launch._MARGIN - 1) // largest
        batches = tuple(None if shape is None else (self.N, *shape) for shape in shapes)
        dtypes = tuple(None if shape is None else dtype for shape in shapes)
        self.plan: Plan = op.plan(name, batches, dtypes, op.canonical(**options))
        assert (self.N * largest > LIMIT) == beyond

    def input(self, last: Any) -> Any:
        """Return an array of zeros for all images but the last."""
        if last is None:
            return None
        array = self.output(last.shape)
        array[-1] = last[0].view(array.dtype)
        array.flags.writeable = False
        return array

    def output(self, shape: tuple[int, ...]) -> Any:
        return sparse((self.N, *shape[1:]), self.plan.dtype)

    def arguments(self) -> tuple[list[Any], Any, list[Any]]:
        """Return the inputs, grad_out and the arrays of the gradients."""
        inputs = [self.input(array) for array in self.last.arrays]
        gradients = [None if array is None else self.output(array.shape) for array in self.last.arrays]
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
    op, plan = call.last.op, call.plan
    inputs, grad_out, gradients = call.arguments()
    out = call.output(call.last.plan.out_shape)

    def run(direction: str, *arrays: Any) -> None:
        kernel = of_last_tasks(getattr(op.launchers("cpu"), f"{op.launcher}_{direction}"))
        flat = [sparse((0,), plan.dtype) if a is None else a.reshape(-1) for a in arrays]
        for array in flat:
            array.flags.writeable = True
        kernel(*flat, plan.geometry_array, plan.reals_array)

    run("forward", *inputs, out)
    run("backward", grad_out, *inputs, *gradients)
    call.assert_right(out, gradients)


class _LastImage:
    """Runs only the blocks of the last of N images, in workspace that costs nothing until it is written to."""

    N: int

    def launch(self, *args: Any) -> None:
        grid = next(argument for argument in args if isinstance(argument, tuple))
        with emulated(last_blocks=cuda_launch.divide_up(grid[0], self.N) + 2):  # one may be cut, one may be idle
            super().launch(*args)  # type: ignore[misc]

    def workspace(self, count: int, dtype: str) -> Any:
        return sparse((count,), dtype)


class LastImageCupy(_LastImage, EmulatedCupy):
    pass


class LastImageNumba(_LastImage, EmulatedNumba):
    pass


# Kernel sizes and types that other tests compile too, for either width of index.
@on_emulator
@each_case
@pytest.mark.parametrize(("kh", "kw", "index"), [(3, 3, "long long"), (2, 4, "int")])
def test_cuda_c(case: str, kh: int, kw: int, index: str) -> None:
    call = LargeCall(cases(kh, kw)[case], "float16", beyond=index == "long long")
    cuda = LastImageCupy(call.last.op)
    cuda.N = call.N
    inputs, grad_out, gradients = call.arguments()
    out = call.output(call.last.plan.out_shape)
    getattr(cuda.launchers, f"{cuda.launcher}_forward")(cuda, call.plan, *inputs, out)
    getattr(cuda.launchers, f"{cuda.launcher}_backward")(cuda, call.plan, grad_out, *inputs, *gradients)
    call.assert_right(out, gradients)
    assert {name.split(", ")[1] for name in cuda.launched} == {index}


@on_emulator
@each_case
def test_numba_cuda(case: str) -> None:
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    call = LargeCall(cases(3, 3)[case], "float32")
    cuda, op = LastImageNumba(), call.last.op
    cuda.N = call.N
    inputs, grad_out, gradients = call.arguments()
    out = call.output(call.last.plan.out_shape)

    def flat(*arrays: Any) -> list[Any]:
        return [None if array is None else array.reshape(-1) for array in arrays]

    launchers = op.launchers("numba_cuda")
    getattr(launchers, f"{op.launcher}_forward")(cuda, call.plan, *flat(*inputs, out))
    getattr(launchers, f"{op.launcher}_backward")(cuda, call.plan, *flat(grad_out, *inputs, *gradients))
    call.assert_right(out, gradients)
