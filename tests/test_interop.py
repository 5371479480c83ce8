"""Arrays of any kind in, the same kind out, without a copy: what the backend gets is the caller's memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from lanes import bits

import dynk
from dynk import _dispatch
from dynk.testing import rounded

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_large_results_begin_with_a_line_of_the_cache(dtype: str) -> None:
    x, channel = rounded(np.ones((1, 8, 101, 103)), dtype), rounded(np.ones((1, 8, 1, 1)), dtype)
    results = [dynk.ddf(x, None, channel, backend=backend) for backend in ("cpu", "reference")]
    gradient = dynk.ddf_backward(x, x, None, channel, needs=("x",)).x
    for array in (x, *results, gradient):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable


class Producer:
    """A bare DLPack producer: no array library at all."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)


class StandardArray(Producer):
    """An array of a library of the array API standard."""

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda producer: StandardArray(np.from_dlpack(producer)))

    @property
    def dtype(self) -> Any:
        return self.array.dtype


class Tagged(np.ndarray[Any, Any]):
    """A subclass of NumPy's array."""


def to_torch(array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class Library(NamedTuple):
    """How to make, recognise and look into the arrays of one library."""

    make: Callable[[Any], Any]
    result: type
    pointer: Callable[[Any], int]
    numpy: Callable[[Any], Any]
    dtypes: tuple[str, ...]


def numpy_pointer(array: Any) -> int:
    return array.__array_interface__["data"][0]


HALVES = ("float16", "bfloat16")
LIBRARIES = {
    "NumPy": Library(lambda a: a, np.ndarray, numpy_pointer, np.asarray, (*HALVES, "float32", "float64")),
    "subclass": Library(lambda a: a.view(Tagged), np.ndarray, numpy_pointer, np.asarray, (*HALVES, "float32")),
    "PyTorch": Library(
        to_torch,
        torch.Tensor,
        lambda tensor: tensor.data_ptr(),
        lambda tensor: tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy(),
        (*HALVES, "float32", "float64"),
    ),
    "JAX": Library(
        jax.numpy.asarray, jax.Array, lambda array: array.unsafe_buffer_pointer(), np.asarray, (*HALVES, "float32")
    ),
    "array API": Library(
        StandardArray,
        StandardArray,
        lambda a: numpy_pointer(a.array),
        lambda a: a.array,
        ("float16", "float32", "float64"),
    ),
    "DLPack": Library(
        Producer,
        np.ndarray,
        lambda a: numpy_pointer(getattr(a, "array", a)),
        np.asarray,
        ("float16", "float32", "float64"),
    ),
}
CASES = [
    pytest.param(library, dtype, id=f"{name}-{dtype}")
    for name, library in LIBRARIES.items()
    for dtype in library.dtypes
]
SHAPES = {"x": (2, 4, 5, 6), "spatial": (2, 2, 3, 3, 5, 6), "channel": (2, 4, 3, 3)}


def numpy_arrays(dtype: str) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rounded(rng.standard_normal(shape), dtype) for shape in SHAPES.values()]


def spied_pointers(function: Callable[[], Any]) -> tuple[Any, list[int], list[int]]:
    """Return a result and the addresses of the inputs and outputs that the backend was given."""
    runner = _dispatch.runner_of("reference")
    with mock.patch.object(runner, "run", wraps=runner.run) as run, dynk.backend("reference"):
        result = function()
    ((_, _, _, inputs, outputs, *_),) = [call.args for call in run.call_args_list]
    return result, *([numpy_pointer(view) for view in views] for views in (inputs, outputs))


@pytest.mark.parametrize(("library", "dtype"), CASES)
def test_forward_keeps_the_kind_and_copies_nothing(library: Library, dtype: str) -> None:
    plain = numpy_arrays(dtype)
    arrays = [library.make(a) for a in plain]
    out, inputs, outputs = spied_pointers(lambda: dynk.ddf(*arrays))
    assert isinstance(out, library.result)
    assert str(out.dtype).removeprefix("torch.") == dtype
    assert inputs == [library.pointer(a) for a in arrays]
    assert outputs == [library.pointer(out)]
    assert bits(library.numpy(out)) == bits(dynk.ddf(*plain, backend="reference"))


