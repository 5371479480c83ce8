"""The operators as JAX functions: inside jit, differentiable any number of times in reverse mode, and batchable.

Each public function hands its arrays and options to `apply`, which knows operators by their declarations alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynk.dilated._gumbel_softmax import seed_words
from dynk_jax._apply import apply

__all__ = [
    "adaptive_dilation_conv2d",
    "ddf",
    "ddf_upsample",
    "dynamic_filter",
    "filter_norm",
    "gumbel_softmax",
    "ls_dfn",
]


def ddf(
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
) -> jax.Array:
    r"""Apply a decoupled dynamic filter (DDF Eq. 2).

    .. math::
        out_{n,c,y,x} = \sum_{ij} f(spatial_{n,g,i,j,y,x}, channel_{n,c,i,j}) \, X_{n,c,\,tap(y,i),\,tap(x,j)}

    where f is the product ("mul") or the sum ("add") of the two filters, or the one that is given; channel c uses group
    g = c // (C/G). A read outside the image contributes 0.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    spatial : array (N, G, kh, kw, Ho, Wo) or None
        A filter for each pixel, shared by the C/G channels of a group. Ho = ceil(H/stride), Wo = ceil(W/stride).
    channel : array (N, C, kh, kw) or None
        A filter for each channel, shared by all pixels.
    stride, dilation : int or (h, w), default 1
        Step between output anchors and between taps, in pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.

    Returns
    -------
    jax.Array (N, C, Ho, Wo)
        Of the dtype of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or option, while tracing.
    TypeError
        For a wrong dtype or type; under forward-mode differentiation (jvp, jacfwd), which is not supported.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    See Also
    --------
    dynk.ddf : the same on arrays of any kind, with the gradient as `dynk.ddf_backward`.

    Notes
    -----
    `jax.vmap` makes the mapped axis part of N; an array without it is repeated. JAX remembers what it has traced: write
    `with dynk.backend(...)` inside the function that is compiled, not around its calls. Over several devices use
    `jax.shard_map`; under automatic partitioning every device computes the whole result.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> x, channel = jnp.ones((1, 1, 3, 3)), jnp.full((1, 1, 3, 3), 0.5)
    >>> jax.jit(dynk_jax.ddf)(x, None, channel)[0, 0]
    Array([[2. , 3. , 2. ],
           [3. , 4.5, 3. ],
           [2. , 3. , 2. ]], dtype=float32)
    >>> jax.grad(lambda channel: dynk_jax.ddf(x, None, channel).sum())(channel)[0, 0]
    Array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]], dtype=float32)
    """
    return apply("ddf", (x, spatial, channel), stride=stride, dilation=dilation, combine=combine)


def ddf_upsample(
    x: Any,
    spatial: Any,
    channel: Any,
    *,
    scale: int,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
) -> jax.Array:
    r"""Upsample by decoupled dynamic filters, one filter for each sub-pixel (DDF-Up, DDF section 3.4).

    .. math::
        out_{n,c,\,y s+p,\,x s+q} = ddf(X, spatial_{n,g,p,q}, channel_{n,c,p,q})_{n,c,y,x}

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    spatial : array (N, G, s, s, kh, kw, H, W) or None
        A filter for each sub-pixel (p, q) of each pixel, shared by the C/G channels of a group.
    channel : array (N, C, s, s, kh, kw) or None
        A filter for each sub-pixel and channel, shared by all pixels.
    scale : int
        Upsampling factor s.
    dilation : int or (h, w), default 1
        Step between taps, in input pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.

    Returns
    -------
    jax.Array (N, C, s*H, s*W)
        Of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    See Also
    --------
    dynk.ddf_upsample : the same on arrays of any kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> nearest = jnp.ones((1, 1, 2, 2, 1, 1))
    >>> dynk_jax.ddf_upsample(jnp.array([[[[1.0, 2.0]]]]), None, nearest, scale=2)[0, 0]
    Array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]], dtype=float32)
    """
    return apply("ddf_upsample", (x, spatial, channel), scale=scale, dilation=dilation, combine=combine)


def filter_norm(
    f: Any,
    scale: Any = None,
    shift: Any = None,
    *,
    axes: tuple[int, int],
    eps: float = 1e-10,
) -> jax.Array:
    r"""Normalise each filter over its taps (DDF Eq. 3).

    .. math::
        out = (f - mean(f)) / (std(f) + eps) \cdot scale + shift

    with mean and the unbiased standard deviation over the two tap axes. Where all taps of a filter are equal the
    normalised filter is 0, and its gradient is defined as 0.

    Parameters
    ----------
    f : array of any shape
        Filters, such as spatial ones (N, G, kh, kw, Ho, Wo) with `axes=(2, 3)`. float16, bfloat16, float32 or float64,
        like every array of the call.
    scale, shift : array, optional
        Broadcast with `f` as NumPy does, without enlarging it.
    axes : (int, int)
        The two tap axes of `f`; negative ones count from the end.
    eps : float, default 1e-10
        Added to the standard deviation.

    Returns
    -------
    jax.Array of the shape of `f`
        Of its dtype.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; ValueError too for filters of a single tap, which have no unbiased standard deviation.

    See Also
    --------
    dynk.filter_norm : the same on arrays of any kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, dynk_jax
    >>> filters = jnp.array([[[[1.0, 2.0, 3.0]]]])
    >>> dynk_jax.filter_norm(filters, axes=(2, 3))
    Array([[[[-1.,  0.,  1.]]]], dtype=float32)
    """
    return apply("filter_norm", (f, scale, shift), axes=axes, eps=eps)


def dynamic_filter(
    x: Any,
    kernel: Any,
    *,
    samples: int = 1,
    sample_stride: int = 1,
    dilation: int | tuple[int, int] = 1,
    reduce: str = "sum",
) -> jax.Array:
    r"""Apply a kernel of its own to each pixel, around a grid of samples (DFN; LS-DFN Eqs. 2 and 5).

    .. math::
        sample_{n,a,b,o,y,x} = \sum_{cij} X_{n,c,\,tap(y_h,i),\,tap(x_h,j)} \, kernel_{n,o,c,i,j,y,x}

    Sample (a, b), 0 <= a, b < s, is centred at y_h = y + (a - (s-1)//2)*sample_stride and likewise in x; its tap (i, j)
    reads row y_h + (i - (kh-1)//2)*dilation. A read outside the image contributes 0. One sample is the dynamic filter
    network.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    kernel : array (N, O, C, kh, kw, H, W)
        A whole convolution kernel for each pixel.
    samples : int, default 1
        Samples per side s, at most 64.
    sample_stride : int, default 1
        Step between samples, in pixels.
    dilation : int or (h, w), default 1
        Step between taps, in pixels.
    reduce : {"sum", "mean", "max", "none"}, default "sum"
        How the s*s samples become one output. Of equal largest samples "max" takes the first in row-major order, and a
        NaN is larger than all else.

    Returns
    -------
    jax.Array (N, O, H, W), or (N, s, s, O, H, W) for "none"
        Of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; NotImplementedError too where a gradient is differentiated again, for "max".

    See Also
    --------
    dynk.dynamic_filter : the same on arrays of any kind.

    References
    ----------
    Dynamic Filter Networks, NIPS 2016. Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018.

    Examples
    --------
    >>> import jax.numpy as jnp, dynk_jax
    >>> x = jnp.arange(6.0).reshape(1, 1, 2, 3)
    >>> dynk_jax.dynamic_filter(x, jnp.ones((1, 1, 1, 1, 1, 2, 3)), samples=3)[0, 0]
    Array([[ 8., 15., 12.],
           [ 8., 15., 12.]], dtype=float32)
    """
    options = {"samples": samples, "sample_stride": sample_stride, "dilation": dilation, "reduce": reduce}
    return apply("dynamic_filter", (x, kernel), **options)


def ls_dfn(
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any = None,
    position_attention: Any = None,
    *,
    samples: int,
    sample_stride: int,
    dilation: int | tuple[int, int] = 1,
    kernel_residual: bool = True,
    attention_residual: bool | tuple[bool, bool] = True,
    reduce: str = "sum",
) -> jax.Array:
    r"""Apply dynamic filters with a large sampling field (LS-DFN Eqs. 4 and 5).

    .. math::
        K_{o,c,i,j}(y, x) &= within_{o,i,j,y,x} + [(i,j) = centre] \, (across_{o,c,y,x} + 1/C) \\
        sample_{a,b,o,y,x} &= A^s_{o,a,b,y,x} \sum_{cij} X_{c,\,tap(y_h,i),\,tap(x_h,j)} \,
            K_{o,c,i,j}(y, x) \, A^p_{o,i,j,y_h,x_h}

    for each image of the batch, with samples and taps as of `dynamic_filter`. The centre of the kernel is
    ((kh-1)//2, (kw-1)//2). 1/C is added with `kernel_residual` only. The attentions are 1 + the arrays given, or
    these alone without `attention_residual`, and 1 where none is given.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    across : array (N, O, C, H, W) or None
        The part of the kernel that mixes channels, at its centre. None is 0.
    within : array (N, O, kh, kw, H, W) or None
        The part of the kernel that is shared by all input channels. None is 0.
    sample_attention : array (N, O, s, s, H, W), optional
        Weighs the samples of each pixel.
    position_attention : array (N, O, kh, kw, H, W), optional
        Weighs the taps of a sample, taken from the pixel at its centre; it counts as 0 outside the image.
    samples : int
        Samples per side s, at most 64.
    sample_stride : int
        Step between samples, in pixels.
    dilation : int or (h, w), default 1
        Step between taps, in pixels.
    kernel_residual : bool, default True
        Whether 1/C is added at the centre of the kernel: the operator then starts as a mean over channels.
    attention_residual : bool or (sample, position), default True
        Whether 1 is added to the attentions.
    reduce : {"sum", "mean", "max", "none"}, default "sum"
        As of `dynamic_filter`.

    Returns
    -------
    jax.Array (N, O, H, W), or (N, s, s, O, H, W) for "none"
        Of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `dynamic_filter`.

    See Also
    --------
    dynk.ls_dfn : the same on arrays of any kind.

    References
    ----------
    Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018.

    Examples
    --------
    >>> import jax.numpy as jnp, dynk_jax
    >>> x = jnp.arange(12.0).reshape(1, 2, 2, 3)
    >>> across, within = jnp.zeros((1, 1, 2, 2, 3)), jnp.zeros((1, 1, 3, 3, 2, 3))
    >>> dynk_jax.ls_dfn(x, across, within, samples=3, sample_stride=1)[0, 0]
    Array([[20., 33., 24.],
           [20., 33., 24.]], dtype=float32)
    """
    return apply(
        "ls_dfn",
        (x, across, within, sample_attention, position_attention),
        samples=samples,
        sample_stride=sample_stride,
        dilation=dilation,
        kernel_residual=kernel_residual,
        attention_residual=attention_residual,
        reduce=reduce,
    )


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
    >>> dynk_jax.gumbel_softmax(logits).round(3)
    Array([[0.1, 0.2, 0.7]], dtype=float32)
    >>> draws = dynk_jax.gumbel_softmax(jnp.tile(logits, (10000, 1)), seed=0, hard=True)
    >>> draws.mean(0).round(2)
    Array([0.1, 0.2, 0.7], dtype=float32)
    """
    if key is not None and seed is not None:
        msg = "gumbel_softmax: seed must be None where a key is given, got both"
        raise ValueError(msg)
    if key is not None:
        seed = jax.lax.bitcast_convert_type(jax.random.bits(key, (2,), jnp.uint32), jnp.int32)
    elif isinstance(seed, int | np.integer | float | str | bytes):
        seed = seed_words("gumbel_softmax", seed)
    return apply("gumbel_softmax", (logits, seed), tau=tau, hard=hard, offset=offset, axis=axis)
