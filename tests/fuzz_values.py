"""Values that no argument of dynk may have: things that are no arrays, and arrays that lie, are dead or unreadable.

Each function returns thunks by name, so that only the value that is drawn is made.
"""

from __future__ import annotations

import array as array_module
import ctypes
import decimal
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import torch

Thunks = dict[str, Callable[[], Any]]


class Raising:
    """Fails at whatever is asked of it."""

    def _refuse(self, *args: Any, **keywords: Any) -> Any:
        msg = "refused"
        raise RuntimeError(msg)

    __index__ = __int__ = __float__ = __len__ = __iter__ = __getitem__ = __array__ = _refuse
    __bool__ = __str__ = __repr__ = _refuse


class Pretender:
    """Has an array's attributes, and nothing behind them."""

    shape, ndim, strides, requires_grad, device = (2, 3), 2, (12, 4), False, "cpu"
    dtype = np.dtype(np.float32)
    __array_interface__ = {"shape": (1 << 50,), "typestr": "<f4", "data": (8, False), "version": 3}  # noqa: RUF012
    __cuda_array_interface__ = __array_interface__


def no_arrays(array: Any) -> Thunks:
    """Return things that no function takes for an array."""
    return {
        "list": lambda: array.reshape(-1)[:1].tolist(),
        "tuple of arrays": lambda: (array,),
        "list of arrays": lambda: [array, array],
        "dict": lambda: {"shape": array.shape, "dtype": array.dtype},
        "float": lambda: 1.5,
        "int": lambda: 10**5000,
        "bool": lambda: False,
        "complex": lambda: 1j,
        "text": lambda: "image\0",
        "bytes": lambda: b"\0" * 64,
        "bytearray": lambda: bytearray(64),
        "memoryview": lambda: memoryview(array.reshape(-1)),
        "array.array": lambda: array_module.array("f", [0.0] * 8),
        "ctypes array": lambda: (ctypes.c_float * 8)(),
        "decimal": lambda: decimal.Decimal(1),
        "ellipsis": lambda: ...,
        "NotImplemented": lambda: NotImplemented,
        "object": object,
        "class": lambda: np.ndarray,
        "function": lambda: np.zeros,
        "module": lambda: np,
        "dtype": lambda: array.dtype,
        "NumPy scalar": lambda: np.float32(1),
        "range": lambda: range(1 << 60),
        "generator": lambda: (i for i in range(3)),
        "exception": lambda: ValueError("x"),
        "raising": Raising,
        "pretender": Pretender,
        "class of pretenders": lambda: Pretender,
        "masked": lambda: np.ma.masked_equal(array, 1),
        "torch.Size": lambda: torch.Size([2, 3]),
        "ShapeDtypeStruct": lambda: jax.ShapeDtypeStruct(array.shape, array.dtype),
        "JAX function": lambda: jax.numpy.zeros,
    }


# ---- NumPy -----------------------------------------------------------------------------------------------------------

WRONG_DTYPES: dict[str, Any] = {
    "bool": bool,
    "int8": np.int8,
    "int16": np.int16,
    "uint16": np.uint16,
    "uint64": np.uint64,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "object": object,
    "text": "U3",
    "bytes": "S4",
    "void": "V4",
    "datetime": "datetime64[s]",
    "timedelta": "timedelta64[ns]",
    "structured": [("a", "f4"), ("b", "i8", (2,))],
    "StringDType": np.dtypes.StringDType(),
    "float8": ml_dtypes.float8_e4m3fn,
    "int4": ml_dtypes.int4,
    "big-endian float32": ">f4",
    "big-endian float16": ">f2",
    "big-endian int64": ">i8",
}
if np.dtype(np.longdouble).itemsize > 8:
    WRONG_DTYPES["long double"] = np.longdouble


class Liar(np.ndarray[Any, Any]):
    """Says of itself what is in `claims`, and raises where that is an exception."""

    claims: dict[str, Any] = {}  # noqa: RUF012


class TorchLiar(torch.Tensor):
    """The same of a tensor."""

    claims: dict[str, Any] = {}  # noqa: RUF012


def _lie(cls: type, name: str) -> None:
    truth = getattr(cls, name)

    def get(self: Any) -> Any:
        claim = self.__dict__.get("claims", {}).get(name, self)
        if isinstance(claim, Exception):
            raise claim
        return truth.__get__(self) if claim is self else claim

    setattr(cls, name, property(get))


for _name in ("shape", "dtype", "strides", "flags", "ndim", "size", "itemsize", "nbytes", "__array_interface__"):
    _lie(Liar, _name)
for _name in ("shape", "dtype", "device", "layout", "requires_grad", "is_nested", "is_cuda"):
    _lie(TorchLiar, _name)

CLAIMS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "nothing": lambda valid: {},
    "valid shape": lambda valid: {"shape": valid.shape, "ndim": valid.ndim, "size": valid.size},
    "valid shape and dtype": lambda valid: {"shape": valid.shape, "dtype": valid.dtype},
    "valid layout": lambda valid: {"shape": valid.shape, "dtype": valid.dtype, "strides": _strides(valid)},
    "list": lambda valid: {"shape": list(valid.shape)},
    "floats": lambda valid: {"shape": tuple(map(float, valid.shape))},
    "None": lambda valid: {"shape": None, "dtype": None, "strides": None, "flags": None},
    "text": lambda valid: {"shape": "2468", "dtype": "float32"},
    "huge": lambda valid: {"shape": (1 << 40,) * valid.ndim},
    "negative": lambda valid: {"shape": (-1,) * valid.ndim},
    "beyond 64 bits": lambda valid: {"shape": (1 << 80,) * valid.ndim},
    "raises": lambda valid: {name: RuntimeError("no") for name in ("shape", "dtype", "flags", "strides")},
    "raises AttributeError": lambda valid: {"dtype": AttributeError("none"), "shape": valid.shape},
}


