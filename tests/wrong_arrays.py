"""Calls whose arrays are wrong, and what the error says: for test_errors.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import dynk

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")

# A call, its exception, and the whole message, or its beginning where it ends in "...".
Wrong = tuple[Callable[[], Any], type[Exception], str]


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
TRACED = "ddf: x is traced by JAX; inside jit, grad and vmap call dynk_jax.ddf instead..."

WRONG_ARRAYS: dict[str, Wrong] = {
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
}
