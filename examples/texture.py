"""Which texture a pixel belongs to, by a network that takes a dilation of its own at each pixel.

Pictures are composed of photographs of brick, grass and gravel, some of them at half their size, in random regions:
large structures want a large receptive field, borders and small ones a small one. A network of three PAD layers learns
to tell the textures apart, and so does its twin, whose dilation is the same everywhere and which starts from the same
weights. The left halves of the photographs are for training, the right halves for testing. Where the layers look far
shows in the maps of the expected dilation.

`make texture` prints a table and draws texture.png.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage.data
import torch
from dynk_torch.nn import PADConv2d
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recording import add_options, report, spread
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

Array = NDArray[np.float32]

TEXTURES = ("brick", "grass", "gravel")
DILATIONS, FIXED = (1, 2, 4), 1  # the candidates, and the twin's dilation
CHANNELS, LAYERS = 16, 3
SIZE, REGIONS = 64, 6  # of a picture
BATCH, STEPS, TESTS = 4, 400, 16
TEST_SEED = 99  # of the pictures for testing, none of those for training
LEARNING_RATE = 0.01
TAU = (2.0, 0.5)  # the temperature at the beginning and at the end


class Pictures(NamedTuple):
    """Pictures (N, 1, H, W) and the texture of each of their pixels (N, H, W)."""

    images: Tensor
    labels: Tensor


def photographs(half: slice) -> list[Array]:
    """Return one half of each texture's photograph, at its own and at half its size, of mean 0 and deviation 1."""
    found = []
    for name in TEXTURES:
        image = np.asarray(getattr(skimage.data, name)(), np.float32)[:, half]
        small = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2).mean((1, 3))
        found += [(scaled - scaled.mean()) / scaled.std() for scaled in (image, small)]
    return found


def compose(sources: list[Array], count: int, rng: np.random.Generator) -> Pictures:
    """Return pictures whose pixels show the texture of the nearest of some random points."""
    images, labels = np.empty((count, 1, SIZE, SIZE), np.float32), np.empty((count, SIZE, SIZE), np.int64)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for n in range(count):
        points = rng.uniform(0, SIZE, (REGIONS, 2))
        nearest = ((rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2).argmin(-1)
        for region, source in enumerate(rng.integers(len(sources), size=REGIONS)):
            y, x = rng.integers(0, np.array(sources[source].shape) - SIZE + 1)
            there = nearest == region
            images[n, 0][there] = sources[source][y : y + SIZE, x : x + SIZE][there]
            labels[n][there] = source // 2
    return Pictures(torch.from_numpy(images), torch.from_numpy(labels))


class Network(nn.Module):
    """Layers that hand each other what they found of the dilations, and a classifier of pixels."""

    def __init__(self, convolutions: list[nn.Conv2d], classifier: nn.Conv2d, *, adaptive: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = list(convolutions)
        if adaptive:
            layers = [PADConv2d.from_conv(conv, dilations=DILATIONS) for conv in convolutions]
        self.layers, self.classifier = nn.ModuleList(layers), classifier

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of the textures, and the state of each adaptive layer."""
        states: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, PADConv2d):
                x, state = layer(x, states[-1] if states else None)
                states.append(state)
            else:
                x = layer(x)
            x = x.relu()
        return self.classifier(x), states

    def set_temperature(self, tau: float) -> None:
        for layer in self.layers:
            if isinstance(layer, PADConv2d):
                layer.tau = tau


def make_network(seed: int, *, adaptive: bool) -> Network:
    """Return a network; those of one seed start from the same weights."""
    torch.manual_seed(seed)
    widths = [1, *[CHANNELS] * LAYERS]
    convolutions = [nn.Conv2d(before, after, 3, padding=FIXED, dilation=FIXED) for before, after in pairwise(widths)]
    return Network(convolutions, nn.Conv2d(CHANNELS, len(TEXTURES), 1), adaptive=adaptive)


def train(network: Network, sources: list[Array], seed: int, steps: int, what: str) -> None:
    """Fit a network to pictures, none of which it sees twice."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for step in track(range(steps), what):
        network.set_temperature(TAU[0] * (TAU[1] / TAU[0]) ** (step / steps))
        pictures = compose(sources, BATCH, rng)
        loss = nn.functional.cross_entropy(network(pictures.images)[0], pictures.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def accuracy(network: Network, pictures: Pictures) -> tuple[float, Any]:
    """Return the share of pixels that are told right, and the expected dilation of each pixel in each layer."""
    logits, states = network.eval()(pictures.images)
    dilations = torch.tensor(DILATIONS, dtype=torch.float32)[:, None, None]
    maps = [(state * dilations).sum(1) for state in states]
    return (logits.argmax(1) == pictures.labels).float().mean().item(), maps


def draw(pictures: Pictures, maps: list[Tensor], path: Path) -> None:
    """Draw some pictures, their textures and the expected dilation of each pixel, which is what Fig. 4 of PAD shows."""
    count = 4
    figure = Figure(figsize=(2 * count, 2 * (2 + len(maps))), layout="constrained")
    rows = figure.subplots(2 + len(maps), count)
    titles = ["picture", "texture", *(f"expected dilation, layer {number + 1}" for number in range(len(maps)))]
    panels: list[tuple[Any, dict[str, Any]]] = [(pictures.images[:, 0], {"cmap": "gray"}), (pictures.labels, {})]
    panels += [(found, {"cmap": "magma", "vmin": min(DILATIONS), "vmax": max(DILATIONS)}) for found in maps]
    for axes, title, (values, options) in zip(rows, titles, panels, strict=True):
        for n in range(count):
            shown = axes[n].imshow(values[n].numpy(), **options)
            axes[n].set_axis_off()
        axes[0].set_title(title, loc="left")
        if "vmin" in options:
            figure.colorbar(shown, ax=list(axes))
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Train both networks and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--output", type=Path, default=Path("texture.png"), help="where the picture goes")
    add_options(parser, seeds=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # these tensors are so small that more threads would mostly wait for each other
    training, testing = photographs(slice(None, 256)), photographs(slice(256, None))
    test = compose(testing, TESTS, np.random.default_rng(TEST_SEED))
    shares: dict[str, list[float]] = {f"dilation {FIXED} everywhere": [], "a dilation for each pixel": []}
    weights: dict[str, str] = {}
    seconds: list[float] = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        for name, adaptive in zip(shares, (False, True), strict=True):
            network = make_network(seed, adaptive=adaptive)
            train(network, training, seed, options.steps, f"{name}, seed {seed}")
            share, maps = accuracy(network, test)
            shares[name].append(100 * share)
            weights[name] = f"{sum(parameter.numel() for parameter in network.parameters()):,}"
        if seed == 0:
            draw(test, maps, options.output)
        seconds.append(time.perf_counter() - start)
    rows = [[name, weights[name], spread(found)] for name, found in shares.items()]
    columns = ["network", "weights", "right, %"]
    report("Share of pixels told right", columns, rows, seconds, options.results, Console())
    Console().print(f"drawn to {options.output}; {sum(seconds):.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
