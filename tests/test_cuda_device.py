"""What only a real device can show: work goes to the caller's stream, and can be captured in a CUDA graph."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from lanes import Lane, bits, each_operator_on_each_cuda_lane

import dynk
from dynk._operator import Operator
from dynk.testing import Call, assert_close, rounded, sample_calls


def sample_call(op: Operator, dtype: str, seed: int = 0) -> Call:
    return sample_calls(op, dtype, np.random.default_rng(seed))[0]


def copy_into(call: Call, there: Call, lane: Lane) -> None:
    """Write a call's arrays into the device arrays of another, in the order of the current stream."""
    for array, target in zip(call.arrays, there.arrays, strict=True):
        if array is not None:
            target[...] = lane.put(array)


def keep_busy(cupy: Any) -> None:
    """Give the current stream work that a kernel launched on any other stream would overtake."""
    a = cupy.ones((4096, 4096), cupy.float32)
    for _ in range(20):
        a = a @ a * cupy.float32(1 / 4096)


@each_operator_on_each_cuda_lane
def test_work_follows_the_callers_stream(lane: Lane, op: Operator) -> None:
    """The inputs are NaN until the stream has written them: a call on another stream would read NaN."""
    cupy = importlib.import_module("cupy")
    call = sample_call(op, lane.dtype)
    grad_out = rounded(np.random.default_rng(1).standard_normal(call.plan.out_shape), lane.dtype)
    there, their_grad_out = lane.put_call(call), lane.put(grad_out)
    there.forward(backend=lane.backend)
    there.backward(their_grad_out, backend=lane.backend)  # compiled, so that the calls below only launch
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        values = [None if a is None else a.copy() for a in there.arrays]
        for array in there.arrays:
            if array is not None:
                array.fill(np.nan)
        keep_busy(cupy)
        for array, value in zip(there.arrays, values, strict=True):
            if array is not None:
                array[...] = value
        out = there.forward(backend=lane.backend)
        gradients = there.backward(their_grad_out, backend=lane.backend)
        stream.synchronize()
    assert_close(lane.get(out), *call.expected_forward())
    for name, gradient, want, terms in zip(op.arrays, gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(lane.get(gradient), want, terms, what=name)


@each_operator_on_each_cuda_lane
def test_a_captured_call_replays_on_new_values(lane: Lane, op: Operator) -> None:
    cupy = importlib.import_module("cupy")
    first, second = sample_call(op, lane.dtype, seed=0), sample_call(op, lane.dtype, seed=1)
    grad_out = rounded(np.random.default_rng(2).standard_normal(first.plan.out_shape), lane.dtype)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        there, their_grad_out = lane.put_call(first), lane.put(grad_out)
        out = lane.put(rounded(np.zeros(first.plan.out_shape), lane.dtype))
        grads = tuple(None if a is None else cupy.empty_like(a) for a in there.arrays)

        def run() -> None:
            there.forward(backend=lane.backend, out=out)
            there.backward(their_grad_out, backend=lane.backend, grads=grads)

        run()  # compiles, and fills the memory pool of this stream
        stream.synchronize()
        stream.begin_capture()
        run()
        graph = stream.end_capture()
        copy_into(second, there, lane)
        graph.launch(stream)
        stream.synchronize()
        results = [lane.get(out), *map(lane.get, grads)]
        eager = [lane.forward(second), *lane.backward(second, grad_out)]
    for result, want in zip(results, eager, strict=True):
        assert result is want is None or bits(result) == bits(want)


@each_operator_on_each_cuda_lane
def test_the_device_agrees_from_any_thread(lane: Lane, op: Operator) -> None:
    """Threads with streams of their own get the bits that one thread alone gets."""
    cupy = importlib.import_module("cupy")
    call = sample_call(op, lane.dtype)
    want = bits(lane.forward(call))

    def on_its_own_stream(_: int) -> bytes:
        with cupy.cuda.Stream(non_blocking=True) as stream:
            out = lane.forward(call)
            stream.synchronize()
            return bits(out)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(on_its_own_stream, range(16))) == {want}


@pytest.mark.gpu
def test_there_is_a_lane_on_the_device() -> None:
    """`make gpu-test` must not pass because everything was skipped."""
    reasons = {status.name: status.reason for status in dynk.backends() if status.device == "cuda"}
    if None not in reasons.values():
        pytest.skip(f"no CUDA backend can run here: {reasons}")
    assert reasons["cupy"] is None
