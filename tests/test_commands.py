"""`python -m dynk`: doctor and check."""

import json

import numpy as np
import pytest

from dynk.__main__ import main
from dynk._operator import operators
from dynk.commands import check, doctor


def test_doctor_prints_json_with_a_reason_for_every_missing_backend(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [b["name"] for b in report["backends"]] == ["cpu", "cupy", "numba-cuda", "reference"]
    assert all(b["reason"] is None or len(b["reason"]) > 5 for b in report["backends"])
    assert report["versions"]["numpy"] == np.__version__
    assert set(report["machine"]) == {"system", "processor", "SIMD", "threads", "threading layer", "CUDA"}


def test_doctor_prints_a_table(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "threading layer" in printed
    assert "numba-cuda" in printed


def test_simd_names_the_widest():
    assert doctor.simd({"sse2": True, "avx2": True, "avx512f": False}) == "AVX2 (256 bit)"
    assert doctor.simd({}) == "unknown"


def test_check_agrees_on_every_backend_here(capsys):
    assert main(["check", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["operator"] for row in rows} == set(operators())
    assert all(row["failure"] is None and row["calls"] > 0 for row in rows)


def test_check_reports_a_wrong_kernel(capsys, monkeypatch):
    from dynk.kernels.common import run_reference

    honest = run_reference.run

    def wrong(op, direction, plan, inputs, outputs, device, stream):
        honest(op, direction, plan, inputs, outputs, device, stream)
        outputs[0][...] = 0

    monkeypatch.setattr(run_reference, "run", wrong)
    row = check.check(operators()["ddf"], "reference", "float32", seed=0)
    assert row.failure is not None
    assert "elements of float32" in row.failure


def test_unknown_argument_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--nonsense"])
    assert "--nonsense" in capsys.readouterr().err
