"""`FilterNorm`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dynk_torch.functional import filter_norm

RELU_GAIN = math.sqrt(2)


class FilterNorm(nn.Module):
    r"""Normalise each filter over its taps (DDF Eq. 3).

    .. math::
        out = (f - mean(f)) / (std(f) + eps) \cdot scale + shift

    with the unbiased standard deviation. Filters come out with values of the size `gain` / sqrt(T), T being their
    taps, so that what they filter keeps its size.

    Parameters
    ----------
    shape : tuple of int
        That of the learned scale and shift; it broadcasts with the filters. (C, kh, kw) for channel filters
        (N, C, kh, kw), (G, kh, kw, 1, 1) for spatial filters (N, G, kh, kw, H, W), with `axes=(-4, -3)`.
    axes : (int, int), default (-2, -1)
        The two tap axes, of `shape` and of the filters: negative ones, counted from the end.
    gain : float, default sqrt(2)
        That of the nonlinearity behind the filter, as of `torch.nn.init.calculate_gain`.
    learn_scale : bool, default False
        Whether the scale is learned, a number per element of `shape`, and starts from a normal distribution with the
        deviation `gain` / sqrt(T). Otherwise it is `gain` / sqrt(T).
    learn_shift : bool, default False
        Whether there is a shift, learned too, which starts from the standard normal distribution. Otherwise it is 0.
    eps : float, default 1e-10
        Added to the standard deviation.

    Attributes
    ----------
    scale, shift : Parameter (prod(shape),) or None
        What is learned, flat.

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import FilterNorm
    >>> norm = FilterNorm((1, 1, 3), gain=1.0)
    >>> norm(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[-0.5774,  0.0000,  0.5774]]]])
    """

    scale: Tensor
    shift: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        axes: tuple[int, int] = (-2, -1),
        gain: float = RELU_GAIN,
        learn_scale: bool = False,
        learn_shift: bool = False,
        eps: float = 1e-10,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not all(-len(shape) <= axis < 0 for axis in axes):
            msg = f"FilterNorm: axes must be two negative axes of shape = {tuple(shape)}, got {axes}"
            raise ValueError(msg)
        taps = shape[axes[0]] * shape[axes[1]]
        if taps < 2:
            msg = f"FilterNorm: shape must have two taps or more along axes = {axes}, got {tuple(shape)}"
            raise ValueError(msg)
        self.shape, self.axes, self.eps, self.start = tuple(shape), axes, eps, gain / math.sqrt(taps)
        size = math.prod(shape)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        if learn_scale:
            self.scale = nn.Parameter(torch.empty(size, **made))
        else:
            self.register_buffer("scale", torch.empty((), **made), persistent=False)
        self.register_parameter("shift", nn.Parameter(torch.empty(size, **made)) if learn_shift else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw what is learned anew."""
        if isinstance(self.scale, nn.Parameter):
            nn.init.normal_(self.scale, std=self.start)
        else:
            self.scale.fill_(self.start)
        if self.shift is not None:
            nn.init.normal_(self.shift)

    def forward(self, f: Tensor) -> Tensor:
        """Return the normalised filters, of the shape of `f`."""
        scale = self.scale.view(self.shape) if isinstance(self.scale, nn.Parameter) else self.scale
        shift = None if self.shift is None else self.shift.view(self.shape)
        return filter_norm(f, scale, shift, axes=self.axes, eps=self.eps)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        learn_scale, learn_shift = isinstance(self.scale, nn.Parameter), self.shift is not None
        shown = f"{self.shape}, axes={self.axes}, std={self.start:.4g}, eps={self.eps}"
        return f"{shown}, learn_scale={learn_scale}, learn_shift={learn_shift}"
