"""The Python side of the runtime: a launch in, findings out."""

import ctypes
import functools
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import Finding, Index, KernelCheckError, Place
from .settings import ORDERS, current_settings
from .toolchain import runtime_library

Array = npt.NDArray[np.generic]


class _RegionSpec(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("initialised", ctypes.c_void_p),
        ("read_only", ctypes.c_int32),
        ("shared", ctypes.c_int32),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("regions", ctypes.POINTER(_RegionSpec)),
        ("image_begin", ctypes.c_uint64),
        ("image_end", ctypes.c_uint64),
        ("max_accesses", ctypes.c_uint64),
        ("last_blocks", ctypes.c_uint64),
        ("n_regions", ctypes.c_uint32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("checking", ctypes.c_uint32),
        ("dynamic_shared_bytes", ctypes.c_uint32),
    ]


class _Diagnostic(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("line", ctypes.c_int32),
        ("bytes", ctypes.c_int32),
        ("block", ctypes.c_int32),
        ("thread", ctypes.c_int32),
        ("other_block", ctypes.c_int32),
        ("other_thread", ctypes.c_int32),
    ]


@dataclass
class Region:
    """Memory that a kernel may touch: ``initialised`` has a byte per byte, None where all of it is."""

    begin: int
    end: int
    read_only: bool = False
    shared: bool = False
    initialised: npt.NDArray[np.uint8] | None = None


@functools.cache
def runtime() -> ctypes.CDLL:
    """Return the loaded runtime."""
    return ctypes.CDLL(str(runtime_library()))


_lock = threading.Lock()  # the runtime runs one launch at a time


def run(
    kernel: str,
    entry: int,
    arguments: ctypes.Array[ctypes.c_void_p] | ctypes.Array[ctypes.c_int64],
    grid: Index,
    block: Index,
    regions: Sequence[Region],
    find_place: Callable[[int], Place | None],
    *,
    image: tuple[int, int] = (0, 0),
    dynamic_shared_bytes: int = 0,
    place: Callable[[str, int], Place] = Place,
) -> None:
    """Run all threads of a grid; raise KernelCheckError where the runtime found anything.

    ``find_place`` turns a code address of the kernel into a source line, ``place`` a file and a line.
    """
    settings = current_settings()
    specs = (_RegionSpec * max(1, len(regions)))()
    for spec, region in zip(specs, regions, strict=False):
        spec.begin, spec.end = region.begin, region.end
        spec.read_only, spec.shared = region.read_only, region.shared
        spec.initialised = region.initialised.ctypes.data if region.initialised is not None else None
    launch = _Launch(
        entry,
        ctypes.addressof(arguments),
        specs,
        *image,
        settings.max_accesses,
        settings.last_blocks,
        len(regions),
        grid,
        block,
        ORDERS.index(settings.order),
        settings.seed & 0xFFFFFFFF,
        settings.mode == "check",
        dynamic_shared_bytes,
    )
    with _lock:
        runtime().emu_launch(ctypes.byref(launch))
        found = ctypes.POINTER(_Diagnostic)()
        diagnostics = found[: runtime().emu_diagnostics(ctypes.byref(found))]

    def index_in(extent: Index, linear: int) -> Index | None:
        if linear < 0:
            return None
        return linear % extent[0], linear // extent[0] % extent[1], linear // extent[0] // extent[1]

    def place_of(diagnostic: _Diagnostic) -> Place | None:
        if diagnostic.file:
            return place(diagnostic.file.decode(), diagnostic.line)
        return find_place(diagnostic.pc) if diagnostic.pc else None

    if diagnostics:
        raise KernelCheckError(
            kernel,
            [
                Finding(
                    d.kind.decode(),
                    place_of(d),
                    index_in(grid, d.block),
                    index_in(block, d.thread),
                    d.bytes,
                    find_place(d.other_pc) if d.other_pc else None,
                    index_in(grid, d.other_block),
                    index_in(block, d.other_thread),
                )
                for d in diagnostics
            ],
        )


def check_launch_shape(kernel: str, grid: Sequence[int], block: Sequence[int]) -> tuple[Index, Index]:
    """Return grid and block with three extents each; raise where a GPU would refuse them."""
    shapes: list[Index] = []
    for name, shape, limits in (
        ("grid", grid, (2**31 - 1, 65535, 65535)),
        ("block", block, (1024, 1024, 64)),
    ):
        full = (*(int(extent) for extent in shape), 1, 1, 1)[:3]
        if not 1 <= len(shape) <= 3 or not all(1 <= e <= limit for e, limit in zip(full, limits, strict=True)):
            detail = f"{name} must be 1 to 3 extents from 1 to {limits}, got {tuple(shape)}"
            raise KernelCheckError(kernel, [Finding("bad launch configuration", detail=detail)])
        shapes.append((full[0], full[1], full[2]))
    threads = shapes[1][0] * shapes[1][1] * shapes[1][2]
    if threads > 1024:
        detail = f"a block must have at most 1024 threads, got {shapes[1]}"
        raise KernelCheckError(kernel, [Finding("bad launch configuration", detail=detail)])
    return shapes[0], shapes[1]


# ---- global memory


class DeviceArray(np.ndarray):
    """An array whose bytes know whether they were ever written; ``fake_cupy.empty`` makes them.

    Views of it share that knowledge. Bytes that the host wrote are told by their value: they are no longer 0xFF.
    """

    initialised: npt.NDArray[np.uint8] | None = None  # set on the array that owns the memory


POISON = 0xFF
_MAP_NORESERVE = 0x4000  # mmap has the name from Python 3.13 on
_GAP = 1 << 28  # bytes between two arrays in the arena, never committed: a stray index meets nothing
_LARGEST_COPY = 1 << 24  # bytes; a larger array is lent itself, lest a sparse one be filled


def _initialised_bytes(array: Array, begin: int, end: int) -> npt.NDArray[np.uint8] | None:
    """Return the flags of the bytes from begin to end, where array is (a view of) a DeviceArray."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        flags = getattr(owner, "initialised", None)
        if flags is not None:
            start = begin - owner.ctypes.data
            flags[owner.view(np.uint8) != POISON] = 1
            return flags[start : start + end - begin]  # type: ignore[no-any-return]
        owner = owner.base
    return None


@contextmanager
def guarded(arrays: Sequence[tuple[Array, bool]]) -> Iterator[tuple[list[Region], list[int]]]:
    """Lend (array, read-only) pairs to a kernel: yield the regions of memory and the address of each array.

    When checks are on, the kernel works on copies that lie far apart, at the same addresses modulo a page: an index
    that leaves its array cannot land in the next one. Arrays that overlap share a region, writable if one of them is.
    """
    regions: list[Region] = []
    spans = []
    for array, read_only in arrays:
        begin, end = _byte_bounds(array)
        read_only = read_only or not array.flags.writeable
        spans.append((begin, end, read_only, array))
    for begin, end, read_only, array in sorted((s for s in spans if s[1] > s[0]), key=lambda span: span[:2]):
        if regions and begin < regions[-1].end:
            last = regions[-1]
            last.end = max(last.end, end)
            last.read_only &= read_only
        else:
            regions.append(Region(begin, end, read_only))
            last = regions[-1]
        last.initialised = _initialised_bytes(array, last.begin, last.end)

    if current_settings().mode == "fast":
        yield regions, [begin for begin, *_ in spans]
        return

    page = mmap.PAGESIZE
    copied = [region for region in regions if region.end - region.begin <= _LARGEST_COPY]
    homes = [(region.begin, region.end) for region in copied]
    offsets, size = [], _GAP
    for begin, end in homes:
        offsets.append(size + begin % page)
        size += -(-(end - begin + page) // page) * page + _GAP
    arena = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    memory = np.frombuffer(arena, np.uint8)
    base = memory.ctypes.data
    originals = [_bytes_at(begin, end) for begin, end in homes]
    for region, offset, original in zip(copied, offsets, originals, strict=True):
        memory[offset : offset + original.size] = original
        region.begin, region.end = base + offset, base + offset + original.size

    def moved(address: int) -> int:
        for (begin, end), region in zip(homes, copied, strict=True):
            if begin <= address < end:
                return region.begin + address - begin
        return address

    try:
        # an array without elements gets address 0: any access through it is out of bounds
        yield regions, [moved(array.ctypes.data) if array.size else 0 for *_, array in spans]
    finally:
        for region, offset, original in zip(copied, offsets, originals, strict=True):
            if not region.read_only:
                original[:] = memory[offset : offset + original.size]
        del memory
        arena.close()


def _byte_bounds(array: Array) -> tuple[int, int]:
    begin = array.ctypes.data
    if not array.size:
        return begin, begin
    reaches = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)]
    last = sum(reach for reach in reaches if reach > 0)
    return begin + sum(reach for reach in reaches if reach < 0), begin + last + array.itemsize


def _bytes_at(begin: int, end: int) -> npt.NDArray[np.uint8]:
    memory = (ctypes.c_uint8 * (end - begin)).from_address(begin)
    return np.frombuffer(memoryview(memory), np.uint8)
