"""Numba CPU kernels of `gumbel_softmax`, float64 inside whatever the storage type.

A task is a block of neighbouring rows, each of K candidates; it holds their exponents in a buffer of K x rows numbers.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from dynk.kernels.common.compile import borrowing, inlined, kernel
from dynk.kernels.common.cpu_geometry import named
from dynk.kernels.common.elementary import exp, log
from dynk.kernels.common.numeric import load, store
from dynk.kernels.common.philox import uniform
from dynk.kernels.dilated.softmax_geometry import SoftmaxGeometry

BUFFER = 1024  # numbers that a task holds, unless a single row has more
CHAIN = 64

softmax_geometry = named(SoftmaxGeometry)


@kernel
def gumbel_softmax_forward(logits, _, seed, out, geometry, reals):  # type: ignore[no-untyped-def]
    """PAD Eq. 2: softmax((logits + g) / tau), or the one-hot of its arg-max."""
    for task in prange(_tasks(geometry)):
        _forward_task(np.int64(task), logits, seed, out, geometry, reals[0])


@kernel
def gumbel_softmax_backward(  # type: ignore[no-untyped-def]
    grad_out, logits, _, seed, grad_logits, grad_seed, geometry, reals
):
    """Gradient of the soft output, whether the output was soft or hard."""
    for task in prange(_tasks(geometry)):
        _backward_task(np.int64(task), grad_out, logits, seed, grad_logits, geometry, reals[0])


@inlined
def _forward_task(task, logits, seed, out, geometry, tau):  # type: ignore[no-untyped-def]
    g = softmax_geometry(geometry)
    start, rows = _block(task, g)
    values = np.empty(g.K * rows, np.float64)
    top = np.empty(rows, np.float64)
    _perturb(values, logits, seed, start, rows, g)
    _find_largest(values, top, g.K, rows)
    if g.hard != 0:
        _write_one_hot(values, top, out, start, rows, g.K, g.inner)
    else:
        _normalise(values, top, g.K, rows, tau)
        for k in range(g.K):
            for r in range(rows):
                store(out, start + k * g.inner + r, values[k * rows + r])


@inlined
def _backward_task(task, grad_out, logits, seed, grad_logits, geometry, tau):  # type: ignore[no-untyped-def]
    g = softmax_geometry(geometry)
    start, rows = _block(task, g)
    values = np.empty(g.K * rows, np.float64)
    top = np.empty(rows, np.float64)
    _perturb(values, logits, seed, start, rows, g)
    _find_largest(values, top, g.K, rows)
    _normalise(values, top, g.K, rows, tau)
    _write_gradient(values, grad_out, grad_logits, start, rows, g.K, g.inner, tau)


@borrowing
def _rows(g):  # type: ignore[no-untyped-def]
    """Return how many neighbouring rows a task takes at most."""
    return max(1, min(g.inner, BUFFER // g.K))


@inlined
def _tasks(geometry):  # type: ignore[no-untyped-def]
    g = softmax_geometry(geometry)
    return g.outer * ((g.inner + _rows(g) - 1) // _rows(g))


@inlined
def _block(task, g):  # type: ignore[no-untyped-def]
    """Return the first element of a task's rows and their number."""
    most = _rows(g)
    blocks = (g.inner + most - 1) // most
    outer = task // blocks
    first = (task - outer * blocks) * most
    return outer * g.K * g.inner + first, min(most, g.inner - first)


@inlined
def _perturb(values, logits, seed, start, rows, g):  # type: ignore[no-untyped-def]
    """Write the logits and their noise to values (K, rows)."""
    if g.has_noise != 0:
        words = seed.view(np.uint32)
        offset = np.uint64(g.offset)
        for k in range(g.K):
            done = 0
            while done < rows:
                element = start + k * g.inner + done
                number = element // g.per_seed
                index = element - number * g.per_seed
                count = min(rows - done, g.per_seed - index)
                key_0, key_1 = np.uint64(words[2 * number]), np.uint64(words[2 * number + 1])
                at = k * rows + done
                for r in range(count):
                    values[at + r] = uniform(np.uint64(index + r) + offset, key_0, key_1)
                done += count
        for i in range(g.K * rows):
            values[i] = -log(-log(values[i]))
        for k in range(g.K):
            for r in range(rows):
                values[k * rows + r] += load(logits, start + k * g.inner + r)
    else:
        for k in range(g.K):
            for r in range(rows):
                values[k * rows + r] = load(logits, start + k * g.inner + r)


@borrowing
def _find_largest(values, top, K, rows):  # type: ignore[no-untyped-def]
    """Write the largest value of each row; a NaN is larger than all else."""
    for r in range(rows):
        top[r] = values[r]
    for k in range(1, K):
        for r in range(rows):
            value = values[k * rows + r]
            top[r] = value if (value > top[r]) | (value != value) else top[r]


@inlined
def _write_one_hot(values, top, out, start, rows, K, inner):  # type: ignore[no-untyped-def]
    """Write 1 where the first of each row's largest values is, else 0; NaN to a row that holds one."""
    found = np.zeros(rows, np.bool_)
    for k in range(K):
        for r in range(rows):
            is_first = values[k * rows + r] == top[r] and not found[r]
            found[r] |= is_first
            hot = 1.0 if is_first else 0.0
            store(out, start + k * inner + r, hot if top[r] == top[r] else np.nan)


@inlined
def _normalise(values, top, K, rows, tau):  # type: ignore[no-untyped-def]
    """Turn values (K, rows), of which the largest are `top`, into their softmax over K."""
    total = np.zeros(rows, np.float64)
    part = np.zeros(rows, np.float64)
    for k in range(K):
        for r in range(rows):
            power = exp((values[k * rows + r] - top[r]) / tau)
            values[k * rows + r] = power
            part[r] += power
        if k % CHAIN == CHAIN - 1 or k == K - 1:
            for r in range(rows):
                total[r] += part[r]
                part[r] = 0.0
    for k in range(K):
        for r in range(rows):
            values[k * rows + r] /= total[r]


@inlined
def _write_gradient(values, grad_out, grad_logits, start, rows, K, inner, tau):  # type: ignore[no-untyped-def]
    """Write p * (grad_out - sum(p * grad_out)) / tau, p being the values."""
    total = np.zeros(rows, np.float64)
    part = np.zeros(rows, np.float64)
    for k in range(K):
        for r in range(rows):
            part[r] += values[k * rows + r] * load(grad_out, start + k * inner + r)
        if k % CHAIN == CHAIN - 1 or k == K - 1:
            for r in range(rows):
                total[r] += part[r]
                part[r] = 0.0
    for k in range(K):
        for r in range(rows):
            at = start + k * inner + r
            store(grad_logits, at, values[k * rows + r] * (np.float64(load(grad_out, at)) - total[r]) / tau)
