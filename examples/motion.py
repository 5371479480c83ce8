"""The next frame of a moving picture, by a single LS-DFN layer on raw arrays: what a large sampling field is for.

Crops of a photograph move by up to 9 pixels from frame to frame. From the last two frames the layer predicts the next.
Each pixel finds out by itself how it moved: its surroundings are compared with the frame before at every displacement.
What is learned is a small linear map from there to the layer's filters: the attention to the samples, and the part that
all channels share. A layer of one sample, a dynamic filter network, sees one pixel far; one of 7 x 7 samples, 3 pixels
apart, sees 10 pixels far with as many taps. dynk computes the layer and its gradient, NumPy the rest.

    python examples/motion.py    # wants dynk[demo]; prints a table and draws motion.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage.data
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recording import add_options, report, spread
from rich.console import Console
from rich.progress import track

import dynk

Array = NDArray[np.float32]
Indices = NDArray[np.int64]

MOTION = 9  # pixels per frame, at most, along each axis
CANDIDATES = 2 * MOTION + 1
HELD_OUT_COLUMNS, TRAIN_COLUMNS = slice(0, 272), slice(272, 512)  # of the photograph, 512 x 512 pixels
SIZE = 48  # of a crop
CROPS, BATCH, STEPS = 128, 16, 150
LEARNING_RATE = 0.2
SAMPLES, SAMPLE_STRIDE, TAPS = (1, 3, 7), 3, 3
WINDOW = 7  # of the surroundings that are compared
SHARPNESS = 1000  # of the choice of what fits best

BORDER = slice(MOTION + WINDOW // 2, -MOTION - WINDOW // 2)
INNER = (..., BORDER, BORDER)  # the pixels whose surroundings stay in the frame, however they move


class Frames(NamedTuple):
    """Three frames of a motion that goes on, each (N, 1, H, W)."""

    before: Array
    now: Array
    following: Array


def moving(image: Array, corners: Indices, motions: Indices, size: int = SIZE) -> Frames:
    """Return crops whose upper left corners (N, 2) lie there in the middle frame and that move by (N, 2) pixels."""

    def crops(corners: Indices) -> Array:
        return np.stack([image[None, y : y + size, x : x + size] for y, x in corners])

    return Frames(crops(corners + motions), crops(corners), crops(corners - motions))


def random_frames(image: Array, count: int, rng: np.random.Generator) -> Frames:
    """Return crops from anywhere in an image that move anywhere."""
    corners = rng.integers(MOTION, np.array(image.shape) - SIZE - MOTION + 1, (count, 2))
    return moving(image, corners, rng.integers(-MOTION, MOTION + 1, (count, 2)))


# ---- what a pixel knows ----------------------------------------------------------------------------------------------


def softmax(logits: Array) -> Array:
    """Return the softmax over axis 2."""
    powers = np.exp(logits - logits.max(2, keepdims=True))
    return np.asarray(powers / powers.sum(2, keepdims=True))


def softmax_backward(grad: Array, chances: Array) -> Array:
    """Return the gradient with respect to the logits."""
    return np.asarray(chances * (grad - (grad * chances).sum(2, keepdims=True)))


def match(frames: Frames) -> Array:
    """Return how well the frame before fits at each row and at each column of displacements (N, 2, CANDIDATES, H, W).

    LS-DFN displaces it: its samples, one pixel apart, are displaced images as long as there are no filters.
    """
    N, _, H, W = frames.now.shape
    no_filters = np.zeros((N, 1, 1, H, W), np.float32)
    displaced = dynk.ls_dfn(frames.before, no_filters, None, samples=CANDIDATES, sample_stride=1, reduce="none")
    difference = np.abs(displaced.reshape(N, -1, H, W) - frames.now)
    mean = np.full((N, CANDIDATES**2, WINDOW, WINDOW), 1 / WINDOW**2, np.float32)
    logits = -SHARPNESS * dynk.ddf(difference, None, mean)
    fit = softmax(logits[:, None]).reshape(N, CANDIDATES, CANDIDATES, H, W)
    return np.stack([fit.sum(2), fit.sum(1)], 1)


# ---- the layer -------------------------------------------------------------------------------------------------------


class Layer:
    """LS-DFN whose filters follow from what a pixel knows by a linear map, the same for rows and columns."""

    def __init__(self, samples: int, rng: np.random.Generator) -> None:
        self.samples = samples
        self.weights = rng.normal(0, 0.01, (samples + TAPS, CANDIDATES)).astype(np.float32)
        self.options: dict[str, Any] = {
            "samples": samples,
            "sample_stride": SAMPLE_STRIDE,
            "kernel_residual": False,
            "attention_residual": False,
        }

    def chances(self, known: Array) -> tuple[Array, Array]:
        """Return a softmax over the samples and one over the taps, for rows and for columns: (N, 2, s or k, H, W)."""
        logits = np.einsum("kd,nadhw->nakhw", self.weights, known, optimize=True)
        return softmax(logits[:, :, : self.samples]), softmax(logits[:, :, self.samples :])

    def predict(self, now: Array, known: Array) -> Array:
        """Return the next frame."""
        attention, within = (_product(chances) for chances in self.chances(known))
        return np.asarray(dynk.ls_dfn(now, None, within, attention, **self.options))

    def gradient(self, frames: Frames, known: Array) -> tuple[float, Array]:
        """Return the mean square error of the prediction and its gradient with respect to the weights."""
        chances = self.chances(known)
        attention, within = (_product(one) for one in chances)
        error = np.zeros_like(frames.now)
        error[INNER] = (dynk.ls_dfn(frames.now, None, within, attention, **self.options) - frames.following)[INNER]
        count = error[INNER].size
        grad_out = np.float32(2 / count) * error
        wanted = ("within", "sample_attention")
        grads = dynk.ls_dfn_backward(grad_out, frames.now, None, within, attention, needs=wanted, **self.options)
        to_logits = np.concatenate(
            [
                softmax_backward(_product_backward(grad, one), one)
                for grad, one in zip((grads.sample_attention, grads.within), chances, strict=True)
            ],
            axis=2,
        )
        return float(np.square(error).sum() / count), np.einsum("nakhw,nadhw->kd", to_logits, known, optimize=True)


def _product(chances: Array) -> Array:
    """Return a filter (N, 1, k, k, H, W) from the parts of its rows and columns (N, 2, k, H, W)."""
    rows, columns = chances[:, 0, :, None], chances[:, 1, None]
    return (rows * columns)[:, None]


def _product_backward(grad: Array, chances: Array) -> Array:
    """Return the gradient with respect to the parts."""
    rows, columns = chances[:, 0, :, None], chances[:, 1, None]
    return np.stack([(grad[:, 0] * columns).sum(2), (grad[:, 0] * rows).sum(1)], 1)


# ---- training --------------------------------------------------------------------------------------------------------


class Adam:
    """Adam (Kingma & Ba, 2015) for one array."""

    def __init__(self, weights: Array) -> None:
        self.weights, self.steps = weights, 0
        self.mean, self.square = np.zeros_like(weights), np.zeros_like(weights)

    def update(self, grad: Array) -> None:
        """Step down the gradient, in place."""
        self.steps += 1
        self.mean += 0.1 * (grad - self.mean)
        self.square += 0.01 * (grad**2 - self.square)
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.99**self.steps)
        self.weights -= np.float32(LEARNING_RATE) * mean / (np.sqrt(square) + np.float32(1e-8))


def train(layer: Layer, frames: Frames, known: Array, batches: list[Indices], console: Console) -> list[float]:
    """Train a layer on some frames, the given ones in each step; return the losses."""
    optimizer, losses = Adam(layer.weights), []
    for batch in track(batches, f"training s = {layer.samples}", console=console):
        loss, grad = layer.gradient(Frames(*(frame[batch] for frame in frames)), known[batch])
        optimizer.update(grad)
        losses.append(loss)
    return losses


def rmse(predicted: Array, following: Array) -> float:
    """Return the root mean square error in grey levels of 255."""
    return float(255 * np.sqrt(np.square(predicted - following)[INNER].mean()))


# ---- the results -----------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of one seed, errors in grey levels of 255: of the last frame again, of each layer (layers, 3)."""

    layers: list[Layer]
    again: float
    errors: Array


