"""A sample call of an operator, varied harmlessly, that is made to be corrupted (fuzz_corruptions.py)."""

from __future__ import annotations

import random
from typing import Any

import dynk_jax
import dynk_torch
import fuzz_dlpack
import jax
import numpy as np
import torch

import dynk
from dynk._operator import Operator, Plan, operators

OPERATORS = tuple(operators().values())
FLOATS = ("float16", "float32", "float64")
BATCH = 1 << 33
LAYOUTS = ("plain", "plain", "plain", "strided", "transposed", "reversed", "read-only", "unaligned")


class Call:
    """A call under corruption.

    `surface` is "dynk", "dynk_torch" or "dynk_jax", `kind` the library of the arrays. `arrays` holds an array or None
    by argument name, grad_out first where the call is a backward one.
    """

    def __init__(self, surface: str, rng: random.Random) -> None:
        self.surface = surface
        self.rng = rng
        self.op: Operator = rng.choice(OPERATORS)
        self.backward = surface == "dynk" and rng.random() < 0.5
        kinds = {"dynk": ("NumPy", "NumPy", "PyTorch", "JAX", "DLPack"), "dynk_torch": ("PyTorch",)}
        self.kind = rng.choice(kinds.get(surface, ("NumPy", "JAX")))
        self.dtype = rng.choice(FLOATS[: 3 if self.kind != "JAX" and surface != "dynk_jax" else 2])
        entries, options = rng.choice(self.op.samples)
        self.given_arrays = {n: e for n, e in zip(self.op.arrays, entries, strict=True) if isinstance(e, np.ndarray)}
        entries = tuple(self._rounded(e) if isinstance(e, np.ndarray) else e for e in entries)
        shapes = tuple(entry.shape if isinstance(entry, np.ndarray) else entry for entry in entries)
        self.options: dict[str, Any] = dict(options)
        self.keywords: dict[str, Any] = {}
        self.backend: str | None = None  # asked for by a with block around the call
        self.size = ""
        self.out_shape = self._plan(shapes).out_shape
        self._resize(dict(zip(self.op.arrays, shapes, strict=True)))
        if self.backward:
            self.shapes = {"grad_out": self.out_shape, **self.shapes}
        self.arrays = {
            name: convert(self._rounded(self.given_arrays[name]), self.kind)
            if name in self.given_arrays
            else None
            if shape is None
            else self.make(shape)
            for name, shape in self.shapes.items()
        }
        self.corrupted: list[str] = []
        self.sole: str | None = None  # the only corrupted target, which the error must name
        self.notes: list[str] = []

    def _resize(self, shapes: dict[str, Any]) -> None:
        """Draw the size of the batch; where that makes no valid call, keep it as it is."""
        self.shapes = shapes
        size = self.rng.choice((None, None, 0, BATCH if self.kind != "JAX" else None))
        names = self.op.batched or self.op.arrays[:1]
        if (
            size is None
            or self.given_arrays
            or (not self.op.batched and any(shapes[name] for name in self.op.arrays[1:]))
        ):
            return
        resized = {
            name: (size, *shape[1:]) if shape and name in names else shape for name, shape in self.shapes.items()
        }
        try:
            self.out_shape = self._plan(tuple(resized.values())).out_shape
        except ValueError:
            return
        self.shapes, self.size = resized, "huge" if size else "empty"

    def _rounded(self, array: Any) -> Any:
        """Return a sample's array as the call has it: JAX keeps integers of 32 bits, in which a seed is two words."""
        if array.dtype.kind == "f":
            return array.astype(self.dtype)
        if array.dtype == np.int64 and "JAX" in (self.kind, self.surface[-3:].upper()):
            return (
                np.stack([array, array >> 32], -1).astype(np.int32)
                if self.op.name == "gumbel_softmax"
                else array.astype(np.int32)
            )
        return array

    def _plan(self, shapes: tuple[Any, ...]) -> Plan:
        dtypes = tuple(
            None
            if shape is None
            else self._rounded(self.given_arrays[name]).dtype.name
            if name in self.given_arrays
            else self.dtype
            for name, shape in zip(self.op.arrays, shapes, strict=True)
        )
        return self.op.plan(self.op.name, shapes, dtypes, self.op.canonical(**self.options))

    @property
    def function(self) -> str:
        return f"{self.op.name}_backward" if self.backward else self.op.name

    def given(self) -> list[str]:
        """Return the array arguments that hold an array that is not corrupted yet."""
        return [name for name, array in self.arrays.items() if array is not None and name not in self.corrupted]

    def make(self, shape: tuple[int, ...], *, dtype: str | None = None, kind: str | None = None) -> Any:
        """Return zeros in a layout drawn at random; an array beyond memory has strides of 0."""
        kind, dtype = kind or self.kind, dtype or self.dtype
        return convert(numpy_zeros(shape, dtype, self.rng.choice(LAYOUTS), kind), kind)

    def contiguous(self, shape: tuple[int, ...], *, dtype: str | None = None, kind: str | None = None) -> Any:
        return convert(numpy_zeros(shape, dtype or self.dtype, "plain", kind or self.kind), kind or self.kind)

    def corrupt(self, target: str, note: str) -> str:
        self.corrupted.append(target)
        self.notes.append(f"{target}: {note}")
        return target

    def run(self) -> Any:
        """Make the call."""
        module = {"dynk": dynk, "dynk_torch": dynk_torch, "dynk_jax": dynk_jax}[self.surface]
        arrays = [array for name, array in self.arrays.items() if name != "seed"]
        options = {**self.options, **self.keywords, **{k: a for k, a in self.arrays.items() if k == "seed"}}
        if self.backend is None:
            return getattr(module, self.function)(*arrays, **options)
        with dynk.backend(self.backend):
            return getattr(module, self.function)(*arrays, **options)

    def __repr__(self) -> str:
        form = " ".join(filter(None, (self.kind, self.dtype, self.size)))
        return f"{self.surface}.{self.function} of {form} {self.shapes}, {'; '.join(self.notes)}"


def numpy_zeros(shape: tuple[int, ...], dtype: str, layout: str, kind: str) -> Any:
    if max(shape, default=0) > 1 << 16:
        return np.broadcast_to(np.zeros((), dtype), shape)
    if not shape or kind == "JAX" or (kind == "PyTorch" and layout in ("reversed", "read-only", "unaligned")):
        return np.zeros(shape, dtype)
    if layout == "strided":
        return np.zeros((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    if layout == "transposed":
        return np.zeros(shape[::-1], dtype).T
    if layout == "reversed":
        return np.zeros(shape, dtype)[::-1]
    array = np.zeros(shape, dtype)
    if layout == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        return raw[1:].view(dtype).reshape(shape)
    array.flags.writeable = layout != "read-only"
    return array


def convert(array: Any, kind: str) -> Any:
    """Return a NumPy array as one of another library, its memory shared where that can be."""
    if kind == "PyTorch":
        if not array.flags.writeable:  # an array beyond memory
            return torch.zeros((), dtype=getattr(torch, array.dtype.name)).expand(array.shape)
        return torch.from_numpy(array)
    if kind == "JAX":
        return jax.device_put(array)
    return fuzz_dlpack.Producer(array.__dlpack__) if kind == "DLPack" else array
