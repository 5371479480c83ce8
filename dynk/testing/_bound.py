"""One derived error bound, and the reference results that it is applied to.

The bound. Every value dynk computes is a sum of products. With `magnitude` the sum of the absolute values of its terms
and the sum formed in an accumulation type of spacing eps,

    |error| <= ERROR_FACTOR * eps(accumulator) * magnitude + eps(dtype) * |expected| + smallest(dtype) + normal

The first term is the rounding of the sum: n roundings in a chain err by at most 2*sqrt(n) half-spacings but with
negligible probability (Higham & Mary, 2019), and no kernel adds more than 64 terms in one chain before it merges
chains, so ERROR_FACTOR is 8. The second is the single rounding of the result to its dtype, the third its underflow, the
last the accumulation type's smallest normal number, below which some runtimes (XLA's) have the processor flush to 0.
The bound so scales with the condition of the sum and is the same for every operator, shape and backend; nothing in it
is fitted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dynk import _arrays
from dynk._operator import Operator, Plan
from dynk.kernels.common.dtypes import EPS, LARGEST, SMALLEST, STORAGE, accumulator, narrow, widen

ERROR_FACTOR = 8.0
UNDERFLOW = {dtype: SMALLEST[dtype] + float(np.finfo(accumulator(dtype)).tiny) for dtype in SMALLEST}


def assert_close(
    actual: Any,
    expected: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    *,
    what: str = "result",
) -> None:
    """Assert that a result agrees with the float64 reference within the derived error bound.

    Parameters
    ----------
    actual : array
        What was computed, of any supported kind on the CPU; its dtype sets the bound.
    expected : array_like of float64
        The reference.
    magnitude : array_like of float64
        Sum of the absolute values of the terms that each element of `expected` sums; broadcasts to it.
    what : str
        Name used in the message.

    Raises
    ------
    AssertionError
        With the worst element, its bound and both values. NaN must meet NaN and infinity the same infinity; where the
        terms exceed the range of the type, infinity or NaN is accepted.

    Examples
    --------
    >>> import numpy as np, dynk.testing
    >>> dynk.testing.assert_close(np.float32([1 / 3]), [1 / 3], [1.0])
    """
    got, dtype = _widened(actual)
    if dtype not in EPS:
        msg = f"dynk.testing: {what} must be a floating array, got {dtype}"
        raise TypeError(msg)
    want = np.asarray(expected, np.float64)
    if got.shape != want.shape:
        msg = f"{what}: shape {got.shape}, expected {want.shape}"
        raise AssertionError(msg)
    terms = np.broadcast_to(np.asarray(magnitude, np.float64), want.shape)
    inner = accumulator(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        bound = ERROR_FACTOR * EPS[inner] * terms + EPS[dtype] * np.abs(want) + UNDERFLOW[dtype]
        # A sum whose terms leave the range may overflow on the way, a result at its end may round to infinity.
        overflow = ~(terms * (1 + ERROR_FACTOR * EPS[inner]) < LARGEST[inner]) & np.isfinite(want)
        overflow |= ~(np.abs(want) + bound < LARGEST[dtype]) & np.isfinite(want)
        error = np.abs(got - want)
        same = (np.isnan(got) & np.isnan(want)) | (got == want)
        good = same | (np.isfinite(want) & (error <= bound)) | (overflow & ~np.isfinite(got))
    if good.all():
        return
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(good, -1.0, np.nan_to_num(error / bound, nan=np.inf, posinf=np.inf))
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
    msg = (
        f"{what}: {int((~good).sum())} of {good.size} elements of {dtype} {got.shape} are off; the worst at "
        f"{tuple(int(i) for i in worst)}: got {got[worst]!r}, expected {want[worst]!r}, "
        f"error {error[worst]:.3g} > bound {bound[worst]:.3g}"
    )
    raise AssertionError(msg)


def expected_forward(op: Operator, arrays: tuple[Any, ...], plan: Plan) -> tuple[Any, Any]:
    """Return the reference output of an operator and the magnitude of its terms, both float64."""
    reference = op.launchers("reference")
    wide = tuple(None if a is None else values(a) for a in arrays)
    out = getattr(reference, f"{op.launcher}_forward")(plan, *wide)
    own = getattr(reference, f"{op.launcher}_magnitude", None)
    if own is not None:
        return out, own(plan, None, *wide)[0]
    return out, getattr(reference, f"{op.launcher}_forward")(plan, *_absolute(wide))


def expected_backward(
    op: Operator, grad_out: Any, arrays: tuple[Any, ...], plan: Plan
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the reference gradients of an operator and the magnitudes of their terms, both float64."""
    reference = op.launchers("reference")
    wide = tuple(None if a is None else values(a) for a in arrays)
    grad = values(grad_out)
    backward = getattr(reference, f"{op.launcher}_backward")
    own = getattr(reference, f"{op.launcher}_magnitude", None)
    magnitude = own(plan, grad, *wide) if own is not None else backward(plan, np.abs(grad), *_absolute(wide))
    return backward(plan, grad, *wide), magnitude


def _absolute(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if a is None else (np.abs(a) if a.dtype.kind == "f" else a) for a in arrays)


def values(array: Any) -> npt.NDArray[np.float64]:
    """Return the values of any supported CPU array as float64.

    Examples
    --------
    >>> import numpy as np, dynk.testing
    >>> dynk.testing.values(np.float16([0.5]))
    array([0.5])
    """
    return _widened(array)[0]


def _widened(array: Any) -> tuple[npt.NDArray[np.float64], str]:
    kind, _, _, dtypes = _arrays.borrow("dynk.testing", ("array",), (array,))
    dtype = dtypes[0] or ""
    if dtype not in STORAGE:
        msg = f"dynk.testing: array must have dtype {', '.join(map(repr, STORAGE))}, got {dtype}"
        raise TypeError(msg)
    view = kind.view(array, dtype)
    if isinstance(view, _arrays.CudaView):
        msg = "dynk.testing: array must be on the CPU, got a CUDA array; copy it to the host first"
        raise TypeError(msg)
    return widen(view, dtype), dtype


def rounded(array: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    """Return values rounded to `dtype` as a NumPy array; bfloat16 needs ml_dtypes."""
    view, memory = _arrays.NUMPY.allocate(np.shape(array), dtype, _arrays.CPU)
    view[...] = narrow(np.asarray(array, np.float64), dtype)  # type: ignore[index]
    return memory  # type: ignore[no-any-return]
