"""Cases and peers of `ddf`, `ddf_upsample` and `filter_norm`: the formulas a PyTorch or JAX user would write today."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.peers import tensor
from bench.registry import Call, Case, Contender, Problem, Window

# All cases have one filter group, stride 1 and dilation 1; `windows` relies on it.


def _ddf(label: str, n: int, c: int, h: int, w: int, k: int, dtype: str = "float32") -> Case:
    size = f"{n}x{c}x{h}x{w}, k = {k}"
    return Case("ddf", label, size, ((n, c, h, w), (n, 1, k, k, h, w), (n, c, k, k)), dtype=dtype)


CASES = [
    _ddf("Table 2 of the DDF paper", 2, 256, 200, 300, 3),
    _ddf("ResNet stage 1", 8, 64, 56, 56, 3),
    _ddf("ResNet stage 1", 8, 64, 56, 56, 5),
    _ddf("ResNet stage 3", 8, 256, 14, 14, 3),
    _ddf("ResNet stage 1", 8, 64, 56, 56, 3, "float16"),
    _ddf("ResNet stage 1", 8, 64, 56, 56, 3, "bfloat16"),
    Case(
        "ddf_upsample",
        "twice as large",
        "2x256x50x75, k = 3",
        ((2, 256, 50, 75), (2, 1, 2, 2, 3, 3, 50, 75), (2, 256, 2, 2, 3, 3)),
        {"scale": 2},
    ),
    Case(
        "filter_norm",
        "spatial filters",
        "2x1x3x3x200x300",
        ((2, 1, 3, 3, 200, 300), (1, 1, 1, 1, 1, 1), None),
        {"axes": (2, 3)},
    ),
]


def operations(case: Case, direction: str) -> int:
    """Return the floating-point operations of a case, an addition or a multiplication each."""
    if case.operator == "filter_norm":  # mean, deviation, normalising; the gradients of as much
        return int(np.prod(case.plan.out_shape)) * (8 if direction == "forward" else 16)
    taps = int(np.prod(case.plan.out_shape)) * int(np.prod((case.shapes[2] or ())[-2:]))
    # Forward spatial * channel * x and its sum; backward the same for x, and three for each filter's gradient.
    return taps * (3 if direction == "forward" else 8)


def windows(problem: Problem, rng: np.random.Generator) -> Iterator[Window]:
    """Yield parts of a large case whose results are those of the whole.

    Planes of a few channels determine the output and the gradients of x and channel there, for which every channel is
    by itself. Bands of rows of all channels determine the gradient of spatial, which sums over channels.
    """
    if problem.case.operator == "filter_norm":
        return
    x, spatial, channel = problem.arrays
    grad_out = problem.grad_out
    N, C, H, _ = x.shape
    kh = channel.shape[-2]
    s = grad_out.shape[2] // H
    for n in range(N):
        sample = slice(n, n + 1)
        for c in sorted({0, int(rng.integers(C - 3)), C - 4}):
            at = (sample, slice(c, c + 4))
            exact = (at, ...)
            yield Window(
                (x[at], spatial[sample], channel[at]), grad_out[at], {"out": exact, "x": exact, "channel": exact}
            )
        for y in sorted({0, int(rng.integers(H - 1)), H - 2}):
            first, last = max(0, y - (kh - 1) // 2), min(H, y + 2 + kh // 2)
            rows, wide = slice(first, last), slice(s * first, s * last)
            yield Window(
                (x[sample, :, rows], spatial[sample, ..., rows, :], channel[sample]),
                grad_out[sample, :, wide],
                {
                    "out": ((sample, ..., slice(s * y, s * y + 2 * s), slice(None)), _rows(s * (y - first), 2 * s)),
                    "spatial": ((sample, ..., slice(y, y + 2), slice(None)), _rows(y - first, 2)),
                },
            )


def _rows(first: int, count: int) -> tuple[Any, ...]:
    return (..., slice(first, first + count), slice(None))


# ---- formulas --------------------------------------------------------------------------------------------------------


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


def _torch_ddf(x: Any, spatial: Any, channel: Any) -> Any:
    from torch.nn import functional

    return _shifted_sum(lambda a, t, b, le, r: functional.pad(a, (le, r, t, b)), x, spatial, channel)


def _torch_ddf_unfold(x: Any, spatial: Any, channel: Any) -> Any:
    from torch.nn import functional

    kh, kw = channel.shape[-2:]
    windows = functional.unfold(x, (kh, kw), padding=(kh // 2, kw // 2)).unflatten(1, (x.shape[1], kh * kw))
    filters = spatial.flatten(2, 3) * channel.flatten(2)[..., None, None]
    return (windows.unflatten(-1, x.shape[-2:]) * filters).sum(2)


def _torch_upsample(x: Any, spatial: Any, channel: Any, **_: Any) -> Any:
    import torch
    from torch.nn import functional

    s = spatial.shape[2]
    branches = [_torch_ddf(x, spatial[:, :, p, q], channel[:, :, p, q]) for p in range(s) for q in range(s)]
    return functional.pixel_shuffle(torch.stack(branches, 2).flatten(1, 2), s)


def _torch_norm(f: Any, scale: Any, shift: Any, **_: Any) -> Any:
    z = (f - f.mean((2, 3), keepdim=True)) / (f.std((2, 3), keepdim=True) + 1e-10)
    return z * scale if shift is None else z * scale + shift


def _jax_ddf(x: Any, spatial: Any, channel: Any) -> Any:
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


TORCH = {
    "ddf": {"shifts": _torch_ddf, "unfold": _torch_ddf_unfold},
    "ddf_upsample": {"shifts": _torch_upsample},
    "filter_norm": {"as written": _torch_norm},
}
JAX = {
    "ddf": {"shifts": _jax_ddf},
    "ddf_upsample": {"shifts": _jax_upsample},
    "filter_norm": {"as written": _jax_norm},
}


# ---- yardsticks ------------------------------------------------------------------------------------------------------


def yardsticks(problem: Problem) -> list[Contender]:
    """Return PyTorch's own depth-wise convolution, one kernel for all samples and pixels, in both memory layouts.

    PyTorch chooses among kernels of its own and cuDNN's. Forward on CUDA, cuDNN's is also called by itself.
    """
    slow = problem.device == "cpu" and problem.case.dtype == "float16"  # seconds: PyTorch has no kernel made for it
    if problem.case.operator != "ddf" or slow:
        return []
    import torch
    from torch.nn import functional

    def cudnn(x: Any, weight: Any, padding: Any) -> Any:
        return torch.cudnn_convolution(x, weight, padding, (1, 1), (1, 1), x.shape[1], True, False, False)

    ways = {"PyTorch": lambda x, weight, padding: functional.conv2d(x, weight, padding=padding, groups=x.shape[1])}
    if problem.device == "cuda" and problem.direction == "forward":
        ways["cuDNN"] = cudnn
    return [
        Contender(f"{library} depth-wise, {layout}", {"": _depthwise(problem, layout, convolve)}, yardstick=True)
        for library, convolve in ways.items()
        for layout in ("NCHW", "NHWC")
    ]


def _depthwise(problem: Problem, layout: str, convolve: Callable[..., Any]) -> Call:
    import torch

    x, channel, grad = (tensor(a, problem.device) for a in (problem.arrays[0], problem.arrays[2], problem.grad_out))
    weight = channel[:1].transpose(0, 1).contiguous()  # (C, 1, kh, kw)
    if layout == "NHWC":
        x, weight, grad = (t.to(memory_format=torch.channels_last) for t in (x, weight, grad))
    padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    if problem.direction == "forward":
        return Call(lambda _: (convolve(x, weight, padding),))
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    return Call(lambda out: torch.autograd.grad(out, (x, weight), grad), lambda: convolve(x, weight, padding))
