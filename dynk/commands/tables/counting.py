"""Weights and floating-point operations of a network, counted without running it.

PyTorch's own counter counts convolutions and matrix products; each operator of dynk adds its formula. What works on
single elements, such as normalisation, activation and pooling, counts nothing, unless it is asked to be counted as the
author of DDF counts. An addition and a multiplication are an operation each; the papers' GFLOPs are pairs of them, half
as many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import dynk_torch  # noqa: F401  # registers torch.ops.dynk
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Shape = Any  # a shape, or None for an argument that is absent


class Count(NamedTuple):
    """What a network has and does."""

    parameters: int
    weights: int  # parameters that are matrices and kernels, without offsets, scales and shifts
    flops: int


def count(network: nn.Module, *shapes: tuple[int, ...], formulas: Mapping[Any, Any] | None = None) -> Count:
    """Return the counts of a network for inputs of these shapes; its parameters may be on the device "meta"."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("meta"))
    inputs = [torch.empty(shape, device=device) for shape in shapes]
    with FlopCounterMode(display=False, custom_mapping=dict(formulas or FORMULAS)) as counter, torch.no_grad():
        network(*inputs)
    sizes = [(parameter.ndim, parameter.numel()) for parameter in network.parameters()]
    return Count(
        parameters=sum(size for _, size in sizes),
        weights=sum(size for ndim, size in sizes if ndim > 1),
        flops=counter.get_total_flops(),
    )


def filtering(x: Shape, spatial: Shape, channel: Shape, *_: Any, out_shape: Shape) -> int:
    """`ddf` and `ddf_upsample`: at each tap of each output, two filters make one, a product and a sum."""
    taps = math.prod(channel[-2:] if spatial is None else spatial[-4:-2])
    both = spatial is not None and channel is not None
    return int(math.prod(out_shape) * taps * (3 if both else 2))


def dynamic_filtering(x: Shape, kernel: Shape, samples: int, *_: Any, **__: Any) -> int:
    """`dynamic_filter`: a product and a sum for each number of a kernel, at each sample."""
    return int(2 * math.prod(kernel) * samples**2)


def large_field_filtering(
    x: Shape, across: Shape, within: Shape, to_samples: Shape, to_positions: Shape, samples: int, *_: Any, **__: Any
) -> int:
    """`ls_dfn`: at each sample the taps over the sum of the channels, and the channels at the centre.

    The sum over the channels is formed once for each pixel; attentions are a product each.
    """
    N, C, H, W = x
    filters = (within if across is None else across)[1]
    taps = 0 if within is None else math.prod(within[2:4])
    of_a_filter = 2 * taps + (0 if across is None else 2 * C) + (to_samples is not None)
    if to_positions is not None:
        of_a_filter += math.prod(to_positions[2:4])
    return int(N * H * W * (samples**2 * filters * of_a_filter + C))


def adaptive_dilation(x: Shape, weight: Shape, chosen: Shape, *_: Any, out_shape: Shape) -> int:
    """`adaptive_dilation_conv2d`: a convolution, and the mixture of what it reads."""
    mixture = 2 * chosen[1] * x[1] * math.prod(weight[2:]) if len(chosen) == 4 else 0
    return int(out_shape[0] * math.prod(out_shape[2:]) * (2 * math.prod(weight) + mixture))


def deformable_convolution(
    x: Shape, weight: Shape, kernel_offset: Shape, data_offset: Shape, mask: Shape, *_: Any, out_shape: Shape
) -> int:
    """`deformable_conv2d`: the convolution's, and 8 for each bilinear sample, four products and sums.

    Where the kernel is sampled and has several inputs, a pixel's taps are spread over the scope instead, and the whole
    scope is multiplied.
    """
    (outputs, per_group, *scope), C = weight, x[1]
    taps = math.prod(scope if kernel_offset is None else kernel_offset[2:4])
    of_a_pixel = C * taps * ((8 if data_offset is not None else 0) + (mask is not None))
    if kernel_offset is None:
        of_a_pixel += 2 * math.prod(weight)
    elif per_group == 1:
        of_a_pixel += outputs * taps * (8 + 2)
    else:
        of_a_pixel += 8 * C * taps + 2 * math.prod(weight)
    return int(out_shape[0] * math.prod(out_shape[2:]) * of_a_pixel)


def kernel_sampling(*_: Any, out_shape: Shape) -> int:
    """`sample_kernel`: a bilinear sample for each tap."""
    return int(8 * math.prod(out_shape))


OPERATORS = torch.ops.dynk
FORMULAS: dict[Any, Any] = {
    OPERATORS.ddf: filtering,
    OPERATORS.ddf_upsample: filtering,
    OPERATORS.dynamic_filter: dynamic_filtering,
    OPERATORS.ls_dfn: large_field_filtering,
    OPERATORS.adaptive_dilation_conv2d: adaptive_dilation,
    OPERATORS.deformable_conv2d: deformable_convolution,
    OPERATORS.sample_kernel: kernel_sampling,
}


def author_filtering(x: Shape, spatial: Shape, channel: Shape, *_: Any, out_shape: Shape) -> int:
    """`ddf` as its author counts: at each tap a pair that makes one of two filters, and a pair that applies it."""
    taps = math.prod(channel[-2:] if spatial is None else spatial[-4:-2])
    return int(2 * math.prod(out_shape) * taps * ((spatial is not None) + (channel is not None)))


def each_element(x: Shape, *_: Any, **__: Any) -> int:
    """One of the papers' GFLOPs, a pair, for each element that goes in."""
    return int(2 * math.prod(x))


# As the author of DDF counts, https://github.com/theFoxofSky/ddfnet/issues/16; docs/tables.md has it in words.
AUTHOR_FORMULAS: dict[Any, Any] = FORMULAS | {
    OPERATORS.ddf: author_filtering,
    OPERATORS.filter_norm: each_element,
    torch.ops.aten._native_batch_norm_legit: each_element,
    torch.ops.aten._native_batch_norm_legit_no_training: each_element,
    torch.ops.aten.mean: each_element,  # which global average pooling is
    torch.ops.aten.add: each_element,
}
