"""Numba CUDA kernels of `gumbel_softmax` and their launch: one thread for each row of candidates, float64 inside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import CHAIN, launch, load
from dynk.kernels.common.philox import make
from dynk.kernels.dilated.softmax_geometry import SoftmaxGeometry

block, uniform = make(cuda.jit(device=True))


def gumbel_softmax_forward(runtime: Any, plan: Plan, logits: Any, seed: Any, out: Any) -> None:
    """Run PAD Eq. 2 on flat arrays. No workspace."""
    g = SoftmaxGeometry(*plan.geometry)
    args = (logits, _words(runtime, seed), out, plan.reals[0], *_numbers(g))
    launch(runtime, gumbel_softmax_forward_kernel, g.outer * g.inner, *args, g.hard)


def gumbel_softmax_backward(
    runtime: Any, plan: Plan, grad_out: Any, logits: Any, seed: Any, grad_logits: Any, grad_seed: Any
) -> None:
    """Write the gradient of the logits unless it is None. No workspace."""
    if grad_logits is not None:
        g = SoftmaxGeometry(*plan.geometry)
        args = (grad_out, logits, _words(runtime, seed), grad_logits, plan.reals[0], *_numbers(g))
        launch(runtime, gumbel_softmax_backward_kernel, g.outer * g.inner, *args)


def _words(runtime: Any, seed: Any) -> Any:
    """Return the seeds as 32-bit words, of which each has a low and a high one."""
    return runtime.absent("int32") if seed is None else seed.view(np.int32)


def _numbers(g: SoftmaxGeometry) -> tuple[Any, ...]:
    return (g.outer, g.K, g.inner, g.per_seed, g.has_noise, np.uint64(g.offset))


# ---- kernels -------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _perturbed(logits, words, element, per_seed, has_noise, offset):  # type: ignore[no-untyped-def]
    """Return a logit and its noise."""
    value = np.float64(load(logits, element))
    if has_noise:
        number = element // per_seed
        index = np.uint64(element - number * per_seed) + offset
        low = np.uint64(np.uint32(load(words, 2 * number)))
        high = np.uint64(np.uint32(load(words, 2 * number + 1)))
        value -= math.log(-math.log(uniform(index, low, high)))
    return value


@cuda.jit(device=True)
def _best(logits, words, start, K, inner, per_seed, has_noise, offset):  # type: ignore[no-untyped-def]
    """Return the largest value of a row and where it is; the first of equal ones, and a NaN if there is one."""
    top = _perturbed(logits, words, start, per_seed, has_noise, offset)
    best = 0
    for k in range(1, K):
        value = _perturbed(logits, words, start + k * inner, per_seed, has_noise, offset)
        if value > top or (value != value and top == top):
            top = value
            best = k
    return top, best


@cuda.jit
def gumbel_softmax_forward_kernel(  # type: ignore[no-untyped-def]
    logits, words, out, tau, outer, K, inner, per_seed, has_noise, offset, hard
):
    row = cuda.grid(1)
    if row >= outer * inner:
        return
    o = row // inner
    start = (o * K) * inner + row - o * inner
    top, best = _best(logits, words, start, K, inner, per_seed, has_noise, offset)
    total = part = 0.0
    if not hard:
        for k in range(K):
            value = _perturbed(logits, words, start + k * inner, per_seed, has_noise, offset)
            part += math.exp((value - top) / tau)
            if k % CHAIN == CHAIN - 1:
                total += part
                part = 0.0
        total += part
    for k in range(K):
        at = start + k * inner
        if hard:
            result = 1.0 if k == best else 0.0
            if top != top:
                result = top
        else:
            value = _perturbed(logits, words, at, per_seed, has_noise, offset)
            result = math.exp((value - top) / tau) / total
        out[at] = result


@cuda.jit
def gumbel_softmax_backward_kernel(  # type: ignore[no-untyped-def]
    grad_out, logits, words, grad_logits, tau, outer, K, inner, per_seed, has_noise, offset
):
    """p * (grad_out - sum(p * grad_out)) / tau."""
    row = cuda.grid(1)
    if row >= outer * inner:
        return
    o = row // inner
    start = (o * K) * inner + row - o * inner
    top, _ = _best(logits, words, start, K, inner, per_seed, has_noise, offset)
    total = part = mean = mean_part = 0.0
    for k in range(K):
        at = start + k * inner
        value = _perturbed(logits, words, at, per_seed, has_noise, offset)
        power = math.exp((value - top) / tau)
        part += power
        mean_part += power * np.float64(load(grad_out, at))
        if k % CHAIN == CHAIN - 1:
            total += part
            mean += mean_part
            part = mean_part = 0.0
    total += part
    mean = (mean + mean_part) / total
    for k in range(K):
        at = start + k * inner
        value = _perturbed(logits, words, at, per_seed, has_noise, offset)
        grad_logits[at] = math.exp((value - top) / tau) / total * (np.float64(load(grad_out, at)) - mean) / tau
