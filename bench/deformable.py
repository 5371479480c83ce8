"""Cases of `deformable_conv2d` and `sample_kernel`, and their peers: what PyTorch and JAX compose of their operations.

By hand: kernels and columns are mixed by products with the bilinear weights, images are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.peers import tensor
from bench.registry import Call, Case, Contender, Problem, Window

# How many rows beside a pixel are seen from it: offsets are drawn within two.
REACH = 5


def _case(label: str, n: int, c: int, h: int, w: int, form: str, scope: int, *, groups: int = 1) -> Case:
    offset = (n, 1, 3, 3, 2, h, w)
    arrays = (offset, None) if form == "kernel" else (None, offset)
    what = f"scope {scope}" if form == "kernel" else "data offsets"
    return Case(
        "deformable_conv2d",
        label,
        f"{n}x{c}x{h}x{w}, {what}, k = 3",
        ((n, c, h, w), (c, c // groups, scope, scope), *arrays, None, None),
        {"padding": 1, "groups": groups},
    )


CASES = [
    _case("DK, depth-wise", 8, 256, 28, 28, "kernel", 4, groups=256),
    _case("DK, dense", 2, 64, 28, 28, "kernel", 4),
    _case("DCN, dense", 2, 64, 56, 56, "data", 3),
    Case("sample_kernel", "global DK", "32x384, scope 4, k = 3", ((384, 1, 4, 4), (32, 1, 3, 3, 2))),
]


def operations(case: Case, direction: str) -> int:
    """Return the floating-point operations of a case, an addition or a multiplication each.

    A bilinear value is four products, of the kernel, depth-wise, or of the image; a gradient takes as many for each of
    three arguments.
    """
    times = 1 if direction == "forward" else 3
    if case.operator == "sample_kernel":
        return int(np.prod(case.plan.out_shape)) * 8 * times
    (n, c, h, w), (o, per_group, *scope), *_ = (shape for shape in case.shapes if shape is not None)
    dense_scope = per_group > 1 and case.shapes[2] is not None
    columns = 4 * n * h * w * c * 9
    products = n * h * w * o * per_group * (scope[0] * scope[1] if dense_scope else 9)
    return 2 * (columns + products) * times


def windows(problem: Problem, rng: np.random.Generator) -> Iterator[Window]:
    """Yield parts: two channels of all pixels for the weights' gradient, and some rows of all channels."""
    x, weight, kernel_offset, data_offset, mask, bias = problem.arrays
    grad_out, height, width = problem.grad_out, x.shape[2], x.shape[3]
    o, c = (slice(k, k + 2) for k in (int(rng.integers(grad_out.shape[1] - 1)), int(rng.integers(x.shape[1] - 1))))
    if problem.case.options["groups"] == 1:
        arrays = x[:, c], weight[o, c], kernel_offset, data_offset, mask, bias
        yield Window(arrays, grad_out[:, o], {"weight": ((o, c), ...)})
    else:  # depth-wise
        arrays = x[:, c], weight[c], kernel_offset, data_offset, mask, bias
        yield Window(arrays, grad_out[:, c], {"weight": (c, ...)}, {"groups": 2})
    n = int(rng.integers(x.shape[0]))
    sample = slice(n, n + 1)
    for y in sorted({0, int(rng.integers(height - 1)), height - 2}):
        first, last = max(0, y - REACH), min(height, y + 2 + REACH)
        rows, own = slice(first, last), (..., slice(y - first, y - first + 2), slice(None))
        whole = (sample, ..., slice(y, y + 2), slice(width))
        cut = (None if a is None else a[sample, ..., rows, :] for a in (kernel_offset, data_offset, mask))
        arrays = x[sample, :, rows], weight, *cut, bias
        names = "out", "x", "kernel_offset", "data_offset"
        yield Window(arrays, grad_out[sample, :, rows], dict.fromkeys(names, (whole, own)))


# ---- formulas --------------------------------------------------------------------------------------------------------


