"""Numba CUDA device functions of `adaptive_dilation_conv2d`: what a tap sees, and every result term by term.

`g` holds the integers of `DilationGeometry` before the steps, `rows` and `columns` the steps of the dilations.
`choices` holds shares, or indices where `hard`. A term is skipped where no dilation that a pixel takes reads the image.
"""

# Every function here is a device function, of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import CHAIN, load
from dynk.kernels.dilated.geometry import DilationGeometry

_NUMBER = {name: number for number, name in enumerate(DilationGeometry._fields)}
N, C, O, H, W = (_NUMBER[name] for name in "NCOHW")  # noqa: E741 - the contract's name of the output channels
KH, KW, HO, WO, D = (_NUMBER[name] for name in ("kh", "kw", "Ho", "Wo", "D"))
STRIDE_H, STRIDE_W, GROUPS = (_NUMBER[name] for name in ("stride_h", "stride_w", "groups"))
HARD, HAS_BIAS = (_NUMBER[name] for name in ("hard", "has_bias"))


@cuda.jit(device=True)
def _step(steps, d):
    """Return steps[d]; a tuple takes no index but a constant."""
    if d < 4:
        if d < 2:
            return steps[0] if d == 0 else steps[1]
        return steps[2] if d == 2 else steps[3]
    if d < 6:
        return steps[4] if d == 4 else steps[5]
    return steps[6] if d == 6 else steps[7]


@cuda.jit(device=True)
def _takes(choices, g, number, d):
    """Return whether an output pixel of the batch takes dilation d at all."""
    return np.int64(load(choices, number)) == d if g[HARD] else True


@cuda.jit(device=True)
def _share(like, choices, g, n, at, d):
    """Return the share of dilation d at an output pixel that takes it."""
    if g[HARD]:
        return like.dtype.type(1)
    return like.dtype.type(load(choices, (n * g[D] + d) * g[HO] * g[WO] + at))


