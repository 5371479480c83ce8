"""One JAX primitive runs every operator: what it returns, how it is batched and which XLA FFI handler it becomes.

A handler is made and registered when a call is lowered for a platform, so that nothing is compiled that no program
uses. Names of targets are stable: an executable from JAX's persistent cache finds them in another process.
"""

from __future__ import annotations

import contextvars
import ctypes
import importlib
import importlib.util
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from numba import config

from dynk import _dispatch
from dynk._operator import Operator, Options, Plan, Shape
from dynk.kernels.common import threads
from dynk.kernels.common.compile import serial
from dynk.kernels.common.dtypes import INTEGERS, ITEMSIZE
from dynk.kernels.common.run_cpu import kernel_inputs, kernel_of
from dynk_jax import _native, _python

PLATFORMS = {"cpu": "cpu", "cuda": "CUDA"}  # JAX's name of a platform: XLA's


class Call(NamedTuple):
    """What is static about a call: all but its arrays."""

    op: Operator
    direction: str  # "forward", or "backward": grad_out comes before the arrays
    options: Options
    given: tuple[str, ...]  # the array arguments that are there
    wanted: tuple[str, ...]  # backward: the array arguments whose gradient is computed
    backend: str | None  # asked for by name

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("grad_out", *self.given) if self.direction == "backward" else self.given


dynk_p: Any = Primitive("dynk")
dynk_p.multiple_results = True


def bind(call: Call, *arrays: Any) -> list[Any]:
    """Run a call on its inputs."""
    return dynk_p.bind(*arrays, call=call)  # type: ignore[no-any-return]


@partial(jax.jit, static_argnames=("call",))
def _run(*arrays: Any, call: Call) -> Any:
    return dynk_p.bind(*arrays, call=call)


def _plan(call: Call, shapes: Sequence[Shape], dtypes: Sequence[str]) -> Plan:
    given = {name: (shape, dtype) for name, shape, dtype in zip(call.inputs, shapes, dtypes, strict=True)}
    signature = [given.get(name, (None, None)) for name in call.op.arrays]
    return call.op.plan(call.op.name, tuple(s for s, _ in signature), tuple(d for _, d in signature), call.options)


def _result_shapes(call: Call, shapes: Sequence[Shape], dtypes: Sequence[str]) -> list[Shape]:
    if call.direction == "forward":
        return [_plan(call, shapes, dtypes).out_shape]
    return [shapes[call.inputs.index(name)] for name in call.wanted]


def _signature(arrays: Any) -> tuple[list[Shape], list[str]]:
    return [tuple(a.shape) for a in arrays], [a.dtype.name for a in arrays]


def _abstract(*avals: Any, call: Call) -> list[Any]:
    return [_like(avals[0], shape) for shape in _result_shapes(call, *_signature(avals))]


def _like(aval: Any, shape: Shape) -> Any:
    """Return the type of another shape, but of the same dtype and varying over the same axes of a shard_map."""
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec(*(None,) * len(shape)))  # type: ignore[no-untyped-call]
    return aval.update(shape=shape, weak_type=False, sharding=sharding)


dynk_p.def_impl(_run)
dynk_p.def_abstract_eval(_abstract)


# ---- batching ------------------------------------------------------------------------------------------------------


def _batch(arrays: Any, axes: Any, *, call: Call) -> tuple[Any, list[int]]:
    """Make the mapped axis part of one larger call where that is possible, else map call by call."""
    front = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    mapped = [axis is not None for axis in axes]
    size = next(a.shape[0] for a, is_mapped in zip(front, mapped, strict=True) if is_mapped)
    larger = _larger(call, front, mapped, size)
    if larger is None:
        results = _one_by_one(call, front, mapped)
    else:
        shapes, dtypes = _signature(front)
        single = [shape[m:] for shape, m in zip(shapes, mapped, strict=True)]
        results = [
            out.reshape(size, *shape)
            for out, shape in zip(bind(*larger), _result_shapes(call, single, dtypes), strict=True)
        ]
    return results, [0] * len(results)


def _larger(call: Call, arrays: list[Any], mapped: list[bool], size: int) -> tuple[Any, ...] | None:
    """Return the call, followed by its inputs, that does the work of `size` calls; None where there is none."""
    fold = getattr(own(call.op), "fold", _fold_batch)
    named = dict(zip(call.inputs, arrays, strict=True))
    folded = fold(call, named, dict(zip(call.inputs, mapped, strict=True)), size)
    if folded is None:
        return None
    named, options = folded
    call = call._replace(options=options)
    try:
        _plan(call, *_signature(named.values()))
    except ValueError:  # too many dimensions for the operator
        return None
    return (call, *named.values())


