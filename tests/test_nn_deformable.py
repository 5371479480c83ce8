"""The layers of deformable kernels: how they start, what they infer, and the sizes of the paper's networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dynk_torch
import pytest
import torch
from dynk_torch.nn import DeformableKernelConv2d, GlobalDeformableKernelConv2d, parameter_groups
from torch import nn

from dynk.commands.tables.networks import DepthwiseBottleneck, MobileNetV2, ResNet, on_meta

LAYERS = [DeformableKernelConv2d, GlobalDeformableKernelConv2d]
each_kind = pytest.mark.parametrize("kind", LAYERS)
CONVOLUTIONS: dict[str, Callable[[], nn.Conv2d]] = {
    "depth-wise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "strided": lambda: nn.Conv2d(6, 6, (3, 5), stride=2, padding=(2, 2), dilation=(2, 1), groups=6, bias=False),
    "pointwise": lambda: nn.Conv2d(6, 4, 1, stride=(1, 2)),
}
DENSE: dict[str, Callable[[], nn.Conv2d]] = {
    "dense": lambda: nn.Conv2d(6, 4, 3),
    "grouped": lambda: nn.Conv2d(6, 4, (2, 3), stride=(1, 2), padding=(1, 0), groups=2),
    "same": lambda: nn.Conv2d(6, 4, 3, padding="same", dilation=2),
}
STARTS = [(kind, make) for kind in LAYERS for make in CONVOLUTIONS.values()]
STARTS += [(DeformableKernelConv2d, make) for make in DENSE.values()]


@pytest.mark.parametrize(("kind", "make"), STARTS)
@pytest.mark.parametrize("more", [0, 1, 2])
def test_a_layer_starts_as_the_convolution_that_it_came_from(kind: Any, make: Any, more: int) -> None:
    """Whatever the scope: it holds the weights such that the first points give them back."""
    torch.manual_seed(0)
    conv = make().eval()
    scope = tuple(k + more for k in conv.kernel_size)
    layer = kind.from_conv(conv, scope=scope)
    x = torch.randn(2, 6, 9, 10)
    torch.testing.assert_close(layer(x), conv(x), atol=1e-5, rtol=1e-4)
    assert layer.weight.shape[2:] == scope
    assert layer.bias is conv.bias
    assert (layer.weight is conv.weight) == (more == 0)
    assert not layer.training


@each_kind
def test_the_taps_start_uniformly_over_the_scope(kind: Any) -> None:
    layer = kind(4, 4, 3, scope=4, padding=1, groups=4)
    dy, dx = layer.offset.bias.detach().reshape(3, 3, 2).unbind(-1)
    points = torch.arange(3) + (4 - 3) / 2
    torch.testing.assert_close(points[:, None] + dy, torch.tensor([0, 1.5, 3])[:, None].expand(3, 3))
    torch.testing.assert_close(points + dx, torch.tensor([0, 1.5, 3]).expand(3, 3))
    assert not layer.offset.weight.any()


def test_offsets_are_inferred_from_the_image() -> None:
    """Local ones from pixel to pixel, global ones from image to image."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 7)
    for kind, shape in ((DeformableKernelConv2d, (2, 18, 6, 7)), (GlobalDeformableKernelConv2d, (2, 18))):
        layer = kind(4, 4, 3, scope=4, padding=1, groups=4)
        start = layer(x)
        nn.init.normal_(layer.offset.weight)
        assert not torch.allclose(layer(x), start)
        offsets = layer.offset(x if len(shape) == 4 else x.mean((2, 3)))
        assert offsets.shape == shape
        assert offsets.reshape(2, 18, -1).std(0).min() > 0


def test_global_kernels_are_those_of_local_ones_with_the_same_offsets() -> None:
    torch.manual_seed(0)
    x, offset = torch.randn(2, 4, 6, 7), torch.randn(18)
    one, other = (kind(4, 4, 3, scope=4, padding=1, groups=4) for kind in LAYERS)
    other.load_state_dict({**other.state_dict(), "weight": one.weight, "bias": one.bias})
    for layer in (one, other):
        layer.offset.bias.data.copy_(offset)
    torch.testing.assert_close(one(x), other(x), atol=1e-5, rtol=1e-4)


def test_training_moves_the_points_of_a_scope() -> None:
    """A scope of equal values would have no gradient for its points, and stay one of equal values for ever."""
    torch.manual_seed(0)
    layer = GlobalDeformableKernelConv2d.from_conv(nn.Conv2d(3, 2, 1), scope=2)
    layer(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in layer.parameters())


