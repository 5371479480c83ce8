"""Runs calls on the Numba CUDA kernels (package numba-cuda), which are compiled at the first call that needs them.

Work is put on the caller's stream, in the context that the frameworks share (the device's primary one), and the host
never waits for it. Workspace and the contiguous copies of strided inputs come from the device's memory pool in stream
order, so that a call can be captured in a CUDA graph, provided that one like it (same operator, direction and dtype,
and strided where it is strided) has run before: capture allows no kernel to be compiled or loaded. On a device without
memory pools a call that needs such memory waits for its own kernels, and cannot be captured.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from dynk._arrays import CudaView, contiguous_strides, memory_range
from dynk._operator import Operator, Plan, Shape
from dynk.kernels.common.dtypes import ITEMSIZE, STORAGE

NAME = "numba-cuda"
DEVICE = "cuda"
DTYPES = ("float32", "float64")
LAUNCHERS = "numba_cuda"

# Numba warns of grids smaller than this. Idle blocks cost less than a warning filter, which is one for all threads.
_LEAST_BLOCKS = 128


def unavailable() -> str | None:
    """Return why this backend cannot run here, None where it can; starts the CUDA driver if there is one."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed: install dynk[cuda12] or dynk[cuda13]"
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"):
        return "NUMBA_ENABLE_CUDASIM puts a simulator in the place of the device"
    try:
        cuda = _numba_cuda()
        if not cuda.is_available():
            return f"CUDA does not start: {_one_line(cuda.cuda_error() or 'libNVVM is missing')}"
        return None if len(cuda.gpus) > 0 else "there is no CUDA device"
    except Exception as error:  # whatever a broken installation raises
        return f"numba-cuda does not work: {type(error).__name__}: {_one_line(error)}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def run(
    op: Operator,
    direction: str,
    plan: Plan,
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    device: tuple[str, int],
    stream: int,
) -> None:
    """Run `<launcher>_<direction>` on `stream` and write its results to `outputs`, of which None is not wanted."""
    launch = getattr(op.launchers(LAUNCHERS), f"{op.launcher}_{direction}")
    with _numba_cuda().gpus[device[1]], _Runtime(device[1], stream) as runtime:
        arrays = [None if view is None else runtime.flat(view) for view in inputs]
        # What has no elements is not wanted.
        wanted = [None if view is None or 0 in view.shape else runtime.flat(view) for view in outputs]
        launch(runtime, plan, *arrays, *wanted)


def _numba_cuda() -> Any:
    # Imported here: it takes a second, and whoever has no CUDA array needs none of it.
    return importlib.import_module("numba.cuda")


class _Runtime:
    """What launch functions may ask for, for the duration of one call in the context of its device."""

    def __init__(self, device: int, stream: int) -> None:
        self._cuda = _numba_cuda()
        self._device = device
        self._handle = stream
        self._stream = self._cuda.external_stream(stream) if stream else 0
        self._memory: list[Any] = []

    def __enter__(self) -> _Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        # Freed in stream order: after the kernels launched above, before whatever the stream runs next.
        free = _memory_pool(self._device)[1]
        for pointer in self._memory:
            free(pointer, self._handle)

    def launch(self, kernel: Any, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        """Launch a kernel on the stream; kernels tolerate more blocks than they need."""
        kernel[(max(grid[0], _LEAST_BLOCKS),), block, self._stream](*args)

    def workspace(self, count: int, dtype: str) -> Any:
        """Return uninitialised memory that lasts until the kernels of this call are done.

        Numba's own `device_array` is no workspace: it allocates outside the stream's order, and frees, when its owner
        dies, by a cuMemFree that makes the host wait for the whole device.
        """
        allocate = _memory_pool(self._device)[0]
        pointer = allocate(max(count, 1) * ITEMSIZE[dtype], self._handle)
        self._memory.append(pointer)
        return self._array(int(pointer), count, dtype, None)

    def absent(self, dtype: str) -> Any:
        """Return an array that stands for one that is not there; never read."""
        return _absent(self._device, dtype)

    def flat(self, view: CudaView) -> Any:
        """Return a view's elements in row-major order as a flat array, copied if they are strided."""
        count = int(np.prod(view.shape, dtype=np.int64))
        if count == 0:
            return self.absent(view.dtype)
        if view.strides is None or view.strides == contiguous_strides(view.shape, view.dtype):
            return self._array(view.pointer, count, view.dtype, view)
        return self._contiguous(view, count)

    def _contiguous(self, view: CudaView, count: int) -> Any:
        from dynk.kernels.common.numba_cuda_kernels import COPY_DIMS, copy_kernel, launch

        itemsize = ITEMSIZE[view.dtype]
        if any(step % itemsize for step in view.strides or ()):
            msg = f"dynk: CUDA arrays must have strides of whole elements of {itemsize} bytes, got {view.strides}"
            raise ValueError(msg)
        first, end = memory_range(view)
        source = self._array(first, (end - first) // itemsize, view.dtype, view)
        out = self.workspace(count, view.dtype)
        extents, strides = _collapse(view.shape, tuple(step // itemsize for step in view.strides or ()))
        # A kernel walks the last COPY_DIMS dimensions; each step through the ones before, which are rare, is a launch.
        outer = max(0, len(extents) - COPY_DIMS)
        padding = (0,) * (COPY_DIMS - len(extents) + outer)
        inner = (1,) * len(padding) + extents[outer:], padding + strides[outer:]
        block = int(np.prod(extents[outer:], dtype=np.int64))
        for number, index in enumerate(np.ndindex(extents[:outer])):
            start = (view.pointer - first) // itemsize + int(np.dot(index, strides[:outer]))
            launch(self, copy_kernel, block, source, out, start, number * block, block, *inner)
        return out

    def _array(self, pointer: int, count: int, dtype: str, owner: Any) -> Any:
        interface = {
            "shape": (count,),
            "typestr": STORAGE[dtype].str,
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }
        return self._cuda.from_cuda_array_interface(interface, owner=owner, sync=False)


def _collapse(shape: Shape, strides: Shape) -> tuple[Shape, Shape]:
    """Merge neighbouring dimensions that are stepped through as one, and drop those of extent 1."""
    merged: list[tuple[int, int]] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if merged and merged[-1][1] == stride * extent:
            extent *= merged.pop()[0]
        merged.append((extent, stride))
    return tuple(extent for extent, _ in merged), tuple(stride for _, stride in merged)


@cache
def _absent(device: int, dtype: str) -> Any:
    return _numba_cuda().device_array(1, STORAGE[dtype])


@cache
def _memory_pool(device: int) -> tuple[Callable[[int, int], Any], Callable[[Any, int], None]]:
    """Return how to allocate (bytes, stream) and free (pointer, stream) memory on the device, in stream order."""
    from numba.cuda.cudadrv.driver import driver

    if _numba_cuda().gpus[device].MEMORY_POOLS_SUPPORTED:
        return driver.cuMemAllocAsync, driver.cuMemFreeAsync

    def free(pointer: Any, stream: int) -> None:
        driver.cuStreamSynchronize(stream)
        driver.cuMemFree(pointer)

    return lambda size, stream: driver.cuMemAlloc(size), free
