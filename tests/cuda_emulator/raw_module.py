"""``RawModule``: CUDA C++ source in, kernels out that are called as CuPy's are."""

import ctypes
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import Finding, KernelCheckError
from .launch import Array, Region, check_launch_shape, guarded, run
from .library import MAX_DYNAMIC_SHARED, Library, Parameter, build
from .settings import Mode, current_settings

DEFAULT_SHARED = 48 << 10  # bytes that a kernel may use, static and dynamic, unless it asks for more

_WITHOUT_MEANING_HERE = re.compile(
    r"--?(use_fast_math|fmad|ftz|prec-div|prec-sqrt|extra-device-vectorization|gpu-architecture|arch|lineinfo|"
    r"generate-line-info|device-debug|G|default-device|device-as-default-execution-space|restrict|diag-suppress|"
    r"maxrregcount|dopt|disable-warnings|w)\b.*"
)


class RawModule:
    """Stands in for ``cupy.RawModule``: the same constructor, the same ``get_function``.

    Parameters
    ----------
    code : str
        CUDA C++ source.
    options : sequence of str
        ``-I``, ``-D`` and ``-std`` reach the compiler; options that only concern a GPU are accepted.
    backend : str
        Accepted and ignored.
    name_expressions : sequence of str, optional
        Kernels to instantiate, such as ``"scale<float, 3>"``. Kernels with C linkage need no mention.
    """

    def __init__(
        self,
        code: str,
        *,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        name_expressions: Sequence[str] | None = None,
    ) -> None:
        self.code = code
        self.backend = backend
        self.name_expressions = tuple(name_expressions or ())
        self._flags, self._include_folders = _read_options(options)
        self._libraries: dict[tuple[tuple[str, ...], Mode], Library] = {}

    def get_function(self, name: str) -> "Kernel":
        """Return the kernel of that name, written as in ``name_expressions``."""
        return Kernel(self, name)

    def built(self, name: str, mode: Mode) -> tuple[Library, int]:
        """Return the library that holds the kernel, and its number in there; compile where needed."""
        kernels = tuple(dict.fromkeys((*self.name_expressions, name)))
        if (kernels, mode) not in self._libraries:
            self._libraries[kernels, mode] = build(self.code, self._flags, self._include_folders, kernels, mode)
        return self._libraries[kernels, mode], kernels.index(name)


def _read_options(options: Sequence[str]) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    flags, folders, standard = [], [], "-std=gnu++17"
    for option in options:
        if option.startswith(("-I", "--include-path=")):
            folders.append(Path(option.removeprefix("-I").removeprefix("--include-path=")))
        elif option.startswith(("-D", "--define-macro=")):
            flags.append("-D" + option.removeprefix("-D").removeprefix("--define-macro="))
        elif match := re.fullmatch(r"--?std=c\+\+(\d+)", option):
            standard = f"-std=gnu++{max(17, int(match[1]))}"
        elif not _WITHOUT_MEANING_HERE.fullmatch(option):
            msg = f"RawModule: options must be -I, -D, -std or known options of NVRTC, got {option!r}"
            raise ValueError(msg)
    return (standard, *flags), tuple(folders)


