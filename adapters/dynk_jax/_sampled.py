"""Dynamic filters with a large sampling field, for JAX."""

from __future__ import annotations

from typing import Any

import jax

from dynk_jax._apply import apply


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
