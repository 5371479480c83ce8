"""Dynamic filters with a large sampling field, for PyTorch."""

from __future__ import annotations

from torch import Tensor

from dynk._operator import operators
from dynk_torch._autograd import call

_OPERATORS = operators()


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
