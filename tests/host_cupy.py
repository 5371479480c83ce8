"""A CuPy without a GPU: memory is the host's, kernels run on the emulator, and streams are as late as they may be.

What is put on a stream runs once somebody waits for it. Memory is poison (NaN) until it is written, so that work which
another stream should have waited for shows in the result. While a stream is captured, no kernel may be compiled.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_emulator import RawModule, fake_cupy

from dynk import _dispatch
from dynk.kernels.common import run_cupy


class UnownedMemory(NamedTuple):
    """Memory that its owner keeps alive."""

    pointer: int
    size: int
    owner: Any
    device: int


class MemoryPointer:
    """A place in memory."""

    def __init__(self, memory: UnownedMemory, offset: int) -> None:
        self.memory = memory
        self.ptr = memory.pointer + offset


class Ndarray:
    """A `cupy.ndarray`: `memory` is what it holds as a NumPy array, once its stream has come so far."""

    device = SimpleNamespace(id=0)

    def __init__(self, shape: Any, dtype: Any, start: MemoryPointer, strides: Any = None) -> None:
        interface = {"shape": shape, "typestr": np.dtype(dtype).str, "data": (start.ptr, False), "strides": strides}
        # The owner of the memory lives as long as a view of it: NumPy keeps the object it was made of.
        self.memory = np.asarray(SimpleNamespace(__array_interface__={**interface, "version": 3}, start=start))

    shape = property(lambda self: self.memory.shape)
    dtype = property(lambda self: self.memory.dtype)
    strides = property(lambda self: self.memory.strides)
    flags = property(lambda self: self.memory.flags)

    @property
    def __cuda_array_interface__(self) -> Any:
        return self.memory.__array_interface__

    def view(self, dtype: Any) -> Ndarray:
        other = copy.copy(self)
        other.memory = self.memory.view(dtype)
        return other


class Event(NamedTuple):
    """A place among the work of a stream."""

    stream: Stream
    count: int


class Stream:
    """Work in order, of which `done` pieces have run. Non-blocking: nothing is waited for but what is asked for."""

    def __init__(self, cupy: HostCupy, handle: int) -> None:
        self.ptr = handle
        self._cupy = cupy
        self._work: list[Callable[[], None]] = []
        self._done = 0
        self.captured: list[Callable[[], None]] | None = None

    def __enter__(self) -> Stream:
        self._cupy.streams.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._cupy.streams.pop()

    def put(self, work: Callable[[], None]) -> None:
        (self._work if self.captured is None else self.captured).append(work)

    def record(self) -> Event:
        return Event(self, len(self._work))

    def wait_event(self, event: Event) -> None:
        self.put(partial(event.stream.run, event.count))

    def synchronize(self) -> None:
        assert self.captured is None, "CUDA waits for no stream that is captured"
        self.run(len(self._work))

    def run(self, count: int) -> None:
        while self._done < count:
            self._done += 1
            self._work[self._done - 1]()

    def is_capturing(self) -> bool:
        assert self.ptr != 0, "CUDA refuses to say that of the legacy default stream"
        return self.captured is not None

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        work, self.captured = self.captured, None

        def launch() -> None:
            for piece in work or ():
                self._cupy.streams[-1].put(piece)

        return SimpleNamespace(launch=launch)


class StreamType:
    """`cupy.cuda.Stream`."""

    def __init__(self, cupy: HostCupy) -> None:
        self.null = cupy.stream(0)
        self._cupy = cupy
        self._handles = itertools.count(1000)

    def __call__(self, *, non_blocking: bool) -> Stream:
        assert non_blocking, "streams that wait for the default one are not made here"
        return self._cupy.stream(next(self._handles))

    def from_external(self, foreign: Any) -> Stream:
        return self._cupy.stream(foreign.__cuda_stream__()[1])


class HostCupy(ModuleType):
    """The names of CuPy that dynk and its pages use; notes what is allocated, and where each kernel is launched."""

    ndarray = Ndarray
    float32 = np.float32

    def __init__(self) -> None:
        super().__init__("cupy")
        self.__spec__ = ModuleSpec("cupy", None)
        self.allocated: list[Ndarray] = []
        self.launched_on: list[tuple[int, int]] = []
        self.devices = [0]
        self._streams: dict[int, Stream] = {}
        self.streams = [self.stream(0)]  # the last is the current one
        self.random = SimpleNamespace(standard_normal=self._standard_normal)
        self.cuda = SimpleNamespace(
            Device=self._device,
            Stream=StreamType(self),
            UnownedMemory=UnownedMemory,
            MemoryPointer=MemoryPointer,
            get_current_stream=lambda device=0: self.streams[-1],
            runtime=SimpleNamespace(driverGetVersion=lambda: 13000, getDeviceCount=lambda: 1),
        )

    def stream(self, handle: int) -> Stream:
        """Return the stream of a handle; 0 is the default one."""
        return self._streams.setdefault(handle, Stream(self, handle))

    @contextmanager
    def _device(self, number: int) -> Iterator[None]:
        self.devices.append(number)
        yield
        self.devices.pop()

    def empty(self, shape: Any, dtype: Any) -> Ndarray:
        memory = fake_cupy.empty(shape, dtype)
        start = MemoryPointer(UnownedMemory(memory.ctypes.data, memory.nbytes, memory, 0), 0)
        self.allocated.append(Ndarray(memory.shape, dtype, start))
        return self.allocated[-1]

    def _filled(self, shape: Any, dtype: Any, values: Callable[[], Any]) -> Ndarray:
        array = self.empty(shape, dtype)
        self.streams[-1].put(lambda: np.copyto(array.memory, values()))
        return array

    def empty_like(self, like: Ndarray) -> Ndarray:
        return self.empty(like.shape, like.dtype)

    def ones_like(self, like: Ndarray) -> Ndarray:
        return self._filled(like.shape, like.dtype, lambda: 1)

    def ascontiguousarray(self, source: Ndarray) -> Ndarray:
        return self._filled(source.shape, source.dtype, lambda: source.memory)

    def _standard_normal(self, shape: Any, dtype: Any) -> Ndarray:
        return self._filled(shape, dtype, lambda: np.random.default_rng(0).standard_normal(shape, dtype))

    def asnumpy(self, array: Ndarray) -> Any:
        self.streams[-1].synchronize()
        return array.memory.copy()

    def RawModule(self, *, code: str, options: Any, backend: str, name_expressions: Any) -> Any:
        assert self.streams[-1].captured is None, "CUDA loads no kernel while a stream is captured"
        module = RawModule(code, options=options, backend=backend, name_expressions=name_expressions)

        def get_function(name: str) -> Any:
            kernel = module.get_function(name)

            def launch(grid: Any, block: Any, args: tuple[Any, ...], *, shared_mem: int) -> None:
                stream = self.streams[-1]
                self.launched_on.append((self.devices[-1], stream.ptr))
                emulated = tuple(map(_as_emulated, args))
                stream.put(lambda: kernel(grid, block, emulated, shared_mem=shared_mem))

            return launch

        return SimpleNamespace(get_function=get_function)


def _as_emulated(argument: Any) -> Any:
    assert argument is not None, "CuPy passes None as an argument without a value"
    return argument.memory if isinstance(argument, Ndarray) else argument


def install(monkeypatch: pytest.MonkeyPatch) -> HostCupy:
    """Put a new one in the place of CuPy; what dynk remembers of the other is set aside."""
    cupy = HostCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(run_cupy, "_kernels", {})
    monkeypatch.setattr(run_cupy, "_captured", [])
    monkeypatch.setattr(_dispatch, "_chosen", {})
    return cupy
