"""What makes `gumbel_softmax` what it is: its generator, its law, its choice, and how the frameworks seed it."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import dynk_jax
import dynk_torch
import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
import torch
from lanes import LANES, Lane, bits, each_lane_of
from torch_cases import ignore_torch_jit, needs_compiler

import dynk
from dynk.dilated import GUMBEL_SOFTMAX
from dynk.kernels.common import philox
from dynk.kernels.common.dtypes import FLOATS
from dynk.kernels.dilated import reference_gumbel
from dynk.kernels.dilated.softmax_geometry import SoftmaxGeometry
from dynk.testing import Call, assert_close, rounded, values

each_lane = each_lane_of(GUMBEL_SOFTMAX)
each_float64_lane = pytest.mark.parametrize("lane", [lane for lane in LANES if lane.values[0].dtype == "float64"])

# Of Random123's file kat_vectors: four words of the counter, two of the key, and the four words that they give.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000 00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.uint64]:
    return [np.uint64(int(word, 16)) for word in text.split()]


@cache
def compiled() -> Any:
    """Return the generator's two functions, the second for arrays, as Numba compiles them for the CPU."""
    block, uniform = philox.make(numba.njit)

    @numba.vectorize
    def uniforms(index: Any, low: Any, high: Any) -> Any:
        return uniform(index, low, high)

    return block, uniforms


@pytest.mark.parametrize(("given", "answer"), KNOWN_ANSWERS)
def test_generator_gives_the_published_answers(given: str, answer: str) -> None:
    assert list(philox.array_block(*words(given))) == words(answer)
    assert list(compiled()[0](*words(given))) == [int(word) for word in words(answer)]


def test_uniforms_lie_between_0_and_1_and_are_exact() -> None:
    ranges = [(0, 50_000), (2**32 - 5, 2**32 + 5), (2**64 - 5, 2**64)]
    index = np.concatenate([np.array(range(*ends), np.uint64) for ends in ranges])
    u = philox.array_uniform(index, *words("5 ffffffff"))
    steps = u * 2.0**53
    assert np.all((u > 0) & (u < 1) & (steps % 2 == 1))  # odd multiples of 2**-53
    assert len(np.unique(u)) == len(u)
    assert bits(compiled()[1](index, *words("5 ffffffff"))) == bits(u)


@pytest.mark.parametrize(("first", "second", "number"), [(0, 0, 2.0**-53), (2**32 - 1, 2**32 - 1, 1 - 2.0**-53)])
def test_uniforms_never_reach_0_nor_1(first: int, second: int, number: float) -> None:
    u = (((np.uint64(first) << philox._ABOVE) | (np.uint64(second) >> philox._DROPPED)) + 0.5) * philox._STEP
    assert u == number
    assert np.isfinite(-np.log(-np.log(u)))


# ---- the law ---------------------------------------------------------------------------------------------------------

DRAWS = 200_000


