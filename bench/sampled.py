"""Cases and peers of `dynamic_filter` and `ls_dfn`: the formulas a PyTorch or JAX user would write today.

The formula of `ls_dfn` is the factored one, which sums the channels first: the literal equation is many times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from bench.peers import jax_peer, torch_peer
from bench.registry import Arrays, Case, Contender


def _ls_dfn(label: str, n: int, c: int, o: int, h: int, w: int, k: int, s: int, *, attention: bool = False) -> Case:
    parts = ((n, c, h, w), (n, o, c, h, w), (n, o, k, k, h, w))
    attentions = ((n, o, s, s, h, w), (n, o, k, k, h, w)) if attention else (None, None)
    return Case("ls_dfn", label, (*parts, *attentions), {"samples": s, "sample_stride": 3})


CASES = [
    _ls_dfn("24 outputs of 128 channels, 5 x 5 samples", 1, 128, 24, 64, 64, 3, 5),
    _ls_dfn("the same with both attentions", 1, 128, 24, 64, 64, 3, 5, attention=True),
    Case(
        "dynamic_filter",
        "one sample of a 5 x 5 kernel",
        ((1, 16, 64, 64), (1, 4, 16, 5, 5, 64, 64)),
        {"samples": 1},
    ),
]


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


_FORMULAS = {"ls_dfn": _sampled, "dynamic_filter": _dynamic}


def _torch_formula(operator: str) -> Callable[..., Any]:
    def formula(*arrays: Any, **options: Any) -> Any:
        import torch

        return _FORMULAS[operator](_torch_pad, torch.einsum, *arrays, **options)  # type: ignore[operator]

    return formula


def _jax_formula(operator: str) -> Callable[..., Any]:
    def formula(*arrays: Any, **options: Any) -> Any:
        import jax.numpy as jnp

        return _FORMULAS[operator](_jax_pad, jnp.einsum, *arrays, **options)  # type: ignore[operator]

    return formula


def _two_convolutions(arrays: Arrays, grad_out: Any, options: dict[str, Any], direction: str) -> Any:
    """Two plain s x s convolutions C -> O by PyTorch, side by side: the paper's own yardstick."""
    import torch
    from torch.nn import functional

    s = options["samples"]
    x = torch.from_numpy(arrays[0])
    weights = [torch.randn(arrays[1].shape[1], x.shape[1], s, s) for _ in range(2)]

    def formula() -> Any:
        return sum(functional.conv2d(x, weight, padding=s // 2)[..., : x.shape[2], : x.shape[3]] for weight in weights)

    if direction == "forward":

        def forward() -> tuple[Any, ...]:
            with torch.no_grad():
                return (formula(),)

        return forward
    given = [t.requires_grad_() for t in (x, *weights)]
    grad = torch.from_numpy(grad_out)
    return lambda: torch.autograd.grad(formula(), given, grad)


PEERS = [
    contender
    for operator in _FORMULAS
    for contender in (
        Contender("PyTorch eager", torch_peer(_torch_formula(operator)), operators=(operator,)),
        Contender("torch.compile", torch_peer(_torch_formula(operator), compiled=True), operators=(operator,)),
        Contender("jax.jit", jax_peer(_jax_formula(operator)), operators=(operator,)),
    )
] + [Contender("two PyTorch convolutions", _two_convolutions, yardstick=True, operators=("ls_dfn",))]
