"""dynk_torch: every operator under every way that PyTorch has of running and differentiating a function."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import dynk_torch
import pytest
import torch
from dynk_torch import _autograd, _vmap
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import dynk
from dynk import testing
from dynk._operator import operators
from dynk.kernels.common import run_cpu, run_reference

pytestmark = [
    # PyTorch loads its own forward-mode decompositions, and its compiler, through deprecated parts of torch.jit.
    pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: the shape of each argument (None where it is absent) and the options."""

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def tensors(self, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False) -> list[Tensor | None]:
        generator = torch.Generator().manual_seed(0)
        return [
            None if s is None else torch.randn(s, generator=generator).to(dtype).requires_grad_(requires_grad)
            for s in self.shapes
        ]

    def __call__(self, *tensors: Any) -> Tensor:
        return getattr(dynk_torch, self.name)(*tensors, **self.options)

    def of_given(self, *given: Any) -> Tensor:
        """Apply the operator to the arguments that are not absent."""
        return self(*self.fill(given))

    def fill(self, given: Any) -> list[Any]:
        entries = iter(given)
        return [None if shape is None else next(entries) for shape in self.shapes]

    def given(self, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False) -> tuple[Tensor, ...]:
        return tuple(t for t in self.tensors(dtype, requires_grad=requires_grad) if t is not None)

    def call(self, tensors: list[Tensor | None]) -> testing.Call:
        arrays = tuple(None if t is None else t.detach() for t in tensors)
        return testing.Call(operators()[self.name], arrays, self.options)


X, SPATIAL, CHANNEL = (2, 4, 3, 5), (2, 2, 2, 3, 3, 5), (2, 4, 2, 3)
CASES = {
    "ddf-mul": Case("ddf", (X, SPATIAL, CHANNEL)),
    "ddf-add": Case("ddf", (X, SPATIAL, CHANNEL), {"combine": "add", "dilation": (1, 2)}),
    "ddf-spatial": Case("ddf", (X, (2, 2, 3, 2, 2, 3), None), {"stride": 2}),
    "ddf-channel": Case("ddf", (X, None, CHANNEL), {"stride": (1, 2), "dilation": 2}),
    "upsample-mul": Case("ddf_upsample", ((1, 2, 2, 3), (1, 1, 2, 2, 3, 1, 2, 3), (1, 2, 2, 2, 3, 1)), {"scale": 2}),
    "upsample-add": Case(
        "ddf_upsample",
        ((1, 2, 2, 2), (1, 2, 2, 2, 1, 2, 2, 2), (1, 2, 2, 2, 1, 2)),
        {"scale": 2, "dilation": 2, "combine": "add"},
    ),
    "upsample-spatial": Case("ddf_upsample", ((1, 2, 2, 3), (1, 1, 2, 2, 3, 1, 2, 3), None), {"scale": 2}),
    "norm": Case("filter_norm", ((2, 3, 2, 2), None, None), {"axes": (2, 3)}),
    "norm-scale": Case("filter_norm", ((2, 2, 2, 3, 2), (2, 1, 1, 1), None), {"axes": (-3, 3), "eps": 0.1}),
    "norm-shift": Case("filter_norm", ((2, 3, 2), (3, 1), (2, 3, 2)), {"axes": (2, 0)}),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# One case of each operator, for what the operators share.
one_of_each = pytest.mark.parametrize("case", [CASES[name] for name in ("ddf-mul", "upsample-mul", "norm-scale")])


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


def grad_like(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected)


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
            return t.mT.contiguous().mT
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
    names = [name for name, shape in zip(operators()[case.name].arrays, case.shapes, strict=True) if shape is not None]
    given = [(t[:0] if name in batched else t).requires_grad_() for name, t in zip(names, case.given(), strict=True)]
    out = case.of_given(*given)
    assert out.numel() == 0
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
    wanted = tuple(i for i in wanted if tensors[i] is not None)
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
        for t, dim in zip(case.given(torch.float64), in_dims, strict=False)
    ]


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, None), (1, -1, 0), (None, 2, 1)])
@each_case
def test_vmap(case: Case, in_dims: tuple[int | None, ...]) -> None:
    given = mapped_inputs(case, in_dims)
    dims = in_dims[: len(given)]
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


# ---- torch.library, compile, export ----------------------------------------------------------------------------------


@each_case
def test_opcheck(case: Case) -> None:
    tensors = case.tensors(requires_grad=True)
    options = operators()[case.name].canonical(**case.options)
    torch.library.opcheck(getattr(torch.ops.dynk, case.name).default, (*tensors, *options))
    grad_out = grad_like(case(*tensors)).requires_grad_()
    backward = getattr(torch.ops.dynk, f"{case.name}_backward").default
    needs = [t is not None for t in tensors]
    torch.library.opcheck(backward, (grad_out, *tensors, *options, needs))
    torch.library.opcheck(backward, (grad_out, *tensors, *options, [True, False, False]))


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


@pytest.mark.usefixtures("dynamo")
def test_compile() -> None:
    assert_compiled(torch.compile(network, fullgraph=True), network_inputs())


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


# ---- threads and processes -------------------------------------------------------------------------------------------


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


class FilteredImages(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return dynk_torch.ddf(torch.full((1, 2, 4, 4), float(index)), None, torch.ones(1, 2, 3, 3))


def test_data_loader_workers() -> None:
    dataset = FilteredImages()
    dataset[0]  # the parent's thread pool is running when the workers are forked
    loader = torch.utils.data.DataLoader(dataset, num_workers=2, timeout=60, multiprocessing_context="fork")
    for index, (batch,) in enumerate(loader):
        assert_same(batch, dataset[index])


def test_public_names() -> None:
    assert sorted(dynk_torch.__all__) == sorted(operators())
    for name in dynk_torch.__all__:
        assert getattr(dynk_torch, name).__doc__
