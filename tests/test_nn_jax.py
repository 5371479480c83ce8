"""The layers of dynk_jax beside their PyTorch twins."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from nn_layers import CASES, Case, parts
from torch import nn

nnx = pytest.importorskip("flax.nnx", reason="flax is not installed")
jax_nn = pytest.importorskip("dynk_jax.nn", reason="flax is not installed")

each_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# A rounded prior may prefer another dilation, with another output: rounding is looked at where there is one.
UNDER_ROUNDING = {name: case for name, case in CASES.items() if not case.chooses}
each_layer_under_rounding = pytest.mark.parametrize("case", UNDER_ROUNDING.values(), ids=UNDER_ROUNDING)


def fresh(case: Case, seed: int = 0) -> Any:
    return getattr(jax_nn, case.name)(**case.options, rngs=nnx.Rngs(seed))


def twins(case: Case) -> tuple[nn.Module, Any]:
    """Return a PyTorch layer and a JAX layer of the same weights."""
    layer, twin = case.layer(), fresh(case)
    jax_nn.load_torch_state_dict(twin, layer.state_dict())
    return layer, twin


def arrays(case: Case, dtype: Any = jnp.float32) -> list[jax.Array]:
    return [jnp.asarray(tensor.numpy(), dtype) for tensor in case.tensors()]


def parameters(state: Any) -> dict[str, jax.Array]:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def energy(out: Any) -> Any:
    """Return a number to which all that came out of a layer, of either framework, contributes."""
    return sum((part**2).sum() for part in parts(out))


def assert_same_outputs(found: Any, expected: Any, case: Case) -> None:
    assert tuple(part.shape for part in parts(found)) == case.shapes
    for part, wanted in zip(parts(found), parts(expected), strict=True):
        assert np.allclose(part, wanted.detach(), atol=2e-5)


def assert_same_gradient(found: Any, expected: Any, name: Any) -> None:
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max()), name


@each_layer
def test_both_adapters_give_the_same_output_and_gradients(case: Case) -> None:
    """In training, but for layers that draw: those in evaluation, in which JAX is without a key."""
    layer, twin = twins(case)
    layer.train(not case.draws)
    inputs = case.tensors()
    for tensor in inputs:
        tensor.requires_grad_()
    expected = layer(*inputs)
    energy(expected).backward()

    @nnx.jit
    def run(twin: Any, *images: jax.Array) -> Any:
        def loss(twin: Any, *images: jax.Array) -> Any:
            out = twin(*images)
            return energy(out), out

        wanted = nnx.DiffState(0, nnx.Param)
        return nnx.grad(loss, argnums=(wanted, *range(1, len(images) + 1)), has_aux=True)(twin, *images)

    (of_weights, *of_inputs), out = run(twin, *arrays(case))
    assert_same_outputs(out, expected, case)
    found = parameters(of_weights)
    assert found.keys() == dict(layer.named_parameters()).keys()
    for name, parameter in layer.named_parameters():
        assert_same_gradient(found[name], parameter.grad, name)
    for index, (tensor, gradient) in enumerate(zip(inputs, of_inputs, strict=True)):
        assert_same_gradient(gradient, tensor.grad, index)


@each_layer
def test_evaluation_maps_over_images_alone(case: Case) -> None:
    """`jax.vmap` of a layer over single images is the layer over the batch; running statistics came along."""
    layer, twin = twins(case)
    layer(*case.tensors()), twin(*arrays(case))
    layer.eval(), twin.eval()

    def single(*images: jax.Array) -> Any:
        return jax.tree.map(lambda part: part[0], twin(*(image[None] for image in images)))

    assert_same_outputs(jax.vmap(single)(*arrays(case)), layer(*case.tensors()), case)


@each_layer
def test_gradients_map_over_images(case: Case) -> None:
    """`jax.vmap` of `jax.grad` gives each image's own gradients, of weights too."""
    layer, twin = twins(case)
    layer.eval(), twin.eval()
    graph, weights, rest = nnx.split(twin, nnx.Param, ...)

    def loss(weights: Any, *images: jax.Array) -> Any:
        return energy(nnx.merge(graph, weights, rest)(*(image[None] for image in images)))

    inputs = case.tensors()
    gradient = jax.grad(loss, argnums=tuple(range(1 + len(inputs))))
    each = jax.jit(jax.vmap(gradient, in_axes=(None, *(0 for _ in inputs))))
    of_weights, *of_inputs = each(weights, *arrays(case))
    found = parameters(of_weights)
    for image in range(len(inputs[0])):
        single = [tensor[image : image + 1].requires_grad_() for tensor in inputs]
        layer.zero_grad()
        energy(layer(*single)).backward()
        for name, parameter in layer.named_parameters():
            assert_same_gradient(found[name][image], parameter.grad, name)
        for index, (tensor, per_image) in enumerate(zip(single, of_inputs, strict=True)):
            assert_same_gradient(per_image[image][None], tensor.grad, index)


