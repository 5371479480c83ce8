"""`gumbel_softmax` and `gumbel_softmax_backward`."""

from __future__ import annotations

import math
import operator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dynk import _checks, _dispatch
from dynk._arrays import borrow
from dynk._operator import Dtypes, Operator, Options, Plan, Shape, Shapes
from dynk.kernels.common.dtypes import INTEGERS
from dynk.kernels.dilated.softmax_geometry import SoftmaxGeometry

MAX_SEED = 2**64 - 1
MAX_OFFSET = 2**63 - 1


class GumbelSoftmaxGradients(NamedTuple):
    """Gradients of `gumbel_softmax`; there is none for the seed."""

    logits: Any
    seed: Any


def gumbel_softmax(
    logits: Any,
    seed: Any = None,
    *,
    tau: float = 1.0,
    hard: bool = False,
    offset: int = 0,
    axis: int = 1,
    out: Any = None,
    backend: str | None = None,
) -> Any:
    r"""Draw a choice among candidates that can be differentiated (PAD Eq. 2).

    .. math::
        out = softmax((logits + g) / \tau), \quad g = -\log(-\log u)

    over `axis`, with u uniform on (0, 1) and drawn anew for each element: the arg-max of logits + g is a candidate
    drawn with the probabilities softmax(logits). Every backend draws the same noise for the same seed.

    Parameters
    ----------
    logits : array of any shape
        Unnormalised log-probabilities, such as (N, D, H, W) of D candidates for each pixel. float16, bfloat16, float32
        or float64.
    seed : int or array of int, optional
        Which noise to draw; none is added if None, as for evaluation. An int from 0 to 2**64 - 1, or that number in an
        array of the kind and device of `logits`: its bits as int64, of shape () or (S,), or as its low and high word in
        int32, of shape (2,) or (S, 2). Each of S seeds draws the noise of 1/S of the elements, in row-major order.
    tau : float, default 1.0
        Temperature: towards 0 the output becomes one-hot, far above 1 uniform.
    hard : bool, default False
        Whether to return the one-hot of the arg-max instead, the first of equal ones. The gradient stays that of the
        soft output (straight-through).
    offset : int, default 0
        Is added to the number of each element: the calls of a stream that is cut into pieces draw what one would.
    axis : int, default 1
        The axis of the candidates; a negative one counts from the end.
    out : array of the shape of `logits`, optional
        A C-contiguous array to write to.
    backend : {"cpu", "cupy", "numba-cuda", "reference"}, optional
        The backend to run on; chosen by the device of the arrays if None.

    Returns
    -------
    array of the shape of `logits`
        Of its kind, dtype and device. Where a logit is NaN so are all candidates that it competes with.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Notes
    -----
    Element e, numbered row-major, of the E elements that share a seed draws block (e + offset, 0) of Philox4x32-10 with
    the seed as key: its counter is (low, high word of e + offset, 0, 0), its key (low, high word of the seed). Of the
    block's words w, u = (m + 1/2) / 2**52 with m = w[0] * 2**20 + w[1] // 2**12; it is exact in float64, and neither
    0 nor 1. All is computed in float64 whatever the dtype, and rounded once: neither the noise nor the choice depends
    on the dtype of the call or on the backend.

    An int is copied to the device at each call; a seed that is in an array on a CUDA device already waits for nothing.

    References
    ----------
    Categorical reparameterization with Gumbel-softmax, ICLR 2017. Parallel random numbers: as easy as 1, 2, 3, SC 2011.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> logits = np.log([[0.1, 0.2, 0.7]])
    >>> dynk.gumbel_softmax(logits)
    array([[0.1, 0.2, 0.7]])
    >>> dynk.gumbel_softmax(logits, seed=3, tau=0.5).round(3)
    array([[0.033, 0.003, 0.964]])
    >>> draws = dynk.gumbel_softmax(np.tile(logits, (10000, 1)), seed=0, hard=True)
    >>> draws.mean(0).round(2)
    array([0.1, 0.2, 0.7])
    """
    options = _options(tau, hard, offset, axis)
    return _dispatch.forward(
        GUMBEL_SOFTMAX, (logits, _seed_array("gumbel_softmax", logits, seed)), options, out, backend
    )


def gumbel_softmax_backward(
    grad_out: Any,
    logits: Any,
    seed: Any = None,
    *,
    tau: float = 1.0,
    hard: bool = False,
    offset: int = 0,
    axis: int = 1,
    needs: Any = None,
    grads: Any = None,
    backend: str | None = None,
) -> GumbelSoftmaxGradients:
    """Return the gradient of `gumbel_softmax` with respect to the logits, whether the output was soft or hard.

    Parameters
    ----------
    grad_out : array of the shape of `logits`
        Gradient of a scalar with respect to the output of `gumbel_softmax`.
    logits, seed, tau, hard, offset, axis, backend
        As given to `gumbel_softmax`; the noise is drawn again.
    needs : collection of {"logits"}, optional
        The gradients wanted.
    grads : GumbelSoftmaxGradients or tuple, optional
        A C-contiguous array to write to, and None for the seed.

    Returns
    -------
    GumbelSoftmaxGradients
        (logits, seed), the first of the shape and dtype of the logits or None, the second always None.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `gumbel_softmax`.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> grad_out = np.array([[0.0, 0.0, 1.0]])
    >>> dynk.gumbel_softmax_backward(grad_out, np.log([[0.1, 0.2, 0.7]])).logits.round(3)
    array([[-0.07, -0.14,  0.21]])
    """
    name = "gumbel_softmax_backward"
    options = _options(tau, hard, offset, axis, function=name)
    arrays = (logits, _seed_array(name, logits, seed))
    return GumbelSoftmaxGradients(*_dispatch.backward(GUMBEL_SOFTMAX, grad_out, arrays, options, needs, grads, backend))


