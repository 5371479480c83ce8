"""Medians taken side by side: contenders are interleaved, samples taken while the machine was busy are thrown away."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.registry import Call

_PRESSURE = Path("/proc/pressure/cpu")
_BUSY_SHARE = 0.03  # of a sample's time that some process may have waited for a core
# Seconds of calls before each sample, at least one unless it takes longer than _LONG: woken threads share a core with
# others, of this process too, for milliseconds before the system moves them, and are half as fast until then.
_WARM, _LONG = 0.01, 0.2
LEAST = 3  # samples that every contender gets
_MOST_TRIES = 3  # samples that may be taken for each clean one that is wanted

# (call, repeats) -> seconds of one call
Clock = Callable[[Call, int], float]


@dataclass
class Samples:
    """Times of one contender in seconds a call."""

    clean: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)

    @property
    def used(self) -> list[float]:
        """Return the clean samples, or all where too few are clean."""
        return self.clean if len(self.clean) >= LEAST else self.clean + self.rejected

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
    calls: dict[str, Call], *, clock: Clock, rounds: int = 9, sample_ms: float = 4.0, budget_s: float = 12.0
) -> dict[str, Samples]:
    """Time calls that have been warmed up in turn, `rounds` clean samples each.

    Each has the same share of the budget; a call too slow for its share is sampled three times.
    """
    once = {name: max(clock(call, 1), 1e-7) for name, call in calls.items()}
    samples = {name: Samples() for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    names = list(calls)
    while names:
        for name in names:
            time.sleep(0.003)  # the threads of the contender before go to sleep
            start = time.perf_counter()
            if once[name] < _LONG:
                clock(calls[name], max(1, int(_WARM / once[name])))
            repeats = max(1, int(sample_ms / 1e3 / once[name]))
            sample(samples[name], partial(clock, calls[name], repeats))
            spent[name] += time.perf_counter() - start
        names = [
            name for name in reversed(names) if _wanting(samples[name], rounds, spent[name] < budget_s / len(calls))
        ]
    return samples


def _wanting(samples: Samples, rounds: int, affordable: bool) -> bool:
    taken = len(samples.clean) + len(samples.rejected)
    most = _MOST_TRIES * rounds if affordable else LEAST
    return len(samples.clean) < rounds and taken < most


def sample(samples: Samples, measure: Callable[[], float]) -> None:
    """Take one sample, and wait a moment for a quiet machine after one that was disturbed."""
    start = time.perf_counter()
    before = pressure()
    seconds = measure()
    waited = pressure() - before
    if waited <= _BUSY_SHARE * (time.perf_counter() - start) * 1e6:
        samples.clean.append(seconds)
        return
    samples.rejected.append(seconds)
    for _ in range(10):
        before = pressure()
        time.sleep(0.1)
        if pressure() - before <= _BUSY_SHARE * 1e5:
            break


def pressure_is_known() -> bool:
    """Return whether the system tells when it is busy; where it does not, no sample is rejected."""
    return _PRESSURE.exists()


def pressure() -> int:
    """Return the microseconds that runnable processes have waited for a core; 0 where the system does not tell."""
    try:
        text = _PRESSURE.read_text()
    except OSError:
        return 0
    return int(text.split("total=", 1)[1].split("\n", 1)[0])
