"""The rows: what is counted, next to what the papers print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import dynk_torch
from dynk_torch.nn import DDF, LSDFN, DeformableKernelConv2d, GlobalDeformableKernelConv2d, PADConv2d
from torch import nn

from dynk.commands.tables.counting import AUTHOR_FORMULAS, count
from dynk.commands.tables.networks import DepthwiseBottleneck, MobileNetV2, ResNet, on_meta, resnet

IMAGE = (1, 3, 224, 224)


class Row(NamedTuple):
    """A figure of a table."""

    table: str
    row: str
    quantity: str
    counted: float
    published: float | None
    digits: int  # behind the decimal point, as the paper prints it
    remark: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether the counted figure, rounded as the paper rounds, is the published one; None if there is none."""
        if self.published is None:
            return None
        return round(self.counted, self.digits) == round(self.published, self.digits)


def complexity() -> list[Row]:
    """DDF Table 1: the formulae for c channels, n pixels, k x k taps and a bottleneck of sigma*c channels."""
    c, k, side = 320, 3, 28
    n, narrow, table = side * side, int(0.2 * c), f"DDF Table 1 (c = {c}, k = {k}, n = {side * side}, sigma = 0.2)"
    layers: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
        "convolution": (lambda: nn.Conv2d(c, c, k, padding=1), c * c * k * k, 2 * n * c * c * k * k),
        "depth-wise": (lambda: nn.Conv2d(c, c, k, padding=1, groups=c), c * k * k, 2 * n * c * k * k),
        "DDF": (
            lambda: DDF(c, k),
            c * k * k + narrow * c * (1 + k * k),
            5 * n * c * k * k + 2 * narrow * c * (1 + k * k),
        ),
    }
    rows = []
    for name, (make, weights, flops) in layers.items():
        found = count(on_meta(make), (1, c, side, side))
        remark = "formula: ckk + sigma*cc(1 + kk); offsets and learned scales come on top" if name == "DDF" else ""
        rows.append(Row(table, name, "weights, k", found.weights / 1e3, weights / 1e3, 3, remark))
        remark = "formula: 5nckk + 2sigma*cc(1 + kk)" if name == "DDF" else ""
        rows.append(Row(table, name, "MFLOPs", found.flops / 1e6, flops / 1e6, 3, remark))
    return rows


def memory() -> list[Row]:
    """DDF Table 2: bytes that a call reads and writes, as a ratio to the convolution's."""
    N, C, H, W, k = 2, 256, 200, 300, 3
    images = 2 * N * C * H * W
    convolution = images + C * C * k * k
    filters = {
        "depth-wise": C * k * k,
        "DDF": N * k * k * (H * W + C),
        "dynamic filter, depth-wise": N * C * k * k * H * W,
    }
    table = "DDF Table 2 (2 x 256 x 200 x 300)"
    remark = "input, filters and output; the published column is an allocator's reading on a GPU, which this is not"
    return [
        Row(table, name, "memory / convolution", (images + size) / convolution, None, 2, remark)
        for name, size in filters.items()
    ]


def decoupled_networks() -> list[Row]:
    """DDF Tables 3c and 5: residual networks whose 3x3 convolutions are DDF where that keeps the channels."""
    published: dict[int, tuple[float, float, int]] = {50: (16.8, 2.298, 3), 101: (28.1, 4.1, 1), 18: (7.7, 0.4, 1)}
    reading = (
        "a DDF of squeeze 0.5 and a 1x1 convolution for each 3x3 one: the paper does not say, but both its figures fit"
    )
    rule = "with normalisation, pooling and residual sums, one for each element, and two for each tap of a DDF"
    rows = []
    for depth, (parameters, gflops, digits) in published.items():
        network = on_meta(lambda depth=depth: resnet(depth))  # type: ignore[misc]
        original = count(network, IMAGE)
        network = with_pointwise(network) if depth == 18 else dynk_torch.convert(network, DDF)
        found, as_author = count(network, IMAGE), count(network, IMAGE, formulas=AUTHOR_FORMULAS)
        table, name, remark = "DDF Tables 3c and 5", f"ResNet{depth}", reading if depth == 18 else ""
        rows += [
            Row(table, name, "parameters, M", original.parameters / 1e6, None, 1),
            Row(table, name, "GFLOPs", original.flops / 2e9, None, 3),
            Row(table, f"DDF-{name}", "parameters, M", found.parameters / 1e6, parameters, 1, remark),
            Row(table, f"DDF-{name}", "GFLOPs", found.flops / 2e9, None, 3, remark),
            Row(table, f"DDF-{name}", "GFLOPs, as the author counts", as_author.flops / 2e9, gflops, digits, rule),
        ]
    return rows


