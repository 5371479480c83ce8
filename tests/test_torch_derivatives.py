"""dynk_torch differentiated and mapped: gradients of every order, forward mode, torch.func."""

from __future__ import annotations

import dataclasses
from itertools import cycle, islice
from typing import Any
from unittest import mock

import dynk_torch
import pytest
import torch
from dynk_torch import _autograd, _vmap
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch_cases import (
    CASES,
    DTYPES,
    Case,
    assert_same,
    each_case,
    grad_like,
    ignore_torch_jit,
    one_of_each,
)

from dynk._operator import operators

pytestmark = ignore_torch_jit


# ---- derivatives -----------------------------------------------------------------------------------------------------


@each_case
def test_gradcheck(case: Case) -> None:
    inputs = case.given(torch.float64, requires_grad=True)
    assert gradcheck(
        case.of_given, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@each_case
def test_gradgradcheck(case: Case) -> None:
    inputs = case.given(torch.float64, requires_grad=True)
    assert gradgradcheck(case.of_given, inputs, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)


with_coordinates = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if case.constants],
)


@with_coordinates
def test_gradcheck_of_coordinates(case: Case) -> None:
    """Their gradient, and what they make of the gradients of the rest."""
    tensors = case.tensors(torch.float64, requires_grad=True)
    given = [t for t in tensors if t is not None]
    places = [place for place, t in enumerate(tensors) if t is not None]

    def function(*moved: Tensor) -> Tensor:
        return case(*(moved[places.index(place)] if place in places else None for place in range(len(tensors))))

    assert gradcheck(function, given, check_batched_grad=True)
    rest = [number for number, place in enumerate(places) if case.names[place] not in case.constants]

    def gradients(*moved: Tensor) -> tuple[Tensor, ...]:
        out = function(*moved)
        return torch.autograd.grad(out, [moved[number] for number in rest], grad_like(out), create_graph=True)

    assert gradcheck(gradients, given)


@with_coordinates
def test_what_coordinates_leave_undifferentiated_is_refused(case: Case) -> None:
    tensors = case.tensors(torch.float64, requires_grad=True)
    place = next(p for p, t in enumerate(tensors) if t is not None and case.names[p] in case.constants)
    message = f"{case.name}: {case.names[place]} must be constant in forward mode and where a gradient is"
    (gradient,) = torch.autograd.grad(case(*tensors).sin().sum(), tensors[place], create_graph=True)
    with pytest.raises(NotImplementedError, match=message):
        gradient.square().sum().backward()

    def moved(offset: Tensor) -> Tensor:
        return case(*tensors[:place], offset, *tensors[place + 1 :])

    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(moved, (tensors[place].detach(),), (torch.ones_like(tensors[place]),))


@pytest.mark.parametrize("name", ["ddf-mul", "norm-scale"])
def test_gradgradcheck_of_the_library_operator(name: str) -> None:
    case = CASES[name]
    op = getattr(torch.ops.dynk, case.name)
    options = operators()[case.name].canonical(**case.options)
    inputs = case.given(torch.float64, requires_grad=True)
    assert gradgradcheck(
        lambda *given: op(*case.fill(given), *options), inputs, fast_mode=True, check_fwd_over_rev=True
    )


def test_third_derivative() -> None:
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    channel = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def second(x: Tensor, channel: Tensor) -> Tensor:
        out = dynk_torch.ddf(x, None, dynk_torch.filter_norm(channel, axes=(2, 3))).square().sum()
        (first,) = torch.autograd.grad(out, channel, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]

    assert gradcheck(second, (x, channel))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_taps_have_no_derivatives(dtype: torch.dtype) -> None:
    f = torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 4.0]], dtype=dtype).reshape(2, 1, 3).requires_grad_()
    scale = torch.tensor(2.0, dtype=dtype, requires_grad=True)

    def norm(f: Tensor, scale: Tensor) -> Tensor:
        return dynk_torch.filter_norm(f, scale, axes=(1, 2))

    weights = torch.tensor([3.0, -1.0, 0.5], dtype=dtype)
    out = (norm(f, scale) * weights).sum()
    first = torch.autograd.grad(out, (f, scale), create_graph=True)
    (second,) = torch.autograd.grad(sum((g * g).sum() for g in first), f)
    _, tangent = torch.func.jvp(norm, (f, scale), (torch.randn_like(f), torch.ones_like(scale)))
    for derivative in (first[0], second, tangent):
        assert torch.isfinite(derivative).all()
        assert torch.equal(derivative[0], torch.zeros_like(derivative[0]))
        assert derivative[1].abs().max() > 0