def seed_number(function: str, seed: Any) -> int:
    """Return a seed that is a number as an int."""
    return _checks.integer(function, "seed", seed, least=0, most=MAX_SEED)


def seed_words(function: str, seed: Any) -> npt.NDArray[np.int32]:
    """Return a seed that is a number as its two words, (1, 2)."""
    return np.array([seed_number(function, seed)], np.uint64).view(np.int32).reshape(1, 2)


def _seed_array(function: str, logits: Any, seed: Any) -> Any:
    """Return a seed as an array of the kind and on the device of the logits, None if there is none."""
    if seed is None or not isinstance(seed, int | np.integer | float | str | bytes):
        return seed
    words = seed_words(function, seed)
    kind, device, _, _ = borrow(function, ("logits",), (logits,))
    return kind.send(words, device, logits)


def _options(
    tau: Any = 1.0, hard: Any = False, offset: Any = 0, axis: Any = 1, *, function: str = "gumbel_softmax"
) -> Options:
    temperature = _checks.real(function, "tau", tau, least=0.0)
    if temperature == 0:
        msg = f"{function}: tau must be positive, got {temperature}"
        raise ValueError(msg)
    return (
        temperature,
        _checks.flag(function, "hard", hard),
        _checks.integer(function, "offset", offset, least=0, most=MAX_OFFSET),
        _checks.integer(function, "axis", axis, least=-64, most=63),
    )


@lru_cache(maxsize=4096)
def _plan(function: str, shapes: Shapes, dtypes: Dtypes, options: Options) -> Plan:
    if dtypes[1] is not None and dtypes[1] not in INTEGERS:
        msg = f"{function}: seed must have dtype 'int32', 'int64', got {dtypes[1]}"
        raise TypeError(msg)
    dtype = _checks.common_dtype(function, GUMBEL_SOFTMAX, dtypes)
    tau, hard, offset, axis = options
    logits, seed = shapes
    shape: Shape = logits or ()
    if not -len(shape) <= axis < len(shape):
        msg = f"{function}: axis must be one of the {len(shape)} dimensions of logits, got {axis}"
        raise ValueError(msg)
    axis %= len(shape)
    if any(extent < 1 for extent in shape[1:]) or (axis == 0 and shape[0] < 1):
        msg = f"{function}: logits must have extents of at least 1 but for a leading batch, got {shape}"
        raise ValueError(msg)
    size = math.prod(shape)
    seeds = 1 if seed is None else _count_seeds(function, seed, dtypes[1], size)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    geometry = SoftmaxGeometry(outer, shape[axis], inner, size // seeds, int(seed is not None), int(hard), offset)
    return Plan(dtype, shape, geometry, (tau,), options)


def _count_seeds(function: str, shape: Shape, dtype: str | None, size: int) -> int:
    """Return how many seeds there are."""
    expected = "(2,) or (S, 2)" if dtype == "int32" else "() or (S,)"
    leading = shape[:-1] if dtype == "int32" else shape
    if len(leading) > 1 or (dtype == "int32" and shape[-1:] != (2,)):
        msg = f"{function}: seed of {dtype} must have shape {expected}, got {shape}"
        raise ValueError(msg)
    seeds = leading[0] if leading else 1
    if seeds < 1 or size % seeds:
        msg = f"{function}: seed must have S seeds that divide the {size} elements of logits, got S = {seeds}"
        raise ValueError(msg)
    return operator.index(seeds)


GUMBEL_SOFTMAX = Operator(
    name="gumbel_softmax",
    family="dilated",
    launcher="gumbel_softmax",
    arrays=("logits", "seed"),
    optional=frozenset({"seed"}),
    options={"tau": ("float", 1.0), "hard": ("bool", False), "offset": ("int", 0), "axis": ("int", 1)},
    canonical=_options,
    plan=_plan,
    gradients=GumbelSoftmaxGradients,
    samples=(
        (((2, 3, 9, 11), np.array([5, -1], np.int32)), {}),
        (((2, 3, 9, 11), np.array([7, 1 << 40], np.int64)), {"hard": True, "tau": 0.5}),
        (((5, 40), np.array(11, np.int64)), {"axis": -1, "offset": 2**40}),
        (((3, 4, 5), None), {"axis": 0, "tau": 2.0}),
    ),
    batched=frozenset(),
    integers=frozenset({"seed"}),
)
