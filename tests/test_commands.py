"""`python -m dynk`: doctor, check and the pieces of bench."""

import json

import numpy as np
import pytest
from torch_cases import ignore_torch_jit, needs_compiler

from bench import registry, run, timing
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


CASE = registry.Case("ddf", "tiny", ((1, 4, 8, 8), (1, 1, 3, 3, 8, 8), (1, 4, 3, 3)))


@ignore_torch_jit
@needs_compiler
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bench_row_checks_and_times_every_peer(direction):
    rng = np.random.default_rng(0)
    limit = {"copy_memory_GBs": 1.0, "copy_cache_GBs": 1.0}
    row = run.measure(CASE, direction, rng, limit, rounds=2, budget=2.0, with_peers=True)
    assert {"dynk, preallocated", "dynk, allocating", "PyTorch eager", "torch.compile", "jax.jit"} <= set(
        row["contenders"]
    )
    assert all(result["median_ms"] > 0 for result in row["contenders"].values())
    assert row["bytes_moved"] == CASE.bytes_moved(direction)


def test_bench_refuses_to_time_a_wrong_result():
    rng = np.random.default_rng(0)
    arrays = CASE.arrays(rng)
    grad_out = np.zeros(CASE.plan.out_shape, np.float32)
    with pytest.raises(AssertionError, match="a liar"):
        run.verify(CASE, "forward", arrays, grad_out, {"a liar": lambda: (np.ones((1, 4, 8, 8), np.float32),)})


def test_bytes_moved_counts_arguments_and_results_once():
    arguments = 4 * 64 + 9 * 64 + 4 * 9
    assert CASE.bytes_moved("forward") == 4 * (arguments + 256)
    assert CASE.bytes_moved("backward") == 4 * (2 * arguments + 256)


def test_interleave_keeps_clean_samples_apart(monkeypatch):
    ticks = iter(range(0, 10**9, 10**8))  # every look at the pressure finds 100 s of waiting
    monkeypatch.setattr(timing, "_pressure", lambda: next(ticks))
    samples = timing.interleave({"a": lambda: None}, rounds=3, budget_s=0.25)
    assert samples["a"].clean == []
    assert samples["a"].rejected


def test_overhead_row_has_the_kernel_beside_the_public_call():
    row = run.overhead(rounds=2)
    assert set(row["contenders"]) == {"dynk, preallocated", "dynk, allocating", "kernel alone"}
