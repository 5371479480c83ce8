"""Effective receptive fields in both adapters, and the picture of one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import dynk_jax
import dynk_torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dynk

ADAPTERS: dict[str, tuple[Any, Any]] = {"torch": (dynk_torch, torch.from_numpy), "jax": (dynk_jax, jnp.asarray)}
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 7, 6), dtype=np.float32)
FILTERS = RNG.standard_normal((2, 4, 3, 3), dtype=np.float32)


@each_adapter
def test_the_field_of_a_filter_is_the_size_of_its_taps(adapter: str) -> None:
    module, array = ADAPTERS[adapter]
    field = module.effective_receptive_field(lambda x: module.ddf(x, None, array(FILTERS)), array(X), (2, -1))
    expected = np.zeros((2, 7, 6), np.float32)
    expected[:, 1:4, 4:6] = np.abs(FILTERS).sum(1)[:, :, :2]
    assert np.allclose(field, expected, atol=1e-6)


@each_adapter
def test_samples_reach_further(adapter: str) -> None:
    """An LS-DFN of the same taps sees as far as its samples."""
    module, array = ADAPTERS[adapter]
    within = array(np.ones((2, 1, 3, 3, 7, 6), np.float32))

    def field(samples: int) -> Any:
        def layer(x: Any) -> Any:
            return module.ls_dfn(x, None, within, samples=samples, sample_stride=2)

        return module.effective_receptive_field(layer, array(X), (3, 3))

    reach = [int((np.asarray(field(samples))[0] > 0).any(1).sum()) for samples in (1, 3)]
    assert reach == [3, 7]


@each_adapter
def test_positions_and_shapes_are_checked(adapter: str) -> None:
    module, array = ADAPTERS[adapter]
    with pytest.raises(ValueError, match=r"^effective_receptive_field: at must be .* \(2, 4, 7, 6\), got \(7, 0\)"):
        module.effective_receptive_field(lambda x: x, array(X), (7, 0))
    with pytest.raises(ValueError, match=r"^effective_receptive_field: x must have .*, got \(4, 7, 6\)"):
        module.effective_receptive_field(lambda x: x, array(X[0]), (0, 0))


def test_torch_leaves_the_image_and_the_parameters_alone() -> None:
    layer, x = torch.nn.Conv2d(4, 3, 3, padding=1), torch.from_numpy(X)
    with torch.no_grad():
        field = dynk_torch.effective_receptive_field(layer, x, (0, 0))
    assert field.shape == (2, 7, 6)
    assert (field[:, :2, :2] > 0).all()
    assert (x.requires_grad, x.grad, layer.weight.grad) == (False, None, None)
    assert not dynk_torch.effective_receptive_field(lambda x: torch.ones(1, 1, 2, 2), x, (0, 0)).any()


def test_jax_compiles_it() -> None:
    run = jax.jit(lambda x: dynk_jax.effective_receptive_field(jnp.sin, x, (1, 2)))
    assert np.allclose(run(X)[:, 1, 2], np.abs(np.cos(X[:, :, 1, 2])).sum(1), atol=1e-5)


# ---- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, jnp.asarray])
def test_any_array_is_drawn(make: Any, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    erf = np.zeros((5, 7), np.float32)
    erf[2, 3] = 4
    erf[2, 4] = 1
    axes = dynk.plot_erf(make(erf), make(np.ones((3, 5, 7), np.float32)), at=(2, 3))
    grey, field = axes.images
    assert grey.get_array().shape == (5, 7)
    assert np.asarray(field.get_array())[2, 2:6].tolist() == [0, 1, 0.5, 0]
    assert field.get_alpha()[2, 3] > field.get_alpha()[2, 4] > field.get_alpha()[0, 0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[3, 2]]]
    axes.figure.savefig(tmp_path / "erf.png")
    assert (tmp_path / "erf.png").read_bytes().startswith(b"\x89PNG")


def test_it_draws_on_axes_that_are_given() -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    axes = figure.Figure().add_subplot()
    assert dynk.plot_erf(np.zeros((2, 3)), axes=axes) is axes
    assert len(axes.images) == 1


@pytest.mark.parametrize(
    ("erf", "image", "message"),
    [
        (np.zeros((1, 2, 3)), None, r"plot_erf: erf must have shape \(H, W\), got \(1, 2, 3\)"),
        (np.zeros((2, 3)), np.zeros((3, 3)), r"plot_erf: image must have shape .* \(H, W\) = \(2, 3\), got \(3, 3\)"),
        (np.zeros((2, 3)), np.zeros((2, 2, 3)), r"plot_erf: image must have shape .*, got \(2, 2, 3\)"),
    ],
)
def test_wrong_shapes_are_refused(erf: Any, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        dynk.plot_erf(erf, image)


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
import dynk, numpy
try:
    dynk.plot_erf(numpy.ones((2, 2)))
except ImportError as error:
    print(error)
"""


def test_without_matplotlib_it_says_what_it_needs() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_MATPLOTLIB], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ('plot_erf needs matplotlib: pip install "dynk[plot]"\n', "")
