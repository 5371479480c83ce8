"""What every operator must do on every backend and dtype: one body each, over calls that hypothesis draws.

A new operator is tested here as soon as it is declared and its family has strategies in `dynk.testing`.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lanes import Lane, bits, each_operator, each_operator_on_each_lane

from dynk import _dispatch
from dynk._operator import Operator
from dynk.kernels.common.dtypes import EPS
from dynk.testing import Call, assert_close, rounded, sample_calls, strategies


def draw_call(data: st.DataObject, op: Operator, dtype: str, **options: Any) -> Call:
    return data.draw(strategies.calls(op, dtype, **options))


def draw_special_call(data: st.DataObject, op: Operator, dtype: str) -> Call:
    """Draw a call that may hold NaN and infinities."""
    nan, infinity = data.draw(st.sampled_from([(False, False), (True, False), (False, True), (True, True)]))
    return draw_call(data, op, dtype, allow_nan=nan, allow_infinity=infinity)


def draw_grad_out(data: st.DataObject, call: Call, **options: Any) -> Any:
    return data.draw(strategies.grad_outs(call, **options))


def is_floating(array: Any) -> bool:
    """Return whether an argument is there and no array of integers, which has no gradient."""
    return array is not None and array.dtype.kind not in "iu"


@each_operator_on_each_lane
def test_smoke(lane: Lane, op: Operator) -> None:
    """The operator's declared samples, forward and backward."""
    rng = np.random.default_rng(0)
    for call in sample_calls(op, lane.dtype, rng):
        assert_close(lane.forward(call), *call.expected_forward(), what=repr(call))
        grad_out = rounded(rng.standard_normal(call.plan.out_shape), lane.dtype)
        for gradient, want, terms in zip(lane.backward(call, grad_out), *call.expected_backward(grad_out), strict=True):
            assert gradient is want is None or assert_close(gradient, want, terms, what=repr(call)) is None


