"""The pieces of the demo: what is masked, kept apart and aligned, the baselines where they are exact, the training."""

import json
import statistics

import numpy as np
import pytest
import torch

from dynk import demo
from dynk.demo import baselines, data, training
from dynk.demo.network import JointUpsampler, double_linear
from dynk.demo.network import joint_bilateral as network_joint_bilateral
from dynk.testing import assert_close

SIGMAS = baselines.Sigmas(space=0.7, colour=0.05)
KERNELS = (baselines.nearest_kernel, baselines.linear_kernel, baselines.cubic_kernel)


def scene(height=64, width=96, seed=0):
    """Return a picture of random blocks, each of one colour and one disparity, with a few holes."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((height // 16, width // 16, 4), dtype=np.float32).repeat(16, 0).repeat(16, 1)
    disparity = 10 + 40 * blocks[..., 3]
    disparity[rng.random(disparity.shape) < 0.05] = np.inf
    return data.mask_holes(np.ascontiguousarray(blocks[..., :3]), disparity)


@pytest.fixture(scope="module")
def motorcycle():
    return data.load_scene()


def test_the_scene_has_its_holes_masked(motorcycle):
    assert motorcycle.rgb.shape == (500, 741, 3)
    assert motorcycle.valid.shape == motorcycle.disparity.shape == (500, 741)
    assert 0 < (~motorcycle.valid).sum() < motorcycle.valid.size // 10
    assert np.isfinite(motorcycle.disparity).all()
    assert (motorcycle.disparity[motorcycle.valid] > 0).all()


def test_inf_nan_and_zero_are_holes():
    disparity = np.array([[1.0, np.inf, np.nan, 0.0, 2.0]], np.float32)
    masked = data.mask_holes(np.zeros((1, 5, 3), np.float32), disparity)
    assert masked.valid.tolist() == [[True, False, False, False, True]]
    assert masked.disparity.tolist() == [[1, 0, 0, 0, 2]]


def test_holes_are_not_scored():
    picture = scene()
    prediction = np.where(picture.valid, picture.disparity + 2, 1e6).astype(np.float32)
    assert baselines.rmse(prediction, picture) == 2


def test_reduction_keeps_every_eighth_pixel_and_fills_holes_from_the_nearest_sample():
    disparity = np.arange(32 * 32, dtype=np.float32).reshape(32, 32) + 1
    disparity[8, 24] = np.nan  # a sample
    disparity[3, 3] = np.nan  # none
    low = data.reduce_nearest(data.mask_holes(np.zeros((32, 32, 3), np.float32), disparity))
    expected = disparity[::8, ::8].copy()
    assert low[1, 3] in (expected[0, 3], expected[2, 3], expected[1, 2])
    low[1, 3] = expected[1, 3] = 0
    np.testing.assert_array_equal(low, expected)


def test_reduction_of_nothing_but_holes_is_an_error():
    empty = data.mask_holes(np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.float32))
    with pytest.raises(ValueError, match="reduce_nearest: scene must have a valid sample"):
        data.reduce_nearest(empty)


def test_nothing_outside_the_held_out_part_reaches_the_result(motorcycle):
    def prediction(whole):
        _, held_out = data.split(whole)
        return training.upsample(network, data.reduce_nearest(held_out), held_out.rgb)

    network = random_network()
    others = np.ones(motorcycle.valid.shape[1], bool)
    others[data.HELD_OUT_COLUMNS] = False
    rgb, disparity = motorcycle.rgb.copy(), motorcycle.disparity.copy()
    rgb[:, others], disparity[:, others] = 0.5, 7
    changed = data.Scene(rgb, disparity, motorcycle.valid)
    np.testing.assert_array_equal(prediction(changed), prediction(motorcycle))


def test_the_gap_between_the_parts_exceeds_what_the_convolutions_see(motorcycle):
    train, held_out = data.split(motorcycle)
    gap = data.HELD_OUT_COLUMNS.start - data.TRAIN_COLUMNS.stop
    assert not np.shares_memory(train.rgb[:, -1], held_out.rgb[:, 0])
    assert train.rgb.shape[1] + gap + held_out.rgb.shape[1] <= motorcycle.rgb.shape[1]

    network = random_network()
    for stage in network.stages:  # the mean over the whole picture, which sees all of it, set to a constant
        torch.nn.init.zeros_(stage.channel[0].weight)
    middle = 135  # the last pixel of its sample sees furthest back
    low = torch.rand(1, 1, 2, 32, requires_grad=True)
    rgb = torch.rand(1, 3, 16, 256, requires_grad=True)
    torch.autograd.backward(network(low, rgb)[-1][..., middle].sum())
    seen = torch.nonzero(rgb.grad.abs().sum((0, 1, 2)))
    sampled = data.FACTOR * torch.nonzero(low.grad.abs().sum((0, 1, 2)))
    for columns in (seen, sampled):
        assert 0 < (columns - middle).abs().max() < gap


@pytest.mark.parametrize("kernel", KERNELS)
def test_interpolation_keeps_constants_and_samples(kernel):
    low = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    np.testing.assert_array_equal(baselines.interpolate(low, kernel)[::8, ::8], low)
    constant = np.full((5, 7), 3, np.float32)
    assert_close(baselines.interpolate(constant, kernel), np.full((40, 56), 3.0), np.full((40, 56), 4 * 3.0))


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_linear_and_cubic_interpolation_are_exact_on_a_ramp(kernel):
    y, x = np.meshgrid(np.arange(64.0), np.arange(80.0), indexing="ij")
    ramp = (2 * y - 3 * x + 300).astype(np.float32)
    inner = slice(8, -24)  # where four samples lie around
    expected = ramp.astype(np.float64)[inner, inner]
    result = baselines.interpolate(ramp[::8, ::8], kernel)[inner, inner]
    assert_close(result, expected, 4 * expected)


def test_nearest_interpolation_takes_the_nearest_sample():
    row = baselines.interpolate(np.array([[1.0, 2.0]], np.float32), baselines.nearest_kernel)[0]
    assert row.tolist() == [1] * 5 + [2] * 11


def prior(low, rgb, sigmas):
    """Return the network's own joint bilateral upsampling, from NumPy arrays to one."""
    tensors = torch.from_numpy(low)[None, None], torch.from_numpy(rgb).permute(2, 0, 1)[None]
    return network_joint_bilateral(*tensors, sigmas)[0, 0].numpy()


