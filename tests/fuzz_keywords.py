"""Corruptions of a call's options and keywords, and those of one operator; see fuzz_corruptions.py."""

from __future__ import annotations

import itertools
import math
from typing import Any

import fuzz_dlpack
import fuzz_values
import numpy as np
import torch
from fuzz_arrays import absolute, draw, pick, relative
from fuzz_calls import Call, convert

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
    "kernel_size": (0, -1, (0, 1), (1, -1), True, (1, True), 1 << 31),
    "padding": (-1, (0, -1), True, (1, True), 1 << 31, "same"),
    "kernel_boundary": ("border", "Clip", True),
    "dilations": (0, 2, (0,), (1, -1), (True,), ((1, True),), (1, 1 << 31), 1 << 31),
    "groups": (0, -1, True, 1 << 31, 1000),
    "dilation": (0, -1, (0, 1), (1, -1), True, (1, True), 1 << 31),
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
    kind = call.op.options[target][0].removesuffix("?")
    value = call.rng.choice(WRONG_OPTIONS[kind] + WRONG_OPTIONS.get(target, ()))
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
        thunks |= fuzz_dlpack.dlpack_producers(read_only)
    if not call.size and math.prod(shape) > 1:
        thunks["strided"] = lambda: convert(np.zeros((*shape[:-1], 2 * shape[-1]), call.dtype)[..., ::2], call.kind)
        if math.prod(shape[:-1]) > 1:  # a part of a single row is contiguous
            rows = (*shape[:-1], shape[-1] + 1)
            thunks["with gaps"] = lambda: convert(np.zeros(rows, call.dtype)[..., 1:], call.kind)
        if call.kind == "NumPy":
            thunks["reversed"] = lambda: np.flip(np.zeros(shape, call.dtype))
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
        call.keywords["out"] = memory = call.contiguous(call.out_shape)
        call.arrays[name] = memory[::-1] if call.kind == "NumPy" and call.rng.random() < 0.5 else memory
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
    wrong = [first, 1, 1.5, [0], [None], ["weigh"], [first, "grad_out"], [b"x"], object(), [[first]], {1: first}]
    wrong += [
        ["\0"],
        fuzz_values.Raising(),
        (name for name in ("weigh",)),
        itertools.repeat(first),
        itertools.count(),
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
