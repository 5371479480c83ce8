"""The Numba CUDA backend without a GPU: its kernels compile to PTX, and run on the emulator as the reference says."""

import contextlib
import ctypes
import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from cuda_emulator import ORDERS, emulated, emulator_unavailable
from hypothesis import given, settings
from hypothesis import strategies as st

from dynk._arrays import CudaView
from dynk._operator import operators
from dynk.kernels.common import run_numba_cuda
from dynk.testing import Call, assert_close, sample_calls, strategies

numba_cuda_package = pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from emulated import EmulatedNumba, numba_kernel  # noqa: E402
from numba import cuda, types  # noqa: E402
from numba.cuda.dispatcher import CUDADispatcher  # noqa: E402
from numba.cuda.typing.typeof import typeof  # noqa: E402

from dynk import kernels  # noqa: E402
from dynk.kernels.common import numba_cuda_kernels  # noqa: E402

DTYPES = run_numba_cuda.DTYPES
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
OPERATORS = [op for op in operators().values() if op.has_launchers("numba_cuda")]
each_operator = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
on_emulator = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(kernels.__path__, "dynk.kernels.")
    if module.name.rpartition(".")[2].startswith("numba_cuda")
]
KERNELS = {
    kernel.py_func.__name__: kernel
    for module in MODULES
    for name, kernel in inspect.getmembers(module, lambda member: isinstance(member, CUDADispatcher))
    if name.endswith("_kernel")
}


# ---- compilation -----------------------------------------------------------------------------------------------------


class Recorder:
    """A runtime object that runs nothing and notes the types with which each kernel is launched."""

    def __init__(self):
        self.signatures = {}

    def launch(self, kernel, grid, block, args):
        self.signatures.setdefault(kernel.py_func.__name__, tuple(map(typeof, args)))

    def workspace(self, count, dtype):
        return np.empty(1, dtype)

    absent = staticmethod(lambda dtype: np.empty(1, dtype))


def signatures(dtype):
    """Return the types with which the launch functions launch each kernel."""
    recorder, array = Recorder(), np.empty(1, dtype)
    for call in (call for op in OPERATORS for call in sample_calls(op, dtype, np.random.default_rng(0))):
        op, inputs = call.op, [None if a is None else a.reshape(-1) for a in call.arrays]
        launchers = op.launchers("numba_cuda")
        gradients = [None if a is None or a.dtype.kind == "i" else a for a in inputs]
        getattr(launchers, f"{op.launcher}_forward")(recorder, call.plan, *inputs, array)
        getattr(launchers, f"{op.launcher}_backward")(recorder, call.plan, array, *inputs, *gradients)
    numba_cuda_kernels.merge(recorder, array, array, 1, 2)
    with mock.patch.object(run_numba_cuda._Runtime, "launch", recorder.launch), on_the_host():
        view = host_view(np.empty((3, 2), dtype).T)
        with run_numba_cuda._Runtime(0, 0) as runtime:
            runtime.flat(view)
    return recorder.signatures


@pytest.mark.parametrize("cc", [(7, 5), (9, 0)], ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
@each_dtype
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernel_compiles_to_ptx(name, dtype, cc):
    signature = types.void(*signatures(dtype)[name])
    # Device functions are compiled for the current device, which is not there.
    device = SimpleNamespace(compute_capability=cc)
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=device):
        ptx, _ = cuda.compile(KERNELS[name].py_func, signature, cc=cc, device=False, abi="numba", output="ptx")
    assert ".visible .entry" in ptx
    assert ".local" not in ptx, "variables must live in registers"
    meant = dtype == "float64" or name.startswith("gumbel_softmax")
    assert meant or ".f64" not in ptx, "float32 kernels must not compute in float64"


# ---- results on the emulator -----------------------------------------------------------------------------------------


def assert_right(call, grad_out, runtime):
    assert_close(runtime.forward(call), *call.expected_forward(), what="out")
    gradients = runtime.backward(call, grad_out, floating(call))
    for name, gradient, want, magnitude in zip(
        call.op.arrays, gradients, *call.expected_backward(grad_out), strict=True
    ):
        if gradient is not None:
            assert_close(gradient, want, magnitude, what=name)


def make_call(name, dtype, shapes, **options):
    """Return a call of normally distributed arrays, and a gradient of its output."""
    rng = np.random.default_rng(0)
    arrays = tuple(None if shape is None else rng.standard_normal(shape).astype(dtype) for shape in shapes)
    call = Call(operators()[name], arrays, options)
    return call, rng.standard_normal(call.plan.out_shape).astype(dtype)


def floating(call):
    """Return the names of the arguments that have a gradient."""
    named = zip(call.op.arrays, call.arrays, strict=True)
    return [name for name, array in named if array is not None and array.dtype.kind != "i"]


