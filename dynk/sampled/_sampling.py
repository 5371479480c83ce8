"""What `dynamic_filter` and `ls_dfn` share: the options of the samples, and the checks of how far they reach."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynk import _checks
from dynk._operator import Shape
from dynk.kernels.sampled.geometry import MAX_SAMPLES, REDUCTIONS

SamplingOptions = tuple[int, int, tuple[int, int], str]


def sampling(function: str, samples: Any, sample_stride: Any, dilation: Any, reduce: Any) -> SamplingOptions:
    """Return the canonical options of how samples are taken and reduced."""
    return (
        _checks.integer(function, "samples", samples, most=MAX_SAMPLES),
        _checks.integer(function, "sample_stride", sample_stride),
        _checks.pair(function, "dilation", dilation),
        _checks.choice(function, "reduce", reduce, REDUCTIONS),
    )


def check_reach(
    function: str, samples: int, sample_stride: int, kernel: tuple[int, int], dilation: tuple[int, int]
) -> None:
    """Check that the taps of every sample stay within the coordinates that kernels can hold."""
    for extent, step in zip(kernel, dilation, strict=True):
        _checks.reach(function, extent, step)
        reach = (samples - 1) * sample_stride + (extent - 1) * step
        if reach > _checks.MAX_REACH:
            msg = (
                f"{function}: sample_stride must keep all taps within {_checks.MAX_REACH} pixels, got "
                f"{sample_stride} for {samples} samples of {extent} taps with dilation {step}"
            )
            raise ValueError(msg)


def output_shape(sizes: dict[str, int], samples: int, reduce: str) -> Shape:
    """Return the shape of the output, with an axis pair for the samples where they are not reduced."""
    one = (sizes["O"], sizes["H"], sizes["W"])
    return (sizes["N"], samples, samples, *one) if reduce == "none" else (sizes["N"], *one)


def refuse_derivative_of_max(function: str, reduce: str) -> None:
    """Raise for "max", whose derivative is that of the chosen samples alone and so no call of the operator."""
    if reduce == "max":
        msg = f'{function}: reduce must not be "max" in forward mode or where a gradient is differentiated again'
        raise NotImplementedError(msg)


def integers(*shape: int) -> Any:
    """Return small integers, of which sums are exact: samples are then equal or far apart."""
    return np.random.default_rng(shape).integers(-2, 3, shape).astype(np.float64)
