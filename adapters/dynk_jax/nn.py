"""Pixel-wise adaptive dilation (PAD) in JAX: what infers the dilation of each pixel, and the layer that takes it.

Layers hold options alone. `init` makes the parameters, a dict of arrays that any optimiser takes, and the layer is
called with them. The state goes from layer to layer by hand, (N, D, Ho, Wo) or None in front of the first:
`out, state = layer(params, x, state, key)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dynk_jax.functional import adaptive_dilation_conv2d, gumbel_softmax

__all__ = ["PRIORS", "PADConv2d", "gated_prior", "markov_prior", "recurrent_prior"]

Params = dict[str, jax.Array]


def markov_prior(params: Params, x: jax.Array, state: jax.Array | None, stride: Any = 1) -> tuple[jax.Array, jax.Array]:
    r"""Infer dilations from the features and from those of the layer before (PAD Eq. 3).

    .. math::
        h = W x + U p

    with the probabilities p = softmax(h) of the layer before; they are what is passed on.

    Parameters
    ----------
    params : dict
        "features" (D, C), "offset" (D,) and "memory" (D, D).
    x : array (N, C, H, W)
        The features.
    state : array (N, D, h, w) or None
        What the layer before passed on.
    stride : int or (h, w), default 1
        That of the layer whose dilations are inferred.

    Returns
    -------
    logits, state : array (N, D, Ho, Wo)
    """
    logits, _ = _summed(params, x, state, stride)
    return logits, jax.nn.softmax(logits, 1)


def recurrent_prior(
    params: Params, x: jax.Array, state: jax.Array | None, stride: Any = 1
) -> tuple[jax.Array, jax.Array]:
    r"""Infer dilations from a state that goes through all layers, as in a recurrent network (PAD Eq. 4).

    .. math::
        h = \tanh(W x + U h')

    with the h' of the layer before. Parameters and results are as of `markov_prior`.
    """
    logits = jnp.tanh(_summed(params, x, state, stride)[0])
    return logits, logits


def gated_prior(params: Params, x: jax.Array, state: jax.Array | None, stride: Any = 1) -> tuple[jax.Array, jax.Array]:
    r"""Infer dilations from a state of which a gate decides what is kept (PAD Eq. 5).

    .. math::
        z = \sigma(W_z x + U_z h'), \quad h = (1 - z) \, h' + z \tanh(W x + U h')

    with the h' of the layer before, 0 in front of the first. Parameters and results are as of `markov_prior`, but that
    the first dimension of each parameter is 2D: the gate's, then the candidate's.
    """
    both, state = _summed(params, x, state, stride)
    gate, candidate = jnp.split(both, 2, 1)
    kept = 0 if state is None else state
    logits = kept + jax.nn.sigmoid(gate) * (jnp.tanh(candidate) - kept)
    return logits, logits


def _summed(params: Params, x: jax.Array, state: jax.Array | None, stride: Any) -> tuple[Any, jax.Array | None]:
    """Return W x + U state, and the state at the size of the features."""
    strides = (stride, stride) if isinstance(stride, int) else stride
    total = _conv1x1(x[:, :, :: strides[0], :: strides[1]], params["features"]) + params["offset"][:, None, None]
    if state is None:
        return total, None
    for axis in (2, 3):  # the nearest pixel above and left
        if state.shape[axis] != total.shape[axis]:
            nearest = jnp.arange(total.shape[axis]) * state.shape[axis] // total.shape[axis]
            state = jnp.take(state, nearest, axis)
    return total + _conv1x1(state, params["memory"]), state


def _conv1x1(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.conv(x, weight[:, :, None, None], (1, 1), "VALID")


PRIORS = {"markov": markov_prior, "recurrent": recurrent_prior, "gated": gated_prior}


@dataclass(frozen=True)
class PADConv2d:
    """A convolution that takes a dilation of its own at each pixel.

    Attributes
    ----------
    dilations : tuple of int or (h, w)
        The candidates, 1 to 8 of them.
    stride, groups
        As of any convolution. The output has ceil(H/stride) x ceil(W/stride) pixels.
    prior : {"markov", "recurrent", "gated"}
        How the dilations are inferred.
    tau : float
        Temperature of the draw.
    hard : bool
        Whether a pixel takes the one dilation that is drawn, with the gradient of the mixture (straight-through).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from dynk_jax.nn import PADConv2d
    >>> layer = PADConv2d()
    >>> params = layer.init(jax.random.key(0), 3, 8, (3, 3))
    >>> out, state = layer(params, jnp.ones((1, 3, 6, 6)), key=jax.random.key(1))
    >>> out.shape, state.shape
    ((1, 8, 6, 6), (1, 3, 6, 6))
    """

    dilations: tuple[Any, ...] = (1, 2, 4)
    stride: Any = 1
    groups: int = 1
    prior: str = "markov"
    tau: float = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            msg = f"PADConv2d: prior must be one of {', '.join(map(repr, PRIORS))}, got {self.prior!r}"
            raise ValueError(msg)

    def init(
        self, key: Any, in_channels: int, out_channels: int, kernel_size: tuple[int, int], *, bias: bool = True
    ) -> Params:
        """Return parameters: a convolution's, drawn uniformly within 1 / sqrt(its inputs), and those of its prior."""
        for_weight, for_bias, for_prior = jax.random.split(key, 3)
        bound = (in_channels // self.groups * kernel_size[0] * kernel_size[1]) ** -0.5
        shape = (out_channels, in_channels // self.groups, *kernel_size)
        weight = jax.random.uniform(for_weight, shape, minval=-bound, maxval=bound)
        drawn = jax.random.uniform(for_bias, (out_channels,), minval=-bound, maxval=bound)
        return self.from_conv(for_prior, weight, drawn if bias else None)

    def from_conv(self, key: Any, weight: jax.Array, bias: jax.Array | None = None) -> Params:
        """Return parameters that take over the weights (O, C/groups, kh, kw) of a convolution with zero padding."""
        channels, D = weight.shape[1] * self.groups, len(self.dilations)
        outputs = D * (2 if self.prior == "gated" else 1)
        for_features, for_memory = jax.random.split(key)
        params = {
            "weight": weight,
            "features": jax.random.uniform(for_features, (outputs, channels), weight.dtype, -1, 1) * channels**-0.5,
            "offset": jnp.zeros((outputs,), weight.dtype),
            "memory": jax.random.uniform(for_memory, (outputs, D), weight.dtype, -1, 1) * D**-0.5,
        }
        return params if bias is None else params | {"bias": bias}

    def __call__(
        self, params: Params, x: jax.Array, state: jax.Array | None = None, key: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the output (N, O, Ho, Wo) and the state for the next layer.

        With a key the dilations are drawn by `gumbel_softmax`, as for training; without one each pixel takes its
        likeliest, as for evaluation.
        """
        logits, state = PRIORS[self.prior](params, x, state, self.stride)
        if key is None:
            chosen = jnp.argmax(logits, 1).astype(jnp.int32)
        else:
            chosen = gumbel_softmax(logits, key, tau=self.tau, hard=self.hard)
        options: dict[str, Any] = {"dilations": self.dilations, "stride": self.stride, "groups": self.groups}
        return adaptive_dilation_conv2d(x, params["weight"], chosen, params.get("bias"), **options), state
