"""Numba CUDA device functions of points between the positions of an array; their rules are those of `geometry`.

Numbers are those of `DeformGeometry` or `SampleGeometry`, called `g`. A plane of an array, rows x columns, is seen
through `first`, the index of its first element, and `step`, from each to the next.
"""

# Every function here is a device function, of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import load
from dynk.kernels.deformable.geometry import FAR


class Point(NamedTuple):
    """The cell of a point, where in it the point is, and what is defined there.

    Where an offset is NaN the fraction is NaN too, and no neighbour is inside.
    """

    row: Any
    column: Any
    down: Any
    right: Any
    read: Any  # it has a value: else its tap is skipped
    moves_down: Any  # the value has a derivative by the row
    moves_right: Any


@cuda.jit(device=True)
def _axis(offsets, index, is_odd, base, extent, clip):
    """Return the cell of a coordinate, the fraction, whether it is read and whether it moves."""
    shift = load(offsets, index) + offsets.dtype.type(0.5 if is_odd else 0)
    zero = offsets.dtype.type(0)
    if shift != shift:
        return -2, shift, True, True
    if abs(shift) > offsets.dtype.type(FAR):
        cell = extent if shift > zero else -2
        fraction = zero
    else:
        floor = np.int64(math.floor(shift))
        cell = base + floor
        fraction = shift - offsets.dtype.type(floor)
    if clip:
        moves = cell >= 0 and cell < extent - 1
        return min(max(cell, 0), extent - 1), fraction if moves else zero, True, moves
    moves = cell >= -1 and cell < extent
    return cell, fraction, moves and (cell >= 0 or fraction > zero), moves


@cuda.jit(device=True)
def image_point(data_offset, g, n, block, tap, at):
    """Return where in the image a tap of an output pixel reads; without offsets at a position, without neighbours."""
    i = tap // g.kw
    ay = at // g.Wo
    row = ay * g.stride_h - g.pad_h + i * g.dil_h
    column = (at - ay * g.Wo) * g.stride_w - g.pad_w + (tap - i * g.kw) * g.dil_w
    if not g.has_data:
        zero = data_offset.dtype.type(0)
        inside = row >= 0 and row < g.H and column >= 0 and column < g.W
        return Point(row, column, zero, zero, inside, False, False)
    pixels = g.Ho * g.Wo
    index = ((n * g.Gd + block) * g.kh * g.kw + tap) * 2 * pixels + at
    row, down, read_down, moves_down = _axis(data_offset, index, False, row, g.H, False)
    column, right, read_right, moves_right = _axis(data_offset, index + pixels, False, column, g.W, False)
    read = read_down and read_right
    return Point(row, column, down, right, read, moves_down and read_right, read_down and moves_right)


@cuda.jit(device=True)
def scope_point(kernel_offset, g, block, tap, at, pixels):
    """Return where in the scope a tap of an output pixel is sampled; block counts those of all samples."""
    i = tap // g.kw
    index = (block * g.kh * g.kw + tap) * 2 * pixels + at
    spare_down = g.Sh - g.kh
    spare_right = g.Sw - g.kw
    row, down, read_down, moves_down = _axis(
        kernel_offset, index, spare_down % 2 != 0, i + (spare_down >> 1), g.Sh, g.clip
    )
    column, right, read_right, moves_right = _axis(
        kernel_offset, index + pixels, spare_right % 2 != 0, tap - i * g.kw + (spare_right >> 1), g.Sw, g.clip
    )
    read = read_down and read_right
    return Point(row, column, down, right, read, moves_down and read_right, read_down and moves_right)


@cuda.jit(device=True)
def _element(array, first, step, rows, columns, row, column):
    """Return an element of a plane, 0 outside."""
    if row < 0 or row >= rows or column < 0 or column >= columns:
        return array.dtype.type(0)
    return load(array, first + (row * columns + column) * step)


@cuda.jit(device=True)
def _corners(array, first, step, rows, columns, p):
    """Return the four neighbours of a point: upper left and right, lower left and right."""
    return (
        _element(array, first, step, rows, columns, p.row, p.column),
        _element(array, first, step, rows, columns, p.row, p.column + 1),
        _element(array, first, step, rows, columns, p.row + 1, p.column),
        _element(array, first, step, rows, columns, p.row + 1, p.column + 1),
    )


@cuda.jit(device=True)
def value(array, first, step, rows, columns, p):
    """Return the value of a plane at a point that is read."""
    one = array.dtype.type(1)
    v00, v01, v10, v11 = _corners(array, first, step, rows, columns, p)
    upper = (one - p.right) * v00 + p.right * v01
    lower = (one - p.right) * v10 + p.right * v11
    return (one - p.down) * upper + p.down * lower


@cuda.jit(device=True)
def slopes(array, first, step, rows, columns, p):
    """Return the derivatives of a value by row and column, 0 where there is none."""
    one = array.dtype.type(1)
    v00, v01, v10, v11 = _corners(array, first, step, rows, columns, p)
    down = right = array.dtype.type(0)
    nothing = (p.down + p.right) * down  # NaN where an offset is
    if p.moves_down:
        down = (one - p.right) * (v10 - v00) + p.right * (v11 - v01) + nothing
    if p.moves_right:
        right = (one - p.down) * (v01 - v00) + p.down * (v11 - v10) + nothing
    return down, right


@cuda.jit(device=True)
def share(p, row, column, one):
    """Return the weight of an element in the value of a point, and whether it is a neighbour at all."""
    below = row - p.row
    beside = column - p.column
    if below < 0 or below > 1 or beside < 0 or beside > 1:
        return one - one, False
    return (p.down if below else one - p.down) * (p.right if beside else one - p.right), True