def kolmogorov_smirnov(sample: Any, cumulative: Any) -> float:
    """Return the largest distance between a sample's distribution and a law's, in units of 1 / sqrt(n)."""
    at = cumulative(np.sort(sample.ravel()))
    steps = np.arange(at.size + 1) / at.size
    return float(max(np.max(at - steps[:-1]), np.max(steps[1:] - at)) * math.sqrt(at.size))


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 11])
def test_noise_follows_the_gumbel_law(seed: int) -> None:
    geometry = SoftmaxGeometry(DRAWS, 1, 1, DRAWS, 1, 0, 0)
    noise = reference_gumbel._noise(geometry, np.array([seed], np.uint64).view(np.int64))
    assert abs(noise.mean() - np.euler_gamma) < 5 * math.sqrt(math.pi**2 / 6 / DRAWS)
    assert abs(noise.var() - math.pi**2 / 6) < 5 * math.sqrt(4.4 / DRAWS) * math.pi**2 / 6  # kurtosis 5.4
    assert kolmogorov_smirnov(noise, lambda x: np.exp(-np.exp(-x))) < 1.95  # exceeded once in 1000 seeds
    neighbours = np.corrcoef(noise.ravel()[:-1], noise.ravel()[1:])[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(DRAWS)


@each_float64_lane  # the output of the other types is too coarse to be inverted
def test_two_candidates_differ_by_the_logistic_law(lane: Lane) -> None:
    out = lane.forward(Call(GUMBEL_SOFTMAX, (np.zeros((DRAWS, 2)), np.array(9)), {"tau": 3.0}))
    difference = 3.0 * (np.log(out[:, 0]) - np.log(out[:, 1]))
    assert kolmogorov_smirnov(difference, lambda x: 1 / (1 + np.exp(-x))) < 1.95


@each_lane
@pytest.mark.parametrize("tau", [0.1, 5.0])
def test_candidates_are_chosen_as_often_as_softmax_says(lane: Lane, tau: float) -> None:
    probabilities = np.array([0.05, 0.5, 0.15, 0.3])
    logits = rounded(np.tile(np.log(probabilities), (20_000, 1)), lane.dtype)
    wide = np.exp(values(logits)[0])
    call = Call(GUMBEL_SOFTMAX, (logits, np.array(4)), {"hard": True, "tau": tau})
    chosen = values(lane.forward(call)).sum(0)
    expected = wide / wide.sum() * 20_000
    assert ((chosen - expected) ** 2 / expected).sum() < 16.3  # chi-squared of 3, exceeded once in 1000 seeds


# ---- the choice ------------------------------------------------------------------------------------------------------


def normal(dtype: str, *shape: int) -> Any:
    return rounded(np.random.default_rng([*shape]).standard_normal(shape), dtype)


@each_lane
def test_without_seed_it_is_softmax(lane: Lane) -> None:
    logits = normal(lane.dtype, 3, 5, 4)
    wide = torch.tensor(values(logits)) / 0.7
    expected = torch.softmax(wide, 1).numpy()
    assert_close(lane.forward(Call(GUMBEL_SOFTMAX, (logits, None), {"tau": 0.7})), expected, expected)


@each_lane
def test_hard_is_the_one_hot_of_the_largest_and_the_first_of_equal_ones(lane: Lane) -> None:
    logits = normal(lane.dtype, 50, 7, 3)
    soft, hard = (
        values(lane.forward(Call(GUMBEL_SOFTMAX, (logits, np.array(1)), {"hard": hard}))) for hard in (False, True)
    )
    assert np.array_equal(hard.argmax(1), soft.argmax(1))
    assert np.array_equal(np.sort(hard, 1), np.broadcast_to([[0.0]] * 6 + [[1.0]], hard.shape))
    ties = rounded(np.array([[2.0, 3, 3, 1, 3], [1, 1, 1, 1, 1]]), lane.dtype)
    chosen = lane.forward(Call(GUMBEL_SOFTMAX, (ties, None), {"hard": True}))
    assert values(chosen).tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


@each_lane
def test_hard_propagates_nan_and_takes_infinity(lane: Lane) -> None:
    logits = rounded(np.array([[1.0, np.nan, 2], [1, np.inf, 2], [-np.inf, 0, -np.inf]]), lane.dtype)
    out = values(lane.forward(Call(GUMBEL_SOFTMAX, (logits, np.array(1)), {"hard": True})))
    assert np.isnan(out[0]).all()
    assert out[1:].tolist() == [[0, 1, 0], [0, 1, 0]]


def test_choice_depends_neither_on_backend_nor_on_dtype() -> None:
    logits = np.random.default_rng(0).integers(-3, 4, (4, 5, 20, 30)).astype(np.float64)  # exact in every dtype
    chosen = [
        values(dynk.gumbel_softmax(rounded(logits, dtype), 3, hard=True, backend=backend)).argmax(1)
        for dtype in FLOATS
        for backend in ("cpu", "reference")
    ]
    assert all(np.array_equal(chosen[0], other) for other in chosen)


@each_lane
def test_straight_through_gradient_is_the_soft_one(lane: Lane) -> None:
    logits, grad_out = normal(lane.dtype, 4, 3, 6), normal(lane.dtype, 4, 3, 6)
    soft, hard = (
        lane.backward(Call(GUMBEL_SOFTMAX, (logits, np.array(1)), {"tau": 0.3, "hard": hard}), grad_out)
        for hard in (False, True)
    )
    assert bits(soft[0]) == bits(hard[0])
    assert soft[1] is hard[1] is None


@each_lane
@pytest.mark.parametrize("tau", [1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("hard", [False, True])
def test_no_nan_at_any_temperature_nor_logit(lane: Lane, tau: float, hard: bool) -> None:
    rng = np.random.default_rng(0)
    logits = rounded(rng.choice([-1e4, 0.0, 1e4], (200, 4)), lane.dtype)
    call = Call(GUMBEL_SOFTMAX, (logits, np.array(5)), {"tau": tau, "hard": hard})
    out = values(lane.forward(call))
    assert np.isfinite(out).all()
    assert np.allclose(out.sum(1), 1, atol=0.02)
    assert np.isfinite(values(lane.backward(call, normal(lane.dtype, 200, 4))[0])).all()


# ---- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 1, 2**63, 2**64 - 1])
def test_a_seed_may_be_a_number_or_an_array(seed: int) -> None:
    logits = normal("float32", 3, 4)
    out = dynk.gumbel_softmax(logits, seed=seed)
    bits_of_seed = np.array([seed], np.uint64)
    for array in (bits_of_seed.view(np.int64), bits_of_seed.view(np.int64)[0, ...], bits_of_seed.view(np.int32)):
        assert bits(dynk.gumbel_softmax(logits, np.asarray(array))) == bits(out)
    for other in (torch.tensor(logits), jnp.array(logits)):
        assert bits(np.asarray(dynk.gumbel_softmax(other, seed=seed))) == bits(out)


@each_lane
def test_each_of_several_seeds_draws_for_its_share(lane: Lane) -> None:
    logits, seeds = normal(lane.dtype, 4, 3, 5), np.array([3, 1, 4, 1])
    whole = lane.forward(Call(GUMBEL_SOFTMAX, (logits, seeds), {}))
    parts = [lane.forward(Call(GUMBEL_SOFTMAX, (logits[n : n + 1], seeds[n]), {})) for n in range(4)]
    assert bits(whole) == bits(np.concatenate(parts))


@each_lane
def test_offset_continues_a_stream(lane: Lane) -> None:
    logits = normal(lane.dtype, 6, 3, 5)
    whole = lane.forward(Call(GUMBEL_SOFTMAX, (logits, np.array(8)), {"offset": 2**32 - 20}))
    rest = lane.forward(Call(GUMBEL_SOFTMAX, (logits[2:], np.array(8)), {"offset": 2**32 - 20 + 30}))
    assert bits(whole[2:]) == bits(rest)


WRONG = {
    "negative": ({"seed": -1}, ValueError, "seed must lie between 0 and 18446744073709551615, got -1"),
    "too large": ({"seed": 2**64}, ValueError, "seed must lie between 0 and 18446744073709551615, got 184"),
    "bool": ({"seed": True}, TypeError, "seed must be an int, got True"),
    "real": ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
    "unsigned": ({"seed": np.zeros(1, np.uint32)}, TypeError, "seed must have dtype 'int32', 'int64', got uint32"),
    "shape": ({"seed": np.zeros((2, 2), np.int64)}, ValueError, "seed of int64 must have shape () or (S,), got (2, 2)"),
    "half": ({"seed": np.zeros(1, np.int32)}, ValueError, "seed of int32 must have shape (2,) or (S, 2), got (1,)"),
    "count": ({"seed": np.zeros(5, np.int64)}, ValueError, "seed must have S seeds that divide the 12 elements of log"),
    "none": ({"seed": np.zeros(0, np.int64)}, ValueError, "seed must have S seeds that divide the 12 elements of log"),
    "tau": ({"tau": 0}, ValueError, "tau must be positive, got 0.0"),
    "tau NaN": ({"tau": math.nan}, ValueError, "tau must be finite and at least 0.0, got nan"),
    "hard": ({"hard": 1}, TypeError, "hard must be a bool, got 1"),
    "offset": ({"offset": -1}, ValueError, "offset must lie between 0 and 9223372036854775807, got -1"),
    "axis": ({"axis": 2}, ValueError, "axis must be one of the 2 dimensions of logits, got 2"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_arguments_are_told(case: str) -> None:
    keywords, error, text = WRONG[case]
    for function, arrays in ((dynk.gumbel_softmax, 1), (dynk.gumbel_softmax_backward, 2)):
        with pytest.raises(error) as caught:
            function(*[np.ones((3, 4))] * arrays, **keywords)
        assert str(caught.value).startswith(f"{function.__name__}: {text}")


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def test_torch_draws_from_its_generator() -> None:
    logits = torch.zeros(5, 3, 4)
    torch.manual_seed(0)
    first, second = dynk_torch.gumbel_softmax(logits), dynk_torch.gumbel_softmax(logits)
    torch.manual_seed(0)
    assert torch.equal(dynk_torch.gumbel_softmax(logits), first)
    assert not torch.equal(first, second)
    own = [dynk_torch.gumbel_softmax(logits, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*own)
    assert bits(dynk_torch.gumbel_softmax(logits, seed=2**64 - 3).numpy()) == bits(
        dynk.gumbel_softmax(logits.numpy(), seed=2**64 - 3)
    )
    assert torch.equal(dynk_torch.gumbel_softmax(logits, noise=False), torch.softmax(logits, 1))


@ignore_torch_jit
@pytest.mark.parametrize("axis", [1, -1])
def test_torch_derivatives(axis: int) -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def soft(logits: Any) -> Any:
        return dynk_torch.gumbel_softmax(logits, tau=0.7, seed=5, axis=axis)

    assert torch.autograd.gradcheck(
        soft, logits, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(soft, logits, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_torch_compiles_once_for_all_seeds() -> None:
    graphs = []

    def keep(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module

    function = torch.compile(
        lambda logits, seed: dynk_torch.gumbel_softmax(logits, seed=seed), backend=keep, fullgraph=True
    )
    logits = torch.zeros(2, 3)
    outs = [function(logits, torch.tensor(seed)) for seed in range(3)]
    assert len(graphs) == 1
    assert all(torch.equal(out, dynk_torch.gumbel_softmax(logits, seed=seed)) for seed, out in enumerate(outs))


@needs_compiler
@ignore_torch_jit
def test_torch_compiled_draws_are_reproduced() -> None:
    function = torch.compile(lambda logits: dynk_torch.gumbel_softmax(logits, hard=True), fullgraph=True)
    logits = torch.zeros(50, 3, requires_grad=True)
    torch.manual_seed(0)
    first, second = function(logits), function(logits)
    torch.manual_seed(0)
    assert torch.equal(function(logits), first)
    assert not torch.equal(first, second)
    first[:, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_torch_maps_over_seeds() -> None:
    logits, seeds = torch.randn(4, 2, 3), torch.arange(4)
    mapped = torch.vmap(lambda logits, seed: dynk_torch.gumbel_softmax(logits, seed=seed))(logits, seeds)
    assert torch.equal(mapped, torch.stack([dynk_torch.gumbel_softmax(a, seed=n) for n, a in enumerate(logits)]))
    drawn = torch.vmap(lambda a: dynk_torch.gumbel_softmax(a, axis=0), randomness="different")(torch.zeros(4, 30))
    assert not torch.equal(drawn[0], drawn[1])
    same = torch.vmap(lambda a: dynk_torch.gumbel_softmax(a, axis=0), randomness="same")(torch.zeros(4, 30))
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize(
    "keywords", [{"noise": False, "seed": 1}, {"seed": 1, "generator": torch.Generator()}], ids=["noise", "both"]
)
def test_torch_refuses_contradictions(keywords: Any) -> None:
    with pytest.raises(ValueError, match=r"^gumbel_softmax: (noise|generator) must be "):
        dynk_torch.gumbel_softmax(torch.zeros(2, 3), **keywords)


# ---- JAX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")])
def test_jax_draws_from_a_key(key: Any) -> None:
    logits = jnp.zeros((5, 3, 4))
    first = dynk_jax.gumbel_softmax(logits, key)
    assert bits(first) == bits(jax.jit(dynk_jax.gumbel_softmax)(logits, key))
    assert bits(first) != bits(dynk_jax.gumbel_softmax(logits, jax.random.split(key)[0]))
    assert bits(dynk_jax.gumbel_softmax(logits, seed=9)) == bits(dynk.gumbel_softmax(np.asarray(logits), seed=9))


def test_jax_maps_over_keys() -> None:
    logits, keys = jnp.arange(24.0).reshape(4, 2, 3), jax.random.split(jax.random.key(0), 4)
    one_by_one = jnp.stack([dynk_jax.gumbel_softmax(a, key) for a, key in zip(logits, keys, strict=True)])
    assert bits(jax.jit(jax.vmap(dynk_jax.gumbel_softmax))(logits, keys)) == bits(one_by_one)

    def loss(logits: Any, key: Any) -> Any:
        return (dynk_jax.gumbel_softmax(logits, key, tau=0.7) ** 2).sum()

    gradients = jnp.stack([jax.grad(loss)(a, key) for a, key in zip(logits, keys, strict=True)])
    assert bits(jax.vmap(jax.grad(loss))(logits, keys)) == bits(gradients)


def test_jax_second_derivatives() -> None:
    with jax.enable_x64(True):
        logits = jnp.array(np.random.default_rng(0).standard_normal((2, 3)))
        gradient = jax.grad(lambda logits: (dynk_jax.gumbel_softmax(logits, seed=4, tau=0.7) ** 2).sum())
        along, step = jnp.arange(6.0).reshape(2, 3), 1e-6
        difference = (gradient(logits + step * along) - gradient(logits - step * along)) / (2 * step)
        assert np.allclose(jnp.tensordot(jax.jacrev(gradient)(logits), along, 2), difference, atol=1e-7)


def test_jax_refuses_a_key_and_a_seed() -> None:
    with pytest.raises(ValueError, match=r"^gumbel_softmax: seed must be None where a key is given, got both"):
        dynk_jax.gumbel_softmax(jnp.zeros((2, 3)), jax.random.key(0), seed=1)
