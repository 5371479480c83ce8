"""Checkpoints of the authors' code: what the layers compute with them is the authors' formula."""

from __future__ import annotations

from typing import Any

import author_formulas
import pytest
import torch
from dynk_torch import convert
from dynk_torch.nn import (
    CARAFE,
    DDF,
    DDFUp,
    DeformableKernelConv2d,
    GlobalDeformableKernelConv2d,
    Involution,
    load_author_state_dict,
)
from torch import Tensor, nn

import dynk
from dynk.commands.tables.networks import Bottleneck

State = dict[str, Tensor]


def draw(shapes: dict[str, tuple[int, ...]]) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: tensor.abs() if name.endswith("running_var") else tensor for name, tensor in state.items()}


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def conv(name: str, outputs: int, inputs: int, size: int = 1) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    learned = {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}
    return learned | {f"{name}.num_batches_tracked": ()}


def channel_branch(name: str, channels: int, taps: int) -> dict[str, tuple[int, ...]]:
    narrow = int(channels * 0.2)
    return {
        **conv(f"{name}.1", narrow, channels),
        **conv(f"{name}.3", channels * taps, narrow),
        f"{name}.4.std": (channels * taps,),
    }


@pytest.mark.parametrize(
    ("options", "look"),
    [
        ({}, False),
        ({"combine": "add", "stride": 2}, False),
        ({"groups": 2, "dilation": 2, "kernel_size": 5}, False),
        ({"predictor_size": 3}, True),
    ],
)
def test_ddf_pack(options: dict[str, Any], look: bool) -> None:
    size, groups = options.get("kernel_size", 3), options.get("groups", 1)
    shapes = channel_branch("channel_branch", 10, size * size)
    shapes |= conv("spatial_branch.1" if look else "spatial_branch.0", groups * size * size, 10)
    if look:
        shapes |= {"spatial_branch.0.weight": (10, 1, 3, 3), "spatial_branch.0.bias": (10,)}
    state, x = draw(shapes), image(2, 10, 6, 8)
    layer = DDF(10, **options).double()
    before = {name: tensor.clone() for name, tensor in state.items()}
    load_author_state_dict(layer, state)
    assert all(torch.equal(state[name], before[name]) for name in before)
    expected = author_formulas.ddf_pack(
        x,
        state,
        size=size,
        stride=options.get("stride", 1),
        dilation=options.get("dilation", 1),
        combine=options.get("combine", "mul"),
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("joint", ["none", "flat", "nested"])
def test_ddf_up_pack(scale: int, joint: str) -> None:
    groups = 2 if joint == "flat" else 1
    guides = 10 if joint == "none" else 4
    shapes: dict[str, tuple[int, ...]] = {}
    for b in range(scale * scale):
        shapes |= channel_branch(f"channel_branch.{b}", 10, 9)
        behind = {"none": "0", "flat": "1", "nested": "1.0"}[joint]
        shapes |= conv(f"spatial_branch.{b}.{behind}", groups * 9, guides)
        if joint != "none":
            shapes |= {f"spatial_branch.{b}.0.weight": (guides, 1, 3, 3), f"spatial_branch.{b}.0.bias": (guides,)}
    state, x, guide = draw(shapes), image(2, 10, 3, 4), image(2, guides, 3, 4)
    combine = "add" if joint == "nested" else "mul"
    layer = DDFUp(10, scale, groups=groups, combine=combine, guidance_channels=None if joint == "none" else guides)
    load_author_state_dict(layer.double(), state)
    out = layer(x) if joint == "none" else layer(x, guide)
    expected = author_formulas.ddf_up_pack(
        x, x if joint == "none" else guide, state, scale=scale, size=3, combine=combine
    )
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_involution(stride: int, dilation: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {"conv1.conv.weight": (8, 32, 1, 1), **conv("conv2.conv", 2 * 9, 8)}
    state, x = draw(shapes | batch_norm("conv1.bn", 8)), image(2, 32, 6, 4)
    layer = Involution(32, 3, stride=stride, dilation=dilation).double().eval()
    load_author_state_dict(layer, state)
    expected = author_formulas.involution(x, state, size=3, stride=stride, dilation=dilation, group_channels=16)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("scale", [2, 3])
def test_carafe(scale: int) -> None:
    state = draw({**conv("channel_compressor", 4, 6), **conv("content_encoder", scale * scale * 9, 4, 3)})
    layer = CARAFE(6, scale, 3, compressed_channels=4).double()
    load_author_state_dict(layer, state)
    x = image(2, 6, 4, 5)
    torch.testing.assert_close(layer(x), author_formulas.carafe(x, state, scale=scale, size=3))


@pytest.mark.parametrize("boundary", ["zeros", "clip"])
@pytest.mark.parametrize(("author_groups", "groups"), [(1, 1), (1, 4), (2, 4), (4, 4)])
def test_local_deformable_kernels(boundary: str, author_groups: int, groups: int) -> None:
    state = draw({**conv("rotation_conv", author_groups * 18, 4, 3), "inner_conv.weight": (4, 1, 4, 4)})
    layer = DeformableKernelConv2d(
        4, 4, 3, scope=4, stride=2, padding=1, groups=4, bias=False, offset_groups=groups, kernel_boundary=boundary
    )
    load_author_state_dict(layer.double(), state)
    x = image(2, 4, 6, 5)
    expected = author_formulas.deformable_kernel(
        x, state, size=3, padding=1, dilation=1, stride=2, clip=boundary == "clip"
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dilation", [1, 2])
def test_deformable_kernels_that_move_points_of_the_image(dilation: int) -> None:
    state = draw({**conv("offset_conv", 18, 3, 3), "inner_conv.weight": (3, 1, 4, 4)})
    options: dict[str, Any] = {"padding": dilation, "dilation": dilation, "bias": False, "kernel_boundary": "zeros"}
    layer = DeformableKernelConv2d(3, 3, 3, scope=4, groups=3, data_offsets=True, **options)
    load_author_state_dict(layer.double(), state)
    x = image(2, 3, 6, 5)
    expected = author_formulas.deformable_kernel(
        x, state, size=3, padding=dilation, dilation=dilation, stride=1, clip=False
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("size", "groups"), [(3, 4), (1, 1)])
def test_global_deformable_kernels(size: int, groups: int) -> None:
    outputs = 4 if groups == 4 else 6
    shapes = {"weight": (outputs, 4 // groups, 4, 4), "fc.weight": (2 * size * size, 4), "fc.bias": (2 * size * size,)}
    state = draw(shapes)
    layer = GlobalDeformableKernelConv2d(4, outputs, size, scope=4, padding=size // 2, groups=groups, bias=False)
    load_author_state_dict(layer.double(), state)
    x = image(2, 4, 6, 5)
    with dynk.backend("reference"):
        out = layer(x)
    torch.testing.assert_close(out, author_formulas.global_deformable_kernel(x, state, size=size, padding=size // 2))


def test_interleaved_groups_of_deformable_kernels_need_a_group_for_each_channel() -> None:
    layer = DeformableKernelConv2d(4, 4, 3, scope=4, padding=1, groups=4, offset_groups=2)
    state = draw({**conv("rotation_conv", 36, 4, 3), "inner_conv.weight": (4, 1, 4, 4)})
    with pytest.raises(ValueError, match=r"^load_author_state_dict: .* offset_groups = 1 or 4, got Deformable"):
        load_author_state_dict(layer, state)


def test_a_whole_network_keeps_the_names_of_its_other_layers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 1), nn.Sequential(DDF(10)))
    names = {f"1.0.{name}": shape for name, shape in channel_branch("channel_branch", 10, 9).items()}
    state = draw({**conv("0", 10, 3), **names, **conv("1.0.spatial_branch.0", 9, 10)})
    load_author_state_dict(network, state)
    assert torch.equal(network[0].weight, state["0.weight"].float())
    assert torch.equal(network[1][0].channel_norm.scale, state["1.0.channel_branch.4.std"].float())


def bottleneck(name: str, inputs: int, *, projects: bool) -> dict[str, tuple[int, ...]]:
    """Return what the authors' code saves of a bottleneck of 10 channels, with 40 outputs."""
    shapes = {"conv1.weight": (10, inputs, 1, 1), **batch_norm("bn1", 10)}
    shapes |= channel_branch("conv2.channel_branch", 10, 9) | conv("conv2.spatial_branch.0", 9, 10)
    shapes |= batch_norm("bn2", 10) | {"conv3.weight": (40, 10, 1, 1)} | batch_norm("bn3", 40)
    if projects:
        shapes |= {"downsample.0.weight": (40, inputs, 1, 1), **batch_norm("downsample.1", 40)}
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def test_a_converted_network_computes_with_a_checkpoint_what_the_authors_does() -> None:
    state = draw(bottleneck("0", 3, projects=True) | bottleneck("1", 40, projects=False))
    network = nn.Sequential(Bottleneck(3, 10, stride=2), Bottleneck(40, 10, stride=1)).double().eval()
    convert(network, DDF)
    load_author_state_dict(network, state)
    x = expected = image(2, 3, 8, 6)
    for name, stride in (("0.", 2), ("1.", 1)):
        own = {key.removeprefix(name): tensor for key, tensor in state.items() if key.startswith(name)}
        expected = author_formulas.bottleneck(expected, own, stride=stride)
    assert expected.shape == (2, 40, 4, 3)
    torch.testing.assert_close(network(x), expected)


def test_a_layer_that_is_used_twice_is_loaded_under_both_names() -> None:
    layer = DDF(10)
    keys = {**channel_branch("channel_branch", 10, 9), **conv("spatial_branch.0", 9, 10)}
    state = draw(keys)
    load_author_state_dict(nn.Sequential(layer, layer), {f"{i}.{key}": state[key] for i in "01" for key in keys})
    assert torch.equal(layer.channel_norm.scale, state["channel_branch.4.std"].float())


def test_other_checkpoints_are_refused() -> None:
    state = draw({**channel_branch("channel_branch", 10, 9), **conv("spatial_branch.0", 9, 10)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surplus"):
        load_author_state_dict(DDF(10), state | {"surplus": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^load_author_state_dict: state_dict must have spatial_branch.0.0."):
        load_author_state_dict(DDFUp(10), state)