def run(image: Array, held_out: Array, seed: int, steps: int, console: Console) -> Outcome:
    """Train the layers on crops of one image and try them on crops of another."""
    rng = np.random.default_rng(seed)
    frames, test = random_frames(image, CROPS, rng), random_frames(held_out, BATCH, rng)
    known, known_of_test = match(frames), match(test)
    batches = [rng.choice(CROPS, BATCH, replace=False) for _ in range(steps)]
    layers = [Layer(samples, rng) for samples in SAMPLES]
    errors = []
    for layer in layers:
        losses = train(layer, frames, known, batches, console)
        ends = [255 * np.sqrt(np.mean(part)) for part in (losses[:5], losses[-5:])]
        errors.append([*ends, rmse(layer.predict(test.now, known_of_test), test.following)])
    return Outcome(layers, rmse(test.now, test.following), np.array(errors, np.float32))


def rows(outcomes: list[Outcome]) -> list[list[str]]:
    """Return what each layer has learned beside a copy of the last frame."""
    found = [["the last frame again", "", "", "", spread([outcome.again for outcome in outcomes])]]
    errors = np.stack([outcome.errors for outcome in outcomes], -1)
    for samples, of_layer in zip(SAMPLES, errors, strict=True):
        reach = (samples - 1) // 2 * SAMPLE_STRIDE + (TAPS - 1) // 2
        found.append([f"LS-DFN, s = {samples}", f"{reach} px", *map(spread, of_layer)])
    return found


