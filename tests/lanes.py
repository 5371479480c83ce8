"""Lanes: every (backend, dtype) pair that a backend declares, as parameters of the tests that all of them must pass.

A lane whose backend cannot run here is skipped with the backend's own reason. Lanes of a CUDA backend carry the `gpu`
marker and run on CuPy arrays.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import dynk
from dynk._dispatch import runner_of
from dynk._operator import Operator, operators
from dynk.testing import Call


@dataclass(frozen=True)
class Lane:
    """One backend at one dtype."""

    backend: str
    device: str
    dtype: str

    def put(self, array: Any) -> Any:
        """Return a NumPy array as one of this lane's device, in the same memory layout."""
        return array if self.device == "cpu" or array is None else _to_cuda(array)

    def get(self, array: Any) -> Any:
        """Return an array of this lane's device as a NumPy array."""
        return array if self.device == "cpu" or array is None else importlib.import_module("cupy").asnumpy(array)

    def put_call(self, call: Call) -> Call:
        """Return a call with its arrays on this lane's device."""
        return call.with_arrays(*map(self.put, call.arrays))

    def forward(self, call: Call, **keywords: Any) -> Any:
        """Run a call of NumPy arrays on this lane and return a NumPy array."""
        return self.get(self.put_call(call).forward(backend=self.backend, **keywords))

    def backward(self, call: Call, grad_out: Any, **keywords: Any) -> tuple[Any, ...]:
        """Run a call's gradient on this lane and return NumPy arrays."""
        gradients = self.put_call(call).backward(self.put(grad_out), backend=self.backend, **keywords)
        return tuple(map(self.get, gradients))


def _to_cuda(array: Any) -> Any:
    cupy = importlib.import_module("cupy")
    if array.size == 0:
        return cupy.empty(array.shape, array.dtype)
    owner = array if array.base is None else array.base
    memory = cupy.asarray(owner.ravel(order="K").view(np.uint8))
    offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    return cupy.ndarray(array.shape, array.dtype, memory.data + offset, array.strides)


def _lanes() -> list[Any]:
    lanes = []
    for status in dynk.backends():
        marks = [pytest.mark.gpu] if status.device == "cuda" else []
        if status.reason is not None:
            marks.append(pytest.mark.skip(reason=f"{status.name}: {status.reason}"))
        for dtype in status.dtypes:
            lane = Lane(status.name, status.device, dtype)
            lanes.append(pytest.param(lane, id=f"{status.name}-{dtype}", marks=marks))
    return lanes


LANES = _lanes()
CUDA_LANES = [lane for lane in LANES if lane.values[0].device == "cuda"]
OPERATORS: list[Operator] = list(operators().values())

each_lane = pytest.mark.parametrize("lane", LANES)
each_cuda_lane = pytest.mark.parametrize("lane", CUDA_LANES)


def each_lane_of(op: Operator) -> Any:
    """Parametrise a test over the lanes whose backend has kernels for an operator's family."""
    return pytest.mark.parametrize("lane", [lane for lane in LANES if _runs(lane, op)])


def _runs(lane: Any, op: Operator) -> bool:
    return op.has_launchers(runner_of(lane.values[0].backend).LAUNCHERS)


def _pairs(lanes: list[Any]) -> Any:
    """Parametrise a test over every operator on every lane whose backend has kernels for it."""
    pairs = [
        pytest.param(op, *lane.values, id=f"{op.name}-{lane.id}", marks=lane.marks)
        for lane in lanes
        for op in OPERATORS
        if _runs(lane, op)
    ]
    return pytest.mark.parametrize(("op", "lane"), pairs)


each_operator_on_each_lane = _pairs(LANES)
each_operator_on_each_cuda_lane = _pairs(CUDA_LANES)
each_operator = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)


def bits(array: Any) -> bytes:
    """Return the bits of an array's values in row-major order."""
    return np.ascontiguousarray(array).tobytes()
