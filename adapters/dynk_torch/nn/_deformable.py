"""Deformable kernels (DK): convolutions whose kernels are sampled from larger ones, with what infers the points."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dynk.deformable._grid import grid_offsets, sampling
from dynk_torch.functional import ddf, deformable_conv2d, sample_kernel
from dynk_torch.nn._convolution import Pair, check_divides, pair, with_bias


def spread(weight: Tensor, scope: tuple[int, int]) -> Tensor:
    """Return a kernel of the size of the scope that is `weight` where it is sampled on the uniform grid.

    What that leaves open is drawn, as large as the weights: a scope of equal values would have no use for its points.
    """
    sizes = zip(weight.shape[2:], scope, strict=True)
    (rows, of_rows), (columns, of_columns) = ([torch.from_numpy(m).to(weight) for m in sampling(*s)] for s in sizes)
    drawn = torch.randn_like(weight[:, :, :1, :1].expand(-1, -1, *scope)) * weight.square().mean().sqrt()
    missing = weight - torch.einsum("is,ocst,jt->ocij", rows, drawn, columns)
    return drawn + torch.einsum("si,ocij,tj->ocst", of_rows, missing, of_columns)


class _DeformableKernel(nn.Module):
    """What local and global deformable kernels share: the kernel in its scope, and the options of the convolution."""

    kernel_boundary: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        scope: Pair | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, groups=groups, bias=bias, device=device, dtype=dtype)
        self.kernel_size, self.scope = pair(kernel_size), pair(kernel_size if scope is None else scope)
        if any(k > s for k, s in zip(self.kernel_size, self.scope, strict=True)):
            name = type(self).__name__
            msg = f"{name}: scope must be at least kernel_size = {self.kernel_size}, got {self.scope}"
            raise ValueError(msg)
        self.weight = nn.Parameter(spread(conv.weight.detach(), self.scope))
        self.bias = conv.bias
        self.stride, self.padding, self.dilation = pair(stride), pair(padding), pair(dilation)
        self.groups = groups

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, scope: Pair | None = None, **options: Any) -> Any:
        """Return a layer that starts as a convolution, with its bias and, where the scope is its kernel, its weight.

        Parameters
        ----------
        conv : torch.nn.Conv2d
            With zero padding.
        scope : int or (h, w), optional
            The stored size of the kernel; that of the convolution if None. A larger one holds its weights such that the
            points from which training starts give them back.
        **options
            Passed on.

        Raises
        ------
        ValueError
            For a convolution that the layer cannot stand in for.
        """
        if not cls.replaces(conv):
            msg = f"{cls.__name__}: conv must be {cls._replaced}, got {conv}"
            raise ValueError(msg)
        kernel = cast("tuple[int, int]", conv.kernel_size)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            scope=scope,
            stride=cast("tuple[int, int]", conv.stride),
            padding=_padding(conv),
            dilation=cast("tuple[int, int]", conv.dilation),
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **options,
        )
        layer.bias = conv.bias
        if layer.scope == kernel:
            layer.weight = cast("nn.Parameter", conv.weight)
        else:
            layer.weight = nn.Parameter(spread(conv.weight.detach(), layer.scope))
        return layer.train(conv.training)

    _replaced = "one of zero padding"

    @classmethod
    def replaces(cls, conv: nn.Conv2d) -> bool:
        """Return whether the layer can stand in for a convolution."""
        return conv.padding_mode == "zeros" and _padding(conv) is not None

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides what infers its offsets."""
        out_channels, per_group = self.weight.shape[:2]
        return (
            f"{per_group * self.groups}, {out_channels}, kernel_size={self.kernel_size}, scope={self.scope}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, kernel_boundary={self.kernel_boundary!r}"
        )


def _padding(conv: nn.Conv2d) -> Any:
    """Return a convolution's padding as a pair, None where its two sides differ."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding != "same":
        return conv.padding
    reach = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)


class DeformableKernelConv2d(_DeformableKernel):
    r"""A convolution whose kernel is sampled at each pixel from a larger one (local deformable kernels, DK Eq. 7).

    A convolution like the layer's own, with 2*kh*kw outputs, infers how far each tap moves within the scope; it starts
    at 0, from taps spread uniformly over the scope.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of `torch.nn.Conv2d`.
    scope : int or (h, w), optional
        The stored size of the kernel, at least `kernel_size`, which it is if None.
    offset_groups : int, default 1
        Blocks of input channels with offsets of their own.
    data_offsets : bool, default False
        Whether another such convolution, which starts at 0, moves the points in the image too (DK Eq. 11).
    kernel_boundary : {"clip", "zeros"}, default "clip"
        As of `dynk_torch.deformable_conv2d`.

    See Also
    --------
    parameter_groups : gives what infers offsets a learning rate of its own.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import DeformableKernelConv2d
    >>> layer = DeformableKernelConv2d(16, 16, 3, scope=4, padding=1, groups=16)
    >>> layer(torch.rand(2, 16, 7, 9)).shape
    torch.Size([2, 16, 7, 9])
    >>> tuple(layer.weight.shape), tuple(layer.offset.weight.shape)
    ((16, 1, 4, 4), (18, 16, 3, 3))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        scope: Pair | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
        data_offsets: bool = False,
        kernel_boundary: str = "clip",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        own: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        super().__init__(in_channels, out_channels, kernel_size, scope=scope, groups=groups, bias=bias, **own, **made)
        check_divides("DeformableKernelConv2d", "offset_groups", offset_groups, in_channels)
        kh, kw = self.kernel_size
        self.offset = nn.Conv2d(in_channels, offset_groups * kh * kw * 2, self.kernel_size, **own, **made)
        self.data_offset = (
            nn.Conv2d(in_channels, kh * kw * 2, self.kernel_size, **own, **made) if data_offsets else None
        )
        _start(self.offset, np.tile(grid_offsets(self.kernel_size, self.scope).ravel(), offset_groups))
        if self.data_offset is not None:
            _start(self.data_offset, np.zeros(kh * kw * 2))
        self.offset_groups, self.kernel_boundary = offset_groups, kernel_boundary

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (N, O, Ho, Wo) of an image (N, C, H, W)."""
        taps = (*self.kernel_size, 2)
        return deformable_conv2d(
            x,
            self.weight,
            self.offset(x).unflatten(1, (self.offset_groups, *taps)),
            None if self.data_offset is None else self.data_offset(x).unflatten(1, (1, *taps)),
            bias=self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            kernel_boundary=self.kernel_boundary,
        )

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides what infers its offsets."""
        shown = f"offset_groups={self.offset_groups}, data_offsets={self.data_offset is not None}"
        return f"{super().extra_repr()}, {shown}"


