"""Who takes part in a row: dynk itself, and a family's formulas in PyTorch and JAX.

A backward pass is timed without the forward pass before it, which PyTorch's contenders run off the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import dynk
from bench.registry import Call, Contender, Problem
from dynk import testing

PREALLOCATED = "dynk, preallocated"
ALLOCATING = "dynk, allocating"


def tensor(array: Any, device: str) -> Any:
    """Return a NumPy array as a tensor of its own on the device, or over the same memory on the CPU."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)


def _another(array: Any) -> Any:
    """Return a copy; NumPy's own would not begin with a line of the cache, as the results of all others do."""
    return array.clone() if hasattr(array, "clone") else testing.rounded(array, array.dtype.name)


def contenders(problem: Problem) -> list[Contender]:
    """Return dynk's contenders."""
    found = _dynk(problem, "dynk", None)
    if problem.device == "cuda":
        ready = [b for b in dynk.backends() if b.device == "cuda" and b.reason is None]
        for backend in ready[1:]:  # the first is the one that dynk chooses by itself
            if problem.case.dtype in backend.dtypes:
                found += _dynk(problem, f"dynk {backend.name}", backend.name)
    return found


def _dynk(problem: Problem, name: str, backend: str | None) -> list[Contender]:
    case = problem.case
    arrays, grad_out = problem.arrays, problem.grad_out
    if problem.device == "cuda":
        arrays = tuple(None if a is None else tensor(a, "cuda") for a in arrays)
        grad_out = tensor(grad_out, "cuda")
    options = {**case.options, "backend": backend}
    # Copies, of wrong values: no page of them is touched for the first time on the clock.
    if problem.direction == "forward":
        out = _another(grad_out)
        preallocated = Call(lambda _: (getattr(dynk, case.operator)(*arrays, **options, out=out),))
        allocating = Call(lambda _: (getattr(dynk, case.operator)(*arrays, **options),))
    else:
        backward = getattr(dynk, f"{case.operator}_backward")
        grads = tuple(
            _another(a) if n in problem.results else None for n, a in zip(case.op.arrays, arrays, strict=True)
        )
        preallocated = Call(lambda _: _present(backward(grad_out, *arrays, **options, grads=grads)))
        allocating = Call(lambda _: _present(backward(grad_out, *arrays, **options)))
    return [
        Contender(f"{name}, preallocated", {"": preallocated}),
        Contender(f"{name}, allocating", {"": allocating}),
    ]


def _present(results: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(result for result in results if result is not None)


def peers(problem: Problem) -> list[Contender]:
    """Return what a user of PyTorch or JAX has today, and the family's yardsticks."""
    family, operator = problem.case.family, problem.case.operator
    if not family.TORCH[operator]:
        return list(family.yardsticks(problem))
    found = [
        Contender("PyTorch eager", _each(problem, family.TORCH[operator], _torch_eager)),
        Contender("torch.compile", _each(problem, family.TORCH[operator], _torch_compiled)),
    ]
    if problem.device == "cpu":  # JAX runs on a stream of its own, which the events of the timing do not see
        found.append(Contender("jax.jit", _each(problem, family.JAX[operator], _jax)))
    found += family.yardsticks(problem)
    return found


def _each(problem: Problem, formulas: dict[str, Any], make: Callable[[Problem, Any], Call]) -> dict[str, Call]:
    case = problem.case
    fit = {name: formula for name, formula in formulas.items() if name not in case.unfit}
    return {name: make(problem, partial(formula, **case.options)) for name, formula in fit.items()}


def _torch_compiled(problem: Problem, formula: Callable[..., Any]) -> Call:
    import torch

    torch.compiler.reset()  # what is compiled for the rows before counts towards PyTorch's limit of recompilations
    return _torch_eager(problem, torch.compile(formula, dynamic=False))


def _torch_eager(problem: Problem, formula: Callable[..., Any]) -> Call:
    import torch

    tensors = [None if a is None else tensor(a, problem.device) for a in problem.arrays]
    if problem.direction == "forward":
        return Call(lambda _: (formula(*tensors),))
    names = problem.case.op.arrays
    tensors = [
        t.detach().requires_grad_() if t is not None and name in problem.results else t
        for name, t in zip(names, tensors, strict=True)
    ]
    given = [t for t in tensors if t is not None and t.requires_grad]
    grad_out = tensor(problem.grad_out, problem.device)
    return Call(lambda out: torch.autograd.grad(out, given, grad_out), lambda: formula(*tensors))


def _jax(problem: Problem, formula: Callable[..., Any]) -> Call:
    import jax

    wait: Any = jax.block_until_ready
    given = [i for i, a in enumerate(problem.arrays) if a is not None]
    values = [jax.numpy.asarray(problem.arrays[i]) for i in given]

    def of_given(*present: Any) -> Any:
        full: list[Any] = [None] * len(problem.arrays)
        for i, value in zip(given, present, strict=True):
            full[i] = value
        return formula(*full)

    if problem.direction == "forward":
        forward = jax.jit(of_given)
        return Call(lambda _: (wait(forward(*values)),))
    grad_out = jax.numpy.asarray(problem.grad_out)
    names = [problem.case.op.arrays[i] in problem.results for i in given]
    pull = jax.jit(lambda grad, *present: jax.vjp(of_given, *present)[1](grad))
    return Call(
        lambda _: tuple(grad for grad, floats in zip(wait(pull(grad_out, *values)), names, strict=True) if floats)
    )
