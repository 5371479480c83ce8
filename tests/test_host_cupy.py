"""What stands for CuPy in the tests of pages: it computes, and shows what a page does not wait for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import emulator_unavailable
from host_cupy import HostCupy, install

import dynk
from dynk import testing
from dynk.decoupled import DDF

pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> HostCupy:
    return install(monkeypatch)


def drawn(cupy: HostCupy) -> tuple[Any, Any]:
    shapes = (1, 2, 5, 6), (1, 2, 3, 3)
    return tuple(cupy.random.standard_normal(shape, dtype=cupy.float32) for shape in shapes)


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_wait_for_another_reads_poison(cupy: HostCupy, waits: bool) -> None:
    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    with first:
        x, filters = drawn(cupy)
        ready = first.record()
    with second:
        if waits:
            second.wait_event(ready)
        out = dynk.ddf(x, None, filters)
        found = cupy.asnumpy(out)
    if waits:
        call = testing.Call(DDF, (cupy.asnumpy(x), None, cupy.asnumpy(filters)), {})
        testing.assert_close(found, *call.expected_forward())
    else:
        assert np.isnan(found).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_a_capture_needs_compiled_kernels_and_runs_when_it_is_launched(cupy: HostCupy, compiled: bool) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x, filters = drawn(cupy)
        expected = cupy.asnumpy(dynk.ddf(x, None, filters)) if compiled else None
        out = cupy.empty_like(x)
        stream.begin_capture()
        if not compiled:
            with pytest.raises(AssertionError, match="CUDA loads no kernel"):
                dynk.ddf(x, None, filters, out=out)
            return
        dynk.ddf(x, None, filters, out=out)
        graph = stream.end_capture()
        assert np.isnan(cupy.asnumpy(out)).all()
        graph.launch()
        assert np.array_equal(cupy.asnumpy(out), expected)
