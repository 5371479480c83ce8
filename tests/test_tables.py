"""`python -m dynk tables`: what is counted, and which figures come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dynk_torch
import pytest
import torch
from dynk_torch import nn as layers
from torch import nn

from dynk.__main__ import main
from dynk.commands.tables import counting, rows
from dynk.commands.tables.networks import MobileNetV2, on_meta, resnet


class Call(nn.Module):
    """An operator as a network of its arguments."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.name, self.options = name, options

    def forward(self, *arrays: Any) -> torch.Tensor:
        return getattr(dynk_torch, self.name)(*arrays, **self.options)


@pytest.mark.parametrize(
    ("call", "shapes", "flops"),
    [
        (Call("ddf"), ((2, 4, 5, 6), (2, 1, 3, 3, 5, 6), (2, 4, 3, 3)), 2 * 4 * 30 * 9 * 3),
        (Call("ddf", stride=2), ((2, 4, 6, 6), (2, 2, 3, 1, 3, 3), None), 2 * 4 * 9 * 3 * 2),
        (Call("ddf_upsample", scale=2), ((1, 4, 5, 6), None, (1, 4, 2, 2, 3, 3)), 4 * 120 * 9 * 2),
        (Call("dynamic_filter", samples=2), ((1, 2, 3, 4), (1, 5, 2, 3, 3, 3, 4)), 12 * 5 * 2 * 9 * 4 * 2),
        (
            Call("ls_dfn", samples=3, sample_stride=2),
            ((1, 4, 5, 6), (1, 2, 4, 5, 6), (1, 2, 3, 3, 5, 6), (1, 2, 3, 3, 5, 6), (1, 2, 3, 3, 5, 6)),
            30 * (4 + 9 * 2 * (2 * 9 + 2 * 4 + 1 + 9)),
        ),
        (
            Call("adaptive_dilation_conv2d", groups=2),
            ((2, 4, 5, 6), (6, 2, 3, 3), (2, 3, 5, 6)),
            2 * 30 * (2 * 6 * 2 * 9 + 2 * 3 * 4 * 9),
        ),
        (Call("deformable_conv2d"), ((2, 4, 5, 6), (6, 4, 3, 3), None, None), 2 * 12 * 2 * 6 * 4 * 9),
        (
            Call("deformable_conv2d", groups=4, padding=1),
            ((2, 4, 5, 6), (4, 1, 4, 4), (2, 1, 3, 3, 2, 5, 6), (2, 1, 3, 3, 2, 5, 6)),
            2 * 30 * 4 * 9 * (8 + 10),
        ),
        (
            Call("deformable_conv2d", padding=1),
            ((1, 4, 5, 6), (6, 4, 4, 4), (1, 1, 3, 3, 2, 5, 6)),
            30 * (8 * 4 * 9 + 2 * 6 * 4 * 16),
        ),
        (Call("sample_kernel"), ((4, 2, 4, 4), (3, 1, 3, 3, 2)), 3 * 8 * 9 * 8),
    ],
    ids=lambda value: value.name if isinstance(value, Call) else "",
)
def test_operators_are_counted(call: Call, shapes: Any, flops: int) -> None:
    given = [shape for shape in shapes if shape is not None]

    class Filled(nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            left = iter(tensors)
            return call(*(None if shape is None else next(left) for shape in shapes))

    assert counting.count(Filled(), *given).flops == flops


def test_networks_have_their_usual_sizes() -> None:
    sizes = {18: 11_689_512, 50: 25_557_032, 101: 44_549_160}
    assert {depth: rows.count_parameters(on_meta(lambda depth=depth: resnet(depth))) for depth in sizes} == sizes
    assert rows.count_parameters(on_meta(MobileNetV2)) == 3_504_872


def test_a_convolution_is_two_operations_for_each_weight_and_pixel() -> None:
    found = counting.count(nn.Conv2d(3, 5, 3, padding=1), (2, 3, 4, 6))
    assert found == (3 * 5 * 9 + 5, 3 * 5 * 9, 2 * 2 * 24 * 3 * 5 * 9)


def test_what_layers_predict_and_apply_is_counted() -> None:
    """A spatial branch of 10 -> 9 and a channel branch of 10 -> 2 -> 90, and 3 operations for each tap."""
    found = counting.count(on_meta(lambda: layers.DDF(10)), (1, 10, 4, 4))
    assert found.flops == 2 * 16 * 90 + 2 * (20 + 180) + 3 * 16 * 90
    assert found.weights == 90 + 20 + 180
    assert found.parameters == found.weights + 9 + 2 + 90 + 90


class Residual(nn.Module):
    """A network with one of each that the author of DDF counts, and activations and max-pooling, which he does not."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Conv2d(3, 10, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.MaxPool2d(2))
        self.ddf, self.end = layers.DDF(10, stride=2), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.shortcut = nn.Conv2d(10, 10, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        return self.end(self.ddf(x) + self.shortcut(x))


@pytest.mark.parametrize("training", [True, False])
def test_elements_are_counted_as_the_author_counts(training: bool) -> None:
    """An image of 8 x 8 pixels, 4 x 4 behind the max-pooling, 2 x 2 behind the stride."""
    network = on_meta(Residual).train(training)
    found = counting.count(network, (1, 3, 8, 8), formulas=counting.AUTHOR_FORMULAS)
    start = 64 * 30 + 64 * 10  # a convolution, batch normalisation
    channel = 16 * 10 + (10 * 2 + 2 * 90) + 90  # pooling, two convolutions, filter normalisation
    spatial = 4 * 10 * 9 + 4 * 9  # a convolution, filter normalisation
    filtering = 2 * 4 * 10 * 9  # the two filters of a tap made one, and applied
    end = 4 * 10 * 10 + 4 * 10 + 4 * 10  # the shortcut's convolution, the sum, pooling
    assert found.flops == 2 * (start + channel + spatial + filtering + end)


def test_a_filter_alone_is_a_pair_for_each_tap_as_the_author_counts() -> None:
    class Alone(nn.Module):
        def forward(self, x: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
            return dynk_torch.ddf(x, spatial, None)

    shapes = (2, 4, 5, 6), (2, 1, 3, 3, 5, 6)
    assert counting.count(Alone(), *shapes, formulas=counting.AUTHOR_FORMULAS).flops == 2 * (2 * 4 * 30 * 9)


def test_all_published_figures_come_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) > 20
    assert [row for row in found if row["agrees"] is False] == []
    published = {row["row"]: row["published"] for row in found if row["quantity"] == "GFLOPs, as the author counts"}
    assert published == {"DDF-ResNet50": 2.298, "DDF-ResNet101": 4.1, "DDF-ResNet18": 0.4}
    page = (Path(__file__).parent.parent / "docs" / "tables.md").read_text()
    counted = {(row["row"], row["quantity"]): row["counted"] for row in found}
    assert counted["DDF-ResNet50", "parameters, M"] == pytest.approx(16.8, abs=0.05)
    for name, figure in published.items():
        plain, as_author = counted[name, "GFLOPs"], counted[name, "GFLOPs, as the author counts"]
        assert f"| {name} | {plain:.3f} | {as_author:.3f} | {figure} |" in page


def test_a_table_shows_both_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def one() -> list[rows.Row]:
        agreeing, other = rows.Row("T", "a", "x", 1.26, 1.3, 1), rows.Row("T", "b", "x", 2, 3, 0, "why")
        return [agreeing, other, rows.Row("U", "c", "x", 1, None, 0)]

    monkeypatch.setattr(rows, "TABLES", {"t": one})
    assert main(["tables"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("│")[3:6] for line in lines if line.startswith("│")] == [
        [" 1.3     ", " 1.3       ", " = "],
        [" 2       ", " 3         ", " ≠ "],
        [" 1       ", " —         ", "  "],
    ]
