"""What `gumbel_softmax` says of itself, since its derivative is no call of `gumbel_softmax`.

With the soft output p, of which every derivative is one of p again, and <a, b> a sum over the candidates:

    dp = p * (dlogits - <p, dlogits>) / tau

Everything here is made of PyTorch's operators and of the operator itself, so that it can be differentiated further. A
hard output has the derivatives of the soft one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynk._operator import Options, operators
from dynk_torch import _autograd

Tensors = tuple[Tensor | None, ...]


def tangent(tensors: Tensors, options: Options, vectors: Tensors) -> Tensor:
    """Return the directional derivative of `gumbel_softmax` along a vector (or None) for the logits."""
    logits, seed = tensors
    along = vectors[0]
    assert logits is not None  # logits are not optional
    if along is None:
        return torch.zeros_like(logits)
    tau: float = options[0]
    axis: int = options[3]
    p = _soft(logits, seed, options)
    return (_deviation(p, along.to(p.dtype), axis) / tau).to(logits.dtype)


def curvature(
    grad_out: Tensor, tensors: Tensors, options: Options, vectors: Tensors, wanted: tuple[bool, ...]
) -> Tensors:
    """Return the Hessian of <grad_out, gumbel_softmax(...)> times a vector (or None) for the logits."""
    logits, seed = tensors
    along = vectors[0]
    assert logits is not None  # logits are not optional
    if along is None or not wanted[0]:
        return (None, None)
    tau, _, _, axis = options
    p = _soft(logits, seed, options)
    grad, along = grad_out.to(p.dtype), along.to(p.dtype)
    by_p = grad * along - along * _mean(p, grad, axis) - grad * _mean(p, along, axis)
    return ((_deviation(p, by_p, axis) / tau**2).to(logits.dtype), None)


def _soft(logits: Tensor, seed: Tensor | None, options: Options) -> Tensor:
    """Return the soft output, in float32 or float64."""
    wide = logits if logits.dtype is torch.float64 else logits.to(torch.float32)
    tau, _, offset, axis = options
    return _autograd.forward(operators()["gumbel_softmax"], (wide, seed), (tau, False, offset, axis))


def _mean(p: Tensor, values: Tensor, axis: int) -> Tensor:
    return (p * values).sum(axis, keepdim=True)


def _deviation(p: Tensor, values: Tensor, axis: int) -> Tensor:
    return p * (values - _mean(p, values, axis))


def fold(mapped: Tensors, options: Options) -> tuple[Tensors, Options]:
    """Return the arguments of one call that does the work of all: each brings its own seeds along."""
    logits, seed = mapped
    assert logits is not None  # logits are not optional
    if seed is not None:
        seed = seed.reshape(-1) if seed.dtype is torch.int64 else seed.reshape(-1, seed.shape[-1])
    tau, hard, offset, axis = options
    return (logits, seed), (tau, hard, offset, axis - (logits.dim() - 1) if axis >= 0 else axis)
