"""The device that is measured: its clock, its name, and how much memory a call takes of it."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.registry import Call


class Cpu:
    """The processor."""

    kind = "cpu"

    def name(self, machine: dict[str, Any]) -> str:
        """Return what tells this device from others; `machine` is what doctor says."""
        return f"{machine['processor']}, {machine['threads']} threads"

    def describe(self) -> dict[str, str]:
        """Return what is to be known besides what doctor says."""
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            model = platform.processor()
        return {"model": model}

    def clock(self, call: Call, repeats: int) -> float:
        """Return the seconds of one call, its results let go included."""
        total = 0.0
        for _ in range(repeats):
            state = call.prepare()
            start = time.perf_counter()
            call.run(state)
            total += time.perf_counter() - start
        return total / repeats

    def extra_bytes(self, call: Call) -> int | None:
        """Return how far the resident memory rises above its start; None where the system does not tell."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # memory that was freed would be taken again unseen
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            result = call()
            peak = _status("VmHWM")
        except OSError:
            return None
        del result
        return max(0, peak - before)

    def synchronise(self) -> None:
        """Wait until everything asked of the device is done: on the processor it is."""


class Cuda:
    """The current CUDA device, through PyTorch's events on the stream that all contenders use."""

    kind = "cuda"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        torch.backends.cudnn.benchmark = True
        # Written before each call: the L2 cache holds none of its data, and the host is ahead of the device.
        self._flush = torch.empty(2**30, dtype=torch.uint8, device="cuda")

    def name(self, machine: dict[str, Any]) -> str:
        """Return the model of the device."""
        return str(self._torch.cuda.get_device_name())

    def describe(self) -> dict[str, str]:
        """Return what is to be known besides what doctor says."""
        properties = self._torch.cuda.get_device_properties()
        return {"model": properties.name, "compute capability": f"{properties.major}.{properties.minor}"}

    def clock(self, call: Call, repeats: int) -> float:
        """Return the seconds that the device spends on one call, its caches cold."""
        torch = self._torch
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            state = call.prepare()
            self._flush.zero_()
            start.record()
            call.run(state)
            end.record()
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in events)) / 1e3 / repeats

    def extra_bytes(self, call: Call) -> int:
        """Return how far the memory of PyTorch's, CuPy's and the driver's allocators rises above its start."""
        torch = self._torch
        gc.collect()
        call()  # compiles, and brings workspace into being that lasts
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        others = [start() for start in (_cupy_pool, _driver_pool)]
        result = call()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before + sum(rise() for rise in others)
        del result
        return int(extra)

    def synchronise(self) -> None:
        """Wait until everything asked of the device is done."""
        self._torch.cuda.synchronize()


def _cupy_pool() -> Callable[[], int]:
    """Return how far CuPy's memory pool has grown since now, when what it keeps unused was let go."""
    try:
        import cupy
    except ImportError:
        return lambda: 0
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    return lambda: int(pool.total_bytes() - before)


def _driver_pool() -> Callable[[], int]:
    """Return the most taken of the driver's own memory pool since now; numba-cuda's workspace comes from it."""
    try:
        from cupy.cuda import runtime
    except ImportError:
        return lambda: 0
    pool = runtime.deviceGetDefaultMemPool(runtime.getDevice())
    used, most = runtime.cudaMemPoolAttrUsedMemCurrent, runtime.cudaMemPoolAttrUsedMemHigh
    before = runtime.memPoolGetAttribute(pool, used)
    runtime.memPoolSetAttribute(pool, most, 0)
    return lambda: max(0, int(runtime.memPoolGetAttribute(pool, most)) - before)


def find(kind: str | None) -> Cpu | Cuda:
    """Return the device asked for, or CUDA where PyTorch has it, else the processor."""
    import torch  # before dynk's kernels run: beside it they take its threads

    if kind is None:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return Cuda() if kind == "cuda" else Cpu()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    msg = f"no {field} in /proc/self/status"
    raise OSError(msg)
