"""What LS-DFN and dynamic filters take of memory on the CPU, and how they write what no cache holds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import pytest
from test_sampled import needs_jit, normal

import dynk
from dynk.kernels.common import vector


def peak(call: Callable[[], Any]) -> int:
    """Return the most memory that a call holds at once, that of Numba's kernels included, once they are compiled."""
    call()
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.fixture
def two_threads() -> Iterator[int]:
    """Yield the number of threads, each of which has a workspace of its own: two, or one."""
    threads = numba.get_num_threads()
    numba.set_num_threads(min(threads, 2))
    yield min(threads, 2)
    numba.set_num_threads(threads)


REAL = {"C": 40, "O": 22, "H": 64, "W": 64, "s": 5, "k": 3}
PIXELS = REAL["H"] * REAL["W"]
STRIDE = 3
PADDED = 4 * (REAL["W"] + 4 * 16 + REAL["s"] * STRIDE)  # bytes of a row, four vectors of float32, and samples' reach
SLACK = 1 << 16  # Python's own objects
# Bytes of a thread where samples are summed before they are multiplied: forward, and backward for a reach of few rows.
SUMMED_FORWARD, SUMMED_BACKWARD = 4 * 130 * max(1024, REAL["W"]), 4 * 3 * 2**16


@needs_jit
@pytest.mark.parametrize("attentions", [(), (3,), (4,), (3, 4)], ids=["none", "samples", "positions", "both"])
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_ls_dfn_takes_no_more_memory_than_documented(
    reduce: str, attentions: tuple[int, ...], two_threads: int
) -> None:
    """Neither the samples, nor the kernels, nor shifted features are stored."""
    C, O, H, W, s, k = REAL.values()  # noqa: E741
    shapes = (1, C, H, W), (1, O, C, H, W), (1, O, k, k, H, W), (1, O, s, s, H, W), (1, O, k, k, H, W)
    arrays = [normal("float32", *shape) if n < 3 or n in attentions else None for n, shape in enumerate(shapes)]
    grads = tuple(None if array is None else np.empty_like(array) for array in arrays)
    out = normal("float32", 1, O, H, W)
    options: dict[str, Any] = {"samples": s, "sample_stride": STRIDE, "reduce": reduce}

    forward = peak(lambda: dynk.ls_dfn(*arrays, out=out, **options))
    summed = reduce == "sum" and not attentions
    rows = (s + 3) * C + 4 * (s * s + (s + 1) * k * k + s + 64)
    assert forward <= 4 * PIXELS + two_threads * (SUMMED_FORWARD if summed else rows * PADDED) + SLACK

    backward = peak(lambda: dynk.ls_dfn_backward(out, *arrays, grads=grads, **options))
    of_attentions = s * C + 16 * s * s + 4 * (s + 33) * k * k + 4 * s + 256
    chosen = rows if reduce == "max" else 0
    rows = max(192 * (s * s + 2) + 2048, s * C + 12 * s * s, of_attentions if attentions else 0, chosen)
    choice = 2 * O * PIXELS if reduce == "max" else 0
    documented = 2 * 4 * PIXELS + choice + two_threads * (SUMMED_BACKWARD if summed else rows * PADDED) + SLACK
    assert backward <= documented
    assert documented < 4 * s * s * min(O, C) * PIXELS  # what samples or shifted features would take


@needs_jit
def test_a_gradient_too_large_for_the_caches_has_the_same_bits() -> None:
    """It is written past them; those of single images are not."""
    x, across = normal("float32", 2, 4, 300, 301), normal("float32", 2, 12, 4, 300, 301)
    grad_out, within = normal("float32", 2, 12, 300, 301), np.zeros((2, 12, 1, 1, 300, 301), np.float32)
    assert across.nbytes > vector.STREAM_BYTES > across[0].nbytes

    def grad_across(images: slice) -> Any:
        arrays = (array[images] for array in (grad_out, x, across, within))
        return dynk.ls_dfn_backward(*arrays, samples=2, sample_stride=3, needs=["across"]).across

    of_images = [grad_across(slice(n, n + 1)) for n in range(2)]
    np.testing.assert_array_equal(grad_across(slice(None)), np.concatenate(of_images))


@needs_jit
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_dynamic_filter_takes_no_more_memory_than_documented(reduce: str, two_threads: int) -> None:
    C, O, H, W, s, k = {**REAL, "C": 9, "s": 3}.values()  # noqa: E741
    x, kernel, out = (
        normal("float32", 1, C, H, W),
        normal("float32", 1, O, C, k, k, H, W),
        normal("float32", 1, O, H, W),
    )
    grads = np.empty_like(x), np.empty_like(kernel)
    options: dict[str, Any] = {"samples": s, "sample_stride": 3, "reduce": reduce}
    forward, backward = (SUMMED_FORWARD, SUMMED_BACKWARD) if reduce == "sum" else (5 * 4 * W, 5 * 4 * W)
    assert peak(lambda: dynk.dynamic_filter(x, kernel, out=out, **options)) <= two_threads * forward + SLACK
    choice = 2 * O * PIXELS if reduce == "max" else 0
    documented = two_threads * backward + choice + SLACK
    assert peak(lambda: dynk.dynamic_filter_backward(out, x, kernel, grads=grads, **options)) <= documented
