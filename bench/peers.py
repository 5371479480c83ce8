"""How a formula becomes a contender: formula(*arrays, **options) in PyTorch, eager or compiled, or in JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench.registry import Arrays, Peer


def torch_peer(formula: Callable[..., Any], *, compiled: bool = False) -> Peer:
    """Return the contender that computes a formula of tensors, and its gradients by autograd."""

    def call(arrays: Arrays, grad_out: Any, options: dict[str, Any], direction: str) -> Any:
        import torch

        bound = partial(formula, **options)
        run = torch.compile(bound, dynamic=False) if compiled else bound
        tensors = [None if a is None else torch.from_numpy(a) for a in arrays]
        if direction == "forward":

            def forward() -> tuple[Any, ...]:
                with torch.no_grad():
                    return (run(*tensors).numpy(),)

            return forward
        grad = torch.from_numpy(grad_out)
        given = [t.requires_grad_() for t in tensors if t is not None]

        def step() -> tuple[Any, ...]:
            return tuple(g.numpy() for g in torch.autograd.grad(run(*tensors), given, grad))

        return step

    return call


def jax_peer(formula: Callable[..., Any]) -> Peer:
    """Return the contender that computes a formula of JAX arrays, and its gradients, inside jit."""

    def call(arrays: Arrays, grad_out: Any, options: dict[str, Any], direction: str) -> Any:
        import jax
        import jax.numpy as jnp

        given = [i for i, a in enumerate(arrays) if a is not None]
        values = [jnp.asarray(arrays[i]) for i in given]

        def of_given(*present: Any) -> Any:
            full: list[Any] = [None] * len(arrays)
            for i, value in zip(given, present, strict=True):
                full[i] = value
            return formula(*full, **options)

        if direction == "forward":
            run = jax.jit(of_given)
            return lambda: (np.asarray(run(*values).block_until_ready()),)
        grad = jnp.asarray(grad_out)
        pull = jax.jit(lambda grad, *present: jax.vjp(of_given, *present)[1](grad))
        return lambda: tuple(np.asarray(g) for g in jax.block_until_ready(pull(grad, *values)))

    return call
