"""Calls that are malformed by construction: a sample call of an operator, varied harmlessly, then corrupted.

Harmless variations change what a call is made of and leave it valid: the kind of its arrays, dtype, layout, an empty
batch, a batch of terabytes with stride 0. Corruptions are of two sorts:

- an absolute one makes the call wrong whatever else is done to it, such as a text for an array;
- a relative one makes arguments disagree, such as another width for one of two arrays. Two of these might agree again,
  so that a call gets one at most.

Every corruption of a call has another target (argument, option or keyword), and none is applied twice to one target.
So a call with at least one corruption is wrong. What shapes an argument may have is read from the public docstrings,
not from the code that checks it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import fuzz_values
import numpy as np
import torch
from fuzz_calls import BATCH, FLOATS, OPERATORS, Call, convert

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
        make = fuzz_values.dlpack_producers if call.kind == "DLPack" else fuzz_values.numpy_arrays
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
    names = call.given()
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


# ---- options ---------------------------------------------------------------------------------------------------------

NOWHERE: tuple[Any, ...] = (1j, object(), ..., {}, set(), b"1", np.array(["1"]), lambda: 1, fuzz_values.Raising())
NO_INT = (*NOWHERE, 1.5, "2", [2.0], np.float32(2), np.array([2, 2]), 10**5000, -(10**5000), 1 << 70, float("nan"))
WRONG_OPTIONS: dict[str, tuple[Any, ...]] = {
    "int": (*NO_INT, (2, 2), [2]),
    "int[2]": (
        *NO_INT,
        *(
            (),
            (1,),
            (1, 2, 3),
            [1] * 5000,
            (1, None),
            (1.0, 2.0),
            ("1", "1"),
            ((1, 1), (1, 1)),
            range(0),
            range(1 << 60),
        ),
        *((1 << 70, 1), (1, 10**5000), (-1, -1), (1, object()), (np.float64(1), 1), (fuzz_values.Raising(), 1)),
        *(np.array([1, 1]), np.array([[1, 1]]), torch.ones(2), torch.ones(2, device="meta"), (1, torch.ones(2)), "12"),
    ),
    "str": (*NOWHERE, None, 1, "MUL", "mul ", "", "\0", "\udcff", "x" * 100_000, ["mul"], ("mul",), np.array(["mul"])),
    "float": (
        *(value for value in NOWHERE if not isinstance(value, np.ndarray)),
        *(None, "1", [1.0], (1.0,), 10**5000, float("nan"), float("inf"), np.nan, np.array([1.0, 2.0]), torch.ones(2)),
        *(torch.ones((), device="meta"), np.datetime64("2020"), np.array([[None]])),
    ),
    "bool": (
        "yes",
        object(),
        1j,
        None,
        1,
        0.0,
        np.array([True]),
        torch.ones(1, dtype=torch.bool),
        fuzz_values.Raising(),
    ),
    "int[][]": (
        *NO_INT,
        *((1, None), (1.0, 2.0), ("1", "1"), ((1, 1, 1),), ((1,),), ((),), range(0), "12", (), [1] * 9, [[1, 2], 1.5]),
        *((1, object()), (fuzz_values.Raising(), 1), ((1, fuzz_values.Raising()),), np.array([1, 1]), torch.ones(2)),
    ),
    "bool[2]": (
        *(
            "yes",
            object(),
            None,
            1,
            0.0,
            (),
            (True,),
            (True, False, True),
            [True] * 5000,
            (True, None),
            (1, 0),
            ("a", "b"),
        ),
        *(
            ((True, True), (True, True)),
            range(2),
            np.array([True, False]),
            fuzz_values.Raising(),
            (fuzz_values.Raising(), True),
        ),
    ),
    # by name
    "stride": (0, -1, (0, 1), (1, -1), True, (1, True), 1 << 31),
    "dilation": (0, -1, (0, 1), (1, -1), True, (1, True), 1 << 31),
    "dilations": (0, 2, (0,), (1, -1), (True,), ((1, True),), (1, 1 << 31), 1 << 31),
    "groups": (0, -1, True, 1 << 31, 1000),
    "scale": (0, -1, True, 1 << 31),
    "samples": (0, -1, True, 65, 1 << 31),
    "sample_stride": (0, -1, True, 1 << 31),
    "eps": (-1.0, -float("inf"), True, -1e-300),
    "axes": (0, (0, 0), (-1, -1), (0, 63), (-64, 0), (True, 0), 2),
}


@absolute
def option(call: Call) -> str | None:
    target = pick(call, [name for name in call.op.options if name not in call.corrupted])
    if target is None:
        return None
    value = call.rng.choice(WRONG_OPTIONS[call.op.options[target][0]] + WRONG_OPTIONS.get(target, ()))
    call.options[target] = value
    return call.corrupt(target, show(value))


def show(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except Exception as error:  # some values refuse this too
        return f"{type(value).__name__} whose repr raises {type(error).__name__}"


# ---- keywords of the core --------------------------------------------------------------------------------------------


@absolute
def backend(call: Call) -> str | None:
    if "backend" in call.corrupted:
        return None
    if call.surface == "dynk":
        wrong = (
            "opencl",
            "",
            "CPU",
            1,
            b"cpu",
            ["cpu"],
            object(),
            True,
            "cpu\0",
            fuzz_values.Raising(),
            "cupy",
            "numba-cuda",
        )
        call.keywords["backend"] = call.rng.choice(wrong)
    elif call.surface == "dynk_jax" and call.size == "huge":  # JAX converts NumPy arrays before it knows of a backend
        return None
    else:
        call.backend = call.rng.choice(["cupy", "numba-cuda"])
    return call.corrupt("backend", "wrong")


@absolute
def out(call: Call) -> str | None:
    if call.surface != "dynk" or call.backward or "out" in call.corrupted:
        return None
    shape = call.out_shape
    note, call.keywords["out"] = draw(call, unfit_outputs(call, shape))
    return call.corrupt("out", note)


def unfit_outputs(call: Call, shape: tuple[int, ...]) -> fuzz_values.Thunks:
    small = tuple(min(extent, 3) for extent in shape)
    read_only = np.zeros(small, call.dtype)
    read_only.flags.writeable = False
    integers = "int32" if call.kind != "DLPack" else "uint16"
    thunks: fuzz_values.Thunks = {
        "shape": lambda: call.contiguous((*small, 2)),
        "rank": lambda: call.contiguous(small[1:]),
        "scalar": lambda: call.contiguous(()),
        "dtype": lambda: call.contiguous(small, dtype=integers),
        "kind": lambda: call.contiguous(small, kind="PyTorch" if call.kind != "PyTorch" else "NumPy"),
        "JAX": lambda: call.contiguous(small, kind="JAX", dtype="float32"),
    }
    thunks |= {f"{name}": thunk for name, thunk in fuzz_values.no_arrays(read_only).items()}
    if call.kind == "NumPy":
        thunks["read-only and huge"] = lambda: np.broadcast_to(np.zeros((), call.dtype), shape)
        thunks |= fuzz_values.numpy_arrays(read_only)
    if call.kind == "PyTorch":
        thunks |= fuzz_values.torch_tensors_of_core(torch.zeros(small, dtype=getattr(torch, call.dtype)))
    if call.kind == "DLPack":
        thunks |= fuzz_values.dlpack_producers(read_only)
    if not call.size:
        thunks["strided"] = lambda: convert(np.zeros((*shape[:-1], 2 * shape[-1]), call.dtype)[..., ::2], call.kind)
        thunks["transposed"] = lambda: convert(np.zeros((*shape[:-1], shape[-1] + 1), call.dtype)[..., 1:], call.kind)
        if call.kind == "NumPy":
            thunks["reversed"] = lambda: np.zeros(shape, call.dtype)[::-1, ..., ::-1]
    return thunks


@absolute
def grads(call: Call) -> str | None:
    if not call.backward or "grads" in call.corrupted:
        return None
    count = len(call.op.arrays)
    index = call.rng.randrange(count)
    name = call.op.arrays[index]
    entries: list[Any] = [None] * count
    wrong: Any = call.rng.choice(([], [None] * count, {}, "x" * count, (), (None,) * (count + 1), 1, object()))
    if call.rng.random() < 0.7:
        shape = call.shapes[name]
        note, entries[index] = draw(call, unfit_outputs(call, shape if shape is not None else (2, 3)))
        wrong = tuple(entries)
    else:
        note = type(wrong).__name__
    call.keywords["grads"] = wrong
    return call.corrupt("grads", note)


@absolute
def overlap(call: Call) -> str | None:
    """Ask for a result in the memory of an input, or for two in the same."""
    names = [name for name in call.given() if name != "grad_out" and call.shapes[name] == call.out_shape]
    if call.surface != "dynk" or call.kind not in ("NumPy", "PyTorch") or call.size:
        return None
    if not call.backward:
        target = "out"
        if not names or target in call.corrupted:
            return None
        name = call.rng.choice(names)
        call.keywords["out"] = call.arrays[name] = call.contiguous(call.out_shape)
        call.corrupted.append(name)
        return call.corrupt(target, f"is {name}")
    target = "grads"
    given = [name for name in call.given() if name != "grad_out"]
    if len(given) < 2 or target in call.corrupted:
        return None
    memory = np.zeros(max(int(np.prod(call.shapes[name])) for name in given), call.dtype)
    entries = {name: convert(_first(memory, call.shapes[name]), call.kind) for name in call.rng.sample(given, 2)}
    call.keywords["grads"] = tuple(entries.get(name) for name in call.op.arrays)
    return call.corrupt(target, f"of {' and '.join(entries)} share memory")


def _first(memory: Any, shape: tuple[int, ...]) -> Any:
    return memory[: int(np.prod(shape))].reshape(shape)


@absolute
def needs(call: Call) -> str | None:
    if not call.backward or "needs" in call.corrupted:
        return None
    absent = [name for name in call.op.arrays if call.shapes[name] is None]
    first = call.op.arrays[0]
    wrong = [first, 1, 1.5, [0], [None], ["weight"], [first, "grad_out"], [b"x"], object(), [[first]], {1: first}]
    wrong += [
        ["\0"],
        fuzz_values.Raising(),
        (name for name in ("weight",)),
        np.array([1]),
        [first.upper()],
        True,
        "",
        ...,
    ]
    wrong += [[name] for name in absent] + [[first, name] for name in absent]
    call.keywords["needs"] = value = call.rng.choice(wrong)
    return call.corrupt("needs", show(value))


# ---- of one operator -------------------------------------------------------------------------------------------------


@absolute
def wrong_axes(call: Call) -> str | None:
    if call.op.name != "filter_norm" or "axes" in call.corrupted or "f" in call.corrupted:
        return None
    count = len(call.shapes["f"])
    first = call.options["axes"][0]
    others = [
        (first, count),
        (-count - 1, first),
        (first, first),
        (first, (first + count) % (2 * count) - count),
        (63, 0),
    ]
    call.options["axes"] = call.rng.choice(
        [pair for pair in others if pair[0] == pair[1] or not _distinct(pair, count)]
    )
    call.corrupted.append("f")
    return call.corrupt("axes", str(call.options["axes"]))


def _distinct(axes: tuple[int, int], count: int) -> bool:
    return all(-count <= axis < count for axis in axes) and axes[0] % count != axes[1] % count


@absolute
def one_tap(call: Call) -> str | None:
    if call.op.name != "filter_norm" or "f" in call.corrupted or "axes" in call.corrupted:
        return None
    shape = list(call.shapes["f"])
    for axis in call.options["axes"]:
        shape[axis] = 1
    call.arrays["f"] = call.make(tuple(shape))
    call.corrupted.append("axes")
    return call.corrupt("f", "one tap")


@relative
def broadcast(call: Call) -> str | None:
    if call.op.name != "filter_norm":
        return None
    target = pick(call, [name for name in call.given() if name in ("scale", "shift")])
    if target is None:
        return None
    full = call.shapes["f"]
    back = call.rng.randrange(len(full) + 1)
    shape = (2, *full) if back == len(full) else (full[-1 - back] + 1 + (full[-1 - back] == 0), *(1,) * back)
    call.arrays[target] = call.make(shape if call.size != "huge" else (7, 11, *(1,) * (len(full) - 1)))
    return call.corrupt(target, f"shape {shape}")


def malformed(surface: str, seed: int, index: int) -> Call:
    """Return the malformed call of a seed and an index; the same one every time."""
    rng = random.Random(f"{surface} {seed} {index}")
    call = Call(surface, rng)
    wanted = rng.choice((1, 1, 2, 3))
    relative_left = True
    for _ in range(50):
        kinds = [*ABSOLUTE, *(RELATIVE * 2 if relative_left else ())]
        corruption = rng.choice(kinds)
        if corruption(call) is not None:
            relative_left = relative_left and corruption not in RELATIVE
            wanted -= 1
            if wanted == 0:
                break
    if len(call.notes) == 1 and relative_left:
        call.sole = call.corrupted[-1]
    if not call.notes:
        msg = f"no corruption applies to {call}"
        raise AssertionError(msg)
    return call
