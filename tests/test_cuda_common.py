"""What the CUDA C kernels of all families share (cuda_common.cuh), each part alone and to the bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_emulator import RawModule, emulator_unavailable
from cuda_emulator import fake_cupy as cupy

from dynk.kernels import common

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

i32 = np.int32
SOURCE = r"""
#include "cuda_common.cuh"

template <int LEVELS>
__global__ void chained_sum(const float* terms, float* sums, int count) {
    dynk::Chains<float, 2, LEVELS> chains;
    for (int k = 0; k < count; ++k) {
        chains.chain[0] += terms[k];
        chains.chain[1] -= terms[k];
        chains.step();
    }
    sums[0] = chains.sum(0);
    sums[1] = chains.sum(1);
}

__global__ void anchors(const int* calls, int* found, int count) {
    for (int k = 0; k < count; ++k) {
        const int* call = calls + 4 * k;
        found[k] = dynk::anchor_of(call[0], call[1], call[2], call[3]);
    }
}

__global__ void sums_over_z(const float* terms, float* sums) {
    __shared__ float shared[256];
    const int plane = blockDim.x * blockDim.y, place = threadIdx.y * blockDim.x + threadIdx.x;
    for (int turn = 0; turn < 2; ++turn) {
        const float sum = dynk::slices_sum(terms[(turn * blockDim.z + threadIdx.z) * plane + place], shared);
        if (threadIdx.z == 0) sums[turn * plane + place] = sum;
    }
}
"""
SUMS = [f"sum_partials<float, {index}, {lanes}>" for index in ("int", "long long") for lanes in (1, 32)]
NAMES = [*(f"chained_sum<{levels}>" for levels in (1, 2, 3)), "anchors", "sums_over_z", *SUMS]
COUNTS = (1, 63, 64, 65, 130, 4095, 4096, 4097, 8300, 64**3)


@cache
def module() -> RawModule:
    return RawModule(SOURCE, options=(f"-I{Path(common.__file__).parent}",), name_expressions=NAMES)


def awkward(count: int) -> npt.NDArray[np.float32]:
    """Return positive terms whose sum rounds differently in every order."""
    return np.random.default_rng(count).random(count, np.float32)


def in_order(terms: Any) -> np.float32:
    """Return the sum of terms added one after the other."""
    return np.cumsum(terms, dtype=np.float32)[-1] if len(terms) else np.float32(0)


def in_chains(terms: Any, levels: int) -> np.float32:
    """Return the sum that `Chains` is to form: full chains of 64 added up, with three levels 64 of these at a time."""
    if levels == 1:
        return in_order(terms)
    full = len(terms) // 64 * 64
    chains = [in_order(chain) for chain in terms[:full].reshape(-1, 64)]
    rest = in_order(terms[full:])
    if levels == 2:
        return np.float32(in_order(chains) + rest)
    merged = len(chains) // 64 * 64
    totals = [in_order(chains[first : first + 64]) for first in range(0, merged, 64)]
    return np.float32(in_order(totals) + np.float32(in_order(chains[merged:]) + rest))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_chains_add_in_the_stated_order(levels: int, count: int) -> None:
    terms, sums = awkward(count), cupy.empty(2, np.float32)
    module().get_function(f"chained_sum<{levels}>")((1,), (1,), (terms, sums, i32(count)))
    want = in_chains(terms, levels)
    assert np.asarray(sums).tolist() == [want, -want]


@pytest.mark.parametrize("parts", [1, 2, 31, 32, 33, 65, 4200])
@pytest.mark.parametrize("expression", SUMS)
def test_partial_sums_add_in_the_stated_order(expression: str, parts: int) -> None:
    elements, lanes = 3, 32 if expression.endswith("32>") else 1
    partial, out = awkward(parts * elements), cupy.empty(elements, np.float32)
    index = i32 if " int," in expression else np.int64
    module().get_function(expression)((2,), (64,), (partial, out, index(elements), index(parts)))
    want = []
    for element in range(elements):
        sums = [in_chains(partial[element::elements][lane::lanes], 3) for lane in range(lanes)]
        while len(sums) > 1:  # the butterfly of a warp: lane l and lane l + 16, then + 8, ...
            half = len(sums) // 2
            sums = [np.float32(sums[lane] + sums[lane + half]) for lane in range(half)]
        want.append(sums[0])
    assert np.asarray(out).tolist() == want


def test_anchors_are_those_whose_tap_reads_the_position() -> None:
    calls = [
        (position, offset, stride, anchors)
        for position in range(7)
        for offset in range(-4, 5)
        for stride in (1, 2, 3)
        for anchors in (1, 2, 4)
    ]
    found = cupy.empty(len(calls), np.int32)
    module().get_function("anchors")((1,), (1,), (np.array(calls, np.int32), found, i32(len(calls))))
    for (position, offset, stride, anchors), got in zip(calls, np.asarray(found), strict=True):
        reading = [anchor for anchor in range(anchors) if anchor * stride + offset == position]
        assert got == (reading or [-1])[0], (position, offset, stride, anchors)


@pytest.mark.parametrize("block", [(1, 1, 1), (3, 2, 1), (1, 1, 5), (3, 2, 4), (8, 4, 8)])
def test_slices_are_summed_over_z(block: tuple[int, int, int]) -> None:
    x, y, z = block
    terms, sums = awkward(2 * x * y * z).reshape(2, z, y, x), cupy.empty((2, y, x), np.float32)
    module().get_function("sums_over_z")((1,), block, (terms, sums))
    want = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1]
    assert np.asarray(sums).tolist() == want.tolist()
