"""What the tests of the layers share: one of each, small, with what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from dynk_torch import nn as layers
from torch import Tensor, nn


class Case(NamedTuple):
    """How a layer is made, the shapes of what it is called with, and the shape of its output."""

    make: Callable[..., nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]

    def layer(self, seed: int = 0, **made: Any) -> nn.Module:
        torch.manual_seed(seed)
        return self.make(**made)

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(shape, generator=generator).to(dtype) for shape in self.inputs]


CASES = {
    "ddf": Case(lambda **m: layers.DDF(10, stride=2, bias=True, **m), ((2, 10, 7, 6),), (2, 10, 4, 3)),
    "ddf-look": Case(
        lambda **m: layers.DDF(10, (3, 5), dilation=2, groups=2, combine="add", predictor_size=3, **m),
        ((2, 10, 5, 6),),
        (2, 10, 5, 6),
    ),
    "ddf-up": Case(lambda **m: layers.DDFUp(6, 3, groups=2, bias=True, **m), ((2, 6, 4, 3),), (2, 6, 12, 9)),
    "ddf-up-guided": Case(
        lambda **m: layers.DDFUp(6, guidance_channels=4, **m), ((2, 6, 4, 3), (2, 4, 4, 3)), (2, 6, 8, 6)
    ),
    "ls-dfn": Case(
        lambda **m: layers.LSDFN(5, 7, samples=3, sample_stride=2, features=4, filters=3, **m),
        ((2, 5, 6, 5),),
        (2, 7, 6, 5),
    ),
    "ls-dfn-bare": Case(
        lambda **m: layers.LSDFN(
            5, 3, samples=2, sample_stride=1, features=4, filters=3, attention=False, post=False, reduce="mean", **m
        ),
        ((2, 5, 6, 5),),
        (2, 3, 6, 5),
    ),
    "dynamic-filter": Case(lambda **m: layers.DynamicFilter(3, 2, **m), ((2, 3, 5, 6),), (2, 2, 5, 6)),
    "dynamic-filter-guided": Case(
        lambda **m: layers.DynamicFilter(2, 2, guidance_channels=3, softmax=False, samples=2, sample_stride=2, **m),
        ((2, 2, 5, 6), (2, 3, 5, 6)),
        (2, 2, 5, 6),
    ),
    "involution": Case(
        lambda **m: layers.Involution(8, 5, stride=2, group_channels=4, **m), ((2, 8, 7, 6),), (2, 8, 4, 3)
    ),
    "carafe": Case(
        lambda **m: layers.CARAFE(6, 3, 3, groups=2, compressed_channels=4, **m), ((2, 6, 4, 3),), (2, 6, 12, 9)
    ),
    "dk-local": Case(
        lambda **m: layers.DeformableKernelConv2d(4, 6, (3, 2), scope=(4, 3), stride=(1, 2), padding=1, **m),
        ((2, 4, 5, 6),),
        (2, 6, 5, 4),
    ),
    "dk-both": Case(
        lambda **m: layers.DeformableKernelConv2d(
            6, 6, 3, scope=4, padding=2, dilation=2, groups=6, offset_groups=2, data_offsets=True, **m
        ),
        ((2, 6, 5, 6),),
        (2, 6, 5, 6),
    ),
    "dk-global": Case(
        lambda **m: layers.GlobalDeformableKernelConv2d(5, 5, 3, scope=4, stride=2, padding=1, groups=5, **m),
        ((2, 5, 7, 6),),
        (2, 5, 4, 3),
    ),
    "dk-global-1x1": Case(
        lambda **m: layers.GlobalDeformableKernelConv2d(5, 3, 1, scope=2, bias=False, **m),
        ((2, 5, 4, 6),),
        (2, 3, 4, 6),
    ),
}
