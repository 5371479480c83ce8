"""The CPU backend beyond its equations: rounding, the code cache, threads, forks and Numba's debugging modes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numba
import numpy as np
import pytest

import dynk
from dynk._operator import FAMILIES, operators
from dynk.kernels.common import numeric
from dynk.kernels.common.compile import kernel

PACKAGE = Path(dynk.__file__).parent
HALF = {"float16": (np.int16, np.dtype(np.float16)), "bfloat16": (np.uint16, np.dtype(ml_dtypes.bfloat16))}

# Compiles in half the time, to code that is not fast; only with a cache folder of its own or with none.
QUICK = {"NUMBA_OPT": "1", "NUMBA_LOOP_VECTORIZE": "0"}
each_family = pytest.mark.parametrize("family", FAMILIES)
# What a subprocess runs: the sample calls of all operators of a family, which reach every kernel.
SAMPLES = """
import numpy as np
from dynk._operator import operators
from dynk.testing import assert_close, rounded, sample_calls
for op in operators().values():
    rng = np.random.default_rng(0)
    for call in sample_calls(op, dtype, rng) if op.family == family else ():
        assert_close(call.forward(backend="cpu"), *call.expected_forward())
        grad_out = rounded(rng.standard_normal(call.plan.out_shape), dtype)
        gradients = call.backward(grad_out, backend="cpu")
        for gradient, want, magnitude in zip(gradients, *call.expected_backward(grad_out), strict=True):
            assert (gradient is None) == (want is None)
            if want is not None:
                assert_close(gradient, want, magnitude)
"""
# One small call whose result is known, and the same with gradients.
CALL = """
import numpy as np, dynk
x, filters = np.ones((2, 3, 6, 5), np.float32), np.ones((2, 3, 3, 3), np.float32)
expected = np.outer([2, 3, 3, 3, 3, 2], [2, 3, 3, 3, 2])
def call():
    assert (dynk.ddf(x, None, filters) == expected).all()
"""


def run_samples(family: str, dtype: str, **environment: str) -> None:
    run(f"family, dtype = {family!r}, {dtype!r}\n{SAMPLES}", **environment)


def run(code: str, folder: Path | None = None, **environment: str) -> str:
    """Run Python code in a new process and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder or PACKAGE.parent,  # which Python imports from first
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ---- rounding --------------------------------------------------------------------------------------------------------


@kernel
def _load_all(storage, values):
    for i in numba.prange(storage.size):
        values[i] = numeric.load(storage, i)


@kernel
def _store_all(values, storage):
    for i in numba.prange(values.size):
        numeric.store(storage, i, values[i])


def _compiled_and_plain(function, *arrays):
    """Return the last array as filled by the compiled function and by the function in plain Python."""
    for run_it in (function, function.py_func):
        result = np.zeros_like(arrays[-1])
        with np.errstate(all="ignore"):
            run_it(*arrays[:-1], result)
        yield result


@pytest.mark.parametrize("name", HALF)
def test_every_half_pattern_loads_exactly(name):
    storage, dtype = HALF[name]
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = bits.view(dtype).astype(np.float32)
    for values in _compiled_and_plain(_load_all, bits.view(storage), np.empty(bits.size, np.float32)):
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(np.signbit(values), np.signbit(expected))


@pytest.mark.parametrize("name", HALF)
def test_every_half_pattern_survives_a_round_trip(name):
    storage, dtype = HALF[name]
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(dtype).astype(np.float32)
    for stored in _compiled_and_plain(_store_all, values, np.empty(bits.size, storage)):
        nan = np.isnan(values)
        np.testing.assert_array_equal(stored.view(np.uint16)[~nan], bits[~nan])
        assert np.isnan(stored.view(dtype)[nan].astype(np.float32)).all()


