"""Calls from many threads, from children of a fork and from workers: every operator.

What other files hold already is not repeated here: one operator from eight threads and after a fork on every threading
layer, core calls in workers of a DataLoader, an installation that cannot be written to, and every kernel without the
compiler and with its checks of bounds (test_cpu_kernels.py); threads through dynk_torch with one operator
(test_torch.py) and through jit (test_jax.py). The tests here take all of `operators()`, different ones at the same
time, and compare bit by bit with what a single thread computes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import dynk
from dynk._operator import operators

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
jax = pytest.importorskip("jax", reason="JAX is not installed")

ROOT = Path(dynk.__file__).parents[1]

# The sample calls of all operators, forward and backward, as functions that return the bytes of all results. Every
# process that is to agree makes the same arrays.
SAMPLES = """
import hashlib, os, random, sys, threading
import numpy as np
import dynk
from dynk._operator import operators
from dynk.testing import rounded, sample_calls

def digest(results):
    results = results if isinstance(results, tuple) else (results,)
    both = hashlib.sha256()
    for result in results:
        both.update(b"None" if result is None else np.ascontiguousarray(np.asarray(result)).tobytes())
    return both.hexdigest()

def make_jobs():
    jobs = {}
    for op in operators().values():
        rng = np.random.default_rng(0)
        for i, call in enumerate(sample_calls(op, "float32", rng)):
            grad_out = rounded(rng.standard_normal(call.plan.out_shape), "float32")
            jobs[op.name, i, "forward"] = call.forward
            jobs[op.name, i, "backward"] = lambda call=call, grad_out=grad_out: call.backward(grad_out)
    return jobs

JOBS = make_jobs()

def everything():
    return {name: digest(job()) for name, job in JOBS.items()}
"""

# `in_threads` makes eight threads run COUNT jobs each, in an order of their own.
THREADS = """
def work(seed, barrier, failures):
    try:
        names = random.Random(seed).choices(list(JOBS), k=COUNT)
        barrier.wait()
        failures += [name for name in names if digest(JOBS[name]()) != ALONE[name]]
    except BaseException as error:
        failures.append(repr(error))

