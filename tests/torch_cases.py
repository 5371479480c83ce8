"""What the tests of dynk_torch share: a call of each operator in each of its forms.

Coordinates are constants of a case: what they make of the rest is differentiable without end, they themselves are not.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import dynk_torch
import numpy as np
import pytest
import torch
from torch import Tensor

from dynk import testing
from dynk._operator import operators

# torch.compile generates C++.
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler for torch.compile"
)
# PyTorch loads its own forward-mode decompositions, and its compiler, through deprecated parts of torch.jit.
ignore_torch_jit = pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: the shape of each argument (None where it is absent) and the options."""

    name: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def tensors(self, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False) -> list[Tensor | None]:
        generator = torch.Generator().manual_seed(0)
        return [
            None
            if s is None
            else (coordinates(s) if name in self.constants else torch.randn(s, generator=generator))
            .to(dtype)
            .requires_grad_(requires_grad)
            for name, s in zip(self.names, self.shapes, strict=True)
        ]

    def __call__(self, *tensors: Any) -> Tensor:
        return getattr(dynk_torch, self.name)(*tensors, **self.options)

    def of_given(self, *given: Any) -> Tensor:
        """Apply the operator to the arguments that are not absent."""
        return self(*self.fill(given))

    def fill(self, given: Any) -> list[Any]:
        entries = iter(given)
        return [
            None
            if s is None
            else coordinates(s).to(given[0].device, given[0].dtype)
            if name in self.constants
            else next(entries)
            for name, s in zip(self.names, self.shapes, strict=True)
        ]

    def given(self, dtype: torch.dtype = torch.float32, *, requires_grad: bool = False) -> tuple[Tensor, ...]:
        tensors = zip(self.names, self.tensors(dtype, requires_grad=requires_grad), strict=True)
        return tuple(t for name, t in tensors if t is not None and name not in self.constants)

    @property
    def names(self) -> tuple[str, ...]:
        return operators()[self.name].arrays

    @property
    def constants(self) -> frozenset[str]:
        """The arguments that `given` leaves out and `fill` puts in."""
        return operators()[self.name].coordinates

    def call(self, tensors: list[Tensor | None]) -> testing.Call:
        arrays = tuple(None if t is None else t.detach() for t in tensors)
        return testing.Call(operators()[self.name], arrays, self.options)


def coordinates(shape: tuple[int, ...]) -> Tensor:
    """Return coordinates between positions, around which operators are smooth."""
    rng = np.random.default_rng(shape)
    return torch.from_numpy(rng.integers(-2, 2, shape) + rng.choice([0.25, 0.75], shape))


X, SPATIAL, CHANNEL = (2, 4, 3, 5), (2, 2, 2, 3, 3, 5), (2, 4, 2, 3)
CASES = {
    "ddf-mul": Case("ddf", (X, SPATIAL, CHANNEL)),
    "ddf-add": Case("ddf", (X, SPATIAL, CHANNEL), {"combine": "add", "dilation": (1, 2)}),
    "ddf-spatial": Case("ddf", (X, (2, 2, 3, 2, 2, 3), None), {"stride": 2}),
    "ddf-channel": Case("ddf", (X, None, CHANNEL), {"stride": (1, 2), "dilation": 2}),
    "upsample-mul": Case("ddf_upsample", ((1, 2, 2, 3), (1, 1, 2, 2, 3, 1, 2, 3), (1, 2, 2, 2, 3, 1)), {"scale": 2}),
    "upsample-add": Case(
        "ddf_upsample",
        ((1, 2, 2, 2), (1, 2, 2, 2, 1, 2, 2, 2), (1, 2, 2, 2, 1, 2)),
        {"scale": 2, "dilation": 2, "combine": "add"},
    ),
    "upsample-spatial": Case("ddf_upsample", ((1, 2, 2, 3), (1, 1, 2, 2, 3, 1, 2, 3), None), {"scale": 2}),
    "dynamic": Case("dynamic_filter", ((2, 2, 3, 4), (2, 2, 2, 1, 3, 3, 4)), {"samples": 2, "sample_stride": 2}),
    "dynamic-none": Case("dynamic_filter", ((1, 2, 3, 3), (1, 1, 2, 2, 2, 3, 3)), {"samples": 2, "reduce": "none"}),
    "sampled": Case(
        "ls_dfn",
        ((2, 2, 3, 4), (2, 1, 2, 3, 4), (2, 1, 1, 3, 3, 4), (2, 1, 2, 2, 3, 4), (2, 1, 1, 3, 3, 4)),
        {"samples": 2, "sample_stride": 1},
    ),
    "sampled-across": Case(
        "ls_dfn",
        ((1, 2, 2, 3), (1, 2, 2, 2, 3), None, (1, 2, 3, 3, 2, 3), None),
        {"samples": 3, "sample_stride": 2, "attention_residual": (False, True), "reduce": "mean"},
    ),
    "sampled-within": Case(
        "ls_dfn",
        ((1, 2, 2, 3), None, (1, 2, 2, 1, 2, 3), None, (1, 2, 2, 1, 2, 3)),
        {"samples": 2, "sample_stride": 1, "kernel_residual": False, "attention_residual": False, "reduce": "none"},
    ),
    "adaptive": Case(
        "adaptive_dilation_conv2d",
        ((2, 2, 3, 4), (2, 2, 2, 3), (2, 2, 2, 2), (2,)),
        {"dilations": (1, (2, 1)), "stride": 2},
    ),
    "adaptive-depthwise": Case(
        "adaptive_dilation_conv2d", ((1, 2, 3, 3), (4, 1, 1, 3), (1, 3, 3, 3), None), {"groups": 2}
    ),
    "deformable": Case(
        "deformable_conv2d",
        ((2, 2, 3, 4), (3, 2, 3, 3), (2, 1, 2, 2, 2, 2, 3), None, None, (3,)),
    ),
    "deformable-depthwise": Case(
        "deformable_conv2d",
        ((1, 2, 3, 3), (4, 1, 2, 4), (1, 2, 2, 3, 2, 2, 2), None, (1, 1, 2, 3, 2, 2), None),
        {"groups": 2, "stride": 2, "padding": (1, 1), "kernel_boundary": "zeros"},
    ),
    "deformable-data": Case(
        "deformable_conv2d",
        ((1, 2, 3, 3), (2, 2, 2, 2), None, (1, 2, 2, 2, 2, 2, 2), (1, 2, 2, 2, 2, 2), (2,)),
    ),
    "sample-kernel": Case("sample_kernel", ((4, 2, 3, 3), (2, 2, 2, 2, 2)), {"kernel_size": 2}),
    "norm": Case("filter_norm", ((2, 3, 2, 2), None, None), {"axes": (2, 3)}),
    "norm-scale": Case("filter_norm", ((2, 2, 2, 3, 2), (2, 1, 1, 1), None), {"axes": (-3, 3), "eps": 0.1}),
    "norm-shift": Case("filter_norm", ((2, 3, 2), (3, 1), (2, 3, 2)), {"axes": (2, 0)}),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# One case of each operator, for what the operators share.
one_of_each = pytest.mark.parametrize(
    "case",
    [CASES[name] for name in ("ddf-mul", "upsample-mul", "norm-scale", "dynamic", "sampled", "adaptive", "deformable")],
)


def grad_like(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that two ways to the same values agree; the largest of them stands for the magnitude of their terms."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        largest = expected.detach().abs().max().item() if expected.numel() else 0.0
        testing.assert_close(actual.detach(), testing.values(expected.detach()), largest)
        return
    assert type(actual) is type(expected)
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)
