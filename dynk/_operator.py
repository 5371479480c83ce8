"""What an operator declares about itself, and the registry of all of them.

Everything that is generic (dispatch, adapters, tests, benchmarks) reads these declarations, so that a new operator adds
files and one line in `FAMILIES`, and edits nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]
Shapes = tuple[Shape | None, ...]
Dtypes = tuple[str | None, ...]
Options = tuple[Any, ...]

# The public modules that hold operators. A new family is one more name here.
FAMILIES = ("decoupled", "sampled", "dilated", "deformable")


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a launcher must know of one call besides the arrays; made once per signature and remembered.

    `geometry` is a NamedTuple of integers of the operator's family (or a plain tuple of them), `reals` its
    floating-point options. Kernels get both as they are, so nothing else may be needed to launch. `options` are the
    canonical options the plan was made from.
    """

    dtype: str
    out_shape: Shape
    geometry: tuple[int, ...]
    reals: tuple[float, ...] = ()
    options: Options = ()

    @cached_property
    def geometry_array(self) -> npt.NDArray[np.int64]:
        return np.array(self.geometry, np.int64)

    @cached_property
    def reals_array(self) -> npt.NDArray[np.float64]:
        return np.array(self.reals, np.float64)


class PlanFunction(Protocol):
    """Checks a signature and returns its plan; memoised, so `__wrapped__` is the function underneath."""

    __wrapped__: Callable[[str, Shapes, Dtypes, Options], Plan]

    def __call__(self, function: str, shapes: Shapes, dtypes: Dtypes, options: Options, /) -> Plan: ...


@dataclass(frozen=True, eq=False, repr=False)
class Operator:
    """One differentiable operator.

    Parameters
    ----------
    name
        Public name; `<name>_backward` is its gradient.
    family
        The public module and the folder below `dynk.kernels` that hold it.
    launcher
        Prefix of its launch functions `<launcher>_forward` and `<launcher>_backward` in each backend file.
    arrays
        Names of the array arguments, in order. An argument whose value may be None is in `optional`.
    options
        Option name to (type in a torch.library schema, default), in order; the canonical options tuple has this order.
        A default of None means that the option must be given, unless its type ends in "?".
    canonical
        Turns the caller's options into the hashable tuple that `plan` takes, of numbers, strings, None and tuples of
        them; raises for a wrong one. Takes canonical options too, and lists where they have tuples.
    plan
        Checks shapes, dtypes and canonical options and returns the `Plan`.
    gradients
        NamedTuple type of what `<name>_backward` returns.
    derivative
        derivative(index, tangent, arrays, options) -> (arrays, options) such that the operator applied to them is the
        directional derivative with respect to argument `index`; raises NotImplementedError for options that leave no
        such form. None where the operator has none.
    batched
        Names of the array arguments whose leading dimension is the batch N.
    samples
        Small calls that together reach every kernel; `python -m dynk check` runs them. Each holds an entry for each
        array argument, a shape to be filled at random, an array to be taken as it is (rounded to the dtype of the call
        if it is a floating one) or None, and the options.
    integers
        Names of the array arguments that may hold integers, which have no gradient.
    coordinates
        Names of the array arguments that hold coordinates: the operator is piecewise smooth in them, and what gradients
        a NaN among them takes part in is left open.
    check_values
        check_values(function, plan, arrays) raises for wrong values, such as indices out of range, in arrays on the
        CPU. Kernels must be safe without it: nobody looks at values on CUDA or in compiled JAX programs.
    """

    name: str
    family: str
    launcher: str
    arrays: tuple[str, ...]
    optional: frozenset[str]
    options: Mapping[str, tuple[str, Any]]
    canonical: Callable[..., Options]
    plan: PlanFunction
    gradients: Callable[..., Any]
    batched: frozenset[str]
    samples: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    derivative: Callable[[int, Any, tuple[Any, ...], Options], tuple[tuple[Any, ...], Options]] | None = None
    integers: frozenset[str] = field(default=frozenset())
    coordinates: frozenset[str] = field(default=frozenset())
    check_values: Callable[[str, Plan, tuple[Any, ...]], None] | None = None

    def __repr__(self) -> str:
        return f"<operator {self.name}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # what IPython and hypothesis print; by themselves they would list every field

    def check_inputs(self, direction: str, plan: Plan, inputs: tuple[Any, ...]) -> None:
        """Check the values of what a launch on the CPU reads: the arrays, after grad_out for "backward"."""
        if self.check_values is not None:
            backward = direction == "backward"
            self.check_values(f"{self.name}_backward" if backward else self.name, plan, inputs[backward:])

    def launchers(self, backend: str) -> Any:
        """Return the module of this family's launch functions for one backend file, such as "cpu"."""
        return importlib.import_module(f"dynk.kernels.{self.family}.{backend}")

    def has_launchers(self, backend: str) -> bool:
        """Return whether this family has such a file; it need not be importable here."""
        return importlib.util.find_spec(f"dynk.kernels.{self.family}.{backend}") is not None


def operators() -> dict[str, Operator]:
    """Return every operator by name."""
    found: dict[str, Operator] = {}
    for family in FAMILIES:
        found |= {op.name: op for op in importlib.import_module(f"dynk.{family}").OPERATORS}
    return found