def _strides(array: Any) -> Any:
    return array.strides if isinstance(array, np.ndarray) else array.stride()


def numpy_arrays(valid: Any) -> Thunks:
    """Return NumPy arrays of unfit types, and subclasses that deny being unfit."""
    wrong: Thunks = {f"dtype {name}": lambda d=dtype: np.zeros(valid.shape, d) for name, dtype in WRONG_DTYPES.items()}
    wrong["recarray"] = lambda: np.zeros(valid.shape, [("a", "f4")]).view(np.recarray)
    wrong["chararray"] = lambda: np.char.array(["a", "b"])
    for name, claim in CLAIMS.items():
        for truth in ("int16", "complex64", "object", "big-endian float32", "structured"):
            wrong[f"liar: {truth} claims {name}"] = lambda c=claim, t=truth: liar(
                np.zeros(valid.shape, WRONG_DTYPES[t]), c(valid)
            )
        wrong[f"liar: empty claims {name}"] = lambda c=claim: liar(
            np.zeros((*valid.shape[:1], *(0 for _ in valid.shape[1:]), 0), valid.dtype), c(valid)
        )
    return wrong


def liar(array: Any, claims: dict[str, Any]) -> Any:
    """Return an array, of NumPy or PyTorch, that makes claims about itself."""
    lying = array.view(Liar) if isinstance(array, np.ndarray) else array.as_subclass(TorchLiar)
    lying.__dict__["claims"] = claims
    return lying


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


class Contrary(torch.Tensor):
    """Answers every function of PyTorch with the same thing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 42


class Refusing(torch.Tensor):
    """Answers every function of PyTorch with an exception."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        msg = "refused"
        raise RuntimeError(msg)


def torch_tensors(valid: Any) -> Thunks:
    """Return tensors that neither dynk nor dynk_torch can read."""
    wrong: Thunks = {
        f"dtype {dtype}": lambda d=dtype: torch.zeros(valid.shape, dtype=d)
        for dtype in (
            torch.bool,
            torch.int8,
            torch.uint8,
            torch.int16,
            torch.uint16,
            torch.complex64,
            torch.complex32,
            torch.float8_e4m3fn,
        )
    }
    wrong |= {
        "sparse": lambda: valid.contiguous().to_sparse(),
        "sparse CSR": lambda: torch.eye(3, dtype=valid.dtype).to_sparse_csr(),
        "conjugate": lambda: torch.zeros(valid.shape, dtype=torch.complex64).conj(),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(valid.shape), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)]),
        "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged),
        "mkldnn": lambda: torch.zeros(2, 3).to_mkldnn(),
        "meta integers": lambda: torch.zeros(valid.shape, dtype=torch.int16, device="meta"),
    }
    if valid.numel():
        wrong["freed"] = lambda: _freed(valid)
    for name, claim in CLAIMS.items():
        wrong[f"liar: int16 claims {name}"] = lambda c=claim: liar(
            torch.zeros(valid.shape, dtype=torch.int16), c(valid)
        )
    return wrong


def torch_tensors_of_core(valid: Any) -> Thunks:
    """Return tensors that only dynk_torch can take."""
    return torch_tensors(valid) | {
        "requires grad": lambda: torch.zeros(valid.shape, dtype=valid.dtype, requires_grad=True),
        "meta": lambda: torch.empty(valid.shape, dtype=valid.dtype, device="meta"),
        "contrary": lambda: torch.zeros(valid.shape, dtype=valid.dtype).as_subclass(Contrary),
        "refusing": lambda: torch.zeros(valid.shape, dtype=valid.dtype).as_subclass(Refusing),
        "fake": lambda: _fake(valid),
        "functorch": lambda: _functorch(valid),
    }


def _fake(valid: Any) -> Any:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(valid.shape, dtype=valid.dtype)


def _functorch(valid: Any) -> Any:
    kept: list[Any] = []
    torch.func.vmap(lambda t: kept.append(t) or t)(torch.zeros((2, *valid.shape), dtype=valid.dtype))
    return kept[0]


def _freed(valid: Any) -> Any:
    tensor = torch.ones(valid.shape, dtype=valid.dtype)
    tensor.untyped_storage().resize_(0)
    return tensor


# ---- JAX -------------------------------------------------------------------------------------------------------------


def jax_arrays(valid: Any) -> Thunks:
    """Return JAX arrays of unfit types, and one that is no more."""
    wrong: Thunks = {
        f"dtype {dtype}": lambda d=dtype: jax.device_put(np.zeros(valid.shape, getattr(ml_dtypes, d, d)))
        for dtype in ("bool", "int8", "uint16", "complex64", "float8_e4m3fn", "int4")
    }
    wrong["deleted"] = lambda: _deleted(valid)
    wrong["random key"] = lambda: jax.random.key(0)
    return wrong


def _deleted(valid: Any) -> Any:
    array = jax.device_put(np.zeros(valid.shape, valid.dtype))
    array.delete()
    return array


def leaked_tracer(valid: Any) -> Any:
    """Return an array that JAX traced once."""
    kept: list[Any] = []
    jax.eval_shape(lambda a: kept.append(a) or a, jax.ShapeDtypeStruct(valid.shape, valid.dtype))
    return kept[0]