@pytest.mark.parametrize("method", [baselines.joint_bilateral, prior])
def test_joint_bilateral_keeps_constants_and_follows_colours(method):
    picture = scene()
    constant = method(np.full((8, 12), 3, np.float32), picture.rgb, SIGMAS)
    assert_close(constant, np.full((64, 96), 3.0), np.full((64, 96), 6.0))
    low = data.reduce_nearest(picture)
    joint = baselines.rmse(method(low, picture.rgb, SIGMAS), picture)
    assert joint < 0.2 * baselines.rmse(baselines.interpolate(low, baselines.linear_kernel), picture)


def test_crops_are_square_pieces_of_the_scene():
    picture = scene(96, 96)
    rng = np.random.default_rng(0)
    known = set(np.unique(picture.disparity[picture.valid]))
    for _ in range(20):
        crop = data.random_crop(picture, 32, rng)
        assert crop.rgb.shape == (32, 32, 3)
        assert crop.disparity.shape == crop.valid.shape == (32, 32)
        assert set(np.unique(crop.disparity[crop.valid])) <= known


def random_network():
    """Return a network that corrects the interpolation, as a trained one does."""
    torch.manual_seed(0)
    network = JointUpsampler(SIGMAS)
    for stage in network.stages:
        torch.nn.init.normal_(stage.size.weight)
    return network


def test_a_new_network_is_joint_bilateral_upsampling():
    low, rgb = training.inputs([scene(), scene(seed=1)])
    levels = JointUpsampler(SIGMAS)(low, rgb)
    assert [tuple(level.shape) for level in levels] == [(2, 1, 16, 24), (2, 1, 32, 48), (2, 1, 64, 96)]
    expected = network_joint_bilateral(low, rgb, SIGMAS)
    for level, step in zip(levels, (4, 2, 1), strict=True):
        np.testing.assert_array_equal(level.detach(), expected[:, :, ::step, ::step])


def test_doubling_is_linear_interpolation():
    low = np.random.default_rng(0).random((5, 7), dtype=np.float32)
    doubled = double_linear(torch.from_numpy(low)[None, None])[0, 0].numpy()
    np.testing.assert_array_equal(doubled, baselines.interpolate(low, baselines.linear_kernel, factor=2))


def test_the_network_passes_constants_on():
    picture = scene()
    constant = np.full((8, 12), 32, np.float32)
    result = training.upsample(random_network(), constant, picture.rgb)
    np.testing.assert_array_equal(result, np.full((64, 96), 32, np.float32))


def test_training_reduces_the_loss_and_repeats_itself(monkeypatch):
    monkeypatch.setattr(training, "CROP", 32)
    monkeypatch.setattr(training, "LEARNING_RATE", 1e-2)
    picture = scene(96, 96)
    fixed = data.Scene(picture.rgb[:32, :32], picture.disparity[:32, :32], picture.valid[:32, :32])
    monkeypatch.setattr(training, "random_crop", lambda *_: fixed)
    blind = baselines.Sigmas(space=0.7, colour=10)  # to start from a blur
    losses = [[], []]
    for run in losses:
        training.train(picture, blind, seed=3, steps=3, on_step=run.append)
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]


def test_the_verdict_is_computed():
    scores = {"nearest": 4.0, "bilinear": 2.0, "DDF-Up": 1.5}
    assert "DDF-Up won" in demo.verdict(scores)
    assert "25% less" in demo.verdict(scores)
    assert "DDF-Up did not win" in demo.verdict(scores | {"DDF-Up": 3.0})
    assert "50% more" in demo.verdict(scores | {"DDF-Up": 3.0})


def test_the_demo_runs_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "CROP", 32)
    monkeypatch.setattr(baselines, "SPACE_SIGMAS", (0.5,))
    monkeypatch.setattr(baselines, "COLOUR_SIGMAS", (0.2,))
    output = tmp_path / "demo.png"
    record = tmp_path / "demo.json"
    assert demo.run(output, seed=1, seeds=2, as_json=True, record=record, steps=2) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts["rmse"]) == ["nearest", "bilinear", "bicubic", "joint bilateral", "DDF-Up"]
    assert facts["seed"] == 1
    assert len(set(facts["rmse by seed"])) == 2
    assert facts["rmse"]["DDF-Up"] == sum(facts["rmse by seed"]) / 2
    recorded = json.loads(record.read_text())
    assert recorded["title"].endswith("DDF-Up is the mean ± deviation of 2 seeds.")
    deviation = statistics.stdev(facts["rmse by seed"])
    assert recorded["rows"][-1][:2] == ["DDF-Up", f"{facts['rmse']['DDF-Up']:.3f} ± {deviation:.3f}"]
    assert 0 < recorded["seconds"] < facts["seconds"]
    assert output.read_bytes().startswith(b"\x89PNG")
