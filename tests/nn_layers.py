"""What the tests of the layers share: one of each, small, with what it is called with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from dynk_torch import nn as layers
from torch import Tensor, nn

Shape = tuple[int, ...]


class Case(NamedTuple):
    """What a layer is made of, the shapes of what it is called with, and the shape of its output."""

    name: str
    options: dict[str, Any]
    inputs: tuple[Shape, ...]
    output: Shape

    def layer(self, seed: int = 0, **made: Any) -> nn.Module:
        torch.manual_seed(seed)
        return getattr(layers, self.name)(**self.options, **made)

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(shape, generator=generator).to(dtype) for shape in self.inputs]


CASES = {
    "ddf": Case("DDF", {"channels": 10, "stride": 2, "bias": True}, ((2, 10, 7, 6),), (2, 10, 4, 3)),
    "ddf-look": Case(
        "DDF",
        {
            "channels": 10,
            "kernel_size": (3, 5),
            "dilation": 2,
            "stride": (1, 2),
            "groups": 2,
            "combine": "add",
            "predictor_size": 3,
        },
        ((2, 10, 5, 6),),
        (2, 10, 5, 3),
    ),
    "ddf-up": Case("DDFUp", {"channels": 6, "scale": 3, "groups": 2, "bias": True}, ((2, 6, 4, 3),), (2, 6, 12, 9)),
    "ddf-up-guided": Case("DDFUp", {"channels": 6, "guidance_channels": 4}, ((2, 6, 4, 3), (2, 4, 4, 3)), (2, 6, 8, 6)),
    "ls-dfn": Case(
        "LSDFN",
        {"in_channels": 5, "out_channels": 7, "samples": 3, "sample_stride": 2, "features": 4, "filters": 3},
        ((2, 5, 6, 5),),
        (2, 7, 6, 5),
    ),
    "ls-dfn-bare": Case(
        "LSDFN",
        {
            "in_channels": 5,
            "out_channels": 3,
            "samples": 2,
            "sample_stride": 1,
            "features": 4,
            "filters": 3,
            "attention": False,
            "post": False,
            "reduce": "mean",
        },
        ((2, 5, 6, 5),),
        (2, 3, 6, 5),
    ),
    "dynamic-filter": Case("DynamicFilter", {"in_channels": 3, "out_channels": 2}, ((2, 3, 5, 6),), (2, 2, 5, 6)),
    "dynamic-filter-guided": Case(
        "DynamicFilter",
        {
            "in_channels": 2,
            "out_channels": 2,
            "guidance_channels": 3,
            "softmax": False,
            "samples": 2,
            "sample_stride": 2,
        },
        ((2, 2, 5, 6), (2, 3, 5, 6)),
        (2, 2, 5, 6),
    ),
    "involution": Case(
        "Involution",
        {"channels": 8, "kernel_size": 5, "stride": 2, "group_channels": 4},
        ((2, 8, 7, 6),),
        (2, 8, 4, 3),
    ),
    "carafe": Case(
        "CARAFE",
        {"channels": 6, "scale": 3, "kernel_size": 3, "groups": 2, "compressed_channels": 4},
        ((2, 6, 4, 3),),
        (2, 6, 12, 9),
    ),
    "dk-local": Case(
        "DeformableKernelConv2d",
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 2),
            "scope": (4, 3),
            "stride": (1, 2),
            "padding": 1,
        },
        ((2, 4, 5, 6),),
        (2, 6, 5, 4),
    ),
    "dk-both": Case(
        "DeformableKernelConv2d",
        {
            "in_channels": 6,
            "out_channels": 6,
            "kernel_size": 3,
            "scope": 4,
            "padding": 2,
            "dilation": 2,
            "groups": 6,
            "offset_groups": 2,
            "data_offsets": True,
        },
        ((2, 6, 5, 6),),
        (2, 6, 5, 6),
    ),
    "dk-global": Case(
        "GlobalDeformableKernelConv2d",
        {
            "in_channels": 5,
            "out_channels": 5,
            "kernel_size": 3,
            "scope": 4,
            "stride": 2,
            "padding": 1,
            "groups": 5,
        },
        ((2, 5, 7, 6),),
        (2, 5, 4, 3),
    ),
    "dk-global-1x1": Case(
        "GlobalDeformableKernelConv2d",
        {"in_channels": 5, "out_channels": 3, "kernel_size": 1, "scope": 2, "bias": False},
        ((2, 5, 4, 6),),
        (2, 3, 4, 6),
    ),
}
