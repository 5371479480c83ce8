"""The mutation tester: what it changes, and what it says of each change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants.mutate import mutants
from mutants.report import Report, key, reasons
from mutants.run import INVALID, KILLED, SURVIVED, TIMEOUT, Result, sources, stages_of

TESTS = Path(__file__).parent


def changes(folder: Path, name: str, code: str) -> set[tuple[str, str]]:
    (folder / name).write_text(code)
    found = mutants(folder, name)
    assert all((folder / name).read_text().count("\n") == mutant.code.count("\n") for mutant in found)
    return {(mutant.original, mutant.mutated) for mutant in found}


def test_python_changes(tmp_path: Path) -> None:
    code = '''"""A - b."""
def f(a: int, n: int = 3):  # 1 + 1
    """Twice 2."""
    for k in range(n):
        if (a) < k:
            continue
        a += 1
    return max(a, 2 * n)
'''
    lines = {
        "for k in range(n):": ["for k in range(n - 1):", "for k in range(1, n):"],
        "if (a) < k:": ["if (a) <= k:", "if (a) >= k:", "if True:", "if False:"],
        "continue": ["pass"],
        "a += 1": ["a -= 1", "a = 1", "a += 0", "a += 2", "pass"],
        "return max(a, 2 * n)": [
            *("return min(a, 2 * n)", "return max(a, 2 + n)", "return max(a, 1 * n)", "return max(a, 3 * n)"),
        ],
    }
    assert changes(tmp_path, "toy.py", code) == {(line, new) for line, several in lines.items() for new in several}


def test_cuda_changes(tmp_path: Path) -> None:
    code = """#include "a - b.h"  // 1 + 1
template <typename T, int N = 3>
__global__ void __launch_bounds__(256, 1) f(const T* __restrict__ x, T* out) {
    /* 4 < 5 */
    __syncthreads();
    if (threadIdx.x < 8) out[threadIdx.x] = x[0] * T(b);
}
"""
    line = "if (threadIdx.x < 8) out[threadIdx.x] = x[0] * T(b);"
    several = [
        *(
            "if (threadIdx.x <= 8) out[threadIdx.x] = x[0] * T(b);",
            "if (threadIdx.x >= 8) out[threadIdx.x] = x[0] * T(b);",
        ),
        *(
            "if (threadIdx.x < 7) out[threadIdx.x] = x[0] * T(b);",
            "if (threadIdx.x < 9) out[threadIdx.x] = x[0] * T(b);",
        ),
        *(
            "if (threadIdx.y < 8) out[threadIdx.x] = x[0] * T(b);",
            "if (threadIdx.z < 8) out[threadIdx.x] = x[0] * T(b);",
        ),
        *(
            "if (threadIdx.x < 8) out[threadIdx.y] = x[0] * T(b);",
            "if (threadIdx.x < 8) out[threadIdx.z] = x[0] * T(b);",
        ),
        *(
            "if (threadIdx.x < 8) out[threadIdx.x] = x[1] * T(b);",
            "if (threadIdx.x < 8) out[threadIdx.x] = x[0] + T(b);",
        ),
        "if (threadIdx.x < 8) ;",
    ]
    assert changes(tmp_path, "toy.cu", code) == {("__syncthreads();", ";"), *((line, new) for new in several)}


TOY = """def largest(values):
    top = values[0]
    for value in values:
        if value > top:
            top = value
    return top

def steps(n):
    while n > 0:
        n -= 1
    return n

def pixels(H):
    W = H * 3
    return W
"""
TOY_TEST = """from toy import largest, pixels, steps

def test_toy():
    assert largest([1, 3, 2]) == 3
    assert steps(2) == 0
    assert pixels(5) == 15
"""
RUN = """
import json, sys
from pathlib import Path
from mutants import run
from mutants.mutate import mutants
run._HANG = 1
folder = Path(sys.argv[1])
results = run.run_all(folder, mutants(folder, "tests/toy.py"), jobs=2, stages=lambda path: (("tests/test_toy.py",),))
print("results:" + json.dumps([(r.mutant.original, r.mutant.mutated, r.verdict, r.by) for r in results]))
"""


def run_toy(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    (folder / "tests").mkdir()
    (folder / "tests" / "toy.py").write_text(TOY)
    (folder / "tests" / "test_toy.py").write_text(test)
    command = [sys.executable, "-c", RUN, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_verdicts(tmp_path: Path) -> None:
    done = run_toy(tmp_path, TOY_TEST)
    assert done.returncode == 0, done.stderr
    results = {tuple(pair): rest for *pair, rest, _ in json.loads(done.stdout.partition("results:")[2])}
    assert results["if value > top:", "if value >= top:"] == SURVIVED  # the same largest value
    assert results["if value > top:", "if value <= top:"] == KILLED
    assert results["n -= 1", "n = 1"] == TIMEOUT
    assert results["W = H * 3", "W = W * 3"] == INVALID  # there is no W yet
    assert (tmp_path / "tests" / "toy.py").read_text() == TOY


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("test", "words"), [("", "no test was run"), (f"{TOY_TEST}    assert False\n", "fail without a mutant")]
)
def test_tests_that_cannot_judge_are_refused(tmp_path: Path, test: str, words: str) -> None:
    done = run_toy(tmp_path, test)
    assert done.returncode != 0
    assert words in done.stderr


def test_report_counts_and_names_survivors(tmp_path: Path) -> None:
    changes(tmp_path, "toy.py", "def f(n):\n    return n < 2\n")
    boundary, reverse, *others = mutants(tmp_path, "toy.py")
    report = Report({key(boundary): "n is odd"}, {key(reverse): "n is small"})
    for mutant, verdict in ((boundary, SURVIVED), (reverse, SURVIVED), (others[0], KILLED), (others[1], INVALID)):
        report.add(Result(mutant, verdict))
    assert report.survivors() == [reverse]
    *_, row = report.kinds()
    assert list(row.values()) == ["all", 4, 1, 1, 1, 0, 1, 0.5]
    assert [row["source"] for row in report.sources()] == ["toy.py"]
    report.write(tmp_path / "report.json", 4, 0)
    written = json.loads((tmp_path / "report.json").read_text())
    assert [written[kind][0]["reason"] for kind in ("equivalent", "survivors")] == ["n is odd", "n is small"]


def test_survivors_of_a_report_are_taken_out_to_run_again(tmp_path: Path) -> None:
    changes(tmp_path, "toy.py", "def f(n):\n    return n < 2\n")
    boundary, reverse, *others = mutants(tmp_path, "toy.py")
    first, second = (Report({key(boundary): "n is odd"}, {}) for _ in range(2))
    for mutant, verdict in ((boundary, SURVIVED), (reverse, SURVIVED), (others[0], KILLED)):
        first.add(Result(mutant, verdict, "by a test"))
    first.write(tmp_path / "report.json", 4, 0)
    assert second.read(tmp_path / "report.json") == (4, 0)
    assert second.kinds() == first.kinds()
    assert [key(mutant) for mutant in second.take_survivors()] == [key(reverse)]
    second.add(Result(reverse, KILLED))
    assert second.kinds()[-1]["kill rate"] == 1


def test_every_kernel_source_has_mutants_and_tests() -> None:
    for path in sources(TESTS.parent):
        assert mutants(TESTS.parent, path)
        assert stages_of(path)


@pytest.mark.parametrize("verdict", ["equivalent", "survivor"])
def test_every_judged_mutant_is_one(verdict: str) -> None:
    made = {key(mutant) for path in sources(TESTS.parent) for mutant in mutants(TESTS.parent, path)}
    assert not reasons(verdict).keys() - made