@pytest.mark.parametrize("name", HALF)
def test_stores_round_to_nearest_even(name):
    storage, dtype = HALF[name]
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 1 << 32, 20_000, np.uint32).view(np.float32)
    # The midpoints between neighbours, where ties go to even, and the values next to them.
    exact = np.arange(1 << 15, dtype=np.uint16).view(dtype).astype(np.float32)[::7]
    finite = exact[np.isfinite(exact)]
    middle = (finite[:-1] + (finite[1:] - finite[:-1]) / 2).astype(np.float32)
    ties = finite + np.spacing(finite.astype(dtype)).astype(np.float32) / 2
    values = np.concatenate([anything, middle, ties, np.nextafter(ties, np.float32(0)), -ties])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(dtype)
    number = ~np.isnan(values)
    for stored in _compiled_and_plain(_store_all, values, np.empty(values.size, storage)):
        np.testing.assert_array_equal(stored.view(np.uint16)[number], expected.view(np.uint16)[number])
        assert np.isnan(stored.view(dtype)[~number].astype(np.float32)).all()


# ---- vectors ---------------------------------------------------------------------------------------------------------

# What a processor's multiply-add of a vector of float32 looks like.
FUSED = {"x86_64": r"vfn?m(?:add|sub)\d+ps\s[^\n]*%[yz]mm", "aarch64": r"fml[as]\s+v\d+\.4s"}
COUNT_FUSED = """
import re, numba, numpy as np
from dynk.kernels.decoupled import cpu
array = numba.types.Array(numba.types.float32, 1, "C")
kernels = cpu.ddf_nine_forward, cpu.ddf_rows_forward, cpu.ddf_nine_backward, cpu.ddf_rows_backward
for kernel, count in zip(kernels, (4, 4, 7, 7)):
    signature = (array,) * count + (numba.types.int64[::1], numba.types.float64[::1])
    kernel.compile(signature)
    print(len(re.findall(PATTERN, kernel.inspect_asm(signature))))
"""


def test_kernels_multiply_and_add_whole_vectors(tmp_path):
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if machine not in FUSED:
        pytest.skip(f"the instructions of {machine} are not known here")
    features = numba.core.codegen.get_host_cpu_features()
    if machine == "x86_64" and "+fma" not in features:
        pytest.skip("this processor has no fused multiply-add")
    # Compiled anew: Numba keeps no assembly with what it takes from its cache.
    code = f"PATTERN = {FUSED[machine]!r}\n{COUNT_FUSED}"
    forward_nine, forward_rows, backward_nine, backward_rows = map(
        int, run(code, NUMBA_CACHE_DIR=str(tmp_path)).split()
    )
    # Four channels for each of nine taps, or of a row of 3 and of a row of 5; and those of the filters' gradients.
    assert forward_nine >= 4 * 9
    assert forward_rows >= 4 * (3 + 5)
    assert backward_nine >= 4 * 9 + 12
    assert backward_rows >= 4 * (3 + 5) + 12


LARGE = """
import numpy as np, dynk
from dynk._operator import operators
from dynk.kernels.common import vector
from dynk.testing import Call, assert_close, rounded
vector.STREAM_BYTES = -1  # every result counts as large
rng = np.random.default_rng(0)
for N, C, H, W in (1, 4, 1, 1), (1, 9, 3, 5), (2, 8, 7, 11), (1, 4, 16, 16), (1, 8, 13, 32), (2, 5, 20, 30):
    shapes = (N, C, H, W), (N, 1, 3, 3, H, W), (N, C, 3, 3)
    x, spatial, channel = (rounded(rng.standard_normal(shape), dtype) for shape in shapes)
    for number in 1.0, np.inf:  # where one sum is not finite, those around it are formed anew
        x[0, C // 2, H // 2, W // 2] = number
        call = Call(operators()["ddf"], (x, spatial, channel), {})
        expected, magnitude = call.expected_forward()
        for places in 0, 1, 3, 8, 15, 21:  # from the first line of the cache on
            room = np.full(places + x.size + 140, 7).astype(x.dtype)
            offset = -room.ctypes.data % 64 // x.itemsize + places
            out = room[offset : offset + x.size].reshape(x.shape)
            assert_close(call.forward(out=out, backend="cpu"), expected, magnitude)
            assert (room[:offset] == 7).all() and (room[offset + x.size :] == 7).all()
        grad_out = rounded(rng.standard_normal(x.shape), dtype)
        for gradient, want, bound in zip(call.backward(grad_out, backend="cpu"), *call.expected_backward(grad_out)):
            assert_close(gradient, want, bound)
"""


