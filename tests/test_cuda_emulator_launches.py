"""Calls that do not fit a kernel are refused, and say why."""

import numpy as np
import pytest
from cuda_emulator import KernelCheckError, RawModule, emulated, emulator_unavailable
from cuda_emulator import fake_cupy as cupy
from emulator_calls import found, ramp

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

i32 = np.int32

SIGNATURE = r"""
template <typename T>
__global__ void scale(const T* x, T* y, int n, float factor) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = T(float(x[i]) * factor);
}
"""


@pytest.fixture(scope="module")
def scale():
    names = ["scale<float>", "scale<__half>", "scale<__nv_bfloat16>"]
    return RawModule(SIGNATURE, options=("-std=c++17",), name_expressions=names)


@pytest.mark.parametrize(
    ("n", "factor", "words"),
    [
        (np.int64(8), np.float32(2), "argument 2 must be an integer of 4 bytes, got int64 of 8 bytes"),
        (8, np.float32(2), "argument 2 must be an integer of 4 bytes, got int of 8 bytes"),
        (np.float32(8), np.float32(2), "argument 2 must be an integer of 4 bytes, got float32 of 4 bytes"),
        (i32(8), np.float64(2), "argument 3 must be a float of 4 bytes, got float64 of 8 bytes"),
        (i32(8), i32(2), "argument 3 must be a float of 4 bytes, got int32 of 4 bytes"),
        (np.zeros(8, np.int32), np.float32(2), "argument 2 must be a scalar of 4 bytes, got an array or None"),
        (i32(8), "2", "argument 3 must be a NumPy scalar, got str"),
    ],
)
def test_wrong_scalar_is_refused(scale, n, factor, words):
    error = found(scale, "scale<float>", ramp(), cupy.zeros(64, np.float32), n, factor)
    assert error.kind == "wrong argument"
    assert words in str(error)


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("scale<float>", np.float64, "argument 0 must be an array of float32, got float64"),
        ("scale<float>", np.int32, "argument 0 must be an array of float32, got int32"),
        ("scale<__half>", np.uint16, "argument 0 must be an array of float16 or int16, got uint16"),
        ("scale<__nv_bfloat16>", np.int16, "argument 0 must be an array of bfloat16 or uint16, got int16"),
    ],
)
def test_wrong_array_is_refused(scale, name, dtype, words):
    array = np.zeros(8, dtype)
    error = found(scale, name, array, array, i32(8), np.float32(1))
    assert words in str(error)


def test_wrong_number_of_arguments_is_refused(scale):
    error = found(scale, "scale<float>", ramp(), ramp(), i32(8))
    assert "the kernel takes 4 arguments, got 3" in str(error)
    error = found(scale, "scale<float>", np.float32(1), ramp(), i32(8), np.float32(1))
    assert "argument 0 must be an array or None, got float32" in str(error)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        ((0,), (32,), 0, "grid must"),
        ((1, 70000), (32,), 0, "grid must"),
        ((1,), (1025,), 0, "block must"),
        ((1,), (32, 64), 0, "at most 1024 threads"),
        ((1,), (32,), 50 << 10, "51200 bytes of shared memory"),
    ],
)
def test_launch_that_a_gpu_refuses_is_refused(scale, grid, block, shared, words):
    args = (ramp(), ramp(), i32(8), np.float32(1))
    with pytest.raises(KernelCheckError, match=words) as caught:
        scale.get_function("scale<float>")(grid, block, args, shared_mem=shared)
    assert caught.value.kind == "bad launch configuration"


def test_more_than_48_kib_of_shared_memory_after_asking_for_it(scale):
    kernel = scale.get_function("scale<float>")
    kernel.max_dynamic_shared_size_bytes = 50 << 10
    kernel((1,), (32,), (ramp(), ramp(), i32(8), np.float32(1)), shared_mem=50 << 10)


def test_source_that_does_not_compile_says_where():
    module = RawModule("__global__ void f(int* y) {\n  y[0] = undeclared;\n}", name_expressions=["f"])
    error = found(module, "f", np.zeros(1, np.int32))
    assert error.kind == "compilation error"
    assert "kernel.cu:2" in str(error)


def test_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"options must be .* got '-foo'"):
        RawModule("", options=["-foo"])


def test_an_index_that_leaves_its_view_is_found(scale):
    x = np.arange(20, dtype=np.float32)
    with emulated(order="sequential"):
        error = found(scale, "scale<float>", x[:10], np.zeros(20, np.float32), i32(20), np.float32(2))
    assert error.kind == "out-of-bounds read"
    assert error.thread == (10, 0, 0)
    assert "kernel.cu:5  if (i < n) y[i] = T(float(x[i]) * factor);" in str(error)
