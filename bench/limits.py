"""What the device can do, measured in the same run: copy bandwidth and matrix-product speed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from bench.devices import Cpu, Cuda
from bench.registry import Call
from bench.timing import LEAST, interleave
from dynk.kernels.common import vector

# MiB read plus written: within the first caches of a core, the last one, beyond it; just less than the largest case.
_CPU_SIZES = (2, 16, 64, 224, 512)
_CUDA_SIZES = (4096,)  # the clock empties the cache


@njit(parallel=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    rows = 256
    step = (source.size + rows - 1) // rows
    for row in prange(rows):
        for i in range(row * step, min(source.size, (row + 1) * step)):
            target[i] = source[i]


@njit(parallel=True)
def _copy_past_caches(source, target):  # type: ignore[no-untyped-def]
    rows, size = 256, vector.lanes(source)
    step = source.size // rows  # whole vectors of all sizes here
    for row in prange(rows):
        for i in range(row * step, (row + 1) * step, size):
            vector.stream(target, i, vector.load(source, i))
        vector.drain()


def measure(device: Cpu | Cuda) -> dict[str, Any]:
    """Return copy bandwidth in GB/s (read plus write) for each size, of the faster way to copy, and float32 GFLOP/s."""
    import torch

    calls = {}
    sizes = _CPU_SIZES if device.kind == "cpu" else _CUDA_SIZES
    for size in sizes:
        source = torch.ones(size * 2**17, dtype=torch.float32, device=device.kind)
        target = torch.zeros_like(source)
        calls[f"PyTorch {size}"] = _call(target.copy_, source)
        if device.kind == "cpu":
            calls[f"Numba {size}"] = _call(_copy, source.numpy(), target.numpy())
            calls[f"past caches {size}"] = _call(_copy_past_caches, source.numpy(), target.numpy())
    extent = 2048 if device.kind == "cpu" else 8192
    a = torch.ones((extent, extent), dtype=torch.float32, device=device.kind)
    product = torch.empty_like(a)
    calls["PyTorch product"] = Call(lambda _: (torch.mm(a, a, out=product),))
    if device.kind == "cpu":
        calls["NumPy product"] = Call(lambda _: (np.matmul(a.numpy(), a.numpy(), out=product.numpy()),))
    for call in calls.values():
        call()  # compiles, and touches every page
    samples = interleave(calls, clock=device.clock)
    # The best sample, unlike the medians of the rows: a limit measured too low would flatter them.
    best = {name: min(sample.used) for name, sample in samples.items()}
    return {
        "undisturbed": all(len(sample.clean) >= LEAST for sample in samples.values()),
        "copy_GBs": {str(size): size * 2**20 / _least(best, f" {size}") / 1e9 for size in sizes},
        "matmul_GFLOPs": 2 * extent**3 / _least(best, " product") / 1e9,
    }


def _call(copy: Any, *arrays: Any) -> Call:
    return Call(lambda _: (copy(*arrays),))


def _least(times: dict[str, float], ending: str) -> float:
    return min(time for name, time in times.items() if name.endswith(ending))


def copy_bandwidth(limits: dict[str, Any], moved: int) -> tuple[float, str]:
    """Return the GB/s at which so many bytes can be copied, of the next smaller size that was measured, and its MiB."""
    sizes = sorted(map(int, limits["copy_GBs"]))
    size = max((size for size in sizes if size * 2**20 <= moved), default=sizes[0])
    return limits["copy_GBs"][str(size)], str(size)
