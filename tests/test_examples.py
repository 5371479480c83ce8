"""The examples run, and what they compute besides dynk is right."""

from __future__ import annotations

import numpy as np
import pytest

import dynk
from examples import motion

texture = pytest.importorskip("examples.texture", reason="PyTorch is not installed")


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
    output = tmp_path / "motion.png"
    assert motion.main(["--output", str(output), "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("the last frame again", "s = 1", "s = 7"))
    assert output.read_bytes().startswith(b"\x89PNG")


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
    output = tmp_path / "texture.png"
    assert texture.main(["--output", str(output), "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("dilation 1 everywhere", "a dilation for each pixel"))
    assert output.read_bytes().startswith(b"\x89PNG")
