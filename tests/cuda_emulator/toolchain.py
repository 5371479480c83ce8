"""The compiler, NVIDIA's headers, and a cache of compiled libraries that parallel test workers share."""

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
HEADER = HERE / "cuda_on_cpu.h"
OLDEST_COMPILER = 11  # the first to tell volatile accesses apart
RUNTIME_FILES = sorted((HERE / "runtime").iterdir())

_NEEDED_HEADERS = ("cuda_fp16.h", "crt/host_defines.h")
_QUOTED_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


@functools.cache
def emulator_unavailable() -> str | None:
    """Return why CUDA kernels cannot be emulated on this machine, or None where they can.

    Examples
    --------
    >>> pytestmark = pytest.mark.skipif(bool(emulator_unavailable()), reason=str(emulator_unavailable()))
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the CUDA emulator runs on x86-64 Linux, not on {platform.machine()} {platform.system()}"
    for tool in ("g++", "readelf", "addr2line"):
        if shutil.which(tool) is None:
            return f"the CUDA emulator needs {tool}"
    if int(_compiler_version().split(".")[0]) < OLDEST_COMPILER:
        return f"the CUDA emulator needs g++ {OLDEST_COMPILER} or newer, found {_compiler_version()}"
    if not cuda_include_folders():
        return (
            "the CUDA emulator needs CUDA's headers: pip install nvidia-cuda-runtime nvidia-cuda-crt, or set CUDA_PATH"
        )
    return None


@functools.cache
def cuda_include_folders() -> tuple[Path, ...]:
    """Return the folders that hold CUDA's headers, those of the pip packages first; empty where there are none."""
    folders: list[Path] = []
    nvidia = importlib.util.find_spec("nvidia")
    for location in (nvidia.submodule_search_locations or []) if nvidia else []:
        folders += sorted(Path(location).glob("*/include"), reverse=True)
    folders += [Path(os.environ[name]) / "include" for name in ("CUDA_PATH", "CUDA_HOME") if name in os.environ]
    folders.append(Path("/usr/local/cuda/include"))
    for folder in folders:
        if all((folder / header).is_file() for header in _NEEDED_HEADERS):
            return (folder,)
    # the CUDA 12 packages spread them over several folders
    found = [next((f for f in folders if (f / header).is_file()), None) for header in _NEEDED_HEADERS]
    return tuple(dict.fromkeys(folder for folder in found if folder)) if all(found) else ()


@functools.cache
def cache_folder() -> Path:
    """Return the folder of compiled libraries: ``DYNK_EMULATOR_CACHE``, or one per user among the temporary files."""
    default = Path(tempfile.gettempdir()) / f"dynk-cuda-emulator-{os.getuid()}"
    folder = Path(os.environ.get("DYNK_EMULATOR_CACHE", default))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def hash_of(*parts: object) -> str:
    """Return a short hash of the parts' text, files by their content."""
    digest = hashlib.sha256(_compiler_version().encode())
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:24]


def included_files(code: str, folders: Sequence[Path]) -> list[Path]:
    """Return the files below ``folders`` that the code includes, directly or through one another."""
    found: dict[Path, None] = {}
    queue = [code]
    while queue:
        for name in _QUOTED_INCLUDE.findall(queue.pop()):
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is not None and path not in found:
                found[path] = None
                queue.append(path.read_text())
    return list(found)


@functools.cache
def runtime_library() -> Path:
    """Return the compiled runtime, compiling it where the cache has none."""
    library = cache_folder() / f"runtime-{hash_of(*RUNTIME_FILES)}.so"
    if not library.exists():
        sources = [file for file in RUNTIME_FILES if file.suffix == ".cpp"]
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            output = Path(scratch) / "runtime.so"
            compile_cpp(["-std=c++17", "-O2", "-g", "-fPIC", "-shared", *sources, "-o", output])
            os.replace(output, library)
    return library


class CompilationError(Exception):
    """g++ refuses the source; the message is what it said."""


def compile_cpp(arguments: Iterable[str | Path]) -> None:
    """Run g++."""
    done = subprocess.run(["g++", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilationError(done.stderr)


@functools.cache
def _compiler_version() -> str:
    done = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True)
    return done.stdout.strip()
