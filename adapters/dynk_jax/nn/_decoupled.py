"""`DDF` and `DDFUp`: decoupled dynamic filters with what predicts them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynk_jax.functional import ddf, ddf_upsample
from dynk_jax.nn._convolution import Conv, Pair, check_choice, check_divides, pair, with_bias, zero_bias
from dynk_jax.nn._filter_norm import RELU_GAIN, FilterNorm

COMBINE = ("mul", "add")


class SpatialBranch(nnx.Module):
    """A 1x1 convolution, behind a depth-wise look where its size is above 1."""

    def __init__(self, channels: int, outputs: int, size: Pair, stride: Pair, made: dict[str, Any]) -> None:
        looks = pair(size) != (1, 1)
        self.look = Conv(channels, channels, size, stride=stride, groups=channels, **made) if looks else None
        self.predict = Conv(channels, outputs, stride=1 if looks else stride, **made)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the filters of each pixel, not yet normalised."""
        return self.predict(x if self.look is None else self.look(x))


class ChannelBranch(nnx.Module):
    """A bottleneck behind global average pooling, in blocks that do not mix."""

    def __init__(self, channels: int, narrow: int, outputs: int, blocks: int, made: dict[str, Any]) -> None:
        self.squeeze = Conv(channels, blocks * narrow, **made)
        self.predict = Conv(blocks * narrow, outputs, groups=blocks, **made)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the filters of each channel (N, outputs), not yet normalised."""
        pooled = x.mean((2, 3), keepdims=True)
        return self.predict(jax.nn.relu(self.squeeze(pooled)))[:, :, 0, 0]


class DDF(nnx.Module):
    """A decoupled dynamic filter with the two branches that predict it; stands in for a k x k convolution (DDF Fig. 2).

    A 1x1 convolution predicts a filter for each pixel. A bottleneck behind global average pooling predicts a filter for
    each channel. Both are normalised, and `dynk_jax.ddf` applies their product, or sum, to each channel by itself.

    Parameters
    ----------
    channels : int
        C, of the input and of the output.
    kernel_size : int or (h, w), default 3
        Taps of the filter, more than one.
    stride, dilation : int or (h, w), default 1
        As of `dynk_jax.ddf`; the output has ceil(H/stride) x ceil(W/stride) pixels.
    groups : int, default 1
        Spatial filters of a pixel, G: channel c takes filter c // (C/G).
    combine : {"mul", "add"}, default "mul"
        How the two filters make one.
    squeeze : float, default 0.2
        Width of the channel branch's bottleneck as a part of C.
    predictor_size : int or (h, w), default 1
        Above 1 the spatial branch starts with a depth-wise convolution of this size.
    gain : float, default sqrt(2)
        Size of the normalised filters, see `FilterNorm`; sqrt(2) for a ReLU behind the layer.
    bias : bool, default False
        Whether a learned number per channel is added to the output; it starts at 0.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import DDF
    >>> from flax import nnx
    >>> layer = DDF(16, stride=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 16, 9, 9))).shape
    (2, 16, 5, 5)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Pair = 3,
        *,
        stride: Pair = 1,
        dilation: Pair = 1,
        groups: int = 1,
        combine: str = "mul",
        squeeze: float = 0.2,
        predictor_size: Pair = 1,
        gain: float = RELU_GAIN,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_divides("DDF", "groups", groups, channels)
        check_choice("DDF", "combine", combine, COMBINE)
        made: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.channels, self.groups, self.combine = channels, groups, combine
        self.kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), pair(dilation)
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.spatial_branch = SpatialBranch(channels, groups * taps, predictor_size, self.stride, made)
        self.spatial_norm = FilterNorm((groups, *self.kernel_size, 1, 1), axes=(-4, -3), gain=gain)
        self.channel_branch = ChannelBranch(channels, max(1, int(channels * squeeze)), channels * taps, 1, made)
        self.channel_norm = FilterNorm((channels, *self.kernel_size), gain=gain, learn_scale=True, **made)
        self.bias = zero_bias(channels, dtype) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output (N, C, Ho, Wo) of an image (N, C, H, W)."""
        spatial = self.spatial_branch(x)
        spatial = spatial.reshape(len(x), self.groups, *self.kernel_size, *spatial.shape[2:])
        channel = self.channel_branch(x).reshape(len(x), self.channels, *self.kernel_size)
        options: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, "combine": self.combine}
        return with_bias(ddf(x, self.spatial_norm(spatial), self.channel_norm(channel), **options), self.bias)


class DDFUp(nnx.Module):
    """Upsampling by decoupled dynamic filters, predicted from the image or from a guide (DDF section 3.4).

    Output pixel (y*s + p, x*s + q) is a filter of its own around input pixel (y, x), the nearest one above and left,
    for any integer s. Each of the s*s sub-pixels has a spatial and a channel branch of its own, as `DDF` has them.

    Parameters
    ----------
    channels : int
        C, of the input and of the output.
    scale : int, default 2
        Upsampling factor s.
    kernel_size : int or (h, w), default 3
        Taps of the filters, more than one.
    dilation, groups, combine, squeeze, bias, rngs
        As of `DDF`.
    guidance_channels : int, optional
        Of the guide that the spatial filters are predicted from; there is none if None.
    predictor_size : int or (h, w), optional
        As of `DDF`; 3 if there is a guide, else 1, unless given.
    gain : float, default 1.0
        As of `DDF`: filters that average or interpolate keep the size of what they read.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import DDFUp
    >>> from flax import nnx
    >>> layer = DDFUp(8, scale=3, guidance_channels=4, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 8, 5, 6)), jnp.ones((2, 4, 5, 6))).shape
    (2, 8, 15, 18)
    """

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        kernel_size: Pair = 3,
        *,
        dilation: Pair = 1,
        groups: int = 1,
        combine: str = "mul",
        squeeze: float = 0.2,
        guidance_channels: int | None = None,
        predictor_size: Pair | None = None,
        gain: float = 1.0,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_divides("DDFUp", "groups", groups, channels)
        check_choice("DDFUp", "combine", combine, COMBINE)
        if scale < 1:
            msg = f"DDFUp: scale must be 1 or more, got {scale}"
            raise ValueError(msg)
        made: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.channels, self.scale, self.groups, self.combine = channels, scale, groups, combine
        self.guidance_channels = guidance_channels
        self.kernel_size, self.dilation = pair(kernel_size), pair(dilation)
        taps, pixels = self.kernel_size[0] * self.kernel_size[1], scale * scale
        guides = channels if guidance_channels is None else guidance_channels
        if predictor_size is None:
            predictor_size = 1 if guidance_channels is None else 3

        # Outputs are sub-pixel by sub-pixel, p*s + q. Of a look each sub-pixel has its own: `pixels` of each channel.
        looks = pair(predictor_size) != (1, 1)
        inputs, blocks = (guides * pixels, pixels) if looks else (guides, 1)
        self.spatial_look = Conv(guides, inputs, predictor_size, groups=guides, **made) if looks else None
        self.spatial_predict = Conv(inputs, pixels * groups * taps, groups=blocks, **made)
        sizes = (scale, scale, *self.kernel_size)
        self.spatial_norm = FilterNorm((groups, *sizes, 1, 1), axes=(-4, -3), gain=gain)
        narrow = max(1, int(channels * squeeze))
        self.channel_branch = ChannelBranch(channels, narrow, pixels * channels * taps, pixels, made)
        self.channel_norm = FilterNorm((channels, *sizes), gain=gain, learn_scale=True, **made)
        self.bias = zero_bias(channels, dtype) if bias else None

    def __call__(self, x: jax.Array, guidance: jax.Array | None = None) -> jax.Array:
        """Return the output (N, C, s*H, s*W) of an image (N, C, H, W).

        `guidance` (N, guidance_channels, H, W) has the size of the image, not of the output.
        """
        guide = self._guide(x, guidance)
        N, s, size = len(x), (self.scale, self.scale), x.shape[2:]
        if self.spatial_look is not None:
            looks = self.spatial_look(guide).reshape(N, -1, s[0] * s[1], *size)
            guide = looks.swapaxes(1, 2).reshape(N, -1, *size)
        spatial = self.spatial_predict(guide).reshape(N, *s, self.groups, *self.kernel_size, *size)
        channel = self.channel_branch(x).reshape(N, *s, self.channels, *self.kernel_size)
        filters = self.spatial_norm(jnp.moveaxis(spatial, 3, 1)), self.channel_norm(jnp.moveaxis(channel, 3, 1))
        out = ddf_upsample(x, *filters, scale=self.scale, dilation=self.dilation, combine=self.combine)
        return with_bias(out, self.bias)

    def _guide(self, x: jax.Array, guidance: jax.Array | None) -> jax.Array:
        if (guidance is None) != (self.guidance_channels is None):
            expected, got = "None without guidance_channels", "an array"
            if guidance is None:
                expected, got = f"of {self.guidance_channels} channels", "None"
            msg = f"DDFUp: guidance must be {expected}, got {got}"
            raise ValueError(msg)
        if guidance is None:
            return x
        if guidance.ndim != 4 or guidance.shape[2:] != x.shape[2:]:
            wanted = f"(N, guidance_channels, H, W) = (N, {self.guidance_channels}, {x.shape[2]}, {x.shape[3]})"
            msg = f"DDFUp: guidance must have shape {wanted}, got {tuple(guidance.shape)}"
            raise ValueError(msg)
        return guidance