@each_case
def test_torch_func_grad_and_jacobians(case: Case) -> None:
    given = case.given(torch.float64)
    every = tuple(range(len(given)))
    loss = lambda *given: case.of_given(*given).sin().sum()  # noqa: E731
    leaves = case.given(torch.float64, requires_grad=True)
    assert_same(torch.func.grad(loss, argnums=every)(*given), torch.autograd.grad(loss(*leaves), leaves))
    by_rows = torch.func.jacrev(case.of_given, argnums=every)(*given)
    by_columns = torch.func.jacfwd(case.of_given, argnums=every)(*given)
    assert_same(by_rows, by_columns)
    assert_same(by_rows, torch.autograd.functional.jacobian(case.of_given, given))


@one_of_each
def test_hessians_agree(case: Case) -> None:
    first, *others = case.given(torch.float64)
    loss = lambda first: case.of_given(first, *others).sin().sum()  # noqa: E731
    over_reverse = torch.func.jacfwd(torch.func.jacrev(loss))(first)
    assert_same(torch.func.jacrev(torch.func.jacrev(loss))(first), over_reverse)
    assert_same(torch.autograd.functional.hessian(loss, first), over_reverse)
    assert over_reverse.abs().max() > 0


@one_of_each
@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_forward_mode_is_never_a_silent_zero(case: Case, no_grad: bool, raw: bool) -> None:
    given = case.given(torch.float64)
    directions = tuple(torch.randn_like(t) for t in given)
    options = operators()[case.name].canonical(**case.options)
    op = getattr(torch.ops.dynk, case.name)
    function = (lambda *given: op(*case.fill(given), *options)) if raw else case.of_given
    step = 1e-6
    with torch.set_grad_enabled(not no_grad):
        _, tangent = torch.func.jvp(function, given, directions)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(given, directions, strict=True)]
            of_duals = forward_ad.unpack_dual(function(*duals)).tangent
            one_dual = forward_ad.unpack_dual(function(duals[0], *given[1:])).tangent
    moved = [[t + sign * step * d for t, d in zip(given, directions, strict=True)] for sign in (1, -1)]
    slope = (function(*moved[0]) - function(*moved[1])) / (2 * step)
    torch.testing.assert_close(tangent, slope, atol=1e-7, rtol=1e-6)
    assert_same(of_duals, tangent)
    first_only = torch.func.jvp(lambda t: function(t, *given[1:]), given[:1], directions[:1])[1]
    assert_same(one_dual, first_only)


def test_pullback_outside_its_transform() -> None:
    case = CASES["ddf-channel"]
    x, channel = case.given(torch.float64)
    channel.requires_grad_()
    out, pullback = torch.func.vjp(case.of_given, x, channel)
    grad_out = torch.randn_like(out, requires_grad=True)
    grads = pullback(grad_out)
    found = torch.autograd.grad(sum(g.square().sum() for g in grads), (grad_out, channel))
    x.requires_grad_()
    plain = torch.autograd.grad(case.of_given(x, channel), (x, channel), grad_out, create_graph=True)
    assert_same(found, torch.autograd.grad(sum(g.square().sum() for g in plain), (grad_out, channel)))


@each_case
def test_gradients_of_many_grad_outs_at_once(case: Case) -> None:
    leaves = case.given(torch.float64, requires_grad=True)
    out = case.of_given(*leaves)
    grad_outs = torch.randn(3, *out.shape, dtype=torch.float64)
    batched = torch.autograd.grad(out, leaves, grad_outs, is_grads_batched=True, retain_graph=True)
    for b, grad_out in enumerate(grad_outs):
        assert_same(tuple(g[b] for g in batched), torch.autograd.grad(out, leaves, grad_out, retain_graph=True))


# ---- vmap ------------------------------------------------------------------------------------------------------------


