"""Correct kernels come out right and without findings, in every mode and order."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import RawModule, emulated, emulator_unavailable
from cuda_emulator import fake_cupy as cupy
from cuda_emulator.toolchain import runtime_library
from emulator_calls import assert_equal, launch, ramp

from dynk.testing import assert_close

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

ORDERS = ("sequential", "reverse", "random")
i32 = np.int32

KERNELS = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "taps.cuh"

namespace {
template <typename T, typename A, int K, int TX, int TY>
__global__ void __launch_bounds__(TX * TY)
box(const T* __restrict__ x, T* __restrict__ y, int H, int W) {
  constexpr int R = reach(K), SW = TX + 2 * R, SH = TY + 2 * R;
  __shared__ A tile[SH][SW + 1];
  const T* plane = x + static_cast<size_t>(blockIdx.z) * H * W;
  for (int i = threadIdx.y * TX + threadIdx.x; i < SH * SW; i += TX * TY) {
    const int h = blockIdx.y * TY + i / SW - R, w = blockIdx.x * TX + i % SW - R;
    tile[i / SW][i % SW] = h >= 0 && h < H && w >= 0 && w < W ? A(__ldg(plane + h * W + w)) : A(0);
  }
  __syncthreads();
  const int h = blockIdx.y * TY + threadIdx.y, w = blockIdx.x * TX + threadIdx.x;
  if (h >= H || w >= W) return;
  A sum = 0;
#pragma unroll
  for (int i = 0; i < K; ++i)
#pragma unroll
    for (int j = 0; j < K; ++j) sum += tile[threadIdx.y + i][threadIdx.x + j];
  y[(static_cast<size_t>(blockIdx.z) * H + h) * W + w] = T(sum);
}

template <typename T>
__global__ void row_sums(const T* __restrict__ x, T* __restrict__ sums, int n) {
  extern __shared__ __align__(16) unsigned char memory[];
  T* partial = reinterpret_cast<T*>(memory);
  T sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * static_cast<long long>(n) + i];
  for (int d = warpSize / 2; d > 0; d >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, d);
  if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = sum;
  __syncthreads();
  if (threadIdx.x >= warpSize) return;
  sum = threadIdx.x < blockDim.x / warpSize ? partial[threadIdx.x] : T(0);
  for (int d = warpSize / 2; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
}  // namespace

template <typename T>
__global__ void scale(const T* x, T* y, int n, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = T(float(x[i]) * factor);
}
__global__ void odd_parameters(const float* x, const float* absent, float* y, bool flag, int2 pair) {
  const float* beyond = absent + 100 * blockIdx.x;  // formed, never read
  float4 unaligned;
  memcpy(&unaligned, x + 1, sizeof unaligned);
  y[threadIdx.x] = absent ? *beyond : flag ? unaligned.z + pair.y : 0;
}
extern "C" __global__ void vectors(const float4* x, const uint4* bits, float4* y, int4* z) {
  const int i = threadIdx.x;
  const float4 v = __ldcs(x + i);
  __stcs(y + i, make_float4(fmaf(v.x, 2, 1), v.y, __fmaf_rn(v.z, 2, 1), v.w));
  const uint4 b = __ldcg(bits + i);
  z[i] = make_int4(b.x, b.y, b.z, b.w);
}
extern "C" __global__ void warp_functions(const int* x, unsigned* y) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x, v = x[lane];
  unsigned* row = y + lane * 10;
  row[0] = __ballot_sync(all, v > 3);
  row[1] = __any_sync(all, v == 5) + 2 * __all_sync(all, v >= 0);
  row[2] = __match_any_sync(all, v);
  row[3] = __reduce_add_sync(all, v);
  row[4] = __reduce_max_sync(all, v);
  row[5] = __shfl_up_sync(all, v, 3);
  row[6] = __shfl_sync(all, v, 9, 8);
  row[7] = __popc(__activemask());
  row[8] = __syncthreads_count(v > 3);
  row[9] = __syncthreads_and(v >= 0) + 2 * __syncthreads_or(v > 100) + 4 * __syncthreads_and(v > 3);
}
extern "C" __global__ void neighbours(const float* x, float* y) {
  __shared__ float tile[64];
  for (int k = 0; k < 2; ++k) {
    tile[threadIdx.x] = x[threadIdx.x] + k;
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
    __syncwarp();
  }
}
extern "C" __global__ void half_functions(const __half* x, __half* y) {
  y[0] = __hfma(x[0], x[1], x[2]);
  y[1] = hexp(x[0]);
  y[2] = hsqrt(x[1]);
  const __half2 v = __hfma2(__halves2half2(x[0], x[1]), __halves2half2(x[1], x[1]), __halves2half2(x[2], x[2]));
  y[3] = __low2half(v);
  y[4] = __high2half(v);
}
extern "C" __global__ void histogram(const int* bins, float* counts, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(counts + bins[i], 1);
}
__constant__ float table[4] = {1, 2, 4, 8};
extern "C" __global__ void block_reduction(const float* x, float* y) {
  __shared__ float s[256];
  const int t = threadIdx.x;
  s[t] = x[t] * table[t & 3];
  for (int d = 128; d > 0; d >>= 1) {
    __syncthreads();
    if (t < d) s[t] += s[t + d];
  }
  if (t == 0) y[blockIdx.x] = s[0];
}
"""
BOXES = {
    np.float32: "box<float, float, 3, 32, 8>",
    np.float64: "box<double, double, 5, 16, 4>",
    np.int16: "box<__half, float, 3, 32, 8>",
    np.uint16: "box<__nv_bfloat16, float, 3, 32, 8>",
}
PLAIN = ("vectors", "warp_functions", "neighbours", "half_functions", "histogram", "block_reduction", "odd_parameters")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("include")
    (folder / "taps.cuh").write_text("__device__ constexpr int reach(int K) { return K / DIVISOR; }\n")
    names = [*BOXES.values(), "row_sums<float>", "row_sums<double>", "scale<float>", *PLAIN]
    return RawModule(KERNELS, options=(f"-I{folder}", "-DDIVISOR=2", "--use_fast_math"), name_expressions=names)


