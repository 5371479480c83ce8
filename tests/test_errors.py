"""Whatever is passed, a call ends in an error that names function and argument, what it must be and what it was.

No call here may reach a kernel: the table runs with a backend whose launch fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import dynk
from dynk import _dispatch

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


X, SPATIAL, CHANNEL = ones(2, 4, 8, 9), ones(2, 2, 3, 3, 8, 9), ones(2, 4, 3, 3)
UP_SPATIAL, UP_CHANNEL = ones(2, 2, 2, 2, 3, 3, 8, 9), ones(2, 4, 2, 2, 3, 3)


class Exporter:
    """A bare DLPack producer; `arrays` are what its exports hand out, one after the other."""

    def __init__(self, *arrays: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.arrays = list(arrays)
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **keywords: Any) -> Any:
        if not self.arrays:
            msg = "nothing left"
            raise BufferError(msg)
        return self.arrays.pop(0).__dlpack__(**keywords)


class Boastful(np.ndarray[Any, Any]):
    """Says that it is larger than its memory."""

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (200, 400, 800, 900)


def deleted() -> Any:
    array = jax.numpy.ones((2, 4, 8, 9))
    array.delete()
    return array


def traced(transform: Any) -> Callable[[], Any]:
    return lambda: transform(lambda x: dynk.ddf(x, None, CHANNEL))(jax.numpy.ones((3, 2, 4, 8, 9)))


def ddf(x: Any = X, spatial: Any = SPATIAL, channel: Any = CHANNEL, **options: Any) -> Callable[[], Any]:
    return lambda: dynk.ddf(x() if callable(x) else x, spatial, channel, **options)


def ddf_backward(grad_out: Any = X, x: Any = X, **options: Any) -> Callable[[], Any]:
    return lambda: dynk.ddf_backward(grad_out, x, SPATIAL, CHANNEL, **options)


def upsample(x: Any = X, spatial: Any = UP_SPATIAL, channel: Any = UP_CHANNEL, **options: Any) -> Callable[[], Any]:
    return lambda: dynk.ddf_upsample(x, spatial, channel, **{"scale": 2, **options})


def norm(f: Any = CHANNEL, *parameters: Any, **options: Any) -> Callable[[], Any]:
    return lambda: dynk.filter_norm(f() if callable(f) else f, *parameters, **{"axes": (2, 3), **options})


def read_only(*shape: int) -> Any:
    array = ones(*shape)
    array.flags.writeable = False
    return array


FLOAT = "dtype 'float16', 'bfloat16', 'float32', 'float64'"
KINDS = "a NumPy, CuPy, Numba CUDA, PyTorch or JAX array or an object with __dlpack__"
MOST = 2**30
TRACED = "ddf: x is traced by JAX; inside jit, grad and vmap call dynk_jax.ddf instead..."

# name: (call, exception, the whole message, or its beginning where it ends in "...")
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # shapes
    "rank": (ddf(X[0]), ValueError, "ddf: x must have shape (N, C, H, W), got (4, 8, 9)"),
    "scalar": (ddf(ones()), ValueError, "ddf: x must have shape (N, C, H, W), got ()"),
    "extent as in the contract": (
        lambda: dynk.ddf(ones(2, 4, 64, 64), ones(2, 1, 3, 3, 64, 63), None),
        ValueError,
        "ddf: spatial must have shape (N, G, kh, kw, Ho, Wo) = (2, G, kh, kw, 64, 64), got (2, 1, 3, 3, 64, 63)",
    ),
    "batch": (
        ddf(channel=ones(3, 4, 3, 3)),
        ValueError,
        "ddf: channel must have shape (N, C, kh, kw) = (2, 4, 3, 3), got (3, 4, 3, 3)",
    ),
    "kernel size": (
        ddf(channel=ones(2, 4, 3, 5)),
        ValueError,
        "ddf: channel must have shape (N, C, kh, kw) = (2, 4, 3, 3), got (2, 4, 3, 5)",
    ),
    "stride and spatial": (
        ddf(stride=2),
        ValueError,
        "ddf: spatial must have shape (N, G, kh, kw, Ho, Wo) = (2, G, kh, kw, 4, 5), got (2, 2, 3, 3, 8, 9)",
    ),
    "groups": (
        ddf(spatial=ones(2, 3, 3, 3, 8, 9)),
        ValueError,
        "ddf: spatial must have G that divides C = 4, got G = 3",
    ),
    "empty image": (
        ddf(ones(2, 4, 0, 9)),
        ValueError,
        "ddf: x must have extents of at least 1 but for N in (N, C, H, W), got (2, 4, 0, 9)",
    ),
    "no taps": (
        ddf(spatial=None, channel=ones(2, 4, 0, 3)),
        ValueError,
        "ddf: channel must have extents of at least 1 but for N in (N, C, kh, kw), got (2, 4, 0, 3)",
    ),
    "sub-pixels": (
        upsample(scale=3),
        ValueError,
        (
            "ddf_upsample: spatial must have shape (N, G, s, s, kh, kw, H, W) = (2, G, 3, 3, kh, kw, 8, 9), "
            "got (2, 2, 2, 2, 3, 3, 8, 9)"
        ),
    ),
    "grad_out": (
        ddf_backward(ones(2, 4, 8, 8)),
        ValueError,
        (
            "ddf_backward: grad_out must have the dtype and shape of the output, float32 (2, 4, 8, 9), "
            "got float32 (2, 4, 8, 8)"
        ),
    ),
    "grad_out dtype": (
        ddf_backward(X.astype(np.float64)),
        TypeError,
        (
            "ddf_backward: grad_out must have the dtype and shape of the output, float32 (2, 4, 8, 9), "
            "got float64 (2, 4, 8, 9)"
        ),
    ),
    "broadcast": (
        norm(CHANNEL, ones(3, 1, 1)),
        ValueError,
        "filter_norm: scale must broadcast to the shape of f, (2, 4, 3, 3), got (3, 1, 1)",
    ),
    "broadcast enlarges": (
        norm(CHANNEL, None, ones(5, 2, 4, 3, 3)),
        ValueError,
        "filter_norm: shift must broadcast to the shape of f, (2, 4, 3, 3), got (5, 2, 4, 3, 3)",
    ),
    "one tap": (
        norm(ones(2, 4, 1, 1)),
        ValueError,
        "filter_norm: f must have at least 2 taps (one has no unbiased deviation), got shape (2, 4, 1, 1)",
    ),
    "empty filters": (
        norm(ones(2, 0, 3, 3)),
        ValueError,
        "filter_norm: f must have extents of at least 1 but for a leading batch, got (2, 0, 3, 3)",
    ),
    # dtypes
    "integers": (ddf(X.astype(np.int32)), TypeError, f"ddf: x must have {FLOAT}, got int32"),
    "booleans": (ddf(X.astype(bool)), TypeError, f"ddf: x must have {FLOAT}, got bool"),
    "complex": (ddf(X.astype(np.complex64)), TypeError, f"ddf: x must have {FLOAT}, got complex64"),
    "objects": (ddf(X.astype(object)), TypeError, f"ddf: x must have {FLOAT}, got object"),
    "strings": (ddf(X.astype("U3")), TypeError, f"ddf: x must have {FLOAT}, got str96"),
    "float8": (ddf(X.astype(ml_dtypes.float8_e4m3fn)), TypeError, f"ddf: x must have {FLOAT}, got float8_e4m3fn"),
    "long double": (ddf(X.astype(np.longdouble)), TypeError, f"ddf: x must have {FLOAT}, got ..."),
    "big-endian": (ddf(X.astype(">f4")), TypeError, "ddf: x must be in native byte order, got >f4"),
    "mixed dtypes": (
        ddf(X.astype(np.float16)),
        TypeError,
        "ddf: spatial must have the dtype of x, float16, got float32",
    ),
    # kinds of array
    "None": (ddf(None), TypeError, "ddf: x must be an array, got None"),
    "both None": (ddf(X, None, None), ValueError, "ddf: spatial and channel must not both be None"),
    "all None": (
        ddf(None, None, None),
        TypeError,
        "ddf: at least one of x, spatial, channel must be an array, got None for each",
    ),
    "grad_out None": (
        ddf_backward(None),
        TypeError,
        "ddf_backward: grad_out must have the dtype and shape of the output, float32 (2, 4, 8, 9), got None",
    ),
    "list": (ddf(X.tolist()), TypeError, f"ddf: x must be {KINDS}, got list"),
    "number": (ddf(1.0), TypeError, f"ddf: x must be {KINDS}, got float"),
    "NumPy scalar": (norm(CHANNEL, np.float32(2)), TypeError, f"filter_norm: scale must be {KINDS}, got numpy.float32"),
    "string": (ddf("image"), TypeError, f"ddf: x must be {KINDS}, got str"),
    "masked": (ddf(np.ma.ones((2, 4, 8, 9))), TypeError, "ddf: x must be an array without a mask, got ..."),
    "untruthful shape": (
        norm(lambda: CHANNEL[0, 0].copy().view(Boastful)),
        ValueError,
        "filter_norm: axes must lie within the 2 dimensions of f, got (2, 3)",
    ),
    "mixed kinds": (
        ddf(torch.ones(2, 4, 8, 9)),
        TypeError,
        "ddf: spatial must be an array of the kind of x, PyTorch, got NumPy",
    ),
    "deleted JAX array": (
        ddf(deleted),
        TypeError,
        "ddf: x must be alive, got a JAX array whose buffer was deleted or donated",
    ),
    "jit": (traced(jax.jit), TypeError, TRACED),
    "vmap": (traced(jax.vmap), TypeError, TRACED),
    "requires grad": (
        norm(torch.ones(3, 3, requires_grad=True), axes=(0, 1)),
        TypeError,
        (
            "filter_norm: f must be a tensor that does not require grad; call the function of dynk_torch, "
            "or pass tensor.detach()"
        ),
    ),
    "torch.func": (
        lambda: torch.func.vmap(lambda f: dynk.filter_norm(f, axes=(0, 1)))(torch.ones(2, 3, 3)),
        TypeError,
        "filter_norm: f must be a tensor outside torch.func and forward-mode differentiation; ...",
    ),
    "meta tensor": (
        norm(torch.ones(3, 3, device="meta"), axes=(0, 1)),
        TypeError,
        "filter_norm: f must be on the CPU or a CUDA device, got device meta",
    ),
    "sparse tensor": (
        norm(torch.eye(3).to_sparse(), axes=(0, 1)),
        TypeError,
        "filter_norm: f must be a dense tensor, got layout torch.sparse_coo",
    ),
    "DLPack on another device": (
        norm(Exporter(CHANNEL, device=(10, 0))),
        TypeError,
        "filter_norm: f must be on the CPU or a CUDA device, got DLPack device type 10",
    ),
    "DLPack that fails": (
        norm(Exporter()),
        TypeError,
        "filter_norm: f must be an array with a working __dlpack__, got Exporter: nothing left",
    ),
    "DLPack that exports once": (
        lambda: dynk.filter_norm(Exporter(CHANNEL), axes=(2, 3)),
        TypeError,
        "filter_norm: f must be an array with a working __dlpack__, got Exporter: nothing left",
    ),
    "DLPack that changes": (
        lambda: dynk.filter_norm(Exporter(CHANNEL, ones(1, 1, 3, 3)), axes=(2, 3)),
        ValueError,
        "filter_norm: f must have memory of its shape, (2, 4, 3, 3), got (1, 1, 3, 3)",
    ),
    # options
    "stride 0": (ddf(stride=0), ValueError, f"ddf: stride must lie between 1 and {MOST}, got 0"),
    "negative dilation": (ddf(dilation=(1, -2)), ValueError, f"ddf: dilation must lie between 1 and {MOST}, got -2"),
    "float stride": (ddf(stride=1.0), TypeError, "ddf: stride must be an int or an (h, w) pair, got 1.0"),
    "bool stride": (ddf(stride=True), TypeError, "ddf: stride must be an int or an (h, w) pair, got True"),
    "bool in a pair": (ddf(stride=(1, True)), TypeError, "ddf: stride must be an int, got True"),
    "three strides": (ddf(stride=(1, 1, 1)), ValueError, "ddf: stride must be an int or an (h, w) pair, got (1, 1, 1)"),
    "text stride": (ddf(stride="11"), TypeError, "ddf: stride must be an int or an (h, w) pair, got '11'"),
    "bytes stride": (ddf(stride=b"11"), TypeError, "ddf: stride must be an int or an (h, w) pair, got b'11'"),
    "array stride": (
        ddf(stride=np.array([1, 1])),
        TypeError,
        "ddf: stride must be an int or an (h, w) pair, got array([1, 1])",
    ),
    "huge dilation": (
        ddf(dilation=2**30),
        ValueError,
        "ddf: dilation must be at most 536870912 for 3 taps, got 1073741824",
    ),
    "dilation beyond 64 bits": (
        ddf(dilation=2**70),
        ValueError,
        f"ddf: dilation must lie between 1 and {MOST}, got {2**70}",
    ),
    "combine": (ddf(combine="max"), ValueError, "ddf: combine must be one of 'mul', 'add', got 'max'"),
    "combine None": (ddf(combine=None), TypeError, "ddf: combine must be one of 'mul', 'add', got None"),
    "combine array": (
        ddf(combine=np.array(["mul", "add"])),
        TypeError,
        "ddf: combine must be one of 'mul', 'add', got array(['mul', 'add'], dtype='<U3')",
    ),
    "scale": (upsample(scale=0), ValueError, f"ddf_upsample: scale must lie between 1 and {MOST}, got 0"),
    "scale pair": (upsample(scale=(2, 2)), TypeError, "ddf_upsample: scale must be an int, got (2, 2)"),
    "bool scale": (upsample(scale=True), TypeError, "ddf_upsample: scale must be an int, got True"),
    "one axis": (norm(axes=2), TypeError, "filter_norm: axes must be a pair of ints, got 2"),
    "three axes": (norm(axes=(1, 2, 3)), ValueError, "filter_norm: axes must be a pair of ints, got (1, 2, 3)"),
    "axis out of range": (
        norm(axes=(2, 4)),
        ValueError,
        "filter_norm: axes must lie within the 4 dimensions of f, got (2, 4)",
    ),
    "axis twice": (norm(axes=(3, -1)), ValueError, "filter_norm: axes must be two different axes of f, got (3, -1)"),
    "eps": (norm(eps=-1.0), ValueError, "filter_norm: eps must be finite and at least 0.0, got -1.0"),
    "eps NaN": (norm(eps=np.nan), ValueError, "filter_norm: eps must be finite and at least 0.0, got nan"),
    "eps text": (norm(eps="1"), TypeError, "filter_norm: eps must be a real number, got '1'"),
    "eps bool": (norm(eps=True), TypeError, "filter_norm: eps must be a real number, got True"),
    # outputs
    "out shape": (
        ddf(out=ones(2, 4, 8, 8)),
        ValueError,
        "ddf: out must be float32 of shape (2, 4, 8, 9), got float32 of shape (2, 4, 8, 8)",
    ),
    "out dtype": (
        ddf(out=ones(2, 4, 8, 9, dtype=np.float64)),
        TypeError,
        "ddf: out must be float32 of shape (2, 4, 8, 9), got float64 of shape (2, 4, 8, 9)",
    ),
    "out kind": (
        ddf(out=torch.ones(2, 4, 8, 9)),
        TypeError,
        "ddf: out must be a NumPy array on cpu, got PyTorch on cpu",
    ),
    "out byte order": (
        ddf(out=ones(2, 4, 8, 9, dtype=np.dtype(">f4"))),
        TypeError,
        "ddf: out must be in native byte order, got >f4",
    ),
    "out list": (ddf(out=[]), TypeError, f"ddf: out must be {KINDS}, got list"),
    "out read-only": (ddf(out=read_only(2, 4, 8, 9)), ValueError, "ddf: out must be writeable, got a read-only array"),
    "out strided": (
        ddf(out=ones(2, 4, 9, 8).swapaxes(2, 3)),
        ValueError,
        "ddf: out must be C-contiguous, got strides (1152, 288, 4, 32)",
    ),
    "out is an input": (
        ddf(out=X),
        ValueError,
        "ddf: out must not share memory with another array of the call",
    ),
    "out overlaps an input": (
        lambda: _overlapping(1),
        ValueError,
        "filter_norm: out must not share memory with another array of the call",
    ),
    "out overlaps a strided input": (
        lambda: _overlapping_transposed(ones(3, 3)),
        ValueError,
        "filter_norm: out must not share memory with another array of the call",
    ),
    "out overlaps a strided tensor": (
        lambda: _overlapping_transposed(torch.ones(3, 3)),
        ValueError,
        "filter_norm: out must not share memory with another array of the call",
    ),
    "grads overlap an input, which others would be copied beside": (
        lambda: _overlapping_beside(1 << 40),
        ValueError,
        "filter_norm_backward: grads.scale must not share memory with another array of the call",
    ),
    "out negated": (
        lambda: dynk.filter_norm(torch.ones(3, 3), axes=(0, 1), out=torch._neg_view(torch.ones(3, 3))),
        ValueError,
        "filter_norm: out must be a tensor without a pending negation",
    ),
    "out of JAX": (
        lambda: dynk.filter_norm(jax.numpy.ones((3, 3)), axes=(0, 1), out=jax.numpy.ones((3, 3))),
        ValueError,
        "filter_norm: out must be a mutable array, got a JAX array",
    ),
    "grads overlap": (
        lambda: dynk.filter_norm_backward(*[ones(3, 3)] * 3, axes=(0, 1), grads=(*[ones(3, 3)] * 2, None)),
        ValueError,
        "filter_norm_backward: grads.scale must not share memory with another array of the call",
    ),
    "grads not a tuple": (
        ddf_backward(grads=[None] * 3),
        TypeError,
        "ddf_backward: grads must be a tuple with an array or None for each of (x, spatial, channel), got list",
    ),
    "grads too few": (
        ddf_backward(grads=(None, None)),
        ValueError,
        "ddf_backward: grads must be a tuple with an array or None for each of (x, spatial, channel), got 2",
    ),
    "grads shape": (
        ddf_backward(grads=(ones(1), None, None)),
        ValueError,
        "ddf_backward: grads.x must be float32 of shape (2, 4, 8, 9), got float32 of shape (1,)",
    ),
    "grads not needed": (
        ddf_backward(needs=["channel"], grads=(ones(2, 4, 8, 9), None, None)),
        ValueError,
        "ddf_backward: grads must be None where needs does not ask for the gradient, got an array for 'x'",
    ),
    # needs
    "needs text": (
        ddf_backward(needs="x"),
        TypeError,
        "ddf_backward: needs must be a collection of argument names, got 'x'",
    ),
    "needs number": (
        ddf_backward(needs=0),
        TypeError,
        "ddf_backward: needs must be a collection of argument names, got 0",
    ),
    "needs indices": (
        ddf_backward(needs=[0]),
        TypeError,
        "ddf_backward: needs must be a collection of argument names, got [0]",
    ),
    "needs without end": (
        ddf_backward(needs=repeat("x")),
        ValueError,
        "ddf_backward: needs must have at most 64 names, got more in repeat('x')",
    ),
    "needs unknown": (
        ddf_backward(needs=["weight"]),
        ValueError,
        "ddf_backward: needs must name arguments among (x, spatial, channel), got 'weight'",
    ),
    "needs absent": (
        lambda: dynk.ddf_backward(X, X, SPATIAL, None, needs=["channel"]),
        ValueError,
        "ddf_backward: needs must name floating arrays that were given, got 'channel'",
    ),
    # backends
    "backend unknown": (
        ddf(backend="opencl"),
        ValueError,
        "ddf: backend must be one of 'cpu', 'cupy', 'numba-cuda', 'reference', got 'opencl'",
    ),
    "backend number": (
        ddf(backend=1),
        TypeError,
        "ddf: backend must be one of 'cpu', 'cupy', 'numba-cuda', 'reference', got 1",
    ),
    "backend empty": (
        ddf(backend=""),
        ValueError,
        "ddf: backend must be one of 'cpu', 'cupy', 'numba-cuda', 'reference', got ''",
    ),
    "backend list": (
        ddf(backend=["cpu"]),
        TypeError,
        "ddf: backend must be one of 'cpu', 'cupy', 'numba-cuda', 'reference', got ['cpu']",
    ),
    "backend of another device": (
        ddf(backend="cupy"),
        NotImplementedError,
        "ddf: no backend for float32 arrays on cpu (cupy: runs on cuda arrays)",
    ),
}


def _overlapping(shift: int) -> Any:
    memory = ones(10)
    return dynk.filter_norm(memory[:-1].reshape(3, 3), axes=(0, 1), out=memory[shift:].reshape(3, 3))


def _overlapping_transposed(memory: Any) -> Any:
    return dynk.filter_norm(memory.T, axes=(0, 1), out=memory)


def _overlapping_beside(size: int) -> Any:
    """Ask for a result in the memory of `scale`, with other arrays of more bytes than there are, all in one place."""
    filters, scale = np.broadcast_to(np.float32(0), (size, 3, 3)), ones(3, 3)
    return dynk.filter_norm_backward(filters, filters, scale, axes=(1, 2), grads=(None, scale, None))


@pytest.fixture
def _no_launch() -> Iterator[None]:
    """Make a launch on any CPU backend fail the test."""
    launch = mock.Mock(side_effect=AssertionError("a kernel was launched"))
    with (
        mock.patch.object(_dispatch.runner_of("cpu"), "run", launch),
        mock.patch.object(_dispatch.runner_of("reference"), "run", launch),
    ):
        yield


@pytest.mark.usefixtures("_no_launch")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_say_what_is_wrong(name: str) -> None:
    call, exception, message = WRONG[name]
    beginning = message.removesuffix("...")
    pattern = re.escape(beginning) + ("" if message.endswith("...") else "$")
    with pytest.raises(exception, match=f"^{pattern}") as caught:
        call()
    assert type(caught.value) is exception


def test_every_backend_that_refuses_gives_its_reason() -> None:
    """Where no backend is asked for by name, the error lists each with its reason."""
    with pytest.raises(NotImplementedError) as caught:
        _dispatch.choose("ddf", dynk.decoupled.DDF, "tpu", "float32")
    assert str(caught.value) == (
        "ddf: no backend for float32 arrays on tpu "
        "(cpu: runs on cpu arrays; cupy: runs on cuda arrays; numba-cuda: runs on cuda arrays)"
    )


def test_a_backend_that_lacks_the_dtype_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"float16 arrays on cuda \(numba-cuda: has no float16\)"):
        _dispatch.choose("ddf", dynk.decoupled.DDF, "cuda", "float16", "numba-cuda")


def test_an_unknown_name_in_a_with_block_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^backend: backend must be one of .*, got 'opencl'"), dynk.backend("opencl"):
        pass


def test_a_failed_call_leaves_the_requested_backend_as_it_was() -> None:
    with dynk.backend("reference"):
        with pytest.raises(ValueError, match="combine"), dynk.backend("cpu"):
            dynk.ddf(X, SPATIAL, CHANNEL, combine="max")
        assert _dispatch.choose("ddf", dynk.decoupled.DDF, "cpu", "float32").NAME == "reference"
