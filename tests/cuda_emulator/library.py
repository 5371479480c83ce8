"""A compiled ``.cu`` source: how it is built, its kernels, its shared arrays, its source lines."""

import contextlib
import ctypes
import functools
import linecache
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .errors import Finding, KernelCheckError, Place
from .launch import runtime
from .settings import Mode
from .toolchain import (
    HEADER,
    CompilationError,
    cache_folder,
    compile_cpp,
    cuda_include_folders,
    hash_of,
    included_files,
    runtime_library,
)

SOURCE_NAME = "kernel.cu"
MAX_DYNAMIC_SHARED = 227 << 10  # bytes, the most of any GPU

_COMMON_FLAGS = (
    *("-g", "-w", "-fPIC"),
    "-fpermissive",  # dynamic shared memory declared in an anonymous namespace is defined elsewhere
    "-ffp-contract=off",
    "-fstack-clash-protection",  # a frame too large for the stack faults on the guard page
    *("-fno-extern-tls-init", "-fno-gnu-unique", "-fno-ipa-icf"),  # one plain symbol per shared array and kernel
)
_MODE_FLAGS: dict[Mode, tuple[str, ...]] = {
    "fast": ("-O2",),
    "check": (
        "-O1",
        "-fsanitize=thread",
        *("-fsanitize=undefined,float-cast-overflow,bounds-strict", "-fno-sanitize=vptr"),
        *("--param=tsan-instrument-func-entry-exit=0", "--param=tsan-distinguish-volatile=1"),
        "-fno-tree-loop-distribute-patterns",  # a loop turned into memset would go unseen
    ),
}
# All dynamic shared arrays of a module are one memory: every symbol that the object leaves open is put there.
_DYNAMIC_SHARED = '.section .tbss,"awT",@nobits\n.balign 128\n{symbols}.zero {size}\n.section .note.GNU-stack,""\n'


def build(code: str, flags: Sequence[str], folders: Sequence[Path], kernels: Sequence[str], mode: Mode) -> "Library":
    """Return the library of a source with the kernels named, compiled for a mode where the cache has none."""
    table = "".join(f"EMU_EXPORT({i}, {name})\n" for i, name in enumerate(kernels))
    text = f'{code}\n#line 1 "name_expressions"\n{table}'
    options = [*_COMMON_FLAGS, *_MODE_FLAGS[mode], *flags, *(f"-I{folder}" for folder in cuda_include_folders())]
    key = hash_of(text, options, HEADER, runtime_library().name, *included_files(code, folders))
    library = cache_folder() / f"module-{key}.so"
    if not library.exists():
        # each worker compiles in a folder of its own; the last to finish wins, with the same content
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            os.replace(_compile(text, options, folders, Path(scratch)), library)
    return _load(library, code)


def _precompiled_header(options: Sequence[str]) -> Path:
    """Return a copy of the header that has its compiled form beside it, where g++ looks for it first."""
    options = [option for option in options if not option.startswith("-D")]  # the header asks for no macro of a source
    folder = cache_folder() / f"header-{hash_of(options, HEADER)}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            built = Path(scratch) / "header"
            built.mkdir()
            header = Path(shutil.copy(HEADER, built))
            compile_cpp([*options, "-x", "c++-header", header, "-o", f"{header}.gch"])
            with contextlib.suppress(OSError):  # another worker was faster
                built.rename(folder)
    return folder / HEADER.name


def _compile(text: str, options: Sequence[str], folders: Sequence[Path], scratch: Path) -> Path:
    source, objects, memory, library = (scratch / name for name in (SOURCE_NAME, "kernel.o", "shared.s", "kernel.so"))
    source.write_text(text)
    try:
        include = [*(f"-I{folder}" for folder in folders), "-include", str(_precompiled_header(options))]
        compile_cpp([*options, *include, "-x", "c++", "-c", source, "-o", objects])
    except CompilationError as error:
        raise KernelCheckError(SOURCE_NAME, [Finding("compilation error", detail=str(error))]) from None
    open_symbols = {symbol.name for symbol in _symbols(objects) if symbol.type == "TLS" and symbol.section == "UND"}
    names = ("emu_dynamic_shared", *sorted(open_symbols))
    labels = "".join(f".globl {name}\n.type {name},@object\n{name}:\n" for name in names)
    memory.write_text(_DYNAMIC_SHARED.format(symbols=labels, size=MAX_DYNAMIC_SHARED))
    compile_cpp(["-shared", "-Wl,-Bsymbolic", objects, memory, runtime_library(), "-o", library])
    return library


