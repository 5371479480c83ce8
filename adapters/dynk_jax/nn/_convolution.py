"""What the layers are made of besides dynk: convolutions, batch normalisation and pooling of images (N, C, H, W).

flax has its own for images (N, H, W, C). These have the layout, the names and the start of PyTorch's, so that weights
go from one framework to the other as they are. Parameters are brought to the dtype of the image.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """Return an (h, w) pair of an int or a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def check_divides(module: str, name: str, value: int, channels: int) -> None:
    """Refuse a number of blocks that does not divide the channels."""
    if value < 1 or channels % value:
        msg = f"{module}: {name} must divide channels = {channels}, got {value}"
        raise ValueError(msg)


def check_choice(module: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse an option that is none of the choices."""
    if value not in choices:
        msg = f"{module}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        raise ValueError(msg)


class Conv(nnx.Module):
    """A convolution with `size` // 2 zeros around; its weights start uniform within 1 / sqrt(inputs of an output)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: Pair = 1,
        *,
        stride: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        self.stride, self.groups = pair(stride), groups
        shape = (outputs, inputs // groups, *pair(size))
        bound = math.prod(shape[1:]) ** -0.5
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, dtype, -bound, bound))
        self.bias: Any = (
            nnx.Param(jax.random.uniform(rngs.params(), (outputs,), dtype, -bound, bound)) if bias else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output of an image (N, C, H, W)."""
        weight = self.weight[...].astype(x.dtype)
        padding = [(size // 2, size // 2) for size in weight.shape[2:]]
        out = lax.conv_general_dilated(x, weight, self.stride, padding, feature_group_count=self.groups)
        return with_bias(out, self.bias)


class BatchNorm(nnx.Module):
    """Normalisation of each channel over batch and image; `eval()` makes it use what it has learned of them."""

    def __init__(self, channels: int, *, dtype: Any = jnp.float32) -> None:
        self.weight, self.bias = nnx.Param(jnp.ones(channels, dtype)), nnx.Param(jnp.zeros(channels, dtype))
        self.running_mean = nnx.BatchStat(jnp.zeros(channels, dtype))
        self.running_var = nnx.BatchStat(jnp.ones(channels, dtype))
        self.use_running_average = False
        self.momentum, self.eps = 0.1, 1e-5

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the normalised image (N, C, H, W); in training the running statistics move."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.use_running_average:
            mean, var = self.running_mean[...], self.running_var[...]
        else:
            mean, var = wide.mean((0, 2, 3)), wide.var((0, 2, 3))
            number = x.size // x.shape[1]
            self._move(self.running_mean, mean)
            self._move(self.running_var, var * (number / max(number - 1, 1)))
        factor = self.weight[...] * lax.rsqrt(var + self.eps)
        out = (wide - mean[:, None, None]) * factor[:, None, None] + self.bias[...][:, None, None]
        return out.astype(x.dtype)

    def _move(self, running: Any, found: jax.Array) -> None:
        kept = running[...]
        running[...] = (kept + self.momentum * (lax.stop_gradient(found) - kept)).astype(kept.dtype)


def mean_pool(x: jax.Array, size: int) -> jax.Array:
    """Return the means of size x size pixels, (N, C, ceil(H/size), ceil(W/size)); fewer pixels at the end."""
    N, C, H, W = x.shape
    rows, columns = -(-H // size), -(-W // size)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, rows * size - H), (0, columns * size - W)))
    total = padded.reshape(N, C, rows, size, columns, size).sum((3, 5))
    heights = jnp.minimum(size, H - size * jnp.arange(rows))
    widths = jnp.minimum(size, W - size * jnp.arange(columns))
    return total / (heights[:, None] * widths).astype(x.dtype)


def with_bias(out: jax.Array, bias: Any) -> jax.Array:
    """Add a number per channel, if there are any, in the dtype of the output."""
    return out if bias is None else out + bias[...].astype(out.dtype)[:, None, None]


def zero_bias(channels: int, dtype: Any) -> nnx.Param[jax.Array]:
    """Return a bias that starts at 0."""
    return nnx.Param(jnp.zeros(channels, dtype))
