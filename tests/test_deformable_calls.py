"""Wrong calls of the deformable operators, and the memory of right ones."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import dynk

X, WEIGHT = np.ones((2, 4, 8, 9)), np.ones((6, 4, 3, 3))
KERNEL, DATA = np.ones((2, 2, 3, 3, 2, 6, 7)), np.ones((2, 1, 3, 3, 2, 6, 7))
MASK, BIAS = np.ones((2, 1, 3, 3, 6, 7)), np.ones(6)
Wrong = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]

WRONG: dict[str, Wrong] = {
    "groups of C": ((X, WEIGHT), {"groups": 3}, ValueError, "groups must divide C = 4, got 3"),
    "groups of O": ((X, np.ones((6, 1, 3, 3))), {"groups": 4}, ValueError, "groups must divide O = 6, got 4"),
    "weight": (
        (X, WEIGHT),
        {"groups": 2},
        ValueError,
        "weight must have shape (O, C/groups, Sh, Sw) = (O, 2, Sh, Sw), got (6, 4, 3, 3)",
    ),
    "no weight": ((X, None), {}, TypeError, "weight must be an array, got None"),
    "kernel_size without offsets": (
        (X, WEIGHT),
        {"kernel_size": 2},
        ValueError,
        "kernel_size must be (Sh, Sw) = (3, 3) without kernel_offset, got (2, 2)",
    ),
    "kernel_size": (
        (X, WEIGHT, KERNEL),
        {"kernel_size": (3, 2)},
        ValueError,
        "kernel_offset must have shape (N, Gk, kh, kw, 2, Ho, Wo) = (2, Gk, 3, 2, 2, 6, 8), got (2, 2, 3, 3, 2, 6, 7)",
    ),
    "five dimensions": (
        (X, WEIGHT, KERNEL[0]),
        {},
        ValueError,
        "kernel_offset must have shape (N, Gk, kh, kw, 2, Ho, Wo) = (2, Gk, kh, kw, 2, Ho, Wo), got (2, 3, 3, 2, 6, 7)",
    ),
    "three coordinates": (
        (X, WEIGHT, np.ones((2, 2, 3, 3, 3, 6, 7))),
        {},
        ValueError,
        "kernel_offset must have shape (N, Gk, kh, kw, 2, Ho, Wo) = (2, Gk, kh, kw, 2, Ho, Wo), got (2, 2, 3, 3, 3, 6,",
    ),
    "blocks of the kernel": (
        (X, WEIGHT, np.ones((2, 3, 3, 3, 2, 6, 7))),
        {},
        ValueError,
        "kernel_offset must have Gk that divides C = 4, got Gk = 3",
    ),
    "blocks of the data": (
        (X, WEIGHT, None, np.ones((2, 3, 3, 3, 2, 6, 7))),
        {},
        ValueError,
        "data_offset must have Gd that divides C = 4, got Gd = 3",
    ),
    "blocks of the mask": (
        (X, WEIGHT, None, None, np.ones((2, 3, 3, 3, 6, 7))),
        {},
        ValueError,
        "mask must have Gd that divides C = 4, got Gd = 3",
    ),
    "data": (
        (X, WEIGHT, None, DATA),
        {"padding": 1},
        ValueError,
        "data_offset must have shape (N, Gd, kh, kw, 2, Ho, Wo) = (2, Gd, 3, 3, 2, 8, 9), got (2, 1, 3, 3, 2, 6, 7)",
    ),
    "mask": (
        (X, WEIGHT, None, np.ones((2, 2, 3, 3, 2, 6, 7)), MASK),
        {},
        ValueError,
        "mask must have shape (N, Gd, kh, kw, Ho, Wo) = (2, 2, 3, 3, 6, 7), got (2, 1, 3, 3, 6, 7)",
    ),
    "bias": ((X, WEIGHT, None, None, None, np.ones(5)), {}, ValueError, "bias must have shape (O,) = (6,), got (5,)"),
    "dtype": (
        (X, WEIGHT, KERNEL.astype(np.float32)),
        {},
        TypeError,
        "kernel_offset must have the dtype of x, float64, got float32",
    ),
    "small image": (
        (X, WEIGHT),
        {"dilation": (1, 5), "padding": (1, 0)},
        ValueError,
        "x must have a padded image of at least the dilated kernel's (3, 11), got (10, 9)",
    ),
    "padding": ((X, WEIGHT), {"padding": -1}, ValueError, "padding must lie between 0 and 1073741824, got -1"),
    "text padding": (
        (X, WEIGHT),
        {"padding": "same"},
        TypeError,
        "padding must be an int or an (h, w) pair, got 'same'",
    ),
    "far": (
        (X, WEIGHT),
        {"dilation": 2**30},
        ValueError,
        "dilation must be at most 536870912 for 3 taps, got 1073741824",
    ),
    "boundary": (
        (X, WEIGHT, KERNEL),
        {"kernel_boundary": "reflect"},
        ValueError,
        "kernel_boundary must be one of 'zeros', 'clip', got 'reflect'",
    ),
}


@pytest.mark.parametrize(("arrays", "options", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls(arrays: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        dynk.deformable_conv2d(*arrays, **options)
    assert str(error.value).startswith(f"deformable_conv2d: {message}")
    with pytest.raises(kind) as error:
        dynk.deformable_conv2d_backward(np.ones((2, 6, 6, 7)), *arrays, **options)
    assert str(error.value).startswith(f"deformable_conv2d_backward: {message}")


WRONG_SAMPLES: dict[str, Wrong] = {
    "no offsets": ((WEIGHT, None), {}, TypeError, "kernel_offset must be an array, got None"),
    "kernel_size": (
        (WEIGHT, np.ones((2, 1, 3, 3, 2))),
        {"kernel_size": 2},
        ValueError,
        "kernel_offset must have shape (N, Gk, kh, kw, 2) = (N, Gk, 2, 2, 2), got (2, 1, 3, 3, 2)",
    ),
    "blocks": (
        (WEIGHT, np.ones((2, 4, 3, 3, 2))),
        {},
        ValueError,
        "kernel_offset must have Gk that divides O = 6, got Gk = 4",
    ),
    "no taps": (
        (WEIGHT, np.ones((2, 1, 0, 3, 2))),
        {},
        ValueError,
        "kernel_offset must have extents of at least 1 but for N in (N, Gk, kh, kw, 2), got (2, 1, 0, 3, 2)",
    ),
    "boundary": (
        (WEIGHT, np.ones((2, 1, 3, 3, 2))),
        {"kernel_boundary": None},
        TypeError,
        "kernel_boundary must be one of 'zeros', 'clip', got None",
    ),
}


@pytest.mark.parametrize(("arrays", "options", "kind", "message"), WRONG_SAMPLES.values(), ids=WRONG_SAMPLES)
def test_wrong_calls_of_sample_kernel(arrays: Any, options: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        dynk.sample_kernel(*arrays, **options)
    assert str(error.value).startswith(f"sample_kernel: {message}")
    with pytest.raises(kind) as error:
        dynk.sample_kernel_backward(np.ones((2, 6, 4, 3, 3)), *arrays, **options)
    assert str(error.value).startswith(f"sample_kernel_backward: {message}")


# ---- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
import numpy as np, dynk

def call(channels, size, form):
    groups = channels if form == "depth-wise" else 1
    x = np.ones((1, channels, size, size), np.float32)
    offset = np.full((1, 1, 3, 3, 2, size, size), 0.25, np.float32)
    weight = np.ones((channels, channels // groups, *((3, 3) if form == "data" else (4, 4))), np.float32)
    arrays = (x, weight, None, offset) if form == "data" else (x, weight, offset, None)
    arrays += None, np.ones(channels, np.float32)
    out, grads = np.ones_like(x), tuple(None if a is None else np.ones_like(a) for a in arrays)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"padding": 1, "groups": groups}
    dynk.deformable_conv2d(*arrays, **options, out=out)
    dynk.deformable_conv2d_backward(out, *arrays, **options, grads=grads)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

call(8, 8, sys.argv[1])  # compiles
print(call(32, 512, sys.argv[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in Linux's units")
@pytest.mark.parametrize("form", ["dense", "depth-wise", "data"])
def test_columns_are_never_stored(form: str) -> None:
    """One feature map takes 32 MiB here, its columns nine times that, sampled kernels of all pixels 2 GiB and more."""
    run = subprocess.run([sys.executable, "-c", MEMORY, form], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 << 20