@each_layer_under_rounding
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float16, 0.00625), (jnp.bfloat16, 0.05)])
def test_the_image_decides_the_dtype(case: Case, dtype: Any, tolerance: float) -> None:
    layer, twin = twins(case)
    layer.eval(), twin.eval()
    out = twin(*arrays(case, dtype))
    for part, wanted in zip(parts(out), parts(layer(*case.tensors())), strict=True):
        assert part.dtype == dtype
        assert np.abs(np.asarray(part, np.float32) - wanted.detach().numpy()).max() < tolerance * wanted.abs().max()


@each_layer
def test_the_seed_decides_how_a_layer_starts(case: Case) -> None:
    one, same, other = (parameters(nnx.state(fresh(case, seed), nnx.Param)) for seed in (0, 0, 1))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)
    for name, parameter in case.layer().named_parameters():  # both frameworks start alike
        deviation = parameter.std(correction=0).item()
        if deviation == 0 or parameter.numel() >= 36:
            assert float(one[name].std()) == pytest.approx(deviation, rel=0.5), name


def test_weights_are_copied() -> None:
    layer, twin = twins(CASES["involution"])
    layer(*CASES["involution"].tensors())  # PyTorch moves its running statistics in place
    assert not twin.branch.norm.running_mean[...].any()


def test_weights_of_another_layer_are_refused() -> None:
    twin = fresh(CASES["ddf"])
    state = CASES["ddf"].layer().state_dict()
    with pytest.raises(ValueError, match=r"^load_torch_state_dict: state_dict must have \['bias', .*, got \['bias'\]"):
        jax_nn.load_torch_state_dict(twin, {"bias": state["bias"]})
    with pytest.raises(ValueError, match=r"^load_torch_state_dict: bias must have shape \(10,\), got \(3,\)"):
        jax_nn.load_torch_state_dict(twin, state | {"bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rngs: jax_nn.DDF(6, groups=4, rngs=rngs), "DDF: groups must divide channels = 6, got 4"),
        (lambda rngs: jax_nn.DDF(6, combine="max", rngs=rngs), "DDF: combine must be one of 'mul', 'add', got 'max'"),
        (lambda rngs: jax_nn.DDFUp(6, 0, rngs=rngs), "DDFUp: scale must be 1 or more, got 0"),
        (lambda rngs: jax_nn.CARAFE(6, 0, rngs=rngs), "CARAFE: scale must be 1 or more, got 0"),
        (lambda _: jax_nn.FilterNorm((3, 3), axes=(0, 1)), "FilterNorm: axes must be two negative axes of shape"),
        (lambda _: jax_nn.FilterNorm((3, 1, 1)), "FilterNorm: shape must have two taps or more along axes"),
        (lambda _: jax_nn.FilterNorm((3, 3), learn_shift=True), "FilterNorm: rngs must be given"),
        (
            lambda rngs: jax_nn.LSDFN(3, 3, samples=2, sample_stride=1, post=False, rngs=rngs),
            "LSDFN: out_channels must be filters = 32 without post, got 3",
        ),
        (
            lambda rngs: jax_nn.DDFUp(6, rngs=rngs)(jnp.ones((1, 6, 2, 2)), jnp.ones((1, 6, 2, 2))),
            "DDFUp: guidance must be None",
        ),
        (
            lambda rngs: jax_nn.DDFUp(6, guidance_channels=4, rngs=rngs)(jnp.ones((1, 6, 2, 2))),
            "DDFUp: guidance must be of 4 channels",
        ),
        (
            lambda rngs: jax_nn.DDFUp(6, guidance_channels=4, rngs=rngs)(
                jnp.ones((1, 6, 2, 2)), jnp.ones((1, 4, 4, 4))
            ),
            r"DDFUp: guidance must have shape \(N, guidance_channels, H, W\) = \(N, 4, 2, 2\), got \(1, 4, 4, 4\)",
        ),
        (
            lambda rngs: jax_nn.DynamicFilter(1, 1, guidance_channels=2, rngs=rngs)(jnp.ones((1, 1, 2, 2))),
            "DynamicFilter: guidance must be an array",
        ),
    ],
)
def test_errors_name_the_layer_and_the_argument(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(nnx.Rngs(0))


WITHOUT_FLAX = """
import sys
sys.modules["flax"] = None  # as if it were not installed
import dynk_jax, jax.numpy as jnp
assert dynk_jax.filter_norm(jnp.eye(3), axes=(0, 1)).shape == (3, 3)
try:
    import dynk_jax.nn
except ImportError as error:
    print(error)
"""


def test_without_flax_the_functions_are_there_and_the_layers_say_what_they_need() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_FLAX], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ('dynk_jax.nn needs flax: pip install "dynk[flax]"\n', "")
