"""The cupy runner without a GPU: what it makes of views, streams and devices, on a CuPy whose memory is the host's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_emulator import RawModule, emulator_unavailable, fake_cupy

from dynk._arrays import CudaView
from dynk.decoupled import DDF
from dynk.dilated import ADAPTIVE_DILATION_CONV2D
from dynk.kernels.common import run_cupy
from dynk.kernels.common.dtypes import STORAGE
from dynk.testing import Call, assert_close, rounded
from dynk.testing.strategies import LAYOUTS

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))


class HostCupy:
    """The names of CuPy that the runner uses, over NumPy arrays and the emulator; notes where work was put."""

    def __init__(self, capturing: bool = False) -> None:
        self.current: list[Any] = []
        self.launched_on: list[Any] = []
        self.allocated: list[Any] = []
        self.ascontiguousarray = np.ascontiguousarray
        null = self._stream(0, capturing)
        from_external = lambda foreign: self._stream(foreign.__cuda_stream__()[1], capturing)  # noqa: E731
        self.cuda = SimpleNamespace(
            Device=lambda number: self._entered(f"device {number}"),
            Stream=SimpleNamespace(null=null, from_external=from_external),
            UnownedMemory=lambda pointer, size, owner, device: pointer,
            MemoryPointer=lambda memory, offset: memory + offset,
            get_current_stream=lambda: self.current[-1],
        )

    @contextmanager
    def _entered(self, what: Any) -> Any:
        self.current.append(what)
        yield
        self.current.pop()

    def _stream(self, handle: int, capturing: bool) -> Any:
        owner = self

        class Stream:
            def __enter__(self) -> None:
                owner.current.append(self)

            def __exit__(self, *error: object) -> None:
                owner.current.pop()

            def __repr__(self) -> str:
                return f"stream {handle}"

            def is_capturing(self) -> bool:
                assert handle != 0, "CUDA refuses to say that of the legacy default stream"
                return capturing

        return Stream()

    def empty(self, shape: Any, dtype: Any) -> Any:
        self.allocated.append(fake_cupy.empty(shape, dtype))
        return self.allocated[-1]

    def ndarray(self, shape: Any, dtype: Any, pointer: int, strides: Any) -> Any:
        interface = {"shape": shape, "typestr": dtype.str, "data": (pointer, False), "strides": strides, "version": 3}
        return np.asarray(SimpleNamespace(__array_interface__=interface))

    def RawModule(self, *, code: str, options: Any, backend: str, name_expressions: Any) -> Any:
        module = RawModule(code, options=options, backend=backend, name_expressions=name_expressions)

        def get_function(name: str) -> Any:
            kernel = module.get_function(name)

            def launch(grid: Any, block: Any, args: tuple[Any, ...], *, shared_mem: int) -> None:
                self.launched_on.append(tuple(map(str, self.current)))
                kernel(grid, block, tuple(map(_as_emulated, args)), shared_mem=shared_mem)

            return launch

        return SimpleNamespace(get_function=get_function)


def _as_emulated(argument: Any) -> Any:
    """Return what the emulator takes for an argument in the form that CuPy takes."""
    assert argument is not None, "CuPy passes None as an argument without a value"
    if isinstance(argument, np.uint64):
        return None if argument == 0 else argument
    return argument[()] if isinstance(argument, np.ndarray) and argument.dtype.kind == "V" else argument


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(cupy: HostCupy) -> HostCupy:
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(run_cupy, "_kernels", {})
        monkeypatch.setattr(run_cupy, "_captured", [])
        return cupy

    return install


def normal(*shape: int) -> Any:
    return rounded(np.random.default_rng(shape).standard_normal(shape), "bfloat16")


def view(array: Any) -> Any:
    if array is None:
        return None
    return CudaView(array, array.__array_interface__["data"][0], array.shape, array.dtype.name, 0, array.strides)


def run(call: Call, direction: str, inputs: tuple[Any, ...], shapes: list[Any], stream: int = 7) -> list[Any]:
    outputs = [None if shape is None else fake_cupy.empty(shape, STORAGE["bfloat16"]) for shape in shapes]
    typed = [None if output is None else np.asarray(output).view(normal(1).dtype) for output in outputs]
    views = tuple(map(view, inputs)), tuple(map(view, typed))
    run_cupy.run(call.op, direction, call.plan, *views, ("cuda", 3), stream)
    return typed


@emulation
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_read_as_it_is(install: Any, layout: str) -> None:
    cupy = install(HostCupy())
    change = LAYOUTS[layout]
    call = Call(DDF, (change(normal(2, 8, 5, 6)), change(normal(2, 1, 3, 3, 5, 6)), None), {})
    grad_out = change(normal(2, 8, 5, 6))
    (out,) = run(call, "forward", call.arrays, [call.plan.out_shape])
    assert_close(out, *call.expected_forward())
    gradients = run(call, "backward", (grad_out, *call.arrays), [a if a is None else a.shape for a in call.arrays])
    for gradient, *bounds in zip(gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds)
    assert set(cupy.launched_on) == {("device 3", "stream 7")}
    assert cupy.current == []


@emulation
@pytest.mark.parametrize(("stream", "capturing"), [(0, False), (7, False), (7, True)])
def test_temporary_memory_of_a_captured_call_is_kept(install: Any, stream: int, capturing: bool) -> None:
    cupy = install(HostCupy(capturing))
    call = Call(DDF, (normal(1, 1, 48, 50), normal(1, 1, 3, 3, 48, 50), normal(1, 1, 3, 3)), {})
    grad_out = normal(1, 1, 48, 50)
    _, _, gradient = run(call, "backward", (grad_out, *call.arrays), [None, None, (1, 1, 3, 3)], stream)
    expected, terms = (results[2] for results in call.expected_backward(grad_out))
    assert_close(gradient, expected, terms)
    assert len(cupy.allocated) == 1
    assert [id(a) for a in run_cupy._captured] == [id(a) for a in cupy.allocated if capturing]
    assert set(cupy.launched_on) == {("device 3", f"stream {stream}")}


@emulation
def test_gradients_of_no_elements_are_not_launched(install: Any) -> None:
    """There is a gradient of the weight of an empty batch, which is 0."""
    cupy = install(HostCupy())
    shapes = (0, 4, 5, 6), (8, 4, 3, 3), (0, 2, 5, 6), (8,)
    call = Call(ADAPTIVE_DILATION_CONV2D, tuple(normal(*shape) for shape in shapes), {"dilations": (1, 2)})
    gradients = run(call, "backward", (normal(0, 8, 5, 6), *call.arrays), list(shapes))
    assert not gradients[1].astype(np.float32).any()
    assert not gradients[3].astype(np.float32).any()
    assert cupy.launched_on


def test_a_grid_that_would_be_cut_off_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="got 4294967297; split the batch"):
        run_cupy._Cuda(HostCupy(), None).launch("kernels.cu", "any", (2**32 + 1,), (1,), ())


def test_an_edited_header_changes_the_source(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, header = tmp_path / "kernels.cu", tmp_path / "common.cuh"
    kernel.write_text("// kernels")
    monkeypatch.setattr(run_cupy, "_HEADERS", tmp_path)
    texts = []
    for text in ("one", "two"):
        header.write_text(text)
        texts.append(run_cupy._source.__wrapped__(kernel))
    assert texts[0].startswith("// kernels")
    assert texts[0] != texts[1]


def test_importing_the_runner_imports_no_cupy() -> None:
    code = "import sys, dynk.kernels.common.run_cupy, dynk.kernels.decoupled.cupy_raw; sys.exit('cupy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_cupy_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in run_cupy.unavailable()


@pytest.mark.parametrize(
    ("driver", "devices", "reason"),
    [
        (0, 1, "no CUDA driver"),
        (13000, 0, "no CUDA device"),
        (13000, 1, None),
        (13000, RuntimeError("out of order"), "out of order"),
    ],
)
def test_what_cupy_finds_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, driver: int, devices: Any, reason: str | None
) -> None:
    def count() -> int:
        if isinstance(devices, Exception):
            raise devices
        return devices

    runtime = SimpleNamespace(driverGetVersion=lambda: driver, getDeviceCount=count)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    found = run_cupy.unavailable()
    assert found is None if reason is None else reason in found