def _fold_batch(
    call: Call, arrays: dict[str, Any], mapped: dict[str, bool], size: int
) -> tuple[dict[str, Any], Options] | None:
    """Merge the mapped axis with N, the leading dimension of the arguments that the operator declares `batched`."""
    batched = call.op.batched | {"grad_out"}
    if any(mapped[name] and name not in batched for name in arrays) or not batched.issuperset(call.wanted):
        return None
    folded = {}
    for name, array in arrays.items():
        if name in batched:
            whole = array if mapped[name] else jnp.broadcast_to(array, (size, *array.shape))
            array = whole.reshape(size * whole.shape[1], *whole.shape[2:])
        folded[name] = array
    return folded, call.options


def _one_by_one(call: Call, arrays: list[Any], mapped: list[bool]) -> Any:
    def one(selected: list[Any]) -> Any:
        rest = iter(selected)
        return bind(call, *(next(rest) if m else array for array, m in zip(arrays, mapped, strict=True)))

    return jax.lax.map(one, [array for array, m in zip(arrays, mapped, strict=True) if m])


@cache
def own(op: Operator) -> Any:
    """Return the module `_<operator>` of one that has no `derivative`, None where there is none.

    It brings the operator's `formula` in jax.numpy, and `fold`, how a mapped axis becomes part of a larger call.
    """
    name = f"dynk_jax._{op.name}"
    if op.derivative is not None or importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)


batching.primitive_batchers[dynk_p] = _batch


# ---- lowering ------------------------------------------------------------------------------------------------------

_registered: dict[tuple[str, str], Any] = {}  # every handler stays alive here
_lock = threading.Lock()


def _lower(context: Any, *operands: Any, call: Call, platform: str) -> Any:
    plan = _plan(call, *_signature(context.avals_in))
    op = call.op
    # In an empty context: a request in force while lowering is no request made when the call was traced.
    runner = contextvars.Context().run(_dispatch.choose, op.name, op, platform, plan.dtype, call.backend)
    if runner.NAME == "cpu" and not config.DISABLE_JIT:  # type: ignore[attr-defined]
        kernel = kernel_of(op, call.direction, plan)
        target = f"dynk_{kernel.__name__}_{plan.dtype}"
        slots = _kernel_slots(call, [aval.dtype.name for aval in context.avals_in])
        attributes: dict[str, Any] = {"geometry": plan.geometry_array, "reals": plan.reals_array, "slots": slots}
        make: Callable[[], Any] = partial(_native_handler, kernel, call, plan.dtype)
    else:
        target = f"dynk_{op.name}_{call.direction}_{runner.NAME}"
        attributes = {"options": repr(plan.options), "slots": _slots(call)}
        make = partial(_python.handler, op, call.direction, runner)
    _register(target, platform, make)
    return jax.ffi.ffi_lowering(target)(context, *operands, **attributes)


def _register(target: str, platform: str, make: Callable[[], Any]) -> None:
    with _lock:
        if (target, platform) not in _registered:
            handler = make()
            capsule = jax.ffi.pycapsule(ctypes.c_void_p(handler.address))  # type: ignore[no-untyped-call]
            jax.ffi.register_ffi_target(target, capsule, platform=PLATFORMS[platform])
            _registered[target, platform] = handler


def _slots(call: Call) -> npt.NDArray[np.int64]:
    """Return where each array of an operator stands among the call's inputs, then among its results; -1: nowhere."""
    names = ("grad_out", *call.op.arrays) if call.direction == "backward" else call.op.arrays
    return np.array([_place(name, call.inputs) for name in names] + _result_slots(call), np.int64)


def _kernel_slots(call: Call, dtypes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the same of a CPU kernel's arrays, then of how many of its elements each element of the call's is."""
    given = dict(zip(call.inputs, dtypes, strict=True))
    slots, parts = [], []
    for name, words in kernel_inputs(call.op, call.direction):
        dtype = given.get(name, "")
        slots.append(_place(name, call.inputs) if words == (dtype in INTEGERS) else -1)
        parts.append(ITEMSIZE[dtype] // ITEMSIZE["int32"] if words and dtype else 1)
    results = _result_slots(call)
    return np.array([*slots, *results, *parts, *(1 for _ in results)], np.int64)


def _result_slots(call: Call) -> list[int]:
    return [0] if call.direction == "forward" else [_place(name, call.wanted) for name in call.op.arrays]


def _place(name: str, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else -1


def _for_xla(kernel: Any) -> Any:
    """Return a CPU kernel; without threads where they cannot bear concurrent callers, as XLA's threads are.

    Nor where JAX sees several devices in the CPU: they run side by side already, and TBB called from the
    threads of each can hang when the process ends.
    """
    alone = len(jax.local_devices(backend="cpu")) == 1
    return kernel if alone and threads.mode() in (threads.PARALLEL, threads.SHARED) else serial(kernel)


def _native_handler(kernel: Any, call: Call, dtype: str) -> Any:
    inputs = ["int32" if words else dtype for _, words in kernel_inputs(call.op, call.direction)]
    return _native.handler(_for_xla(kernel), len(inputs), (*inputs, *(dtype for _ in _result_slots(call))))


for _platform in PLATFORMS:
    mlir.register_lowering(dynk_p, partial(_lower, platform=_platform), platform=_platform)