@pytest.mark.parametrize(("library", "dtype"), CASES)
def test_backward_keeps_the_kind_and_copies_nothing(library: Library, dtype: str) -> None:
    plain = numpy_arrays(dtype)
    arrays = [library.make(a) for a in (plain[0], *plain)]
    gradients, inputs, outputs = spied_pointers(lambda: dynk.ddf_backward(*arrays))
    assert inputs == [library.pointer(a) for a in arrays]
    assert outputs == [library.pointer(a) for a in gradients]
    for gradient, want in zip(gradients, dynk.ddf_backward(plain[0], *plain, backend="reference"), strict=True):
        assert isinstance(gradient, library.result)
        assert bits(library.numpy(gradient)) == bits(want)


@pytest.mark.parametrize(("library", "dtype"), CASES)
def test_results_outlive_the_inputs(library: Library, dtype: str) -> None:
    plain = numpy_arrays(dtype)
    want = bits(dynk.ddf(*plain, backend="reference"))
    results = [dynk.ddf(*[library.make(a.copy()) for a in plain], backend="reference") for _ in range(5)]
    gc.collect()
    assert {bits(library.numpy(out)) for out in results} == {want}


@pytest.mark.parametrize(("one", "other"), list(permutations(["NumPy", "PyTorch", "JAX", "DLPack"], 2)))
def test_mixed_kinds_are_an_error(one: str, other: str) -> None:
    x, _, channel = numpy_arrays("float32")
    with pytest.raises(TypeError, match=f"^ddf: channel must be an array of the kind of x, {one}, got {other}$"):
        dynk.ddf(LIBRARIES[one].make(x), None, LIBRARIES[other].make(channel))


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def test_memory_map(tmp_path: Path) -> None:
    x, spatial, channel = numpy_arrays("float32")
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, "r", shape=x.shape)
    out, (pointer, *_), _ = spied_pointers(lambda: dynk.ddf(mapped, spatial, channel))
    assert pointer == numpy_pointer(mapped)
    assert type(out) is np.ndarray
    assert bits(out) == bits(dynk.ddf(x, spatial, channel, backend="reference"))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_unaligned_and_broadcast_arrays(backend: str) -> None:
    x, spatial, channel = numpy_arrays("float32")
    raw = np.empty(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    same = np.broadcast_to(channel[:1, :1], channel.shape)
    out = dynk.ddf(unaligned, spatial, same, backend=backend)
    assert bits(out) == bits(dynk.ddf(x, spatial, same.copy(), backend=backend))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_matrix_is_the_array_it_holds(backend: str) -> None:
    f = numpy_arrays("float32")[0][0, 0]
    out = dynk.filter_norm(np.asmatrix(f), axes=(0, 1), backend=backend)
    assert type(out) is np.ndarray
    assert bits(out) == bits(dynk.filter_norm(f, axes=(0, 1), backend=backend))


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LIBRARIES["PyTorch"].dtypes)
def test_torch_outputs_are_written_in_place(dtype: str) -> None:
    library = LIBRARIES["PyTorch"]
    plain = numpy_arrays(dtype)
    arrays = [to_torch(a) for a in plain]
    out = torch.full_like(arrays[0], torch.nan)
    result, _, (pointer,) = spied_pointers(lambda: dynk.ddf(*arrays, out=out))
    assert result is out
    assert pointer == out.data_ptr()
    assert bits(library.numpy(out)) == bits(dynk.ddf(*plain, backend="reference"))

    grads = tuple(torch.full_like(a, torch.nan) for a in arrays)
    gradients, _, pointers = spied_pointers(lambda: dynk.ddf_backward(arrays[0], *arrays, grads=grads))
    assert all(gradient is memory for gradient, memory in zip(gradients, grads, strict=True))
    assert pointers == [memory.data_ptr() for memory in grads]


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.stack([x, x], -1)[..., 1],
        lambda x: torch._neg_view(-x),
    ],
    ids=["channels_last", "transposed", "sliced", "negated"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_torch_layouts(lay_out: Callable[[Any], Any], dtype: str) -> None:
    x, spatial, channel = map(to_torch, numpy_arrays(dtype))
    laid_out = lay_out(x)
    assert torch.equal(laid_out, x)
    out = dynk.ddf(laid_out, spatial, channel, backend="reference")
    assert out.is_contiguous()
    assert torch.equal(out, dynk.ddf(x, spatial, channel, backend="reference"))


def test_torch_needs_no_grad_inside_no_grad() -> None:
    x, spatial, channel = (to_torch(a).requires_grad_() for a in numpy_arrays("float32"))
    with torch.no_grad():
        out = dynk.ddf(x, spatial, channel, backend="reference")
    assert not out.requires_grad


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torch_tangents_are_never_dropped() -> None:
    """Forward-mode differentiation of a function that knows nothing of it would be zero in silence."""
    f = torch.rand(3, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(f, torch.ones_like(f))
        with pytest.raises(TypeError, match=r"^filter_norm: f must be a tensor outside .* forward-mode"):
            dynk.filter_norm(dual, axes=(0, 1))


def test_torch_output_that_a_backward_pass_needs_is_noticed() -> None:
    weight, saved = torch.ones(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    product = (weight * saved).sum()
    dynk.ddf(torch.ones(1, 1, 2, 2), None, torch.ones(1, 1, 1, 1), out=saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# ---- JAX -------------------------------------------------------------------------------------------------------------


def test_jax_float64() -> None:
    plain = numpy_arrays("float64")
    with jax.enable_x64(True):
        out = dynk.ddf(*map(jax.numpy.asarray, plain), backend="reference")
        assert out.dtype == np.float64
    assert bits(out) == bits(dynk.ddf(*plain, backend="reference"))


def test_jax_results_go_on_being_jax_arrays() -> None:
    arrays = [jax.numpy.asarray(a) for a in numpy_arrays("bfloat16")]
    out = dynk.ddf(*arrays, backend="reference")
    assert jax.jit(lambda a: a + a)(out).dtype == jax.numpy.bfloat16
    assert out.devices() == arrays[0].devices()


# ---- DLPack ----------------------------------------------------------------------------------------------------------


def test_dlpack_strides_and_read_only() -> None:
    x, spatial, channel = numpy_arrays("float32")
    strided = np.ascontiguousarray(x.swapaxes(1, 3)).swapaxes(1, 3)
    spatial.flags.writeable = False
    out = dynk.ddf(Producer(strided), Producer(spatial), Producer(channel), backend="reference")
    assert bits(out) == bits(dynk.ddf(x, spatial, channel, backend="reference"))


def test_dlpack_bfloat16_is_a_clear_error() -> None:
    """NumPy cannot take bfloat16 through DLPack."""
    with pytest.raises(TypeError, match=r"^filter_norm: f must be an array with a working __dlpack__, got Producer: "):
        dynk.filter_norm(Producer(torch.ones(3, 3, dtype=torch.bfloat16)), axes=(0, 1))


def test_dlpack_output() -> None:
    x, spatial, channel = map(Producer, numpy_arrays("float32"))
    out = Producer(np.full(SHAPES["x"], np.nan, np.float32))
    assert dynk.ddf(x, spatial, channel, out=out, backend="reference") is out
    want = dynk.ddf(x.array, spatial.array, channel.array, backend="reference")
    assert bits(out.array) == bits(want)


SEVERAL_DEVICES = """
import jax, numpy as np, dynk
first, second = jax.devices("cpu")
x, channel = np.ones((1, 2, 4, 4), np.float32), np.ones((1, 2, 3, 3), np.float32)
there = [jax.device_put(a, second) for a in (x, channel)]
out = dynk.ddf(there[0], None, there[1], backend="reference")
assert out.devices() == {second}, out.devices()
try:
    dynk.ddf(there[0], None, jax.device_put(channel, first), backend="reference")
except ValueError as error:
    assert "channel must be on the device of x, cpu:1, got cpu" in str(error), error
else:
    raise SystemExit("mixed devices were accepted")
"""


def test_jax_results_stay_on_their_device() -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", SEVERAL_DEVICES], check=True, env=environment)
