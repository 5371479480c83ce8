"""Points between the positions of an array, as the reference reads at them; their rules are those of `geometry`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dynk.kernels.common.dtypes import accumulator
from dynk.kernels.deformable.geometry import FAR

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# How far the weight of a neighbour may be off, in units of what `dynk.testing` allows for a term of 1.
WEIGHT_ERROR = 1 / 8


@dataclass(frozen=True)
class Axis:
    """One coordinate of many points: their one or two neighbours, with weight and derivative of the weight."""

    neighbours: tuple[tuple[Any, Any, float], ...]
    extent: int
    read: Flags  # the points have values
    moves: Flags  # the values have derivatives
    unknown: Flags  # NaN


def axis(base: Any, offset: Any, half: float, extent: int, *, dtype: str, clip: bool = False, sizes: bool) -> Axis:
    """Return the points base + offset + half of an axis of `extent` positions; an offset of None is none.

    With `sizes` the weights are the sizes of their terms, for the bound of errors.
    """
    if offset is None:
        inside = (base >= 0) & (base < extent)
        no = np.zeros_like(inside)
        return Axis(((base, 1.0, 0.0),), extent, inside, no, no)
    shift = offset.astype(accumulator(dtype)) + np.asarray(half, accumulator(dtype))
    unknown, far = np.isnan(shift), np.abs(shift) > FAR
    shift = np.where(unknown | far, 0, shift)
    cell = base + np.floor(shift).astype(np.int64)
    fraction = (shift - np.floor(shift)).astype(np.float64)
    cell = np.where(far, np.where(offset > 0, extent, -2), cell)
    if clip:
        read = np.ones_like(unknown)
        moves = (cell >= 0) & (cell < extent - 1)
        fraction = np.where((cell < 0) | (cell >= extent - 1), 0.0, fraction)
        cell = cell.clip(0, extent - 1)
    else:
        moves = (cell >= -1) & (cell < extent)
        read = moves & ~((cell == -1) & (fraction == 0))
    cell = np.where(unknown, -2, cell)  # no neighbour is inside
    error, before = (WEIGHT_ERROR, 1.0) if sizes else (0.0, -1.0)
    neighbours = ((cell, 1 - fraction + error, before), (cell + 1, fraction + error, 1.0))
    return Axis(neighbours, extent, read | unknown, moves | unknown, unknown)


@dataclass(frozen=True)
class Points:
    """Points in the last two axes of arrays; `lead` indexes the axes before."""

    y: Axis
    x: Axis
    lead: tuple[Any, ...]

    @property
    def read(self) -> Flags:
        """Where the tap is not skipped."""
        return self.y.read & self.x.read

    @property
    def unknown(self) -> Flags:
        """Where a coordinate is NaN."""
        return self.y.unknown | self.x.unknown

    def values(self, array: Array) -> Array:
        """Return the bilinear values, 0 where the point is not read."""
        return self._sum(array, self.read)

    def slopes(self, array: Array) -> tuple[tuple[Array, Flags], ...]:
        """Return the derivatives of `values` by each coordinate, and where there are any.

        The differences of neighbours are formed first, so that those between equal ones are 0.
        """
        there = self.y.moves & self.x.read, self.y.read & self.x.moves
        return tuple((np.where(there[along], self._slope(array, along), 0.0), there[along]) for along in (0, 1))

    def add(self, array: Array, terms: Array, taken: Flags) -> None:
        """Add the gradient of `values` to that of the array it read, where `taken`."""
        for row, weight_y, _ in self.y.neighbours:
            for column, weight_x, _ in self.x.neighbours:
                inside, place = self._places(row, column)
                taken_here = inside & taken & self.read
                index = np.broadcast_arrays(*self.lead, *place, taken_here, weight_y * weight_x * terms)
                *places, chosen, shares = (a.ravel() for a in index)
                np.add.at(array, tuple(at[chosen] for at in places), shares[chosen])

    def _slope(self, array: Array, along: int) -> Array:
        own, other = (self.y, self.x) if along == 0 else (self.x, self.y)
        total: Any = 0.0
        for beside, weight, _ in other.neighbours:
            places = [(at, beside, end) if along == 0 else (beside, at, end) for at, _, end in own.neighbours]
            total = total + weight * sum(self._terms(array, *place) for place in places)
        return np.where(self.unknown, np.nan, total)

    def _sum(self, array: Array, there: Flags) -> Array:
        total = sum(
            self._terms(array, row, column, weight_y * weight_x)
            for row, weight_y, _ in self.y.neighbours
            for column, weight_x, _ in self.x.neighbours
        )
        return np.where(there, np.where(self.unknown, np.nan, total), 0.0)

    def _terms(self, array: Array, row: Any, column: Any, weight: Any) -> Array:
        """Return the weighted values of one neighbour, 0 where it is outside."""
        inside, place = self._places(row, column)
        return np.where(inside, weight * array[(*self.lead, *place)], 0.0)

    def _places(self, row: Any, column: Any) -> tuple[Flags, tuple[Any, Any]]:
        inside = (row >= 0) & (row < self.y.extent) & (column >= 0) & (column < self.x.extent)
        return inside, (row.clip(0, self.y.extent - 1), column.clip(0, self.x.extent - 1))
