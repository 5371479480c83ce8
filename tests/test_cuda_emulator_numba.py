"""Numba CUDA kernels on the emulator: correct ones come out right and clean, planted bugs are found."""

import functools
import math

import numpy as np
import pytest
from cuda_emulator import KernelCheckError, emulated, emulator_unavailable
from cuda_emulator import fake_cupy as cupy

from dynk.testing import assert_close

numba_cuda = pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from cuda_emulator.numba_kernels import NumbaKernel  # noqa: E402
from numba import cuda, float32, float64, int64  # noqa: E402

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

FULL_WARP = 0xFFFFFFFF


@pytest.fixture(params=[("fast", "random"), *(("check", order) for order in ("sequential", "reverse", "random"))])
def running(request):
    mode, order = request.param
    with emulated(mode=mode, order=order, seed=3):
        yield


def run(kernel, grid, block, *args, shared_mem=0):
    NumbaKernel(kernel)[grid, block, 0, shared_mem](*args)


def ramp(n=64, dtype=np.float32):
    return cupy.asarray(np.arange(n, dtype=dtype))


@functools.cache
def make_box(K, TILE, dtype):
    """Return a box filter over flat planes, as kernels are made for one size and type: constants in a closure."""
    R = K // 2
    SIDE = TILE + 2 * R

    @cuda.jit(device=True)
    def inside(h, w, H, W):
        return h >= 0 and h < H and w >= 0 and w < W

    @cuda.jit
    def box(x, y, H, W):
        tile = cuda.shared.array(shape=(SIDE, SIDE), dtype=dtype)
        n = cuda.blockIdx.z
        i = cuda.threadIdx.y * TILE + cuda.threadIdx.x
        while i < SIDE * SIDE:
            h = cuda.blockIdx.y * TILE + i // SIDE - R
            w = cuda.blockIdx.x * TILE + i % SIDE - R
            tile[i // SIDE, i % SIDE] = x[(n * H + h) * W + w] if inside(h, w, H, W) else dtype(0)
            i += TILE * TILE
        cuda.syncthreads()
        w, h = cuda.grid(2)
        if h < H and w < W:
            total = dtype(0)
            for a in range(K):
                for b in range(K):
                    total += tile[cuda.threadIdx.y + a, cuda.threadIdx.x + b]
            y[(n * H + h) * W + w] = total

    return box


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(("K", "numba_type", "dtype"), [(3, float32, np.float32), (5, float64, np.float64)])
def test_tile_in_shared_memory(K, numba_type, dtype):
    planes, H, W = 2, 11, 19
    values = np.random.default_rng(0).integers(-8, 8, (planes, H, W)).astype(dtype)
    padded = np.pad(values, ((0, 0), (K // 2,) * 2, (K // 2,) * 2))
    expected = sum(padded[:, i : i + H, j : j + W] for i in range(K) for j in range(K))
    y = cupy.empty(values.size, dtype)
    run(make_box(K, 8, numba_type), (3, 2, planes), (8, 8), values.ravel(), y, np.int32(H), np.int32(W))
    assert np.array_equal(y.reshape(values.shape), expected)


@cuda.jit
def dot_product(x, y, out):
    partial = cuda.shared.array(32, float64)
    local = cuda.local.array(2, x.dtype)
    local[0] = 0
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        local[0] += x[i] * y[i]
    total = local[0]
    d = 16
    while d > 0:
        total += cuda.shfl_xor_sync(FULL_WARP, total, d)
        d >>= 1
    if cuda.threadIdx.x % 32 == 0:
        partial[cuda.threadIdx.x // 32] = total
    cuda.syncthreads()
    if cuda.threadIdx.x < 32:
        total = partial[cuda.threadIdx.x] if cuda.threadIdx.x < cuda.blockDim.x // 32 else 0.0
        d = 16
        while d > 0:
            total += cuda.shfl_down_sync(FULL_WARP, total, d)
            d >>= 1
        if cuda.threadIdx.x == 0:
            cuda.atomic.add(out, 0, total)


@pytest.mark.usefixtures("running")
def test_warp_shuffles_and_atomics():
    x, y = np.random.default_rng(1).standard_normal((2, 1000))
    out = cupy.zeros(1, np.float64)
    run(dot_product, 3, 128, x, y, out)
    assert_close(np.asarray(out), [x @ y], [np.abs(x) @ np.abs(y)])


@cuda.jit
def turned_around(x, y):
    memory = cuda.shared.array(0, int64)
    memory[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    cuda.syncthreads()
    y[cuda.threadIdx.x] = memory[cuda.blockDim.x - 1 - cuda.threadIdx.x]


@pytest.mark.usefixtures("running")
def test_dynamic_shared_memory():
    y = cupy.empty(64, np.int64)
    run(turned_around, 1, 64, ramp(64, np.int64), y, shared_mem=64 * 8)
    assert np.array_equal(y, np.arange(64)[::-1])


@cuda.jit
def with_everything_else(x, shape, factor, y):
    lane = cuda.threadIdx.x
    memory = cuda.shared.array(32, float32)
    memory[lane] = math.sqrt(x[lane, 1]) * factor
    cuda.syncwarp()
    y[lane] = memory[lane ^ 1] + cuda.shfl_up_sync(FULL_WARP, float32(lane), 1) + shape[1] + len(y) * 0


@pytest.mark.usefixtures("running")
def test_strided_arrays_tuples_and_warp_barrier():
    x = np.arange(64, dtype=np.float32).reshape(2, 32).T ** 2
    y = cupy.empty(32, np.float32)
    run(with_everything_else, (1,), (32,), x, (5, 7), np.float32(2), y)
    lanes = np.arange(32)
    assert np.array_equal(y, ((lanes ^ 1) + 32) * 2 + np.maximum(lanes - 1, 0) + 7)


# ---- planted bugs


@cuda.jit
def reads_beyond(x, y):
    y[cuda.grid(1)] = x[cuda.grid(1) + 1]  # BUG


@cuda.jit
def writes_before(x, y):
    y[cuda.grid(1) - 1] = x[cuda.grid(1)]  # BUG


@cuda.jit
def reads_uninitialised(x, y):
    y[cuda.grid(1)] += x[cuda.grid(1)]  # BUG


@cuda.jit
def lacks_barrier(x, y):
    memory = cuda.shared.array(64, float32)
    memory[cuda.threadIdx.x] = 0
    cuda.syncthreads()
    memory[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    y[cuda.threadIdx.x] = memory[63 - cuda.threadIdx.x]  # BUG


@cuda.jit
def sums_racily(x, y):
    y[0] += x[cuda.grid(1)]  # BUG


@cuda.jit
def has_divergent_barrier(x, y):
    if cuda.threadIdx.x < 16:
        cuda.syncthreads()  # BUG
    y[cuda.threadIdx.x] = x[cuda.threadIdx.x]


BUGS = [
    (reads_beyond, "out-of-bounds read"),
    (writes_before, "out-of-bounds write"),
    (reads_uninitialised, "uninitialised read"),
    (lacks_barrier, "race between a read and a write"),
    (sums_racily, "race between a read and a write"),
    (has_divergent_barrier, "divergent barrier"),
]


@pytest.mark.parametrize("order", ["sequential", "reverse", "random"])
@pytest.mark.parametrize(("kernel", "kind"), BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_planted_bug_is_found(kernel, kind, order):
    y = cupy.empty(64, np.float32) if kernel is reads_uninitialised else cupy.zeros(64, np.float32)
    with emulated(order=order), pytest.raises(KernelCheckError) as caught:
        run(kernel, 2 if kernel is sums_racily else 1, 64 if kernel is not sums_racily else 32, ramp(), y)
    first = caught.value.findings[0]
    assert first.kind == kind
    assert "# BUG" in first.place.text + (first.other_place.text if first.other_place else "")
    assert first.place.file == "test_cuda_emulator_numba.py"
    assert first.thread is not None


def test_too_little_dynamic_shared_memory_is_found():
    with pytest.raises(KernelCheckError) as caught:
        run(turned_around, 1, 64, ramp(64, np.int64), cupy.empty(64, np.int64), shared_mem=63 * 8)
    assert caught.value.kind == "out-of-bounds write"


def test_wrong_argument_is_refused():
    with pytest.raises(KernelCheckError, match="arguments must be arrays, numbers or tuples of them, got str"):
        run(turned_around, 1, 64, "x", ramp())


def test_bounds_are_checked_in_fast_mode_too():
    with emulated(mode="fast"), pytest.raises(KernelCheckError, match="out-of-bounds write"):
        run(writes_before, 1, 64, ramp(), cupy.zeros(64, np.float32))