@each_operator_on_each_lane
@given(data=st.data())
def test_forward_equals_reference(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_special_call(data, op, lane.dtype)
    out = lane.forward(call)
    assert out.dtype.name == lane.dtype
    assert_close(out, *call.expected_forward())


@each_operator_on_each_lane
@given(data=st.data())
def test_backward_equals_reference(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_special_call(data, op, lane.dtype)
    grad_out = draw_grad_out(data, call, allow_nan=data.draw(st.booleans()))
    gradients = lane.backward(call, grad_out)
    expected, magnitudes = call.expected_backward(grad_out)
    for argument, array, gradient, want, magnitude in zip(
        op.arrays, call.arrays, gradients, expected, magnitudes, strict=True
    ):
        if not is_floating(array):
            assert gradient is None
        else:
            assert gradient.dtype.name == lane.dtype
            assert_close(gradient, want, magnitude, what=argument)


@each_operator_on_each_lane
@given(data=st.data())
def test_same_call_gives_same_bits(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_special_call(data, op, lane.dtype)
    grad_out = draw_grad_out(data, call)
    assert bits(lane.forward(call)) == bits(lane.forward(call))
    first, again = lane.backward(call, grad_out), lane.backward(call, grad_out)
    assert [bits(a) for a in first if a is not None] == [bits(a) for a in again if a is not None]


@each_operator_on_each_lane
@given(data=st.data())
def test_layout_changes_no_bit(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_call(data, op, lane.dtype)
    grad_out = draw_grad_out(data, call)
    plain = call.with_arrays(*(None if a is None else np.array(a, order="C") for a in call.arrays))
    assert bits(lane.forward(call)) == bits(lane.forward(plain))
    gradients = lane.backward(call, grad_out), lane.backward(plain, np.array(grad_out, order="C"))
    for gradient, want in zip(*gradients, strict=True):
        assert gradient is want is None or bits(gradient) == bits(want)


@each_operator_on_each_lane
@given(data=st.data())
def test_given_outputs_are_filled_and_returned(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_call(data, op, lane.dtype)
    grad_out = draw_grad_out(data, call)
    there = lane.put_call(call)
    garbage = [lane.put(rounded(np.full(a.shape, np.nan), lane.dtype)) if is_floating(a) else None for a in call.arrays]

    out = lane.put(rounded(np.full(call.plan.out_shape, np.nan), lane.dtype))
    assert there.forward(backend=lane.backend, out=out) is out
    assert bits(lane.get(out)) == bits(lane.forward(call))

    gradients = there.backward(lane.put(grad_out), backend=lane.backend, grads=tuple(garbage))
    for gradient, memory, want in zip(gradients, garbage, lane.backward(call, grad_out), strict=True):
        assert gradient is memory
        assert memory is None or bits(lane.get(memory)) == bits(want)


@each_operator_on_each_lane
@given(data=st.data())
def test_only_needed_gradients_are_computed(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_call(data, op, lane.dtype)
    grad_out = draw_grad_out(data, call)
    present = [name for name, array in zip(op.arrays, call.arrays, strict=True) if is_floating(array)]
    needs = data.draw(st.sets(st.sampled_from(present)))
    everything = lane.backward(call, grad_out)
    runner = _dispatch.runner_of(lane.backend)
    with mock.patch.object(runner, "run", wraps=runner.run) as run:
        gradients = lane.backward(call, grad_out, needs=needs)
    for name, gradient, want in zip(op.arrays, gradients, everything, strict=True):
        assert (gradient is not None) == (name in needs)
        assert gradient is None or bits(gradient) == bits(want)
    asked = [view is not None for _, _, _, _, outputs, *_ in (c.args for c in run.call_args_list) for view in outputs]
    assert asked in ([], [name in needs for name in op.arrays])


@each_operator_on_each_lane
@given(data=st.data())
def test_inputs_are_never_written(lane: Lane, op: Operator, data: st.DataObject) -> None:
    call = draw_call(data, op, lane.dtype)
    grad_out = lane.put(draw_grad_out(data, call))
    there = lane.put_call(call)
    inputs = [a for a in (grad_out, *there.arrays) if a is not None]
    owners = [a if a.base is None else a.base for a in inputs]
    before = [bits(lane.get(a)) for a in (*inputs, *owners)]
    there.forward(backend=lane.backend)
    there.backward(grad_out, backend=lane.backend)
    assert [bits(lane.get(a)) for a in (*inputs, *owners)] == before


@each_operator_on_each_lane
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@given(data=st.data())
def test_poison_reaches_only_what_reads_it(lane: Lane, op: Operator, poison: float, data: st.DataObject) -> None:
    """One NaN or infinity changes the outputs that read it as IEEE says, and no bit of any other."""
    call = draw_call(data, op, lane.dtype, layouts=False)
    grad_out = draw_grad_out(data, call, layouts=False)
    inputs = dict(zip(("grad_out", *op.arrays), (grad_out, *call.arrays), strict=True))
    moved = frozenset() if np.isnan(poison) else op.coordinates  # infinite ones are as good as others
    names = [name for name, array in inputs.items() if is_floating(array) and array.size and name not in moved]
    if not names:
        return
    clean = lane.forward(call), *lane.backward(call, grad_out)
    poisoned = data.draw(st.sampled_from(names), label="input")
    inputs[poisoned].flat[data.draw(st.integers(0, inputs[poisoned].size - 1), label="element")] = poison
    dirty = lane.forward(call), *lane.backward(call, grad_out)
    wants, magnitudes = call.expected_backward(grad_out)
    if poisoned in op.coordinates:  # gradients are left open
        dirty = dirty[:1] + (None,) * len(wants)
    out, magnitude = call.expected_forward()
    for result, was, want, terms in zip(dirty, clean, (out, *wants), (magnitude, *magnitudes), strict=True):
        if result is not None:
            assert_close(result, want, terms)
            untouched = np.isfinite(want) & np.isfinite(terms)
            assert bits(result[untouched]) == bits(was[untouched])


# ---- the reference itself, which everything above relies on ----------------------------------------------------------


@each_operator
@given(data=st.data())
def test_reference_gradients_are_central_differences(op: Operator, data: st.DataObject) -> None:
    """Along a random direction of each argument, in float64; such differences are good to half its digits."""
    call = draw_call(data, op, "float64", layouts=False, small=True)
    assume(not call.options.get("hard"))  # its gradient is that of the soft output
    call = call.with_arrays(*(_smooth(op, name, a, data) for name, a in zip(op.arrays, call.arrays, strict=True)))
    assume(not _has_kinks(call))
    grad_out = rounded(np.random.default_rng(0).standard_normal(call.plan.out_shape), "float64")
    gradients, magnitudes = call.expected_backward(grad_out)
    # The outputs' own rounding, of which a difference takes 2**17 times as much.
    sizes = call.expected_forward()[1]
    rounding = (np.abs(grad_out) * sizes).sum() * 2.0**17 * EPS["float64"] / EPS["float32"]
    for k, (array, gradient, magnitude) in enumerate(zip(call.arrays, gradients, magnitudes, strict=True)):
        if not is_floating(array):
            continue
        tangent = np.random.default_rng(k).standard_normal(array.shape)
        ahead, behind = (_moved(call, k, step * tangent).expected_forward()[0] for step in (2.0**-17, -(2.0**-17)))
        difference = (grad_out * (ahead - behind)).sum() * 2.0**16
        terms = (magnitude * np.abs(tangent)).sum() + rounding
        assert_close(np.float32(difference).reshape(1), [(gradient * tangent).sum()], [terms], what=op.arrays[k])


def _smooth(op: Operator, name: str, array: Any, data: st.DataObject) -> Any:
    """Return values around which the operator is smooth.

    They are at least 1 apart, so that no filter is near to having equal taps, or coordinates between positions.
    """
    if not is_floating(array):
        return array
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if name in op.coordinates:
        return rng.integers(-3, 3, array.shape) + rng.choice([0.25, 0.75], array.shape)
    return ((rng.permutation(array.size) + 1.0) * rng.choice([-1.0, 1.0], array.size)).reshape(array.shape)


def _has_kinks(call: Call) -> bool:
    """Return whether the largest of an output's samples are so near that a step may change which it is."""
    if call.options.get("reduce") != "max" or call.options["samples"] == 1:
        return False
    samples, sizes = Call(call.op, call.arrays, {**call.options, "reduce": "none"}).expected_forward()
    samples, sizes = (a.reshape(a.shape[0], a.shape[1] ** 2, *a.shape[3:]) for a in (samples, sizes))
    near = samples.max(1, keepdims=True) - samples <= 2.0**-12 * sizes.max(1, keepdims=True)
    # Samples without terms are 0 whatever moves.
    return bool(((near.sum(1) > 1) & (near & (sizes > 0)).any(1)).any())


def _moved(call: Call, k: int, step: Any) -> Call:
    return call.with_arrays(*(np.asarray(a + step) if i == k else a for i, a in enumerate(call.arrays)))


@each_operator
@given(data=st.data())
def test_declared_derivative_is_that_of_the_operator(op: Operator, data: st.DataObject) -> None:
    """`Operator.derivative` names a call whose value is the directional derivative: adapters differentiate by it."""
    if op.derivative is None:
        return
    call = draw_call(data, op, "float64", layouts=False, small=True)
    options = op.canonical(**call.options)
    for k, array in enumerate(call.arrays):
        if not is_floating(array):
            continue
        tangent = rounded(np.random.default_rng(k).standard_normal(array.shape), "float64")
        try:
            arrays, its_options = op.derivative(k, tangent, call.arrays, options)
        except NotImplementedError:  # declared to have none for this argument, or these options
            continue
        derivative = Call(op, arrays, dict(zip(op.options, its_options, strict=True)))
        ahead, magnitude = _moved(call, k, tangent).expected_forward()
        behind, less = _moved(call, k, -tangent).expected_forward()
        assert_close(derivative.forward(backend="reference"), (ahead - behind) / 2, magnitude + less, what=op.arrays[k])
