"""dynk_torch: values in every layout and dtype, what is launched, errors, autocast and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import dynk_torch
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch_cases import (
    CASES,
    Case,
    assert_same,
    each_case,
    each_dtype,
    grad_like,
    ignore_torch_jit,
    one_of_each,
)

import dynk
from dynk import testing
from dynk._operator import operators
from dynk.kernels.common import run_cpu, run_reference

pytestmark = ignore_torch_jit


@pytest.fixture
def launches() -> Iterator[list[tuple[str, tuple[Any, ...], tuple[Any, ...]]]]:
    """Record (direction, inputs, outputs) of every launch on the default backend."""
    recorded = []

    def run(op: Any, direction: str, plan: Any, inputs: Any, outputs: Any, device: Any, stream: Any) -> None:
        recorded.append((direction, inputs, outputs))
        original(op, direction, plan, inputs, outputs, device, stream)

    original = run_cpu.run
    with mock.patch.object(run_cpu, "run", run):
        yield recorded


# ---- values ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_values(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype, requires_grad=True)
    out = case(*tensors)
    assert out.dtype is dtype
    assert out.is_contiguous()
    call = case.call(tensors)
    testing.assert_close(out.detach(), *call.expected_forward())
    grad_out = grad_like(out)
    out.backward(grad_out)
    expected, magnitudes = call.expected_backward(grad_out)
    for tensor, want, magnitude in zip(tensors, expected, magnitudes, strict=True):
        if tensor is not None:
            assert tensor.grad is not None
            assert tensor.grad.dtype is dtype
            testing.assert_close(tensor.grad, want, magnitude)


@each_case
def test_without_recording_gives_the_same_bits(case: Case) -> None:
    recorded = case(*case.tensors(requires_grad=True))
    assert recorded.requires_grad
    with torch.no_grad():
        assert torch.equal(case(*case.tensors(requires_grad=True)), recorded)
    with torch.inference_mode():
        assert torch.equal(case(*case.tensors()), recorded)
    assert torch.equal(case(*case.tensors()), recorded)


@one_of_each
@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced", "channels_last"])
def test_any_layout(case: Case, layout: str) -> None:
    def lay_out(t: Tensor) -> Tensor:
        if layout == "transposed":
            return t.mT.contiguous().mT if t.ndim > 1 else t
        if layout == "sliced":
            return t.repeat_interleave(2, -1)[..., ::2]
        if layout == "expanded":
            return t.narrow(0, 0, 1).expand(t.shape)
        return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t

    inputs = [lay_out(t).requires_grad_() for t in map(torch.Tensor.detach, case.given())]
    dense = [t.detach().contiguous().requires_grad_() for t in inputs]
    out, expected = case.of_given(*inputs), case.of_given(*dense)
    assert torch.equal(out, expected)
    assert out.is_contiguous()
    grad_out = lay_out(grad_like(out))
    assert_same(torch.autograd.grad(out, inputs, grad_out), torch.autograd.grad(expected, dense, grad_out.contiguous()))


@one_of_each
def test_empty_batch(case: Case) -> None:
    batched = operators()[case.name].batched or {"f"}
    tensors = [
        None if t is None else (t[:0] if name in batched else t).requires_grad_()
        for name, t in zip(case.names, case.tensors(), strict=True)
    ]
    out = case(*tensors)
    assert out.numel() == 0
    given = [t for t in tensors if t is not None]
    for t, grad in zip(given, torch.autograd.grad(out.sum(), given), strict=True):
        assert torch.equal(grad, torch.zeros_like(t))


def test_pending_negation_and_zero_tensors() -> None:
    x, channel = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    assert torch.equal(dynk_torch.ddf(negated, None, channel), -dynk_torch.ddf(x, None, channel))
    zero = torch._efficientzerotensor(x.shape)
    assert torch.equal(dynk_torch.ddf(zero, None, channel), torch.zeros_like(x))


def test_parameters_and_subclasses() -> None:
    class Image(torch.Tensor):
        pass

    x, weight = torch.randn(1, 2, 3, 3), torch.nn.Parameter(torch.randn(1, 2, 3, 3))
    expected = dynk_torch.ddf(x, None, weight)
    out = dynk_torch.ddf(x.as_subclass(Image), None, weight)
    assert isinstance(out, Image)
    assert torch.equal(out.as_subclass(Tensor), expected)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert_same(grad.as_subclass(Tensor), torch.autograd.grad(expected.sum(), weight)[0])


@one_of_each
def test_tensors_without_memory(case: Case) -> None:
    expected = case(*case.tensors())
    given = [t.to("meta").requires_grad_() for t in case.given()]
    out = case.of_given(*given)
    assert (out.shape, out.device.type) == (expected.shape, "meta")
    assert [g.shape for g in torch.autograd.grad(out.sum(), given)] == [t.shape for t in given]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t).requires_grad_() for t in case.given()]
        out = case.of_given(*fake)
        assert (out.shape, out.stride(), out.device) == (expected.shape, expected.stride(), expected.device)
        out.sum().backward()
        assert [t.grad.shape for t in fake] == [t.shape for t in fake]


# ---- what is launched ------------------------------------------------------------------------------------------------


@each_dtype
def test_kernels_see_the_tensors_memory(dtype: torch.dtype, launches: Any) -> None:
    tensors = CASES["ddf-mul"].tensors(dtype, requires_grad=True)
    out = CASES["ddf-mul"](*tensors)
    grad_out = grad_like(out)
    grads = torch.autograd.grad(out, tensors, grad_out)
    (_, inputs, outputs), (_, back_inputs, back_outputs) = launches

    def pointers(arrays: Any) -> list[int]:
        return [a.__array_interface__["data"][0] for a in arrays]

    assert pointers(inputs) == [t.data_ptr() for t in tensors]
    assert pointers(outputs) == [out.data_ptr()]
    assert pointers(back_inputs) == [grad_out.data_ptr(), *(t.data_ptr() for t in tensors)]
    assert pointers(back_outputs) == [g.data_ptr() for g in grads]


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
@one_of_each
def test_only_what_is_needed_is_computed(case: Case, wanted: tuple[int, ...], launches: Any) -> None:
    tensors = case.tensors()
    wanted = tuple(i for i in wanted if i < len(tensors) and tensors[i] is not None)
    for i in wanted:
        tensors[i].requires_grad_()
    out = case(*tensors)
    assert out.requires_grad == bool(wanted)
    if wanted:
        out.sum().backward()
        outputs = launches[-1][2]
        assert tuple(i for i, output in enumerate(outputs) if output is not None) == wanted


def test_backend_is_honoured() -> None:
    case = CASES["ddf-mul"]
    tensors = case.tensors(requires_grad=True)
    with mock.patch.object(run_reference, "run", wraps=run_reference.run) as run:
        with dynk.backend("reference"):
            out = case(*tensors)
        assert run.call_count == 1
        out.sum().backward()  # the backward of a call runs where the call ran
        assert run.call_count == 2
        with dynk.backend("cpu"):
            case(*tensors).sum().backward()
        assert run.call_count == 2
    with dynk.backend("cupy"), pytest.raises(NotImplementedError, match="ddf: no backend for float32 arrays on cpu"):
        case(*tensors)


def test_inputs_changed_in_place_are_noticed() -> None:
    x, weight = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3, requires_grad=True)
    out = dynk_torch.ddf(x, None, weight)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---- errors ----------------------------------------------------------------------------------------------------------

OK = torch.ones(2, 4, 3, 5)
FILTERS = torch.ones(2, 4, 2, 3)


@pytest.mark.parametrize("mode", ["eager", "grad", "vmap", "meta"])
@pytest.mark.parametrize(
    ("error", "message", "channel", "options"),
    [
        (ValueError, r"ddf: channel must have shape \(N, C, kh, kw\) = \(2, 4, kh, kw\)", torch.ones(2, 3, 2, 3), {}),
        (ValueError, "ddf: spatial and channel must not both be None", None, {}),
        (ValueError, "ddf: stride must lie between 1 and", FILTERS, {"stride": 0}),
        (ValueError, "ddf: combine must be one of 'mul', 'add', got 'max'", FILTERS, {"combine": "max"}),
        (TypeError, "ddf: stride must be an int or an", FILTERS, {"stride": 1.5}),
        (TypeError, "ddf: channel must have the dtype of x, float32, got float64", FILTERS.double(), {}),
        (TypeError, "ddf: channel must be a torch.Tensor, got ndarray", FILTERS.numpy(), {}),
    ],
)
def test_errors_in_dynks_words(
    error: type[Exception], message: str, channel: Any, options: dict[str, Any], mode: str, launches: Any
) -> None:
    x = OK.to("meta") if mode == "meta" else OK.clone().requires_grad_(mode == "grad")
    channel = channel.to("meta") if mode == "meta" and isinstance(channel, Tensor) else channel
    function: Callable[..., Tensor] = lambda x: dynk_torch.ddf(x, None, channel, **options)  # noqa: E731
    run = torch.func.vmap(function) if mode == "vmap" else function
    with pytest.raises(error, match=message):
        run(x[None] if mode == "vmap" else x)
    assert not launches


def test_errors_of_devices_and_layouts() -> None:
    with pytest.raises(ValueError, match="ddf: channel must be on the device of x, cpu, got meta"):
        dynk_torch.ddf(OK, None, FILTERS.to("meta"))
    with pytest.raises(TypeError, match=r"ddf: x must be a dense tensor, got layout torch.sparse_coo"):
        dynk_torch.ddf(OK.to_sparse(), None, FILTERS)
    with pytest.raises(TypeError, match=r"ddf: x must have dtype .* got int64"):
        dynk_torch.ddf(OK.long(), None, FILTERS.long())
    freed = OK.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match="ddf: x must be a tensor with memory, got one whose storage was freed"):
        dynk_torch.ddf(freed, None, FILTERS)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_errors_of_the_backward_operator(device: str) -> None:
    x, channel = OK.to(device), FILTERS.to(device)
    backward = torch.ops.dynk.ddf_backward
    with pytest.raises(ValueError, match="ddf_backward: needs must have a bool for each of"):
        backward(x, x, None, channel, [1, 1], [1, 1], "mul", [True, True, True])
    with pytest.raises(ValueError, match="ddf_backward: needs must have a bool for each of"):
        backward(x, x, None, channel, [1, 1], [1, 1], "mul", [True])
    with pytest.raises(ValueError, match="ddf_backward: grad_out must have the dtype and shape of the output"):
        backward(x[:1], x, None, channel, [1, 1], [1, 1], "mul", [True, False, False])


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@one_of_each
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(requires_grad=True)
    mixed = [t if i else t.to(dtype) for i, t in enumerate(tensors)]
    with torch.autocast("cpu", dtype):
        out = case(*mixed)
        assert out.dtype is dtype
        assert case(*case.tensors(torch.float64)).dtype is torch.float64  # as PyTorch's own operators
    expected = case(*(None if t is None else t.to(dtype) for t in tensors))
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(t.grad.dtype is torch.float32 for t in tensors if t is not None)
    with pytest.raises(TypeError, match=rf"{case.name}: \w+ must have the dtype of"):
        case(*mixed)


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_threads() -> None:
    case = CASES["ddf-mul"]
    expected = torch.autograd.grad(case(*(inputs := case.tensors(requires_grad=True))).sum(), inputs)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                inputs = case.tensors(requires_grad=True)
                assert_same(torch.autograd.grad(case(*inputs).sum(), inputs), expected)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_public_names() -> None:
    assert sorted(dynk_torch.__all__) == sorted([*operators(), "convert", "effective_receptive_field"])
    for name in dynk_torch.__all__:
        assert getattr(dynk_torch, name).__doc__
