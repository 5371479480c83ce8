"""Cases and peers of `dynamic_filter` and `ls_dfn`: the formulas a PyTorch or JAX user would write today.

The formula of `ls_dfn` is the factored one, which sums the channels first: the literal equation is many times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from bench.peers import tensor
from bench.registry import Call, Case, Contender, Problem, Window


def _ls_dfn(label: str, n: int, c: int, o: int, h: int, w: int, k: int, s: int, *, attention: bool = False) -> Case:
    parts = ((n, c, h, w), (n, o, c, h, w), (n, o, k, k, h, w))
    attentions = ((n, o, s, s, h, w), (n, o, k, k, h, w)) if attention else (None, None)
    size = f"{n}x{c}x{h}x{w}, O = {o}, s = {s}, k = {k}"
    return Case("ls_dfn", label, size, (*parts, *attentions), {"samples": s, "sample_stride": 3})


CASES = [
    _ls_dfn("no attention", 1, 128, 24, 64, 64, 3, 5),
    _ls_dfn("both attentions", 1, 128, 24, 64, 64, 3, 5, attention=True),
    Case(
        "dynamic_filter",
        "one sample",
        "1x16x64x64, O = 4, k = 5",
        ((1, 16, 64, 64), (1, 4, 16, 5, 5, 64, 64)),
        {"samples": 1},
    ),
]


def operations(case: Case, direction: str) -> int:
    """Return the floating-point operations of a case, an addition or a multiplication each.

    Those of `ls_dfn` are the factored sum's: s*s*(kh*kw*O + O*C) products for each pixel, and for the gradients as many
    for the image as for the filters.
    """
    parts = [int(np.prod(shape)) for shape in case.shapes[1:3] if shape is not None]
    products = int(case.options["samples"]) ** 2 * sum(parts)
    return 2 * products * (1 if direction == "forward" else 2)


def windows(problem: Problem, rng: np.random.Generator) -> Iterator[Window]:
    """Yield the whole: the reference sums the channels first too, which takes it seconds."""
    yield Window(problem.arrays, problem.grad_out, dict.fromkeys(problem.results, (..., ...)))


# ---- formulas, written once for both frameworks ----------------------------------------------------------------------

Pad = Callable[[Any, int], Any]  # pads the last two axes with zeros


def _torch_pad(array: Any, width: int) -> Any:
    from torch.nn import functional

    return functional.pad(array, (width,) * 4)


def _jax_pad(array: Any, width: int) -> Any:
    import jax.numpy as jnp

    return jnp.pad(array, ((0, 0),) * (array.ndim - 2) + ((width, width),) * 2)


def _offsets(extent: int, step: int) -> list[int]:
    return [(k - (extent - 1) // 2) * step for k in range(extent)]


def _sampled(
    pad: Pad,
    einsum: Callable[..., Any],
    x: Any,
    across: Any,
    within: Any,
    by_sample: Any,
    by_position: Any,
    *,
    samples: int,
    sample_stride: int,
) -> Any:
    """`ls_dfn` with both residuals and the sum over samples."""
    C, H, W = x.shape[1:]
    kh, kw = within.shape[2:4]
    reach = samples // 2 * sample_stride + max(kh, kw) // 2

    def seen(padded: Any, dy: int, dx: int) -> Any:
        return padded[..., reach + dy : reach + dy + H, reach + dx : reach + dx + W]

    image, channel_sum = pad(x, reach), pad(x.sum(1)[:, None], reach)
    attention = None if by_position is None else pad(by_position, reach)
    out = 0
    for (a, dy), (b, dx) in product(enumerate(_offsets(samples, sample_stride)), repeat=2):
        sample = 0
        mixed = einsum("nochw,nchw->nohw", across, seen(image, dy, dx))
        weights = None if attention is None else 1 + seen(attention, dy, dx)
        for (i, ty), (j, tx) in product(enumerate(_offsets(kh, 1)), enumerate(_offsets(kw, 1))):
            term = within[:, :, i, j] * seen(channel_sum, dy + ty, dx + tx)
            if ty == tx == 0:
                term = term + seen(channel_sum, dy, dx) / C + mixed
            sample = sample + (term if weights is None else term * weights[:, :, i, j])
        out = out + (sample if by_sample is None else sample * (1 + by_sample[:, :, a, b]))
    return out


def _dynamic(pad: Pad, einsum: Callable[..., Any], x: Any, kernel: Any, *, samples: int) -> Any:
    """`dynamic_filter` of one sample."""
    H, W = x.shape[2:]
    reach = max(kernel.shape[3:5]) // 2
    padded = pad(x, reach)
    out = 0
    for (i, dy), (j, dx) in product(*(enumerate(_offsets(k, 1)) for k in kernel.shape[3:5])):
        window = padded[..., reach + dy : reach + dy + H, reach + dx : reach + dx + W]
        out = out + einsum("nochw,nchw->nohw", kernel[:, :, :, i, j], window)
    return out


def _torch(formula: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    import torch

    return formula(_torch_pad, torch.einsum, *arrays, **options)


def _jax(formula: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    import jax.numpy as jnp

    return formula(_jax_pad, jnp.einsum, *arrays, **options)


_FORMULAS = {"ls_dfn": {"factored": _sampled}, "dynamic_filter": {"shifts": _dynamic}}
TORCH = {op: {name: partial(_torch, one) for name, one in ways.items()} for op, ways in _FORMULAS.items()}
JAX = {op: {name: partial(_jax, one) for name, one in ways.items()} for op, ways in _FORMULAS.items()}


# ---- yardsticks ------------------------------------------------------------------------------------------------------


def yardsticks(problem: Problem) -> list[Contender]:
    """Return two plain s x s convolutions C -> O by PyTorch, side by side: the paper's own yardstick."""
    if problem.case.operator != "ls_dfn":
        return []
    import torch
    from torch.nn import functional

    s = problem.case.options["samples"]
    x, across = (tensor(a, problem.device) for a in problem.arrays[:2])
    grad = tensor(problem.grad_out, problem.device)
    weights = [torch.randn(across.shape[1], x.shape[1], s, s, device=x.device, dtype=x.dtype) for _ in range(2)]

    def convolve(x: Any, weights: Any) -> Any:
        return sum(functional.conv2d(x, weight, padding="same") for weight in weights)

    if problem.direction == "forward":
        call = Call(lambda _: (convolve(x, weights),))
    else:
        given = [t.detach().requires_grad_() for t in (x, *weights)]
        call = Call(lambda out: torch.autograd.grad(out, given, grad), lambda: convolve(given[0], given[1:]))
    return [Contender("two PyTorch convolutions", {"": call}, yardstick=True)]