class Kernel:
    """A kernel, called as ``kernel(grid, block, args, shared_mem=0)``.

    Attributes
    ----------
    max_dynamic_shared_size_bytes : int
        As in CuPy: to be raised before a launch that uses more than 48 KiB of shared memory.
    """

    def __init__(self, module: RawModule, name: str) -> None:
        self.module = module
        self.name = name
        self.max_dynamic_shared_size_bytes = 0

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[object],
        *,
        shared_mem: int = 0,
        stream: object = None,
    ) -> None:
        """Run the kernel on arrays (for pointers), NumPy scalars, structs, and None or 0 (for a null pointer).

        Raises
        ------
        KernelCheckError
            The arguments do not fit the kernel's parameters, a GPU would refuse the launch, or the kernel is wrong.
        """
        full_grid, full_block = check_launch_shape(self.name, grid, block)
        library, number = self.module.built(self.name, current_settings().mode)
        entry = library.entry(number)
        if len(args) != entry.n:
            raise self._wrong_argument(f"the kernel takes {entry.n} arguments, got {len(args)}")
        parameters = entry.parameters[: entry.n]
        args = [_as_cupy_takes_it(argument, parameter) for argument, parameter in zip(args, parameters, strict=True)]
        for position, (argument, parameter) in enumerate(zip(args, parameters, strict=True)):
            self._check_argument(position, argument, parameter)
        arrays = [
            (argument, parameter.is_const == b"\1")
            for argument, parameter in zip(args, parameters, strict=True)
            if isinstance(argument, np.ndarray)
        ]
        shared = self._shared_regions(library, library.shared_arrays(number), shared_mem)
        with guarded(arrays) as (regions, addresses):
            remaining = iter(addresses)
            values = [
                struct.pack("<Q", next(remaining)) if isinstance(argument, np.ndarray) else _scalar_bytes(argument)
                for argument in args
            ]
            buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
            pointers = (ctypes.c_void_p * max(1, len(buffers)))(*map(ctypes.addressof, buffers))
            run(
                self.name,
                entry.call,
                pointers,
                full_grid,
                full_block,
                regions + shared,
                library.find_place,
                image=library.image,
                dynamic_shared_bytes=shared_mem,
                place=library.place,
            )

    def _shared_regions(self, library: Library, static: list[tuple[int, int]], dynamic: int) -> list[Region]:
        total = sum(size for _, size in static) + dynamic
        limit = DEFAULT_SHARED if self.max_dynamic_shared_size_bytes < dynamic else MAX_DYNAMIC_SHARED
        if total > limit:
            detail = (
                f"{total} bytes of shared memory, {dynamic} of them dynamic, must be at most {limit} "
                f"(max_dynamic_shared_size_bytes is {self.max_dynamic_shared_size_bytes})"
            )
            raise KernelCheckError(self.name, [Finding("bad launch configuration", detail=detail)])
        # thread-local storage: the address holds for the thread that launches
        anchor = ctypes.addressof(ctypes.c_char.in_dll(library.library, "emu_dynamic_shared"))
        start = library.addresses["emu_dynamic_shared"]
        places = [(anchor + offset - start, size) for offset, size in static] + [(anchor, dynamic)]
        return [
            Region(begin, begin + size, shared=True, initialised=np.zeros(size, np.uint8))
            for begin, size in places
            if size
        ]

    def _check_argument(self, position: int, argument: object, parameter: Parameter) -> None:
        words = f"argument {position}"
        is_pointer = parameter.is_pointer == b"\1"
        if isinstance(argument, np.ndarray) or argument is None:
            if not is_pointer:
                raise self._wrong_argument(f"{words} must be a scalar of {parameter.bytes} bytes, got an array or None")
            if argument is not None:
                self._check_pointee(words, argument, parameter)
            return
        if is_pointer:
            raise self._wrong_argument(f"{words} must be an array or None, got {type(argument).__name__}")
        if not isinstance(argument, (np.generic, bool, int, float)):
            raise self._wrong_argument(f"{words} must be a NumPy scalar, got {type(argument).__name__}")
        given, wanted = len(_scalar_bytes(argument)), parameter.bytes
        is_float = isinstance(argument, (float, np.floating))
        if given != wanted or (parameter.type in b"if" and is_float != (parameter.type == b"f")):
            kind = {b"i": "an integer", b"f": "a float"}.get(parameter.type, "a value")
            got = f"{type(argument).__name__} of {given} bytes"
            raise self._wrong_argument(f"{words} must be {kind} of {wanted} bytes, got {got}")

    def _check_pointee(self, words: str, array: Array, parameter: Parameter) -> None:
        dtype, bytes_each = array.dtype, parameter.pointee_bytes
        expected = {
            b"f": (dtype.kind == "f", f"float{8 * bytes_each}"),
            b"i": (dtype.kind in "iub", f"an integer type of {bytes_each} bytes"),
            b"h": (dtype in (np.float16, np.int16), "float16 or int16"),
            b"b": (dtype.name in ("bfloat16", "uint16"), "bfloat16 or uint16"),
        }
        if parameter.type in expected:
            fits, wanted = expected[parameter.type]
            if not fits or dtype.itemsize != bytes_each:
                raise self._wrong_argument(f"{words} must be an array of {wanted}, got {dtype}")

    def _wrong_argument(self, detail: str) -> KernelCheckError:
        return KernelCheckError(self.name, [Finding("wrong argument", detail=detail)])


def _as_cupy_takes_it(argument: object, parameter: Parameter) -> object:
    """Return a struct given as an array as a scalar, and a null pointer given as an integer as None."""
    if parameter.is_pointer == b"\1":
        return None if isinstance(argument, (int, np.integer)) and argument == 0 else argument
    return argument[()] if isinstance(argument, np.ndarray) and argument.ndim == 0 else argument


def _scalar_bytes(value: object) -> bytes:
    """Return the bytes that CuPy passes for a scalar: Python's numbers have 8."""
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<?", value)
    if isinstance(value, int):
        return struct.pack("<q", value)
    return struct.pack("<d", value) if isinstance(value, float) else struct.pack("<Q", 0)
