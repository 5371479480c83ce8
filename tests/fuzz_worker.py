"""Runs malformed calls in a process of its own, so that a crash is seen and the call that caused it is known.

    python tests/fuzz_worker.py SURFACE SEED FIRST END [PROGRESS_FILE]

prints one line of JSON: what was wrong with which calls, how many calls raised what, and how much memory they took. To
look at one call, run it alone: END = FIRST + 1.

No kernel runs: a launch is a failure of its own. Memory is held in two ways: RLIMIT_AS stands one GiB above what the
process has mapped once everything is imported, so that asking for more is a MemoryError, which is a failure; and the
growth of the largest resident size is reported for the test to judge.
"""

from __future__ import annotations

import collections
import json
import os
import re
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import dynk_torch  # noqa: F401
from fuzz_calls import OPERATORS, Call
from fuzz_corruptions import malformed

from dynk import _dispatch

EXCEPTIONS = (ValueError, TypeError, NotImplementedError)
HEADROOM = 1 << 30
WARM_UP = 300  # calls of another seed, after which all is imported that is going to be


def fault(call: Call) -> str | tuple[str, str]:
    """Run a call and return what is wrong with how it ended, or the type and message of the right kind of error."""
    try:
        result = call.run()
    except EXCEPTIONS as error:
        message = str(error)
        if type(error) not in EXCEPTIONS:
            return f"raised a {type(error).__name__}: {message}"
        if not message.startswith(f"{call.function}: "):
            return f"not in dynk's words: {type(error).__name__}: {message}"
        names = {"grad_out", "out", "grads", "needs", "backend", *call.op.arrays, *call.op.options}
        said = set(re.findall(r"\w+", message))
        if not said & names:
            return f"names no argument: {message}"
        if call.sole is not None and call.sole not in said:
            return f"names another argument than {call.sole}: {message}"
        if len(message) > 1500:
            return f"{len(message)} characters of message: {message[:200]}"
        return type(error).__name__, message
    except BaseException as error:
        return f"raised {type(error).__name__}: {error!s:.300}"
    return f"accepted, with {type(result).__name__}"


def refuse_launch(*args: Any, **keywords: Any) -> None:
    msg = "a kernel was launched"
    raise AssertionError(msg)


def limit_memory() -> None:
    status = Path("/proc/self/statm")
    if status.exists():
        mapped = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + HEADROOM, resource.RLIM_INFINITY))


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main(surface: str, seed: int, first: int, end: int, progress: str | None = None) -> None:
    warnings.simplefilter("ignore")
    for name in _dispatch.BACKENDS:
        _dispatch.runner_of(name).run = refuse_launch
    for index in range(WARM_UP):
        fault(malformed(surface, -1, index))
    limit_memory()
    before = peak_mib()
    file = os.open(progress, os.O_WRONLY | os.O_CREAT) if progress else None
    ends: collections.Counter[str] = collections.Counter()
    failures = []
    for index in range(first, end):
        if file is not None:
            os.pwrite(file, f"{index:10d}".encode(), 0)
        call = malformed(surface, seed, index)
        how = fault(call)
        if isinstance(how, str):
            failures.append(f"{index}: {call!r}: {how}")
        else:
            ends[how[0]] += 1
            if end - first == 1:
                print(repr(call), *how, sep="\n")
    operators = [op.name for op in OPERATORS]
    print(json.dumps({"failures": failures, "ends": ends, "grown_mib": peak_mib() - before, "operators": operators}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
