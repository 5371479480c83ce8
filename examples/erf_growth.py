"""How the effective receptive field of LS-DFN grows: with its samples, layer by layer, and by training.

A network of three LS-DFN layers tells photographs of brick, grass and gravel apart, pixel by pixel. Filters and
attention of a pixel are predicted from this pixel alone, so that nothing but the sampling widens the field. Networks of
one, three and five samples per side are trained from several seeds each. What a pixel of the output sees is measured by
one pass of the gradient back to the picture, whose mean distance from this pixel is the radius of the field.

    python examples/erf_growth.py    # wants dynk[demo]; prints tables and draws erf_growth.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import dynk_torch
import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recording import add_options, deviation, report, spread
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

Array = NDArray[np.float32]

TEXTURES = ("brick", "grass", "gravel")
SAMPLES, SAMPLE_STRIDE, TAPS, LAYERS = (1, 3, 5), 2, 3, 3
CHANNELS = 6
SIZE, INNER = 36, slice(12, 24)  # of a crop, and the pixels that are asked
BATCH, STEPS, TESTS = 4, 150, 24
LEARNING_RATE = 0.01
SEEDS = 3


# ---- the network -----------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """LS-DFN whose filters and attention follow from each pixel by 1x1 convolutions."""

    def __init__(self, channels: int, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.across = nn.Conv2d(channels, channels * channels, 1)
        self.within = nn.Conv2d(channels, channels * TAPS * TAPS, 1)
        self.attention = nn.Conv2d(channels, channels * samples * samples, 1)

    def forward(self, x: Tensor) -> Tensor:
        C, s = x.shape[1], self.samples
        return dynk_torch.ls_dfn(
            x,
            self.across(x).unflatten(1, (C, C)),
            self.within(x).unflatten(1, (C, TAPS, TAPS)),
            self.attention(x).unflatten(1, (C, s, s)),
            samples=s,
            sample_stride=SAMPLE_STRIDE,
            reduce="mean",
        )


class Network(nn.Module):
    """A 3x3 convolution, LS-DFN layers and a classifier of pixels."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(Layer(CHANNELS, samples) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(LAYERS))
        self.classifier = nn.Conv2d(CHANNELS, len(TEXTURES), 1)

    def features(self, x: Tensor, depth: int = LAYERS) -> Tensor:
        """Return what the first `depth` layers make of pictures."""
        x = self.stem(x).relu()
        for layer, norm in zip(self.layers[:depth], self.norms[:depth], strict=True):
            x = norm(layer(x)).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def reach(samples: int, depth: int = LAYERS) -> int:
    """Return how far a pixel of the output can see at all."""
    return 1 + depth * ((samples - 1) // 2 * SAMPLE_STRIDE + (TAPS - 1) // 2)


# ---- data and training -----------------------------------------------------------------------------------------------


def photographs(half: slice) -> list[Array]:
    """Return one half of each texture's photograph, of mean 0 and deviation 1."""
    found = (np.asarray(getattr(skimage.data, name)(), np.float32)[:, half] for name in TEXTURES)
    return [(image - image.mean()) / image.std() for image in found]


def crops(sources: list[Array], count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return crops (N, 1, SIZE, SIZE) from anywhere, and their textures (N,)."""
    labels = rng.integers(len(sources), size=count)
    images = np.empty((count, 1, SIZE, SIZE), np.float32)
    for n, label in enumerate(labels):
        y, x = rng.integers(0, np.array(sources[label].shape) - SIZE + 1)
        images[n, 0] = sources[label][y : y + SIZE, x : x + SIZE]
    return torch.from_numpy(images), torch.from_numpy(labels)


def logits_of(network: Network, images: Tensor) -> Tensor:
    """Return the logits (N, textures, inner rows, inner columns)."""
    return network(images)[:, :, INNER, INNER]


def train(network: Network, sources: list[Array], steps: int, rng: np.random.Generator) -> None:
    """Fit a network to crops."""
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for _ in range(steps):
        images, labels = crops(sources, BATCH, rng)
        logits = logits_of(network, images)
        loss = nn.functional.cross_entropy(logits, labels[:, None, None].expand(-1, *logits.shape[2:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    """Return the share of the inner pixels whose texture is told right."""
    return (logits_of(network, images).argmax(1) == labels[:, None, None]).float().mean().item()


# ---- the field -------------------------------------------------------------------------------------------------------


def receptive_field(network: Network, images: Tensor, depth: int = LAYERS) -> Array:
    """Return |d out / d picture| of the centre after `depth` layers, the mean over pictures (SIZE, SIZE), of sum 1."""
    centre = (SIZE // 2, SIZE // 2)
    fields = dynk_torch.effective_receptive_field(lambda x: network.features(x, depth), images, centre)
    field = fields.mean(0).numpy()
    return np.asarray(field / field.sum(), np.float32)


def radius(field: Array) -> float:
    """Return the mean distance from the centre, in pixels, weighted by the field."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    return float((np.hypot(rows, columns) * field).sum())


class Measured(NamedTuple):
    """What is known of one network: fields by depth before and after training, and the share of pixels told right."""

    before: list[Array]
    after: list[Array]
    share: float


def measure(samples: int, seed: int, steps: int, halves: tuple[list[Array], list[Array]]) -> Measured:
    """Train one network and measure its field before and after."""
    torch.manual_seed(seed)
    network, rng = Network(samples), np.random.default_rng(seed)
    images, labels = crops(halves[1], TESTS, np.random.default_rng(0))

    def fields() -> list[Array]:
        return [receptive_field(network, images, depth) for depth in range(1, LAYERS + 1)]

    with torch.no_grad():
        network(images)  # the norms' statistics before training
    network.eval()
    before = fields()
    network.train()
    train(network, halves[0], steps, rng)
    network.eval()
    return Measured(before, fields(), accuracy(network, images, labels))


# ---- the results -----------------------------------------------------------------------------------------------------


def rows(results: dict[int, list[Measured]]) -> list[list[str]]:
    """Return how far each network can see, does see before and after training, and what it tells right."""
    found = []
    for samples, runs in results.items():
        by_depth = [spread([radius(run.after[depth]) for run in runs]) for depth in range(LAYERS)]
        untrained = spread([radius(run.before[-1]) for run in runs])
        share = spread([100 * run.share for run in runs])
        found.append([f"{samples} x {samples}", f"{reach(samples)} px", untrained, *by_depth, share])
    return found


def draw(results: dict[int, list[Measured]], path: Path) -> None:
    """Draw the fields after each layer, the mean over seeds, and their radii."""
    figure = Figure(figsize=(2.1 * (LAYERS + 1) + 3.4, 2.2 * len(results)), layout="constrained", facecolor="white")
    maps, curves = figure.subfigures(1, 2, width_ratios=(2.1 * (LAYERS + 1), 3.4))
    grid: Any = maps.subplots(len(results), LAYERS + 1, squeeze=False)
    for row, (samples, runs) in zip(grid, results.items(), strict=True):
        fields = [[run.before[-1] for run in runs], *([run.after[depth] for run in runs] for depth in range(LAYERS))]
        titles = ["untrained", *(f"layer {depth + 1}" for depth in range(LAYERS))]
        for axes, title, found in zip(row, titles, fields, strict=True):
            field = np.mean(found, 0)
            axes.imshow(np.sqrt(field / field.max()), cmap="magma", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if samples == SAMPLES[0]:
                axes.set_title(title)
        row[0].set_ylabel(f"s = {samples}")
    axes = curves.subplots()
    for samples, runs in results.items():
        radii = np.array([[radius(field) for field in run.after] for run in runs])
        options: dict[str, Any] = {"yerr": deviation(radii), "capsize": 3, "label": f"s = {samples}"}
        axes.errorbar(range(1, LAYERS + 1), radii.mean(0), **options)
    axes.set_xlabel("layer")
    axes.set_ylabel("radius of the field, pixels")
    axes.set_xticks(range(1, LAYERS + 1))
    axes.legend()
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> int:
    """Train the networks and measure what they see."""
    parser = argparse.ArgumentParser(description="Measure how the effective receptive field of LS-DFN grows.")
    parser.add_argument("--output", type=Path, default=Path("erf_growth.png"), help="the picture (erf_growth.png)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default {STEPS})")
    add_options(parser, SEEDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # these tensors are so small that more threads would mostly wait for each other
    halves = photographs(slice(None, 256)), photographs(slice(256, None))
    results: dict[int, list[Measured]] = {samples: [] for samples in SAMPLES}
    seconds: list[float] = []
    console = Console()
    for seed in range(options.seeds):
        start = time.perf_counter()
        for samples in track(SAMPLES, f"seed {seed}", console=console):
            results[samples].append(measure(samples, seed, options.steps, halves))
        seconds.append(time.perf_counter() - start)
    layers = [f"layer {depth}" for depth in range(1, LAYERS + 1)]
    columns = ["samples", "can see", "untrained", *layers, "right, %"]
    title = "Radius of the field in pixels, share of pixels told right"
    report(title, columns, rows(results), seconds, options.results, console)
    draw(results, options.output)
    console.print(f"drawn to {options.output}; {sum(seconds):.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
