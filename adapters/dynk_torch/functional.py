"""The public functions: one per operator, each a single call into the machinery that all operators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynk._operator import operators
from dynk.dilated._gumbel_softmax import seed_number
from dynk_torch._autograd import call

__all__ = [
    "adaptive_dilation_conv2d",
    "ddf",
    "ddf_upsample",
    "dynamic_filter",
    "filter_norm",
    "gumbel_softmax",
    "ls_dfn",
]

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


def dynamic_filter(
    x: Tensor,
    kernel: Tensor,
    *,
    samples: int = 1,
    sample_stride: int = 1,
    dilation: int | tuple[int, int] = 1,
    reduce: str = "sum",
) -> Tensor:
    r"""Apply a kernel of its own to each pixel, around a grid of samples (DFN; LS-DFN Eqs. 2 and 5).

    .. math::
        sample_{n,a,b,o,y,x} = \sum_{cij} X_{n,c,\,tap(y_h,i),\,tap(x_h,j)} \, kernel_{n,o,c,i,j,y,x}

    Sample (a, b), 0 <= a, b < s, is centred at y_h = y + (a - (s-1)//2)*sample_stride and likewise in x; its tap (i, j)
    reads row y_h + (i - (kh-1)//2)*dilation. A read outside the image contributes 0. One sample is the dynamic filter
    network.

    Parameters
    ----------
    x : Tensorensor (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every tensor of the call.
    kernel : Tensorensor (N, O, C, kh, kw, H, W)
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
    Tensor (N, O, H, W), or (N, s, s, O, H, W) for "none"
        Contiguous, of the dtype and device of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; NotImplementedError too where a gradient is differentiated again or in forward mode, for "max".

    Notes
    -----
    As of `ddf`, but for "max": that is differentiable once, in reverse mode.

    References
    ----------
    Dynamic Filter Networks, NIPS 2016. Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> x = torch.arange(6.0).reshape(1, 1, 2, 3)
    >>> kernel = torch.ones(1, 1, 1, 1, 1, 2, 3)
    >>> dynk_torch.dynamic_filter(x, kernel, samples=3)[0, 0]
    tensor([[ 8., 15., 12.],
            [ 8., 15., 12.]])
    """
    return call(_OPERATORS["dynamic_filter"], (x, kernel), (samples, sample_stride, dilation, reduce))


def ls_dfn(
    x: Tensor,
    across: Tensor | None,
    within: Tensor | None,
    sample_attention: Tensor | None = None,
    position_attention: Tensor | None = None,
    *,
    samples: int,
    sample_stride: int,
    dilation: int | tuple[int, int] = 1,
    kernel_residual: bool = True,
    attention_residual: bool | tuple[bool, bool] = True,
    reduce: str = "sum",
) -> Tensor:
    r"""Apply dynamic filters with a large sampling field (LS-DFN Eqs. 4 and 5).

    .. math::
        K_{o,c,i,j}(y, x) &= within_{o,i,j,y,x} + [(i,j) = centre] \, (across_{o,c,y,x} + 1/C) \\
        sample_{a,b,o,y,x} &= A^s_{o,a,b,y,x} \sum_{cij} X_{c,\,tap(y_h,i),\,tap(x_h,j)} \,
            K_{o,c,i,j}(y, x) \, A^p_{o,i,j,y_h,x_h}

    for each image of the batch, with samples and taps as of `dynamic_filter`. The centre of the kernel is
    ((kh-1)//2, (kw-1)//2). 1/C is added with `kernel_residual` only. The attentions are 1 + the tensors given, or
    these alone without `attention_residual`, and 1 where none is given.

    Parameters
    ----------
    x : Tensorensor (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every tensor of the call.
    across : Tensorensor (N, O, C, H, W) or None
        The part of the kernel that mixes channels, at its centre. None is 0.
    within : Tensorensor (N, O, kh, kw, H, W) or None
        The part of the kernel that is shared by all input channels. None is 0.
    sample_attention : Tensorensor (N, O, s, s, H, W), optional
        Weighs the samples of each pixel.
    position_attention : Tensorensor (N, O, kh, kw, H, W), optional
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
    Tensor (N, O, H, W), or (N, s, s, O, H, W) for "none"
        Contiguous, of the dtype and device of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `dynamic_filter`.

    Notes
    -----
    As of `dynamic_filter`.

    References
    ----------
    Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> x = torch.arange(12.0).reshape(1, 2, 2, 3)
    >>> across, within = torch.zeros(1, 1, 2, 2, 3), torch.zeros(1, 1, 3, 3, 2, 3)
    >>> dynk_torch.ls_dfn(x, across, within, samples=3, sample_stride=1)[0, 0]
    tensor([[20., 33., 24.],
            [20., 33., 24.]])
    """
    residual = (attention_residual,) * 2 if isinstance(attention_residual, bool) else attention_residual
    arrays = (x, across, within, sample_attention, position_attention)
    options = (samples, sample_stride, dilation, kernel_residual, residual, reduce)
    return call(_OPERATORS["ls_dfn"], arrays, options)


def adaptive_dilation_conv2d(
    x: Tensor,
    weight: Tensor,
    dilation_weights: Tensor,
    bias: Tensor | None = None,
    *,
    dilations: Sequence[int | tuple[int, int]] = (1, 2, 4),
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolve with a dilation of its own for each pixel, or a mixture of dilations (PAD Eq. 1).

    .. math::
        out_{n,o,y,x} = bias_o + \sum_{cij} weight_{o,c,i,j} \sum_d P_{n,d,y,x} \, X_{n,c,\,tap_d(y,i),\,tap_d(x,j)}

    Tap (i, j) of candidate d reads row y*stride + (i - (kh-1)//2)*dilations[d], and likewise in x. A read outside the
    image contributes 0; Ho = ceil(H/stride), Wo = ceil(W/stride).

    Parameters
    ----------
    x : Tensor (N, C, H, W)
        The image. float16, bfloat16, float32 or float64, like every floating tensor of the call.
    weight : Tensor (O, C/groups, kh, kw)
        The kernel, as of `torch.nn.Conv2d`.
    dilation_weights : Tensor (N, D, Ho, Wo), or Tensor of int32 or int64 (N, Ho, Wo)
        The weight P of each candidate at each pixel; they need not sum to 1. Or the index into `dilations` of the one
        candidate that a pixel takes; there is no gradient for it.
    bias : Tensor (O,), optional
        Is added to the output.
    dilations : sequence of int or (h, w), default (1, 2, 4)
        The step between taps of each of the D candidates, 1 to 8 of them.
    stride : int or (h, w), default 1
        Step between output pixels.
    groups : int, default 1
        Blocks of channels that are convolved each by itself; divides C and O. C groups are a depth-wise convolution.

    Returns
    -------
    Tensor (N, O, Ho, Wo)
        Contiguous, of the dtype and device of `x`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`; ValueError too on the CPU for an index that is not one of a candidate. On CUDA such a pixel becomes
        NaN.

    Notes
    -----
    As of `ddf`. The cost is that of one convolution; the workspace is that of `dynk.adaptive_dilation_conv2d`.

    References
    ----------
    PAD-Nets: Learning Dynamic Receptive Fields via Pixel-wise Adaptive Dilation, ICLR 2020 submission.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> x = torch.arange(5.0).reshape(1, 1, 1, 5)
    >>> weight = torch.ones(1, 1, 1, 3)
    >>> dynk_torch.adaptive_dilation_conv2d(x, weight, torch.full((1, 2, 1, 5), 0.5), dilations=(1, 2))[0, 0]
    tensor([[1.5000, 3.5000, 6.0000, 6.5000, 6.5000]])
    >>> dynk_torch.adaptive_dilation_conv2d(x, weight, torch.tensor([[[0, 0, 1, 1, 1]]]), dilations=(1, 2))[0, 0]
    tensor([[1., 3., 6., 4., 6.]])
    """
    arrays = (x, weight, dilation_weights, bias)
    return call(_OPERATORS["adaptive_dilation_conv2d"], arrays, (dilations, stride, groups))


def gumbel_softmax(
    logits: Tensor,
    *,
    tau: float = 1.0,
    hard: bool = False,
    noise: bool = True,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    offset: int = 0,
    axis: int = 1,
) -> Tensor:
    r"""Draw a choice among candidates that can be differentiated (PAD Eq. 2).

    .. math::
        out = softmax((logits + g) / \tau), \quad g = -\log(-\log u)

    over `axis`, with u uniform on (0, 1) and drawn anew for each element: the arg-max of logits + g is a candidate
    drawn with the probabilities softmax(logits).

    Parameters
    ----------
    logits : Tensor of any shape
        Unnormalised log-probabilities, such as (N, D, H, W) of D candidates for each pixel. float16, bfloat16, float32
        or float64.
    tau : float, default 1.0
        Temperature: towards 0 the output becomes one-hot, far above 1 uniform.
    hard : bool, default False
        Whether to return the one-hot of the arg-max instead, the first of equal ones. The gradient stays that of the
        soft output (straight-through).
    noise : bool, default True
        Whether to add noise; False for evaluation.
    seed : int or Tensor of int64 or int32, optional
        Which noise, as of `dynk.gumbel_softmax`, which draws the same for the same seed. Drawn from `generator` if
        None: `torch.manual_seed` reproduces it.
    generator : torch.Generator, optional
        Where the seed is drawn from; PyTorch's own generator of the device if None. Not under `torch.compile`.
    offset : int, default 0
        Is added to the number of each element.
    axis : int, default 1
        The axis of the candidates; a negative one counts from the end.

    Returns
    -------
    Tensor of the shape of `logits`
        Contiguous, of its dtype and device. Where a logit is NaN so are all candidates that it competes with.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `ddf`.

    Notes
    -----
    As of `ddf`. All is computed in float64 and rounded once, whatever the dtype. Under `torch.vmap` the seed is drawn
    as its `randomness` says; samples that share a seed share the noise.

    References
    ----------
    Categorical reparameterization with Gumbel-softmax, ICLR 2017. Parallel random numbers: as easy as 1, 2, 3, SC 2011.

    Examples
    --------
    >>> import torch, dynk_torch
    >>> logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    >>> dynk_torch.gumbel_softmax(logits, noise=False)
    tensor([[0.1000, 0.2000, 0.7000]])
    >>> dynk_torch.gumbel_softmax(logits.expand(10000, 3), seed=0, hard=True).mean(0).round(decimals=2)
    tensor([0.1000, 0.2000, 0.7000])
    """
    if not noise and (seed is not None or generator is not None):
        msg = "gumbel_softmax: noise must be True where a seed or a generator is given, got False"
        raise ValueError(msg)
    if seed is not None and generator is not None:
        msg = "gumbel_softmax: generator must be None where a seed is given, got both"
        raise ValueError(msg)
    if noise and not isinstance(seed, Tensor):
        seed = _seed(logits, seed, generator)
    return call(_OPERATORS["gumbel_softmax"], (logits, seed), (tau, hard, offset, axis))


def _seed(logits: Any, seed: int | None, generator: torch.Generator | None) -> Tensor:
    """Return a seed on the device of the logits: a number, or one that is drawn."""
    if not isinstance(logits, Tensor):
        msg = f"gumbel_softmax: logits must be a torch.Tensor, got {type(logits).__name__}"
        raise TypeError(msg)
    if seed is None:
        return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=logits.device, generator=generator)
    number = seed_number("gumbel_softmax", seed)
    return torch.full((1,), number - (number >> 63 << 64), dtype=torch.int64, device=logits.device)
