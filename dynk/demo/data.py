"""The demo's picture, the Motorcycle scene inside the scikit-image wheel: its parts, its low resolution, its crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.io import imread

FACTOR = 8
"""How many times the disparity is reduced, as in the paper."""

TRAIN_COLUMNS = slice(0, 424)
HELD_OUT_COLUMNS = slice(488, 736)
"""The columns in between are used by nothing; they are more than the network's convolutions see."""

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A picture with its disparity.

    Attributes
    ----------
    rgb : array (H, W, 3), float32
        The guidance image, 0 to 1.
    disparity : array (H, W), float32
        In pixels; 0 where unknown.
    valid : array (H, W), bool
        Where the disparity is known.
    """

    rgb: FloatArray
    disparity: FloatArray
    valid: BoolArray

    def crop(self, rows: slice, columns: slice) -> Scene:
        """Return a part of the picture, or all of it with a step (views, no copies)."""
        return Scene(self.rgb[rows, columns], self.disparity[rows, columns], self.valid[rows, columns])


def load_scene() -> Scene:
    """Read the Motorcycle picture and its disparity from the installed scikit-image package."""
    folder = Path(skimage.__file__).parent / "data"
    rgb = np.asarray(imread(folder / "motorcycle_left.png"), np.float32)[..., :3] / np.float32(255)
    with np.load(folder / "motorcycle_disp.npz") as archive:
        disparity = archive["arr_0"].astype(np.float32)
    return mask_holes(rgb, disparity)


def mask_holes(rgb: FloatArray, disparity: FloatArray) -> Scene:
    """Make a scene whose pixels of infinite, NaN or zero disparity are not valid."""
    valid = np.isfinite(disparity) & (disparity > 0)
    return Scene(rgb, np.where(valid, disparity, np.float32(0)), valid)


def split(scene: Scene) -> tuple[Scene, Scene]:
    """Return the training part and the held-out part, both of extents divisible by FACTOR."""
    rows = slice(0, scene.rgb.shape[0] // FACTOR * FACTOR)
    return scene.crop(rows, TRAIN_COLUMNS), scene.crop(rows, HELD_OUT_COLUMNS)


def reduce_nearest(scene: Scene, factor: int = FACTOR) -> FloatArray:
    """Return the disparity of every `factor`-th pixel: sample (i, j) is pixel (factor*i, factor*j).

    A sample that falls into a hole takes the value of the nearest sample that does not.
    """
    low, known = scene.disparity[::factor, ::factor], scene.valid[::factor, ::factor]
    if not known.any():
        msg = "reduce_nearest: scene must have a valid sample, got only holes"
        raise ValueError(msg)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.ascontiguousarray(low[tuple(nearest)])


def random_crop(scene: Scene, size: int, rng: np.random.Generator) -> Scene:
    """Cut a (size, size) crop at any pixel, at times at half the resolution, flipped, turned and in other colours."""
    height, width = scene.disparity.shape
    step = 2 if rng.random() < 0.3 else 1
    while True:
        y, x = (int(rng.integers(extent - step * size + 1)) for extent in (height, width))
        crop = scene.crop(slice(y, y + step * size), slice(x, x + step * size))
        if step == 2:
            mean = crop.rgb.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
            crop = Scene(mean, crop.disparity[::2, ::2], crop.valid[::2, ::2])
        for axis in (0, 1):
            if rng.random() < 0.5:
                crop = Scene(np.flip(crop.rgb, axis), np.flip(crop.disparity, axis), np.flip(crop.valid, axis))
        if rng.random() < 0.5:
            crop = Scene(crop.rgb.swapaxes(0, 1), crop.disparity.T, crop.valid.T)
        if crop.valid[::FACTOR, ::FACTOR].any():
            return Scene(_recolour(crop.rgb, rng), crop.disparity, crop.valid)


def _recolour(rgb: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Change contrast and white balance, at times swap the colour channels: guidance is edges, not hues."""
    contrast = np.exp(rng.uniform(-0.2, 0.2))
    balance = rng.uniform(0.8, 1.2, 3)
    recoloured = np.maximum(rgb, 1e-3) ** contrast * balance
    if rng.random() < 0.3:
        recoloured = recoloured[..., rng.permutation(3)]
    return np.asarray(recoloured, np.float32)
