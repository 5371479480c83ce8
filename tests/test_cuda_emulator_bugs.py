"""Planted bugs are found and named with their line; calls that do not fit a kernel are refused."""

import numpy as np
import pytest
from cuda_emulator import RawModule, emulated, emulator_unavailable
from cuda_emulator import fake_cupy as cupy
from emulator_calls import assert_equal, found, launch, ramp

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

ORDERS = ("sequential", "reverse", "random")
i32 = np.int32


def assert_names_the_line(error, name):
    """Assert that the first finding, or the other side of its race, is on a line of the kernel that says BUG."""
    lines = BUGS.splitlines()
    head = next(i for i, line in enumerate(lines) if f"void {name}(" in line)
    end = lines.index("}", head)
    marked = {i + 1 for i in range(head, end) if "BUG" in lines[i]}
    first = error.findings[0]
    assert {place.line for place in (first.place, first.other_place) if place} & marked
    assert f"kernel.cu:{error.line}  {lines[error.line - 1].strip()}" in str(error)


# ---- planted bugs: one kernel each, the faulty line marked

BUGS = r"""
__global__ void read_beyond(const float* x, float* y) {
  const int i = threadIdx.x;
  y[i] = x[i + 1];  // BUG
}
__global__ void read_far_before(const float* x, float* y) {
  const int i = threadIdx.x;
  y[i] = x[i - 100000];  // BUG
}
__global__ void write_beyond(const float* x, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i + 1] = x[i];  // BUG
}
__global__ void read_null(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];  // BUG
}
__global__ void read_uninitialised(const float* x, float* y) {
  y[threadIdx.x] += x[threadIdx.x];  // BUG
}
__global__ void read_uninitialised_shared(const float* x, float* y) {
  __shared__ float tile[64];
  if (threadIdx.x != 5) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];  // BUG
}
__global__ void missing_first_barrier(const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = tile[63 - threadIdx.x];  // BUG
}
__global__ void missing_second_barrier(const float* x, float* y) {
  __shared__ float tile[64];
  float sum = 0;
  for (int k = 0; k < 2; ++k) {
    tile[threadIdx.x] = x[threadIdx.x] * k;  // BUG
    __syncthreads();
    sum += tile[63 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}
__global__ void missing_barrier_after_reading(const float* x, float* y) {
  __shared__ float first;
  if (threadIdx.x == 0) first = x[0];
  __syncthreads();
  y[threadIdx.x] = first;
  if (threadIdx.x == 63) first = x[1];  // BUG
}
__global__ void partial_warp_barrier(const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) __syncwarp(0xffffu);
  else __syncwarp(0xffff0000u);
  y[threadIdx.x] = tile[threadIdx.x ^ 16];  // BUG
}
__global__ void warp_barrier_after_exit(const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x % 32 >= 16) return;
  __syncwarp(0xffffu);
  y[threadIdx.x] = tile[threadIdx.x + 16];  // BUG
}
__global__ void different_masks(const float* x, float* y) {
  if (threadIdx.x % 32 < 16) {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 16);  // BUG
  } else {
    y[threadIdx.x] = __shfl_sync(0xffff0000u, x[threadIdx.x], 16);
  }
}
__global__ void missing_warp_barrier(const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  __syncwarp();
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = tile[threadIdx.x ^ 1];  // BUG
}
__global__ void racy_sum(const float* x, float* y) {
  y[0] += x[threadIdx.x];  // BUG
}
__global__ void racy_sum_over_blocks(const float* x, float* y) {
  float sum = x[threadIdx.x];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0)
    y[0] += sum;  // BUG
}
__global__ void atomic_and_plain(const float* x, float* y) {
  if (threadIdx.x < 32) atomicAdd(y, x[threadIdx.x]);
  if (threadIdx.x == 40) y[0] = 1;  // BUG
}
__global__ void divergent_branches(const float* x, float* y) {
  if (threadIdx.x < 20) {
    __syncthreads();  // BUG
  } else {
    __syncthreads();  // BUG
  }
  y[threadIdx.x] = x[threadIdx.x];
}
__global__ void early_return(const float* x, float* y) {
  if (threadIdx.x >= 60) return;
  __syncthreads();  // BUG
  y[threadIdx.x] = x[threadIdx.x];
}
__global__ void barrier_against_warp(const float* x, float* y) {
  if (threadIdx.x < 16) __syncwarp();  // BUG
  else __syncthreads();  // BUG
  y[threadIdx.x] = x[threadIdx.x];
}
__global__ void lane_outside_mask(const float* x, float* y) {
  y[threadIdx.x] = __shfl_sync(0x0000ffffu, x[threadIdx.x], 0);  // BUG
}
__global__ void shuffle_from_inactive(const float* x, float* y) {
  if ((threadIdx.x & 31) == 31) return;
  y[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], 1);  // BUG
}
__global__ void little_shared_memory(const float* x, float* y) {
  extern __shared__ float tile[];
  tile[threadIdx.x] = x[threadIdx.x];  // BUG
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void write_const(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  const_cast<float*>(x)[threadIdx.x] = 0;  // BUG
}
__global__ void misaligned(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 1);  // BUG
  y[threadIdx.x] = v.x;
}
__global__ void index_outside_fixed_array(const float* x, float* y) {
  __shared__ float tile[2][8];
  tile[threadIdx.x / 8][threadIdx.x % 8 + 1] = x[threadIdx.x];  // BUG
}
__global__ void overflowing_index(const float* x, float* y) {
  const int plane = 1 << 20;
  const int offset = plane * (4096 + int(x[threadIdx.x]));  // BUG
  y[threadIdx.x] = x[threadIdx.x] + offset;
}
__global__ void divide_by_zero(const float* x, float* y) {
  y[threadIdx.x] = 7 / int(x[threadIdx.x]);  // BUG
}
__global__ void overflowing_stack(const float* x, float* y) {  // BUG
  volatile float local[40000];
  for (int i = 0; i < 40000; ++i) local[i] = x[0];
  y[threadIdx.x] = local[threadIdx.x];
}
__global__ void straddling(const float* x, float* y) {
  y[threadIdx.x] = reinterpret_cast<const long long*>(x)[threadIdx.x] != 0;  // BUG
}
__global__ void last_block_writes(const float* x, float* y) {
  y[1 + blockIdx.x] = y[0];
  if (blockIdx.x == gridDim.x - 1) y[0] = x[0];  // BUG
}
__global__ void endless(const float* x, float* y) {
  while (x[0] < 1000)
    y[threadIdx.x] = 1;  // BUG
}
__global__ void failing_assertion(const float* x, float* y) {
  assert(threadIdx.x < 63);  // BUG
}
"""
KINDS = {
    "read_beyond": "out-of-bounds read",
    "read_far_before": "out-of-bounds read",
    "write_beyond": "out-of-bounds write",
    "read_uninitialised": "uninitialised read",
    "read_uninitialised_shared": "uninitialised read",
    "missing_first_barrier": "race between a read and a write",
    "missing_second_barrier": "race between a read and a write",
    "missing_barrier_after_reading": "race between a read and a write",
    "partial_warp_barrier": "race between a read and a write",
    "warp_barrier_after_exit": "race between a read and a write",
    "different_masks": "shuffle from an inactive lane",
    "missing_warp_barrier": "race between a read and a write",
    "racy_sum": "race between a read and a write",
    "atomic_and_plain": "race between writes",
    "divergent_branches": "divergent barrier",
    "early_return": "divergent barrier",
    "barrier_against_warp": "deadlock",
    "lane_outside_mask": "warp operation by a lane that its mask leaves out",
    "shuffle_from_inactive": "shuffle from an inactive lane",
    "write_const": "write to read-only memory",
    "index_outside_fixed_array": "index outside a fixed array",
    "overflowing_index": "integer overflow",
    "divide_by_zero": "integer division fault",
    "overflowing_stack": "stack overflow",
    "failing_assertion": "assertion failed",
}
ALL_BUGS = (
    *KINDS,
    "read_null",
    "racy_sum_over_blocks",
    "little_shared_memory",
    "misaligned",
    "straddling",
    "last_block_writes",
    "endless",
)