class GlobalDeformableKernelConv2d(_DeformableKernel):
    r"""A convolution whose kernel is sampled for each image from a larger one (global deformable kernels, DK Eq. 6).

    The mean over all pixels and a linear layer with 2*kh*kw outputs, which starts at 0, infer how far each tap moves
    within the scope, from taps spread uniformly over it.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As of `torch.nn.Conv2d`: a depth-wise convolution of an odd kernel with "same" padding and as many outputs as
        inputs, or a 1 x 1 one without groups.
    scope : int or (h, w), optional
        The stored size of the kernel, at least `kernel_size`, which it is if None.
    kernel_boundary : {"clip", "zeros"}, default "clip"
        As of `dynk_torch.sample_kernel`.

    See Also
    --------
    parameter_groups : gives what infers offsets a learning rate of its own.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import GlobalDeformableKernelConv2d
    >>> depthwise = GlobalDeformableKernelConv2d(16, 16, 3, scope=4, padding=1, groups=16)
    >>> pointwise = GlobalDeformableKernelConv2d(16, 32, 1, scope=2, stride=2)
    >>> pointwise(depthwise(torch.rand(2, 16, 8, 10))).shape
    torch.Size([2, 32, 4, 5])
    """

    _replaced = "depth-wise with an odd kernel and zero padding that keeps the size, or 1x1 without groups"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        scope: Pair | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        kernel_boundary: str = "clip",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        own: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, device="meta", **own)
        if not self.replaces(plain):
            msg = f"GlobalDeformableKernelConv2d: the layer must be {self._replaced}, got {plain}"
            raise ValueError(msg)
        super().__init__(in_channels, out_channels, kernel_size, scope=scope, bias=bias, **own, **made)
        kh, kw = self.kernel_size
        self.offset = nn.Linear(in_channels, kh * kw * 2, **made)
        _start(self.offset, grid_offsets(self.kernel_size, self.scope).ravel())
        self.kernel_boundary = kernel_boundary

    @classmethod
    def replaces(cls, conv: nn.Conv2d) -> bool:
        """Return whether the layer can stand in for a convolution."""
        if not super().replaces(conv):
            return False
        kernel, dilation = cast("tuple[int, int]", conv.kernel_size), cast("tuple[int, int]", conv.dilation)
        if kernel == (1, 1):
            return conv.groups == 1 and _padding(conv) == (0, 0)
        same = tuple((k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True))
        depthwise = conv.groups == conv.in_channels == conv.out_channels
        return depthwise and all(k % 2 for k in kernel) and _padding(conv) == same

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (N, O, Ho, Wo) of an image (N, C, H, W)."""
        offset = self.offset(x.mean((2, 3))).unflatten(1, (1, *self.kernel_size, 2))
        kernels = sample_kernel(self.weight, offset, kernel_boundary=self.kernel_boundary)
        if self.kernel_size != (1, 1):
            out = ddf(x, None, kernels[:, :, 0], stride=self.stride, dilation=self.dilation)
        else:
            pixels = x[:, :, :: self.stride[0], :: self.stride[1]]
            out = (kernels[..., 0, 0] @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return with_bias(out, self.bias)


def _start(generator: nn.Conv2d | nn.Linear, offsets: Any) -> None:
    """Let a layer give the same offsets whatever it sees."""
    with torch.no_grad():
        generator.weight.zero_()
        cast("Tensor", generator.bias).copy_(torch.from_numpy(offsets))


def parameter_groups(model: nn.Module, lr: float, multiplier: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser, in which what infers offsets learns at a rate of its own.

    Parameters
    ----------
    model : torch.nn.Module
        A network with deformable kernels.
    lr : float
        The learning rate of everything else.
    multiplier : float
        What `lr` is multiplied by for the layers that infer offsets, such as 0.1.

    Returns
    -------
    list of dict
        Two groups, everything else first.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import DeformableKernelConv2d, parameter_groups
    >>> layer = DeformableKernelConv2d(8, 8, 3, scope=4, padding=1)
    >>> optimiser = torch.optim.SGD(parameter_groups(layer, 0.1, 0.1), momentum=0.9)
    >>> [round(group["lr"], 3) for group in optimiser.param_groups]
    [0.1, 0.01]
    """
    inferring = {id(p) for layer in _generators(model) for p in layer.parameters()}
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) not in inferring], "lr": lr},
        {"params": [p for p in parameters if id(p) in inferring], "lr": lr * multiplier},
    ]


def _generators(model: nn.Module) -> Iterable[nn.Module]:
    for layer in model.modules():
        if isinstance(layer, DeformableKernelConv2d | GlobalDeformableKernelConv2d):
            yield layer.offset
            if isinstance(layer, DeformableKernelConv2d) and layer.data_offset is not None:
                yield layer.data_offset
