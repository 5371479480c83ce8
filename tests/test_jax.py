"""dynk_jax: every operator under JAX's differentiation and vmap, on the CPU kernels and on handlers in Python."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_cases import CHANNEL, SPATIAL, X, arrays, assert_results, forward_and_backward, given_of
from lanes import OPERATORS, each_operator

import dynk
from dynk._operator import Operator
from dynk.kernels.common.dtypes import FLOATS
from dynk.testing import Call, assert_close, strategies

jax = pytest.importorskip("jax", reason="JAX is not installed")
import dynk_jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from dynk_jax import _apply, _decoupled, _deformable, _dilated, _sampled  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

each_dtype = pytest.mark.parametrize("dtype", FLOATS)


@pytest.fixture
def x64() -> Iterator[None]:
    """Let JAX keep float64."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@each_dtype
@each_operator
@settings(max_examples=5)
@given(data=st.data())
def test_results_inside_jit(op: Operator, dtype: str, backend: str, data: st.DataObject) -> None:
    call = data.draw(strategies.calls(op, dtype, small=True))
    grad_out = data.draw(strategies.grad_outs(call))
    with dynk.backend(backend):
        out, gradients = jax.jit(forward_and_backward(call))(grad_out, *given_of(call))
    assert_results(call, grad_out, out, gradients)


def test_numpy_arrays_outside_jit() -> None:
    x, spatial, channel = arrays(X, SPATIAL, CHANNEL)
    out = dynk_jax.ddf(x, spatial, channel)
    assert isinstance(out, jax.Array)
    assert_close(out, *Call(OPERATORS[0], (x, spatial, channel), {}).expected_forward())


def test_empty_batch() -> None:
    x, channel = arrays((0, 4, 4, 5), (0, 4, 3, 3))
    gradients = jax.grad(lambda x, channel: dynk_jax.ddf(x, None, channel).sum(), (0, 1))(x, channel)
    assert [gradient.shape for gradient in gradients] == [x.shape, channel.shape]


def test_kernels_run_without_the_interpreter() -> None:
    text = jax.jit(forward_and_backward(Call(OPERATORS[0], tuple(arrays(X, SPATIAL, CHANNEL)), {}))).lower(
        *arrays(X, X, SPATIAL, CHANNEL)
    )
    lowered = text.as_text()
    assert "custom_call @dynk_ddf_nine_forward_float32" in lowered
    assert "custom_call @dynk_ddf_nine_backward_float32" in lowered
    assert "callback" not in lowered


@pytest.mark.parametrize("module", [_decoupled, _deformable, _dilated, _sampled], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: Any) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


# ---- derivatives -----------------------------------------------------------------------------------------------------


def _offsets(*shape: int) -> Any:
    return np.random.default_rng(shape).integers(-8, 8, shape) / 4 + 0.125


SECOND_DERIVATIVES: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "ddf": (dynk_jax.ddf, [X, SPATIAL, CHANNEL]),
    "ddf stride": (lambda *a: dynk_jax.ddf(*a, stride=2, dilation=(1, 2)), [X, (2, 1, 3, 2, 2, 3), (2, 4, 3, 2)]),
    "ddf add": (lambda *a: dynk_jax.ddf(*a, combine="add"), [X, SPATIAL, CHANNEL]),
    "ddf spatial": (lambda x, spatial: dynk_jax.ddf(x, spatial, None), [X, SPATIAL]),
    "ddf channel": (lambda x, channel: dynk_jax.ddf(x, None, channel), [X, CHANNEL]),
    "ddf_upsample": (
        lambda *a: dynk_jax.ddf_upsample(*a, scale=2),
        [(1, 2, 2, 3), (1, 1, 2, 2, 3, 3, 2, 3), (1, 2, 2, 2, 3, 3)],
    ),
    "filter_norm": (
        lambda *a: dynk_jax.filter_norm(*a, axes=(2, 3)),
        [(2, 2, 3, 2, 4), (2, 1, 1, 1), (3, 2, 1)],
    ),
    "deformable_conv2d": (
        lambda x, weight, mask, bias: dynk_jax.deformable_conv2d(
            x, weight, _offsets(2, 1, 2, 2, 2, 3, 3), _offsets(2, 2, 2, 2, 2, 3, 3), mask, bias
        ),
        [(2, 2, 4, 4), (3, 2, 3, 3), (2, 2, 2, 2, 3, 3), (3,)],
    ),
    "sample_kernel": (lambda weight: dynk_jax.sample_kernel(weight, _offsets(2, 2, 2, 2, 2)), [(4, 2, 3, 3)]),
    "filter_norm alone": (lambda f: dynk_jax.filter_norm(f, axes=(-1, 0)), [(2, 4, 3)]),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", SECOND_DERIVATIVES)
