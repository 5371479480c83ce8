"""The CUDA backends' launch functions on the emulator: what each is handed in the place of a device."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from cuda_emulator import RawModule, fake_cupy

from dynk._arrays import compact, numpy_view
from dynk._operator import Operator
from dynk.kernels import common
from dynk.kernels.common.dtypes import STORAGE
from dynk.testing import Call, rounded


@cache
def numba_kernel(kernel: Any) -> Any:
    """Return a numba-cuda kernel as one of the emulator's, compiled once for each signature."""
    from cuda_emulator.numba_kernels import NumbaKernel

    return NumbaKernel(kernel)


class EmulatedNumba:
    """The runtime object of the numba-cuda launch functions; notes what is launched and allocated."""

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.workspaces: list[int] = []

    def launch(self, kernel: Any, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        self.launched.append(kernel.py_func.__name__)
        idle = 1  # kernels must tolerate more blocks than they need
        numba_kernel(kernel)[(grid[0] + idle,), block](*args)

    def workspace(self, count: int, dtype: str) -> Any:
        self.workspaces.append(count)
        return fake_cupy.empty(count, dtype)

    def absent(self, dtype: str) -> Any:
        return fake_cupy.empty(1, dtype)

    def forward(self, call: Call) -> Any:
        """Run a call's launch function and return its output."""
        launch = getattr(call.op.launchers("numba_cuda"), f"{call.op.launcher}_forward")
        out = fake_cupy.empty(call.plan.out_shape, call.plan.dtype)
        launch(self, call.plan, *map(_flat, call.arrays), out.reshape(-1))
        return np.asarray(out)

    def backward(self, call: Call, grad_out: Any, needs: Any = None) -> tuple[Any, ...]:
        """Run the launch function of a call's gradients and return them, None where absent or not in `needs`."""
        launch = getattr(call.op.launchers("numba_cuda"), f"{call.op.launcher}_backward")
        wanted = call.op.arrays if needs is None else needs
        gradients = [
            fake_cupy.empty(array.shape, array.dtype) if array is not None and name in wanted else None
            for name, array in zip(call.op.arrays, call.arrays, strict=True)
        ]
        outputs = [None if gradient is None else gradient.reshape(-1) for gradient in gradients]
        launch(self, call.plan, _flat(grad_out), *map(_flat, call.arrays), *outputs)
        return tuple(None if gradient is None else np.asarray(gradient) for gradient in gradients)


def _flat(array: Any) -> Any:
    """Return an input as launch functions take it: flat, and here read-only, so that the emulator reports a write."""
    if array is None:
        return None
    flat = np.array(array, order="C").reshape(-1)
    flat.flags.writeable = False
    return flat


class EmulatedCupy:
    """The runtime object of the cupy launch functions of one operator; notes what is launched and allocated."""

    def __init__(self, op: Operator) -> None:
        self.launcher = op.launcher
        self.launchers = op.launchers("cupy_raw")
        self.launched: list[str] = []
        self.workspaces: list[int] = []

    def launch(
        self,
        source: str,
        expression: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        self.launched.append(expression)
        module = _module(Path(self.launchers.__file__).parent / source, _together(self.launchers, source, expression))
        module.get_function(expression)(grid, block, args, shared_mem=shared)

    def workspace(self, count: int, dtype: str) -> Any:
        self.workspaces.append(count)
        return fake_cupy.empty(count, STORAGE[dtype])

    def forward(self, call: Call) -> Any:
        """Run a call's launch function and return its output."""
        dtype = call.plan.dtype
        out = fake_cupy.empty(call.plan.out_shape, STORAGE[dtype])
        getattr(self.launchers, f"{self.launcher}_forward")(self, call.plan, *_stored(call.arrays, dtype), out)
        return _values(out, dtype)

    def backward(self, call: Call, grad_out: Any, needs: Any = None) -> tuple[Any, ...]:
        """Run the launch function of a call's gradients and return them, None where absent or not in `needs`."""
        dtype = call.plan.dtype
        wanted = call.op.arrays if needs is None else needs
        gradients = [
            fake_cupy.empty(array.shape, STORAGE[dtype]) if array is not None and name in wanted else None
            for name, array in zip(call.op.arrays, call.arrays, strict=True)
        ]
        inputs = _stored((grad_out, *call.arrays), dtype)
        getattr(self.launchers, f"{self.launcher}_backward")(self, call.plan, *inputs, *gradients)
        return tuple(None if gradient is None else _values(gradient, dtype) for gradient in gradients)


@cache
def _module(path: Path, expressions: tuple[str, ...]) -> RawModule:
    options = ("-std=c++17", f"-I{Path(common.__file__).parent}", f"-I{path.parent}")
    return RawModule(path.read_text(), options=options, name_expressions=expressions)


@cache
def _together(launchers: Any, source: str, expression: str) -> tuple[str, ...]:
    """Return the kernels to compile with one: those declared with its arguments but for the mode, if it is among them.

    With DYNK_COMPILE_ONE in the environment none is: for tests that soon end.
    """
    if "DYNK_COMPILE_ONE" in os.environ:
        return (expression,)
    declared = [other for its_source, other in launchers.instantiations() if its_source == source]
    if expression not in declared:
        return (expression,)
    return tuple(other for other in declared if _signature(other) == _signature(expression))


def has_size(name: str) -> bool:
    """Return whether kernels of this name have a kernel size among their template arguments, after the types."""
    return name.startswith(("ddf_", "filter_norm_")) and name != "filter_norm_backward_scale"


def _signature(expression: str) -> list[str]:
    """Return the types of a kernel that has no size, all arguments but the mode of one that has."""
    name, _, rest = expression.partition("<")
    arguments = rest.split(", ")
    return arguments[:4] + arguments[5:] if has_size(name) else arguments[:2]


def _stored(arrays: tuple[Any, ...], dtype: str) -> list[Any]:
    """Return inputs as launch functions take them, and read-only, so that the emulator reports a write."""
    stored = [None if array is None else compact(numpy_view(array, _dtype(array, dtype))).view() for array in arrays]
    for array in stored:
        if array is not None:
            array.flags.writeable = False
    return stored


def _dtype(array: Any, dtype: str) -> str:
    """Return the dtype of an argument of a call, which is its own where that is of integers."""
    return str(array.dtype) if array.dtype.kind == "i" else dtype


def _values(storage: Any, dtype: str) -> Any:
    return np.asarray(storage).view(rounded(0.0, dtype).dtype)


def emulated_numba() -> list[EmulatedNumba]:
    """Return the runtime of the Numba CUDA kernels, where Numba compiles: the emulator runs what it makes of them."""
    return [] if numba.config.DISABLE_JIT else [EmulatedNumba()]
