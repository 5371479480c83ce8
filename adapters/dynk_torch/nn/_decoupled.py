"""`DDF` and `DDFUp`: decoupled dynamic filters with what predicts them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn

from dynk_torch.functional import ddf, ddf_upsample
from dynk_torch.nn._convolution import (
    Pair,
    check_choice,
    check_divides,
    check_replaceable,
    pair,
    replaceable,
    same_conv,
    with_bias,
    zero_bias,
)
from dynk_torch.nn._filter_norm import RELU_GAIN, FilterNorm

COMBINE = ("mul", "add")


class DDF(nn.Module):
    """A decoupled dynamic filter with the two branches that predict it; stands in for a k x k convolution (DDF Fig. 2).

    A 1x1 convolution predicts a filter for each pixel. A bottleneck behind global average pooling predicts a filter for
    each channel. Both are normalised, and `dynk_torch.ddf` applies their product, or sum, to each channel by itself:
    there is no mixing of channels. It has ckk + sigma*cc(1 + kk) weights, besides offsets, and not cckk.

    Parameters
    ----------
    channels : int
        C, of the input and of the output.
    kernel_size : int or (h, w), default 3
        Taps of the filter, more than one.
    stride, dilation : int or (h, w), default 1
        As of `dynk_torch.ddf`; the output has ceil(H/stride) x ceil(W/stride) pixels.
    groups : int, default 1
        Spatial filters of a pixel, G: channel c takes filter c // (C/G). "Heads" in the authors' code.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one.
    squeeze : float, default 0.2
        Width of the channel branch's bottleneck as a part sigma of C.
    predictor_size : int or (h, w), default 1
        Above 1 the spatial branch starts with a depth-wise convolution of this size.
    gain : float, default sqrt(2)
        Size of the normalised filters, see `FilterNorm`; sqrt(2) for a ReLU behind the layer.
    bias : bool, default False
        Whether a learned number per channel is added to the output; it starts at 0.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import DDF
    >>> layer = DDF(16, stride=2)
    >>> layer(torch.rand(2, 16, 9, 9)).shape
    torch.Size([2, 16, 5, 5])
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_divides("DDF", "groups", groups, channels)
        check_choice("DDF", "combine", combine, COMBINE)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.groups, self.combine = channels, groups, combine
        self.kernel_size, self.stride, self.dilation = pair(kernel_size), pair(stride), pair(dilation)
        taps = self.kernel_size[0] * self.kernel_size[1]
        narrow = max(1, int(channels * squeeze))

        branch: OrderedDict[str, nn.Module] = OrderedDict()
        if pair(predictor_size) != (1, 1):
            branch["look"] = same_conv(channels, channels, predictor_size, stride=self.stride, groups=channels, **made)
        left = 1 if branch else self.stride
        branch["predict"] = nn.Conv2d(channels, groups * taps, 1, left, **made)
        self.spatial_branch = nn.Sequential(branch)
        self.spatial_norm = FilterNorm((groups, *self.kernel_size, 1, 1), axes=(-4, -3), gain=gain, **made)
        self.channel_branch = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                squeeze=nn.Conv2d(channels, narrow, 1, **made),
                relu=nn.ReLU(),
                predict=nn.Conv2d(narrow, channels * taps, 1, **made),
            )
        )
        self.channel_norm = FilterNorm((channels, *self.kernel_size), gain=gain, learn_scale=True, **made)
        self.bias = zero_bias(channels, **made) if bias else None

    @staticmethod
    def replaces(conv: nn.Conv2d) -> bool:
        """Return whether the layer can stand in for a convolution: see `from_conv`."""
        return replaceable(conv)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> DDF:
        """Return a layer of a convolution's shape: its kernel size, stride, dilation, and whether it has a bias.

        Parameters
        ----------
        conv : torch.nn.Conv2d
            With as many outputs as inputs, an odd kernel of several taps and zero padding that keeps the size. Its
            weights are of no use to filters that are predicted; its bias is taken over, the very same parameter.
        **options
            groups, combine, squeeze, predictor_size, gain, as of `DDF`.

        Raises
        ------
        ValueError
            For another convolution.
        """
        check_replaceable(cls.__name__, conv)
        layer = cls(
            conv.in_channels,
            cast("tuple[int, int]", conv.kernel_size),
            stride=cast("tuple[int, int]", conv.stride),
            dilation=cast("tuple[int, int]", conv.dilation),
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **options,
        )
        layer.bias = cast("nn.Parameter | None", conv.bias)
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, C, Ho, Wo) of an image (N, C, H, W)."""
        spatial = self.spatial_branch(x).unflatten(1, (self.groups, *self.kernel_size))
        channel = self.channel_branch(x).flatten(1).unflatten(1, (self.channels, *self.kernel_size))
        out = ddf(
            x,
            self.spatial_norm(spatial),
            self.channel_norm(channel),
            stride=self.stride,
            dilation=self.dilation,
            combine=self.combine,
        )
        return with_bias(out, self.bias)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its branches."""
        shown = f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
        return f"{shown}, groups={self.groups}, combine={self.combine!r}, bias={self.bias is not None}"


