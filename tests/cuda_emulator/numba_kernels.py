"""Run kernels written for ``numba.cuda.jit`` on the emulator's threads.

The kernel's Python function is compiled once more, by Numba for the CPU, with two substitutions: the name ``cuda``
means the stand-in module of ``numba_cuda_module``, and arrays are ``CheckedArray``, whose accesses the checker sees.
Device functions, met among the globals and in the closure, are treated alike.
"""

# mypy: ignore-errors
# Numba's extension interface carries no types.

import ctypes
import functools
import types as python_types
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.core.typing.typeof import typeof
from numba.extending import intrinsic

from .errors import Finding, KernelCheckError
from .launch import check_launch_shape, guarded, run, runtime
from .numba_arrays import INT, RUNTIME_FUNCTIONS, CheckedArray, find_place, make_array
from .numba_cuda_module import cuda as emulated_cuda

_COMPILER_OPTIONS = {"error_model": "numpy"}  # x / 0 is infinite, as on a GPU


class NumbaKernel:
    """Wraps a ``cuda.jit`` kernel: ``NumbaKernel(kernel)[grid, block, stream, shared_mem](*args)``.

    Arguments are NumPy arrays, numbers, and tuples of numbers.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.name: str = kernel.py_func.__name__

    def __getitem__(self, configuration: Any) -> Callable[..., None]:
        """Return the kernel with its launch configuration: (grid, block[, stream[, dynamic shared bytes]])."""
        grid, block, *rest = configuration
        shared_mem = int(rest[1]) if len(rest) > 1 else 0
        return lambda *args: self._launch(_extents(grid), _extents(block), shared_mem, args)

    def _launch(self, grid: Sequence[int], block: Sequence[int], shared_mem: int, args: tuple[Any, ...]) -> None:
        full_grid, full_block = check_launch_shape(self.name, grid, block)
        entry = _entry(self.kernel, tuple(map(self._type_of, args)))
        arrays = [argument for argument in args if isinstance(argument, np.ndarray)]
        with guarded([(array, False) for array in arrays]) as (regions, addresses):
            remaining = iter(addresses)
            slots = [slot for argument in args for slot in _slots(argument, remaining)]
            memory = (ctypes.c_int64 * max(1, len(slots)))(*slots)
            run(
                self.name,
                entry.address,
                memory,
                full_grid,
                full_block,
                regions,
                find_place,
                dynamic_shared_bytes=shared_mem,
            )

    def _type_of(self, argument: Any) -> Any:
        if isinstance(argument, np.ndarray):
            return CheckedArray(numba.from_dtype(argument.dtype), argument.ndim)
        if isinstance(argument, tuple):
            return types.Tuple([self._type_of(part) for part in argument])
        if isinstance(argument, (bool, int, float, np.generic)):
            return typeof(argument)
        detail = f"arguments must be arrays, numbers or tuples of them, got {type(argument).__name__}"
        raise KernelCheckError(self.name, [Finding("wrong argument", detail=detail)])


def _extents(extents: Any) -> tuple[int, ...]:
    return tuple(extents) if isinstance(extents, (tuple, list)) else (extents,)


# ---- substitution


def _for_cpu(function: Callable[..., Any]) -> Any:
    """Return the function compiled for the CPU, with ``cuda`` and the device functions it names replaced."""
    assert isinstance(function, python_types.FunctionType)
    names = _names_in(function.__code__)
    given = function.__globals__
    replaced = {**given, **{name: _replacement(given[name]) for name in names if name in given}}
    closure = tuple(python_types.CellType(_replacement(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = python_types.FunctionType(function.__code__, replaced, function.__name__, function.__defaults__, closure)
    return numba.njit(**_COMPILER_OPTIONS)(copy)


def _names_in(code: python_types.CodeType) -> set[str]:
    nested = [_names_in(constant) for constant in code.co_consts if isinstance(constant, python_types.CodeType)]
    return set(code.co_names).union(*nested)


def _replacement(value: Any) -> Any:
    if isinstance(value, python_types.ModuleType) and value.__name__.endswith("numba.cuda"):
        return emulated_cuda
    if type(value).__name__ == "CUDADispatcher":
        return _compiled(value)
    return value


@functools.cache
def _compiled(dispatcher: Any) -> Any:
    return _for_cpu(dispatcher.py_func)


# ---- the entry: what the runtime calls for each thread


def _slots(argument: Any, addresses: Any) -> list[int]:
    """Return the 64-bit words in which an argument reaches the kernel."""
    if isinstance(argument, np.ndarray):
        return [next(addresses), *argument.shape, *argument.strides]
    if isinstance(argument, tuple):
        return [slot for part in argument for slot in _slots(part, addresses)]
    data = np.asarray(argument).tobytes()
    return [int.from_bytes(data.ljust(8, b"\0"), "little", signed=True)]


def _unpacked(context: Any, builder: Any, wanted: Any, slots: Any, position: int) -> tuple[Any, int]:
    """Emit the reading of an argument from its words; return it and the position after it."""

    def word(i: int) -> Any:
        return builder.load(builder.gep(slots, [INT(i)]))

    if isinstance(wanted, CheckedArray):
        data = builder.inttoptr(word(position), context.get_data_type(types.voidptr))
        shape = [word(position + 1 + axis) for axis in range(wanted.ndim)]
        strides = [word(position + 1 + wanted.ndim + axis) for axis in range(wanted.ndim)]
        return make_array(context, builder, wanted, data, shape, strides), position + 1 + 2 * wanted.ndim
    if isinstance(wanted, types.BaseTuple):
        parts = []
        for part in wanted.types:
            value, position = _unpacked(context, builder, part, slots, position)
            parts.append(value)
        return context.make_tuple(builder, wanted, parts), position
    pointer = builder.bitcast(builder.gep(slots, [INT(position)]), context.get_data_type(wanted).as_pointer())
    return context.unpack_value(builder, wanted, pointer), position + 1


@functools.cache
def _entry(dispatcher: Any, argument_types: tuple[Any, ...]) -> Any:
    kernel = _compiled(dispatcher)
    for name in RUNTIME_FUNCTIONS:
        llvmlite.binding.add_symbol(name, ctypes.cast(getattr(runtime(), name), ctypes.c_void_p).value)
    arguments = types.Tuple(argument_types)

    @intrinsic
    def unpack(typing_context: Any, slots: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _unpacked(context, builder, arguments, args[0], 0)[0]

        return arguments(slots), codegen

    def entry(slots: Any) -> None:
        kernel(*unpack(slots))

    return numba.cfunc(types.void(types.CPointer(types.int64)), **_COMPILER_OPTIONS)(entry)