def test_second_derivatives(case: str) -> None:
    function, shapes = SECOND_DERIVATIVES[case]
    check_grads(jax.jit(function), arrays(*shapes, dtype="float64"), order=2, modes=["rev"])


@pytest.mark.usefixtures("x64")
def test_offsets_are_differentiated_once() -> None:
    x, weight, offset = *arrays((1, 2, 4, 4), (2, 2, 2, 2), dtype="float64"), _offsets(1, 1, 2, 2, 2, 3, 3)

    def function(data_offset: Any) -> Any:
        return dynk_jax.deformable_conv2d(x, weight, None, data_offset)

    check_grads(jax.jit(function), [offset], order=1, modes=["rev"])
    # The gradient of the image is differentiable by the offsets, not that of an offset.
    of_image = jax.grad(lambda x, o: (dynk_jax.deformable_conv2d(x, weight, None, o) ** 2).sum())
    check_grads(lambda o: of_image(x, o), [offset], order=1, modes=["rev"])
    with pytest.raises(NotImplementedError, match=r"^deformable_conv2d: data_offset must be constant in forward mode"):
        jax.grad(lambda o: (jax.grad(lambda o: (function(o) ** 2).sum())(o) ** 2).sum())(offset)


@pytest.mark.usefixtures("x64")
def test_what_was_differentiated_before_makes_no_difference() -> None:
    """JAX remembers what it traced: gradients by one argument, then of these by another, then the first again."""
    x, channel = arrays((1, 3, 4, 4), (1, 3, 2, 2), dtype="float64")

    def loss(x: Any, channel: Any) -> Any:
        return (dynk_jax.ddf(x, None, channel) ** 3).sum()

    def second(argument: int) -> Any:
        return jax.grad(lambda *a: (jax.grad(loss, argument)(*a) ** 2).sum(), argument)(x, channel)

    before = [jax.grad(loss, argument)(x, channel) for argument in (0, 1)], [second(argument) for argument in (0, 1)]
    for argument in (0, 1):
        jax.grad(lambda *a, k=argument: (jax.grad(loss, k)(*a) ** 2).sum(), 1 - argument)(x, channel)
    after = [jax.grad(loss, argument)(x, channel) for argument in (0, 1)], [second(argument) for argument in (0, 1)]
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(one, other)
        assert (one != 0).all()
    check_grads(loss, [x, channel], order=2, modes=["rev"])


@pytest.mark.usefixtures("x64")
def test_third_derivatives() -> None:
    shapes = [(1, 2, 2, 2), (1, 1, 1, 2, 2, 2), (1, 2, 1, 2)]
    check_grads(jax.jit(dynk_jax.ddf), arrays(*shapes, dtype="float64"), order=3, modes=["rev"])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_taps_have_zero_derivatives(dtype: str) -> None:
    filters = jnp.stack([jnp.full((3, 3), 0.3), jnp.arange(9.0).reshape(3, 3)]).astype(dtype)

    def loss(f: Any) -> Any:
        return (dynk_jax.filter_norm(f, axes=(1, 2)) ** 3 * jnp.arange(9).reshape(3, 3)).sum()

    first = jax.grad(loss)(filters)
    second = jax.grad(lambda f: (jax.grad(loss)(f) ** 2).sum())(filters)
    for derivative in (first, second):
        assert derivative.dtype.name == dtype
        assert jnp.all(derivative[0] == 0)
        assert jnp.all(jnp.isfinite(derivative))
        assert jnp.any(derivative[1] != 0)