class DDFUp(nn.Module):
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
    dilation, groups, combine, squeeze, bias
        As of `DDF`.
    guidance_channels : int, optional
        Of the guide that the spatial filters are predicted from; there is none if None.
    predictor_size : int or (h, w), optional
        As of `DDF`; 3 if there is a guide, else 1, unless given.
    gain : float, default 1.0
        As of `DDF`: filters that average or interpolate keep the size of what they read.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import DDFUp
    >>> layer = DDFUp(8, scale=3, guidance_channels=4)
    >>> layer(torch.rand(2, 8, 5, 6), torch.rand(2, 4, 5, 6)).shape
    torch.Size([2, 8, 15, 18])
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_divides("DDFUp", "groups", groups, channels)
        check_choice("DDFUp", "combine", combine, COMBINE)
        if scale < 1:
            msg = f"DDFUp: scale must be 1 or more, got {scale}"
            raise ValueError(msg)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.scale, self.groups, self.combine = channels, scale, groups, combine
        self.guidance_channels = guidance_channels
        self.kernel_size, self.dilation = pair(kernel_size), pair(dilation)
        taps, pixels = self.kernel_size[0] * self.kernel_size[1], scale * scale
        guides = channels if guidance_channels is None else guidance_channels
        narrow = max(1, int(channels * squeeze))
        if predictor_size is None:
            predictor_size = 1 if guidance_channels is None else 3

        # Outputs are sub-pixel by sub-pixel, p*s + q. Of a look each sub-pixel has its own: `pixels` of each channel.
        self.spatial_look: nn.Conv2d | None = None
        if pair(predictor_size) != (1, 1):
            self.spatial_look = same_conv(guides, guides * pixels, predictor_size, groups=guides, **made)
        inputs, blocks = (guides * pixels, pixels) if self.spatial_look else (guides, 1)
        self.spatial_predict = nn.Conv2d(inputs, pixels * groups * taps, 1, groups=blocks, **made)
        sizes = (scale, scale, *self.kernel_size)
        self.spatial_norm = FilterNorm((groups, *sizes, 1, 1), axes=(-4, -3), gain=gain, **made)
        self.channel_branch = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                squeeze=nn.Conv2d(channels, pixels * narrow, 1, **made),
                relu=nn.ReLU(),
                predict=nn.Conv2d(pixels * narrow, pixels * channels * taps, 1, groups=pixels, **made),
            )
        )
        self.channel_norm = FilterNorm((channels, *sizes), gain=gain, learn_scale=True, **made)
        self.bias = zero_bias(channels, **made) if bias else None

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Return the output (N, C, s*H, s*W) of an image (N, C, H, W).

        `guidance` (N, guidance_channels, H, W) has the size of the image, not of the output: a finer guide is brought
        to it by `torch.nn.functional.pixel_unshuffle` or by convolutions of that stride.
        """
        guide = self._guide(x, guidance)
        sizes = (self.scale, self.scale)
        if self.spatial_look is not None:
            guide = self.spatial_look(guide).unflatten(1, (-1, sizes[0] * sizes[1])).transpose(1, 2).flatten(1, 2)
        spatial = self.spatial_predict(guide).unflatten(1, (*sizes, self.groups, *self.kernel_size)).movedim(3, 1)
        channel = self.channel_branch(x).flatten(1).unflatten(1, (*sizes, self.channels, *self.kernel_size))
        out = ddf_upsample(
            x,
            self.spatial_norm(spatial),
            self.channel_norm(channel.movedim(3, 1)),
            scale=self.scale,
            dilation=self.dilation,
            combine=self.combine,
        )
        return with_bias(out, self.bias)

    def _guide(self, x: Tensor, guidance: Tensor | None) -> Tensor:
        if (guidance is None) != (self.guidance_channels is None):
            expected = (
                "None without guidance_channels" if guidance is not None else f"of {self.guidance_channels} channels"
            )
            msg = f"DDFUp: guidance must be {expected}, got {'None' if guidance is None else tuple(guidance.shape)}"
            raise ValueError(msg)
        if guidance is None:
            return x
        if guidance.ndim != 4 or guidance.shape[2:] != x.shape[2:]:
            wanted = f"(N, {self.guidance_channels}, {x.shape[2]}, {x.shape[3]})"
            msg = (
                f"DDFUp: guidance must have shape (N, guidance_channels, H, W) = {wanted}, got {tuple(guidance.shape)}"
            )
            raise ValueError(msg)
        return guidance

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its branches."""
        shown = f"{self.channels}, scale={self.scale}, kernel_size={self.kernel_size}, dilation={self.dilation}"
        shown = f"{shown}, groups={self.groups}, combine={self.combine!r}, bias={self.bias is not None}"
        return shown if self.guidance_channels is None else f"{shown}, guidance_channels={self.guidance_channels}"
