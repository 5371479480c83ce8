"""Runs calls on the CUDA C kernels, compiled and launched by CuPy.

Launchers are handed a `_Cuda`, which is all they know of CuPy, and C-contiguous CuPy arrays of the storage types. All
work goes to the caller's stream, nothing waits for the device, and a call can be captured in a CUDA graph once the same
call has run outside of one (which compiles its kernels and fills CuPy's memory pool).
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dynk._arrays import CudaView, memory_range
from dynk._operator import Operator, Plan
from dynk.kernels.common.dtypes import FLOATS, STORAGE

NAME = "cupy"
DEVICE = "cuda"
DTYPES = FLOATS
LAUNCHERS = "cupy_raw"

_HEADERS = Path(__file__).parent
_NULL = np.uint64(0)
_MAX_BLOCKS = 2**31 - 1

_kernels: dict[tuple[Path, str], Any] = {}
_compiling = threading.Lock()
# Temporary memory of captured calls: their graphs write to it whenever they are replayed.
_captured: list[Any] = []


def unavailable() -> str | None:
    """Return why this backend cannot run here, None where it can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install dynk[cuda12] or dynk[cuda13])"
    try:
        import cupy

        if cupy.cuda.runtime.driverGetVersion() == 0:
            return "there is no CUDA driver"
        return None if cupy.cuda.runtime.getDeviceCount() > 0 else "there is no CUDA device"
    except Exception as error:  # a broken installation or driver is a reason, whatever it raises
        return f"CuPy cannot use a CUDA device: {error}"


def run(
    op: Operator,
    direction: str,
    plan: Plan,
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    device: tuple[str, int],
    stream: int,
) -> None:
    """Run `<launcher>_<direction>` and write its results to `outputs`, of which None is not wanted."""
    import cupy

    launchers = op.launchers(LAUNCHERS)
    launch = getattr(launchers, f"{op.launcher}_{direction}")
    with cupy.cuda.Device(device[1]), _stream(cupy, stream):
        cuda = _Cuda(cupy, Path(launchers.__file__).parent)
        # A grid of no blocks cannot be launched: what has no elements is not wanted.
        wanted = [None if view is None or 0 in view.shape else cuda.wrap(view) for view in outputs]
        launch(cuda, plan, *map(cuda.contiguous, inputs), *wanted)
        if stream != 0:  # the legacy default stream cannot be captured, nor asked
            cuda.keep_if_captured()


class _ForeignStream:
    """A stream handle in the form of the CUDA stream protocol."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _stream(cupy: Any, handle: int) -> Any:
    """Return the caller's stream as one of CuPy's."""
    if handle == 0:
        return cupy.cuda.Stream.null
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_ForeignStream(handle))
    return cupy.cuda.ExternalStream(handle)  # until CuPy 13


class _Cuda:
    """What a launcher sees of CuPy during one call, on the device and stream that are then current."""

    def __init__(self, cupy: Any, folder: Path) -> None:
        self._cupy = cupy
        self._folder = folder
        self._temporaries: list[Any] = []

    def launch(
        self,
        source: str,
        expression: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        """Launch a kernel of a source file of the launcher's folder, compiling it on its first use."""
        if grid[0] > _MAX_BLOCKS:  # CuPy would cut the number off
            msg = f"cupy: a call must be of at most {_MAX_BLOCKS} blocks of threads, got {grid[0]}; split the batch"
            raise NotImplementedError(msg)
        kernel = _kernel(self._cupy, self._folder / source, expression)
        # CuPy would pass None as an argument without a value.
        kernel(grid, block, tuple(_NULL if a is None else a for a in map(_host_struct, args)), shared_mem=shared)

    def workspace(self, count: int, dtype: str) -> Any:
        """Return uninitialised memory that lasts until the kernels launched so far and in this call have run."""
        memory = self._cupy.empty(count, STORAGE[dtype])
        self._temporaries.append(memory)
        return memory

    def wrap(self, view: CudaView | None) -> Any:
        """Return a view as a CuPy array over the same memory."""
        if view is None:
            return None
        cupy, storage = self._cupy, STORAGE[view.dtype]
        first, end = memory_range(view)
        if first == end:
            return cupy.empty(view.shape, storage)
        memory = cupy.cuda.UnownedMemory(first, end - first, view.owner, view.device)
        start = cupy.cuda.MemoryPointer(memory, view.pointer - first)
        return cupy.ndarray(view.shape, storage, start, view.strides)

    def contiguous(self, view: CudaView | None) -> Any:
        """Return a view as a C-contiguous CuPy array, a copy if it must be."""
        array = self.wrap(view)
        if array is None or array.flags.c_contiguous:
            return array
        copy = self._cupy.ascontiguousarray(array)
        self._temporaries.append(copy)
        return copy

    def keep_if_captured(self) -> None:
        """Keep temporary memory for good where the call was captured; else the pool reuses it in stream order."""
        if self._temporaries and self._cupy.cuda.get_current_stream().is_capturing():
            _captured.extend(self._temporaries)


def _host_struct(argument: Any) -> Any:
    """Return a struct in the form that CuPy documents for passing one by value, a NumPy array."""
    return np.asarray(argument) if isinstance(argument, np.void) else argument


def _kernel(cupy: Any, path: Path, expression: str) -> Any:
    """Return a compiled kernel; CuPy loads it on each device where it is launched."""
    kernel = _kernels.get((path, expression))
    if kernel is None:
        with _compiling:
            kernel = _kernels.get((path, expression))
            if kernel is None:
                options = ("-std=c++17", f"-I{_HEADERS}", f"-I{path.parent}")
                module = cupy.RawModule(
                    code=_source(path), options=options, backend="nvrtc", name_expressions=(expression,)
                )
                kernel = _kernels[path, expression] = module.get_function(expression)
    return kernel


@cache
def _source(path: Path) -> str:
    """Return a source with a digest of the headers, which CuPy's cache of compiled kernels would not look into."""
    folders = dict.fromkeys((_HEADERS, path.parent))
    headers = b"".join(header.read_bytes() for folder in folders for header in sorted(folder.glob("*.cuh")))
    return f"{path.read_text()}\n// headers {hashlib.sha256(headers).hexdigest()}\n"
