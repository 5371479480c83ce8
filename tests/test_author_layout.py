"""The layout of the authors of LS-DFN: from theirs to ours and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynk.sampled import LS_DFN, from_author_layout, to_author_layout
from dynk.testing import Call


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@given(data=st.data())
def test_author_layout_and_back(library: str, data: st.DataObject) -> None:
    dims = data.draw(st.lists(st.integers(1, 4), max_size=3))
    N, H, W = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    shape = (N, H, W, math.prod(dims))
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    given = array
    if library == "torch":
        given = pytest.importorskip("torch", reason="PyTorch is not installed").from_numpy(array)
    elif library == "jax":
        given = pytest.importorskip("jax.numpy", reason="JAX is not installed").asarray(array)
    ours = from_author_layout(given, *dims)
    np.testing.assert_array_equal(np.asarray(ours), np.moveaxis(array, 3, 1).reshape(N, *dims, H, W))
    np.testing.assert_array_equal(np.asarray(to_author_layout(ours)), array)


def test_a_layer_in_the_authors_layout() -> None:
    """Their tensors through `ls_dfn`: sample b*O + o of their output is ours, and the mean theirs."""
    rng = np.random.default_rng(0)
    N, H, W, C, O, k, s = 1, 5, 6, 2, 3, 3, 2  # noqa: E741
    theirs = {name: rng.standard_normal((N, H, W, size)) for name, size in (("x", C), ("across", O * C))}
    theirs["within"] = rng.standard_normal((N, H, W, O * k * k))
    arrays = (
        from_author_layout(theirs["x"], C),
        from_author_layout(theirs["across"], O, C),
        from_author_layout(theirs["within"], O, k, k),
    )
    options = {"samples": s, "sample_stride": 2}
    samples = to_author_layout(Call(LS_DFN, (*arrays, None, None), {**options, "reduce": "none"}).forward())
    mean = to_author_layout(Call(LS_DFN, (*arrays, None, None), {**options, "reduce": "mean"}).forward())
    assert samples.shape == (N, H, W, s * s * O)
    np.testing.assert_allclose(samples.reshape(N, H, W, s * s, O).mean(3), mean, rtol=1e-12, atol=1e-12)
    # Output 1 of the sample at the pixel itself, the first of an even grid, at an inner pixel.
    y, x, o = 2, 3, 1
    taps = theirs["within"][0, y, x].reshape(O, k, k)[o]
    patch = theirs["x"][0, y - 1 : y + 2, x - 1 : x + 2].sum(-1)
    mixed = theirs["across"][0, y, x].reshape(O, C)[o] + 1 / C
    expected = (taps * patch).sum() + mixed @ theirs["x"][0, y, x]
    np.testing.assert_allclose(samples[0, y, x, 0 * O + o], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "dims", "message"),
    [
        ((2, 3, 4), (4,), r"array must have shape \[N, H, W, 4\], got \[2, 3, 4\]"),
        ((2, 3, 4, 5), (2, 3), r"array must have shape \[N, H, W, 2\*3\], got \[2, 3, 4, 5\]"),
        ((2, 3, 4, 6), (2, 0), "dims must lie between 1"),
    ],
)
def test_wrong_author_layouts(shape: Any, dims: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"from_author_layout: {message}"):
        from_author_layout(np.zeros(shape), *dims)
    with pytest.raises(ValueError, match=r"to_author_layout: array must have shape \(N, \*dims, H, W\), got \(4, 5\)"):
        to_author_layout(np.zeros((4, 5)))
