"""`Involution` and `CARAFE`: decoupled dynamic filters of which the spatial one alone is there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynk_jax.functional import ddf, ddf_upsample
from dynk_jax.nn._convolution import BatchNorm, Conv, Pair, check_divides, mean_pool, pair


class InvolutionBranch(nnx.Module):
    """What predicts the filters of an involution."""

    def __init__(self, channels: int, narrow: int, outputs: int, stride: int, made: dict[str, Any]) -> None:
        self.stride = stride
        self.reduce = Conv(channels, narrow, bias=False, **made)
        self.norm = BatchNorm(narrow, dtype=made["dtype"])
        self.predict = Conv(narrow, outputs, **made)
        # as the authors start them: normal, by the number of outputs
        for conv in (self.reduce, self.predict):
            shape = conv.weight.shape
            deviation = (2 / shape[0]) ** 0.5
            conv.weight[...] = deviation * jax.random.normal(made["rngs"].params(), shape, made["dtype"])
        self.predict.bias[...] = jnp.zeros_like(self.predict.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the filters of each output pixel."""
        pooled = mean_pool(x, self.stride) if self.stride > 1 else x
        return self.predict(jax.nn.relu(self.norm(self.reduce(pooled))))


class Involution(nnx.Module):
    """A filter for each pixel and group of channels, predicted from the pixel itself (involution, CVPR 2021).

    It is `dynk_jax.ddf` without a channel filter. `train()` and `eval()` switch its batch normalisation.

    Parameters
    ----------
    channels : int
        C, of the input and of the output.
    kernel_size : int or (h, w), default 7
        Taps of the filter.
    stride : int, default 1
        Step between output pixels; above 1 a filter is predicted from the mean of stride x stride pixels.
    dilation : int or (h, w), default 1
        Step between taps.
    group_channels : int, default 16
        Channels that share a filter; divides C.
    reduction : int, default 4
        The filters are predicted from C / reduction channels.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import Involution
    >>> from flax import nnx
    >>> Involution(32, stride=2, rngs=nnx.Rngs(0))(jnp.ones((2, 32, 10, 10))).shape
    (2, 32, 5, 5)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Pair = 7,
        *,
        stride: int = 1,
        dilation: Pair = 1,
        group_channels: int = 16,
        reduction: int = 4,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_divides("Involution", "group_channels", group_channels, channels)
        self.channels, self.groups, self.stride = channels, channels // group_channels, stride
        self.kernel_size, self.dilation = pair(kernel_size), pair(dilation)
        outputs = self.groups * self.kernel_size[0] * self.kernel_size[1]
        made = {"rngs": rngs, "dtype": dtype}
        self.branch = InvolutionBranch(channels, max(1, channels // reduction), outputs, stride, made)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output (N, C, ceil(H/stride), ceil(W/stride)) of an image (N, C, H, W)."""
        spatial = self.branch(x)
        spatial = spatial.reshape(len(x), self.groups, *self.kernel_size, *spatial.shape[2:])
        return ddf(x, spatial, None, stride=self.stride, dilation=self.dilation)


class CARAFE(nnx.Module):
    """Upsampling by reassembly (CARAFE, ICCV 2019): output pixels are weighted means of pixels around their source.

    It is `dynk_jax.ddf_upsample` without a channel filter, its spatial filters passed through a softmax.

    Parameters
    ----------
    channels : int
        C, of the input and of the output.
    scale : int, default 2
        Upsampling factor s.
    kernel_size : int or (h, w), default 5
        Taps of the filters.
    groups : int, default 1
        Filters of a pixel, G: channel c takes filter c // (C/G).
    compressed_channels : int, default 64
        The filters are predicted from these.
    predictor_size : int or (h, w), default 3
        Size of the convolution that predicts them.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import CARAFE
    >>> from flax import nnx
    >>> CARAFE(8, rngs=nnx.Rngs(0))(jnp.ones((1, 8, 5, 6))).shape
    (1, 8, 10, 12)
    """

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        kernel_size: Pair = 5,
        *,
        groups: int = 1,
        compressed_channels: int = 64,
        predictor_size: Pair = 3,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_divides("CARAFE", "groups", groups, channels)
        if scale < 1:
            msg = f"CARAFE: scale must be 1 or more, got {scale}"
            raise ValueError(msg)
        made: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.channels, self.scale, self.groups, self.kernel_size = channels, scale, groups, pair(kernel_size)
        outputs = groups * scale * scale * self.kernel_size[0] * self.kernel_size[1]
        self.compress = Conv(channels, compressed_channels, **made)
        self.predict = Conv(compressed_channels, outputs, predictor_size, **made)
        # as the authors start them: nearly no preference among the taps
        bound = (6 / (channels + compressed_channels)) ** 0.5
        key, other = jax.random.split(rngs.params())
        self.compress.weight[...] = jax.random.uniform(key, self.compress.weight.shape, dtype, -bound, bound)
        self.predict.weight[...] = 0.001 * jax.random.normal(other, self.predict.weight.shape, dtype)
        for conv in (self.compress, self.predict):
            conv.bias[...] = jnp.zeros_like(conv.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output (N, C, s*H, s*W) of an image (N, C, H, W)."""
        N, _, H, W = x.shape
        logits = self.predict(self.compress(x)).reshape(N, self.groups, self.scale, self.scale, -1, H, W)
        wide = logits.astype(jnp.promote_types(x.dtype, jnp.float32))
        spatial = jax.nn.softmax(wide, 4).astype(x.dtype)
        spatial = spatial.reshape(N, self.groups, self.scale, self.scale, *self.kernel_size, H, W)
        return ddf_upsample(x, spatial, None, scale=self.scale)
