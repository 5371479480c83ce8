"""The CUDA kernels of `gumbel_softmax` on the emulator, in CUDA C and in Numba."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import ORDERS, RawModule, emulated, emulator_unavailable, fake_cupy
from emulated import EmulatedCupy
from hypothesis import given
from hypothesis import strategies as st
from test_gumbel_softmax import KNOWN_ANSWERS, words

from dynk.dilated import GUMBEL_SOFTMAX
from dynk.kernels import common
from dynk.kernels.common import cuda_launch, philox
from dynk.kernels.dilated import cupy_raw_gumbel
from dynk.testing import Call, assert_close, rounded, strategies, values

numba_cuda_package = pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from emulated import emulated_numba, numba_kernel  # noqa: E402
from numba import cuda  # noqa: E402

from dynk.kernels.dilated.numba_cuda_gumbel import block, uniform  # noqa: E402

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

SOURCE = r"""
#include "cuda_common.cuh"
#include "philox.cuh"

__global__ void blocks(const unsigned* given, unsigned* answer) {
    const dynk::PhiloxBlock block = dynk::philox(given[0], given[1], given[2], given[3], given[4], given[5]);
    for (int word = 0; word < 4; ++word) answer[word] = block.word[word];
}

__global__ void uniforms(const unsigned long long* index, double* u, unsigned k0, unsigned k1) {
    u[threadIdx.x] = dynk::philox_uniform(index[threadIdx.x], k0, k1);
}
"""


@cache
def module() -> RawModule:
    options = ("-std=c++17", f"-I{Path(common.__file__).parent}")
    return RawModule(SOURCE, options=options, name_expressions=("blocks", "uniforms"))


@cuda.jit
def blocks_kernel(given, answer):  # type: ignore[no-untyped-def]
    answer[0], answer[1], answer[2], answer[3] = block(given[0], given[1], given[2], given[3], given[4], given[5])


@cuda.jit
def uniforms_kernel(index, u, k0, k1):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    u[i] = uniform(index[i], k0, k1)


@pytest.mark.parametrize(("given", "answer"), KNOWN_ANSWERS)
def test_generators_give_the_published_answers(given: str, answer: str) -> None:
    numbers, want = np.array(words(given)), np.array(words(answer))
    by_c, by_numba = fake_cupy.empty(4, np.uint32), fake_cupy.empty(4, np.uint64)
    module().get_function("blocks")((1,), (1,), (numbers.astype(np.uint32), by_c))
    numba_kernel(blocks_kernel)[1, 1](numbers, by_numba)
    assert np.asarray(by_c).tolist() == np.asarray(by_numba).tolist() == want.tolist()


def test_uniforms_are_those_of_the_reference() -> None:
    index = np.array([*range(250), 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    low, high = words("12345678 fedcba98")
    want = philox.array_uniform(index, low, high)
    by_c, by_numba = fake_cupy.empty(256, np.float64), fake_cupy.empty(256, np.float64)
    module().get_function("uniforms")((1,), (256,), (index, by_c, np.uint32(low), np.uint32(high)))
    numba_kernel(uniforms_kernel)[1, 256](index, by_numba, low, high)
    assert np.asarray(by_c).tobytes() == np.asarray(by_numba).tobytes() == want.tobytes()


# ---- kernels ---------------------------------------------------------------------------------------------------------


def check(runtime: Any, call: Call, grad_out: Any) -> None:
    """Assert that a runtime's results agree with the reference."""
    if 0 in call.plan.out_shape:
        return  # such calls launch nothing
    assert_close(runtime.forward(call), *call.expected_forward())
    gradient, none = runtime.backward(call, grad_out, ("logits",))
    expected, magnitudes = call.expected_backward(grad_out)
    assert_close(gradient, expected[0], magnitudes[0])
    assert none is None


@pytest.mark.parametrize("dtype", list(cuda_launch.ELEMENT))
@given(data=st.data())
def test_equals_reference(dtype: str, data: st.DataObject) -> None:
    special = data.draw(st.booleans())
    call = data.draw(strategies.calls(GUMBEL_SOFTMAX, dtype, allow_nan=special, allow_infinity=special))
    grad_out = data.draw(strategies.grad_outs(call))
    with emulated(order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        check(EmulatedCupy(GUMBEL_SOFTMAX), call, grad_out)
        for runtime in emulated_numba() if dtype in ("float32", "float64") else ():
            check(runtime, call, grad_out)


def normal(dtype: str, *shape: int) -> Any:
    return rounded(np.random.default_rng([*shape]).standard_normal(shape), dtype)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 9, 5), (2, 256), (2, 257), (70, 33, 2), (2, 300, 33)])
def test_candidates_of_one_thread_and_of_many(shape: tuple[int, ...], hard: bool) -> None:
    call = Call(GUMBEL_SOFTMAX, (normal("float32", *shape), np.array(3)), {"hard": hard, "tau": 0.5})
    cuda_c = EmulatedCupy(GUMBEL_SOFTMAX)
    check(cuda_c, call, normal("float32", *shape))
    lanes = 32 if shape[1] > 8 and shape[2:] < (32,) else 1
    assert all(name.endswith(f"{lanes}>") for name in cuda_c.launched)


@pytest.mark.parametrize("candidates", [5, 40])
def test_of_equal_largest_values_the_first_is_taken(candidates: int) -> None:
    logits = np.zeros((candidates, candidates), np.float32)
    logits[np.triu_indices(candidates)] = 1
    logits[1, 3], logits[2, 4], logits[2, 2] = np.nan, np.inf, np.inf
    call = Call(GUMBEL_SOFTMAX, (logits, None), {"hard": True})
    want = np.eye(candidates, dtype=np.float32)
    want[1] = np.nan
    for runtime in (EmulatedCupy(GUMBEL_SOFTMAX), *emulated_numba()):
        assert np.array_equal(runtime.forward(call), want, equal_nan=True)


def test_choice_is_that_of_every_other_backend() -> None:
    logits = np.random.default_rng(0).integers(-3, 4, (2, 5, 300)).astype(np.float64)  # exact in every dtype
    want = Call(GUMBEL_SOFTMAX, (logits, np.array(3)), {"hard": True}).forward()
    for dtype in cuda_launch.ELEMENT:
        call = Call(GUMBEL_SOFTMAX, (rounded(logits, dtype), np.array(3)), {"hard": True})
        runtimes = [EmulatedCupy(GUMBEL_SOFTMAX), *(emulated_numba() if dtype in ("float32", "float64") else [])]
        assert all(np.array_equal(values(runtime.forward(call)), want) for runtime in runtimes)


def test_nothing_is_launched_that_is_not_wanted() -> None:
    call = Call(GUMBEL_SOFTMAX, (normal("float32", 2, 3), None), {})
    for runtime in (EmulatedCupy(GUMBEL_SOFTMAX), *emulated_numba()):
        assert runtime.backward(call, normal("float32", 2, 3), ()) == (None, None)
        assert runtime.launched == runtime.workspaces == []


def test_large_tensors_get_64_bit_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy_raw_gumbel, "index_dtype", lambda *extents: np.dtype(np.int64))
    call = Call(GUMBEL_SOFTMAX, (normal("float16", 3, 4, 5), np.array([1, 2, 3])), {})
    cuda_c = EmulatedCupy(GUMBEL_SOFTMAX)
    check(cuda_c, call, normal("float16", 3, 4, 5))
    assert all("__half, long long" in name for name in cuda_c.launched)
