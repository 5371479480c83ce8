"""Cases of `adaptive_dilation_conv2d`, and its peers: a convolution for each dilation, weighted pixel by pixel.

And of `gumbel_softmax`, which has no peers, since every library draws other noise: PyTorch's is a yardstick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from bench.peers import tensor
from bench.registry import Call, Case, Contender, Problem, Window


def _case(label: str, n: int, c: int, o: int, h: int, w: int, groups: int = 1, *, hard: bool = False) -> Case:
    return Case(
        "adaptive_dilation_conv2d",
        label,
        f"{n}x{c}x{h}x{w}, O = {o}, k = 3, dilations 1, 2, 4",
        ((n, c, h, w), (o, c // groups, 3, 3), (n, h, w) if hard else (n, 3, h, w), None),
        {"dilations": (1, 2, 4), "groups": groups},
        indices={"dilation_weights": 3} if hard else {},
    )


CASES = [
    _case("mixture", 2, 256, 256, 56, 56),
    _case("hard selection", 2, 256, 256, 56, 56, hard=True),
    _case("depth-wise", 8, 192, 192, 28, 28, 192),
    Case("gumbel_softmax", "shares of dilations", "2x3x200x300", ((2, 3, 200, 300), (1,)), indices={"seed": 1 << 40}),
]


def operations(case: Case, direction: str) -> int:
    """Return the floating-point operations of a case, an addition or a multiplication each.

    Those of one convolution, and of the mixture of its columns; a gradient takes as many for each of three arguments.
    """
    if case.operator == "gumbel_softmax":  # two logarithms, an exponential, sum and quotient; the generator's are none
        return int(np.prod(case.plan.out_shape)) * 8
    (n, c, h, w), (o, per_group, kh, kw), *_ = (shape for shape in case.shapes if shape is not None)
    products = n * h * w * kh * kw * (o * per_group + c * len(case.options["dilations"]))
    return 2 * products * (1 if direction == "forward" else 3)


def windows(problem: Problem, rng: np.random.Generator) -> Iterator[Window]:
    """Yield parts: two channels of all pixels for the weights' gradient, and some rows of all channels."""
    x, weight, shares, bias = problem.arrays
    grad_out = problem.grad_out
    kh, height, width, groups = weight.shape[2], x.shape[2], x.shape[3], problem.case.options["groups"]
    if groups == 1:
        o, c = (slice(k, k + 2) for k in (int(rng.integers(grad_out.shape[1] - 1)), int(rng.integers(x.shape[1] - 1))))
        arrays = x[:, c], weight[o, c], shares, bias
        yield Window(arrays, grad_out[:, o], {"weight": ((o, c), ...)})
    else:  # depth-wise
        c = slice(k := int(rng.integers(groups - 1)), k + 2)
        yield Window((x[:, c], weight[c], shares, bias), grad_out[:, c], {"weight": (c, ...)}, {"groups": 2})
    reach = kh // 2 * max(problem.case.options["dilations"])
    n = int(rng.integers(x.shape[0]))
    sample = slice(n, n + 1)
    for y in sorted({0, int(rng.integers(height - 1)), height - 2}):
        first, last = max(0, y - reach), min(height, y + 2 + reach)
        rows, own = slice(first, last), (..., slice(y - first, y - first + 2), slice(None))
        whole = (sample, ..., slice(y, y + 2), slice(width))
        arrays = x[sample, :, rows], weight, shares[sample, ..., rows, :], bias
        yield Window(arrays, grad_out[sample, :, rows], dict.fromkeys(("out", "x", "dilation_weights"), (whole, own)))


# ---- formulas --------------------------------------------------------------------------------------------------------


def _mixed(
    convolve: Callable[..., Any], x: Any, weight: Any, shares: Any, bias: Any, *, dilations: Any, groups: int
) -> Any:
    """Return the sum of the dilated convolutions, each weighted pixel by pixel, or selected by its index."""
    out = 0
    for d, dilation in enumerate(dilations):
        share = shares[:, None] == d if shares.ndim == 3 else shares[:, d, None]
        out = out + share * convolve(x, weight, dilation, groups)
    return out


def _torch_convolution(x: Any, weight: Any, dilation: int, groups: int) -> Any:
    from torch.nn import functional

    return functional.conv2d(x, weight, padding=dilation, dilation=dilation, groups=groups)


def _jax_convolution(x: Any, weight: Any, dilation: int, groups: int) -> Any:
    from jax import lax

    step, padding = (dilation, dilation), [(dilation, dilation)] * 2
    return lax.conv_general_dilated(x, weight, (1, 1), padding, rhs_dilation=step, feature_group_count=groups)


TORCH: dict[str, dict[str, Any]] = {
    "adaptive_dilation_conv2d": {"a convolution for each dilation": partial(_mixed, _torch_convolution)},
    "gumbel_softmax": {},
}
JAX: dict[str, dict[str, Any]] = {
    "adaptive_dilation_conv2d": {"a convolution for each dilation": partial(_mixed, _jax_convolution)},
    "gumbel_softmax": {},
}


# ---- yardsticks ------------------------------------------------------------------------------------------------------


def yardsticks(problem: Problem) -> list[Contender]:
    """Return PyTorch's convolution of a single dilation, and its own draw."""
    import torch
    from torch.nn import functional

    grad = tensor(problem.grad_out, problem.device)
    if problem.case.operator == "gumbel_softmax":
        name, given = "PyTorch gumbel_softmax", [tensor(problem.arrays[0], problem.device)]
        formula = partial(functional.gumbel_softmax, dim=1)
    else:
        name, given = "one PyTorch convolution", [tensor(a, problem.device) for a in problem.arrays[:2]]
        formula = partial(_torch_convolution, dilation=1, groups=problem.case.options["groups"])
    if problem.direction == "forward":
        call = Call(lambda _: (formula(*given),))
    else:
        leaves = [t.detach().requires_grad_() for t in given]
        call = Call(lambda out: torch.autograd.grad(out, leaves, grad), lambda: formula(*leaves))
    return [Contender(name, {"": call}, yardstick=True)]