@pytest.mark.parametrize(
    ("argument", "slots"),
    [(0, "0, 1, 2, 3, 0, -1, -1"), (1, "0, 1, 2, 3, -1, 0, -1"), (2, "0, 1, 2, 3, -1, -1, 0")],
)
def test_only_needed_gradients_are_computed(argument: int, slots: str) -> None:
    gradient = jax.grad(lambda *a: (dynk_jax.ddf(*a) ** 2).sum(), argument)
    lowered = jax.jit(gradient).lower(*arrays(X, SPATIAL, CHANNEL)).as_text()
    assert lowered.count("custom_call @dynk_ddf_nine_backward_float32") == 1
    assert f"slots = dense<[{slots}, " in lowered


def test_forward_mode_is_refused() -> None:
    x, channel = arrays(X, CHANNEL)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: dynk_jax.ddf(x, None, channel), (x,), (x,))


# ---- vmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@each_operator
@settings(max_examples=8)
@given(data=st.data())
def test_vmap(op: Operator, data: st.DataObject) -> None:
    """Whichever arrays are mapped, along whichever axis, each element gets what its own call gives."""
    call = data.draw(strategies.calls(op, "float32", small=True))
    singles = [data.draw(strategies.grad_outs(call)), *given_of(call)]
    axes = [data.draw(st.sampled_from([None, 0, -1])) for _ in singles[1:]]
    axes = [0 if all(axis is None for axis in axes) else None, *axes]
    others = [(-a, a / 2) if a.dtype.kind == "f" else (a, np.zeros_like(a)) for a in singles]
    mapped = [
        a if axis is None else np.stack([a, *other], axis) for a, other, axis in zip(singles, others, axes, strict=True)
    ]
    out, gradients = jax.jit(jax.vmap(forward_and_backward(call), axes))(*mapped)
    for i in range(3):
        grad_out, *one = (
            a if axis is None else np.array(a.take(i, axis)) for a, axis in zip(mapped, axes, strict=True)
        )
        rest = iter(one)
        element = call.with_arrays(*(None if array is None else next(rest) for array in call.arrays))
        assert_results(element, grad_out, out[i], [gradient[i] for gradient in gradients])


def test_vmap_makes_one_call() -> None:
    x, spatial, channel = arrays((5, 3, *X), SPATIAL, CHANNEL)
    nested = jax.jit(jax.vmap(jax.vmap(lambda x: dynk_jax.ddf(x, spatial, channel))))
    lowered = nested.lower(x).as_text()
    assert lowered.count("custom_call @dynk") == 1
    assert "while" not in lowered
    alone = jnp.stack([jnp.stack([dynk_jax.ddf(one, spatial, channel) for one in some]) for some in x])
    np.testing.assert_array_equal(nested(x), alone)


