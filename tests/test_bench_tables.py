"""`python -m dynk bench`: the command, and tables that say what the results say."""

from __future__ import annotations

import json

import pytest

from bench import limits, run, show, special
from bench.registry import Case
from bench.timing import Samples
from dynk.__main__ import main
from dynk._operator import operators

TINY = Case("ddf", "tiny", "1x4x8x8, k = 3", ((1, 4, 8, 8), (1, 1, 3, 3, 8, 8), (1, 4, 3, 3)))
LIMITS = {"undisturbed": True, "copy_GBs": {"2": 4.0, "16": 2.0}, "matmul_GFLOPs": 1.0}
TIMES = {
    "dynk, preallocated": 2.0,
    "dynk, allocating": 4.0,
    "PyTorch eager": 20.0,
    "torch.compile": 12.0,
    "jax.jit": 10.0,
    "PyTorch depth-wise, NCHW": 16.0,
    "PyTorch depth-wise, NHWC": 6.0,
}


def row(names: dict[str, float], **details: object) -> show.Row:
    """Return a row as `measure` does, of made-up milliseconds."""
    samples = {name: Samples([ms / 1e3] * 3) for name, ms in names.items()}
    found = special.row_of(TINY, "forward", samples, memory_limit_ms=1.0, arithmetic_limit_ms=0.5, **details)
    for name, result in found["contenders"].items():
        result["extra_MB"] = 3.0
        result["yardstick"] = "depth-wise" in name
    return found


def report(rows: list[show.Row]) -> dict[str, object]:
    device = {"name": "cpu", "kind": "cpu", "model": "Model 1", "processor": "p", "SIMD": "512 bit", "threads": 2}
    versions = {"dynk": "1", "torch": "2", "jax": "3"}
    return {
        "device": device, "versions": versions, "date": "2026-01-01", "limits": LIMITS, "complete": True, "rows": rows
    }  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------------------


def printed(table) -> str:
    console = show.console(stderr=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_table_shows_the_ratio_to_an_earlier_run():
    now = row(TIMES)
    before = {"rows": [row(TIMES | {"jax.jit": 5.0})]}
    assert show.ratio(before, now, "jax.jit") == "2.00"
    assert show.ratio(before, now | {"size": "another"}, "jax.jit") == "new"
    text = printed(show.table(now, before))
    assert "to earlier" in text
    assert "2.00" in text
    assert "to earlier" not in printed(show.table(now))


def test_table_of_a_first_call_has_neither_limit_nor_ratio():
    text = printed(show.table(special.row_of(TINY, "forward", {"empty cache": Samples([4.5])})))
    assert "4.5 s" in text
    assert "of copying" not in text


def test_readme_names_the_machine_and_shows_ratios():
    block = show.readme_block([report([row(TIMES), special.row_of(TINY, "forward", {})])])
    assert "Model 1" in block
    cells = [cell.strip() for cell in block.strip().splitlines()[-1].split("|")[1:-1]]
    assert cells == [
        "`ddf` 1x4x8x8, k = 3: tiny", "10.0 (5.0)", "6.0 (3.0)", "5.0 (2.5)", "3.0 (1.5)", "50%", "3 / 3 MB"
    ]  # fmt: skip


def test_readme_marks_what_rests_on_disturbed_samples():
    found = row(TIMES)
    found["contenders"]["jax.jit"]["clean"] = 2
    line = show.readme_block([report([found])]).strip().splitlines()[-1]
    assert "≈ 5.0 (2.5)" in line
    assert line.count("≈") == 1
    assert "≈ copy" in show.readme_block([report([found]) | {"limits": LIMITS | {"undisturbed": False}}])


def test_readme_shows_absolute_times_of_a_gpu():
    gpu = report(
        [
            row(
                {
                    "dynk, preallocated": 0.1,
                    "dynk, allocating": 0.2,
                    "cuDNN depth-wise, NCHW": 0.4,
                    "PyTorch depth-wise, NHWC": 0.3,
                }
            )
        ]
    )
    gpu["device"] = {"name": "GPU 9", "kind": "cuda", "model": "GPU 9", "compute capability": "9.0"}
    block = show.readme_block([gpu])
    assert "GPU 9" in block
    assert "| 100 |" in block
    assert "3.0 (1.5)" in block


def test_readme_says_what_the_results_say():
    assert show.block_of(show.README.read_text()) == show.readme_block(show.load())


@pytest.mark.parametrize("held", ["", "\n| an earlier | table |\n"])
def test_a_block_takes_the_place_of_what_is_between_the_markers(held):
    text = f"before\n{show.BEGIN}{held}{show.END}after\n"
    assert show.with_block(text, "\nnew\n") == f"before\n{show.BEGIN}\nnew\n{show.END}after\n"


def test_readme_is_written_from_the_complete_results(monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{show.BEGIN}old\n{show.END}after\n")
    (tmp_path / "a.json").write_text(json.dumps(report([row(TIMES)])))
    (tmp_path / "b.json").write_text(json.dumps(report([row(TIMES)]) | {"complete": False}))
    (tmp_path / "soak-c.json").write_text(json.dumps({"cases": 1}))
    monkeypatch.setattr(show, "README", readme)
    monkeypatch.setattr(show, "RESULTS", tmp_path)
    assert main(["bench", "--readme"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("Model 1") == 1
    assert main(["bench", "--readme"]) == 0
    assert readme.read_text() == text


# ---- the command -----------------------------------------------------------------------------------------------------


def test_bench_saves_after_every_row(monkeypatch, tmp_path, capsys):
    path = tmp_path / "result.json"
    before = []

    def measured(problem, *arguments, **keywords):
        before.append(len(json.loads(path.read_text())["rows"]) if path.exists() else 0)
        return row(TIMES)

    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(limits, "measure", lambda device: LIMITS)
    arguments = ["bench", "--device", "cpu", "--only", "spatial filters", "--output", str(path), "--json"]
    assert main(arguments) == 0
    assert before == [0, 1]
    saved = json.loads(path.read_text())
    assert saved == json.loads(capsys.readouterr().out)
    assert not saved["complete"]  # not all rows
    assert saved["device"]["kind"] == "cpu"


def test_bench_compares_with_an_earlier_result(monkeypatch, tmp_path, capsys):
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(report([row(TIMES | {"jax.jit": 2.5})])))
    monkeypatch.setattr(run, "measure", lambda *arguments, **keywords: row(TIMES))
    monkeypatch.setattr(limits, "measure", lambda device: LIMITS)
    assert main(["bench", "--device", "cpu", "--only", "spatial filters", "--compare", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "to earlier" in printed
    assert next(line for line in printed.splitlines() if "jax.jit" in line).rstrip(" │").endswith("4.00")


def test_bench_lists_its_rows(capsys):
    assert main(["bench", "--list", "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(set(rows))
    assert {row.split()[0] for row in rows} == set(operators())
