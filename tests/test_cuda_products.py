"""Matrix products over shared memory (cuda_products.cuh) alone, on tensor cores and without."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import KernelCheckError, RawModule, emulator_unavailable
from cuda_emulator import fake_cupy as cupy
from test_cuda_tiles import compiled_to_ptx

from dynk.kernels import common, deformable, dilated
from dynk.kernels.common.cuda_launch import ELEMENT
from dynk.kernels.common.dtypes import STORAGE, accumulator
from dynk.testing import assert_close, rounded

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

i32 = np.int32
ROWS, COLUMNS = 67, 130  # two tiles and three
SOURCE = r"""
#include "cuda_products.cuh"

using namespace dynk;

template <typename T>
__global__ void product(const T* rows, const accumulator<T>* columns, accumulator<T>* out, int depth) {
    constexpr int ROWS = 67, COLUMNS = 130;
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Tile<int> tile(ROWS, COLUMNS, 1);
    Sums<Acc> total;
    multiply<T>(total, strips, 0, depth, [&](Strips<Acc>& to, int first) {
        for (int l = 0; l < LOADS; ++l) {
            const int along = strip_along(), k = first + strip_depth(l);
            const int row = tile.row + along, column = tile.column + along;
            to.rows[strip_depth(l)][along] = row < ROWS && k < depth ? load(rows + row * depth + k) : Acc(0);
            to.columns[strip_depth(l)][along] = column < COLUMNS && k < depth ? columns[k * COLUMNS + column] : Acc(0);
        }
    });
    each_sum(total, [&](int row, int column, Acc sum, bool) {
        row += tile.row, column += tile.column;
        if (row < ROWS && column < COLUMNS) out[row * COLUMNS + column] = sum;
    }, false);
}

__global__ void multiply_once(const float* factors, float* out) {
    const float rows[4] = {factors[0], factors[1], factors[2], factors[3]}, columns[2] = {factors[4], factors[5]};
    float sums[4] = {};
    multiply_tf32(sums, rows, columns);
    out[threadIdx.x] = sums[0];
}
"""
each_dtype = pytest.mark.parametrize("dtype", list(ELEMENT))


@cache
def module() -> RawModule:
    names = ["multiply_once", *(f"product<{element}>" for element in ELEMENT.values())]
    return RawModule(SOURCE, options=(f"-I{Path(common.__file__).parent}",), name_expressions=names)


def product(dtype: str, rows: Any, columns: Any) -> Any:
    """Return rows (of dtype) @ columns (of its accumulator) by blocks on the emulator."""
    out = cupy.asarray(np.full((ROWS, COLUMNS), -1, columns.dtype))
    kernel = module().get_function(f"product<{ELEMENT[dtype]}>")
    stored = cupy.asarray(np.ascontiguousarray(rows).view(STORAGE[dtype]))
    kernel((2 * 3,), (256,), (stored, cupy.asarray(columns), out, i32(rows.shape[1])))
    return np.asarray(out)


def factors(dtype: str, depth: int) -> tuple[Any, Any]:
    """Return normally distributed rows and columns."""
    random = np.random.default_rng(depth)
    columns = random.standard_normal((depth, COLUMNS))
    return rounded(random.standard_normal((ROWS, depth)), dtype), columns.astype(accumulator(dtype))


@emulation
@each_dtype
@pytest.mark.parametrize("depth", [1, 16, 37])
def test_every_place_is_the_product_of_its_row_and_column(dtype: str, depth: int) -> None:
    """Integers tell them apart, to the bit."""
    random = np.random.default_rng(depth)
    rows, columns = random.integers(-9, 9, (ROWS, depth)), random.integers(-99, 99, (depth, COLUMNS))
    found = product(dtype, rounded(rows.astype(float), dtype), columns.astype(accumulator(dtype)))
    np.testing.assert_array_equal(found, rows @ columns)


@emulation
@each_dtype
@pytest.mark.parametrize("depth", [16, 5000])
def test_columns_keep_single_precision(dtype: str, depth: int) -> None:
    """Tensor cores see half as many bits of them at a time."""
    rows, columns = factors(dtype, depth)
    exact = rows.astype(np.float64), columns.astype(np.float64)
    assert_close(product(dtype, rows, columns), exact[0] @ exact[1], np.abs(exact[0]) @ np.abs(exact[1]))


@emulation
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_factors_that_no_two_parts_add_up_to_are_multiplied_whole(dtype: str) -> None:
    """An infinite factor is no sum of two, and an infinite row meets a zero part of each column."""
    rows, columns = factors(dtype, 37)
    columns = np.abs(np.round(columns, 1)) + 1
    rows[2, 30], rows[65, 0], columns[3, 5], columns[1, 129] = np.inf, np.nan, np.inf, -np.inf
    columns[0, 64] = np.finfo(np.float32).max
    rows[:65, 0] = 0.5
    with np.errstate(invalid="ignore", over="ignore"):
        expected = (rows.astype(np.float64) @ columns.astype(np.float64)).astype(np.float32)
    found = product(dtype, rows, columns)
    for of_kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(of_kind(found), of_kind(expected))
    assert np.isinf(found).sum() > 200


@emulation
def test_emulator_reports_factors_that_tensor_cores_would_cut_off() -> None:
    held, out = np.float32([1, 2, 3, 4, 5, 1 + 2**-10]), cupy.asarray(np.zeros(32, np.float32))
    kernel = module().get_function("multiply_once")
    kernel((1,), (32,), (cupy.asarray(held), out))
    assert np.asarray(out)[0] == np.float32(4 * 5 + 4 * 3 * held[5])
    with pytest.raises(KernelCheckError, match="assertion failed"):
        kernel((1,), (32,), (cupy.asarray(held + np.float32(2**-11) * (held == 2)), out))


@pytest.mark.parametrize(
    ("family", "kernel"),
    [
        *(
            (dilated, f"dilation_{kernel}")
            for kernel in ("forward", "backward_x", "backward_weight", "backward_shares")
        ),
        *((deformable, f"deform_{kernel}") for kernel in ("forward", "backward_columns", "backward_weight")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("architecture", [75, 80])
def test_half_types_are_multiplied_on_tensor_cores(family: Any, kernel: str, dtype: str, architecture: int) -> None:
    out = ", float" if kernel.endswith(("weight", "shares")) else ""
    source = Path(family.__file__).with_name("dense.cu")
    ptx = compiled_to_ptx(f"{kernel}<{ELEMENT[dtype]}, int{out}>", source, architecture)
    assert ("mma.sync" in ptx) == (dtype != "float32" and architecture >= 80)
