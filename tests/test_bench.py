"""`python -m dynk bench`: no time of a wrong result, and honest samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch_cases import ignore_torch_jit, needs_compiler

import dynk
from bench import check, decoupled, limits, peers, registry, run, special, timing
from bench.devices import Cpu, Cuda
from bench.peers import contenders
from bench.registry import Call, Case, Contender, Problem
from bench.timing import Samples
from dynk import testing

TINY = Case("ddf", "tiny", "1x4x8x8, k = 3", ((1, 4, 8, 8), (1, 1, 3, 3, 8, 8), (1, 4, 3, 3)))
LARGER = [
    Case("ddf", "larger", "", ((2, 12, 9, 7), (2, 1, 3, 3, 9, 7), (2, 12, 3, 3))),
    Case("ddf", "even kernel", "", ((1, 8, 9, 7), (1, 1, 4, 2, 9, 7), (1, 8, 4, 2))),
    Case("ddf_upsample", "larger", "", ((2, 9, 7, 5), (2, 1, 2, 2, 3, 3, 7, 5), (2, 9, 2, 2, 3, 3)), {"scale": 2}),
]
NAMES = {
    "dynk, preallocated",
    "dynk, allocating",
    "PyTorch eager",
    "torch.compile",
    "jax.jit",
    "PyTorch depth-wise, NCHW",
    "PyTorch depth-wise, NHWC",
}
LIMITS = {"undisturbed": True, "copy_GBs": {"2": 4.0, "16": 2.0}, "matmul_GFLOPs": 1.0}


def problem(case: Case = TINY, direction: str = "forward") -> Problem:
    return Problem.draw(case, direction, np.random.default_rng(0))


# ---- no time of a wrong result ---------------------------------------------------------------------------------------


@ignore_torch_jit
@needs_compiler
@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_a_row_checks_and_times_every_contender(direction):
    rng = np.random.default_rng(0)
    found = run.measure(problem(TINY, direction), Cpu(), rng, LIMITS, rounds=2, budget=0.5, with_peers=True)
    assert set(found["contenders"]) == NAMES
    assert all(result["median_ms"] > 0 for result in found["contenders"].values())
    assert set(found["contenders"]["PyTorch eager"]["formulations_ms"]) == {"shifts", "unfold"}
    assert found["memory_limit_ms"] == pytest.approx(TINY.bytes_moved(direction) / 4e6)


@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_a_wrong_contender_is_never_timed(monkeypatch, direction):
    def off_by_one_element(results):
        results = tuple(np.array(result) for result in results)
        results[-1].reshape(-1)[-1] += 0.01
        return results

    def planted(problem):
        honest = contenders(problem)[0].formulations[""]
        return [Contender("a liar", {"": Call(lambda state: off_by_one_element(honest.run(state)))})]

    def no_clock(*arguments, **keywords):
        pytest.fail("a wrong result was timed")

    monkeypatch.setattr(run, "peers", planted)
    monkeypatch.setattr(run, "interleave", no_clock)
    monkeypatch.setattr(Cpu, "clock", no_clock)
    with pytest.raises(AssertionError, match="a liar"):
        run.measure(
            problem(TINY, direction), Cpu(), np.random.default_rng(0), LIMITS, rounds=2, budget=0.5, with_peers=True
        )


def test_a_result_of_another_shape_is_refused():
    liar = Contender("a liar", {"": Call(lambda _: (np.zeros((1, 1, 8, 8), np.float32),))})
    with pytest.raises(AssertionError, match=r"a liar.*shape"):
        check.verify(problem(), [liar], np.random.default_rng(0))


@pytest.mark.parametrize("direction", registry.DIRECTIONS)
@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.operator}-{case.label}")
def test_windows_hold_the_results_of_the_whole(monkeypatch, case, direction):
    given = problem(case, direction)
    call = testing.Call(case.op, given.arrays, case.options)
    if direction == "forward":
        whole = {"out": call.expected_forward()[0]}
    else:
        whole = dict(zip(case.op.arrays, call.expected_backward(given.grad_out)[0], strict=True))
    monkeypatch.setattr(check, "WHOLE", 0)
    seen = {name: np.zeros(shape, bool) for name, shape in given.results.items()}
    for window in check._windows(given, np.random.default_rng(0)):
        for name, at, values, _ in check._expected(given, window):
            np.testing.assert_allclose(values, whole[name][at], rtol=1e-12, atol=1e-12)
            seen[name][at] = True
    assert all(places.any() for places in seen.values())
    assert all(places.reshape(-1)[[0, -1]].all() for places in seen.values())
    check.verify(given, contenders(given), np.random.default_rng(0))


@pytest.mark.parametrize("case", registry.cases(), ids=lambda case: f"{case.operator}-{case.size}-{case.dtype}")
@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_every_case_has_a_check(case, direction):
    drawn = Problem(case, direction, tuple(None if s is None else np.empty(s, np.float32) for s in case.shapes),
                    np.empty(case.plan.out_shape, np.float32))  # fmt: skip
    checked = {name for window in check._windows(drawn, np.random.default_rng(0)) for name in window.results}
    assert checked >= set(drawn.results)


def test_a_peer_in_a_half_type_is_still_held_to_a_bound():
    given = problem(Case("ddf", "half", "", TINY.shapes, dtype="bfloat16"))
    honest = contenders(given)[0].formulations[""]
    check.verify(given, [Contender("a peer", {"": honest})], np.random.default_rng(0))
    doubled = Call(lambda state: (honest.run(state)[0] * np.asarray(2, given.grad_out.dtype),))
    with pytest.raises(AssertionError, match="a peer"):
        check.verify(given, [Contender("a peer", {"": doubled})], np.random.default_rng(0))


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_of_a_busy_machine_are_counted_apart(monkeypatch):
    ticks = itertools.count(0, 10**8)  # every look at the pressure finds 100 s of waiting
    monkeypatch.setattr(timing, "pressure", lambda: next(ticks))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    samples = timing.interleave({"a": Call(lambda _: ())}, clock=Cpu().clock, rounds=2)
    assert samples["a"].clean == []
    assert len(samples["a"].rejected) == 6
    assert samples["a"].summary()["rejected"] == 6


def test_only_the_disturbed_sample_is_rejected(monkeypatch):
    looks = itertools.chain([0, 0, 0, 10**7, 10**7], itertools.repeat(10**7))
    monkeypatch.setattr(timing, "pressure", lambda: next(looks))
    times = iter([0.0, 7.0, 1.0, 7.0, 50.0, 7.0, 2.0, 7.0, 3.0])  # the first tells how often to repeat, the 7s warm up
    samples = timing.interleave({"a": Call(lambda _: ())}, clock=lambda call, repeats: next(times), rounds=3)["a"]
    assert (samples.clean, samples.rejected) == ([1.0, 2.0, 3.0], [50.0])
    assert samples.summary()["median_ms"] == 2000


def test_a_slow_contender_is_sampled_three_times(monkeypatch):
    monkeypatch.setattr(timing, "pressure", lambda: 0)
    now = itertools.count(0.0, 10.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    samples = timing.interleave({"a": Call(lambda _: ())}, clock=lambda call, repeats: 1.0, rounds=9, budget_s=5)
    assert len(samples["a"].clean) == 3


def test_preparation_is_off_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bench.devices.time.perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds
        return ()

    assert Cpu().clock(Call(lambda _: spend(2.0), lambda: spend(100.0)), 3) == 2.0


def test_extra_memory_is_that_of_the_result():
    extra = Cpu().extra_bytes(Call(lambda _: (np.ones(2**23),)))
    assert extra is None or 2**26 <= extra < 1.2 * 2**26


# ---- CUDA ------------------------------------------------------------------------------------------------------------


def test_the_cuda_clock_sees_the_run_alone(monkeypatch):
    """Nothing but `run` may stand between the two events, and the cache is emptied before the first."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            assert log[-1] == "synchronise"
            return 3.0

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: log.append("synchronise"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "GPU 9")
    cuda = Cuda.__new__(Cuda)
    cuda._torch = torch
    cuda._flush = type("Flush", (), {"zero_": lambda self: log.append("flush")})()
    call = Call(lambda _: log.append("run"), lambda: log.append("prepare"))
    assert cuda.clock(call, 2) == pytest.approx(0.003)
    assert log == ["prepare", "flush", "event", "run", "event"] * 2 + ["synchronise"]
    assert cuda.name({}) == "GPU 9"


