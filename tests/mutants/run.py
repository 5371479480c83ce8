"""Runs the tests against mutants, each in a copy of the tree and a process of its own.

A process that has imported everything but dynk forks one child per mutant: a run then costs what its tests cost. The
tests are the suite's own, cheapest first, until one fails: the CPU kernels as plain Python, the CUDA kernels on the
emulator.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mutate import Mutant

SOURCES = ("dynk/kernels/*/cpu*.py", "dynk/kernels/*/*.cu", "dynk/kernels/*/*.cuh")
NEEDED = ("dynk", "tests", "pyproject.toml")

# A stage has hung after this much more of the processor's time, in seconds, than three times what it takes without a
# mutant; or after so much time by the clock, if it waits for something that never comes.
_HANG, _WAIT = 10, 120

Selection = tuple[str, ...]
Limit = tuple[float, float]  # of the processor's time, and by the clock

_OPERATORS, _FAMILIES, _CUDA = "tests/test_operators.py", "tests/test_decoupled.py", "tests/test_cuda_c.py"
_COMMON, _TILED = "tests/test_cuda_common.py", "tests/test_cuda_tiles.py"
_SAMPLED, _CUDA_SAMPLED = "tests/test_sampled.py", "tests/test_cuda_sampled.py"
_DILATED, _CUDA_DILATED = "tests/test_dilated.py", "tests/test_cuda_dilated.py"
_DEFORMED, _CUDA_DEFORMABLE = "tests/test_deformable.py", "tests/test_cuda_deformable.py"
_GUMBEL, _CUDA_GUMBEL = "tests/test_gumbel_softmax.py", "tests/test_cuda_gumbel.py"
_NORM_TESTS = (
    "deviation or equal_taps or huge or offset or axes or broadcast or parameters or side_by_side or dimensions"
)


def _cpu(operators: str, quick: str, family: str, its_tests: str, long: str, some: str) -> tuple[Selection, ...]:
    """Return the tests of operators on the CPU, only `some` of those that take long."""
    own, other = f"cpu-float32 and ({operators})", f"(cpu-float64 or cpu-float16) and ({operators})"
    return (
        (_OPERATORS, "-k", f"{quick} and {own}"),
        (family, "-k", f"cpu-float32 and ({its_tests}) and not {long}"),
        (family, "-k", f"cpu-float32 and ({its_tests}) and {long} and ({some})"),
        (_OPERATORS, "-k", f"(smoke or equal and reference) and not ({quick}) and {own}"),
        (_OPERATORS, "-k", f"{quick} and {other}"),
        (_OPERATORS, "-k", f"(only_needed or poison and inf) and {own} and not upsample"),
    )


_CPU_FILTERS = _cpu("ddf or ddf_upsample", "smoke", _FAMILIES, f"not ({_NORM_TESTS})", "bands", "mul")
_CPU_RESULTS = (*_CPU_FILTERS, ("tests/test_cpu_kernels.py", "-k", "large_results"))
_CPU_NORM = _cpu("filter_norm", "smoke", _FAMILIES, _NORM_TESTS, "side_by_side", "scale")
_CPU_DYNAMIC = _cpu(
    "dynamic_filter", "smoke", _SAMPLED, "not ls_dfn and not attention", "several_chains", "mean or max"
)
_CPU_SAMPLES = _cpu("ls_dfn", "equal and reference", _SAMPLED, "not dynamic_filter", "several_chains", "mean or max")
_CPU_SUMMED = (("tests/test_sampled_summed.py", "-k", "cpu-float32"), *_CPU_SAMPLES)
_CPU_DILATION = _cpu(
    "adaptive_dilation", "smoke", _DILATED, "not library", "several_chains", "channels or least or rows"
)
_CPU_DEFORMED = _cpu("deformable", "smoke", _DEFORMED, "not without_offsets", "torchvision", "33")
_CPU_SAMPLE_KERNEL = _cpu("sample_kernel", "smoke", _DEFORMED, "sampled_kernel", "zeros", "zeros")
_CPU_DRAWS: tuple[Selection, ...] = (
    (_OPERATORS, "-k", "smoke and cpu-float32 and gumbel"),
    (_GUMBEL, "-k", "(cpu-float32 or choice) and not torch and not jax"),
    (_OPERATORS, "-k", "equal and reference and (cpu-float32 or cpu-float64) and gumbel"),
)
_SOME_FILTERS = "filters_equal and (float32 or float16)"
_FILTERS: tuple[Selection, ...] = (
    (_CUDA, "-k", "own_group or pixels or channels"),
    (_CUDA, "-k", _SOME_FILTERS),
    (_CUDA, "-k", f"(filters_equal or order or needed or 64_bit) and not ({_SOME_FILTERS})"),
)
_TILES: tuple[Selection, ...] = (
    (_TILED, "-k", "full_or_not"),
    (_TILED, "-k", "many_tiles and busy and mul"),
    (_TILED, "-k", "(normal or outside) and not (many_tiles and busy and mul)"),
    (_TILED, "-k", "reference"),
    (_TILED, "-k", "order or alignment"),
)
_NORM: tuple[Selection, ...] = (
    (_CUDA, "-k", "norm_equals and float32"),
    (_CUDA, "-k", "filters_are_summed or equal_taps"),
    (_CUDA, "-k", "norm_equals and not float32 or 64_bit"),
)
_SAMPLES: tuple[Selection, ...] = (
    (_CUDA_SAMPLED, "-k", "absent_arguments or needed"),
    (_CUDA_SAMPLED, "-k", "several and float32 or largest or misaligned or outside"),
    (_CUDA_SAMPLED, "-k", "several or channels or staged or third_stage and cupy"),
    (_CUDA_SAMPLED, "-k", "reference"),
    (_CUDA_SAMPLED, "-k", "order or 64_bit or read_by"),
)
_DILATION: tuple[Selection, ...] = (
    (_CUDA_DILATED, "-k", "kernel_sizes or groups_and_strides"),
    (_CUDA_DILATED, "-k", "several_tiles or staged or skipped or no_dilation or parts"),
    (_CUDA_DILATED, "-k", "needed or order or 64_bit or index_width"),
    (_CUDA_DILATED, "-k", "reference"),
)
_DRAWS: tuple[Selection, ...] = (
    (_CUDA_GUMBEL, "-k", "not (reference or published)"),
    (_CUDA_GUMBEL, "-k", "reference and not uniforms"),
)
_DEFORMABLE: tuple[Selection, ...] = (
    (_CUDA_DEFORMABLE, "-k", "groups_and_strides or kernel_sizes"),
    (_CUDA_DEFORMABLE, "-k", "several_tiles or staged or one_cell or empty_batch or workspace or lists"),
    (_CUDA_DEFORMABLE, "-k", "needed or share_it or order or 64_bit or bounds or depthwise"),
    (_CUDA_DEFORMABLE, "-k", "reference"),
)
_SCOPES: tuple[Selection, ...] = ((_CUDA_DEFORMABLE, "-k", "shared_memory or in_turn"), *_DEFORMABLE)
_SAMPLE_KERNEL: tuple[Selection, ...] = (_DEFORMABLE[-1],)
# By the end of a source's name: what runs against its mutants, one after the other.
STAGES: dict[str, tuple[Selection, ...]] = {
    "common/cpu_geometry.py": _CPU_FILTERS,
    **{f"decoupled/cpu_norm{part}.py": _CPU_NORM for part in ("", "_nine", "_rows", "_runs", "_vectors")},
    "decoupled/cpu.py": _CPU_FILTERS,
    "sampled/cpu_dynamic.py": _CPU_DYNAMIC,
    **{f"sampled/cpu{part}_summed.py": _CPU_SUMMED for part in ("", "_grad")},
    "sampled/cpu_rows.py": (*_CPU_DYNAMIC, *_CPU_SAMPLES),
    **{f"decoupled/cpu_{part}.py": _CPU_FILTERS for part in ("apart", "products", "sums", "sums_rows", "sweep")},
    "decoupled/cpu_results.py": _CPU_RESULTS,
    "decoupled/cpu_sums_nine.py": _CPU_RESULTS,
    **{f"sampled/cpu{part}.py": _CPU_SAMPLES for part in ("", "_attention", "_mix", "_products", "_samples")},
    "dilated/cpu_gumbel.py": _CPU_DRAWS,
    "dilated/cpu.py": (*_CPU_DILATION, *_CPU_DRAWS),
    **{f"dilated/cpu_{part}.py": _CPU_DILATION for part in ("columns", "depthwise", "forward", "rows", "tiles")},
    **{f"dilated/cpu_grad_{of}.py": _CPU_DILATION for of in ("columns", "rows", "weight")},
    "deformable/cpu.py": (*_CPU_DEFORMED, *_CPU_SAMPLE_KERNEL),
    "deformable/cpu_sample_kernel.py": _CPU_SAMPLE_KERNEL,
    "deformable/cpu_points.py": (*_CPU_DEFORMED, *_CPU_SAMPLE_KERNEL),
    **{
        f"deformable/cpu_{part}.py": _CPU_DEFORMED
        for part in ("dense", "depthwise", "samples", "tables", *(f"grad_{of}" for of in ("dense", "depthwise")))
    },
    **{f"deformable/cpu_grad_{part}.py": _CPU_DEFORMED for part in ("cells", "image", "points", "samples")},
    "dilated/dense.cu": _DILATION,
    "dilated/depthwise.cu": _DILATION,
    "dilation.cuh": _DILATION,
    "gumbel_softmax.cu": _DRAWS,
    "philox.cuh": _DRAWS,
    "kernels.cu": _FILTERS,
    "tiles.cu": _TILES,
    "filter_norm.cu": _NORM,
    "samples.cu": _SAMPLES,
    "backward.cu": _SAMPLES,
    "shared_taps.cu": _SAMPLES,
    "sampled.cuh": _SAMPLES,
    **{f"deformable/{name}": _DEFORMABLE for name in ("dense.cu", "depthwise.cu", "taps.cu", "deformable.cuh")},
    "deformable/scope.cu": _SCOPES,
    "deformable/scope.cuh": _SCOPES,
    "deformable/sample_kernel.cu": _SAMPLE_KERNEL,
    **{f"cuda_{name}.cuh": (*_DILATION[:2], *_DEFORMABLE[:2]) for name in ("bias", "products")},
    "ddf.cuh": (*_FILTERS, *_TILES),
    "tiles.cuh": _TILES,
    ".cuh": ((_COMMON,), *_FILTERS[:1], *_NORM[:2], *_FILTERS[1:], *_NORM[2:]),
}

SURVIVED, KILLED, TIMEOUT, INVALID = "survived", "killed", "timeout", "does not compile"
# What a compiler says to a mutant that is no program: the host's, or in plain Python a name that is not there.
_NO_PROGRAM = re.compile(r"CompilationError|^E +(?:NameError|UnboundLocalError|AttributeError):", re.MULTILINE)


@dataclass
class Result:
    """What became of a mutant: `by` is the test that failed."""

    mutant: Mutant
    verdict: str
    by: str = ""


def sources(root: Path) -> list[str]:
    """Return the sources that are mutated."""
    found = (path for pattern in SOURCES for path in root.glob(pattern))
    return sorted(path.relative_to(root).as_posix() for path in found)


def kind_of(path: str) -> str:
    """Return what is sampled and judged together: the sources of a family in one language."""
    return f"{Path(path).parent.name} {'CPU' if path.endswith('.py') else 'CUDA'}"


def stages_of(path: str) -> tuple[Selection, ...]:
    """Return the tests that run against the mutants of a source."""
    return next(stages for ending, stages in STAGES.items() if path.endswith(ending))


def run_all(
    root: Path,
    todo: Iterable[Mutant],
    *,
    jobs: int,
    stages: Callable[[str], tuple[Selection, ...]] = stages_of,
) -> Iterator[Result]:
    """Yield the result of each mutant as it is known, `jobs` of them running at a time.

    Raises
    ------
    RuntimeError
        The tests cannot be run, or fail without a mutant.
    """
    _prepare()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        copies = [Copy(root, Path(scratch, str(number))) for number in range(jobs)]
        limits: dict[Selection, Limit] = {}
        running: dict[int, tuple[Copy, Mutant]] = {}
        try:
            for mutant in todo:
                if not copies:
                    yield _finished(running, copies)
                copy, selections = copies.pop(), stages(mutant.path)
                limits |= copy.limits([selection for selection in selections if selection not in limits])
                child = copy.start(selections, [limits[selection] for selection in selections], mutant)
                running[child] = copy, mutant
            while running:
                yield _finished(running, copies)
        finally:
            for child in running:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _finished(running: dict[int, tuple[Copy, Mutant]], copies: list[Copy]) -> Result:
    child, status = os.wait()
    copy, mutant = running.pop(child)
    copies.append(copy)
    return Result(mutant, *copy.judge(status))


def _prepare() -> None:
    """Import what every child needs and no mutant changes, and set what it inherits."""
    os.environ.update(
        NUMBA_DISABLE_JIT="1", PYTHONDONTWRITEBYTECODE="1", HYPOTHESIS_PROFILE="mutants", DYNK_COMPILE_ONE="1"
    )
    sys.dont_write_bytecode = True
    import hypothesis

    for name in ("ml_dtypes", "numba.cuda", "cupy", "pytest"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    everything = [phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate")]
    hypothesis.settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=12,
        phases=everything,  # one failure is enough: none is made smaller
        suppress_health_check=list(hypothesis.HealthCheck),
    )


class Copy:
    """A copy of the tree in which one mutant at a time is tested."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output.txt"
        self.outcome = folder / "outcome.json"
        self.cache = folder / "cache"
        self.changed: tuple[Path, str] | None = None
        self.kept: set[Path] = set()  # what was compiled without a mutant
        folder.mkdir()
        self.cache.mkdir()
        for name in NEEDED:
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).exists():
                shutil.copy(root / name, folder)

    def start(self, stages: Sequence[Selection], limits: Sequence[Limit], mutant: Mutant | None = None) -> int:
        """Start the tests in a child process and return its number."""
        if mutant is not None:
            path = self.folder / mutant.path
            self.changed = path, path.read_text()
            path.write_text(mutant.code)
        self.outcome.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                self._test(stages, limits)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        return child

    def _test(self, stages: Sequence[Selection], limits: Sequence[Limit]) -> None:
        """In the child: run the tests until one fails, and write down what happened."""
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.folder)
        os.environ["DYNK_EMULATOR_CACHE"] = str(self.cache)
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # a mutant may ask for any amount of memory
        sys.path.insert(0, str(self.folder))
        outcome: dict[str, Any] = {"seconds": []}
        os.environ["DYNK_COMPILE_ONE"] = "1"  # most mutants fall to the first test
        for selection, (seconds, clock) in zip(stages, limits, strict=True):
            # unhandled, they end the process
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, clock)
            began, clock_began = time.process_time(), time.monotonic()
            failed, count = _pytest(selection)
            outcome["seconds"].append((time.process_time() - began, time.monotonic() - clock_began))
            outcome["nothing"] = count == 0 and not failed
            outcome["failed"] = failed
            if failed or count == 0:
                break
            os.environ.pop("DYNK_COMPILE_ONE", None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.outcome.write_text(json.dumps(outcome))

    def judge(self, status: int) -> tuple[str, str]:
        """Return the verdict on the mutant whose child has ended, and which test failed; undo the mutant."""
        if self.changed is not None:
            path, code = self.changed
            path.write_text(code)
            self.changed = None
        for library in set(self.cache.glob("module-*")) - self.kept:
            library.unlink()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
            return TIMEOUT, ""
        if os.WIFSIGNALED(status):
            return KILLED, f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
        outcome = json.loads(self.outcome.read_text()) if self.outcome.exists() else {"nothing": True}
        if outcome["nothing"]:
            msg = f"no test was run; pytest said:\n{self.said()}"
            raise RuntimeError(msg)
        if _NO_PROGRAM.search(self._printed()):
            return INVALID, ""
        return (KILLED, outcome["failed"]) if outcome["failed"] else (SURVIVED, "")

    def limits(self, stages: Sequence[Selection]) -> dict[Selection, Limit]:
        """Return the time after which each stage counts as hung; all must pass without a mutant."""
        if not stages:
            return {}
        child = self.start(stages, [(600, 3600)] * len(stages))
        _, status = os.waitpid(child, 0)
        self.kept |= set(self.cache.glob("module-*"))
        verdict, by = self.judge(status)
        if verdict != SURVIVED:
            msg = f"the tests fail without a mutant: {verdict} by {by}; pytest said:\n{self.said()}"
            raise RuntimeError(msg)
        seconds = json.loads(self.outcome.read_text())["seconds"]
        return {
            stage: (_HANG + 3 * its, _WAIT + 10 * by_clock)
            for stage, (its, by_clock) in zip(stages, seconds, strict=True)
        }

    def said(self) -> str:
        """Return the end of what the child printed."""
        return self._printed()[-4000:]

    def _printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class _Watch:
    """A pytest plugin: counts the tests that passed and notes the first that failed."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"


def _pytest(selection: Selection) -> tuple[str, int]:
    """Return the first test that failed, if one did, and how many passed."""
    import pytest

    watch = _Watch()
    # Compiled kernels raise no such warnings as NumPy's scalars do; and what `_prepare` imported is no concern.
    quiet = ("-W", "ignore::RuntimeWarning", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    options = ("-x", "-q", "--tb=short", "-p", "no:cacheprovider", *quiet)
    code = pytest.main([*options, *selection], plugins=[watch])
    if code not in (0, 5) and not watch.failed:
        watch.failed = f"pytest's own failure {code}"
    return watch.failed, watch.passed