def test_what_infers_offsets_learns_at_a_rate_of_its_own() -> None:
    local = DeformableKernelConv2d(4, 4, 3, padding=1, data_offsets=True)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), local, GlobalDeformableKernelConv2d(4, 2, 1, scope=2))
    rest, inferring = parameter_groups(network, 0.5, 0.1)
    assert (rest["lr"], inferring["lr"]) == (0.5, 0.05)
    generators = [local.offset, local.data_offset, network[2].offset]
    assert {id(p) for p in inferring["params"]} == {id(p) for layer in generators for p in layer.parameters()}
    assert len(rest["params"]) + len(inferring["params"]) == len(list(network.parameters()))
    torch.optim.SGD(parameter_groups(network, 0.5, 0.1))


# ---- DK Table 1 ------------------------------------------------------------------------------------------------------


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MobileNet-V2": MobileNetV2,
    "ResNet-50-DW": lambda: ResNet(DepthwiseBottleneck, (3, 4, 6, 3)),
}


def millions(network: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)


@pytest.mark.parametrize(
    ("network", "kind", "plain", "deformable"),
    [
        ("MobileNet-V2", DeformableKernelConv2d, 3.5, 4.7),
        ("MobileNet-V2", GlobalDeformableKernelConv2d, 3.5, 3.7),
        ("ResNet-50-DW", DeformableKernelConv2d, 23.7, 25.0),
    ],
)
def test_networks_have_as_many_parameters_as_in_the_paper(
    network: str, kind: Any, plain: float, deformable: float
) -> None:
    """In millions: depth-wise 3x3 kernels of a scope of 4x4 in the place of all depth-wise convolutions."""
    made = on_meta(NETWORKS[network])
    assert millions(made) == plain
    dynk_torch.convert(made, kind, where=lambda _, conv: conv.groups > 1, scope=4)
    assert sum(isinstance(layer, kind) for layer in made.modules()) == {"MobileNet-V2": 17, "ResNet-50-DW": 16}[network]
    assert millions(made) == deformable


@pytest.mark.parametrize("kind", LAYERS)
def test_a_converted_network_learns(kind: Any) -> None:
    torch.manual_seed(0)
    network = MobileNetV2(5, stages=((1, 16, 1, 1), (4, 16, 2, 2)))
    dynk_torch.convert(network, kind, where=lambda _, conv: conv.groups > 1, scope=4)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_layers() -> None:
    with pytest.raises(
        ValueError, match=r"^DeformableKernelConv2d: scope must be at least kernel_size = \(3, 3\), got"
    ):
        DeformableKernelConv2d(4, 4, 3, scope=(4, 2))
    with pytest.raises(ValueError, match=r"^DeformableKernelConv2d: offset_groups must divide channels = 4, got 3"):
        DeformableKernelConv2d(4, 4, 3, offset_groups=3)
    with pytest.raises(ValueError, match=r"^GlobalDeformableKernelConv2d: the layer must be depth-wise with an odd"):
        GlobalDeformableKernelConv2d(4, 4, 3, scope=4, groups=4)


@pytest.mark.parametrize(
    ("kind", "conv"),
    [
        (DeformableKernelConv2d, nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
        (DeformableKernelConv2d, nn.Conv2d(4, 4, 2, padding="same")),
        (GlobalDeformableKernelConv2d, nn.Conv2d(4, 4, 3, groups=4)),
        (GlobalDeformableKernelConv2d, nn.Conv2d(4, 4, 3, padding=1)),
        (GlobalDeformableKernelConv2d, nn.Conv2d(4, 8, 3, padding=1, groups=4)),
        (GlobalDeformableKernelConv2d, nn.Conv2d(4, 4, 2, padding="same", groups=4)),
        (GlobalDeformableKernelConv2d, nn.Conv2d(4, 4, 1, groups=2)),
        (GlobalDeformableKernelConv2d, nn.Conv2d(4, 4, 1, padding=1)),
    ],
)
def test_what_cannot_be_replaced_is_left_or_refused(kind: Any, conv: nn.Conv2d) -> None:
    network = nn.Sequential(conv)
    assert dynk_torch.convert(network, kind)[0] is conv
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: conv must be .*, got Conv2d\("):
        kind.from_conv(conv)
