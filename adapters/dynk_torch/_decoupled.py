"""Decoupled dynamic filters, for PyTorch."""

from __future__ import annotations

from torch import Tensor

from dynk._operator import operators
from dynk_torch._autograd import call

_OPERATORS = operators()


def ddf(
    x: Tensor,
    spatial: Tensor | None,
    channel: Tensor | None,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
) -> Tensor:
    r"""Apply a decoupled dynamic filter (DDF Eq. 2).

    .. math::
        out_{n,c,y,x} = \sum_{ij} f(spatial_{n,g,i,j,y,x}, channel_{n,c,i,j}) \, X_{n,c,\,tap(y,i),\,tap(x,j)}

    where f is the product ("mul") or the sum ("add") of the two filters, or the one that is given; channel c uses group
    g = c // (C/G). Tap (i, j) of the output (y, x) reads row y*stride + (i - (kh-1)//2)*dilation and likewise in x; a
    read outside the image contributes 0.

    Parameters
    ----------
    x : Tensor (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every tensor of the call.
    spatial : Tensor (N, G, kh, kw, Ho, Wo) or None
        A filter for each pixel, shared by the C/G channels of a group. Ho = ceil(H/stride), Wo = ceil(W/stride).
        Alone (channel None) it is involution.
    channel : Tensor (N, C, kh, kw) or None
        A filter for each channel, shared by all pixels. Alone it is a depth-wise convolution with a kernel per sample.
    stride, dilation : int or (h, w), default 1
        Step between output anchors and between taps, in pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.

    Returns
    -------
    Tensor (N, C, Ho, Wo)
        Contiguous, of the dtype and device of `x`.

    Raises
    ------
    ValueError
        For a wrong shape or option, or tensors on different devices.
    TypeError
        For a wrong dtype or type.
    NotImplementedError
        If no backend can run the call; lists each with its reason.

    Notes
    -----
    Differentiable to any order in every tensor, in reverse and forward mode. Under autocast the tensors are cast to the
    autocast dtype. `with dynk.backend(name):` picks the backend.

    References
    ----------
    Decoupled Dynamic Filter Networks, CVPR 2021.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> spatial = torch.ones(1, 1, 3, 3, 3, 3)
    >>> channel = torch.full((1, 1, 3, 3), 0.5, requires_grad=True)
    >>> out = dynk_torch.ddf(x, spatial, channel)
    >>> out[0, 0].detach()
    tensor([[ 4.0000,  7.5000,  6.0000],
            [10.5000, 18.0000, 13.5000],
            [10.0000, 16.5000, 12.0000]])
    >>> out.sum().backward()
    >>> channel.grad[0, 0]
    tensor([[ 8., 15., 12.],
            [21., 36., 27.],
            [20., 33., 24.]])
    """
    return call(_OPERATORS["ddf"], (x, spatial, channel), (stride, dilation, combine))


def ddf_upsample(
    x: Tensor,
    spatial: Tensor | None,
    channel: Tensor | None,
    *,
    scale: int,
    dilation: int | tuple[int, int] = 1,
    combine: str = "mul",
) -> Tensor:
    r"""Upsample by decoupled dynamic filters, one filter for each sub-pixel (DDF-Up, DDF section 3.4).

    .. math::
        out_{n,c,\,y s+p,\,x s+q} = ddf(X, spatial_{n,g,p,q}, channel_{n,c,p,q})_{n,c,y,x}

    Parameters
    ----------
    x : Tensor (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every tensor of the call.
    spatial : Tensor (N, G, s, s, kh, kw, H, W) or None
        A filter for each sub-pixel (p, q) of each pixel, shared by the C/G channels of a group. Softmax-normalised over
        its taps and alone (channel None) it is CARAFE.
    channel : Tensor (N, C, s, s, kh, kw) or None
        A filter for each sub-pixel and channel, shared by all pixels.
    scale : int
        Upsampling factor s.
    dilation : int or (h, w), default 1
        Step between taps, in input pixels.
    combine : {"mul", "add"}, default "mul"
        How the two filters make one; without effect where one is None.

    Returns
    -------
    Tensor (N, C, s*H, s*W)
        Contiguous, of the dtype and device of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Notes
    -----
    As of `ddf`.

    References
    ----------
    Decoupled Dynamic Filter Networks, CVPR 2021.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> nearest = torch.ones(1, 1, 2, 2, 1, 1)
    >>> dynk_torch.ddf_upsample(x, None, nearest, scale=2)[0, 0]
    tensor([[1., 1., 2., 2.],
            [1., 1., 2., 2.]])
    """
    return call(_OPERATORS["ddf_upsample"], (x, spatial, channel), (scale, dilation, combine))


def filter_norm(
    f: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    axes: tuple[int, int],
    eps: float = 1e-10,
) -> Tensor:
    r"""Normalise each filter over its taps (DDF Eq. 3).

    .. math::
        out = (f - mean(f)) / (std(f) + eps) \cdot scale + shift

    with mean and the unbiased standard deviation over the two tap axes. Where all taps of a filter are equal the
    normalised filter is 0, and its gradients of every order are defined as 0.

    Parameters
    ----------
    f : Tensor of any shape
        Filters, such as spatial ones (N, G, kh, kw, Ho, Wo) with `axes=(2, 3)`. float16, bfloat16, float32 or float64,
        like every tensor of the call.
    scale, shift : Tensor, optional
        Broadcast with `f` as NumPy does, without enlarging it: (G, 1, 1, 1, 1) for one number per group of spatial
        filters, (C, kh, kw) for one per channel and tap of channel filters.
    axes : (int, int)
        The two tap axes of `f`; negative ones count from the end.
    eps : float, default 1e-10
        Added to the standard deviation.

    Returns
    -------
    Tensor of the shape of `f`
        Contiguous, of its dtype and device.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; ValueError too for filters of a single tap, which have no unbiased standard deviation.

    Notes
    -----
    As of `ddf`. Second derivatives and forward mode run on PyTorch's own operators, with temporaries of `f`'s size.

    References
    ----------
    Decoupled Dynamic Filter Networks, CVPR 2021.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> filters = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> dynk_torch.filter_norm(filters, axes=(2, 3))
    tensor([[[[-1.,  0.,  1.]]]])
    """
    return call(_OPERATORS["filter_norm"], (f, scale, shift), (axes, eps))
