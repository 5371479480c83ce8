"""The logarithm and the exponential of the CPU kernels against those of the C library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import prange

from dynk.kernels.common import elementary
from dynk.kernels.common.compile import kernel
from dynk.testing import assert_close

TINY, LARGEST = float(np.finfo(np.float64).tiny), float(np.finfo(np.float64).max)


@kernel
def _logs(x, out):
    for i in prange(x.size):
        out[i] = elementary.log(x[i])


@kernel
def _exps(x, out):
    for i in prange(x.size):
        out[i] = elementary.exp(x[i])


def made(function, x):
    out = np.empty_like(x)
    function(x, out)
    return out


@given(st.lists(st.floats(TINY, LARGEST) | st.floats(0.4, 1.6), min_size=1))
def test_log(numbers):
    x = np.array(numbers)
    expected = np.log(x)
    assert_close(made(_logs, x), expected, np.abs(expected))


def test_log_near_1_and_at_powers_of_2():
    x = np.concatenate([1 - 2.0 ** -np.arange(1, 54), 1 + 2.0 ** -np.arange(1, 53), 2.0 ** np.arange(-1022, 1024), [1]])
    expected = np.array([math.log(number) for number in x])
    got = made(_logs, x)
    assert_close(got, expected, np.abs(expected))
    assert got[-1] == 0


@given(st.lists(st.floats(-708, 709) | st.floats(-1, 0), min_size=1))
def test_exp(numbers):
    x = np.array(numbers)
    expected = np.exp(x)
    assert_close(made(_exps, x), expected, expected)


@pytest.mark.parametrize("x", [-math.inf, -1e300, -746.0, 0.0, math.nan])
def test_exp_at_its_ends(x):
    np.testing.assert_array_equal(made(_exps, np.array([x])), np.exp([x]))


def test_exp_of_what_is_nearly_0():
    x = np.linspace(-745.2, -708, 1000)  # results are subnormal: half a unit of the last place is no part of them
    assert np.max(np.abs(made(_exps, x) - np.exp(x))) <= 2 * 2.0**-1074
