"""What a pixel sees of digits of other sizes than those that a network was trained on.

The handwritten digits of scikit-learn are turned and drawn at random sizes. A small network of depth-wise convolutions
learns to tell them apart, and so does its twin, whose kernels are local deformable kernels: at each pixel it chooses by
what points of a larger kernel it is filtered, and so how much each pixel within reach counts for it, its effective
receptive field. Both start from the same functions, are trained on digits of middle size, and are tried on smaller and
larger ones. The fields are the gradients of the features in the middle of the picture by its pixels.

`make digits` prints a table and draws digits.png.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import dynk_torch
import numpy as np
import torch
from dynk_torch.nn import DeformableKernelConv2d, parameter_groups
from matplotlib.figure import Figure
from recording import add_options, report, spread
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SIZE = 32  # of a picture
TRAINED = (1.75, 2.5)  # sizes of the digits in training, in pixels of a picture for one of the digit's eight
TRIED = (1.0, 1.25, 1.5, 2.0, 3.0, 3.5)
TURN = math.pi / 6  # at most, either way
CHANNELS, LAYERS, SCOPE = 32, 4, 4
BATCH, STEPS, SEEDS = 64, 300, 2
LEARNING_RATE, MULTIPLIER = 0.01, 0.1  # offsets learn at a tenth of the rate
KINDS = ("rigid", "deformable")


class Digits(NamedTuple):
    """Digits (N, 1, 8, 8) and what they are (N,)."""

    images: Tensor
    labels: Tensor


class Trial(NamedTuple):
    """What became of one network."""

    right: list[float]  # the share told right, in %, at each of the sizes tried
    radius: list[float]  # of the field at each of them, in pixels


def digits() -> tuple[Digits, Digits]:
    """Return the digits to train on and those to try."""
    found = load_digits()
    images = torch.from_numpy(np.asarray(found.images, np.float32) / 16)[:, None]
    labels = torch.from_numpy(np.asarray(found.target, np.int64))
    return Digits(images[:1200], labels[:1200]), Digits(images[1200:], labels[1200:])


def drawn(images: Tensor, sizes: Tensor, turns: Tensor) -> Tensor:
    """Return pictures (N, 1, SIZE, SIZE) of digits in the middle, each at its size and turned."""
    shrink = SIZE / images.shape[-1] / sizes
    cosine, sine = torch.cos(turns) * shrink, torch.sin(turns) * shrink
    none = torch.zeros_like(cosine)
    matrices = torch.stack([torch.stack([cosine, -sine, none], -1), torch.stack([sine, cosine, none], -1)], 1)
    grid = functional.affine_grid(matrices, [len(images), 1, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def turns_of(count: int, generator: torch.Generator) -> Tensor:
    return (2 * torch.rand(count, generator=generator) - 1) * TURN


class Block(nn.Module):
    """A depth-wise convolution and one of single pixels, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, of the size of the input."""
        seen = self.norms[0](self.depthwise(x))
        return x + self.norms[1](self.pointwise(seen)).relu()  # type: ignore[no-any-return]


class Network(nn.Module):
    """Blocks at half the size of the picture, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(CHANNELS) for _ in range(LAYERS)))
        self.classifier = nn.Linear(CHANNELS, 10)

    def features(self, pictures: Tensor) -> Tensor:
        """Return what the classifier takes the mean of."""
        return self.blocks(self.stem(pictures).relu())  # type: ignore[no-any-return]

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the scores of the ten digits."""
        return self.classifier(self.features(pictures).mean((2, 3)))  # type: ignore[no-any-return]


def make_network(seed: int, kind: str) -> Network:
    """Return a network; those of one seed start as the same function."""
    torch.manual_seed(seed)
    network = Network()
    if kind == "deformable":
        dynk_torch.convert(network, DeformableKernelConv2d, where=lambda _, conv: conv.groups > 1, scope=SCOPE)
    return network


def train(network: Network, known: Digits, seed: int, steps: int, what: str) -> None:
    """Fit a network to digits of middle size."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(parameter_groups(network, LEARNING_RATE, MULTIPLIER), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in track(range(steps), what):
        chosen = torch.randint(len(known.labels), (BATCH,), generator=generator)
        sizes = TRAINED[0] + (TRAINED[1] - TRAINED[0]) * torch.rand(BATCH, generator=generator)
        pictures = drawn(known.images[chosen], sizes, turns_of(BATCH, generator))
        loss = functional.cross_entropy(network(pictures), known.labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def fields(network: Network, pictures: Tensor) -> Tensor:
    """Return the effective receptive field of the middle of each picture: how much each pixel counts, (N, H, W)."""
    pictures = pictures.clone().requires_grad_()
    features = network.features(pictures)
    middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle.sum(), pictures)
    return gradient[:, 0].abs()