def test_vmap_inside_grad() -> None:
    x, spatial, channel = arrays((3, *X), SPATIAL, CHANNEL)

    def loss(function: Callable[..., Any], x: Any, channel: Any) -> Any:
        return (function(lambda one: dynk_jax.ddf(one, spatial, channel), x) ** 2).sum()

    batched = jax.grad(lambda *a: loss(lambda f, x: jax.vmap(f)(x), *a), (0, 1))(x, channel)
    looped = jax.grad(lambda *a: loss(lambda f, x: jnp.stack([f(one) for one in x]), *a), (0, 1))(x, channel)
    for one, other in zip(batched, looped, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_vmap_beyond_the_dimensions_of_filter_norm() -> None:
    f, scale = arrays((2, 2, 2, 3, 2, 2, 2, 2), (2, 3, 1, 2, 1, 2, 1))
    arguments = f, scale.transpose(0, 2, 1, 3, 4, 5, 6)[:, :, :1]

    def norm(f: Any, scale: Any) -> Any:
        return dynk_jax.filter_norm(f, scale, axes=(1, 2))

    out = jax.vmap(norm)(*arguments)
    np.testing.assert_array_equal(out, jnp.stack([norm(*pair) for pair in zip(*arguments, strict=True)]))


def test_vmap_over_an_argument_without_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, spatial, channel = arrays((3, *X), (3, *SPATIAL), CHANNEL)
    unbatched = dataclasses.replace(OPERATORS[0], batched=frozenset({"x", "channel"}))
    monkeypatch.setitem(_apply._OPERATORS, "ddf", unbatched)
    both = jax.jit(jax.vmap(lambda x, spatial: dynk_jax.ddf(x, spatial, channel)))
    assert "while" in both.lower(x, spatial).as_text()
    alone = jnp.stack([dynk_jax.ddf(one, other, channel) for one, other in zip(x, spatial, strict=True)])
    np.testing.assert_array_equal(both(x, spatial), alone)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_errors_come_while_tracing() -> None:
    x, channel = arrays(X, CHANNEL)
    with pytest.raises(ValueError, match=r"ddf: channel must have shape \(N, C, kh, kw\) = \(2, 4, .*got \(1,"):
        jax.eval_shape(dynk_jax.ddf, x, None, channel[:1])
    with pytest.raises(ValueError, match="ddf: spatial and channel must not both be None"):
        jax.jit(dynk_jax.ddf)(x, None, None)
    with pytest.raises(TypeError, match="ddf: channel must have the dtype of x, float32, got float16"):
        jax.jit(dynk_jax.ddf)(x, None, channel.astype("float16"))
    with pytest.raises(TypeError, match="ddf: x must be a JAX or NumPy array, got list"):
        dynk_jax.ddf([1.0], None, channel)
    with pytest.raises(TypeError, match="ddf: x must have a dtype that JAX keeps, got float64"):
        dynk_jax.ddf(x.astype("float64"), None, channel.astype("float64"))
    with pytest.raises(ValueError, match="ddf: stride must lie between"):
        dynk_jax.ddf(x, None, channel, stride=0)


def test_requested_backend_is_not_replaced() -> None:
    x, channel = arrays(X, CHANNEL)
    with dynk.backend("cupy"), pytest.raises(NotImplementedError, match="cupy: runs on cuda arrays"):
        dynk_jax.ddf(x, None, channel)

    def on_reference(x: Any) -> Any:
        with dynk.backend("reference"):
            return dynk_jax.ddf(x, None, channel)

    out, pull = jax.vjp(on_reference, x)
    assert "dynk_ddf_forward_reference" in jax.jit(on_reference).lower(x).as_text()
    assert "dynk_ddf_backward_reference" in jax.jit(pull).lower(out).as_text()
    assert "reference" not in jax.jit(lambda x: dynk_jax.ddf(x, None, channel)).lower(x).as_text()
    _, pull = jax.vjp(lambda x: dynk_jax.ddf(x, None, channel), x)
    with dynk.backend("reference"):  # no request for what was traced outside of the block
        assert "reference" not in jax.jit(pull).lower(out).as_text()


def test_second_derivative_without_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_apply, "own", lambda op: None)
    (f,) = arrays((2, 3, 3))
    gradient = jax.grad(lambda f: (dynk_jax.filter_norm(f, axes=(1, 2)) ** 2).sum())
    gradient(f)
    with pytest.raises(NotImplementedError, match="filter_norm: the gradient has no derivative"):
        jax.grad(lambda f: gradient(f).sum())(f)
