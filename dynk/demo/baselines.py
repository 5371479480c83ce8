"""The methods that need no network: interpolation by separable kernels, and joint bilateral upsampling."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np

from dynk.demo.data import FACTOR, FloatArray, Scene, reduce_nearest

Kernel = Callable[[FloatArray], FloatArray]

JOINT_RADIUS = 2
"""Joint bilateral upsampling takes its mean of (2*JOINT_RADIUS + 1)**2 low-resolution samples."""

SPACE_SIGMAS = (0.4, 0.5, 0.7, 1.0)
COLOUR_SIGMAS = (0.03, 0.05, 0.08, 0.12, 0.2, 0.4)
"""What `choose_sigmas` chooses from."""


class Sigmas(NamedTuple):
    """Widths of the joint bilateral weights: `space` in low-resolution samples, `colour` on a scale of 0 to 1."""

    space: float
    colour: float


def nearest_kernel(distance: FloatArray) -> FloatArray:
    """Weigh the sample within half a step; of two equally near ones, the one before."""
    return ((distance >= -0.5) & (distance < 0.5)).astype(np.float32)


def linear_kernel(distance: FloatArray) -> FloatArray:
    """Weigh by a triangle: linear interpolation."""
    return np.asarray(np.maximum(1 - np.abs(distance), 0), np.float32)


def cubic_kernel(distance: FloatArray) -> FloatArray:
    """Weigh by cubic convolution with a = -1/2 (Keys, 1981)."""
    d = np.abs(distance)
    inner = (1.5 * d - 2.5) * d * d + 1
    outer = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d < 1, inner, np.where(d < 2, outer, 0)).astype(np.float32)


def interpolate(low: FloatArray, kernel: Kernel, factor: int = FACTOR) -> FloatArray:
    """Upsample `low` (h, w) to (factor*h, factor*w); sample (i, j) stays on pixel (factor*i, factor*j).

    Beyond the last sample its value goes on.
    """
    rows, columns = (_interpolation_matrix(length, kernel, factor) for length in low.shape)
    return np.asarray(rows @ low @ columns.T)


def _interpolation_matrix(length: int, kernel: Kernel, factor: int) -> FloatArray:
    """Return the weights (factor*length, length) along one axis."""
    reach = 2
    position = np.arange(factor * length)[:, None] / factor
    sample = np.arange(-reach, length + reach)
    weights = kernel((sample - position).astype(np.float32))
    inside = weights[:, reach:-reach].copy()
    inside[:, 0] += weights[:, :reach].sum(axis=1)
    inside[:, -1] += weights[:, -reach:].sum(axis=1)
    return inside


def joint_bilateral(low: FloatArray, rgb: FloatArray, sigmas: Sigmas, factor: int = FACTOR) -> FloatArray:
    """Upsample by joint bilateral means (Kopf et al., 2007).

    Each pixel is a mean of the low-resolution samples around it, weighted by their distance and by the likeness
    of the colours of the pixel and the sample.
    """
    h, w = low.shape
    y, x = np.arange(factor * h)[:, None], np.arange(factor * w)[None, :]
    total = np.zeros((factor * h, factor * w))
    weights = np.zeros_like(total)
    steps = range(-JOINT_RADIUS, JOINT_RADIUS + 1)
    for dy, dx in product(steps, steps):
        row, column = (y + factor // 2) // factor + dy, (x + factor // 2) // factor + dx
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        row, column = np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)
        distance = (y / factor - row) ** 2 + (x / factor - column) ** 2
        difference = ((rgb - rgb[row * factor, column * factor]) ** 2).sum(axis=-1)
        # A pixel that is like no sample becomes the spatial mean instead of 0 / 0.
        likeness = np.exp(-difference / (2 * sigmas.colour**2)) + 1e-6
        weight = inside * np.exp(-distance / (2 * sigmas.space**2)) * likeness
        total += weight * low[row, column]
        weights += weight
    return (total / weights).astype(np.float32)


def choose_sigmas(train: Scene) -> Sigmas:
    """Return the joint bilateral sigmas that give the least RMSE on the training part."""
    low = reduce_nearest(train)
    candidates = (Sigmas(space, colour) for space, colour in product(SPACE_SIGMAS, COLOUR_SIGMAS))
    return min(candidates, key=lambda sigmas: rmse(joint_bilateral(low, train.rgb, sigmas), train))


def rmse(prediction: FloatArray, scene: Scene) -> float:
    """Return the root mean square error in pixels of disparity, over the valid pixels."""
    error = (prediction - scene.disparity)[scene.valid].astype(np.float64)
    return float(np.sqrt(np.mean(error**2)))
