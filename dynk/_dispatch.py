"""From checked metadata to the backend that runs a call.

Backends are modules of `dynk.kernels.common` with one surface: NAME, DEVICE, DTYPES, LAUNCHERS (the file of a family
that they run), `unavailable()` and `run(...)`. They are tried in order; `backend=` or `with dynk.backend(...)` asks for
one by name, which no other ever replaces.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from dynk._arrays import (
    NUMPY,
    Borrowed,
    Device,
    Kind,
    View,
    borrow,
    compact,
    numpy_name,
    numpy_view,
    overlap,
    show_device,
)
from dynk._checks import brief
from dynk._operator import Operator, Options, Shape
from dynk.kernels.common.dtypes import INTEGERS, STORAGE

# Order of preference; the reference is never chosen by itself.
BACKENDS = {
    "cpu": "run_cpu",
    "cupy": "run_cupy",
    "numba-cuda": "run_numba_cuda",
    "reference": "run_reference",
}
MOST_NAMES = 64  # of a collection of arguments, more than any operator has
_requested: ContextVar[str | None] = ContextVar("dynk_backend", default=None)
_chosen: dict[tuple[Operator, str, str, str | None], Any] = {}


class BackendStatus(NamedTuple):
    """What one backend says of itself on this machine."""

    name: str
    device: str
    dtypes: tuple[str, ...]
    reason: str | None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every call inside the `with` block on one backend.

    Parameters
    ----------
    name : {"cpu", "cupy", "numba-cuda", "reference"}
        The backend. One that cannot run a call makes that call raise NotImplementedError; none is replaced silently.

    Raises
    ------
    ValueError
        If there is no backend of that name.

    Examples
    --------
    >>> import numpy as np, dynk
    >>> x, filters = np.ones((1, 2, 4, 4)), np.ones((1, 2, 3, 3))
    >>> with dynk.backend("reference"):
    ...     dynk.ddf(x, None, filters)[0, 0, 1]
    array([6., 9., 9., 6.])
    """
    _check_name("backend", name)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def backends() -> list[BackendStatus]:
    """Say of every backend what it can do on this machine.

    Returns
    -------
    list of BackendStatus
        Name, device, dtypes and the reason why it cannot run here, None where it can; in the order of preference.

    Examples
    --------
    >>> import dynk
    >>> [status.name for status in dynk.backends()]
    ['cpu', 'cupy', 'numba-cuda', 'reference']
    """
    return [
        BackendStatus(name, runner.DEVICE, tuple(runner.DTYPES), runner.unavailable())
        for name, runner in ((name, runner_of(name)) for name in BACKENDS)
    ]


def runner_of(name: str) -> Any:
    """Return the module that runs calls on a backend."""
    return importlib.import_module(f"dynk.kernels.common.{BACKENDS[name]}")


def choose(function: str, op: Operator, device: str, dtype: str, requested: str | None = None) -> Any:
    """Return the runner for a call: the one asked for by name, else the first without a reason to refuse."""
    if requested is None:
        requested = _requested.get()
    else:
        _check_name(function, requested)
    key = (op, device, dtype, requested)
    runner = _chosen.get(key)
    if runner is None:
        runner = _chosen[key] = _choose(function, op, device, dtype, requested)
    return runner


def _choose(function: str, op: Operator, device: str, dtype: str, requested: str | None) -> Any:
    names = [requested] if requested is not None else [name for name in BACKENDS if name != "reference"]
    reasons = []
    for name in names:
        runner = runner_of(name)
        reason = _refusal(runner, op, device, dtype)
        if reason is None:
            return runner
        reasons.append(f"{name}: {reason}")
    msg = f"{function}: no backend for {dtype} arrays on {device} ({'; '.join(reasons)})"
    raise NotImplementedError(msg)


def _refusal(runner: Any, op: Operator, device: str, dtype: str) -> str | None:
    if device != runner.DEVICE:
        return f"runs on {runner.DEVICE} arrays"
    if dtype not in runner.DTYPES:
        return f"has no {dtype}"
    if not op.has_launchers(runner.LAUNCHERS):
        return f"has no kernels for {op.name}"
    reason: str | None = runner.unavailable()
    return reason


def _check_name(function: str, name: object) -> None:
    if not isinstance(name, str) or name not in BACKENDS:
        msg = f"{function}: backend must be one of {', '.join(map(repr, BACKENDS))}, got {brief(name)}"
        raise (ValueError if isinstance(name, str) else TypeError)(msg)