@ignore_torch_jit
@needs_compiler
@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_contenders_for_cuda_agree_on_tensors(monkeypatch, direction):
    """All that a CUDA row does but for the device: both backends of dynk and the peers, on tensors, checked."""
    cpu = dynk.backends()[0]
    backends = [cpu._replace(device="cuda"), cpu._replace(device="cuda", name="reference")]
    monkeypatch.setattr(dynk, "backends", lambda: backends)
    on_the_cpu = peers.tensor
    for module in (peers, decoupled):
        monkeypatch.setattr(module, "tensor", lambda array, device: on_the_cpu(array, "cpu"))
    given = Problem.draw(TINY, direction, np.random.default_rng(0), "cuda")
    entered = contenders(given) + peers.peers(given)
    names = [contender.name for contender in entered]
    assert names[:4] == ["dynk, preallocated", "dynk, allocating", "dynk reference, preallocated",
                         "dynk reference, allocating"]  # fmt: skip
    assert "jax.jit" not in names
    assert ("cuDNN depth-wise, NHWC" in names) == (direction == "forward")
    check.verify(given, entered, np.random.default_rng(0))


@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_kernels_move_at_least_every_array_once(direction):
    found = run.moved_by_kernels(TINY, direction, bandwidth=2.0)
    assert sum(found["kernels_bytes"].values()) >= TINY.bytes_moved(direction)
    assert found["kernels_limit_ms"] == sum(found["kernels_bytes"].values()) / 2e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device")
