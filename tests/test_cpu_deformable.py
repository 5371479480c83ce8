"""The deformable family on the CPU beyond its equations: vectors, threads and memory."""

from __future__ import annotations

import platform
import sys
from typing import Any

import numba
import numpy as np
import pytest
from test_cpu_kernels import FUSED, run

import dynk
from dynk.deformable import DEFORMABLE_CONV2D
from dynk.testing import Call, assert_close

COUNT = """
import re, numba
from dynk.kernels.deformable import cpu
array = numba.types.Array(numba.types.float32, 1, "C")
signature = (array,) * 7 + (numba.types.int64[::1], numba.types.float64[::1])
for kernel in cpu.deformable_dense_forward, cpu.deformable_depthwise_forward:
    kernel.compile(signature)
    code = kernel.inspect_asm(signature)
    print(len(re.findall(PATTERN, code)), len(re.findall(r"vpermps[^\\n]*%zmm", code)))
"""


def test_kernels_multiply_and_look_up_whole_vectors(tmp_path):
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if machine not in FUSED:
        pytest.skip(f"the instructions of {machine} are not known here")
    features = numba.core.codegen.get_host_cpu_features()
    if machine == "x86_64" and "+fma" not in features:
        pytest.skip("this processor has no fused multiply-add")
    # Compiled anew: Numba keeps no assembly with what it takes from its cache.
    found = run(f"PATTERN = {FUSED[machine]!r}\n{COUNT}", NUMBA_CACHE_DIR=str(tmp_path)).split()
    dense, _, depthwise, looked_up = map(int, found)
    assert dense >= 8 * 3 + 8  # products of matrices, of whole panels and of single vectors
    assert depthwise >= 2 * 5  # two kernels' taps
    if machine == "x86_64" and "+avx512f" in features:
        assert looked_up >= 2 * 4  # four neighbours in two kernels


def _arrays() -> list[tuple[dict[str, Any], Any]]:
    """Return calls that go each way of sharing work out among threads, and gradients of their outputs."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    x = draw(2, 6, 33, 17)
    kernel, data, mask = draw(2, 2, 3, 3, 2, 33, 17), draw(2, 3, 3, 3, 2, 33, 17), draw(2, 3, 3, 3, 33, 17)
    depthwise = {"x": x, "weight": draw(6, 1, 4, 4), "kernel_offset": kernel, "kernel_size": 3, "groups": 6}
    dense = {"x": x, "weight": draw(5, 6, 3, 3), "data_offset": 9 * data, "mask": mask, "bias": draw(5)}
    both = {"x": x, "weight": draw(4, 3, 4, 4), "kernel_offset": kernel, "data_offset": kernel, "groups": 2}
    calls: list[dict[str, Any]] = [depthwise, dense, both | {"kernel_size": 3}]
    return [(call | {"padding": 1}, draw(2, len(call["weight"]), 33, 17)) for call in calls]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
def test_results_do_not_depend_on_the_number_of_threads():
    results = []
    for count in (1, 2):
        numba.set_num_threads(count)
        try:
            results.append(
                [
                    array
                    for call, grad_out in _arrays()
                    for array in (
                        dynk.deformable_conv2d(**call, backend="cpu"),
                        *dynk.deformable_conv2d_backward(grad_out, **call, backend="cpu"),
                    )
                ]
            )
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("padding", [(0, 1), (1, 1), (2, 1)])
@pytest.mark.parametrize("boundary", ["clip", "zeros"])
def test_kernels_in_registers_of_images_taller_or_shorter_than_the_output(padding, boundary):
    rng, pixels = np.random.default_rng(0), (4 + 2 * padding[0], 17)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = draw(2, 3, 6, 17), draw(3, 1, 4, 4), draw(2, 3, 3, 3, 2, *pixels), None, None, draw(3)
    call = Call(
        DEFORMABLE_CONV2D,
        arrays,
        {"kernel_size": 3, "padding": padding, "groups": 3, "kernel_boundary": boundary},
    )
    assert_close(call.forward(backend="cpu"), *call.expected_forward())
    grad_out = draw(2, 3, *pixels)
    gradients = call.backward(grad_out, backend="cpu")
    for gradient, *expected in zip(gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *expected)


WORKSPACE = """
import re, numpy as np, dynk
from pathlib import Path
rng = np.random.default_rng(0)
def draw(*shape):
    return rng.standard_normal(shape, dtype=np.float32)
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def extra(function, *arrays, **options):
    Path("/proc/self/clear_refs").write_text("5")  # forget the most memory so far
    before = most()
    function(*arrays, **options)
    return most() - before
def grow(C, side):
    x, offset = draw(1, C, side, side), draw(1, 1, 3, 3, 2, side, side)
    grad_out = draw(1, C, side, side)
    for weight, name, groups in ((draw(C, 1, 4, 4), "kernel_offset", C), (draw(C, C, 3, 3), "data_offset", 1)):
        options = {name: offset, "kernel_size": 3, "groups": groups, "padding": 1}
        out = np.ones_like(x)
        grads = [np.ones_like(a) for a in (x, weight, offset)]
        grads = (*grads[:2], *((grads[2], None) if groups > 1 else (None, grads[2])), None, None)
        yield extra(dynk.deformable_conv2d, x, weight, out=out, **options)
        yield extra(dynk.deformable_conv2d_backward, grad_out, x, weight, grads=grads, **options)
list(grow(4, 16))
print(*grow(8, 500))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the most memory taken")
def test_memory_does_not_grow_with_the_image():
    # The columns of this image would take 69 MiB.
    assert max(map(float, run(WORKSPACE, NUMBA_NUM_THREADS="2").split())) < 64