LARGE_GRADIENTS = """
import numpy as np, dynk
from dynk._operator import operators
from dynk.kernels.common import vector
from dynk.testing import Call, assert_close, rounded
vector.STREAM_BYTES = -1
rng = np.random.default_rng(0)
N, C, O, H, s, k = 2, 6, 7, 5, 3, 3
for W, attentions in (32, True), (21, True), (32, False), (21, False):
    shapes = (N, C, H, W), (N, O, C, H, W), (N, O, k, k, H, W), (N, O, s, s, H, W), (N, O, k, k, H, W)
    arrays = [rounded(rng.standard_normal(shape), dtype) for shape in shapes]
    if not attentions:
        arrays[3:] = None, None
    call = Call(operators()["ls_dfn"], tuple(arrays), {"samples": s, "sample_stride": 2})
    grad_out = rounded(rng.standard_normal((N, O, H, W)), dtype)
    expected, magnitudes = call.expected_backward(grad_out)
    for places in 0, 1, 8, 21:  # from the first line of the cache on
        rooms, grads = [], []
        for array in arrays:
            room = np.full(places + (0 if array is None else array.size) + 140, 7).astype(grad_out.dtype)
            offset = -room.ctypes.data % 64 // room.itemsize + places
            grad = None if array is None else room[offset : offset + array.size].reshape(array.shape)
            rooms.append((room, offset))
            grads.append(grad)
        call.backward(grad_out, grads=tuple(grads), backend="cpu")
        for grad, (room, offset), want, magnitude in zip(grads, rooms, expected, magnitudes):
            if grad is not None:
                assert_close(grad, want, magnitude)
                assert (room[:offset] == 7).all() and (room[offset + grad.size :] == 7).all()
"""


@pytest.mark.parametrize("code", [LARGE, LARGE_GRADIENTS], ids=["out", "grads"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_large_results_are_written_whole_wherever_they_begin(tmp_path, dtype, code):
    run(f"dtype = {dtype!r}\n{code}", NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path), **QUICK)


@each_family
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names a processor of this kind")
def test_right_on_a_processor_with_shorter_vectors(tmp_path, family):
    features = numba.core.codegen.get_host_cpu_features()
    if "+avx2" not in features:
        pytest.skip("this processor has no AVX2")
    haswell = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}
    run_samples(family, "float32", **haswell, NUMBA_CACHE_DIR=str(tmp_path))


# ---- threads and forks -----------------------------------------------------------------------------------------------

LAYERS = {
    "tbb": "tbb",
    "omp": "omp",
    "workqueue": "workqueue",
}
THREADS = """
import threading
failures = []
def repeat():
    try:
        for _ in range(50):
            call()
    except BaseException as error:
        failures.append(error)
callers = [threading.Thread(target=repeat) for _ in range(8)]
[t.start() for t in callers]
[t.join() for t in callers]
assert not failures, failures
"""
FORK = """
import os
pid = os.fork()
if pid == 0:
    call()
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
call()
"""


@pytest.fixture(params=LAYERS)
def layer(request):
    """Name a threading layer that this machine has."""
    code = "import numba; numba.get_num_threads(); print(numba.threading_layer())"
    if request.param == "tbb":
        code = "from dynk.kernels.common import threads; print(threads.layer())"
    available = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_THREADING_LAYER": LAYERS[request.param]},
        capture_output=True,
        text=True,
        check=False,
    )
    if available.stdout.strip() != request.param:
        pytest.skip(f"Numba has no {request.param} threads here")
    return request.param