@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_a_row_on_a_gpu(direction):
    device = Cuda()
    given = Problem.draw(TINY, direction, np.random.default_rng(0), "cuda")
    found = run.measure(given, device, np.random.default_rng(0), LIMITS, rounds=2, budget=0.5, with_peers=True)
    assert all(result["median_ms"] > 0 for result in found["contenders"].values())
    assert all(result["extra_MB"] < 64 for result in found["contenders"].values())
    measured = limits.measure(device)
    assert measured["matmul_GFLOPs"] > 0
    assert special.overhead(device, direction, rounds=2)["contenders"]["dynk, preallocated"]["median_ms"] > 0


# ---- limits and special rows -----------------------------------------------------------------------------------------


def test_bytes_moved_counts_arguments_and_results_once():
    arguments = 4 * 64 + 9 * 64 + 4 * 9
    assert TINY.bytes_moved("forward") == 4 * (arguments + 256)
    assert TINY.bytes_moved("backward") == 4 * (2 * arguments + 256)


def test_operations_count_every_tap():
    assert registry.operations(TINY, "forward") == 3 * 9 * 256


def test_the_limit_is_a_copy_of_no_more_than_the_case_moves():
    assert limits.copy_bandwidth(LIMITS, 2**20) == (4.0, "2")
    assert limits.copy_bandwidth(LIMITS, 15 * 2**20) == (4.0, "2")
    assert limits.copy_bandwidth(LIMITS, 2**30) == (2.0, "16")


def test_limits_are_those_of_the_best_sample_and_the_faster_way(monkeypatch):
    times = {
        "PyTorch 2": [2e-3, 1e-3],
        "Numba 2": [3e-3] * 3,
        "past caches 2": [4e-3] * 3,
        "PyTorch product": [1.0] * 3,
        "NumPy product": [2.0] * 3,
    }
    monkeypatch.setattr(limits, "_CPU_SIZES", (2,))
    monkeypatch.setattr(limits, "interleave", lambda calls, clock: {name: Samples(times[name]) for name in calls})
    assert limits.measure(Cpu()) == {
        "undisturbed": False,
        "copy_GBs": {"2": pytest.approx(2 * 2**20 / 1e6)},
        "matmul_GFLOPs": pytest.approx(2 * 2048**3 / 1e9),
    }


@ignore_torch_jit
@pytest.mark.parametrize("direction", registry.DIRECTIONS)
def test_overhead_row_has_the_kernel_beside_the_public_call(direction):
    found = special.overhead(Cpu(), direction, rounds=2)["contenders"]
    assert {"dynk, preallocated", "dynk, allocating", "kernel alone"} <= set(found)


def test_first_call_compiles_once(tmp_path):
    """A process with a full cache is faster than one that compiles, so the row measures what it says."""
    found = special.first_call(Cpu(), TINY_NORM, "forward", rounds=1)["contenders"]
    assert found["full cache"]["median_ms"] < found["empty cache"]["median_ms"]


TINY_NORM = next(case for case in registry.cases() if case.operator == "filter_norm")
