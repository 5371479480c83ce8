"""NumPy reference of `gumbel_softmax` (PAD Eq. 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dynk._operator import Plan
from dynk.kernels.common.dtypes import EPS, accumulator
from dynk.kernels.common.philox import array_uniform
from dynk.kernels.dilated.softmax_geometry import SoftmaxGeometry

Array = npt.NDArray[np.float64]


def gumbel_softmax_forward(plan: Plan, logits: Array, seed: Any) -> Array:
    """Return softmax((logits + g) / tau), or the one-hot of its arg-max; the first of equal ones."""
    g = SoftmaxGeometry(*plan.geometry)
    perturbed = _perturbed(g, logits, seed)
    if not g.hard:
        return _softmax(perturbed, plan.reals[0]).reshape(plan.out_shape)
    best = np.argmax(perturbed, axis=1, keepdims=True)  # a NaN, if there is one
    one_hot = np.where(np.arange(g.K)[:, None] == best, 1.0, 0.0)
    one_hot[np.broadcast_to(np.isnan(perturbed).any(1, keepdims=True), one_hot.shape)] = np.nan
    return one_hot.reshape(plan.out_shape)


def gumbel_softmax_backward(plan: Plan, grad_out: Array, logits: Array, seed: Any) -> tuple[Array, None]:
    """Return the gradients of the soft output, which are those of the hard one too."""
    g = SoftmaxGeometry(*plan.geometry)
    p = _softmax(_perturbed(g, logits, seed), plan.reals[0])
    grad = grad_out.reshape(p.shape)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite gradients
        return (p * (grad - (p * grad).sum(1, keepdims=True)) / plan.reals[0]).reshape(plan.out_shape), None


def gumbel_softmax_magnitude(plan: Plan, grad_out: Array | None, logits: Array, seed: Any) -> tuple[Any, ...]:
    """Return the size of the terms of the output (grad_out None) or of the gradients.

    An error in an exponent is one of its whole term, so a term counts once more for each unit of its exponent's
    summands. All is formed in float64, which for the smaller types leaves little of that.
    """
    g = SoftmaxGeometry(*plan.geometry)
    tau = plan.reals[0]
    noise = _noise(g, seed)
    p = _softmax(_perturbed(g, logits, seed), tau)
    with np.errstate(invalid="ignore", over="ignore"):
        exponents = (np.abs(logits.reshape(p.shape)) + np.abs(noise) + 1) / tau
        condition = 1 + exponents + np.where(p > 0, p * exponents, 0).sum(1, keepdims=True)
        relative = np.where(p > 0, p * condition, 0) * (EPS["float64"] / EPS[accumulator(plan.dtype)])
        if grad_out is None:
            if g.hard:  # no number but 0 and 1 is right, unless the arg-max of infinite logits is asked for
                infinite = np.isinf(logits.reshape(p.shape)).any(1, keepdims=True)
                relative = np.where(infinite, np.inf, np.zeros_like(p))
            return (relative.reshape(plan.out_shape),)
        grad = np.abs(grad_out.reshape(p.shape))
        mean = (p * grad).sum(1, keepdims=True)
        magnitude = (relative * (grad + mean) + p * (relative * grad).sum(1, keepdims=True)) / tau
    return magnitude.reshape(plan.out_shape), None


def _perturbed(g: SoftmaxGeometry, logits: Array, seed: Any) -> Array:
    return logits.reshape(g.outer, g.K, g.inner) + _noise(g, seed)


def _noise(g: SoftmaxGeometry, seed: Any) -> Array:
    """Return the Gumbel noise, (outer, K, inner)."""
    shape = (g.outer, g.K, g.inner)
    if not g.has_noise or 0 in shape:
        return np.zeros(shape)
    words = np.ascontiguousarray(seed).reshape(-1).view(np.uint32).astype(np.uint64)
    element = np.arange(g.outer * g.K * g.inner)
    number = element // g.per_seed
    index = (element % g.per_seed).astype(np.uint64) + np.uint64(g.offset)
    u: Array = array_uniform(index, words[2 * number], words[2 * number + 1])
    return -np.log(-np.log(u)).reshape(shape)


def _softmax(perturbed: Array, tau: float) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits
        powers = np.exp((perturbed - perturbed.max(1, keepdims=True)) / tau)
        softmax: Array = powers / powers.sum(1, keepdims=True)
    return softmax
