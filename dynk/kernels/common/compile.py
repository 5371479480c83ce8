"""Decorators for the Numba CPU kernels: `kernel` for entry points, `borrowing` and `inlined` for what they call.

No fast-math but contraction to fused multiply-add: NaN, infinity and the order of sums are part of the contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numba

from dynk.kernels.common.lowering import KernelCompiler, PartCompiler, without_literals

# Numba is typed in part only.
njit: Any = numba.njit
config: Any = numba.config

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
# Files of other backends, which no CPU kernel imports.
_OTHER_SOURCES = ("cupy", "numba_cuda", "reference", "run_")


_PART = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": PartCompiler}


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call; LLVM inlines it where that pays."""
    return without_literals(njit(**_PART)(function))


def borrowing(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call and that makes no arrays, nor is handed new ones: they would leak.

    Those it is passed are not counted as new references, which would cost more than a short loop.
    """
    return without_literals(njit(_nrt=False, **_PART)(function))


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel's entry point, parallel over its `prange` loops and cached on disk where there is a place."""
    return _cached(function, parallel=True)


@dataclass(frozen=True)
class Choice:
    """Stands for the kernels of which the geometry of a call chooses one, so that no other is compiled."""

    kernel_for: Callable[[Any], Any]


@cache
def serial(dispatcher: Any) -> Any:
    """Return the kernel without threads."""
    parallel = getattr(dispatcher, "py_func", dispatcher)
    twin = FunctionType(
        parallel.__code__, parallel.__globals__, parallel.__name__, parallel.__defaults__, parallel.__closure__
    )
    # Numba's cache knows a function by its qualified name, not by the options it is compiled with.
    twin.__qualname__ = f"{parallel.__qualname__}_serial"
    return _cached(twin, parallel=False)


def _cached(function: Callable[..., Any], parallel: bool) -> Any:
    options = _OPTIONS | {"parallel": parallel, "pipeline_class": KernelCompiler}
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write a cache to
        return njit(**options)(function)
    if dispatcher is function:  # the compiler is off
        return function
    # Numba takes machine code for stale when the entry point's file changed; make it look at all sources, and at
    # the one flag from the environment that its key leaves out.
    index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if not hasattr(index, "_source_stamp"):  # an unknown Numba: rather compile anew than run stale code
        return njit(**options)(function)
    index._source_stamp = (index._source_stamp, sources_digest(), config.BOUNDSCHECK)
    return dispatcher


@cache
def sources_digest() -> str:
    """Return a digest of every source file that a CPU kernel may be made of."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        if not path.name.startswith(_OTHER_SOURCES):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
