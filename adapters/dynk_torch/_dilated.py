"""Pixel-wise adaptive dilation, for PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynk._operator import operators
from dynk.dilated._gumbel_softmax import seed_number
from dynk_torch._autograd import call

_OPERATORS = operators()


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
    if torch.compiler.is_compiling():  # a graph takes options as the schema has them: pairs
        dilations = [(d, d) if isinstance(d, int) else d for d in dilations]
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
