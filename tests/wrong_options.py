"""Calls whose options, outputs, needs or backend are wrong, and what the error says: for test_errors.py."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import numpy as np
import pytest
from wrong_arrays import KINDS, SPATIAL, Wrong, X, ddf, ddf_backward, norm, ones, read_only, upsample

import dynk

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")

MOST = 2**30


def _overlapping(shift: int) -> Any:
    memory = ones(10)
    return dynk.filter_norm(memory[:-1].reshape(3, 3), axes=(0, 1), out=memory[shift:].reshape(3, 3))


def _overlapping_transposed(memory: Any) -> Any:
    return dynk.filter_norm(memory.T, axes=(0, 1), out=memory)


def _overlapping_beside(size: int) -> Any:
    """Ask for a result in the memory of `scale`, with other arrays of more bytes than there are, all in one place."""
    filters, scale = np.broadcast_to(np.float32(0), (size, 3, 3)), ones(3, 3)
    return dynk.filter_norm_backward(filters, filters, scale, axes=(1, 2), grads=(None, scale, None))


WRONG_OPTIONS: dict[str, Wrong] = {
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