def mapped_inputs(case: Case, in_dims: tuple[int | None, ...]) -> list[Tensor]:
    return [
        t if dim is None else torch.stack([t, 2 * t, t - 1], dim)
        for t, dim in zip(case.given(torch.float64), cycle(in_dims), strict=False)
    ]


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (1, -1, 0), (None, 2, 1)])
@each_case
def test_vmap(case: Case, in_dims: tuple[int | None, ...]) -> None:
    given = mapped_inputs(case, in_dims)
    dims = tuple(islice(cycle(in_dims), len(given)))
    if all(dim is None for dim in dims):
        dims = (0,)
        given = mapped_inputs(case, dims)

    def sample(b: int) -> list[Tensor]:
        return [t if dim is None else t.select(dim, b) for t, dim in zip(given, dims, strict=True)]

    def grads(*given: Tensor) -> Any:
        return torch.func.grad(lambda *given: case.of_given(*given).sin().sum(), tuple(range(len(given))))(*given)

    assert_same(
        torch.func.vmap(case.of_given, dims)(*given), torch.stack([case.of_given(*sample(b)) for b in range(3)])
    )
    expected = [torch.stack(g) for g in zip(*(grads(*sample(b)) for b in range(3)), strict=True)]
    assert_same(list(torch.func.vmap(grads, dims)(*given)), expected)
    # The gradient of a mapped sum is the sum over the samples where an argument is shared.
    total = torch.func.grad(
        lambda *given: torch.func.vmap(case.of_given, dims)(*given).sin().sum(), tuple(range(len(given)))
    )(*given)
    shared = [e.sum(0) if dim is None else e.movedim(0, dim) for e, dim in zip(expected, dims, strict=True)]
    assert_same(list(total), shared)


@one_of_each
def test_nested_vmap(case: Case) -> None:
    given = [torch.stack([torch.stack([t, -t]), torch.stack([t + 1, t * 2])]) for t in case.given(torch.float64)]
    out = torch.func.vmap(torch.func.vmap(case.of_given))(*given)
    for a in range(2):
        for b in range(2):
            assert_same(out[a, b], case.of_given(*(t[a, b] for t in given)))


def test_vmap_of_an_empty_batch() -> None:
    assert torch.func.vmap(lambda f: dynk_torch.filter_norm(f, axes=(1, 2)))(torch.ones(2, 0, 3, 3)).shape == (
        2,
        0,
        3,
        3,
    )
    x, channel = torch.ones(2, 0, 4, 3, 3), torch.ones(0, 4, 3, 3)
    assert torch.func.vmap(lambda x: dynk_torch.ddf(x, None, channel))(x).shape == (2, 0, 4, 3, 3)


def test_vmap_of_an_argument_without_a_batch() -> None:
    """Samples run one by one where a mapped or differentiated argument is shared by the samples of a batch."""
    op = dataclasses.replace(operators()["ddf"], batched=frozenset({"x", "spatial"}))
    case = CASES["ddf-channel"]
    x, _, channel = case.tensors()
    options = op.canonical(**case.options)
    mapped = torch.stack([x, -x]), None, torch.stack([channel, channel + 1])
    out = _vmap.forward(op, 2, (0, None, 0), mapped, options)
    grad_out = grad_like(out)
    grads = _vmap.backward(op, 2, (0, 0, None, 0), (grad_out, *mapped), options, (True, False, True))
    for b in range(2):
        leaves = mapped[0][b].requires_grad_(), mapped[2][b].requires_grad_()
        expected = case(leaves[0], None, leaves[1])
        assert_same(out[b], expected.detach())
        assert_same((grads[0][b], grads[2][b]), torch.autograd.grad(expected, leaves, grad_out[b]))
    # Not mapped and not differentiated, it is left as it is and the mapped dimension joins the batch.
    with mock.patch.object(_autograd, "forward", return_value=torch.ones(4, 1)) as forward:
        assert _vmap.forward(op, 2, (0, None, None), (mapped[0], None, channel), options).shape == (2, 2, 1)
    _, (images, _, filters), _ = forward.call_args.args
    assert (images.shape, filters.shape) == ((4, 4, 3, 5), channel.shape)


def test_per_sample_gradients_of_a_module() -> None:
    class Filter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(1, 2, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return dynk_torch.ddf(x, None, dynk_torch.filter_norm(self.weight, axes=(2, 3)))

    module, images = Filter(), torch.randn(3, 1, 2, 4, 4)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)["weight"]
    for image, gradient in zip(images, found, strict=True):
        (expected,) = torch.autograd.grad(module(image).square().sum(), module.weight)
        assert_same(gradient, expected)
