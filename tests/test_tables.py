"""`python -m dynk tables`: what is counted, and which figures come out."""

from __future__ import annotations

import json
from typing import Any

import dynk_torch
import pytest
import torch
from dynk_torch import nn as layers
from torch import nn

from dynk.__main__ import main
from dynk.commands.tables import counting, rows
from dynk.commands.tables.networks import MobileNetV2, on_meta, resnet

# Published figures that do not come out, and are printed all the same.
OTHERWISE = {
    ("DDF-ResNet50", "GFLOPs"),
    ("DDF-ResNet101", "GFLOPs"),
}


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


def test_figures_come_out_but_for_those_that_are_known_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) > 20
    assert {(row["row"], row["quantity"]) for row in found if row["agrees"] is False} == OTHERWISE
    assert all(row["remark"] for row in found if row["agrees"] is False)
    counted = {(row["row"], row["quantity"]): row["counted"] for row in found}
    assert counted["DDF-ResNet50", "parameters, M"] == pytest.approx(16.8, abs=0.05)
    assert counted["DDF-ResNet50", "GFLOPs"] == pytest.approx(2.298, rel=0.02)
    assert counted["DDF-ResNet101", "GFLOPs"] == pytest.approx(4.1, rel=0.02)


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