@pytest.fixture(params=[("fast", "random"), *(("check", order) for order in ORDERS)], ids="-".join)
def running(request):
    mode, order = request.param
    with emulated(mode=mode, order=order, seed=7):
        yield


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("dtype", BOXES)
def test_template_with_a_shared_tile(kernels, dtype):
    rng = np.random.default_rng(0)
    name = BOXES[dtype]
    K, TX, TY = (int(number) for number in name[:-1].split(",")[2:])
    planes, H, W = 2, 11, 37
    values = rng.integers(-8, 8, (planes, H, W)).astype(np.float64)  # small integers: exact in every type
    padded = np.pad(values, ((0, 0), (K // 2,) * 2, (K // 2,) * 2))
    expected = sum(padded[:, i : i + H, j : j + W] for i in range(K) for j in range(K))
    y = cupy.empty((planes, H, W), dtype)
    grid = (-(-W // TX), -(-H // TY), planes)
    kernels.get_function(name)(grid, (TX, TY), (cupy.asarray(encode(values, dtype)), y, i32(H), i32(W)))
    assert_equal(decode(np.asarray(y)), expected)


def encode(values, dtype):
    """Return float values in a kernel's storage type: int16 holds float16, uint16 holds bfloat16."""
    if dtype == np.int16:
        return values.astype(np.float16).view(np.int16)
    if dtype == np.uint16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def decode(stored):
    if stored.dtype == np.int16:
        return stored.view(np.float16).astype(np.float64)
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_warp_shuffle_reduction(kernels, dtype):
    x = np.random.default_rng(1).standard_normal((3, 1000)).astype(dtype)
    wide = x.astype(np.float64)
    assert_close(row_sums(kernels, x), wide.sum(1), np.abs(wide).sum(1))


@pytest.mark.usefixtures("running")
def test_block_reduction_with_constant_memory(kernels):
    x = cupy.asarray(np.arange(256, dtype=np.float32))
    y = cupy.empty(2, np.float32)
    launch(kernels, "block_reduction", 2, 256, x, y)
    assert_equal(y, [(np.arange(256) * np.tile([1, 2, 4, 8], 64)).sum()] * 2)


@pytest.mark.usefixtures("running")
def test_sixteen_byte_vectors(kernels):
    x = cupy.asarray(np.arange(32, dtype=np.float32))
    bits = cupy.asarray(np.arange(32, dtype=np.uint32))
    y, z = cupy.empty(32, np.float32), cupy.empty(32, np.int32)
    launch(kernels, "vectors", 1, 8, x, bits, y, z)
    factor, summand = np.tile([2, 1], 16), np.tile([1, 0], 16)
    assert_equal(y, np.arange(32) * factor + summand)
    assert_equal(z, np.arange(32))


@pytest.mark.usefixtures("running")
def test_warp_functions(kernels):
    v = np.arange(32) % 8
    y = cupy.empty((32, 10), np.uint32)
    launch(kernels, "warp_functions", 1, 32, v.astype(np.int32), y)
    bit = 1 << np.arange(32, dtype=np.uint64)
    columns = [
        np.full(32, bit[v > 3].sum()),
        np.full(32, 3),
        [bit[v == value].sum() for value in v],
        np.full(32, v.sum()),
        np.full(32, 7),
        np.where(np.arange(32) < 3, v, np.roll(v, 3)),
        np.full(32, 1),
        np.full(32, 32),
        np.full(32, (v > 3).sum()),
        np.full(32, 1),
    ]
    assert_equal(y, np.stack(columns, 1))


@pytest.mark.usefixtures("running")
def test_exchange_within_a_warp(kernels):
    y = cupy.empty(64, np.float32)
    launch(kernels, "neighbours", 1, 64, ramp(), y)
    assert_equal(y, (np.arange(64) ^ 1) + 1)


@pytest.mark.usefixtures("running")
def test_half_functions(kernels):
    y = cupy.empty(5, np.float16)
    launch(kernels, "half_functions", 1, 1, np.float16([0, 4, 3]), y)
    assert_equal(y, [3, 1, 2, 3, 19])


@pytest.mark.usefixtures("running")
def test_atomics(kernels):
    counts = cupy.zeros(4, np.float32)
    launch(kernels, "histogram", 2, 64, np.arange(400, dtype=np.int32) % 4, counts, i32(400))
    assert_equal(counts, [100] * 4)


@pytest.mark.usefixtures("running")
def test_arrays_without_elements_and_views(kernels):
    nothing = np.zeros((0, 3), np.float32)
    launch(kernels, "scale<float>", 1, 32, nothing, nothing, i32(0), np.float32(1))
    x = np.arange(20, dtype=np.float32)
    launch(kernels, "scale<float>", 1, 32, x[2:12], x[2:12], i32(10), np.float32(2))
    assert_equal(x, np.concatenate([[0, 1], np.arange(2, 12) * 2, np.arange(12, 20)]))


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("null", [None, np.uint64(0)])
@pytest.mark.parametrize("as_array", [False, True])
def test_structs_booleans_null_pointers_and_unaligned_copies(kernels, null, as_array):
    y = cupy.empty(4, np.float32)
    pair = np.array((3, 4), "i4,i4")
    launch(kernels, "odd_parameters", 1, 4, ramp(), null, y, np.bool_(True), pair if as_array else pair[()])
    assert_equal(y, [3 + 4] * 4)


# ---- several processes, several threads

COMPILE_ONE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from cuda_emulator import RawModule, emulated
y = np.zeros(1, np.int32)
source = "__global__ void one(int* y) { y[0] = 1; }"
with emulated(mode="fast"):
    RawModule(source, name_expressions=["one"]).get_function("one")((1,), (1,), (y,))
assert y[0] == 1
"""


def test_processes_that_compile_the_same_source_at_once(tmp_path):
    shutil.copy(runtime_library(), tmp_path)
    environment = {**os.environ, "DYNK_EMULATOR_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE_ONE, str(Path(__file__).parent)]
    workers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert sorted(file.name.split("-")[0] for file in tmp_path.iterdir()) == ["header", "module", "runtime"]


def test_launches_from_other_threads(kernels):
    x = np.arange(256, dtype=np.float32).reshape(2, 128)
    with ThreadPoolExecutor(2) as pool:
        sums = list(pool.map(lambda _: row_sums(kernels, x), range(8)))
    for one in sums:
        assert_equal(one, x.sum(1))


def row_sums(kernels, x):
    name = "row_sums<float>" if x.dtype == np.float32 else "row_sums<double>"
    sums = cupy.empty(len(x), x.dtype)
    launch(kernels, name, len(x), 128, x, sums, i32(x.shape[1]), shared_mem=4 * x.itemsize)
    return np.asarray(sums)
