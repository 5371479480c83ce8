"""Samples without attention whose sum or mean is wanted: kernels may sum what they see before they multiply it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lanes import Lane, bits, each_lane_of
from test_sampled import each_operator, needs_jit, normal

from dynk._operator import Operator
from dynk.sampled import LS_DFN
from dynk.testing import Call, assert_close, rounded, values

each_lane = each_lane_of(LS_DFN)


def call_of(op: Operator, x: Any, filters: Any, kernel: Any = None, **options: Any) -> Call:
    """Return a call of filters (N, O, C, H, W), and of a kernel (N, O, kh, kw, H, W), which all channels share."""
    if op is LS_DFN:
        return Call(op, (x, filters, kernel, None, None), {"sample_stride": 1, "kernel_residual": False, **options})
    if kernel is None:
        return Call(op, (x, filters[:, :, :, None, None]), options)
    return Call(op, (x, np.repeat(kernel[:, :, None], x.shape[1], 2)), options)


def assert_as_referred(lane: Lane, call: Call) -> None:
    assert_close(lane.forward(call), *call.expected_forward())
    grad_out = normal(lane.dtype, *call.plan.out_shape, seed=1)
    results = zip(call.op.arrays, lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True)
    for name, gradient, want, terms in results:
        if gradient is not None:
            assert_close(gradient, want, terms, what=name)


@each_lane
@each_operator
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize(
    ("C", "O", "H", "W", "kernel", "s"),
    [(70, 67, 3, 5, None, 3), (3, 2, 20, 9, (11, 7), 2), (2, 3, 21, 1, (1, 3), 9), (5, 6, 17, 66, (3, 2), 4)],
    ids=["outputs", "taps", "samples", "bands"],
)
def test_more_than_a_kernel_takes_at_once(
    lane: Lane,
    op: Operator,
    reduce: str,
    C: int,
    O: int,  # noqa: E741
    H: int,
    W: int,
    kernel: Any,
    s: int,
) -> None:
    x, filters = normal(lane.dtype, 1, C, H, W), normal(lane.dtype, 1, O, C, H, W)
    shared = None if kernel is None else normal(lane.dtype, 1, O, *kernel, H, W)
    assert_as_referred(lane, call_of(op, x, filters, shared, samples=s, sample_stride=2, reduce=reduce))


@needs_jit
@each_lane
@each_operator
@pytest.mark.parametrize(("H", "W", "step"), [(110, 601, 5), (30, 5001, 7)], ids=["far", "near"])
def test_planes_that_a_task_holds_in_bands(lane: Lane, op: Operator, H: int, W: int, step: int) -> None:
    """Of more than 2**16 numbers, whose bands reach less far than they are high, or farther."""
    x, filters = normal(lane.dtype, 1, 1, H, W), normal(lane.dtype, 1, 1, 1, H, W)
    assert_as_referred(lane, call_of(op, x, filters, samples=3, sample_stride=step))


@each_lane
@each_operator
def test_a_factor_that_is_infinite_meets_each_sample(lane: Lane, op: Operator) -> None:
    """Of 2 and -1: infinity times their sum would be infinity."""
    x = rounded(np.array([[[[2.0, -1.0]]]]), lane.dtype)
    infinite, ones = (rounded(np.full((1, 1, 1, 1, 2), number), lane.dtype) for number in (np.inf, 1.0))
    assert np.isnan(values(lane.forward(call_of(op, x, infinite, samples=3)))).all()
    call = call_of(op, x, ones, samples=3)
    assert np.isnan(values(lane.backward(call, infinite[:, :, 0])[1])).all()


@each_lane
@each_operator
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("s", [1, 2])
def test_what_meets_nothing_changes_no_bit(lane: Lane, op: Operator, poison: float, s: int) -> None:
    """Filters of taps outside the image in one output of two, and the gradient of that output at such taps."""
    x, filters = normal(lane.dtype, 1, 3, 5, 6), normal(lane.dtype, 1, 2, 3, 5, 6)
    call = call_of(op, x, filters, normal(lane.dtype, 1, 2, 5, 3, 5, 6), samples=s, sample_stride=3)
    where = 2 if op is LS_DFN else 1
    ones = [None if a is None else rounded(np.ones(a.shape), lane.dtype) for a in call.arrays]
    grad_out = rounded(-np.ones(call.plan.out_shape), lane.dtype)
    outside = values(lane.backward(Call(op, tuple(ones), call.options), grad_out)[where]) == 0
    outside[:, 1] = False
    assert outside.any()

    results = []
    for number in (0, poison):
        call.arrays[where][outside] = number
        results.append(bits(lane.forward(call)))
    assert results[0] == results[1]
    was = lane.backward(call, grad_out)[where]
    grad_out[:, 0] = poison
    assert bits(lane.backward(call, grad_out)[where][outside]) == bits(was[outside])


@each_lane
@each_operator
def test_a_sum_that_is_too_large_times_a_small_factor(lane: Lane, op: Operator) -> None:
    """Two samples of three quarters of the largest number, of which a quarter is wanted."""
    if lane.dtype in ("float16", "float64"):
        pytest.skip("float16: sums are float32; float64: the reference's own")
    large = 0.75 * float(np.finfo(np.float32).max)
    x, quarter = (
        rounded(np.full(shape, n), lane.dtype) for shape, n in (((1, 1, 1, 2), large), ((1, 1, 1, 1, 2), 0.25))
    )
    call = call_of(op, x, quarter, samples=3)
    want = np.full((1, 1, 1, 2), 0.5 * float(values(x).flat[0]))
    assert_close(lane.forward(call), want, want)
    grad_filters = lane.backward(call, quarter[:, :, 0])[1]
    assert_close(grad_filters, want.reshape(grad_filters.shape), want.reshape(grad_filters.shape))
