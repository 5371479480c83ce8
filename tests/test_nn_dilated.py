"""The PAD layers of both adapters."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from dynk_torch import nn as torch_nn
from torch_cases import ignore_torch_jit

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
jax_nn = pytest.importorskip("dynk_jax.nn", reason="flax is not installed")

each_prior = pytest.mark.parametrize("prior", list(torch_nn.PRIORS))


def twin(layer: torch_nn.PADConv2d, outputs: int, **options: Any) -> Any:
    """Return the JAX layer of a PyTorch layer's weights."""
    channels = layer.weight.shape[1] * layer.groups
    found = jax_nn.PADConv2d(channels, outputs, 3, groups=layer.groups, rngs=nnx.Rngs(0), **options)
    jax_nn.load_torch_state_dict(found, layer.state_dict())
    return found


@each_prior
@pytest.mark.parametrize("stride", [1, 2])
def test_both_adapters_give_the_same(prior: str, stride: int) -> None:
    """Two layers, the second of another size, in evaluation and with the noise of one seed."""
    torch.manual_seed(0)
    first = torch_nn.PADConv2d(3, 4, 3, prior=prior).eval()
    second = torch_nn.PADConv2d(4, 6, 3, prior=prior, stride=stride, groups=2).eval()
    x = torch.randn(2, 3, 8, 6)
    features, state = first(x)
    out, last = second(features, state)
    own, passed = twin(first, 4, prior=prior)(jnp.asarray(x.numpy()))
    found, its_last = twin(second, 6, prior=prior, stride=stride)(own, passed)
    assert out.shape == (2, 6, 8 // stride, 6 // stride)
    assert np.allclose(found, out.detach(), atol=1e-5)
    assert np.allclose(its_last, last.detach(), atol=1e-5)


@each_prior
@pytest.mark.parametrize("hard", [False, True])
def test_training_reaches_every_parameter(prior: str, hard: bool) -> None:
    torch.manual_seed(0)
    first, second = (torch_nn.PADConv2d(4, 4, 3, prior=prior, hard=hard, tau=0.7) for _ in range(2))
    out, _ = second(*first(torch.randn(2, 4, 7, 7)))
    out.square().sum().backward()
    unused = first.prior.memory.weight  # there is no state in front of the first layer
    for parameter in (*first.parameters(), *second.parameters()):
        assert (parameter.grad is None) == (parameter is unused)
        assert parameter is unused or bool((parameter.grad != 0).any())


@each_prior
def test_jax_training_reaches_every_parameter(prior: str) -> None:
    rngs = nnx.Rngs(0)
    layers = [jax_nn.PADConv2d(4, 4, 3, prior=prior, hard=True, rngs=rngs) for _ in range(2)]

    @nnx.jit
    def gradient(layers: Any, key: Any) -> Any:
        def loss(layers: Any) -> Any:
            x = jax.random.normal(key, (2, 4, 7, 7))
            out, state = layers[0](x, None, key)
            return (layers[1](out, state, key)[0] ** 2).sum()

        return nnx.grad(loss)(nnx.List(layers))

    found = nnx.to_flat_state(gradient(layers, jax.random.key(2)))
    assert len(found) == 10
    for (index, *path), variable in found:
        unused = index == 0 and "memory" in path  # there is no state in front of the first layer
        assert bool((variable[...] != 0).any()) is not unused, path


def test_a_jax_layer_takes_over_the_weights_of_a_convolution() -> None:
    weight, bias = jnp.ones((6, 2, 3, 3)), jnp.arange(6.0)
    layer = jax_nn.PADConv2d.from_conv(weight, bias, groups=2, dilations=(2,), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 5))
    expected = jax.lax.conv_general_dilated(
        x, weight, (1, 1), [(2, 2), (2, 2)], rhs_dilation=(2, 2), feature_group_count=2
    )
    assert np.allclose(layer(x)[0], expected + bias[:, None, None], atol=1e-5)


@each_prior
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_autocast_and_memory_layout(prior: str, dtype: torch.dtype) -> None:
    """One candidate: with several a rounded prior may prefer another."""
    torch.manual_seed(0)
    layer = torch_nn.PADConv2d(4, 6, 3, dilations=(2,), prior=prior).eval()
    x, state = torch.randn(2, 4, 7, 7), torch.rand(2, 1, 7, 7)
    expected, _ = layer(x, state)
    size = expected.abs().max()
    with torch.autocast("cpu", dtype):
        out, _ = layer.train()(x, state)
    assert out.dtype is dtype
    assert (out - expected).abs().max() < 20 * torch.finfo(dtype).eps * size
    other, _ = layer.eval()(x.to(memory_format=torch.channels_last), state)
    assert torch.allclose(other, expected, atol=1e-5)
    half, last = layer.to(dtype)(x.to(dtype), state.to(dtype))
    assert (half.dtype, last.dtype) == (dtype, dtype)
    assert (half - expected).abs().max() < 20 * torch.finfo(dtype).eps * size


@ignore_torch_jit
@each_prior
@pytest.mark.parametrize("training", [False, True])
def test_compiles_to_one_graph(prior: str, training: bool) -> None:
    layer = torch_nn.PADConv2d(4, 4, 3, prior=prior, hard=True).train(training)
    x, state = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 6, 6)
    torch.manual_seed(0)
    expected = layer(x, state)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    found = compiled(x, state)
    found[0].sum().backward()
    torch._dynamo.reset()
    assert layer.weight.grad is not None
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("hard", [False, True])
def test_one_candidate_is_the_convolution_that_it_came_from(hard: bool) -> None:
    conv = torch.nn.Conv2d(4, 6, (3, 5), stride=2, padding=(2, 2), dilation=(2, 1), groups=2)
    layer = torch_nn.PADConv2d.from_conv(conv, dilations=((2, 1),), hard=hard)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    x = torch.randn(2, 4, 9, 8)
    for mode in (layer.train(), layer.eval()):
        assert torch.allclose(mode(x)[0], conv(x), atol=1e-5)


def test_evaluation_takes_the_likeliest_dilation() -> None:
    layer = torch_nn.PADConv2d(2, 2, 3, dilations=(1, 3)).eval()
    with torch.no_grad():
        layer.prior.features.weight.zero_()
        layer.prior.features.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.randn(1, 2, 9, 9)
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=3, dilation=3)
    assert torch.allclose(layer(x)[0], expected, atol=1e-5)


def test_the_prior_adds_few_weights() -> None:
    """The 3 x 3 convolutions of the second stage of ResNet-50: 128 channels, four blocks, two candidates."""
    conv = torch.nn.Conv2d(128, 128, 3, padding=1)
    layer = torch_nn.PADConv2d.from_conv(conv, dilations=(1, 2))
    added = sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in conv.parameters())
    assert added == 128 * 2 + 2 + 2 * 2
    assert 1000 < 4 * added < 1100


@pytest.mark.parametrize("options", [{"padding": 0}, {"padding": 1, "padding_mode": "reflect"}])
def test_a_convolution_of_another_padding_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"^PADConv2d: conv must have zero padding of \(1, 1\), got "):
        torch_nn.PADConv2d.from_conv(torch.nn.Conv2d(2, 2, 3, **options))


@pytest.mark.parametrize("layer", [torch_nn.PADConv2d, partial(jax_nn.PADConv2d, rngs=nnx.Rngs(0))])
def test_an_unknown_prior_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"^PADConv2d: prior must be one of 'markov', 'recurrent', 'gated', got 'no'"):
        layer(2, 2, 3, prior="no")
