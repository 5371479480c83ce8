"""Cases and peers of `dynamic_filter` and `ls_dfn`: the formulas a PyTorch or JAX user would write today.

The formulas of `ls_dfn` are factored: they sum the channels first, for the literal equation is many times slower.
Without attention the samples can be summed first, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from bench.peers import tensor
from bench.registry import Call, Case, Contender, Problem, Window


def operations(case: Case, direction: str) -> int:
    """Return the floating-point operations of a case, an addition or a multiplication each.

    Those of `ls_dfn` are the factored sum's: kh*kw*O + O*C products for each pixel, with attention for each of its s*s
    samples; for the gradients as many for the image as for the filters.
    """
    parts = [int(np.prod(shape)) for shape in case.shapes[1:3] if shape is not None]
    attention = any(shape is not None for shape in case.shapes[3:])
    products = (int(case.options["samples"]) ** 2 if attention else 1) * sum(parts)
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


def _summed(
    pad: Pad,
    einsum: Callable[..., Any],
    x: Any,
    across: Any,
    within: Any,
    _by_sample: None,
    _by_position: None,
    *,
    samples: int,
    sample_stride: int,
) -> Any:
    """`ls_dfn` with the kernel's residual, no attention, and the sum over samples, which is formed first."""
    C, H, W = x.shape[1:]
    kh, kw = within.shape[2:4]
    offsets, reach, margin = _offsets(samples, sample_stride), samples // 2 * sample_stride, max(kh, kw) // 2

    def seen(image: Any, margin: int) -> Any:
        """Return what samples see from each pixel, and from `margin` pixels around the image."""
        padded = pad(image, reach + margin)
        rows = sum(padded[..., reach + dy : reach + dy + H + 2 * margin, :] for dy in offsets)
        return sum(rows[..., reach + dx : reach + dx + W + 2 * margin] for dx in offsets)

    out = einsum("nochw,nchw->nohw", across, seen(x, 0))
    channel_sum = seen(x.sum(1)[:, None], margin)
    for (i, dy), (j, dx) in product(*(enumerate(_offsets(k, 1)) for k in (kh, kw))):
        weights = within[:, :, i, j] + (1 / C if dy == dx == 0 else 0)
        out = out + weights * channel_sum[..., margin + dy : margin + dy + H, margin + dx : margin + dx + W]
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


def _written_out(_: str, weights: Any, image: Any) -> Any:
    """Return what einsum does for "nochw,nchw->nohw", as products for a compiler to sum; XLA makes nothing of them."""
    return (weights * image[:, None]).sum(2)


def _torch_einsum(*arguments: Any) -> Any:
    import torch

    return torch.einsum(*arguments)


def _jax_einsum(*arguments: Any) -> Any:
    import jax.numpy as jnp

    return jnp.einsum(*arguments)


SUMMED = "samples summed first"  # which attention does not let be
TORCH = {
    "ls_dfn": {
        "factored": partial(_sampled, _torch_pad, _torch_einsum),
        "factored, written out": partial(_sampled, _torch_pad, _written_out),
        SUMMED: partial(_summed, _torch_pad, _written_out),
    },
    "dynamic_filter": {
        "shifts": partial(_dynamic, _torch_pad, _torch_einsum),
        "shifts, written out": partial(_dynamic, _torch_pad, _written_out),
    },
}
JAX = {
    "ls_dfn": {
        "factored": partial(_sampled, _jax_pad, _jax_einsum),
        SUMMED: partial(_summed, _jax_pad, _jax_einsum),
    },
    "dynamic_filter": {"shifts": partial(_dynamic, _jax_pad, _jax_einsum)},
}


# ---- cases -----------------------------------------------------------------------------------------------------------


def _ls_dfn(label: str, n: int, c: int, o: int, h: int, w: int, k: int, s: int, *, attention: bool = False) -> Case:
    parts = ((n, c, h, w), (n, o, c, h, w), (n, o, k, k, h, w))
    attentions = ((n, o, s, s, h, w), (n, o, k, k, h, w)) if attention else (None, None)
    size = f"{n}x{c}x{h}x{w}, O = {o}, s = {s}, k = {k}"
    options, unfit = {"samples": s, "sample_stride": 3}, frozenset({SUMMED} if attention else ())
    return Case("ls_dfn", label, size, (*parts, *attentions), options, unfit=unfit)


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