def forward(op: Operator, arrays: tuple[Any, ...], options: Options, out: Any, backend: str | None) -> Any:
    """Run an operator on any arrays and return its output, of their kind."""
    name = op.name
    borrowed = borrow(name, op.arrays, arrays)
    kind, device, shapes, dtypes = borrowed
    plan = op.plan(name, shapes, dtypes, options)
    runner = choose(name, op, device[0], plan.dtype, backend)
    if out is not None:  # checked before anything is copied
        _check_output(name, "out", out, kind, device, plan.out_shape, plan.dtype)
    views = _views(name, op.arrays, arrays, borrowed)
    if out is None:
        view, memory = kind.allocate(plan.out_shape, plan.dtype, device)
    else:
        view, memory = _given(name, "out", out, kind, plan.out_shape, plan.dtype, views), out
    if 0 not in plan.out_shape:
        runner.run(op, "forward", plan, tuple(map(compact, views)), (view,), device, kind.stream(device))
    return memory if out is not None else kind.finish(memory, plan.dtype, arrays[0])


def backward(
    op: Operator,
    grad_out: Any,
    arrays: tuple[Any, ...],
    options: Options,
    needs: Any,
    grads: Any,
    backend: str | None,
) -> tuple[Any, ...]:
    """Run an operator's gradient and return a gradient or None for each of its arrays."""
    name = f"{op.name}_backward"
    everything = (grad_out, *arrays)
    names = ("grad_out", *op.arrays)
    borrowed = borrow(name, names, everything)
    kind, device, shapes, dtypes = borrowed
    plan = op.plan(name, shapes[1:], dtypes[1:], options)
    if shapes[0] != plan.out_shape or dtypes[0] != plan.dtype:
        given = "None" if grad_out is None else f"{dtypes[0]} {shapes[0]}"
        msg = (
            f"{name}: grad_out must have the dtype and shape of the output, {plan.dtype} {plan.out_shape}, got {given}"
        )
        raise (ValueError if dtypes[0] == plan.dtype else TypeError)(msg)
    given_grads = _given_grads(op, name, grads)
    wanted = _wanted(op, name, borrowed, needs, given_grads)
    runner = choose(name, op, device[0], plan.dtype, backend)
    for argument, given, shape in zip(op.arrays, given_grads, shapes[1:], strict=True):
        if given is not None:  # checked before anything is copied
            _check_output(name, f"grads.{argument}", given, kind, device, shape or (), plan.dtype)
    views = _views(name, names, everything, borrowed)
    outputs: list[View | None] = [None] * len(op.arrays)
    memories: list[Any] = [None] * len(op.arrays)
    written = list(views)
    for i, (argument, given) in enumerate(zip(op.arrays, given_grads, strict=True)):
        if given is not None:
            shape = shapes[i + 1] or ()
            outputs[i] = _given(name, f"grads.{argument}", given, kind, shape, plan.dtype, tuple(written))
            written.append(outputs[i])
            memories[i] = given
    for i, (needed, given) in enumerate(zip(wanted, given_grads, strict=True)):
        if needed and given is None:
            outputs[i], memories[i] = kind.allocate(shapes[i + 1] or (), plan.dtype, device)
    if any(view is not None and 0 not in view.shape for view in outputs):
        inputs = tuple(map(compact, views))
        runner.run(op, "backward", plan, inputs, tuple(outputs), device, kind.stream(device))
    return tuple(
        memory if memory is None or memory is given else kind.finish(memory, plan.dtype, grad_out)
        for memory, given in zip(memories, given_grads, strict=True)
    )


def _views(
    function: str, names: tuple[str, ...], arrays: tuple[Any, ...], borrowed: Borrowed
) -> tuple[View | None, ...]:
    kind, _, shapes, dtypes = borrowed
    views: list[View | None] = []
    for name, array, shape, dtype in zip(names, arrays, shapes, dtypes, strict=True):
        if shape is None or dtype is None:
            views.append(None)
        elif type(array) is np.ndarray:  # the common case, which need not be checked
            views.append(numpy_view(array, dtype))
        else:
            views.append(_view(function, name, kind, array, shape, dtype))
    return tuple(views)


def _view(function: str, argument: str, kind: Kind, array: Any, shape: Shape, dtype: str) -> View:
    """Return the memory of an array, which must be what the array said of itself: kernels check no bounds."""
    try:
        view = kind.view(array, dtype)
    except TypeError as error:
        msg = f"{function}: {argument} must be {error}"
        raise TypeError(msg) from None
    if view.shape != shape:
        msg = f"{function}: {argument} must have memory of its shape, {shape}, got {view.shape}"
        raise ValueError(msg)
    if isinstance(view, np.ndarray) and view.dtype != STORAGE[dtype]:
        msg = f"{function}: {argument} must have memory of its dtype, {dtype}, got {view.dtype}"
        raise TypeError(msg)
    return view


