"""Deformable kernels and deformable convolution, for JAX."""

from __future__ import annotations

from typing import Any

import jax

from dynk_jax._apply import apply


def deformable_conv2d(
    x: Any,
    weight: Any,
    kernel_offset: Any = None,
    data_offset: Any = None,
    mask: Any = None,
    bias: Any = None,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    kernel_boundary: str = "clip",
) -> jax.Array:
    r"""Convolve with kernels, with images, or with both sampled at points that move from pixel to pixel (DK Eq. 11).

    .. math::
        out_{n,o,y,x} &= bias_o + \sum_{cij} W_{o,c}(k_i, k_j) \, mask_{n,i,j,y,x} \, X_{n,c}(p_y, p_x) \\
        (k_i, k_j) &= (i + (Sh - kh)/2, \; j + (Sw - kw)/2) + kernel\_offset_{n,i,j,:,y,x} \\
        (p_y, p_x) &= (y \, stride - padding + i \, dilation, \; ...) + data\_offset_{n,i,j,:,y,x}

    Both are sampled bilinearly. Without `data_offset` this is a local deformable kernel (DK Eq. 7), without
    `kernel_offset` a deformable convolution, modulated by `mask` (DCN v1 and v2), without both a convolution. Ho = (H +
    2*padding - dilation*(kh - 1) - 1) // stride + 1, likewise Wo.

    Parameters
    ----------
    x : array (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every array of the call.
    weight : array (O, C/groups, Sh, Sw)
        The kernel, as of an ordinary convolution; with `kernel_offset` the scope that its taps are sampled from.
    kernel_offset : array (N, Gk, kh, kw, 2, Ho, Wo), optional
        How far (dy, dx) each tap's point in the scope moves, for each of Gk blocks of channels.
    data_offset : array (N, Gd, kh, kw, 2, Ho, Wo), optional
        How far (dy, dx) each tap's point in the image moves, for each of Gd blocks of channels. That of
        `torchvision.ops.deform_conv2d` but for a reshape.
    mask : array (N, Gd, kh, kw, Ho, Wo), optional
        Weighs each tap.
    bias : array (O,), optional
        Is added to the output.
    kernel_size : int or (h, w), optional
        The taps (kh, kw) that are sampled; as many as `kernel_offset` has, or (Sh, Sw) without it, if None.
    stride : int or (h, w), default 1
        Step between output pixels.
    padding : int or (h, w), default 0
        How far the first pixel's first tap lies outside the image.
    dilation : int or (h, w), default 1
        Step between taps.
    groups : int, default 1
        Blocks of channels that are convolved each by itself; divides C and O. C groups are a depth-wise convolution.
    kernel_boundary : {"clip", "zeros"}, default "clip"
        Whether points outside the scope are moved to its border, as in DK, or read zeros there, as the image does.

    Returns
    -------
    jax.Array (N, O, Ho, Wo)
        Of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; NotImplementedError too where the gradient of an offset is differentiated again.

    References
    ----------
    Deformable Kernels: Adapting Effective Receptive Fields for Object Deformation, ICLR 2020. Deformable Convolutional
    Networks, ICCV 2017. Deformable ConvNets v2: More Deformable, Better Results, CVPR 2019.

    Examples
    --------
    A kernel of one tap, moved by half a position in a scope of two, and a pixel that looks half a pixel to the right:

    >>> import jax.numpy as jnp, dynk_jax
    >>> x = jnp.array([[[[1.0, 2.0, 4.0]]]])
    >>> scope = jnp.array([[[[1.0, 3.0]]]])
    >>> offset = jnp.zeros((1, 1, 1, 1, 2, 1, 3)).at[:, :, 0, 0, 1].set(jnp.array([-0.5, 0.0, 0.5]))
    >>> dynk_jax.deformable_conv2d(x, scope, offset)[0, 0]
    Array([[ 1.,  4., 12.]], dtype=float32)
    >>> dynk_jax.deformable_conv2d(x, jnp.ones((1, 1, 1, 1)), None, jnp.full_like(offset, 0.5))[0, 0]
    Array([[0.75, 1.5 , 1.  ]], dtype=float32)
    """
    arrays = (x, weight, kernel_offset, data_offset, mask, bias)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return apply("deformable_conv2d", arrays, kernel_size=kernel_size, kernel_boundary=kernel_boundary, **options)


def sample_kernel(
    weight: Any,
    kernel_offset: Any,
    *,
    kernel_size: int | tuple[int, int] | None = None,
    kernel_boundary: str = "clip",
) -> jax.Array:
    r"""Sample a kernel for each image from a larger one, bilinearly (DK Eq. 12; global deformable kernels).

    .. math::
        out_{n,o,c,i,j} = W_{o,c}(i + (Sh - kh)/2 + dy_{n,i,j}, \; j + (Sw - kw)/2 + dx_{n,i,j})

    Parameters
    ----------
    weight : array (O, I, Sh, Sw)
        The scope. float16, bfloat16, float32 or float64, like `kernel_offset`.
    kernel_offset : array (N, Gk, kh, kw, 2)
        How far (dy, dx) each tap's point moves, for each of Gk blocks of the O kernels.
    kernel_size : int or (h, w), optional
        The taps (kh, kw) that are sampled; as many as `kernel_offset` has if None.
    kernel_boundary : {"clip", "zeros"}, default "clip"
        Whether points outside the scope are moved to its border, as in DK, or read zeros there.

    Returns
    -------
    jax.Array (N, O, I, kh, kw)
        Of the dtype of `weight`. `[:, :, 0]` of depth-wise kernels is the `channel` argument of
        `ddf`, with `spatial` None.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `deformable_conv2d`.

    Examples
    --------
    The middle of a scope of two, and the end of it:

    >>> import jax.numpy as jnp, dynk_jax
    >>> scope, offsets = jnp.array([[[[1.0, 3.0]]]]), jnp.zeros((2, 1, 1, 1, 2)).at[1, 0, 0, 0, 1].set(5)
    >>> dynk_jax.sample_kernel(scope, offsets).ravel()
    Array([2., 3.], dtype=float32)
    """
    return apply("sample_kernel", (weight, kernel_offset), kernel_size=kernel_size, kernel_boundary=kernel_boundary)
