"""`DynamicFilter` and `LSDFN`: whole kernels for each pixel, with what predicts them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynk_jax.functional import dynamic_filter, ls_dfn
from dynk_jax.nn._convolution import Conv, Pair, check_choice, pair

REDUCE = ("sum", "mean", "max")


class DynamicFilter(nnx.Module):
    """A kernel of its own for each pixel, predicted from the image or from a guide (DFN; LS-DFN Eq. 2).

    Parameters
    ----------
    in_channels, out_channels : int
        C and O. The kernel of a pixel is O*C*kh*kw numbers.
    kernel_size : int or (h, w), default 3
        Taps of the kernels.
    guidance_channels : int, optional
        Of the guide that the kernels are predicted from; they come from the image itself if None.
    softmax : bool, default True
        Whether each output is a weighted mean of what its kernel reads, as in DFN.
    samples, sample_stride, dilation, reduce
        As of `dynk_jax.dynamic_filter`, but that the samples are always reduced.
    predictor_size : int or (h, w), default 3
        Size of the convolution that predicts the kernels.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import DynamicFilter
    >>> from flax import nnx
    >>> layer = DynamicFilter(1, 1, 5, guidance_channels=8, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 1, 6, 6)), jnp.ones((2, 8, 6, 6))).shape
    (2, 1, 6, 6)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair = 3,
        *,
        guidance_channels: int | None = None,
        softmax: bool = True,
        samples: int = 1,
        sample_stride: int = 1,
        dilation: Pair = 1,
        reduce: str = "sum",
        predictor_size: Pair = 3,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_choice("DynamicFilter", "reduce", reduce, REDUCE)
        self.shape = (out_channels, in_channels, *pair(kernel_size))
        self.softmax, self.guided = softmax, guidance_channels is not None
        self.samples, self.sample_stride, self.dilation, self.reduce = samples, sample_stride, pair(dilation), reduce
        inputs = in_channels if guidance_channels is None else guidance_channels
        outputs = out_channels * in_channels * self.shape[2] * self.shape[3]
        self.predict = Conv(inputs, outputs, predictor_size, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, guidance: jax.Array | None = None) -> jax.Array:
        """Return the output (N, O, H, W) of an image (N, C, H, W), by a guide (N, guidance_channels, H, W)."""
        if (guidance is None) == self.guided:
            expected = "an array with guidance_channels" if self.guided else "None without guidance_channels"
            msg = f"DynamicFilter: guidance must be {expected}, got {'an array' if guidance is not None else 'None'}"
            raise ValueError(msg)
        kernel = self.predict(x if guidance is None else guidance)
        size = kernel.shape[2:]
        if self.softmax:
            wide = kernel.astype(jnp.promote_types(x.dtype, jnp.float32))
            kernel = jax.nn.softmax(wide.reshape(len(x), self.shape[0], -1, *size), 2).astype(x.dtype)
        options: dict[str, Any] = {"dilation": self.dilation, "reduce": self.reduce}
        kernel = kernel.reshape(len(x), *self.shape, *size)
        return dynamic_filter(x, kernel, samples=self.samples, sample_stride=self.sample_stride, **options)


class LSDFN(nnx.Module):
    """Dynamic filters with a large sampling field, with the branches that predict them (LS-DFN Fig. 2).

    Of the input a feature branch makes C channels, a kernel branch the C'(C + kh*kw) numbers of the composed kernels of
    C' filters for each pixel, and an attention branch the C'(s*s + kh*kw) of the attentions to samples and to
    positions; a 1x1 convolution behind makes the output. The branches are a single convolution each, whose size the
    paper does not print.

    Parameters
    ----------
    in_channels, out_channels : int
        Of the layer.
    samples, sample_stride : int
        Samples per side s, and pixels between them.
    features : int, default 128
        Channels C that are filtered.
    filters : int, default 32
        Outputs C' of the filters.
    kernel_size : int or (h, w), default 3
        Taps of the filters.
    dilation, kernel_residual, attention_residual
        As of `dynk_jax.ls_dfn`.
    attention : bool, default True
        Whether there is an attention branch.
    reduce : {"sum", "mean", "max"}, default "sum"
        How samples become one output: the sum of Eq. 5, the mean of the authors' code, or the largest.
    predictor_size : int or (h, w), default 3
        Size of the convolutions of the three branches.
    post : bool, default True
        Whether there is a convolution behind; without one `out_channels` must be `filters`.
    rngs : nnx.Rngs
        What the parameters are drawn from.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import LSDFN
    >>> from flax import nnx
    >>> layer = LSDFN(16, 16, samples=3, sample_stride=2, features=12, filters=4, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 16, 9, 9))).shape
    (1, 16, 9, 9)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        samples: int,
        sample_stride: int,
        features: int = 128,
        filters: int = 32,
        kernel_size: Pair = 3,
        dilation: Pair = 1,
        attention: bool = True,
        kernel_residual: bool = True,
        attention_residual: bool = True,
        reduce: str = "sum",
        predictor_size: Pair = 3,
        post: bool = True,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_choice("LSDFN", "reduce", reduce, REDUCE)
        if not post and out_channels != filters:
            msg = f"LSDFN: out_channels must be filters = {filters} without post, got {out_channels}"
            raise ValueError(msg)
        self.features, self.filters, self.samples, self.kernel_size = features, filters, samples, pair(kernel_size)
        self.sample_stride, self.dilation, self.reduce = sample_stride, pair(dilation), reduce
        self.kernel_residual, self.attention_residual = kernel_residual, attention_residual
        made: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.feature_branch = Conv(in_channels, features, predictor_size, **made)
        self.kernel_branch = Conv(in_channels, filters * (features + taps), predictor_size, **made)
        outputs = filters * (samples * samples + taps)
        self.attention_branch = Conv(in_channels, outputs, predictor_size, **made) if attention else None
        self.post = Conv(filters, out_channels, **made) if post else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output (N, out_channels, H, W) of an image (N, in_channels, H, W)."""
        across, within = self._two(self.kernel_branch(x), (self.features,))
        to_samples = to_positions = None
        if self.attention_branch is not None:
            to_samples, to_positions = self._two(self.attention_branch(x), (self.samples, self.samples))
        out = ls_dfn(
            self.feature_branch(x),
            across,
            within,
            to_samples,
            to_positions,
            samples=self.samples,
            sample_stride=self.sample_stride,
            dilation=self.dilation,
            kernel_residual=self.kernel_residual,
            attention_residual=self.attention_residual,
            reduce=self.reduce,
        )
        return out if self.post is None else self.post(out)

    def _two(self, predicted: jax.Array, first: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Return the two parts of a branch, (N, C', *first, H, W) and (N, C', kh, kw, H, W)."""
        N, outputs, *size = predicted.shape
        taps = self.filters * self.kernel_size[0] * self.kernel_size[1]
        own = predicted[:, : outputs - taps].reshape(N, self.filters, *first, *size)
        return own, predicted[:, outputs - taps :].reshape(N, self.filters, *self.kernel_size, *size)