@on_emulator
@each_dtype
@each_operator
@given(data=st.data())
def test_equals_reference(op, dtype, data):
    """And no access is outside an array, of uninitialised memory, in a race, or of an input to write to it."""
    call = data.draw(strategies.calls(op, dtype, allow_nan=True, allow_infinity=True, layouts=False))
    grad_out = data.draw(strategies.grad_outs(call, layouts=False))
    with emulated(mode="check", order=data.draw(st.sampled_from(ORDERS)), seed=data.draw(st.integers(0, 99))):
        assert_right(call, grad_out, EmulatedNumba())


LONG_SUMS = {
    "taps": ("ddf", ((1, 2, 7, 11), (1, 1, 9, 9, 7, 11), (1, 2, 9, 9)), {}),
    "subpixels": ("ddf_upsample", ((1, 1, 5, 6), None, (1, 1, 3, 3, 5, 5)), {"scale": 3}),
    "channels": ("ddf", ((1, 131, 3, 3), (1, 1, 3, 3, 3, 3), (1, 131, 3, 3)), {}),
    "pixels": ("ddf", ((1, 1, 131, 131), (1, 1, 1, 3, 131, 131), (1, 1, 1, 3)), {}),
    "filters": ("filter_norm", ((1, 2, 2, 1, 91, 91), (2, 1, 1, 1, 1), (1,)), {"axes": (2, 3)}),
    "outputs": ("ls_dfn", ((1, 67, 3, 4), (1, 70, 67, 3, 4), None, None, None), {"samples": 3, "sample_stride": 1}),
    "samples": (
        "ls_dfn",
        ((1, 1, 9, 10), (1, 1, 1, 9, 10), (1, 1, 9, 9, 9, 10), (1, 1, 9, 9, 9, 10), (1, 1, 9, 9, 9, 10)),
        {"samples": 9, "sample_stride": 1},
    ),
    "dense": ("dynamic_filter", ((1, 8, 4, 5), (1, 8, 8, 3, 3, 4, 5)), {"samples": 9}),
    "wide filters": ("filter_norm", ((2, 9, 10), (9, 1), (1, 10)), {"axes": (1, 2)}),
}


@on_emulator
@each_dtype
@pytest.mark.parametrize("case", LONG_SUMS)
def test_long_sums(case, dtype):
    name, shapes, options = LONG_SUMS[case]
    call, grad_out = make_call(name, dtype, shapes, **options)
    runtime = EmulatedNumba()
    with emulated(mode="fast"):
        assert_right(call, grad_out, runtime)
    assert ("merge_kernel" in runtime.launched) == (case in ("pixels", "filters"))


@on_emulator
@pytest.mark.parametrize("case", ["pixels", "filters"])
def test_order_of_threads_changes_no_bit(case):
    name, shapes, options = LONG_SUMS[case]
    call, grad_out = make_call(name, "float32", shapes, **options)
    results = []
    for order in ("sequential", "reverse", "random"):
        with emulated(mode="fast", order=order):
            results.append([gradient.tobytes() for gradient in EmulatedNumba().backward(call, grad_out)])
    assert results[0] == results[1] == results[2]


@on_emulator
@each_operator
def test_only_what_is_asked_for_is_computed(op):
    call = sample_calls(op, "float32", np.random.default_rng(0))[0]
    grad_out = np.ones(call.plan.out_shape, np.float32)
    launched = {}
    for name in floating(call):
        runtime = EmulatedNumba()
        with emulated(mode="fast"):
            gradients = runtime.backward(call, grad_out, needs={name})
        assert [gradient is not None for gradient in gradients] == [name == other for other in op.arrays]
        launched[name] = set(runtime.launched)
    assert all(names for names in launched.values())
    assert "filter_norm_statistics_kernel" not in launched.get("shift", set())


@on_emulator
def test_workspace_is_as_small_as_documented():
    for case in ("pixels", "channels"):
        name, shapes, options = LONG_SUMS[case]
        call, grad_out = make_call(name, "float32", shapes, **options)
        runtime = EmulatedNumba()
        with emulated(mode="fast"):
            runtime.backward(call, grad_out)
        assert sum(runtime.workspaces) <= call.arrays[0].size / 64


# ---- the runner, with the host's memory as the device's -------------------------------------------------------------


class HostCuda:
    """The names of numba.cuda that the runner uses; notes which contexts were entered."""

    def __init__(self):
        self.entered = []
        self.gpus = {device: self._context(device) for device in (0, 1)}

    def _context(self, device):
        context = contextlib.ExitStack()
        context.push(lambda *_: self.entered.append(device))
        return context

    def external_stream(self, handle):
        return SimpleNamespace(handle=handle)

    def device_array(self, count, dtype):
        return np.empty(count, dtype)

    def from_cuda_array_interface(self, interface, owner, sync):
        assert sync is False
        (pointer, _), (count,) = interface["data"], interface["shape"]
        dtype = np.dtype(interface["typestr"])
        memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype)


class HostPool:
    """Allocates and frees in stream order, and notes it."""

    def __init__(self):
        self.memory, self.streams = {}, []

    def allocate(self, size, stream):
        memory = np.full(size, 0xFF, np.uint8)
        self.memory[memory.ctypes.data] = memory
        self.streams.append(stream)
        return memory.ctypes.data

    def free(self, pointer, stream):
        del self.memory[pointer]
        self.streams.append(stream)


