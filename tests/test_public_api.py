"""The public surface: names, signatures, docstrings and their examples, and what importing dynk does not import."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from lanes import OPERATORS, each_operator

import dynk
import dynk.testing
from dynk._dispatch import BACKENDS, runner_of
from dynk._operator import Operator
from dynk.kernels.common.compile import Choice
from dynk.testing import sample_calls

PUBLIC_FUNCTIONS = [name for name in dynk.__all__ if inspect.isfunction(getattr(dynk, name))]
# Every family has kernels for the CPU; those for CUDA may come later, all operators at once.
BACKENDS_OF_OPERATORS = [
    pytest.param(op, backend, id=f"{op.name}-{backend}")
    for op in OPERATORS
    for backend in BACKENDS
    if backend in ("cpu", "reference") or op.has_launchers(runner_of(backend).LAUNCHERS)
]


def modules() -> list[str]:
    """Return every module with public docstrings: all but kernels, commands and what a terminal runs."""
    found = ["dynk", *(module.name for module in pkgutil.walk_packages(dynk.__path__, "dynk."))]
    return [name for name in found if not re.match(r"dynk\.(kernels|commands|demo|__main__)\b", name)]


def sections(docstring: str) -> dict[str, str]:
    """Return the sections of a numpydoc docstring by title."""
    parts = re.split(r"^(\w+)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_parameters(docstring: str) -> list[str]:
    lines = [line for line in sections(docstring).get("Parameters", "").splitlines() if re.match(r"\w", line)]
    return [name for line in lines for name in line.split(" : ")[0].split(", ")]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_all_is_exactly_the_public_surface() -> None:
    expected = {"__version__", "backend", "backends", "plot_erf"}
    for op in OPERATORS:
        expected |= {op.name, f"{op.name}_backward", op.gradients.__name__}  # type: ignore[attr-defined]
    assert list(dynk.__all__) == sorted(expected)
    assert [name for name in dynk.__all__ if not hasattr(dynk, name)] == []


@pytest.mark.parametrize(
    "name",
    ["dynk.testing", "dynk.testing.strategies", "dynk.decoupled", "dynk.sampled", "dynk.dilated", "dynk.deformable"],
)
def test_all_of_the_other_public_modules_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_the_version_is_that_of_the_distribution() -> None:
    metadata = pytest.importorskip("importlib.metadata")
    try:
        installed = metadata.version("dynk")
    except metadata.PackageNotFoundError:
        pytest.skip("dynk is used from its folder, not installed")
    assert dynk.__version__ == installed


@pytest.mark.parametrize(
    "statement",
    [
        "import dynk",
        "import dynk.testing",
        "import dynk, numpy; dynk.filter_norm(numpy.eye(3), axes=(0, 1), backend='reference')",
    ],
)
def test_no_framework_is_imported(statement: str) -> None:
    frameworks = {"torch", "jax", "cupy", "hypothesis", "rich"}
    check = f"{statement}\nimport sys\nprint(sorted({frameworks} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


# ---- signatures ------------------------------------------------------------------------------------------------------


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@each_operator
def test_signatures_are_those_declared(op: Operator) -> None:
    forward, backward = getattr(dynk, op.name), getattr(dynk, f"{op.name}_backward")
    assert list(parameters(forward)) == [*op.arrays, *op.options, "out", "backend"]
    assert list(parameters(backward)) == ["grad_out", *op.arrays, *op.options, "needs", "grads", "backend"]
    for function in (forward, backward):
        for name, parameter in parameters(function).items():
            positional = name in (*op.arrays, "grad_out")
            assert parameter.kind == (parameter.POSITIONAL_OR_KEYWORD if positional else parameter.KEYWORD_ONLY), name
            if name in op.options:
                kind, default = op.options[name]
                required = default is None and not kind.endswith("?")
                assert parameter.default == (parameter.empty if required else default), name
            if parameter.default is None and name in op.arrays:
                assert name in op.optional


@each_operator
def test_gradients_are_named_after_the_arrays(op: Operator) -> None:
    assert op.gradients._fields == op.arrays  # type: ignore[attr-defined]
    assert op.optional <= set(op.arrays)
    assert op.batched <= set(op.arrays)
    assert op.integers <= set(op.arrays)
    assert op.coordinates <= set(op.arrays)


@each_operator
def test_samples_are_valid_calls(op: Operator) -> None:
    calls = sample_calls(op, "float32", np.random.default_rng(0))
    assert calls
    for call in calls:
        assert call.plan.out_shape


@pytest.mark.parametrize(("op", "backend"), BACKENDS_OF_OPERATORS)
def test_every_backend_has_the_launchers(op: Operator, backend: str) -> None:
    if backend == "numba-cuda":
        pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    launchers = op.launchers(runner_of(backend).LAUNCHERS)
    for direction in ("forward", "backward"):
        launcher = getattr(launchers, f"{op.launcher}_{direction}")
        if isinstance(launcher, Choice):
            launcher = launcher.kernel_for(sample_calls(op, "float32", np.random.default_rng(0))[0].plan.geometry)
        assert callable(launcher)


# ---- docstrings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_public_functions_are_documented(name: str) -> None:
    function = getattr(dynk, name)
    found = sections(function.__doc__)
    assert documented_parameters(function.__doc__) == documented_order(function)
    assert "Examples" in found
    if name != "backend":
        assert "Returns" in found
    if name != "backends":
        assert "Raises" in found


def documented_order(function: Any) -> list[str]:
    """Return the parameters in the order of the signature, but for those a gradient documents by reference."""
    documented = documented_parameters(function.__doc__)
    assert sorted(documented) == sorted(parameters(function))
    return documented


@pytest.mark.parametrize("name", modules())
@pytest.mark.filterwarnings("default::hypothesis.errors.HypothesisWarning")
def test_docstring_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_the_public_functions_are_among_the_examples() -> None:
    finder = doctest.DocTestFinder()
    with_examples = {
        test.name.rpartition(".")[2]
        for name in modules()
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    assert set(PUBLIC_FUNCTIONS) | {"assert_close", "values", "arrays", "calls", "Call"} <= with_examples
