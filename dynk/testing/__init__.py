"""Test dynk, and layers built on it: one derived error bound, reference results, and hypothesis strategies.

`assert_close` compares a result with the float64 reference under a bound that is derived, not tuned. `Call` holds one
call of an operator and knows its expected results. `dynk.testing.strategies`, which alone needs hypothesis and is
imported by itself, draws arrays and whole calls.

Examples
--------
>>> from hypothesis import given, settings
>>> from dynk import testing
>>> from dynk.testing import strategies
>>> @settings(max_examples=5, deadline=None, derandomize=True)
... @given(strategies.calls("ddf", "float32"))
... def test_my_layer(call):
...     expected, magnitude = call.expected_forward()
...     testing.assert_close(call.forward(), expected, magnitude)
>>> test_my_layer()
"""

from dynk.testing._bound import (
    ERROR_FACTOR,
    assert_close,
    expected_backward,
    expected_forward,
    rounded,
    values,
)
from dynk.testing._calls import Call, sample_calls

__all__ = [
    "ERROR_FACTOR",
    "Call",
    "assert_close",
    "expected_backward",
    "expected_forward",
    "rounded",
    "sample_calls",
    "values",
]
