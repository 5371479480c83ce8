"""Pixel-wise adaptive dilation (PAD): what infers the dilation of each pixel, and the layer that takes it.

A prior turns a layer's features into logits over D candidate dilations, with what the layer before it found as its
state. The state goes from layer to layer by hand, (N, D, Ho, Wo) or None in front of the first:
`out, state = layer(x, state, key)`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynk_jax.functional import adaptive_dilation_conv2d, gumbel_softmax
from dynk_jax.nn._convolution import Conv, Pair, check_choice, pair


class _Prior(nnx.Module):
    """A 1x1 convolution of the features, and one of the state; `outputs` is how often D the first has outputs."""

    outputs = 1

    def __init__(
        self, channels: int, dilations: int, *, stride: Pair = 1, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ) -> None:
        made: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.features = Conv(channels, self.outputs * dilations, stride=stride, **made)
        self.memory = Conv(dilations, self.outputs * dilations, bias=False, **made)

    def summed(self, x: jax.Array, state: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Return what features and state give, and the state at the size of the features."""
        total = self.features(x)
        if state is None:
            return total, None
        for axis in (2, 3):  # the nearest pixel above and left
            if state.shape[axis] != total.shape[axis]:
                nearest = jnp.arange(total.shape[axis]) * state.shape[axis] // total.shape[axis]
                state = jnp.take(state, nearest, axis)
        return total + self.memory(state), state


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
    rngs : nnx.Rngs
        What the parameters are drawn from.
    """

    def __call__(self, x: jax.Array, state: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Return the logits (N, D, Ho, Wo) and the state for the next layer."""
        logits, _ = self.summed(x, state)
        return logits, jax.nn.softmax(logits, 1)


class RecurrentPrior(_Prior):
    r"""Infer dilations from a state that goes through all layers, as in a recurrent network (PAD Eq. 4).

    .. math::
        h = \tanh(W x + U h')

    with the h' of the layer before.

    Parameters
    ----------
    channels, dilations, stride, rngs
        As of `MarkovPrior`.
    """

    def __call__(self, x: jax.Array, state: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Return the logits (N, D, Ho, Wo) and the state for the next layer, which is the same."""
        logits = jnp.tanh(self.summed(x, state)[0])
        return logits, logits


class GatedPrior(_Prior):
    r"""Infer dilations from a state of which a gate decides what is kept (PAD Eq. 5).

    .. math::
        z = \sigma(W_z x + U_z h'), \quad h = (1 - z) \, h' + z \tanh(W x + U h')

    with the h' of the layer before, 0 in front of the first.

    Parameters
    ----------
    channels, dilations, stride, rngs
        As of `MarkovPrior`.
    """

    outputs = 2

    def __call__(self, x: jax.Array, state: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Return the logits (N, D, Ho, Wo) and the state for the next layer, which is the same."""
        both, state = self.summed(x, state)
        gate, candidate = jnp.split(both, 2, 1)
        kept = 0 if state is None else state
        logits = kept + jax.nn.sigmoid(gate) * (jnp.tanh(candidate) - kept)
        return logits, logits


PRIORS: dict[str, Any] = {"markov": MarkovPrior, "recurrent": RecurrentPrior, "gated": GatedPrior}


class PADConv2d(nnx.Module):
    """A convolution that takes a dilation of its own at each pixel.

    Parameters
    ----------
    in_channels, out_channels : int
        As of any convolution.
    kernel_size : int or (h, w)
        As of any convolution.
    dilations : tuple of int or (h, w), default (1, 2, 4)
        The candidates, 1 to 8 of them.
    stride, groups, bias
        As of any convolution. The output has ceil(H/stride) x ceil(W/stride) pixels.
    prior : {"markov", "recurrent", "gated"}, default "markov"
        How the dilations are inferred.
    tau : float, default 1.0
        Temperature of the draw; the attribute may be changed while training goes on.
    hard : bool, default False
        Whether a pixel takes the one dilation that is drawn, with the gradient of the mixture (straight-through).
    rngs : nnx.Rngs
        What the parameters are drawn from.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from dynk_jax.nn import PADConv2d
    >>> from flax import nnx
    >>> layer = PADConv2d(3, 8, 3, rngs=nnx.Rngs(0))
    >>> out, state = layer(jnp.ones((1, 3, 6, 6)), key=jax.random.key(1))
    >>> out.shape, state.shape
    ((1, 8, 6, 6), (1, 3, 6, 6))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        dilations: tuple[Pair, ...] = (1, 2, 4),
        stride: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        prior: str = "markov",
        tau: float = 1.0,
        hard: bool = False,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ) -> None:
        check_choice("PADConv2d", "prior", prior, tuple(PRIORS))
        made: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        conv = Conv(in_channels, out_channels, kernel_size, groups=groups, bias=bias, **made)
        self.weight, self.bias = conv.weight, conv.bias
        self.prior = PRIORS[prior](in_channels, len(dilations), stride=stride, **made)
        self.dilations, self.stride, self.groups = tuple(dilations), pair(stride), groups
        self.tau, self.hard = tau, hard

    @classmethod
    def from_conv(cls, weight: jax.Array, bias: jax.Array | None = None, *, groups: int = 1, **options: Any) -> Any:
        """Return a layer that takes over the weights of a convolution with zero padding that keeps the size.

        Parameters
        ----------
        weight : array (O, C/groups, kh, kw)
            Of the convolution; one of flax is transposed by (3, 2, 0, 1).
        bias : array (O,), optional
            Of the convolution.
        groups : int, default 1
            Of the convolution.
        **options
            dilations, stride, prior, tau, hard, rngs, as of `PADConv2d`.
        """
        outputs, inputs, *kernel = weight.shape
        taken: dict[str, Any] = {"groups": groups, "bias": bias is not None, "dtype": weight.dtype}
        layer = cls(inputs * groups, outputs, (kernel[0], kernel[1]), **taken, **options)
        layer.weight[...] = weight
        if bias is not None:
            layer.bias[...] = bias
        return layer

    def __call__(self, x: jax.Array, state: jax.Array | None = None, key: Any = None) -> tuple[jax.Array, jax.Array]:
        """Return the output (N, O, Ho, Wo) and the state for the next layer.

        With a key the dilations are drawn by `gumbel_softmax`, as for training; without one each pixel takes its
        likeliest, as for evaluation.
        """
        logits, state = self.prior(x, state)
        if key is None:
            chosen = jnp.argmax(logits, 1).astype(jnp.int32)
        else:
            chosen = gumbel_softmax(logits, key, tau=self.tau, hard=self.hard)
        options: dict[str, Any] = {"dilations": self.dilations, "stride": self.stride, "groups": self.groups}
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        return adaptive_dilation_conv2d(x, self.weight[...].astype(x.dtype), chosen, bias, **options), state
