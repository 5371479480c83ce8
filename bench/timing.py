"""Medians taken side by side: contenders are interleaved, samples taken while the machine was busy are thrown away."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PRESSURE = Path("/proc/pressure/cpu")
_BUSY_SHARE = 0.03  # of a sample's time that some process may have waited for a core


@dataclass
class Samples:
    """Times of one contender in seconds a call."""

    clean: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)

    @property
    def used(self) -> list[float]:
        """Return the clean samples, or all where fewer than three are clean."""
        return self.clean if len(self.clean) >= 3 else sorted(self.clean + self.rejected)

    def summary(self) -> dict[str, float | int]:
        """Return median, quartile spread and counts."""
        times = self.used
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
        return {
            "median_ms": statistics.median(times) * 1e3,
            "spread_ms": (high - low) * 1e3,
            "clean": len(self.clean),
            "rejected": len(self.rejected),
        }


def interleave(
    calls: dict[str, Callable[[], Any]], *, rounds: int = 9, sample_ms: float = 4.0, budget_s: float = 60.0
) -> dict[str, Samples]:
    """Time every call in turn, `rounds` clean samples each or until the budget is spent.

    A call ends when its result is complete: device contenders synchronise inside.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # warm up: compilation, caches, page faults of preallocated outputs
        repeats[name] = max(1, int(sample_ms / 1e3 / max(_timed(call, 1), 1e-7)))
    samples = {name: Samples() for name in calls}
    start = time.perf_counter()
    backwards = False
    while time.perf_counter() - start < budget_s:
        open_names = [name for name in calls if len(samples[name].clean) < rounds]
        if not open_names:
            break
        for name in reversed(open_names) if backwards else open_names:
            before = _pressure()
            seconds = _timed(calls[name], repeats[name])
            waited = _pressure() - before
            quiet = waited <= _BUSY_SHARE * seconds * 1e6
            (samples[name].clean if quiet else samples[name].rejected).append(seconds / repeats[name])
            if not quiet:
                time.sleep(0.1)
        backwards = not backwards
    return samples


def _timed(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def _pressure() -> int:
    """Return the microseconds that runnable processes have waited for a core; 0 where the system does not tell."""
    try:
        text = _PRESSURE.read_text()
    except OSError:
        return 0
    return int(text.split("total=", 1)[1].split("\n", 1)[0])


def peak_extra_bytes(call: Callable[[], Any]) -> int | None:
    """Return how far the resident memory rises above its start during a call; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
    except OSError:
        return None
    del result
    return max(0, peak - before)


def _status(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) * 1024
    msg = f"no {field_name} in /proc/self/status"
    raise OSError(msg)
