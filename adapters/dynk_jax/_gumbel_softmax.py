"""What is particular to `gumbel_softmax` in JAX: its batching, and a function with its derivatives of every order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dynk._operator import Options, operators
from dynk_jax import _ffi


def fold(call: Any, arrays: dict[str, Any], mapped: dict[str, bool], size: int) -> tuple[dict[str, Any], Options]:
    """Return the arrays and options of one call that does the work of `size` calls; each brings its own seeds along."""
    tau, hard, offset, axis = call.options
    ndim = arrays["logits"].ndim - mapped["logits"]
    folded = {
        name: array if mapped[name] else jnp.broadcast_to(array, (size, *array.shape)) for name, array in arrays.items()
    }
    if "seed" in folded:
        seed = folded["seed"]
        folded["seed"] = seed.reshape(-1) if seed.dtype == jnp.int64 else seed.reshape(-1, seed.shape[-1])
    return folded, (tau, hard, offset, axis - ndim if axis >= 0 else axis)


def formula(arrays: tuple[Any, ...], options: Options) -> Any:
    """Return the soft output by jax.numpy, around the one that the operator finds: the noise is not drawn again."""
    logits, seed = arrays
    tau, _, offset, axis = options
    wide = logits.astype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)
    given = {"logits": jax.lax.stop_gradient(wide)} | ({} if seed is None else {"seed": seed})
    op = operators()["gumbel_softmax"]
    call = _ffi.Call(op, "forward", (tau, False, offset, axis), tuple(given), (), None)
    (soft,) = _ffi.bind(call, *given.values())
    moved = (wide - jax.lax.stop_gradient(wide)) / tau
    return jax.nn.softmax(jnp.log(soft) + moved, axis).astype(logits.dtype)
