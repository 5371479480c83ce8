"""Logarithm and exponential of float64 numbers, from arithmetic alone, so that LLVM makes vectors of loops over them.

A call of the C library stands for each number by itself.
"""

from __future__ import annotations

import math

import numpy as np

from dynk.kernels.common.compile import borrowing

# ln 2 is the sum of both; multiples of the first by an exponent are exact.
_LN2, _LN2_REST = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E = 1.4426950408889634
_ROOT_HALF = np.int64(np.float64(0.5**0.5).view(np.int64))
_BITS, _BIAS = np.int64(52), np.int64(1023)  # of a float64's fraction and exponent
_ROUND = 1.5 * 2.0**52  # what is added to it has no room for a fraction
_ROUND_BITS = np.int64(np.float64(_ROUND).view(np.int64))
_LEAST = -746.0  # whose exponential is 0
_ARTANH = tuple(2 / n for n in range(21, 1, -2))  # of 2 artanh(s) / s in s^2, but for its first term
_EXP = tuple(1 / math.factorial(n) for n in range(13, 1, -1))


@borrowing
def log(x):  # type: ignore[no-untyped-def]
    """Return ln x of a positive number that is neither subnormal nor infinite.

    Of x = 2^k (1 + f) near 1 it is k ln 2 + 2 artanh(s), s = f / (2 + f) = (f - s f) / 2: the series of artanh to s^21.
    """
    bits = np.float64(x).view(np.int64)
    exponent = (bits - _ROOT_HALF) >> _BITS
    f = np.int64(bits - (exponent << _BITS)).view(np.float64) - 1.0
    k, s = np.float64(exponent), f / (f + 2.0)
    z = s * s
    series = _polynomial(z, _ARTANH)
    half = 0.5 * f * f  # 2 s = f - s f = f - half + s half, of which f alone is exact
    return k * _LN2 - ((half - (s * (half + z * series) + k * _LN2_REST)) - f)


@borrowing
def exp(x):  # type: ignore[no-untyped-def]
    """Return e^x of a number up to 709, of -inf or NaN: 2^n e^r, r within ln 2 / 2 of 0, by the series to r^13."""
    x = _LEAST if x < _LEAST else x
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2 - n * _LN2_REST
    power = _polynomial(r, _EXP)
    power = r * r * power + r + 1.0
    exponent = np.float64(shifted).view(np.int64) - _ROUND_BITS
    half = exponent >> np.int64(1)  # 2^n in two factors, since it may be below what a number of full precision holds
    return power * _power_of_2(half) * _power_of_2(exponent - half)


@borrowing
def _polynomial(x, coefficients):  # type: ignore[no-untyped-def]
    """Return a polynomial, from its coefficient of the highest power on."""
    value = 0.0
    for coefficient in coefficients:
        value = x * value + coefficient
    return value


@borrowing
def _power_of_2(exponent):  # type: ignore[no-untyped-def]
    return np.int64((exponent + _BIAS) << _BITS).view(np.float64)