class _Library(NamedTuple):
    """What the formulas take of PyTorch or JAX."""

    np: Any
    arange: Callable[[int, Any], Any]
    take: Callable[[Any, Any], Any]
    pad: Callable[[Any], Any]


def _torch() -> _Library:
    import torch
    from torch.nn import functional

    return _Library(
        torch,
        lambda n, like: torch.arange(n, device=like.device),
        lambda array, index: torch.take_along_dim(array, index.long(), 2),
        lambda x: functional.pad(x, (1, 1, 1, 1)),
    )


def _jax() -> _Library:
    import jax.numpy as jnp

    return _Library(
        jnp,
        lambda n, like: jnp.arange(n),
        lambda array, index: jnp.take_along_axis(array, index.astype(jnp.int32), 2),
        lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))),
    )


def _windows_of(lib: _Library, x: Any) -> Any:
    """Return what each tap sees, (N, C, 9, H, W)."""
    padded, (height, width) = lib.pad(x), x.shape[2:]
    return lib.np.stack([padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)], 2)


def _in_scope(lib: _Library, offset: Any, scope: int) -> list[Any]:
    """Return the clipped points of all taps in the scope along each axis, (N, 9, *pixels)."""
    taps, pixels = lib.arange(9, offset), offset.shape[5:]
    moved = offset.reshape(offset.shape[0], 9, 2, *pixels)
    numbers = [(n + (scope - 3) / 2).reshape(9, *(1,) * len(pixels)) for n in (taps // 3, taps % 3)]
    return [lib.np.clip(moved[:, :, k] + numbers[k], 0, scope - 1) for k in (0, 1)]


def _in_image(lib: _Library, offset: Any) -> list[Any]:
    """Return the points of all taps in the image along each axis, (N, 9, H, W)."""
    (N, *_, H, W), taps = offset.shape, lib.arange(9, offset)
    moved, (down, right) = offset.reshape(N, 9, 2, H, W), (taps // 3 - 1, taps % 3 - 1)
    return [
        moved[:, :, 0] + down[:, None, None] + lib.arange(H, offset)[:, None],
        moved[:, :, 1] + right[:, None, None] + lib.arange(W, offset),
    ]


def _shares(lib: _Library, offset: Any, scope: int) -> Any:
    """Return the bilinear weight of each position of the scope for all taps, (N, 9, S*S, *pixels)."""
    grid = lib.arange(scope, offset).reshape(scope, *(1,) * len(offset.shape[5:]))
    rows, columns = (lib.np.clip(1 - abs(points[:, :, None] - grid), 0, 1) for points in _in_scope(lib, offset, scope))
    full = rows[:, :, :, None] * columns[:, :, None]
    return full.reshape(*full.shape[:2], scope * scope, *full.shape[4:])


def _matrices(lib: _Library, x: Any, weight: Any, offset: Any, groups: int) -> Any:
    """Sample the kernels of all pixels, or mix the columns, by a product with the bilinear weights."""
    shares, seen = _shares(lib, offset, weight.shape[-1]), _windows_of(lib, x)
    if groups > 1:
        kernels = lib.np.einsum("cs,ntsyx->nctyx", weight.reshape(weight.shape[0], -1), shares)
        return (kernels * seen).sum(2)
    columns = lib.np.einsum("nctyx,ntsyx->ncsyx", seen, shares)
    return lib.np.einsum("ocs,ncsyx->noyx", weight.reshape(*weight.shape[:2], -1), columns)


def _gather(lib: _Library, x: Any, weight: Any, offset: Any) -> Any:
    """Gather the four neighbours of each point of the image."""
    N, C, H, W = x.shape
    flat, seen = x.reshape(N, C, H * W), 0
    rows, columns = _in_image(lib, offset)
    top, left = lib.np.floor(rows), lib.np.floor(columns)
    for y, share_y in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for at, share_x in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (y >= 0) & (y < H) & (at >= 0) & (at < W)
            index = lib.np.clip(y, 0, H - 1) * W + lib.np.clip(at, 0, W - 1)
            corner = lib.take(flat, index.reshape(N, 1, -1)).reshape(N, C, 9, H, W)
            seen = seen + corner * (share_y * share_x * inside)[:, None]
    return lib.np.einsum("oct,nctyx->noyx", weight.reshape(*weight.shape[:2], 9), seen)


def _by_hand(
    lib: Callable[[], _Library],
    x: Any,
    weight: Any,
    kernel_offset: Any,
    data_offset: Any,
    *_: Any,
    padding: int,
    groups: int,
) -> Any:
    if kernel_offset is None:
        return _gather(lib(), x, weight, data_offset)
    return _matrices(lib(), x, weight, kernel_offset, groups)


def _grid_sample(x: Any, weight: Any, kernel_offset: Any, data_offset: Any, *_: Any, padding: int, groups: int) -> Any:
    """Sample the kernels of all pixels, or the image at all taps, by PyTorch's `grid_sample`."""
    import torch
    from torch.nn import functional

    def sampled(array: Any, points: list[Any], padding_mode: str) -> Any:
        rows, columns = (p * (2 / (extent - 1)) - 1 for p, extent in zip(points, array.shape[2:], strict=True))
        grid = torch.stack([columns, rows], -1).flatten(1, 2)
        return functional.grid_sample(array, grid, padding_mode=padding_mode, align_corners=True)

    N, C, H, W = x.shape
    if kernel_offset is None:
        seen = sampled(x, _in_image(_torch(), data_offset), "zeros").reshape(N, C * 9, H * W)
        return (weight.reshape(weight.shape[0], -1) @ seen).reshape(N, -1, H, W)
    scope = weight.flatten(0, 1).expand(N, -1, -1, -1)
    kernels = sampled(scope, _in_scope(_torch(), kernel_offset, weight.shape[-1]), "border")
    kernels, seen = kernels.reshape(N, *weight.shape[:2], 9, H, W), _windows_of(_torch(), x)
    return (kernels[:, :, 0] * seen).sum(2) if groups > 1 else torch.einsum("noctyx,nctyx->noyx", kernels, seen)


def _sampled(lib: Callable[[], _Library], weight: Any, offset: Any) -> Any:
    """Sample all kernels by a product with the bilinear weights."""
    shares = _shares(lib(), offset, weight.shape[-1])
    kernels = lib().np.einsum("ocs,nts->noct", weight.reshape(*weight.shape[:2], -1), shares)
    return kernels.reshape(*kernels.shape[:3], 3, 3)


TORCH: dict[str, dict[str, Any]] = {
    "deformable_conv2d": {"grid_sample": _grid_sample, "by hand": partial(_by_hand, _torch)},
    "sample_kernel": {"by hand": partial(_sampled, _torch)},
}
JAX: dict[str, dict[str, Any]] = {
    "deformable_conv2d": {"by hand": partial(_by_hand, _jax)},
    "sample_kernel": {"by hand": partial(_sampled, _jax)},
}


# ---- yardsticks ------------------------------------------------------------------------------------------------------


def yardsticks(problem: Problem) -> list[Contender]:
    """Return PyTorch's own convolution of the same image with a rigid kernel."""
    import torch
    from torch.nn import functional

    if problem.case.operator == "sample_kernel":
        return []
    x = tensor(problem.arrays[0], problem.device)
    kernel = tensor(problem.arrays[1][:, :, :3, :3].copy(), problem.device)
    formula = partial(functional.conv2d, **problem.case.options)
    if problem.direction == "forward":
        call = Call(lambda _: (formula(x, kernel),))
    else:
        leaves, grad = [t.detach().requires_grad_() for t in (x, kernel)], tensor(problem.grad_out, problem.device)
        call = Call(lambda out: torch.autograd.grad(out, leaves, grad), lambda: formula(*leaves))
    return [Contender("PyTorch convolution, rigid", {"": call}, yardstick=True)]
