"""Modules of pixel-wise adaptive dilation (PAD): what infers the dilation of each pixel, and the layer that takes it.

A prior turns a layer's features into logits over D candidate dilations, with what the layer before it found as its
state. The state goes from layer to layer by hand, (N, D, Ho, Wo) or None in front of the first:
`out, state = layer(x, state)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynk_torch.functional import adaptive_dilation_conv2d, gumbel_softmax
from dynk_torch.nn._convolution import Pair, pair


class _Prior(nn.Module):
    """A 1x1 convolution of the features, and one of the state; `outputs` is how often D the first has outputs."""

    outputs = 1

    def __init__(
        self, channels: int, dilations: int, *, stride: Pair = 1, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.features = nn.Conv2d(channels, self.outputs * dilations, 1, stride, **made)
        self.memory = nn.Conv2d(dilations, self.outputs * dilations, 1, bias=False, **made)
        self.dilations = dilations

    def summands(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what features and state give, and the state at the size of the features; None for no state."""
        features = self.features(x)
        if state is None:
            return features, None, None
        if state.shape[-2:] != features.shape[-2:]:
            state = F.interpolate(state, features.shape[-2:])
        return features, self.memory(state), state


class MarkovPrior(_Prior):
    r"""Infer dilations from the features and from those of the layer before (PAD Eq. 3).

    .. math::
        h = W x + U p

    with the probabilities p = softmax(h) of the layer before; they are what is passed on.

    Parameters
    ----------
    channels : int
        Of the features.
    dilations : int
        Candidates D.
    stride : int or (h, w), default 1
        That of the layer whose dilations are inferred.
    """

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits (N, D, Ho, Wo) and the state for the next layer."""
        features, memory, _ = self.summands(x, state)
        logits = features if memory is None else features + memory
        return logits, torch.softmax(logits, 1)


class RecurrentPrior(_Prior):
    r"""Infer dilations from a state that goes through all layers, as in a recurrent network (PAD Eq. 4).

    .. math::
        h = \tanh(W x + U h')

    with the h' of the layer before.

    Parameters
    ----------
    channels, dilations, stride
        As of `MarkovPrior`.
    """

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits (N, D, Ho, Wo) and the state for the next layer, which is the same."""
        features, memory, _ = self.summands(x, state)
        logits = torch.tanh(features if memory is None else features + memory)
        return logits, logits


class GatedPrior(_Prior):
    r"""Infer dilations from a state of which a gate decides what is kept (PAD Eq. 5).

    .. math::
        z = \sigma(W_z x + U_z h'), \quad h = (1 - z) \, h' + z \tanh(W x + U h')

    with the h' of the layer before, 0 in front of the first.

    Parameters
    ----------
    channels, dilations, stride
        As of `MarkovPrior`.
    """

    outputs = 2

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits (N, D, Ho, Wo) and the state for the next layer, which is the same."""
        features, memory, state = self.summands(x, state)
        both = features if memory is None else features + memory
        gate, candidate = torch.sigmoid(both[:, : self.dilations]), torch.tanh(both[:, self.dilations :])
        kept = 0 if state is None else state
        logits = kept + gate * (candidate - kept)  # dtypes may differ under autocast
        return logits, logits


PRIORS: dict[str, type[_Prior]] = {"markov": MarkovPrior, "recurrent": RecurrentPrior, "gated": GatedPrior}


class PADConv2d(nn.Module):
    """A convolution that takes a dilation of its own at each pixel.

    In training the dilations are drawn by `gumbel_softmax`, soft or hard; in evaluation each pixel takes its likeliest.
    Besides those of a convolution it has the weights of its prior: D outputs of a 1x1 convolution, twice as many for
    "gated", and as many of the state.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, groups, bias
        As of `torch.nn.Conv2d`. The output has ceil(H/stride) x ceil(W/stride) pixels.
    dilations : sequence of int or (h, w), default (1, 2, 4)
        The candidates, 1 to 8 of them.
    prior : {"markov", "recurrent", "gated"}, default "markov"
        How the dilations are inferred.
    tau : float, default 1.0
        Temperature of the draw; the attribute may be changed while training goes on.
    hard : bool, default False
        Whether a pixel takes the one dilation that is drawn, with the gradient of the mixture (straight-through).

    Examples
    --------
    >>> import torch
    >>> from dynk_torch.nn import PADConv2d
    >>> first, second = PADConv2d(3, 8, 3), PADConv2d(8, 8, 3)
    >>> x, state = first(torch.rand(1, 3, 6, 6))
    >>> x, state = second(x.relu(), state)
    >>> x.shape, state.shape
    (torch.Size([1, 8, 6, 6]), torch.Size([1, 3, 6, 6]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        dilations: Sequence[Pair] = (1, 2, 4),
        stride: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        prior: str = "markov",
        tau: float = 1.0,
        hard: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if prior not in PRIORS:
            msg = f"PADConv2d: prior must be one of {', '.join(map(repr, PRIORS))}, got {prior!r}"
            raise ValueError(msg)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias, **made)
        self.weight, self.bias = conv.weight, conv.bias
        self.prior = PRIORS[prior](in_channels, len(dilations), stride=stride, **made)
        self.dilations, self.stride, self.groups = tuple(dilations), stride, groups
        self.tau, self.hard = tau, hard

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, dilations: Sequence[Pair] = (1, 2, 4), **options: Any) -> PADConv2d:
        """Return a layer that takes over the weights of a convolution, the very same parameters.

        Parameters
        ----------
        conv : torch.nn.Conv2d
            With "same" zero padding: (kernel_size - 1) // 2 * dilation along each side.
        dilations, prior, tau, hard
            As of `PADConv2d`; candidates are not multiplied by the convolution's own dilation.

        Raises
        ------
        ValueError
            For another padding.
        """
        kernel, own = cast("tuple[int, int]", conv.kernel_size), cast("tuple[int, int]", conv.dilation)
        same = tuple((k - 1) // 2 * d for k, d in zip(kernel, own, strict=True))
        if conv.padding_mode != "zeros" or conv.padding not in (same, "same"):
            msg = f"PADConv2d: conv must have zero padding of {same}, got {conv.padding_mode} of {conv.padding}"
            raise ValueError(msg)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            dilations=dilations,
            stride=cast("tuple[int, int]", conv.stride),
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **options,
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the output (N, O, Ho, Wo) and the state for the next layer."""
        logits, state = self.prior(x, state)
        if self.training:
            chosen = gumbel_softmax(logits, tau=self.tau, hard=self.hard)
        else:
            chosen = logits.argmax(1)
        out = adaptive_dilation_conv2d(
            x, self.weight, chosen, self.bias, dilations=self.dilations, stride=self.stride, groups=self.groups
        )
        return out, state

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer besides its prior."""
        out_channels, per_group, *kernel = self.weight.shape
        return (
            f"{per_group * self.groups}, {out_channels}, kernel_size={tuple(kernel)}, dilations={self.dilations}, "
            f"stride={pair(self.stride)}, groups={self.groups}, bias={self.bias is not None}, "
            f"tau={self.tau}, hard={self.hard}"
        )
