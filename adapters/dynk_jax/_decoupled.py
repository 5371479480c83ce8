"""Decoupled dynamic filters, for JAX."""

from __future__ import annotations

from typing import Any

import jax

from dynk_jax._apply import apply


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
