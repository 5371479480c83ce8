"""The picture that the demo writes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from dynk.demo.data import HELD_OUT_COLUMNS, TRAIN_COLUMNS, FloatArray, Scene

DISPARITY_COLOURS = "viridis"
ERROR_COLOURS = "magma_r"
HOLE = "#d9d9d9"


class ColourScale(NamedTuple):
    """A colour map and the values at its ends."""

    colours: str
    least: float
    most: float


def draw(
    output: Path,
    *,
    whole: Scene,
    held_out: Scene,
    low: FloatArray,
    results: dict[str, FloatArray],
    scores: dict[str, float],
) -> None:
    """Write the guidance, the reduced disparity, each method's result with its errors, and the ground truth."""
    figure = Figure(figsize=(2.7 * len(results) + 0.8, 15.6), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, len(results))
    known = held_out.disparity[held_out.valid]
    scale = ColourScale(DISPARITY_COLOURS, float(known.min()), float(known.max()))
    errors = {name: np.abs(result - held_out.disparity) for name, result in results.items()}
    worst = max(float(np.percentile(error[held_out.valid], 98)) for error in errors.values())
    error_scale = ColourScale(ERROR_COLOURS, 0, worst)
    best = min(scores, key=lambda name: scores[name])

    _show_split(figure.add_subplot(grid[0, :-3]), whole)
    _show(figure.add_subplot(grid[0, -3]), "guidance (held-out part)", held_out.rgb)
    reduced = f"disparity, {low.shape[1]} x {low.shape[0]} samples"
    _show(figure.add_subplot(grid[0, -2]), reduced, low, scale)
    truth = np.ma.masked_array(held_out.disparity, ~held_out.valid)
    shown = _show(figure.add_subplot(grid[0, -1]), "ground truth (holes grey)", truth, scale)
    colour_axes, error_axes = [figure.axes[-1]], []
    for column, (name, result) in enumerate(results.items()):
        weight = "bold" if name == best else "normal"
        colour_axes.append(figure.add_subplot(grid[1, column]))
        _show(colour_axes[-1], f"{name}\nRMSE {scores[name]:.2f} px", result, scale, weight=weight)
        error_axes.append(figure.add_subplot(grid[2, column]))
        error = np.ma.masked_array(errors[name], ~held_out.valid)
        wrong = _show(error_axes[-1], f"{name}: error", error, error_scale, weight=weight)
    figure.colorbar(shown, ax=colour_axes, label="disparity (px)", shrink=0.6, aspect=40)
    figure.colorbar(wrong, ax=error_axes, label="absolute error (px)", shrink=0.8, extend="max", aspect=25)
    figure.savefig(output, dpi=100)


def _show(
    axes: Axes, title: str, image: FloatArray, scale: ColourScale | None = None, *, weight: str = "normal"
) -> AxesImage:
    axes.set_title(title, fontsize=13, fontweight=weight)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor(HOLE)
    if scale is None:
        return axes.imshow(image)
    return axes.imshow(image, interpolation="nearest", cmap=scale.colours, vmin=scale.least, vmax=scale.most)


def _show_split(axes: Axes, whole: Scene) -> None:
    """Draw the whole picture with a frame around each part."""
    _show(axes, "the whole picture and its two parts", whole.rgb)
    height = whole.rgb.shape[0]
    for columns, name, colour in ((TRAIN_COLUMNS, "training", "#1f77b4"), (HELD_OUT_COLUMNS, "held out", "#ff7f0e")):
        corner, width = (columns.start, 0), columns.stop - columns.start
        axes.add_patch(Rectangle(corner, width, height - 1, fill=False, edgecolor=colour, linewidth=4))
        label = {"facecolor": colour, "edgecolor": "none", "pad": 4}
        axes.text(columns.start + 10, 20, name, color="white", fontsize=13, va="top", bbox=label)
