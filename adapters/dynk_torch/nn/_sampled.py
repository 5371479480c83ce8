"""`DynamicFilter` and `LSDFN`: whole kernels for each pixel, with what predicts them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dynk_torch.functional import dynamic_filter, ls_dfn
from dynk_torch.nn._convolution import Pair, check_choice, pair, same_conv

REDUCE = ("sum", "mean", "max")


class DynamicFilter(nn.Module):
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
        As of `dynk_torch.dynamic_filter`, but that the samples are always reduced.
    predictor_size : int or (h, w), default 3
        Size of the convolution that predicts the kernels.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import DynamicFilter
    >>> layer = DynamicFilter(1, 1, 5, guidance_channels=8)
    >>> layer(torch.rand(2, 1, 6, 6), torch.rand(2, 8, 6, 6)).shape
    torch.Size([2, 1, 6, 6])
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("DynamicFilter", "reduce", reduce, REDUCE)
        self.shape = (out_channels, in_channels, *pair(kernel_size))
        self.softmax, self.guided = softmax, guidance_channels is not None
        self.options: dict[str, Any] = {
            "samples": samples,
            "sample_stride": sample_stride,
            "dilation": pair(dilation),
            "reduce": reduce,
        }
        inputs = in_channels if guidance_channels is None else guidance_channels
        outputs = out_channels * in_channels * self.shape[2] * self.shape[3]
        self.predict = same_conv(inputs, outputs, predictor_size, device=device, dtype=dtype)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Return the output (N, O, H, W) of an image (N, C, H, W), by a guide (N, guidance_channels, H, W)."""
        if (guidance is None) == self.guided:
            expected = "a tensor with guidance_channels" if self.guided else "None without guidance_channels"
            msg = f"DynamicFilter: guidance must be {expected}, got {'a tensor' if guidance is not None else 'None'}"
            raise ValueError(msg)
        kernel = self.predict(x if guidance is None else guidance)
        if self.softmax:
            kernel = kernel.unflatten(1, (self.shape[0], -1)).softmax(2).flatten(1, 2)
        return dynamic_filter(x, kernel.unflatten(1, self.shape), **self.options)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its convolution."""
        out_channels, in_channels, *kernel = self.shape
        shown = [f"{in_channels}, {out_channels}, kernel_size={tuple(kernel)}, softmax={self.softmax}"]
        if self.guided:
            shown.append(f"guidance_channels={self.predict.in_channels}")
        return ", ".join([*shown, *(f"{name}={value!r}" for name, value in self.options.items())])


class LSDFN(nn.Module):
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
        As of `dynk_torch.ls_dfn`.
    attention : bool, default True
        Whether there is an attention branch.
    reduce : {"sum", "mean", "max"}, default "sum"
        How samples become one output: the sum of Eq. 5, the mean of the authors' code, or the largest.
    predictor_size : int or (h, w), default 3
        Size of the convolutions of the three branches.
    post : bool, default True
        Whether there is a convolution behind; without one `out_channels` must be `filters`.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import LSDFN
    >>> layer = LSDFN(16, 16, samples=3, sample_stride=2, features=12, filters=4)
    >>> layer(torch.rand(1, 16, 9, 9)).shape
    torch.Size([1, 16, 9, 9])
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_choice("LSDFN", "reduce", reduce, REDUCE)
        if not post and out_channels != filters:
            msg = f"LSDFN: out_channels must be filters = {filters} without post, got {out_channels}"
            raise ValueError(msg)
        self.features, self.filters, self.samples, self.kernel_size = features, filters, samples, pair(kernel_size)
        self.options: dict[str, Any] = {
            "samples": samples,
            "sample_stride": sample_stride,
            "dilation": pair(dilation),
            "kernel_residual": kernel_residual,
            "attention_residual": attention_residual,
            "reduce": reduce,
        }
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.feature_branch = same_conv(in_channels, features, predictor_size, **made)
        self.kernel_branch = same_conv(in_channels, filters * (features + taps), predictor_size, **made)
        self.attention_branch: nn.Conv2d | None = None
        if attention:
            outputs = filters * (samples * samples + taps)
            self.attention_branch = same_conv(in_channels, outputs, predictor_size, **made)
        self.post = nn.Conv2d(filters, out_channels, 1, **made) if post else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, out_channels, H, W) of an image (N, in_channels, H, W)."""
        across, within = self._two(self.kernel_branch(x), (self.features,))
        to_samples = to_positions = None
        if self.attention_branch is not None:
            to_samples, to_positions = self._two(self.attention_branch(x), (self.samples, self.samples))
        out = ls_dfn(self.feature_branch(x), across, within, to_samples, to_positions, **self.options)
        return out if self.post is None else self.post(out)

    def _two(self, predicted: Tensor, first: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the two parts of a branch, (N, C', *first, H, W) and (N, C', kh, kw, H, W)."""
        numbers = 1
        for size in first:
            numbers *= size
        own, taps = predicted.split(
            [self.filters * numbers, self.filters * self.kernel_size[0] * self.kernel_size[1]], dim=1
        )
        return own.unflatten(1, (self.filters, *first)), taps.unflatten(1, (self.filters, *self.kernel_size))

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its branches."""
        out_channels = self.filters if self.post is None else self.post.out_channels
        shown = (
            f"{self.feature_branch.in_channels}, {out_channels}, features={self.features}, filters={self.filters}, "
            f"kernel_size={self.kernel_size}, attention={self.attention_branch is not None}, "
            f"post={self.post is not None}"
        )
        return ", ".join([shown, *(f"{name}={value!r}" for name, value in self.options.items())])
