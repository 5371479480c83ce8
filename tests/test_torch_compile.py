"""dynk_torch as torch.library operators: opcheck, torch.compile, torch.export."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import dynk_torch
import pytest
import torch
from torch import Tensor
from torch_cases import (
    CASES,
    Case,
    assert_same,
    each_case,
    grad_like,
    ignore_torch_jit,
    needs_compiler,
)

from dynk._operator import operators

pytestmark = ignore_torch_jit


# ---- torch.library, compile, export ----------------------------------------------------------------------------------


@each_case
def test_opcheck(case: Case) -> None:
    tensors = case.tensors(requires_grad=True)
    options = operators()[case.name].canonical(**case.options)
    torch.library.opcheck(getattr(torch.ops.dynk, case.name).default, (*tensors, *options))
    grad_out = grad_like(case(*tensors)).requires_grad_()
    backward = getattr(torch.ops.dynk, f"{case.name}_backward").default
    tensors = [
        t.detach() if t is not None and n in case.constants else t for n, t in zip(case.names, tensors, strict=True)
    ]
    needs = [t is not None and n not in case.constants for n, t in zip(case.names, tensors, strict=True)]
    torch.library.opcheck(backward, (grad_out, *tensors, *options, needs))
    first_alone = [i == 0 and needed for i, needed in enumerate(needs)]
    torch.library.opcheck(backward, (grad_out, *tensors, *options, first_alone))


def network(x: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
    """Apply all the operators."""
    filters = dynk_torch.filter_norm(2 * channel, axes=(2, 3))
    y = dynk_torch.ddf(x.relu(), spatial, filters, dilation=(1, 2))
    return dynk_torch.ddf_upsample(y, None, filters[:, :, None, None], scale=1).sin()


def network_inputs(n: int = 2, c: int = 4, h: int = 5, w: int = 7) -> tuple[Tensor, ...]:
    shapes = (n, c, h, w), (n, 1, 2, 3, h, w), (n, c, 2, 3)
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


def assert_compiled(compiled: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    out, expected = compiled(*inputs), network(*inputs)
    assert_same(out, expected)
    grad_out = grad_like(out)
    assert_same(torch.autograd.grad(out, inputs, grad_out), torch.autograd.grad(expected, inputs, grad_out))


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@needs_compiler
@pytest.mark.usefixtures("dynamo")
def test_compile() -> None:
    assert_compiled(torch.compile(network, fullgraph=True), network_inputs())


@needs_compiler
@pytest.mark.usefixtures("dynamo")
def test_compile_for_dynamic_shapes() -> None:
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    # All sizes differ: equal ones would be taken to be equal for ever.
    assert_compiled(compiled, network_inputs(n=6))
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_compiled(compiled, network_inputs(n=10, c=6, h=8, w=9))


def of_images(transform: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *filters: transform(lambda x: network(x, *filters))(x)


def loss_of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x).square().sum()


@needs_compiler
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.grad(loss_of(f)),
        lambda f: torch.func.grad(loss_of(torch.func.grad(loss_of(f)))),
        lambda f: lambda x: torch.func.vmap(f)(torch.stack([x, -x])),
        lambda f: lambda x: torch.func.jvp(f, (x,), (x + 1,))[1],
        lambda f: lambda x: torch.func.vmap(torch.func.grad(loss_of(f)))(torch.stack([x, -x])),
    ],
    ids=["grad", "grad of grad", "vmap", "jvp", "vmap of grad"],
)
def test_compile_torch_func(transform: Callable[..., Any]) -> None:
    function = of_images(transform)
    inputs = tuple(t.detach() for t in network_inputs())
    expected = function(*inputs)
    assert expected.abs().max() > 0
    assert_same(torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs), expected)


@needs_compiler
@pytest.mark.usefixtures("dynamo")
def test_compile_under_autocast() -> None:
    case = CASES["ddf-mul"]
    compiled = torch.compile(case, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        out = compiled(*case.tensors(requires_grad=True))
        assert torch.equal(out, case(*case.tensors()))
    assert out.dtype is torch.bfloat16
    assert compiled(*case.tensors()).dtype is torch.float32


@pytest.mark.parametrize("strict", [False, True])
def test_export_and_load(strict: bool) -> None:
    class Network(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return network(*inputs)

    batch = torch.export.Dim("batch", min=2, max=64)
    inputs = tuple(t.detach() for t in network_inputs())
    exported = torch.export.export(Network(), inputs, strict=strict, dynamic_shapes=(({0: batch},) * 3,))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    others = tuple(t.detach() for t in network_inputs(n=5))
    assert_same(torch.export.load(file).module()(*others), network(*others))
