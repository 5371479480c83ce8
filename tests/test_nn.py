"""The layers of dynk_torch: everything that a `torch.nn` layer is used for."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from dynk_torch import ddf_upsample
from dynk_torch import nn as layers
from nn_layers import CASES, EVERY_OPTION, Case, parts
from torch import Tensor, nn
from torch_cases import ignore_torch_jit, needs_compiler

each_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# A rounded prior may prefer another dilation, with another output: rounding is looked at where there is one.
UNDER_ROUNDING = {name: case for name, case in CASES.items() if not case.chooses}
each_layer_under_rounding = pytest.mark.parametrize("case", UNDER_ROUNDING.values(), ids=UNDER_ROUNDING)


def energy(out: Any) -> Tensor:
    """Return a number to which all that came out of a layer contributes."""
    return torch.stack([part.float().square().sum() for part in parts(out)]).sum()


@each_layer
def test_shapes_and_gradients(case: Case) -> None:
    layer, inputs = case.layer(), case.tensors()
    for tensor in inputs:
        tensor.requires_grad_()
    out = layer(*inputs)
    assert tuple(part.shape for part in parts(out)) == case.shapes
    energy(out).backward()
    for name, leaf in [*layer.named_parameters(), *enumerate(inputs)]:
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert (leaf.grad != 0).any(), name


@each_layer
def test_the_seed_decides_how_a_layer_starts(case: Case) -> None:
    one, same, other = case.layer(0), case.layer(0), case.layer(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@each_layer
def test_a_state_dict_carries_all_that_counts(case: Case) -> None:
    trained, fresh = case.layer(0), case.layer(1)
    trained(*case.tensors())  # running statistics move
    fresh.load_state_dict(trained.state_dict())
    trained.eval(), fresh.eval()
    pairs = zip(parts(trained(*case.tensors())), parts(fresh(*case.tensors())), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@each_layer_under_rounding
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    layer = case.layer().eval()
    inputs = case.tensors(dtype)
    expected = layer(*(tensor.float() for tensor in inputs))
    out = layer.to(dtype)(*inputs)
    for part, wanted in zip(parts(out), parts(expected), strict=True):
        assert part.dtype is dtype
        assert (part - wanted).abs().max() < 40 * torch.finfo(dtype).eps * wanted.abs().max()


@each_layer_under_rounding
def test_autocast(case: Case) -> None:
    layer, inputs = case.layer().eval(), case.tensors()
    expected = layer(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(*inputs)
        energy(out).backward()
    assert parts(out)[0].dtype is torch.bfloat16
    for part, wanted in zip(parts(out), parts(expected), strict=True):
        assert (part - wanted).abs().max() < 40 * torch.finfo(torch.bfloat16).eps * wanted.abs().max()
    assert all(parameter.grad.dtype is torch.float32 for parameter in layer.parameters())


@each_layer
def test_the_memory_layout_of_the_image_makes_no_difference(case: Case) -> None:
    layer, inputs = case.layer().eval(), case.tensors()
    out = layer.to(memory_format=torch.channels_last)(*(t.to(memory_format=torch.channels_last) for t in inputs))
    torch.testing.assert_close(out, case.layer().eval()(*inputs), check_stride=False)


def check_compiled(case: Case, backend: str, *, training: bool) -> None:
    """Compare a compiled layer with itself: what comes out, and the gradients of weights and inputs."""
    layer, inputs = case.layer().train(training), [tensor.requires_grad_() for tensor in case.tensors()]
    leaves = [*layer.parameters(), *inputs]

    def run(layer: Any) -> list[Tensor]:
        torch.manual_seed(0)
        out = layer(*inputs)
        return [*parts(out), *torch.autograd.grad(energy(out), leaves)]

    try:
        found = run(torch.compile(layer, fullgraph=True, backend=backend))
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(found, run(layer))


@ignore_torch_jit
@each_layer
@pytest.mark.parametrize("training", [False, True])
def test_compiles_to_one_graph(case: Case, training: bool) -> None:
    check_compiled(case, "aot_eager", training=training)


@ignore_torch_jit
@needs_compiler
def test_compiles_by_inductor() -> None:
    """With a mean over windows that the border cuts, whose gradient inductor once got wrong."""
    check_compiled(CASES["involution"], "inductor", training=True)


@each_layer
def test_on_meta_it_has_shapes_alone(case: Case) -> None:
    layer = case.layer(device="meta")
    out = layer(*(tensor.to("meta") for tensor in case.tensors()))
    assert tuple(part.shape for part in parts(out)) == case.shapes


def test_every_layer_is_here() -> None:
    found = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name)) and not name.endswith("Prior")}
    assert {case.name for case in CASES.values()} == set(EVERY_OPTION) == found


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_print_shows_every_option(name: str) -> None:
    """By its name, or what it has made of the layers inside; channels first, as `torch.nn` has them."""
    options, inside = EVERY_OPTION[name]
    accepted = inspect.signature(getattr(layers, name)).parameters
    assert set(options) == set(accepted) - {"device", "dtype"}
    layer: nn.Module = getattr(layers, name)(**options, device="meta")
    first = {"shape", "channels", "in_channels", "out_channels"} & set(options)
    shown = layer.extra_repr()
    assert shown.startswith("".join(f"{options[key]}, " for key in accepted if key in first))
    for key, value in options.items():
        assert value != accepted[key].default, key
        if key in inside:
            assert inside[key] in repr(layer), key
        elif key not in first:
            pair = (value, value) if key in ("stride", "padding", "dilation") else value
            assert f"{key}={value!r}," in f"{shown}," or f"{key}={pair!r}," in f"{shown},", key


# ---- how layers start ------------------------------------------------------------------------------------------------


def test_filters_start_at_the_size_that_keeps_the_signal() -> None:
    """Spatial filters have the deviation sqrt(2)/k; channel ones are scaled by numbers drawn with that deviation."""
    torch.manual_seed(0)
    layer = layers.DDF(400)
    filters = layer.spatial_norm(torch.randn(2, 1, 3, 3, 5, 5))
    torch.testing.assert_close(filters.std((2, 3)), torch.full((2, 1, 5, 5), math.sqrt(2) / 3))
    assert layer.channel_norm.scale.std().item() == pytest.approx(math.sqrt(2) / 3, rel=0.05)
    assert layers.DDFUp(4, kernel_size=5).spatial_norm.scale.item() == pytest.approx(1 / 5)
    assert layer.channel_branch.squeeze.out_channels == 80


def test_carafe_starts_as_a_mean() -> None:
    out = layers.CARAFE(3, 2, 3)(torch.ones(1, 3, 5, 5))
    assert torch.allclose(out[:, :, 2:-2, 2:-2], torch.ones(()))
    assert out[0, 0, 0, 0].item() == pytest.approx(4 / 9, rel=0.05)


def test_a_softmax_filter_is_a_weighted_mean() -> None:
    out = layers.DynamicFilter(3, 2, 3)(torch.full((1, 3, 5, 5), 2.0))
    assert torch.allclose(out[:, :, 1:-1, 1:-1], torch.full((), 2.0))


def test_a_learned_shift() -> None:
    norm = layers.FilterNorm((4, 3, 3), learn_scale=True, learn_shift=True)
    filters = torch.randn(2, 4, 3, 3)
    centred = filters - filters.mean((2, 3), keepdim=True)
    scale, shift = norm.scale.view(4, 3, 3), norm.shift.view(4, 3, 3)
    torch.testing.assert_close(norm(filters), centred / filters.std((2, 3), keepdim=True) * scale + shift)
    assert set(norm.state_dict()) == {"scale", "shift"}
    assert not layers.FilterNorm((4, 3, 3)).state_dict()


# ---- where layers look -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_upsampling_is_aligned_with_the_nearest_pixel_above_and_left(scale: int) -> None:
    """Filters that take their centre alone give each output pixel its source."""
    x = torch.randn(1, 2, 3, 4)
    centre = torch.zeros(1, 1, scale, scale, 3, 3, 3, 4)
    centre[:, :, :, :, 1, 1] = 1
    nearest = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    assert torch.equal(ddf_upsample(x, centre, None, scale=scale), nearest)
    layer = layers.DDFUp(2, scale)
    layer.spatial_norm = layer.channel_norm = torch.nn.Identity()
    torch.nn.init.zeros_(layer.spatial_predict.weight)
    torch.nn.init.zeros_(layer.channel_branch.predict.weight)
    torch.nn.init.ones_(layer.channel_branch.predict.bias)
    with torch.no_grad():
        layer.spatial_predict.bias.copy_(torch.arange(9.0).eq(4).repeat(scale * scale))
    torch.testing.assert_close(layer(x), nearest)


def test_each_sub_pixel_has_branches_of_its_own() -> None:
    layer = layers.DDFUp(6, 2, guidance_channels=4)
    x, guide = torch.randn(1, 6, 3, 3), torch.randn(1, 4, 3, 3)
    out = layer(x, guide)
    with torch.no_grad():
        layer.spatial_look.weight.unflatten(0, (4, 4))[:, 1] += 1  # sub-pixel (0, 1)
    changed = (layer(x, guide) != out).unflatten(2, (3, 2)).unflatten(4, (3, 2)).any(4).any(2).all(1)[0]
    assert changed.tolist() == [[False, True], [False, False]]


def test_the_guide_decides_the_spatial_filters() -> None:
    layer = layers.DDFUp(6, 2, guidance_channels=4)
    x, guide = torch.randn(1, 6, 3, 3), torch.randn(1, 4, 3, 3, requires_grad=True)
    layer(x, guide)[0, :, 2, 3].sum().backward()  # of pixel (1, 1)
    assert (guide.grad != 0).all()  # a look of 3 x 3
    assert not torch.equal(layer(x, guide), layer(x, -guide))


def test_an_ls_dfn_without_filters_is_the_sum_over_samples_of_the_mean_feature() -> None:
    layer = layers.LSDFN(3, 1, samples=3, sample_stride=2, features=4, filters=1, post=False)
    for branch in (layer.kernel_branch, layer.attention_branch):
        torch.nn.init.zeros_(branch.weight)
        torch.nn.init.zeros_(branch.bias)
    x = torch.randn(1, 3, 7, 7)
    mean = layer.feature_branch(x).mean(1, keepdim=True)
    expected = torch.nn.functional.pad(mean, (2, 2, 2, 2)).unfold(2, 5, 1).unfold(3, 5, 1)[..., ::2, ::2].sum((-1, -2))
    torch.testing.assert_close(layer(x), expected)


def test_the_branches_of_ls_dfn_have_the_outputs_of_the_paper() -> None:
    """C'(C + k*k) of the kernels and C'(s*s + k*k) of the attentions."""
    layer = layers.LSDFN(16, 16, samples=5, sample_stride=3)
    assert layer.kernel_branch.out_channels == 32 * (128 + 9)
    assert layer.attention_branch.out_channels == 32 * (25 + 9)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.DDF(6, groups=4), "DDF: groups must divide channels = 6, got 4"),
        (lambda: layers.DDF(6, combine="max"), "DDF: combine must be one of 'mul', 'add', got 'max'"),
        (lambda: layers.DDF(6, 1), "FilterNorm: shape must have two taps or more along axes"),
        (lambda: layers.DDFUp(6, groups=0), "DDFUp: groups must divide channels = 6, got 0"),
        (lambda: layers.DDFUp(6, 0), "DDFUp: scale must be 1 or more, got 0"),
        (lambda: layers.DDFUp(6, combine=""), "DDFUp: combine must be one of"),
        (lambda: layers.CARAFE(6, 0), "CARAFE: scale must be 1 or more, got 0"),
        (lambda: layers.CARAFE(6, groups=5), "CARAFE: groups must divide channels = 6, got 5"),
        (lambda: layers.Involution(24), "Involution: group_channels must divide channels = 24, got 16"),
        (lambda: layers.FilterNorm((3, 3), axes=(0, 1)), "FilterNorm: axes must be two negative axes of shape"),
        (
            lambda: layers.LSDFN(3, 3, samples=2, sample_stride=1, post=False),
            "LSDFN: out_channels must be filters = 32 without post, got 3",
        ),
        (
            lambda: layers.LSDFN(3, 3, samples=2, sample_stride=1, reduce="none"),
            "LSDFN: reduce must be one of 'sum', 'mean', 'max', got 'none'",
        ),
        (lambda: layers.DynamicFilter(3, 3, reduce="none"), "DynamicFilter: reduce must be one of"),
        (lambda: layers.DDFUp(6)(torch.ones(1, 6, 2, 2), torch.ones(1, 6, 2, 2)), "DDFUp: guidance must be None"),
        (lambda: layers.DDFUp(6, guidance_channels=4)(torch.ones(1, 6, 2, 2)), "DDFUp: guidance must be of 4 channels"),
        (
            lambda: layers.DDFUp(6, guidance_channels=4)(torch.ones(1, 6, 2, 2), torch.ones(1, 4, 4, 4)),
            r"DDFUp: guidance must have shape \(N, guidance_channels, H, W\) = \(N, 4, 2, 2\), got \(1, 4, 4, 4\)",
        ),
        (lambda: layers.DynamicFilter(1, 1)(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)), "DynamicFilter: guidance"),
        (lambda: layers.DynamicFilter(1, 1, guidance_channels=2)(torch.ones(1, 1, 2, 2)), "DynamicFilter: guidance"),
    ],
)
def test_errors_name_the_layer_and_the_argument(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
