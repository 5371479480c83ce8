"""The cupy runner without a GPU: what it makes of views, streams and devices, on a CuPy whose memory is the host's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_emulator import emulator_unavailable, fake_cupy
from host_cupy import HostCupy, install

from dynk._arrays import CudaView
from dynk.decoupled import DDF
from dynk.dilated import ADAPTIVE_DILATION_CONV2D
from dynk.kernels.common import run_cupy
from dynk.kernels.common.dtypes import STORAGE
from dynk.testing import Call, assert_close, rounded
from dynk.testing.strategies import LAYOUTS

emulation = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> HostCupy:
    return install(monkeypatch)


def normal(*shape: int) -> Any:
    return rounded(np.random.default_rng(shape).standard_normal(shape), "bfloat16")


def view(array: Any) -> Any:
    if array is None:
        return None
    return CudaView(array, array.__array_interface__["data"][0], array.shape, array.dtype.name, 0, array.strides)


def run(
    cupy: HostCupy, call: Call, direction: str, inputs: tuple[Any, ...], shapes: list[Any], stream: int = 7
) -> list[Any]:
    """Return the results of a call, which are there once somebody has waited for the stream."""
    outputs = [None if shape is None else fake_cupy.empty(shape, STORAGE["bfloat16"]) for shape in shapes]
    typed = [None if output is None else np.asarray(output).view(normal(1).dtype) for output in outputs]
    views = tuple(map(view, inputs)), tuple(map(view, typed))
    run_cupy.run(call.op, direction, call.plan, *views, ("cuda", 3), stream)
    assert set(cupy.launched_on) == {(3, stream)}
    assert cupy.devices == [0]
    assert cupy.streams == [cupy.stream(0)]
    return typed


@emulation
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_read_as_it_is(cupy: HostCupy, layout: str) -> None:
    change = LAYOUTS[layout]
    call = Call(DDF, (change(normal(2, 8, 5, 6)), change(normal(2, 1, 3, 3, 5, 6)), None), {})
    grad_out = change(normal(2, 8, 5, 6))
    (out,) = run(cupy, call, "forward", call.arrays, [call.plan.out_shape])
    shapes = [a if a is None else a.shape for a in call.arrays]
    gradients = run(cupy, call, "backward", (grad_out, *call.arrays), shapes)
    cupy.stream(7).synchronize()
    assert_close(out, *call.expected_forward())
    for gradient, *bounds in zip(gradients, *call.expected_backward(grad_out), strict=True):
        if gradient is not None:
            assert_close(gradient, *bounds)


@emulation
@pytest.mark.parametrize("stream", [0, 7])
def test_temporary_memory_of_a_captured_call_is_kept(cupy: HostCupy, stream: int) -> None:
    call = Call(DDF, (normal(1, 1, 48, 50), normal(1, 1, 3, 3, 48, 50), normal(1, 1, 3, 3)), {})
    grad_out = normal(1, 1, 48, 50)
    expected, terms = (results[2] for results in call.expected_backward(grad_out))

    def gradient_of_channel() -> Any:
        return run(cupy, call, "backward", (grad_out, *call.arrays), [None, None, (1, 1, 3, 3)], stream)[2]

    gradient, handle = gradient_of_channel(), cupy.stream(stream)
    handle.synchronize()
    assert_close(gradient, expected, terms)
    assert len(cupy.allocated) == 1
    assert run_cupy._captured == []
    if stream == 0:  # which cannot be captured
        return
    handle.begin_capture()
    gradient = gradient_of_channel()
    graph = handle.end_capture()
    assert [id(a) for a in run_cupy._captured] == [id(a) for a in cupy.allocated[1:]]
    assert len(run_cupy._captured) == 1
    handle.synchronize()
    assert np.isnan(gradient.astype(np.float32)).all()
    with handle:
        graph.launch()
    handle.synchronize()
    assert_close(gradient, expected, terms)


@emulation
def test_gradients_of_no_elements_are_not_launched(cupy: HostCupy) -> None:
    """There is a gradient of the weight of an empty batch, which is 0."""
    shapes = (0, 4, 5, 6), (8, 4, 3, 3), (0, 2, 5, 6), (8,)
    call = Call(ADAPTIVE_DILATION_CONV2D, tuple(normal(*shape) for shape in shapes), {"dilations": (1, 2)})
    gradients = run(cupy, call, "backward", (normal(0, 8, 5, 6), *call.arrays), list(shapes))
    cupy.stream(7).synchronize()
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
