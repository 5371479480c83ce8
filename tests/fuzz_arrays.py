"""Corruptions of a call's arrays; what sorts of corruptions there are is said in fuzz_corruptions.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import fuzz_dlpack
import fuzz_values
import numpy as np
import torch
from fuzz_calls import BATCH, FLOATS, OPERATORS, Call

import dynk
from dynk._operator import Operator

# ---- what the docstrings say of shapes -------------------------------------------------------------------------------


def dimensions(op: Operator) -> dict[str, list[str]]:
    """Return the dimension names of the arguments whose docstring has them."""
    found = {}
    text = getattr(dynk, op.name).__doc__
    for names, dims in re.findall(r"^ +([\w, ]+?) : array \(([^)]+)\)", text, re.MULTILINE):
        for name in names.split(", "):
            found[name] = [dim.strip() for dim in dims.split(",") if dim.strip()]
    return {name: dims for name, dims in found.items() if name in op.arrays}


DIMENSIONS = {op.name: dimensions(op) for op in OPERATORS}


def determined(call: Call) -> list[tuple[str, int]]:
    """Return (argument, axis) of all extents that the rest of the call leaves no choice about."""
    shapes = {name: call.shapes[name] for name in call.given()}
    dims = {
        name: dims
        for name, dims in DIMENSIONS[call.op.name].items()
        if name in shapes and len(shapes[name]) == len(dims)
    }
    everything = [dim for names in dims.values() for dim in names]
    axes = [
        (name, axis)
        for name, names in dims.items()
        for axis, dim in enumerate(names)
        if dim.isdigit() or dim in ("Ho", "Wo") or everything.count(dim) > 1
    ]
    return axes + [("grad_out", axis) for axis in range(len(shapes.get("grad_out", ())))]


# ---- corruptions: each returns its target, or None where it does not apply -------------------------------------------

Corruption = Callable[[Call], str | None]
ABSOLUTE: list[Corruption] = []
RELATIVE: list[Corruption] = []


def absolute(function: Corruption) -> Corruption:
    ABSOLUTE.append(function)
    return function


def relative(function: Corruption) -> Corruption:
    RELATIVE.append(function)
    return function


def draw(call: Call, thunks: fuzz_values.Thunks) -> tuple[str, Any]:
    name = call.rng.choice(list(thunks))
    return name, thunks[name]()


def pick(call: Call, names: Iterable[str]) -> str | None:
    names = list(names)
    return call.rng.choice(names) if names else None


@absolute
def not_an_array(call: Call) -> str | None:
    target = pick(call, call.given())
    if target is None:
        return None
    sample = np.zeros(call.shapes[target] if not call.size else (2, 3), call.dtype)
    thunks = fuzz_values.no_arrays(sample)
    if call.surface == "dynk" and call.rng.random() < 0.2:
        thunks = {"leaked tracer": lambda: fuzz_values.leaked_tracer(sample.astype(np.float32))}
    elif call.surface == "dynk_torch" and call.rng.random() < 0.2:
        thunks = {kind: lambda k=kind: call.make(call.shapes[target], kind=k) for kind in ("NumPy", "DLPack")}
    elif call.surface == "dynk_jax" and call.rng.random() < 0.2:
        thunks = {kind: lambda k=kind: call.make(call.shapes[target], kind=k) for kind in ("PyTorch", "DLPack")}
    note, call.arrays[target] = draw(call, thunks)
    return call.corrupt(target, note)


@absolute
def missing(call: Call) -> str | None:
    required = [name for name in call.given() if name not in call.op.optional]
    target = pick(call, required)
    if target is not None:
        call.arrays[target] = None
        call.corrupt(target, "None")
    return target


@absolute
def unfit_array(call: Call) -> str | None:
    """Put an array of the call's own kind there that nothing can read, or that must not be read."""
    target = pick(call, call.given())
    if target is None:
        return None
    shape = call.shapes[target] if call.size != "huge" else (2, *call.shapes[target][1:])
    if call.kind == "PyTorch":
        valid = torch.zeros(shape, dtype=getattr(torch, call.dtype))
        make = fuzz_values.torch_tensors if call.surface == "dynk_torch" else fuzz_values.torch_tensors_of_core
    elif call.kind == "JAX":
        valid, make = np.zeros(shape, call.dtype), fuzz_values.jax_arrays
    else:
        valid = np.zeros(shape, call.dtype)
        make = fuzz_dlpack.dlpack_producers if call.kind == "DLPack" else fuzz_values.numpy_arrays
    thunks = make(valid)
    if call.size == "huge":
        thunks.pop("freed", None)  # wrong, but first of all of another batch
    note, call.arrays[target] = draw(call, thunks)
    return call.corrupt(target, note)


