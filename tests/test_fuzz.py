"""20,000 malformed calls through the core and both adapters: each ends in an error in dynk's words.

What a malformed call is and why it cannot be a valid one is said in fuzz_corruptions.py; what a right ending is, and
how crashes and memory are watched, in fuzz_worker.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import dynk

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("resource", reason="this system limits no memory")

import fuzz_worker
from fuzz_arrays import DIMENSIONS
from fuzz_corruptions import malformed

# What hostile values are made of.
pytestmark = pytest.mark.filterwarnings("ignore")

WORKER = Path(__file__).with_name("fuzz_worker.py")
SEED = 0
CALLS = {"dynk": 12_000, "dynk_torch": 5_000, "dynk_jax": 3_000}
MOST_GROWTH_MIB = 300  # of the resident memory of a process that runs thousands of calls


def run_worker(surface: str, calls: int, progress: Path, planted: str = "") -> subprocess.CompletedProcess[str]:
    """Run the first calls of a surface in a process of their own, after some code."""
    code = f"{planted}\nimport fuzz_worker\nfuzz_worker.main({surface!r}, {SEED}, 0, {calls}, {str(progress)!r})"
    paths = [str(WORKER.parent), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def failures(surface: str, calls: int, done: subprocess.CompletedProcess[str], progress: Path) -> str:
    """Return what went wrong and how to see it again, empty if nothing did."""
    again = f"python {WORKER} {surface} {SEED}"
    if done.returncode != 0:
        index = int(progress.read_text()) if progress.exists() else -1
        what = f"exit status {done.returncode} at call {index}; again: {again} {index} {index + 1}"
        return f"{what}\n{malformed(surface, SEED, max(index, 0))}\n{done.stderr[-3000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    if report["failures"]:
        return "\n".join(
            [f"{len(report['failures'])} calls failed; again: {again} INDEX INDEX+1", *report["failures"][:20]]
        )
    if report["grown_mib"] > MOST_GROWTH_MIB:
        return f"the process grew by {report['grown_mib']} MiB"
    if sum(report["ends"].values()) != calls or not set(report["ends"]) >= {"ValueError", "TypeError"}:
        return f"not every kind of error came: {report['ends']}"
    return ""


@pytest.mark.parametrize("surface", CALLS)
def test_every_malformed_call_is_an_error_in_dynks_words(surface: str, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    done = run_worker(surface, CALLS[surface], progress)
    wrong = failures(surface, CALLS[surface], done, progress)
    assert not wrong, wrong


def test_the_same_seed_gives_the_same_calls() -> None:
    for surface in CALLS:
        first, second = (
            [re.sub("0x[0-9a-f]+", "", repr(malformed(surface, SEED, index))) for index in range(40)] for _ in range(2)
        )
        assert first == second


def test_every_operator_says_what_shapes_it_takes() -> None:
    """Corruptions of shapes rest on this."""
    assert DIMENSIONS["ddf"] == {
        "x": ["N", "C", "H", "W"],
        "spatial": ["N", "G", "kh", "kw", "Ho", "Wo"],
        "channel": ["N", "C", "kh", "kw"],
    }
    assert [name for name, dims in DIMENSIONS.items() if not dims] == ["filter_norm", "gumbel_softmax"]


PLANT = """
import dynk, fuzz_corruptions
def filter_norm(*arguments, **keywords):
    {fault}
dynk.filter_norm = filter_norm
"""


@pytest.mark.parametrize(
    ("fault", "warm_up", "said"),
    [
        ("import os; os.abort()", 0, "exit status -6 at call "),
        ("import numpy; return numpy.empty(1 << 30)", 300, "raised MemoryError: Unable to allocate"),
    ],
    ids=["crash", "memory"],
)
def test_a_planted_crash_is_found(fault: str, warm_up: int, said: str, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    planted = f"import fuzz_worker; fuzz_worker.WARM_UP = {warm_up}\n{PLANT.format(fault=fault)}"
    wrong = failures("dynk", 60, run_worker("dynk", 60, progress, planted), progress)
    assert said in wrong
    assert "dynk.filter_norm of" in wrong


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "raised MemoryError"),
        (KeyboardInterrupt(), "raised KeyboardInterrupt"),
        (ValueError("out of luck"), "not in dynk's words"),
        (TypeError("filter_norm_backward: x must"), "not in dynk's words"),
        (TypeError("filter_norm: it cannot be"), "names no argument"),
        (UnicodeError("filter_norm: f must"), "raised a UnicodeError"),
        (TypeError("filter_norm: f and scale must" + " not" * 500), "characters of message"),
        (None, "accepted"),
    ],
)
def test_other_ends_are_found(error: BaseException | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynk, "filter_norm", mock.Mock(side_effect=error))
    call = next(
        call for call in (malformed("dynk", SEED, index) for index in range(100)) if call.function == "filter_norm"
    )
    assert said in fuzz_worker.fault(call)
