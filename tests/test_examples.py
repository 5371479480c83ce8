"""The examples run, and what they compute besides dynk is right."""

from __future__ import annotations

import numpy as np
import pytest

import dynk
from examples import motion


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
