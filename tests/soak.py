"""Run the property tests of every operator with many more examples, and record the result.

`python tests/soak.py` runs the property tests of `TESTS` on all lanes that this machine has, the CUDA kernels on the
emulator, with as many examples for each test as make the wanted number of cases in all, and writes
bench/results/soak-<device>.json. As a pytest plugin (`-p soak`) it leaves out all other tests and counts the examples
that each test really ran.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_FAMILIES = ("decoupled", "sampled", "dilated", "deformable")
_CUDA = ("cuda_c", "cuda_tiles", "cuda_sampled", "cuda_dilated", "cuda_gumbel", "cuda_deformable", "numba_cuda")
TESTS = [f"tests/test_{name}.py" for name in ("operators", *_FAMILIES, *_CUDA)]
TALLY = "DYNK_SOAK_TALLY"  # names the file in which the plugin leaves its counts

_cases = 0
_tally = {"cases": 0, "tests": 0, "skipped": 0, "failures": list[str]()}


# ---- the plugin ------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep the property tests, and let each count its examples."""
    items[:] = [item for item in items if hasattr(item.obj, "hypothesis")]
    for test in {item.obj for item in items}:
        test.hypothesis.inner_test = _counted(test.hypothesis.inner_test)


def _counted(body: Any) -> Any:
    def run(*args: Any, **keywords: Any) -> Any:
        global _cases
        _cases += 1
        return body(*args, **keywords)

    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Generator[None, None, None]:
    before = _cases
    try:
        yield
    finally:
        item.user_properties.append(("cases", _cases - before))


def pytest_runtest_logreport(report: Any) -> None:
    """Add up; under xdist the process that gathers the reports sees them all."""
    _tally["skipped"] += report.skipped
    if report.failed:
        _tally["failures"].append(report.nodeid)
    if report.when == "call":
        _tally["tests"] += 1
        _tally["cases"] += dict(report.user_properties).get("cases", 0)


def pytest_sessionfinish(session: Any) -> None:
    if TALLY in os.environ and not hasattr(session.config, "workerinput"):
        Path(os.environ[TALLY]).write_text(json.dumps(_tally))


class _Properties:
    """Counts the property tests that will not be skipped."""

    count = 0

    def pytest_collection_finish(self, session: Any) -> None:
        runnable = (item for item in session.items if item.get_closest_marker("skip") is None)
        self.count = sum(hasattr(item.obj, "hypothesis") for item in runnable)


# ---- the script ------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the soak and return pytest's exit status."""
    from dynk.commands import doctor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="examples of all tests together (default 100000)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--output", type=Path, help="the result file (default bench/results/soak-<device>.json)")
    options = parser.parse_args()

    properties = _Properties()
    os.chdir(ROOT)
    if pytest.main(["--collect-only", "-qq", "--no-header", *TESTS], plugins=[properties]) != 0:
        return 1
    examples = -(-options.cases // properties.count)
    machine = doctor.collect()
    device = f"{machine['machine']['processor']} {machine['machine']['threads']} threads"
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    output = options.output or ROOT / "bench" / "results" / f"soak-{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)

    environment = os.environ | {
        "HYPOTHESIS_PROFILE": "soak",
        "DYNK_SOAK_EXAMPLES": str(examples),
        TALLY: str(output),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }
    workers = ["-n", str(options.workers), "--dist", "worksteal"] if options.workers > 1 else []
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "soak", *workers, *TESTS]
    status = subprocess.run(command, env=environment, check=False).returncode
    result = {
        "asked for": options.cases,
        "examples for each test": examples,
        **(json.loads(output.read_text()) if output.exists() else {}),
        "seconds": round(time.monotonic() - started),
        "processes": options.workers,
        "exit status": status,
        "versions": machine["versions"],
        "machine": machine["machine"],
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return status


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
