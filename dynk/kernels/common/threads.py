"""Which threads the CPU kernels run on, so that neither concurrent calls nor a fork can end the process.

Numba's layers differ: TBB bears concurrent callers and forks; OpenMP aborts a forked child; the work queue aborts when
two threads call at once. TBB is Numba's own first choice, but a pip-installed one is not found by itself. PyTorch's
threads wait busily for milliseconds after each of its operations: others have to share the cores with them. So, unless
the user named a layer or Numba's threads run already:

- Where PyTorch has brought its OpenMP (the GNU one), kernels run on its threads, and on no more of them than it does.
- Else TBB is loaded where it is installed.

And in any case:

- A forked child without TBB runs kernels serially.
- Calls take turns on the work queue.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numba

PARALLEL, SHARED, LOCKED, SERIAL = "parallel", "shared", "locked", "serial"
TURN = threading.Lock()

_TBB_NAMES = {"linux": "libtbb.so.12", "darwin": "libtbb.12.dylib", "win32": "tbb12.dll"}
_LAYERS_WITH_TBB = ("default", "tbb", "safe", "threadsafe", "forksafe")
_LAYERS = ["tbb", "omp", "workqueue"]  # in Numba's own order

config: Any = numba.config

_forked = False
_shares = False  # kernels run on the threads of PyTorch
_mode: str | None = None


def mode() -> str:
    """Return how to launch a kernel: PARALLEL, SHARED (by `call_shared`), LOCKED (holding TURN) or SERIAL."""
    global _mode
    if _mode is None:
        _mode = _find_mode()
    return _mode


def layer() -> str:
    """Return the name of Numba's threading layer; starts its threads if they do not run yet."""
    global _shares
    running = _running()
    if running is None:
        _shares = not _forked and _load_openmp_of_torch()
        if not _shares:
            _load_tbb()
        numba.get_num_threads()  # starts the threads
        running = _running() or "none"
    return running


def call_shared(kernel: Any, arguments: tuple[Any, ...]) -> None:
    """Call a kernel on no more threads than PyTorch uses: its pool ends and starts some when their number changes."""
    before = numba.get_num_threads()
    count = sys.modules["torch"].get_num_threads()
    if before <= count:
        kernel(*arguments)
        return
    numba.set_num_threads(count)
    try:
        kernel(*arguments)
    finally:
        numba.set_num_threads(before)


def _find_mode() -> str:
    if config.DISABLE_JIT:
        return SERIAL
    if _forked and not (_running() == "tbb" if _running() else _load_tbb()):
        return SERIAL
    if layer() == "workqueue":
        return LOCKED
    return SHARED if _shares else PARALLEL


def _running() -> str | None:
    """Return the layer whose threads run, None if there are none yet."""
    try:
        name: str = getattr(numba, "threading_layer")()  # noqa: B009 - unknown to Numba's type stubs
    except ValueError:
        return None
    return name


def _load_openmp_of_torch() -> bool:
    """Make Numba take the OpenMP that PyTorch has loaded, and return whether it will."""
    torch: Any = sys.modules.get("torch")
    if sys.platform != "linux" or not hasattr(torch, "get_num_threads"):  # or it is being imported
        return False
    if config.THREADING_LAYER != "default" or config.THREADING_LAYER_PRIORITY != _LAYERS:
        return False
    path = _openmp_of(Path(torch.__file__).parent)
    if path is None:
        return False
    try:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)  # found before any other then
        importlib.import_module("numba.np.ufunc.omppool")
    except (OSError, ImportError):
        return False
    config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    return True


def _openmp_of(package: Path) -> str | None:
    """Return the one GNU OpenMP that this process has loaded, or that of a package; None if it is not known which."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
    own = {path for path in loaded if path.startswith((f"{package}/", f"{package}.libs/"))}
    return (own or loaded).pop() if len(own or loaded) == 1 else None


def _load_tbb() -> bool:
    """Make TBB available to Numba, and return whether Numba will take it."""
    if config.THREADING_LAYER not in _LAYERS_WITH_TBB:
        return False
    name = _TBB_NAMES.get(sys.platform, "")
    folders = ("Library/bin",) if sys.platform == "win32" else ("lib",)
    for path in (*(str(Path(sys.prefix, folder, name)) for folder in folders), name):
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            break
        except OSError:
            continue
    try:
        importlib.import_module("numba.np.ufunc.tbbpool")
    except ImportError:
        return False
    return True


def _after_fork() -> None:
    global _forked, _mode
    _forked, _mode = True, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