def in_threads():
    failures, barrier = [], threading.Barrier(8)
    threads = [threading.Thread(target=work, args=(seed, barrier, failures)) for seed in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures
"""


def run(code: str, *arguments: str, timeout: float = 600, **environment: str) -> str:
    """Run Python code in a new process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def environment_of(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **changes}


def test_different_operators_in_eight_threads_at_once() -> None:
    """And in eight threads of a forked child, whose parent goes on."""
    code = """
        ALONE, COUNT = everything(), 100
        in_threads()
        if hasattr(os, "fork"):
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of a fork of threads
            pid = os.fork()
            if pid == 0:
                in_child()
            _, status = os.waitpid(pid, 0)
            assert status == 0, status
            in_threads()
        print(sorted({name for name, *_ in JOBS}))
        """
    child = """
        import warnings

        def in_child():
            status = 1
            try:
                in_threads()
                assert everything() == ALONE
                status = 0
            finally:
                os._exit(status)
        """
    source = SAMPLES + THREADS + textwrap.dedent(child) + textwrap.dedent(code)
    # TBB may say before the fork that it could not join its threads; its users need not care.
    assert run(source, NUMBA_NUM_THREADS="2").splitlines()[-1] == str(sorted(operators()))


# ---- DataLoader workers ----------------------------------------------------------------------------------------------

LOADER = """
import torch
import dynk_torch

def torch_jobs():
    jobs = {}
    for op in operators().values():
        rng = np.random.default_rng(0)
        for i, call in enumerate(sample_calls(op, "float32", rng)):
            jobs[op.name, i] = call.op, [None if a is None else torch.from_numpy(a) for a in call.arrays], call.options
    return list(jobs.values())

CALLS = torch_jobs()

def forward_and_backward(index):
    op, tensors, options = CALLS[index]
    torch.manual_seed(index)  # gumbel_softmax draws a seed where none is given
    tensors = [
        t if t is None or not t.is_floating_point() else t.clone().requires_grad_() for t in tensors
    ]
    out = getattr(dynk_torch, op.name)(**dict(zip(op.arrays, tensors)), **options)
    out.backward(torch.ones_like(out))
    return digest((out.detach(), *(None if t is None else t.grad for t in tensors)))

class Digests(torch.utils.data.Dataset):
    def __len__(self):
        return len(CALLS)

    def __getitem__(self, index):
        return forward_and_backward(index)

if __name__ == "__main__":
    alone = [forward_and_backward(index) for index in range(len(CALLS))]
    for method in sys.argv[1:]:
        loader = torch.utils.data.DataLoader(
            Digests(), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=100
        )
        assert list(loader) == alone, method
    print(len(alone))
"""


def test_every_operator_in_data_loader_workers_through_dynk_torch(tmp_path: Path) -> None:
    """Workers forked from a parent that has used its threads, and spawned ones, which start anew."""
    script = tmp_path / "loader.py"
    script.write_text(SAMPLES + LOADER)
    methods = ["fork", "spawn"] if hasattr(os, "fork") else ["spawn"]
    done = subprocess.run(
        [sys.executable, str(script), *methods],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == sum(len(op.samples) for op in operators().values())


# ---- pytest-xdist ----------------------------------------------------------------------------------------------------

XDIST = """
import os

import pytest

CALLED = everything()

@pytest.mark.parametrize("round", range(6))
def test_results(round, tmp_path_factory):
    assert everything() == CALLED
    shared = tmp_path_factory.getbasetemp().parent
    (shared / f"{os.environ['PYTEST_XDIST_WORKER']}.digests").write_text(repr(CALLED))
    for other in shared.glob("*.digests"):
        assert other.read_text() in ("", repr(CALLED))
"""


def test_workers_of_pytest_xdist(tmp_path: Path) -> None:
    """Two processes that start at once share a cache of compiled code, which neither has filled."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (tmp_path / "test_inner.py").write_text(SAMPLES.replace('"float32"', '"float64"') + XDIST)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            str(tmp_path / "base"),
        ],
        cwd=tmp_path,
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout


# ---- JAX -------------------------------------------------------------------------------------------------------------


def test_every_operator_inside_jit_from_eight_threads() -> None:
    """Threads trace, lower and compile at once: from the first call on, and each job anew every time."""
    code = """
        from concurrent.futures import ThreadPoolExecutor
        import jax, dynk_jax
        jax.config.update("jax_enable_x64", True)  # some samples hold int64

        def gradient(call):
            floats = [i for i, a in enumerate(call.arrays) if a is not None and a.dtype.kind == "f"]

            def loss(*given):
                arrays = list(call.arrays)
                for i, a in zip(floats, given):
                    arrays[i] = a
                out = getattr(dynk_jax, call.op.name)(**dict(zip(call.op.arrays, arrays)), **call.options)
                return (out * out).sum(), out

            compiled = jax.jit(jax.value_and_grad(loss, tuple(range(len(floats))), has_aux=True))
            (_, out), gradients = compiled(*(call.arrays[i] for i in floats))
            return out, *gradients

        JOBS = {
            (op.name, i): lambda call=call: gradient(call)
            for op in operators().values()
            for i, call in enumerate(sample_calls(op, "float32", np.random.default_rng(0)))
        }
        with ThreadPoolExecutor(8) as pool:
            FIRST = dict(zip(JOBS, pool.map(lambda name: digest(JOBS[name]()), JOBS)))
        ALONE, COUNT = everything(), 4
        assert FIRST == ALONE
        in_threads()
        print(sorted({name for name, *_ in JOBS}))
        """
    assert run(SAMPLES + THREADS + textwrap.dedent(code), JAX_PLATFORMS="cpu") == f"{sorted(operators())}\n"
