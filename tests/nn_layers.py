"""What the tests of the layers share: one of each, small, with what it is called with; and one with every option."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from dynk_torch import nn as layers
from torch import Tensor, nn

Shape = tuple[int, ...]


class Case(NamedTuple):
    """What a layer is made of, the shapes of what it is called with, and the shape of its output.

    `state` is the shape of what comes out besides, of a layer that passes a state on. `draws` says that it draws in
    training, so that two frameworks agree in evaluation alone. `chooses` says that it takes the largest of several
    numbers, and another of them where rounding makes two equal.
    """

    name: str
    options: dict[str, Any]
    inputs: tuple[Shape, ...]
    output: Shape
    state: Shape | None = None
    draws: bool = False
    chooses: bool = False

    def layer(self, seed: int = 0, **made: Any) -> nn.Module:
        torch.manual_seed(seed)
        return getattr(layers, self.name)(**self.options, **made)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shapes of all that comes out."""
        return (self.output,) if self.state is None else (self.output, self.state)

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(shape, generator=generator).to(dtype) for shape in self.inputs]


def parts(out: Any) -> tuple[Any, ...]:
    """Return all that came out of a layer: its output, and its state if it has one."""
    return out if isinstance(out, tuple) else (out,)


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
    "filter-norm": Case(
        "FilterNorm",
        {"shape": (4, 3, 3), "learn_scale": True, "learn_shift": True},
        ((2, 4, 3, 3),),
        (2, 4, 3, 3),
    ),
    "pad": Case(
        "PADConv2d",
        {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 5), "stride": (1, 2), "groups": 2, "tau": 0.7},
        ((2, 4, 7, 6), (2, 3, 7, 6)),
        (2, 6, 7, 3),
        state=(2, 3, 7, 3),
        draws=True,
        chooses=True,
    ),
    "pad-gated": Case(
        "PADConv2d",
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "dilations": (2,), "prior": "gated", "hard": True},
        ((2, 4, 7, 6), (2, 1, 7, 6)),
        (2, 6, 7, 6),
        state=(2, 1, 7, 6),
        draws=True,
    ),
}

# Every option of every layer, none as it is by default, and the words in which layers inside of it show some of them.
EVERY_OPTION: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "DDF": (
        {
            "channels": 10,
            "kernel_size": (3, 5),
            "stride": (1, 2),
            "dilation": 2,
            "groups": 2,
            "combine": "add",
            "squeeze": 0.7,
            "predictor_size": 7,
            "gain": 3.0,
            "bias": True,
        },
        {"squeeze": "(squeeze): Conv2d(10, 7,", "predictor_size": "kernel_size=(7, 7)", "gain": "std=0.7746"},
    ),
    "DDFUp": (
        {
            "channels": 10,
            "scale": 3,
            "kernel_size": (3, 5),
            "dilation": (1, 2),
            "groups": 2,
            "combine": "add",
            "squeeze": 0.7,
            "guidance_channels": 4,
            "predictor_size": 7,
            "gain": 3.0,
            "bias": True,
        },
        {"squeeze": "(squeeze): Conv2d(10, 63,", "predictor_size": "kernel_size=(7, 7)", "gain": "std=0.7746"},
    ),
    "FilterNorm": (
        {
            "shape": (4, 3, 5, 1, 1),
            "axes": (-4, -3),
            "gain": 3.0,
            "learn_scale": True,
            "learn_shift": True,
            "eps": 1e-3,
        },
        {"gain": "std=0.7746"},
    ),
    "LSDFN": (
        {
            "in_channels": 5,
            "out_channels": 3,
            "samples": 2,
            "sample_stride": 4,
            "features": 6,
            "filters": 3,
            "kernel_size": (5, 3),
            "dilation": 2,
            "attention": False,
            "kernel_residual": False,
            "attention_residual": False,
            "reduce": "max",
            "predictor_size": 7,
            "post": False,
        },
        {"predictor_size": "kernel_size=(7, 7)"},
    ),
    "DynamicFilter": (
        {
            "in_channels": 3,
            "out_channels": 2,
            "kernel_size": (5, 3),
            "guidance_channels": 4,
            "softmax": False,
            "samples": 2,
            "sample_stride": 4,
            "dilation": 2,
            "reduce": "max",
            "predictor_size": 7,
        },
        {"predictor_size": "kernel_size=(7, 7)"},
    ),
    "Involution": (
        {"channels": 24, "kernel_size": (5, 3), "stride": 2, "dilation": 3, "group_channels": 8, "reduction": 3},
        {"reduction": "(reduce): Conv2d(24, 8,"},
    ),
    "CARAFE": (
        {
            "channels": 6,
            "scale": 3,
            "kernel_size": (5, 3),
            "groups": 2,
            "compressed_channels": 4,
            "predictor_size": 7,
        },
        {"compressed_channels": "(compress): Conv2d(6, 4,", "predictor_size": "kernel_size=(7, 7)"},
    ),
    "DeformableKernelConv2d": (
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 2),
            "scope": (4, 3),
            "stride": (1, 2),
            "padding": 1,
            "dilation": 2,
            "groups": 2,
            "bias": False,
            "offset_groups": 4,
            "data_offsets": True,
            "kernel_boundary": "zeros",
        },
        {},
    ),
    "GlobalDeformableKernelConv2d": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "kernel_size": (3, 5),
            "scope": (4, 6),
            "stride": (1, 2),
            "padding": (2, 4),
            "dilation": 2,
            "groups": 4,
            "bias": False,
            "kernel_boundary": "zeros",
        },
        {},
    ),
    "PADConv2d": (
        {
            "in_channels": 4,
            "out_channels": 6,
            "kernel_size": (3, 5),
            "dilations": (1, (2, 3)),
            "stride": 2,
            "groups": 2,
            "bias": False,
            "prior": "gated",
            "tau": 0.7,
            "hard": True,
        },
        {"prior": "(prior): GatedPrior("},
    ),
}