def with_pointwise(network: ResNet) -> ResNet:
    """Put a DDF and a 1x1 convolution, which may widen, in the place of each 3x3 convolution."""
    for block in network.modules():
        for name, conv in list(block.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                mixing = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False, device="meta")
                ddf = DDF(conv.in_channels, 3, stride=conv.stride, squeeze=0.5, device="meta")  # type: ignore[arg-type]
                setattr(block, name, nn.Sequential(ddf, mixing))
    return network


def large_field() -> list[Row]:
    """LS-DFN section 3: outputs of the branches, C = 128 features, C' = 32 filters, s = 5."""
    layer = on_meta(lambda: LSDFN(256, 256, samples=5, sample_stride=3))
    branches = {
        "kernel branch": (layer.kernel_branch, 32 * (128 + 9), "C'(C + kk)"),
        "attention branch": (layer.attention_branch, 32 * (25 + 9), "C'(ss + kk)"),
    }
    return [
        Row("LS-DFN (C = 128, C' = 32, k = 3, s = 5)", name, "outputs", branch.out_channels, published, 0, formula)
        for name, (branch, published, formula) in branches.items()
        if branch is not None
    ]


def adaptive_dilation() -> list[Row]:
    """PAD Table 6: weights that the priors of ResNet-50's second stage add."""
    added = 0
    for _ in range(4):
        conv = on_meta(lambda: nn.Conv2d(128, 128, 3, padding=1))
        layer = PADConv2d.from_conv(conv, dilations=(1, 2), prior="markov")
        added += count_parameters(layer) - count_parameters(conv)
    remark = "about 1K by the text; of the other rows neither the layers nor the candidates are known"
    return [Row("PAD Table 6", "ResNet-50, stage 2, D = 2, Markov", "added weights, K", added / 1e3, 1.0, 1, remark)]


def deformable_networks() -> list[Row]:
    """DK Table 1: networks whose depth-wise 3x3 kernels are sampled from a scope of 4x4."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "MobileNet-V2": MobileNetV2,
        "ResNet-50-DW": lambda: ResNet(DepthwiseBottleneck, (3, 4, 6, 3)),
    }
    published: dict[tuple[str, str], tuple[Any, float | None]] = {
        ("MobileNet-V2", ""): (None, 3.5),
        ("MobileNet-V2", ", global DK"): (GlobalDeformableKernelConv2d, 3.7),
        ("MobileNet-V2", ", local DK"): (DeformableKernelConv2d, 4.7),
        ("ResNet-50-DW", ""): (None, 23.7),
        ("ResNet-50-DW", ", global DK"): (GlobalDeformableKernelConv2d, None),
        ("ResNet-50-DW", ", local DK"): (DeformableKernelConv2d, 25.0),
    }
    rows = []
    for (name, kind), (layer, parameters) in published.items():
        network = on_meta(networks[name])
        if layer is not None:
            dynk_torch.convert(network, layer, where=lambda _, conv: conv.groups > 1, scope=4)
        found = count(network, IMAGE)
        rows += [
            Row("DK Table 1 (scope 4 x 4)", name + kind, "parameters, M", found.parameters / 1e6, parameters, 1),
            Row("DK Table 1 (scope 4 x 4)", name + kind, "GFLOPs", found.flops / 2e9, None, 2),
        ]
    return rows


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


TABLES: dict[str, Callable[[], list[Row]]] = {
    "ddf-1": complexity,
    "ddf-2": memory,
    "ddf-5": decoupled_networks,
    "ls-dfn": large_field,
    "pad-6": adaptive_dilation,
    "dk-1": deformable_networks,
}
