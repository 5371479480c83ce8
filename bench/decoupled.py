"""Cases and peers of `ddf`, `ddf_upsample` and `filter_norm`: the formulas a PyTorch or JAX user would write today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.peers import jax_peer, torch_peer
from bench.registry import Arrays, Case, Contender


def _ddf(label: str, n: int, c: int, h: int, w: int, k: int) -> Case:
    return Case("ddf", label, ((n, c, h, w), (n, 1, k, k, h, w), (n, c, k, k)))


CASES = [
    _ddf("Table 2 of the DDF paper", 2, 256, 200, 300, 3),
    _ddf("ResNet stage 1", 8, 64, 56, 56, 3),
    _ddf("ResNet stage 1, k = 5", 8, 64, 56, 56, 5),
    _ddf("ResNet stage 3", 8, 256, 14, 14, 3),
    Case(
        "ddf_upsample",
        "x2 of a feature map",
        ((2, 256, 50, 75), (2, 1, 2, 2, 3, 3, 50, 75), (2, 256, 2, 2, 3, 3)),
        {"scale": 2},
    ),
    Case("filter_norm", "spatial filters", ((2, 1, 3, 3, 200, 300), (1, 1, 1, 1, 1), None), {"axes": (2, 3)}),
]


# ---- formulas, written once for both frameworks ---------------------------------------------------


def _shifted_sum(pad: Callable[..., Any], x: Any, spatial: Any, channel: Any) -> Any:
    """Sum over the taps of the padded image times both filters."""
    kh, kw = channel.shape[-2:]
    height, width = x.shape[-2:]
    padded = pad(x, (kh - 1) // 2, kh // 2, (kw - 1) // 2, kw // 2)
    out = 0
    for i in range(kh):
        for j in range(kw):
            window = padded[:, :, i : i + height, j : j + width]
            out = out + window * spatial[:, 0, i, j, None] * channel[:, :, i, j, None, None]
    return out


def _torch_ddf(x: Any, spatial: Any, channel: Any, **_: Any) -> Any:
    from torch.nn import functional

    return _shifted_sum(lambda a, t, b, le, r: functional.pad(a, (le, r, t, b)), x, spatial, channel)


def _torch_upsample(x: Any, spatial: Any, channel: Any, **_: Any) -> Any:
    import torch
    from torch.nn import functional

    s = spatial.shape[2]
    branches = [_torch_ddf(x, spatial[:, :, p, q], channel[:, :, p, q]) for p in range(s) for q in range(s)]
    return functional.pixel_shuffle(torch.stack(branches, 2).flatten(1, 2), s)


def _torch_norm(f: Any, scale: Any, shift: Any, **_: Any) -> Any:
    z = (f - f.mean((2, 3), keepdim=True)) / (f.std((2, 3), keepdim=True) + 1e-10)
    return z * scale if shift is None else z * scale + shift


def _jax_ddf(x: Any, spatial: Any, channel: Any, **_: Any) -> Any:
    import jax.numpy as jnp

    return _shifted_sum(lambda a, t, b, le, r: jnp.pad(a, ((0, 0), (0, 0), (t, b), (le, r))), x, spatial, channel)


def _jax_upsample(x: Any, spatial: Any, channel: Any, **_: Any) -> Any:
    import jax.numpy as jnp

    s = spatial.shape[2]
    n, c, h, w = x.shape
    rows = [jnp.stack([_jax_ddf(x, spatial[:, :, p, q], channel[:, :, p, q]) for q in range(s)], -1) for p in range(s)]
    return jnp.stack(rows, 3).reshape(n, c, s * h, s * w)


def _jax_norm(f: Any, scale: Any, shift: Any, **_: Any) -> Any:
    z = (f - f.mean((2, 3), keepdims=True)) / (f.std((2, 3), ddof=1, keepdims=True) + 1e-10)
    return z * scale if shift is None else z * scale + shift


_TORCH = {"ddf": _torch_ddf, "ddf_upsample": _torch_upsample, "filter_norm": _torch_norm}
_JAX = {"ddf": _jax_ddf, "ddf_upsample": _jax_upsample, "filter_norm": _jax_norm}


# ---- contenders -----------------------------------------------------------------------------------


def _depthwise(channels_last: bool) -> Any:
    """PyTorch's own depth-wise convolution: the yardstick, one kernel for all samples and pixels."""

    def call(arrays: Arrays, grad_out: Any, options: dict[str, Any], direction: str) -> Any:
        import torch
        from torch.nn import functional

        x, _, channel = (torch.from_numpy(a) for a in arrays)
        weight = channel[:1].transpose(0, 1).contiguous()  # (C, 1, kh, kw)
        if channels_last:
            x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
        padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)

        def formula(x: Any, weight: Any) -> Any:
            return functional.conv2d(x, weight, padding=padding, groups=x.shape[1])

        grad = torch.from_numpy(grad_out)
        if direction == "forward":

            def forward() -> tuple[Any, ...]:
                with torch.no_grad():
                    return (formula(x, weight),)

            return forward
        x.requires_grad_()
        weight.requires_grad_()
        return lambda: torch.autograd.grad(formula(x, weight), (x, weight), grad)

    return call


PEERS = [
    contender
    for operator in _TORCH
    for contender in (
        Contender("PyTorch eager", torch_peer(_TORCH[operator]), operators=(operator,)),
        Contender("torch.compile", torch_peer(_TORCH[operator], compiled=True), operators=(operator,)),
        Contender("jax.jit", jax_peer(_JAX[operator]), operators=(operator,)),
    )
] + [
    Contender("PyTorch depth-wise conv", _depthwise(False), yardstick=True, operators=("ddf",)),
    Contender("PyTorch depth-wise conv, NHWC", _depthwise(True), yardstick=True, operators=("ddf",)),
]
