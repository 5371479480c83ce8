"""The equations in NumPy, float64 inside; slow and plain, what every other backend is tested against.

What is skipped, a tap outside the image or a dilation that a pixel did not select, contributes 0 whatever it would be
multiplied by. Functions take and return float64 arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dynk._operator import Plan
from dynk.kernels.dilated.geometry import DILATIONS_H, DILATIONS_W, DilationGeometry
from dynk.kernels.dilated.reference_gumbel import (
    gumbel_softmax_backward,
    gumbel_softmax_forward,
    gumbel_softmax_magnitude,
)

__all__ = [
    "adaptive_dilation_conv2d_backward",
    "adaptive_dilation_conv2d_forward",
    "gumbel_softmax_backward",
    "gumbel_softmax_forward",
    "gumbel_softmax_magnitude",
]

Array = npt.NDArray[np.float64]
Inside = npt.NDArray[np.bool_]

# NaN and infinity are results like any other here.
_ieee = np.errstate(invalid="ignore", over="ignore")


@_ieee
def adaptive_dilation_conv2d_forward(
    plan: Plan, x: Array, weight: Array, dilation_weights: Array, bias: Array | None
) -> Any:
    """PAD Eq. 1: out[n,o,y,x] = bias[o] + sum_cij weight[o,c,i,j] * sum_d P[n,d,y,x] * X[n,c,tap d,i,j]."""
    g = DilationGeometry(*plan.geometry)
    total = np.zeros((g.N, g.O, g.Ho, g.Wo))
    if bias is not None:
        total += bias[:, None, None]
    for i, j in _taps(g):
        column, seen = _column(g, i, j, x, dilation_weights)
        terms = np.einsum("goc,ngcyx->ngoyx", _grouped(g, weight[:, :, i, j], 0), _grouped(g, column, 1))
        total += np.where(seen, terms.reshape(total.shape), 0.0)
    return total


@_ieee
def adaptive_dilation_conv2d_backward(
    plan: Plan, grad_out: Array, x: Array, weight: Array, dilation_weights: Array, bias: Array | None
) -> tuple[Array | None, ...]:
    """Gradients of `adaptive_dilation_conv2d_forward`, by the product rule for each tap of each dilation."""
    g = DilationGeometry(*plan.geometry)
    grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
    grad_dilation_weights = None if g.hard else np.zeros_like(dilation_weights)
    grads = _grouped(g, grad_out, 1)
    for i, j in _taps(g):
        filters = _grouped(g, weight[:, :, i, j], 0)
        column, seen = _column(g, i, j, x, dilation_weights)
        taken = np.where(seen[:, None], grads, 0.0)  # where nothing is seen the column is 0 too
        terms = np.einsum("ngoyx,ngcyx->goc", taken, _grouped(g, column, 1))
        grad_weight[:, :, i, j] = terms.reshape(g.O, -1)
        grad_column = np.einsum("goc,ngoyx->ngcyx", filters, grads).reshape(column.shape)
        for d in range(g.D):
            share, chosen = _share(g, d, dilation_weights)
            image, inside = _image(g, d, i, j, x)
            taken = inside & chosen
            _scatter(g, d, i, j, np.where(taken, share * grad_column, 0.0), grad_x)
            if grad_dilation_weights is not None:
                grad_dilation_weights[:, d] += np.where(taken, grad_column * image, 0.0).sum(1)
    grad_bias = None if bias is None else grad_out.sum((0, 2, 3))
    return grad_x, grad_weight, grad_dilation_weights, grad_bias


def _taps(g: DilationGeometry) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(g.kh) for j in range(g.kw))


def _grouped(g: DilationGeometry, array: Array, axis: int) -> Array:
    """Return an array with its axis of channels split into groups."""
    shape = array.shape
    return array.reshape(*shape[:axis], g.groups, shape[axis] // g.groups, *shape[axis + 1 :])


def _column(g: DilationGeometry, i: int, j: int, x: Array, dilation_weights: Array) -> tuple[Array, Inside]:
    """Return the image as tap (i, j) sees it, mixed over the dilations, and where there is anything to see."""
    column, seen = np.zeros((g.N, g.C, g.Ho, g.Wo)), np.zeros((g.N, 1, g.Ho, g.Wo), np.bool_)
    for d in range(g.D):
        share, chosen = _share(g, d, dilation_weights)
        image, inside = _image(g, d, i, j, x)
        column += np.where(inside & chosen, share * image, 0.0)
        seen |= inside & chosen
    if g.hard:
        wrong = ~((dilation_weights >= 0) & (dilation_weights < g.D))[:, None]
        column, seen = np.where(wrong, np.nan, column), seen | wrong
    return column, seen


def _share(g: DilationGeometry, d: int, dilation_weights: Array) -> tuple[Any, Any]:
    """Return the weight of dilation d at each pixel, and where it takes part."""
    if g.hard:
        return 1.0, (dilation_weights == d)[:, None]
    return dilation_weights[:, d, None], True


def _image(g: DilationGeometry, d: int, i: int, j: int, x: Array) -> tuple[Array, Inside]:
    """Return what tap (i, j) of dilation d reads at each output pixel, and where that is inside the image."""
    rows, columns, inside = _positions(g, d, i, j)
    return x[:, :, rows.clip(0, g.H - 1)[:, None], columns.clip(0, g.W - 1)], inside


def _scatter(g: DilationGeometry, d: int, i: int, j: int, terms: Array, grad_x: Array) -> None:
    """Add what belongs to tap (i, j) of dilation d to the pixels that it read; 0 where it read none."""
    rows, columns, _ = _positions(g, d, i, j)
    y, x = (rows >= 0) & (rows < g.H), (columns >= 0) & (columns < g.W)
    grad_x[:, :, rows[y][:, None], columns[x]] += terms[:, :, y][..., x]


def _positions(g: DilationGeometry, d: int, i: int, j: int) -> tuple[Any, Any, Inside]:
    """Return the rows and columns that tap (i, j) of dilation d reads, and where both are inside the image."""
    rows = np.arange(g.Ho) * g.stride_h + (i - (g.kh - 1) // 2) * g[DILATIONS_H + d]
    columns = np.arange(g.Wo) * g.stride_w + (j - (g.kw - 1) // 2) * g[DILATIONS_W + d]
    return rows, columns, ((rows >= 0) & (rows < g.H))[:, None] & ((columns >= 0) & (columns < g.W))