def test_many_threads_and_a_fork_on_every_layer(layer):
    report = "from dynk.kernels.common import threads; print(threads.layer())"
    fork = FORK if hasattr(os, "fork") else ""
    printed = run(f"{CALL}call()\n{THREADS}\n{fork}\n{report}", NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert printed.split()[-1] == layer  # a forked TBB may print a warning before


def test_tbb_is_preferred_but_never_against_the_user():
    report = "from dynk.kernels.common import threads; print(threads.layer())"
    assert run(report, NUMBA_THREADING_LAYER="workqueue").split() == ["workqueue"]
    launched = f"import numba; numba.config.THREADING_LAYER = 'workqueue'; numba.get_num_threads(); {report}"
    assert run(launched).split() == ["workqueue"]


SHARED = f"""
{CALL}
import os, numba, torch
from dynk.kernels.common import threads
call()  # the first: it may start threads of its own
image, weight = torch.ones(8, 64, 28, 28), torch.ones(64, 64, 3, 3)
torch.nn.functional.conv2d(image, weight)
before = len(os.listdir("/proc/self/task"))
call()
started = len(os.listdir("/proc/self/task")) - before
counts = []
for count in (1, 2, 3):
    torch.set_num_threads(count)
    threads.call_shared(lambda: counts.append(numba.get_num_threads()), ())
print(threads.layer(), threads.mode(), started, counts, numba.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are shared on Linux")
def test_kernels_run_on_as_many_threads_of_torch_as_it_uses():
    pytest.importorskip("torch")
    assert run(SHARED, NUMBA_NUM_THREADS="2", OMP_NUM_THREADS="2").strip() == "omp shared 0 [1, 2, 2] 2"
    for settings in ({"NUMBA_THREADING_LAYER": "workqueue"}, {"NUMBA_THREADING_LAYER_PRIORITY": "workqueue omp tbb"}):
        report = "import torch; from dynk.kernels.common import threads; print(threads.layer())"
        assert run(report, **settings).split() == ["workqueue"]


LOADER = """
{call}
import sys
import torch
class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        call()
        return i
if __name__ == "__main__":
    call()
    loader = torch.utils.data.DataLoader(Images(), num_workers=2, multiprocessing_context=sys.argv[1], timeout=60)
    assert [int(i) for i in loader] == [0, 1, 2, 3]
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_calls_from_data_loader_workers(context, tmp_path):
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    script = tmp_path / "loader.py"
    script.write_text(LOADER.format(call=CALL))
    path = os.pathsep.join(p for p in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, str(script), context],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="plain Python makes no arrays of Numba's")
@pytest.mark.parametrize("name", operators())
def test_every_array_a_kernel_makes_is_freed(name):
    code = f"""
import numpy as np
from numba.core.runtime import _nrt_python, rtsys
from dynk._operator import operators
from dynk.testing import rounded, sample_calls

_nrt_python.memsys_enable_stats()
for call in sample_calls(operators()["{name}"], "float32", np.random.default_rng(0)):
    grad_out = rounded(np.ones(call.plan.out_shape), "float32")
    before = rtsys.get_allocation_stats()
    call.forward(), call.backward(grad_out)
    after = rtsys.get_allocation_stats()
    assert after.alloc - before.alloc == after.free - before.free
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free
print("freed")
"""
    assert run(code) == "freed\n"


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread only")
def test_results_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, spatial, channel = draw(2, 6, 70, 33), draw(2, 2, 3, 3, 70, 33), draw(2, 6, 3, 3)
    scale, shift = draw(1, 1, 3, 1, 1), draw(2, 1, 1, 1, 1)
    grads = draw(*x.shape), draw(*spatial.shape)
    results = []
    for count in (1, 2):
        numba.set_num_threads(count)
        try:
            results.append(
                (
                    dynk.ddf(x, spatial, channel),
                    *dynk.ddf_backward(grads[0], x, spatial, channel),
                    dynk.filter_norm(spatial, scale, shift, axes=(2, 3)),
                    *dynk.filter_norm_backward(grads[1], spatial, scale, shift, axes=(2, 3)),
                )
            )
        finally:
            numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


# ---- Numba's debugging modes -----------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kernel_runs_as_plain_python(family, dtype):
    run_samples(family, dtype, NUMBA_DISABLE_JIT="1")


@each_family
def test_no_kernel_reads_out_of_bounds(tmp_path, family):
    run_samples(family, "float32", NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path), **QUICK)


def test_a_read_out_of_bounds_is_found(tmp_path):
    code = """
import numpy as np
from dynk.kernels.decoupled import cpu, geometry
too_long = geometry.FilterGeometry(1, 1, 1, 2, 9, 2, 9, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0)
a = np.ones(4, np.float32)
try:
    cpu.ddf_rows_forward(a, a[:0], a, a.copy(), np.array(too_long), np.empty(0))
except (IndexError, SystemError):
    print("caught")
"""
    assert run(code, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path), **QUICK) == "caught\n"