def radius(found: Tensor) -> float:
    """Return how far what counts lies from its centre, in pixels: the root of the mean square."""
    share = found / found.sum((1, 2), keepdim=True)
    places = torch.arange(found.shape[-1], dtype=found.dtype)
    square: Any = 0
    for along in (1, 2):
        line = share.sum(along)
        centre = (line * places).sum(1, keepdim=True)
        square = square + (line * (places - centre) ** 2).sum(1)
    return float(square.sqrt().mean())


def trial(network: Network, unknown: Digits) -> Trial:
    """Return how a network does at every size."""
    network.eval()
    right, radii = [], []
    turns = turns_of(len(unknown.labels), torch.Generator().manual_seed(99))
    for size in TRIED:
        pictures = drawn(unknown.images, torch.full_like(turns, size), turns)
        with torch.no_grad():
            right.append(100 * (network(pictures).argmax(1) == unknown.labels).float().mean().item())
        radii.append(radius(fields(network, pictures[:64])))
    return Trial(right, radii)


def draw(networks: dict[str, Network], unknown: Digits, path: Path) -> None:
    """Draw a digit at several sizes, turned, and over it the field of its middle in both networks."""
    sizes, turns = torch.tensor(TRIED), torch.linspace(-TURN, TURN, len(TRIED))
    image = unknown.images[(unknown.labels == 3).nonzero()[0, 0]]
    pictures = drawn(image.expand(len(TRIED), -1, -1, -1), sizes, turns)
    figure = Figure(figsize=(2 * len(TRIED), 2 * len(networks) + 0.5), layout="constrained")
    rows = figure.subplots(len(networks), len(TRIED))
    for axes, (kind, network) in zip(rows, networks.items(), strict=True):
        found = fields(network.eval(), pictures)
        for panel, picture, field, size in zip(axes, pictures[:, 0], found, TRIED, strict=True):
            panel.imshow(picture.numpy(), cmap="gray")
            panel.imshow(field.numpy(), cmap="inferno", alpha=(field / field.max()).sqrt().numpy())
            panel.set_axis_off()
            panel.set_title(f"{kind}, size {size:g}", fontsize=9)
    figure.savefig(path)


def rows(trials: dict[str, list[Trial]]) -> list[list[str]]:
    """Return what each kind tells right and how far its fields reach, at each size."""
    found = []
    for kind, of_kind in trials.items():
        right, radii = (np.array(numbers).T for numbers in zip(*of_kind, strict=True))
        found.append([f"{kind}: right, %", *map(spread, right)])
        found.append([f"{kind}: radius, px", *(spread(of_size, 2) for of_size in radii)])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Train both networks from several seeds and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--output", type=Path, default=Path("digits.png"), help="where the picture goes")
    add_options(parser, SEEDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # these tensors are so small that more threads would mostly wait for each other
    known, unknown = digits()
    trials: dict[str, list[Trial]] = {kind: [] for kind in KINDS}
    networks: dict[str, Network] = {}  # those of the first seed, which are drawn
    seconds: list[float] = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        for kind in KINDS:
            network = make_network(seed, kind)
            networks.setdefault(kind, network)
            train(network, known, seed, options.steps, f"{kind}, seed {seed}")
            trials[kind].append(trial(network, unknown))
        if seed == 0:
            draw(networks, unknown, options.output)
        seconds.append(time.perf_counter() - start)
    sizes = [f"{size:g}" + ("" if TRAINED[0] <= size <= TRAINED[1] else " *") for size in TRIED]
    report("By size, * not in training", ["size", *sizes], rows(trials), seconds, options.results, Console())
    Console().print(f"drawn to {options.output}; {sum(seconds):.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