@contextlib.contextmanager
def on_the_host():
    """Let the runner take host memory for device memory, and launch on the emulator."""
    host, pool, launches = HostCuda(), HostPool(), []

    def configured(kernel, configuration):
        launches.append(configuration)
        return numba_kernel(kernel)[configuration]

    run_numba_cuda._absent.cache_clear()
    with (
        mock.patch.object(run_numba_cuda, "_numba_cuda", return_value=host),
        mock.patch.object(run_numba_cuda, "_memory_pool", return_value=(pool.allocate, pool.free)),
        mock.patch.object(CUDADispatcher, "__getitem__", configured),
        emulated(mode="fast"),
    ):
        yield SimpleNamespace(host=host, pool=pool, launches=launches)
    run_numba_cuda._absent.cache_clear()
    assert not pool.memory, "workspace was not freed"


def host_view(array):
    if array is None:
        return None
    return CudaView(array, array.ctypes.data, array.shape, array.dtype.name, 0, array.strides)


@on_emulator
@each_operator
@settings(max_examples=20)
@given(data=st.data())
def test_runner_takes_any_layout(op, data):
    call = data.draw(strategies.calls(op, "float32"))
    grad_out = data.draw(strategies.grad_outs(call))
    out = np.full(call.plan.out_shape, np.nan, np.float32)
    floating = [a is not None and a.dtype.kind == "f" for a in call.arrays]
    gradients = [
        np.full(a.shape, np.nan, a.dtype) if wanted else None for a, wanted in zip(call.arrays, floating, strict=True)
    ]
    inputs = tuple(map(host_view, call.arrays))
    with on_the_host():
        run_numba_cuda.run(op, "forward", call.plan, inputs, (host_view(out),), ("cuda", 0), 0)
        outputs = tuple(map(host_view, gradients))
        run_numba_cuda.run(op, "backward", call.plan, (host_view(grad_out), *inputs), outputs, ("cuda", 0), 0)
    assert_close(out, *call.expected_forward())
    for gradient, want, magnitude in zip(gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, want, magnitude)


@on_emulator
def test_runner_copies_arrays_of_many_dimensions():
    """No two of the eleven dimensions can be walked as one: more than a copying kernel takes."""
    array = np.arange(2.0**9 * 3 * 2, dtype=np.float32).reshape((2,) * 9 + (3, 2)).transpose()[::-1]
    with on_the_host(), run_numba_cuda._Runtime(0, 0) as runtime:
        assert np.array_equal(runtime.flat(host_view(array)), array.ravel())


@on_emulator
def test_runner_uses_the_callers_device_and_stream():
    call, grad_out = make_call("filter_norm", "float32", ((2, 3, 3, 3), (1,), None), axes=(2, 3))
    gradient = np.empty(1, np.float32)
    inputs = tuple(map(host_view, (np.asfortranarray(grad_out), *call.arrays)))
    outputs = (None, host_view(gradient), None)
    with on_the_host() as device:
        run_numba_cuda.run(call.op, "backward", call.plan, inputs, outputs, ("cuda", 1), 77)
    assert device.host.entered == [1]
    assert device.launches
    assert all(stream.handle == 77 for _, _, stream in device.launches)
    assert set(device.pool.streams) == {77}
    # Numba warns of grids below 128 blocks.
    assert all(grid >= (128,) for grid, _, _ in device.launches)


def test_strides_of_partial_elements_are_an_error():
    array = np.zeros((2, 3), np.float32)
    view = CudaView(array, array.ctypes.data, (2, 2), "float32", 0, (12, 6))
    with on_the_host(), run_numba_cuda._Runtime(0, 0) as runtime, pytest.raises(ValueError, match="whole elements"):
        runtime.flat(view)


# ---- availability ----------------------------------------------------------------------------------------------------


def test_reasons_are_told_and_nothing_is_raised(monkeypatch):
    with mock.patch("importlib.util.find_spec", return_value=None):
        assert "not installed" in run_numba_cuda.unavailable()
    with mock.patch.object(run_numba_cuda, "_numba_cuda", side_effect=OSError("libnvvm\nis broken")):
        assert run_numba_cuda.unavailable() == "numba-cuda does not work: OSError: libnvvm is broken"
    driverless = SimpleNamespace(is_available=lambda: False, cuda_error=lambda: "\nno driver\n")
    with mock.patch.object(run_numba_cuda, "_numba_cuda", return_value=driverless):
        assert run_numba_cuda.unavailable() == "CUDA does not start: no driver"
    for devices, reason in (([], "there is no CUDA device"), ([0], None)):
        usable = SimpleNamespace(is_available=lambda: True, gpus=devices)
        with mock.patch.object(run_numba_cuda, "_numba_cuda", return_value=usable):
            assert run_numba_cuda.unavailable() == reason
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert "simulator" in run_numba_cuda.unavailable()


def test_import_leaves_cuda_alone():
    code = "import sys; import dynk.kernels.common.run_numba_cuda; sys.exit('numba.cuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
