"""The examples run, and what they compute besides dynk is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import dynk

sys.path.append(str(Path(__file__).parent.parent / "examples"))  # as for a script
from examples import joint_upsampling, motion, recording

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
texture, erf_growth = (pytest.importorskip(f"examples.{name}") for name in ("texture", "erf_growth"))
baselines, training = (pytest.importorskip(f"dynk.demo.{name}") for name in ("baselines", "training"))
ddf_net = pytest.importorskip("examples.ddf_net", reason="scikit-learn is not installed")
digits = pytest.importorskip("examples.digits", reason="scikit-learn is not installed")


@pytest.fixture
def image() -> motion.Array:
    return np.random.default_rng(0).random((90, 90), dtype=np.float32)


def test_frames_move_on(image: motion.Array) -> None:
    frames = motion.moving(image, np.array([[20, 15]]), np.array([[9, -4]]), size=30)
    for earlier, later in ((frames.before, frames.now), (frames.now, frames.following)):
        np.testing.assert_array_equal(later[..., 9:, :-4], earlier[..., :-9, 4:])


def test_a_pixel_knows_where_it_was(image: motion.Array) -> None:
    """Content that moves by (9, -4) lay at (-9, 4) in the frame before."""
    known = motion.match(motion.moving(image, np.array([[20, 15]]), np.array([[9, -4]])))
    assert (known[motion.INNER].argmax(2) == np.array([0, 13])[None, :, None, None]).all()


@pytest.mark.parametrize("samples", motion.SAMPLES)
def test_the_gradient_is_that_of_the_loss(image: motion.Array, samples: int) -> None:
    rng = np.random.default_rng(1)
    frames = motion.Frames(*(frame.astype(np.float64) for frame in motion.random_frames(image, 2, rng)))
    known = rng.random((2, 2, motion.CANDIDATES, motion.SIZE, motion.SIZE))
    layer = motion.Layer(samples, rng)
    weights, step = layer.weights.astype(np.float64), 1e-4 * rng.standard_normal(layer.weights.shape)
    losses, grads = [], []
    with dynk.backend("reference"):
        for layer.weights in (weights - step, weights, weights + step):
            loss, grad = layer.gradient(frames, known)
            losses.append(loss)
            grads.append(grad)
    np.testing.assert_allclose(losses[2] - losses[0], 2 * (grads[1] * step).sum(), rtol=1e-5)


def test_the_motion_example_runs_and_draws(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(motion, "CROPS", 4)
    monkeypatch.setattr(motion, "BATCH", 2)
    monkeypatch.setattr(motion, "SAMPLES", (1, 7))
    output, results = tmp_path / "motion.png", tmp_path / "motion.json"
    assert motion.main(["--output", str(output), "--results", str(results), "--steps", "2", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("the last frame again", "s = 1", "s = 7"))
    assert [row[1] for row in json.loads(results.read_text())["rows"]] == ["", "1 px", "10 px"]
    assert output.read_bytes().startswith(b"\x89PNG")


def test_what_is_recorded_is_mean_and_deviation_of_the_seeds_and_the_slowest_one(tmp_path) -> None:
    assert (recording.spread([2.0]), recording.spread([1.0, 3.0], 2)) == ("2.0", "2.00 ± 1.41")
    np.testing.assert_array_equal(recording.deviation([[2.0, 5.0]]), [0, 0])
    np.testing.assert_allclose(recording.deviation([[1.0, 5.0], [3.0, 5.0]]), [2**0.5, 0])
    path = tmp_path / "found.json"
    recording.report("Error", ["a", "b"], [["x", "1.0"]], [1.0, 3.04, 2.0], path, Console())
    found = recording.Found(**json.loads(path.read_text()))
    assert (found.title, found.seconds) == ("Error: mean ± deviation of 3 seeds.", 3.0)
    assert (found.columns, found.rows) == (["a", "b"], [["x", "1.0"]])


def test_textures_are_where_their_labels_say() -> None:
    sources = [np.full((80, 80), value, np.float32) for value in range(6)]
    pictures = texture.compose(sources, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(pictures.images[:, 0].numpy() // 2, pictures.labels.numpy())
    assert len(np.unique(pictures.labels)) > 1


def test_twins_start_from_the_same_weights() -> None:
    fixed, adaptive = (texture.make_network(0, adaptive=adaptive) for adaptive in (False, True))
    for one, other in zip(fixed.layers, adaptive.layers, strict=True):
        np.testing.assert_array_equal(one.weight.detach(), other.weight.detach())


def test_the_texture_example_runs_and_draws(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(texture, "TESTS", 4)
    monkeypatch.setattr(texture, "BATCH", 1)
    output, results = tmp_path / "texture.png", tmp_path / "texture.json"
    assert texture.main(["--output", str(output), "--results", str(results), "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("dilation 1 everywhere", "a dilation for each pixel"))
    fixed, adaptive = (int(row[1].replace(",", "")) for row in json.loads(results.read_text())["rows"])
    assert fixed < adaptive
    assert output.read_bytes().startswith(b"\x89PNG")


def test_digits_are_drawn_at_their_size_and_turned() -> None:
    corner = torch.zeros(3, 1, 8, 8)
    corner[:, :, :4, :4] = 1  # above and left of the middle
    pictures = digits.drawn(corner, torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, torch.pi / 2]))
    for picture, count, quarter in zip(pictures[:, 0], (4, 8, 8), ((0, 0), (0, 0), (1, 0)), strict=True):
        middle = digits.SIZE // 2
        there = picture.reshape(2, middle, 2, middle).sum((1, 3))
        assert there.argmax().item() == 2 * quarter[0] + quarter[1]
        assert picture.sum().item() == pytest.approx(count**2, rel=0.05)


def test_the_radius_of_a_field_is_that_of_its_pixels() -> None:
    field = torch.zeros(2, 9, 9)
    field[:, 4, 4] = 1
    assert digits.radius(field) == 0
    field[:, 4, 4], field[:, 4, 1], field[:, 4, 7] = 0, 1, 1
    assert digits.radius(field) == pytest.approx(3)


def test_both_kinds_of_networks_start_as_the_same_function() -> None:
    rigid, deformable = (digits.make_network(0, kind).eval() for kind in digits.KINDS)
    pictures = torch.rand(2, 1, digits.SIZE, digits.SIZE)
    torch.testing.assert_close(rigid(pictures), deformable(pictures), atol=1e-5, rtol=1e-4)


def test_the_digits_example_runs_and_draws(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(digits, "BATCH", 2)
    known, unknown = digits.digits()
    few = digits.Digits(unknown.images[:8], unknown.labels[:8])
    monkeypatch.setattr(digits, "digits", lambda: (known, few))
    output, results = tmp_path / "digits.png", tmp_path / "digits.json"
    assert digits.main(["--output", str(output), "--results", str(results), "--steps", "1", "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in digits.KINDS)
    assert {len(row) for row in json.loads(results.read_text())["rows"]} == {1 + len(digits.TRIED)}
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_network_of_ddf_has_no_more_weights_than_its_twins() -> None:
    own = ddf_net.weights(ddf_net.make_network(ddf_net.WIDTH, ddf_net.DDF))
    narrow = ddf_net.narrowest(own)
    twins = [ddf_net.weights(ddf_net.make_network(width, ddf_net.convolution)) for width in (narrow - 1, narrow)]
    assert twins[0] < own <= twins[1]


def test_digits_lie_anywhere_in_their_pictures() -> None:
    digits = np.arange(1, 3 * 64 + 1, dtype=np.float32).reshape(3, 8, 8)
    pictures = ddf_net.placed(digits, 0, np.random.default_rng(0)).numpy()[:, 0]
    np.testing.assert_array_equal(pictures[pictures > 0], digits.ravel())
    assert len({int(picture.argmax()) for picture in pictures}) == 3


def test_the_ddf_example_runs_and_draws(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ddf_net, "TRAINED", 96)
    output, results = tmp_path / "ddf_net.png", tmp_path / "ddf_net.json"
    assert ddf_net.main(["--output", str(output), "--results", str(results), "--epochs", "1", "--seeds", "2"]) == 0
    assert "no fewer weights" in capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(results.read_text())["rows"]) == 3


@pytest.mark.parametrize("samples", erf_growth.SAMPLES)
def test_a_field_lies_within_reach_and_reaches_its_end(samples: int) -> None:
    torch.manual_seed(0)
    network = erf_growth.Network(samples)
    images = torch.randn(2, 1, erf_growth.SIZE, erf_growth.SIZE)
    network(images)
    field = erf_growth.receptive_field(network.eval(), images)
    rows = np.flatnonzero(field.sum(1)) - erf_growth.SIZE // 2
    assert (rows.min(), rows.max()) == (-erf_growth.reach(samples), erf_growth.reach(samples))


def test_the_radius_of_a_ring_is_its_distance() -> None:
    field = np.zeros((erf_growth.SIZE, erf_growth.SIZE), np.float32)
    centre = erf_growth.SIZE // 2
    field[centre - 5, centre] = field[centre + 3, centre + 4] = 0.5
    assert erf_growth.radius(field) == pytest.approx(5)


@pytest.mark.parametrize("seeds", ["1", "2"])
def test_the_erf_example_runs_and_draws(tmp_path, monkeypatch, capsys, seeds: str) -> None:
    monkeypatch.setattr(erf_growth, "TESTS", 2)
    output, results = tmp_path / "erf.png", tmp_path / "erf.json"
    assert erf_growth.main(["--output", str(output), "--results", str(results), "--steps", "1", "--seeds", seeds]) == 0
    assert "5 x 5" in capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")
    assert [row[1] for row in json.loads(results.read_text())["rows"]] == ["4 px", "10 px", "16 px"]


def test_the_example_of_joint_upsampling_is_the_demo(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(training, "CROP", 32)
    monkeypatch.setattr(training, "STEPS", 2)
    monkeypatch.setattr(baselines, "SPACE_SIGMAS", (0.5,))
    monkeypatch.setattr(baselines, "COLOUR_SIGMAS", (0.2,))
    output, results = tmp_path / "demo.png", tmp_path / "demo.json"
    assert joint_upsampling.main(["--output", str(output), "--results", str(results), "--seeds", "2"]) == 0
    assert "on the held-out part" in capsys.readouterr().out
    assert recording.Found(**json.loads(results.read_text())).rows[-1][0] == "DDF-Up"
    assert output.read_bytes().startswith(b"\x89PNG")
