"""`Involution` and `CARAFE`: decoupled dynamic filters of which the spatial one alone is there."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn

from dynk_torch.functional import ddf, ddf_upsample
from dynk_torch.nn._convolution import Pair, check_divides, check_replaceable, pair, replaceable, same_conv


class Involution(nn.Module):
    """A filter for each pixel and group of channels, predicted from the pixel itself (involution, CVPR 2021).

    It is `dynk_torch.ddf` without a channel filter.

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

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import Involution
    >>> Involution(32, stride=2)(torch.rand(2, 32, 10, 10)).shape
    torch.Size([2, 32, 5, 5])
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_divides("Involution", "group_channels", group_channels, channels)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.groups, self.stride = channels, channels // group_channels, stride
        self.kernel_size, self.dilation = pair(kernel_size), pair(dilation)
        narrow = max(1, channels // reduction)
        outputs = self.groups * self.kernel_size[0] * self.kernel_size[1]
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        if stride > 1:
            # There is no padding to count. Where it is counted, inductor's gradient is wrong at the border:
            # https://github.com/pytorch/pytorch/issues/198119
            branch["pool"] = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        branch["reduce"] = nn.Conv2d(channels, narrow, 1, bias=False, **made)
        branch["norm"] = nn.BatchNorm2d(narrow, **made)
        branch["relu"] = nn.ReLU()
        branch["predict"] = nn.Conv2d(narrow, outputs, 1, **made)
        self.branch = nn.Sequential(branch)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions' weights anew as the authors do: normal, by the number of outputs."""
        for conv in self.branch:
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    @staticmethod
    def replaces(conv: nn.Conv2d) -> bool:
        """Return whether the layer can stand in for a convolution: see `from_conv`."""
        stride = cast("tuple[int, int]", conv.stride)
        return replaceable(conv) and stride[0] == stride[1]

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> Involution:
        """Return a layer of a convolution's channels, kernel size, stride and dilation.

        Parameters
        ----------
        conv : torch.nn.Conv2d
            With as many outputs as inputs, an odd kernel of several taps, one stride for both axes and zero padding
            that keeps the size. Neither its weights nor its bias are taken over.
        **options
            kernel_size, where another is wanted, group_channels, reduction, as of `Involution`.

        Raises
        ------
        ValueError
            For another convolution.
        """
        check_replaceable(cls.__name__, conv)
        if not cls.replaces(conv):
            msg = f"Involution: conv must have one stride for both axes, got {conv.stride}"
            raise ValueError(msg)
        taken: dict[str, Any] = {"kernel_size": conv.kernel_size, "dilation": conv.dilation} | options
        made: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        return cls(conv.in_channels, stride=conv.stride[0], **taken, **made).train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, C, ceil(H/stride), ceil(W/stride)) of an image (N, C, H, W)."""
        spatial = self.branch(x).unflatten(1, (self.groups, *self.kernel_size))
        return ddf(x, spatial, None, stride=self.stride, dilation=self.dilation)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its branch."""
        shown = f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
        return f"{shown}, group_channels={self.channels // self.groups}"


class CARAFE(nn.Module):
    """Upsampling by reassembly (CARAFE, ICCV 2019): output pixels are weighted means of pixels around their source.

    It is `dynk_torch.ddf_upsample` without a channel filter, its spatial filters passed through a softmax.

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

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import CARAFE
    >>> CARAFE(8)(torch.rand(1, 8, 5, 6)).shape
    torch.Size([1, 8, 10, 12])
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_divides("CARAFE", "groups", groups, channels)
        if scale < 1:
            msg = f"CARAFE: scale must be 1 or more, got {scale}"
            raise ValueError(msg)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.scale, self.groups, self.kernel_size = channels, scale, groups, pair(kernel_size)
        outputs = groups * scale * scale * self.kernel_size[0] * self.kernel_size[1]
        self.compress = nn.Conv2d(channels, compressed_channels, 1, **made)
        self.predict = same_conv(compressed_channels, outputs, predictor_size, **made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew as the authors do: nearly no preference among the taps to start with."""
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.predict.weight, std=0.001)
        for conv in (self.compress, self.predict):
            nn.init.zeros_(cast("Tensor", conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, C, s*H, s*W) of an image (N, C, H, W)."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        logits = self.predict(self.compress(x)).unflatten(1, (self.groups, self.scale, self.scale, taps))
        spatial = logits.softmax(4).unflatten(4, self.kernel_size)
        return ddf_upsample(x, spatial, None, scale=self.scale)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its convolutions."""
        return f"{self.channels}, scale={self.scale}, kernel_size={self.kernel_size}, groups={self.groups}"
