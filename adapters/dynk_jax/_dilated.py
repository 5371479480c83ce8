"""Pixel-wise adaptive dilation, for JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynk.dilated._gumbel_softmax import seed_words
from dynk_jax._apply import apply


def adaptive_dilation_conv2d(
    x: Any,
    weight: Any,
    dilation_weights: Any,
    bias: Any = None,
    *,
    dilations: Sequence[int | tuple[int, int]] = (1, 2, 4),
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
) -> jax.Array:
    r"""Convolve with a dilation of its own for each pixel, or a mixture of dilations (PAD Eq. 1).

    .. math::
        out_{n,o,y,x} = bias_o + \sum_{cij} weight_{o,c,i,j} \sum_d P_{n,d,y,x} \, X_{n,c,\,tap_d(y,i),\,tap_d(x,j)}

    Tap (i, j) of candidate d reads row y*stride + (i - (kh-1)//2)*dilations[d], and likewise in x. A read outside the
    image contributes 0; Ho = ceil(H/stride), Wo = ceil(W/stride).

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every floating array of the call.
    weight : array (O, C/groups, kh, kw)
        The kernel, as of an ordinary convolution.
    dilation_weights : array (N, D, Ho, Wo), or array of int32 or int64 (N, Ho, Wo)
        The weight P of each candidate at each pixel; they need not sum to 1. Or the index into `dilations` of the one
        candidate that a pixel takes; there is no gradient for it.
    bias : array (O,), optional
        Is added to the output.
    dilations : sequence of int or (h, w), default (1, 2, 4)
        The step between taps of each of the D candidates, 1 to 8 of them.
    stride : int or (h, w), default 1
        Step between output pixels.
    groups : int, default 1
        Blocks of channels that are convolved each by itself; divides C and O. C groups are a depth-wise convolution.

    Returns
    -------
    jax.Array (N, O, Ho, Wo)
        Of the dtype of `x`. A pixel whose index is not one of a candidate is NaN.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    References
    ----------
    PAD-Nets: Learning Dynamic Receptive Fields via Pixel-wise Adaptive Dilation, ICLR 2020 submission.

    Examples
    --------
    >>> import jax.numpy as jnp, dynk_jax
    >>> x = jnp.arange(5.0).reshape(1, 1, 1, 5)
    >>> weight = jnp.ones((1, 1, 1, 3))
    >>> dynk_jax.adaptive_dilation_conv2d(x, weight, jnp.full((1, 2, 1, 5), 0.5), dilations=(1, 2))[0, 0]
    Array([[1.5, 3.5, 6. , 6.5, 6.5]], dtype=float32)
    >>> dynk_jax.adaptive_dilation_conv2d(x, weight, jnp.array([[[0, 0, 1, 1, 1]]]), dilations=(1, 2))[0, 0]
    Array([[1., 3., 6., 4., 6.]], dtype=float32)
    """
    arrays = (x, weight, dilation_weights, bias)
    return apply("adaptive_dilation_conv2d", arrays, dilations=dilations, stride=stride, groups=groups)


def gumbel_softmax(
    logits: Any,
    key: Any = None,
    *,
    tau: float = 1.0,
    hard: bool = False,
    seed: Any = None,
    offset: int = 0,
    axis: int = 1,
) -> jax.Array:
    r"""Draw a choice among candidates that can be differentiated (PAD Eq. 2).

    .. math::
        out = softmax((logits + g) / \tau), \quad g = -\log(-\log u)

    over `axis`, with u uniform on (0, 1) and drawn anew for each element: the arg-max of logits + g is a candidate
    drawn with the probabilities softmax(logits).

    Parameters
    ----------
    logits : array of any shape
        Unnormalised log-probabilities, such as (N, D, H, W) of D candidates for each pixel. float16, bfloat16, float32
        or float64.
    key : JAX key, optional
        Where the seed is drawn from: two words of `jax.random.bits`. Without key and seed there is no noise, as for
        evaluation.
    tau : float, default 1.0
        Temperature: towards 0 the output becomes one-hot, far above 1 uniform.
    hard : bool, default False
        Whether to return the one-hot of the arg-max instead, the first of equal ones. The gradient stays that of the
        soft output (straight-through).
    seed : int or array of int32 or int64, optional
        Which noise, as of `dynk.gumbel_softmax`, which draws the same for the same seed. An array is no constant of the
        compiled program, an int is one.
    offset : int, default 0
        Is added to the number of each element.
    axis : int, default 1
        The axis of the candidates; a negative one counts from the end.

    Returns
    -------
    jax.Array of the shape of `logits`
        Of its dtype. Where a logit is NaN so are all candidates that it competes with.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    See Also
    --------
    dynk.gumbel_softmax : the same on arrays of any kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> logits = jnp.log(jnp.array([[0.1, 0.2, 0.7]]))
    >>> [round(float(p), 3) for p in dynk_jax.gumbel_softmax(logits)[0]]
    [0.1, 0.2, 0.7]
    >>> draws = dynk_jax.gumbel_softmax(jnp.tile(logits, (10000, 1)), seed=0, hard=True)
    >>> [round(float(p), 2) for p in draws.mean(0)]
    [0.1, 0.2, 0.7]
    """
    if key is not None and seed is not None:
        msg = "gumbel_softmax: seed must be None where a key is given, got both"
        raise ValueError(msg)
    if key is not None:
        seed = jax.lax.bitcast_convert_type(jax.random.bits(key, (2,), jnp.uint32), jnp.int32)
    elif isinstance(seed, int | np.integer | float | str | bytes):
        seed = seed_words("gumbel_softmax", seed)
    return apply("gumbel_softmax", (logits, seed), tau=tau, hard=hard, offset=offset, axis=axis)