def draw(output: Path, image: Array, layers: list[Layer], size: int = 112) -> None:
    """Draw frames, predictions and their errors; in the last row the halves of the picture move apart."""
    corners = np.array([[40, 140], [200, 40], [340, 130], [40, 140]])
    motions = np.array([[9, -9], [-6, 8], [-4, -9], [5, 9]])
    one, other = moving(image, corners, motions, size), moving(image, corners, motions * [[1], [1], [1], [-1]], size)
    left = np.arange(size) < size // 2
    frames = Frames(*(np.where(left, a, b) for a, b in zip(one, other, strict=True)))
    known = match(frames)
    columns = [("before", frames.before), ("now", frames.now), ("next", frames.following)]
    predictions = [(f"s = {layer.samples}", layer.predict(frames.now, known)) for layer in layers]
    errors = [(f"error, {title}", np.abs(frames.following - shown)) for title, shown in predictions]
    columns += predictions + errors

    rows = len(corners)
    figure = Figure(figsize=(1.5 * len(columns), 1.62 * rows), layout="constrained", facecolor="white")
    for number, axes in enumerate(figure.subplots(rows, len(columns)).flat):
        row, (title, images) = number // len(columns), columns[number % len(columns)]
        is_error = title.startswith("error")
        axes.imshow(images[row, 0][INNER], cmap="magma_r" if is_error else "gray", vmin=0, vmax=0.5 if is_error else 1)
        axes.set_xticks([])
        axes.set_yticks([])
        if row == 0:
            axes.set_title(title)
        if number % len(columns) == 0:
            axes.set_ylabel("two motions" if row == rows - 1 else "{:+d}, {:+d} px".format(*motions[row]))
    figure.savefig(output, dpi=90)


def main(arguments: list[str] | None = None) -> int:
    """Train the layers on one part of a photograph and try them on another."""
    parser = argparse.ArgumentParser(description="Predict the next frame of a moving picture by one LS-DFN layer.")
    parser.add_argument("--output", type=Path, default=Path("motion.png"), help="the picture (default motion.png)")
    parser.add_argument("--seed", type=int, default=0, help="the first, of crops, motions and weights (default 0)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default {STEPS})")
    add_options(parser, seeds=1)
    options = parser.parse_args(arguments)

    console = Console()
    grey = skimage.data.astronaut().mean(-1, dtype=np.float32) / 255
    image, held_out = grey[:, TRAIN_COLUMNS], grey[:, HELD_OUT_COLUMNS]
    outcomes: list[Outcome] = []
    seconds: list[float] = []
    for seed in range(options.seed, options.seed + options.seeds):
        start = time.perf_counter()
        outcomes.append(run(image, held_out, seed, options.steps, console))
        if len(outcomes) == 1:
            draw(options.output, held_out, outcomes[0].layers)
        seconds.append(time.perf_counter() - start)
    columns = ["prediction", "sees", "first steps", "last steps", "held-out part"]
    report("Error of the next frame, in grey levels of 255", columns, rows(outcomes), seconds, options.results, console)
    console.print(f"Motion up to {MOTION} px. {options.output} shows it. {sum(seconds):.0f} s in all.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
