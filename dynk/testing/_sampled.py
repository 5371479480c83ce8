"""How to draw calls of the sampled family, in the form of `_decoupled`.

For "max" the arrays hold small integers, and 1/C is a power of two or left out: samples are then computed exactly by
every backend, so that equal ones are equal and the choice among them is the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from dynk.testing.strategies import images, pairs

Drawn = tuple[tuple[Any, ...], dict[str, Any]]


def dynamic_filter(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `dynamic_filter`."""
    N, C, H, W = draw(images(small=small))
    options, (kh, kw), fill = draw(_sampling(small))
    O = draw(st.integers(1, 3))  # noqa: E741
    kh, kw = _fewer_taps(C, kh, kw)
    return (array((N, C, H, W), fill), array((N, O, C, kh, kw, H, W), fill)), options


def ls_dfn(draw: st.DrawFn, array: Callable[..., Any], small: bool) -> Drawn:
    """Draw a call of `ls_dfn`."""
    N, C, H, W = draw(images(small=small))
    options, (kh, kw), fill = draw(_sampling(small))
    O = draw(st.integers(1, 3))  # noqa: E741
    across, within = draw(st.sampled_from([(True, True), (True, True), (True, False), (False, True)]))
    by_sample, by_position = draw(st.booleans()), draw(st.booleans())
    s = options["samples"]
    arrays = (
        array((N, C, H, W), fill),
        array((N, O, C, H, W), fill) if across else None,
        array((N, O, kh, kw, H, W), fill) if within else None,
        array((N, O, s, s, H, W), fill) if by_sample else None,
        array((N, O, kh, kw, H, W), fill) if by_position else None,
    )
    exact = options["reduce"] != "max" or C in (1, 2, 4, 8, 16)
    residuals = {
        "kernel_residual": draw(st.booleans()) if exact else False,
        "attention_residual": draw(st.one_of(st.booleans(), st.tuples(st.booleans(), st.booleans()))),
    }
    return arrays, options | residuals


CALLS = {"dynamic_filter": dynamic_filter, "ls_dfn": ls_dfn}


@st.composite
def _sampling(draw: st.DrawFn, small: bool) -> tuple[dict[str, Any], tuple[int, int], str | None]:
    """Draw the options of the samples, the kernel and the fill of the arrays."""
    samples, kernel = draw(
        st.one_of(
            st.tuples(st.integers(1, 3 if small else 4), _kernels(3)),
            st.tuples(st.integers(1, 2), _kernels(5 if small else 7)),
            st.tuples(st.integers(1, 4 if small else 9), _kernels(2)),
        )
    )
    options = {
        "samples": samples,
        "sample_stride": draw(st.integers(1, 8)),
        "dilation": draw(st.one_of(st.just(1), pairs(1, 3), pairs(1, 40))),
        "reduce": draw(st.sampled_from(["sum", "mean", "max", "none"])),
    }
    return options, kernel, "integers" if options["reduce"] == "max" else None


def _kernels(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Return a strategy for (kh, kw), odd, even and rectangular."""
    return st.tuples(st.integers(1, most), st.integers(1, most))


def _fewer_taps(C: int, kh: int, kw: int) -> tuple[int, int]:
    """Return a kernel that stays small where there are many channels."""
    return (kh, kw) if C <= 16 else (min(kh, 3), min(kw, 2))