@absolute
def zero_extent(call: Call) -> str | None:
    target = pick(call, [name for name in call.given() if len(call.shapes[name]) > 1])
    if target is None or (target == "grad_out" and call.size == "empty"):
        return None
    shape = list(call.shapes[target])
    axis = call.rng.randrange(1, len(shape))
    shape[axis] = 0
    call.arrays[target] = call.make(tuple(shape))
    return call.corrupt(target, f"extent 0 of axis {axis}")


@absolute
def rank(call: Call) -> str | None:
    dims = DIMENSIONS[call.op.name]
    target = pick(call, [name for name in call.given() if name in dims or name == "grad_out"])
    if target is None:
        return None
    shape = call.shapes[target]
    other = call.rng.choice(
        [(), shape[1:], shape[:-1], (1, *shape), (*shape, 1), (1,) * 64, (*shape, 2 if call.size else BATCH >> 12)]
    )
    call.arrays[target] = call.make(other) if call.kind != "JAX" else call.make(shape[1:])
    return call.corrupt(target, f"rank {len(other)}")


@relative
def extent(call: Call) -> str | None:
    choices = determined(call)
    if not choices:
        return None
    target, axis = call.rng.choice(choices)
    shape = list(call.shapes[target])
    was = shape[axis]
    others = [was + 1, 2 * was + 1, *([was - 1] if was > 1 else []), *([BATCH + 1] if call.kind != "JAX" else [])]
    shape[axis] = call.rng.choice(others)
    if np.prod([float(e) for e in shape]) > 1e16:  # beyond what NumPy can address
        shape[axis] = was + 1
    call.arrays[target] = call.make(tuple(shape))
    return call.corrupt(target, f"shape {tuple(shape)}")


@relative
def groups(call: Call) -> str | None:
    """Give more groups than there are channels."""
    dims = DIMENSIONS[call.op.name]
    target = pick(call, [name for name in call.given() if "G" in dims.get(name, ())])
    owner = next((name for name in call.given() if "C" in dims.get(name, ())), None)
    if target is None or owner is None:
        return None
    shape = list(call.shapes[target])
    shape[dims[target].index("G")] = call.shapes[owner][dims[owner].index("C")] + call.rng.randrange(1, 3)
    call.arrays[target] = call.make(tuple(shape))
    return call.corrupt(target, f"shape {tuple(shape)}")


@relative
def another_dtype(call: Call) -> str | None:
    integers = {name for name, array in call.given_arrays.items() if array.dtype.kind != "f"}
    names = [name for name in call.given() if name not in integers]
    if len(names) < 2:
        return None
    target = call.rng.choice(names)
    dtype = call.rng.choice([name for name in FLOATS[: 2 if call.kind == "JAX" else 3] if name != call.dtype])
    call.arrays[target] = call.make(call.shapes[target], dtype=dtype)
    return call.corrupt(target, dtype)


@relative
def another_kind(call: Call) -> str | None:
    names = call.given()
    if len(names) < 2 or call.surface != "dynk":
        return None
    target = call.rng.choice(names)
    kinds = [kind for kind in ("NumPy", "PyTorch", "DLPack", "JAX") if kind != call.kind]
    kind = call.rng.choice(kinds[: 3 if not call.size and call.dtype != "float64" else 2])
    call.arrays[target] = call.make(call.shapes[target], kind=kind if kind != "JAX" or not call.size else "NumPy")
    return call.corrupt(target, kind)


@relative
def both_none(call: Call) -> str | None:
    if call.op.name not in ("ddf", "ddf_upsample") or {"spatial", "channel"} & set(call.corrupted):
        return None
    call.arrays["spatial"] = call.arrays["channel"] = None
    call.corrupt("spatial", "None")
    return call.corrupt("channel", "None")


@relative
def another_device(call: Call) -> str | None:
    names = call.given()
    if len(names) < 2 or call.kind != "PyTorch":
        return None
    target = call.rng.choice(names)
    call.arrays[target] = torch.empty(call.shapes[target], dtype=getattr(torch, call.dtype), device="meta")
    return call.corrupt(target, "meta")
