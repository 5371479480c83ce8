"""`convert` on whole networks."""

from __future__ import annotations

from typing import Any

import dynk_torch
import pytest
import torch
from dynk_torch.nn import DDF, Involution, PADConv2d
from torch import nn

from dynk.commands.tables.networks import BasicBlock, Bottleneck, MobileNetV2, ResNet

NETWORKS: dict[str, Any] = {
    "resnet-basic": lambda: ResNet(BasicBlock, (1, 2, 1, 1), 5, widths=(16, 16, 32, 32)),
    "resnet-bottleneck": lambda: ResNet(Bottleneck, (1, 1, 1, 1), 5, widths=(16, 16, 16, 16)),
    "mobilenet": lambda: MobileNetV2(5, stages=((1, 16, 1, 1), (4, 16, 2, 2))),
}
REPLACED = {"resnet-basic": 9, "resnet-bottleneck": 4, "mobilenet": 3}


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in network.modules())


@pytest.mark.parametrize("layer", [DDF, Involution])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network_runs_and_learns(name: str, layer: Any) -> None:
    torch.manual_seed(0)
    network, images = NETWORKS[name](), torch.randn(2, 3, 32, 32)
    before, size = count(network, nn.Conv2d), network(images).shape
    plain = [module for module in network.modules() if type(module) is nn.Conv2d and layer.replaces(module)]
    converted = dynk_torch.convert(network, layer)
    assert converted is network
    assert count(network, layer) == len(plain) == REPLACED[name]
    assert before > len(plain)
    scores = network(images)
    assert scores.shape == size
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_new_layer_is_shaped_as_the_old_one() -> None:
    conv = nn.Conv2d(8, 8, (3, 5), stride=(2, 1), padding=(2, 2), dilation=(2, 1), groups=4).double().eval()
    layer = DDF.from_conv(conv, groups=2, combine="add")
    x = torch.randn(1, 8, 9, 7, dtype=torch.float64)
    assert layer(x).shape == conv(x).shape
    assert layer.bias is conv.bias
    assert not layer.training
    assert (layer.groups, layer.combine, layer.dilation) == (2, "add", (2, 1))
    wide = Involution.from_conv(nn.Conv2d(16, 16, 3, 2, padding=1), kernel_size=7)
    assert (wide.kernel_size, wide.stride) == ((7, 7), 2)


def test_where_chooses() -> None:
    network = ResNet(BasicBlock, (1, 1, 1, 1), widths=(8, 8, 8, 8))
    dynk_torch.convert(network, DDF, where=lambda name, conv: name.startswith("layer3") and conv.kernel_size == (3, 3))
    assert {name for name, layer in network.named_modules() if isinstance(layer, DDF)} == {
        "layer3.0.conv1",
        "layer3.0.conv2",
    }


def test_a_shared_convolution_stays_shared() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    network = dynk_torch.convert(nn.Sequential(conv, nn.ReLU(), conv), DDF)
    assert isinstance(network[0], DDF)
    assert network[0] is network[2]


def test_a_lone_convolution_becomes_the_layer() -> None:
    assert isinstance(dynk_torch.convert(nn.Conv2d(4, 4, 3, padding=1), DDF), DDF)


def test_a_function_makes_any_layer() -> None:
    network = dynk_torch.convert(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)), lambda conv: nn.Conv2d(conv.in_channels, 6, 1)
    )
    assert [conv.kernel_size for conv in network] == [(1, 1), (1, 1)]
    assert network[1].in_channels == 6


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_what_cannot_be_replaced_is_left_or_refused(conv: nn.Conv2d) -> None:
    network = nn.Sequential(conv)
    assert dynk_torch.convert(network, DDF)[0] is conv
    with pytest.raises(ValueError, match=r"^DDF: conv must have as many outputs as inputs, .*, got Conv2d\("):
        dynk_torch.convert(network, DDF, where=lambda *_: True)


def test_involution_has_one_stride() -> None:
    conv = nn.Conv2d(16, 16, 3, (1, 2), padding=1)
    assert not Involution.replaces(conv)
    with pytest.raises(ValueError, match=r"^Involution: conv must have one stride for both axes, got \(1, 2\)"):
        Involution.from_conv(conv)


def test_a_layer_with_a_state_cannot_be_dropped_in() -> None:
    with pytest.raises(TypeError, match=r"^convert: layer must be able to stand in .*, got PADConv2d"):
        dynk_torch.convert(nn.Sequential(), PADConv2d)