@cuda.jit(device=True)
def position(g, rows, columns, at, i, j, d):
    """Return where in a plane of the image tap (i, j) of dilation d reads for an output pixel, -1 if outside."""
    ay = at // g[WO]
    y = ay * g[STRIDE_H] + (i - (g[KH] - 1) // 2) * _step(rows, d)
    x = (at - ay * g[WO]) * g[STRIDE_W] + (j - (g[KW] - 1) // 2) * _step(columns, d)
    if y < 0 or y >= g[H] or x < 0 or x >= g[W]:
        return -1
    return y * g[W] + x


@cuda.jit(device=True)
def column(x, choices, g, rows, columns, n, at, c, t):
    """Return the mixture that tap t of channel c sees at an output pixel, and whether it sees anything."""
    number = n * g[HO] * g[WO] + at
    i = t // g[KW]
    value = x.dtype.type(0)
    seen = False
    if g[HARD]:
        index = np.int64(load(choices, number))
        if index < 0 or index >= g[D]:
            return x.dtype.type(np.nan), True
    for d in range(g[D]):
        if _takes(choices, g, number, d):
            where = position(g, rows, columns, at, i, t - i * g[KW], d)
            if where >= 0:
                image = load(x, (n * g[C] + c) * g[H] * g[W] + where)
                value += _share(x, choices, g, n, at, d) * image
                seen = True
    return value, seen


@cuda.jit(device=True)
def _anchor(place, offset, stride, anchors):
    """Return the anchor whose tap at `offset` reads `place`, -1 if there is none."""
    anchor = place - offset
    if anchor < 0 or anchor % stride != 0 or anchor // stride >= anchors:
        return -1
    return anchor // stride


@cuda.jit(device=True)
def reader(choices, g, rows, columns, n, place, t, d):
    """Return the output pixel whose tap t reads a pixel of the image with dilation d, -1 if there is none."""
    i = t // g[KW]
    j = t - i * g[KW]
    y = place // g[W]
    ay = _anchor(y, (i - (g[KH] - 1) // 2) * _step(rows, d), g[STRIDE_H], g[HO])
    ax = _anchor(place - y * g[W], (j - (g[KW] - 1) // 2) * _step(columns, d), g[STRIDE_W], g[WO])
    if ay < 0 or ax < 0 or not _takes(choices, g, n * g[HO] * g[WO] + ay * g[WO] + ax, d):
        return -1
    return ay * g[WO] + ax


@cuda.jit(device=True)
def sent(grad_out, choices, g, rows, columns, n, place, o, t):
    """Return the gradient of output channel o, mixed as tap t sends it to a pixel of the image."""
    value = grad_out.dtype.type(0)
    for d in range(g[D]):
        at = reader(choices, g, rows, columns, n, place, t, d)
        if at >= 0:
            grad = load(grad_out, (n * g[O] + o) * g[HO] * g[WO] + at)
            value += _share(grad_out, choices, g, n, at, d) * grad
    return value


@cuda.jit(device=True)
def output(x, weight, choices, g, rows, columns, n, o, at):
    """Return an element of the output, without its bias."""
    taps = g[KH] * g[KW]
    inputs = g[C] // g[GROUPS]
    first = o // (g[O] // g[GROUPS]) * inputs
    total = part = x.dtype.type(0)
    for k in range(inputs * taps):
        c = k // taps
        value, seen = column(x, choices, g, rows, columns, n, at, first + c, k - c * taps)
        if seen:
            part += load(weight, o * inputs * taps + k) * value
        if k % CHAIN == CHAIN - 1:
            total += part
            part = x.dtype.type(0)
    return total + part


@cuda.jit(device=True)
def grad_column(grad_out, weight, g, n, c, t, at):
    """Return the gradient of the mixture that tap t of channel c sees at an output pixel."""
    taps = g[KH] * g[KW]
    inputs = g[C] // g[GROUPS]
    outputs = g[O] // g[GROUPS]
    group = c // inputs
    total = part = grad_out.dtype.type(0)
    for k in range(outputs):
        o = group * outputs + k
        filter_at = (o * inputs + c - group * inputs) * taps + t
        part += load(weight, filter_at) * load(grad_out, (n * g[O] + o) * g[HO] * g[WO] + at)
        if k % CHAIN == CHAIN - 1:
            total += part
            part = grad_out.dtype.type(0)
    return total + part


@cuda.jit(device=True)
def grad_pixel(grad_out, weight, choices, g, rows, columns, n, c, place):
    """Return an element of the gradient of the image."""
    total = part = grad_out.dtype.type(0)
    count = 0
    for t in range(g[KH] * g[KW]):
        for d in range(g[D]):
            at = reader(choices, g, rows, columns, n, place, t, d)
            if at >= 0:
                share = _share(grad_out, choices, g, n, at, d)
                part += share * grad_column(grad_out, weight, g, n, c, t, at)
                count += 1
                if count == CHAIN:
                    total += part
                    part = grad_out.dtype.type(0)
                    count = 0
    return total + part


@cuda.jit(device=True)
def grad_filter(grad_out, x, choices, g, rows, columns, o, k, begin, end, step):
    """Return what every step-th output pixel in [begin, end) of the batch adds to the gradient of a weight."""
    taps = g[KH] * g[KW]
    pixels = g[HO] * g[WO]
    c = o // (g[O] // g[GROUPS]) * (g[C] // g[GROUPS]) + k // taps
    total = part = x.dtype.type(0)
    count = 0
    for number in range(begin, end, step):
        n = number // pixels
        at = number - n * pixels
        value, seen = column(x, choices, g, rows, columns, n, at, c, k % taps)
        if seen:
            part += load(grad_out, (n * g[O] + o) * pixels + at) * value
        count += 1
        if count == CHAIN:
            total += part
            part = x.dtype.type(0)
            count = 0
    return total + part