def _check_output(
    function: str, argument: str, array: Any, kind: Kind, device: Device, shape: Shape, dtype: str
) -> None:
    """Check that an array the caller preallocated is fit to be an output."""
    if (
        type(array) is np.ndarray
        and kind is NUMPY
        and array.flags.carray
        and array.shape == shape
        and array.dtype.isnative
        and numpy_name(array.dtype) == dtype
    ):
        return  # the common case, which need not be checked further
    its = borrow(function, (argument,), (array,))
    if its.kind is not kind or its.device != device:
        expected = f"a {kind.name} array on {show_device(device)}"
        msg = f"{function}: {argument} must be {expected}, got {its.kind.name} on {show_device(its.device)}"
        raise (TypeError if its.kind is not kind else ValueError)(msg)
    if its.shapes[0] != shape or its.dtypes[0] != dtype:
        msg = f"{function}: {argument} must be {dtype} of shape {shape}, got {its.dtypes[0]} of shape {its.shapes[0]}"
        raise (ValueError if its.dtypes[0] == dtype else TypeError)(msg)
    reason = kind.writable(array)
    if reason is not None:
        msg = f"{function}: {argument} must be {reason}"
        raise ValueError(msg)


def _given(
    function: str, argument: str, array: Any, kind: Kind, shape: Shape, dtype: str, others: tuple[View | None, ...]
) -> View:
    """Return the view of a checked output that the caller preallocated, which no other view may overlap."""
    view = numpy_view(array, dtype) if kind is NUMPY else _view(function, argument, kind, array, shape, dtype)
    for other in others:
        if other is not None and overlap(view, other):
            msg = f"{function}: {argument} must not share memory with another array of the call"
            raise ValueError(msg)
    return view


def _given_grads(op: Operator, function: str, grads: Any) -> tuple[Any, ...]:
    if grads is None:
        return (None,) * len(op.arrays)
    if not isinstance(grads, tuple) or len(grads) != len(op.arrays):
        msg = (
            f"{function}: grads must be a tuple with an array or None for each of ({', '.join(op.arrays)}), "
            f"got {len(grads) if isinstance(grads, tuple) else type(grads).__name__}"
        )
        raise (ValueError if isinstance(grads, tuple) else TypeError)(msg)
    return grads


def _wanted(op: Operator, function: str, borrowed: Borrowed, needs: Any, given: tuple[Any, ...]) -> tuple[bool, ...]:
    """Return for each array argument whether its gradient is to be computed."""
    differentiable = [
        dtype is not None and not (name in op.integers and dtype in INTEGERS)
        for name, dtype in zip(op.arrays, borrowed.dtypes[1:], strict=True)
    ]
    needs_given = needs is not None
    if not needs_given:
        if any(grad is not None for grad in given):
            needs = [name for name, grad in zip(op.arrays, given, strict=True) if grad is not None]
        else:
            return tuple(differentiable)
    else:
        needs = _names(function, needs)
    for name in needs:
        if name not in op.arrays:
            msg = f"{function}: needs must name arguments among ({', '.join(op.arrays)}), got {brief(name)}"
            raise ValueError(msg)
        if not differentiable[op.arrays.index(name)]:
            asked = "needs must name" if needs_given else "grads must be for"
            msg = f"{function}: {asked} floating arrays that were given, got {name!r}"
            raise ValueError(msg)
    for name, grad in zip(op.arrays, given, strict=True):
        if grad is not None and name not in needs:
            msg = f"{function}: grads must be None where needs does not ask for the gradient, got an array for {name!r}"
            raise ValueError(msg)
    return tuple(name in needs for name in op.arrays)


def _names(function: str, needs: Any) -> tuple[str, ...]:
    """Return the argument names of a collection, which may be one that can be walked only once, or that never ends."""
    try:
        names = () if isinstance(needs, str) else tuple(islice(needs, MOST_NAMES + 1))
    except Exception:  # whatever keeps it from being walked
        names = (None,)
    if isinstance(needs, str) or not all(isinstance(name, str) for name in names):
        msg = f"{function}: needs must be a collection of argument names, got {brief(needs)}"
        raise TypeError(msg)
    if len(names) > MOST_NAMES:
        msg = f"{function}: needs must have at most {MOST_NAMES} names, got more in {brief(needs)}"
        raise ValueError(msg)
    return names
