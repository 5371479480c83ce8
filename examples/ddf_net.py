"""A network of decoupled dynamic filters beside convolutional ones of no fewer weights, on small handwritten digits.

The digits are the 8 x 8 ones that scikit-learn brings along, put somewhere in a larger picture, clean or noisy. Three
networks learn to read them: of residual blocks 1x1 - 3x3 - 1x1 whose 3x3 part is a DDF layer, a convolution of the same
width, or a convolution as narrow as the weights of the first allow. Each is trained from several seeds.

    python examples/ddf_net.py    # wants dynk[examples]; prints a table and draws ddf_net.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dynk_torch.nn import DDF
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recording import add_options, deviation, report, spread
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn

Array = NDArray[np.float32]

WIDTH, BLOCKS, TAPS = 24, 2, 3
SIZE = 12  # of a picture
NOISES = {"clean": 0.0, "noisy": 0.3}  # the deviation of a picture's noise, where ink is 1
TRAINED = 1200  # digits to learn from; the other 597 are for testing
BATCH, EPOCHS = 64, 10
LEARNING_RATE = 0.005
SEEDS = 3


# ---- the networks ----------------------------------------------------------------------------------------------------


def convolution(channels: int) -> nn.Module:
    """Return the twin of a DDF layer."""
    return nn.Conv2d(channels, channels, TAPS, padding=TAPS // 2)


class Block(nn.Module):
    """A residual block whose 3x3 part is given."""

    def __init__(self, channels: int, middle: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.middle = middle(channels)
        self.after = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.after(self.middle(self.before(x)))).relu()


def make_network(width: int, middle: Callable[[int], nn.Module]) -> nn.Sequential:
    """Return a network that reads a picture."""
    stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    blocks = [Block(width, middle) for _ in range(BLOCKS)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def weights(network: nn.Module) -> int:
    """Return the number of a network's weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def narrowest(least: int) -> int:
    """Return the smallest width of a convolutional network of at least so many weights."""
    return next(width for width in range(1, WIDTH + 1) if weights(make_network(width, convolution)) >= least)


# ---- data and training -----------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Pictures (N, 1, SIZE, SIZE) and what they show (N,)."""

    images: Tensor
    labels: Tensor


class Task(NamedTuple):
    """Digits (N, 8, 8) to learn from, what they show (N,), the noise around them, and pictures for testing."""

    images: Array
    labels: Tensor
    noise: float
    test: Digits


