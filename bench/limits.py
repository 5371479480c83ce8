"""What the machine can do, measured in the same run: copy bandwidth and matrix-product speed."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from bench.timing import interleave


@njit(parallel=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    rows = 256
    step = (source.size + rows - 1) // rows
    for row in prange(rows):
        for i in range(row * step, min(source.size, (row + 1) * step)):
            target[i] = source[i]


def measure() -> dict[str, float]:
    """Return copy bandwidth in GB/s (read plus write), beyond and within the last cache, and sgemm GFLOP/s."""
    large = np.ones(64 * 2**20, np.float32), np.zeros(64 * 2**20, np.float32)
    small = np.ones(2**20, np.float32), np.zeros(2**20, np.float32)
    size = 2048
    a = np.ones((size, size), np.float32)
    product = np.empty_like(a)
    samples = interleave(
        {
            "large": lambda: _copy(*large),
            "small": lambda: _copy(*small),
            "matmul": lambda: np.matmul(a, a, out=product),
        },
        rounds=7,
        budget_s=20,
    )
    best = {name: min(sample.used) for name, sample in samples.items()}
    return {
        "copy_memory_GBs": 2 * large[0].nbytes / best["large"] / 1e9,
        "copy_cache_GBs": 2 * small[0].nbytes / best["small"] / 1e9,
        "matmul_GFLOPs": 2 * size**3 / best["matmul"] / 1e9,
    }
