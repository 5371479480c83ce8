"""Which threads the CPU kernels run on, so that neither concurrent calls nor a fork can end the process.

Numba's layers differ: TBB bears concurrent callers and forks; OpenMP aborts a forked child; the work queue aborts when
two threads call at once. TBB is Numba's own first choice, but a pip-installed one is not found by itself. So:

- TBB is loaded where it is installed, unless the user named a layer or Numba's threads run already.
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

PARALLEL, LOCKED, SERIAL = "parallel", "locked", "serial"
TURN = threading.Lock()

_TBB_NAMES = {"linux": "libtbb.so.12", "darwin": "libtbb.12.dylib", "win32": "tbb12.dll"}
_LAYERS_WITH_TBB = ("default", "tbb", "safe", "threadsafe", "forksafe")

config: Any = numba.config

_forked = False
_mode: str | None = None


def mode() -> str:
    """Return how to launch a kernel: PARALLEL, LOCKED (parallel, while holding TURN) or SERIAL."""
    global _mode
    if _mode is None:
        _mode = _find_mode()
    return _mode


def layer() -> str:
    """Return the name of Numba's threading layer; starts its threads if they do not run yet."""
    running = _running()
    if running is None:
        _load_tbb()
        numba.get_num_threads()  # starts the threads
        running = _running() or "none"
    return running


def _find_mode() -> str:
    if config.DISABLE_JIT:
        return SERIAL
    if _forked and not (_running() == "tbb" if _running() else _load_tbb()):
        return SERIAL
    return LOCKED if layer() == "workqueue" else PARALLEL


def _running() -> str | None:
    """Return the layer whose threads run, None if there are none yet."""
    try:
        name: str = getattr(numba, "threading_layer")()  # noqa: B009 - unknown to Numba's type stubs
    except ValueError:
        return None
    return name


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