def make_task(noise: float) -> Task:
    """Return one part of the digits for training, the other for testing."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images, labels = (digits.images[order] / 16).astype(np.float32), torch.from_numpy(digits.target[order])
    test = Digits(placed(images[TRAINED:], noise, np.random.default_rng(1)), labels[TRAINED:])
    return Task(images[:TRAINED], labels[:TRAINED], noise, test)


def placed(images: Array, noise: float, rng: np.random.Generator) -> Tensor:
    """Return pictures with a digit (N, 8, 8) somewhere in each."""
    found = rng.normal(0, noise, (len(images), 1, SIZE, SIZE)).astype(np.float32)
    h, w = images.shape[1:]
    corners = rng.integers(0, SIZE - h + 1, (len(images), 2))
    for picture, image, (y, x) in zip(found[:, 0], images, corners, strict=True):
        picture[y : y + h, x : x + w] += image
    return torch.from_numpy(found)


def train(network: nn.Module, task: Task, epochs: int, seed: int) -> list[float]:
    """Fit a network to digits that lie elsewhere in each epoch; return the share of the test's read after each."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    shares = []
    for _ in range(epochs):
        network.train()
        pictures = placed(task.images, task.noise, rng)
        for batch in torch.from_numpy(rng.permutation(len(pictures))).split(BATCH):
            loss = nn.functional.cross_entropy(network(pictures[batch]), task.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        shares.append(accuracy(network, task.test))
    return shares


@torch.no_grad()
def accuracy(network: nn.Module, digits: Digits) -> float:
    """Return the share of digits that are read right."""
    return (network.eval()(digits.images).argmax(1) == digits.labels).float().mean().item()


# ---- the results -----------------------------------------------------------------------------------------------------


class Contender(NamedTuple):
    """A network's name and how it is made; by task, for each seed, the shares read right after each epoch."""

    name: str
    make: Callable[[], nn.Sequential]
    shares: dict[str, list[list[float]]]


def rows(contenders: list[Contender]) -> list[list[str]]:
    """Return what each network weighs and reads right of each task after its training."""
    found = []
    for name, make, shares in contenders:
        cells = [spread([100 * run[-1] for run in of_task]) for of_task in shares.values()]
        found.append([name, f"{weights(make()):,}", *cells])
    return found


def draw(contenders: list[Contender], network: nn.Sequential, test: Digits, path: Path) -> None:
    """Draw the shares read right by epoch, and some digits with the filters of their pixels."""
    figure = Figure(figsize=(13, 3.2), layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=(7, 6))
    panels = left.subplots(1, len(NOISES), sharey=True)
    for axes, task in zip(panels, NOISES, strict=True):
        for name, _, shares in contenders:
            mean, around = 100 * np.mean(shares[task], 0), 100 * deviation(shares[task])
            epochs = np.arange(1, len(mean) + 1)
            axes.plot(epochs, mean, label=name)
            axes.fill_between(epochs, mean - around, mean + around, alpha=0.2)
        axes.set_title(f"{task} pictures")
        axes.set_xlabel("epoch")
    panels[0].set_ylabel("digits read right, %")
    panels[0].legend(fontsize=8)
    shown = test.images[:4]
    block: Any = network[1]
    with torch.no_grad():
        predicted = block.middle.spatial_branch(block.before(network.eval()[0](shown)))
        filters = block.middle.spatial_norm(predicted.unflatten(1, (1, TAPS, TAPS)))
    centre = TAPS // 2
    rows = [("picture", shown[:, 0], "gray"), ("centre tap", filters[:, 0, centre, centre], "coolwarm")]
    for row, (title, values, colours) in zip(right.subplots(len(rows), len(shown)), rows, strict=True):
        for one, value in zip(row, values, strict=True):
            one.imshow(value.numpy(), cmap=colours)
            one.set_xticks([])
            one.set_yticks([])
        row[0].set_ylabel(title)
    figure.savefig(path, dpi=75)


def main(arguments: list[str] | None = None) -> int:
    """Train the networks from all seeds and compare them."""
    parser = argparse.ArgumentParser(description="Compare a DDF network with convolutional ones on digits.")
    parser.add_argument("--output", type=Path, default=Path("ddf_net.png"), help="the picture (default ddf_net.png)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of training (default {EPOCHS})")
    add_options(parser, SEEDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # these tensors are so small that more threads would mostly wait for each other

    tasks = {name: make_task(noise) for name, noise in NOISES.items()}
    narrow = narrowest(weights(make_network(WIDTH, DDF)))
    makers = {
        "DDF": lambda: make_network(WIDTH, DDF),
        "convolution, no fewer weights": lambda: make_network(narrow, convolution),
        "convolution, same width": lambda: make_network(WIDTH, convolution),
    }
    contenders = [Contender(name, make, {task: [] for task in tasks}) for name, make in makers.items()]
    first: dict[tuple[str, str], nn.Sequential] = {}  # the networks of the first seed, of which one is drawn
    seconds: list[float] = []
    console = Console()
    for seed in range(options.seeds):
        start = time.perf_counter()
        runs = [(task, contender) for task in tasks for contender in contenders]
        for task, contender in track(runs, f"seed {seed}", console=console):
            torch.manual_seed(seed)
            network = contender.make()
            contender.shares[task].append(train(network, tasks[task], options.epochs, seed))
            first.setdefault((contender.name, task), network)
        seconds.append(time.perf_counter() - start)
    columns = ["network", "weights", *tasks]
    report("Digits read right, in %", columns, rows(contenders), seconds, options.results, console)
    draw(contenders, first["DDF", "clean"], tasks["clean"].test, options.output)
    console.print(f"drawn to {options.output}; {sum(seconds):.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