@pytest.fixture(scope="module")
def bugs():
    return RawModule(BUGS, name_expressions=ALL_BUGS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", KINDS)
def test_planted_bug_is_found(bugs, name, order):
    y = cupy.empty(64, np.float32) if name == "read_uninitialised" else cupy.zeros(64, np.float32)
    with emulated(order=order, seed=1):
        error = found(bugs, name, cupy.asarray(np.arange(64, dtype=np.float32)), y)
    assert error.kind == KINDS[name]
    assert_names_the_line(error, name)
    assert error.block == (0, 0, 0)
    assert error.thread is not None
    assert 0 <= error.thread[0] < 64


def test_null_pointer_is_found(bugs):
    error = found(bugs, "read_null", None, cupy.zeros(64, np.float32))
    assert error.kind in ("out-of-bounds read", "null or misaligned pointer")
    assert_names_the_line(error, "read_null")


def test_racy_reduction_over_blocks_is_found(bugs):
    error = found(bugs, "racy_sum_over_blocks", ramp(), cupy.zeros(1, np.float32), grid=3, block=32)
    assert error.kind == "race between a read and a write"
    assert_names_the_line(error, "racy_sum_over_blocks")
    assert error.findings[0].other_block != error.block


@pytest.mark.parametrize("order", ORDERS)
def test_write_after_other_blocks_have_read_is_found(bugs, order):
    with emulated(order=order):
        error = found(bugs, "last_block_writes", ramp(), cupy.zeros(8, np.float32), grid=3, block=1)
    assert error.kind == "race between a read and a write"
    assert_names_the_line(error, "last_block_writes")


def test_vector_that_straddles_the_end_is_found(bugs):
    error = found(bugs, "straddling", ramp()[:63], cupy.zeros(64, np.float32), block=32)
    assert error.kind == "out-of-bounds read"
    assert error.thread == (31, 0, 0)
    assert_names_the_line(error, "straddling")


def test_too_little_dynamic_shared_memory_is_found(bugs):
    y = cupy.empty(64, np.float32)
    launch(bugs, "little_shared_memory", 1, 64, ramp(), y, shared_mem=64 * 4)
    assert_equal(y, np.arange(64)[::-1])
    error = found(bugs, "little_shared_memory", ramp(), y, shared_mem=63 * 4)
    assert error.kind == "out-of-bounds write"
    assert error.thread == (63, 0, 0)
    assert_names_the_line(error, "little_shared_memory")


def test_misaligned_vector_is_found(bugs):
    error = found(bugs, "misaligned", ramp(), cupy.zeros(64, np.float32))
    assert error.kind == "null or misaligned pointer"
    assert_names_the_line(error, "misaligned")


def test_endless_loop_is_found(bugs):
    with emulated(max_accesses=10_000):
        error = found(bugs, "endless", ramp(), cupy.zeros(64, np.float32))
    assert error.kind == "endless loop"


def test_read_only_array_is_guarded_even_through_a_plain_pointer(bugs):
    y = np.zeros(65, np.float32)
    y.flags.writeable = False
    error = found(bugs, "write_beyond", ramp(), y)
    assert error.kind == "write to read-only memory"
    assert not y.any()


def test_what_one_launch_wrote_is_initialised_in_the_next(bugs):
    y = cupy.empty(65, np.float32)
    launch(bugs, "write_beyond", 1, 64, ramp(), y)
    error = found(bugs, "read_uninitialised", ramp(), y)
    assert error.thread == (0, 0, 0)
    assert len(error.findings) == 1
    launch(bugs, "read_uninitialised", 1, 63, ramp(), y[1:])


@pytest.mark.parametrize("mode", ["fast", "check"])
def test_a_fault_ends_the_launch_and_not_the_process(bugs, mode):
    with emulated(mode=mode):
        error = found(bugs, "overflowing_stack", ramp(), cupy.zeros(64, np.float32))
        assert error.kind == "stack overflow"
        error = found(bugs, "divide_by_zero", ramp(), cupy.zeros(64, np.float32))
        assert error.kind == "integer division fault"
        error = found(bugs, "read_null", None, cupy.zeros(64, np.float32))
        assert_names_the_line(error, "read_null")
