"""`FilterNorm`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynk_jax.functional import filter_norm

RELU_GAIN = math.sqrt(2)


class FilterNorm(nnx.Module):
    r"""Normalise each filter over its taps (DDF Eq. 3).

    .. math::
        out = (f - mean(f)) / (std(f) + eps) \cdot scale + shift

    with the unbiased standard deviation. Filters come out with values of the size `gain` / sqrt(T), T being their
    taps, so that what they filter keeps its size.

    Parameters
    ----------
    shape : tuple of int
        That of the learned scale and shift; it broadcasts with the filters. (C, kh, kw) for channel filters
        (N, C, kh, kw), (G, kh, kw, 1, 1) for spatial filters (N, G, kh, kw, H, W), with `axes=(-4, -3)`.
    axes : (int, int), default (-2, -1)
        The two tap axes, of `shape` and of the filters: negative ones, counted from the end.
    gain : float, default sqrt(2)
        That of the nonlinearity behind the filter.
    learn_scale : bool, default False
        Whether the scale is learned, a number per element of `shape`, and starts from a normal distribution with the
        deviation `gain` / sqrt(T). Otherwise it is `gain` / sqrt(T).
    learn_shift : bool, default False
        Whether there is a shift, learned too, which starts from the standard normal distribution. Otherwise it is 0.
    eps : float, default 1e-10
        Added to the standard deviation.
    rngs : nnx.Rngs, optional
        Needed where anything is learned.

    Attributes
    ----------
    scale, shift : nnx.Param (prod(shape),) or None
        What is learned, flat.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from dynk_jax.nn import FilterNorm
    >>> norm = FilterNorm((1, 1, 3), gain=1.0)
    >>> norm(jnp.array([[[[1.0, 2.0, 3.0]]]])).round(4)
    Array([[[[-0.5774,  0.    ,  0.5774]]]], dtype=float32)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        axes: tuple[int, int] = (-2, -1),
        gain: float = RELU_GAIN,
        learn_scale: bool = False,
        learn_shift: bool = False,
        eps: float = 1e-10,
        rngs: nnx.Rngs | None = None,
        dtype: Any = jnp.float32,
    ) -> None:
        if not all(-len(shape) <= axis < 0 for axis in axes):
            msg = f"FilterNorm: axes must be two negative axes of shape = {tuple(shape)}, got {axes}"
            raise ValueError(msg)
        taps = shape[axes[0]] * shape[axes[1]]
        if taps < 2:
            msg = f"FilterNorm: shape must have two taps or more along axes = {axes}, got {tuple(shape)}"
            raise ValueError(msg)
        self.shape, self.axes, self.eps, self.start = tuple(shape), axes, eps, gain / math.sqrt(taps)
        self.scale = self._drawn(self.start, rngs, dtype) if learn_scale else None
        self.shift = self._drawn(1.0, rngs, dtype) if learn_shift else None

    def _drawn(self, deviation: float, rngs: nnx.Rngs | None, dtype: Any) -> Any:
        if rngs is None:
            msg = "FilterNorm: rngs must be given where scale or shift are learned, got None"
            raise ValueError(msg)
        return nnx.Param(deviation * jax.random.normal(rngs.params(), (math.prod(self.shape),), dtype))

    def __call__(self, f: jax.Array) -> jax.Array:
        """Return the normalised filters, of the shape of `f`."""
        scale, shift = (
            None if learned is None else learned[...].reshape(self.shape).astype(f.dtype)
            for learned in (self.scale, self.shift)
        )
        if scale is None:
            scale = jnp.full((), self.start, f.dtype)
        return filter_norm(f, scale, shift, axes=self.axes, eps=self.eps)
