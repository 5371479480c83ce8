"""What is particular to `filter_norm` in JAX: its batching, and its equation in jax.numpy for second derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dynk._operator import Options


def fold(call: Any, arrays: dict[str, Any], mapped: dict[str, bool], size: int) -> tuple[dict[str, Any], Options]:
    """Return the arrays and options of one call that normalises the filters of `size` calls.

    `f` gets one more leading dimension, so its axes are counted from the end. A scale or shift gets it too where each
    call has its own, or where each call's gradient of it is wanted.
    """
    axes, eps = call.options
    ndim = arrays["f"].ndim - mapped["f"]
    folded = {}
    for name, array in arrays.items():
        if name in ("scale", "shift"):
            if mapped[name] or name in call.wanted:
                shape = array.shape[mapped[name] :]
                ones = (1,) * (ndim - len(shape))
                folded[name] = _leading(array, mapped[name], size).reshape(size, *ones, *shape)
            else:
                folded[name] = array
        else:
            folded[name] = _leading(array, mapped[name], size)
    return folded, (tuple(axis - ndim if axis >= 0 else axis for axis in axes), eps)


def _leading(array: Any, mapped: bool, size: int) -> Any:
    return array if mapped else jnp.broadcast_to(array, (size, *array.shape))


def formula(arrays: tuple[Any, ...], options: Options) -> Any:
    """Return `filter_norm` by jax.numpy: 0 for a filter of equal taps, with derivatives that are 0 there, never NaN."""
    f, scale, shift = arrays
    axes, eps = options
    inner = jnp.float64 if f.dtype == jnp.float64 else jnp.float32
    taps = f.shape[axes[0]] * f.shape[axes[1]]
    wide = f.astype(inner)
    first = jax.lax.slice_in_dim(jax.lax.slice_in_dim(wide, 0, 1, axis=axes[0]), 0, 1, axis=axes[1])
    d = wide - first  # exactly 0 for equal taps
    d = d - d.mean(axes, keepdims=True)
    # Deviations relative to the largest, so that their squares neither overflow nor vanish.
    largest = jax.lax.stop_gradient(jnp.abs(d).max(axes, keepdims=True))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = jnp.square(d / unit).sum(axes, keepdims=True)
    flat = squares == 0
    std = unit * jnp.sqrt(jnp.where(flat, 1, squares) / (taps - 1))
    z = jnp.where(flat, 0, d / (std + eps))
    out = z if scale is None else z * scale.astype(inner)
    return (out if shift is None else out + shift.astype(inner)).astype(f.dtype)