@functools.cache
def _load(path: Path, code: str) -> "Library":
    return Library(path, code)


class _Symbol:
    """A line of ``readelf -sW``."""

    def __init__(self, fields: list[str]) -> None:
        self.value, self.size = int(fields[1], 16), int(fields[2], 0)
        self.type, self.section, self.name = fields[3], fields[6], fields[7]


def _symbols(file: Path) -> list[_Symbol]:
    text = subprocess.run(["readelf", "-sW", str(file)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines()]
    return [_Symbol(row) for row in rows if len(row) >= 8 and row[0].rstrip(":").isdigit()]


class Parameter(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_int),
        ("pointee_bytes", ctypes.c_int),
        ("type", ctypes.c_char),
        ("is_pointer", ctypes.c_char),
        ("is_const", ctypes.c_char),
    ]


class Entry(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_void_p),
        ("address", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(Parameter)),
        ("n", ctypes.c_int),
    ]


class Library:
    """A compiled module: its kernels, its shared arrays, its source lines."""

    def __init__(self, path: Path, code: str) -> None:
        runtime()
        self.path = path
        self.source = code.splitlines()
        self.library = ctypes.CDLL(str(path))
        symbols = _symbols(path)
        self.addresses = {s.name: s.value for s in symbols if s.section != "UND"}
        self.base = ctypes.addressof(Entry.in_dll(self.library, "emu_entry_0")) - self.addresses["emu_entry_0"]
        self.image = (self.base, self.base + max(s.value + s.size for s in symbols if s.type in ("OBJECT", "FUNC")))
        self.functions: dict[int, list[str]] = {}
        for symbol in symbols:
            if symbol.type == "FUNC" and symbol.section != "UND":
                self.functions.setdefault(symbol.value, []).append(symbol.name)
        self._shared_arrays: dict[int, list[tuple[int, int]]] = {}
        self._places: dict[int, Place | None] = {}
        self.shared = {s.name: (s.value, s.size) for s in symbols if s.type == "TLS" and s.size and s.section != "UND"}

    def entry(self, number: int) -> Entry:
        """Return the table entry of a kernel."""
        return Entry.in_dll(self.library, f"emu_entry_{number}")

    def shared_arrays(self, number: int) -> list[tuple[int, int]]:
        """Return (offset, size) of the __shared__ arrays of a kernel and of the device functions."""
        if number not in self._shared_arrays:
            self._shared_arrays[number] = self._find_shared_arrays(number)
        return self._shared_arrays[number]

    def _find_shared_arrays(self, number: int) -> list[tuple[int, int]]:
        own = self._prefixes(self.entry(number))
        n_kernels = sum(name.startswith("emu_entry_") for name in self.addresses)
        others = {prefix for i in range(n_kernels) for prefix in self._prefixes(self.entry(i))} - own
        return [
            place
            for name, place in self.shared.items()
            if any(map(name.startswith, own)) or not any(map(name.startswith, others))
        ]

    def _prefixes(self, entry: Entry) -> set[str]:
        """Return what the mangled names of a kernel's local variables begin with."""
        names = self.functions.get((entry.address or 0) - self.base, [])
        return {f"_ZZ{n[2:]}E" if n.startswith("_Z") else f"_ZZ{len(n)}{n}E" for n in names}

    def find_place(self, address: int) -> Place | None:
        """Return the line of the source that a return address belongs to."""
        if address not in self._places:
            self._places[address] = self._find_place(address)
        return self._places[address]

    def _find_place(self, address: int) -> Place | None:
        command = ["addr2line", "-i", "-e", str(self.path), hex(address - self.base - 1)]
        frames = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        for frame in frames:  # from the innermost inlined function outwards
            file, _, line = frame.split(" ")[0].rpartition(":")
            ours = Path(file).name != HEADER.name and Path(file).parent not in cuda_include_folders()
            if ours and line.isdigit() and int(line):
                return self.place(file, int(line))
        return None

    def place(self, file: str, line: int) -> Place:
        """Return the place with the text of its line."""
        name = Path(file).name
        in_source = name == SOURCE_NAME and line <= len(self.source)
        text = self.source[line - 1] if in_source else linecache.getline(file, line)
        return Place(name, line, text.strip())
