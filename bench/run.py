"""`python -m dynk bench`: run the cases, print a table, write results/<device>.json."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import dynk
from bench import limits, registry
from bench.timing import interleave, peak_extra_bytes
from dynk import testing
from dynk.commands import doctor

RESULTS = Path(__file__).parent / "results"
# Peers may sum in longer chains than dynk allows itself.
PEER_SLACK = 16.0
OVERHEAD = "overhead of a public call on tiny arrays"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dynk bench", description=__doc__)
    parser.add_argument("--only", default="", help="run the cases whose operator or label contains this")
    parser.add_argument("--rounds", type=int, default=9, help="clean samples of each contender (default 9)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a case may take (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines instead of a table")
    parser.add_argument("--compare", type=Path, help="show the ratio of each time to an earlier result file")
    parser.add_argument("--output", type=Path, help="the result file (default bench/results/<device>.json)")
    parser.add_argument("--no-peers", action="store_true", help="time dynk alone")
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(0)
    machine = doctor.collect()
    report: dict[str, Any] = {
        "device": machine["machine"],
        "versions": machine["versions"] | {"dynk": dynk.__version__},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "limits": limits.measure(),
        "rows": [],
    }
    if options.only in OVERHEAD:
        report["rows"].append(overhead(options.rounds))
    for case in registry.cases():
        if options.only not in f"{case.operator} {case.label}":
            continue
        for direction in ("forward", "backward"):
            with Console(stderr=True).status(f"{case.operator} {direction}: {case.label}"):
                row = measure(
                    case, direction, rng, report["limits"], options.rounds, options.budget, not options.no_peers
                )
            report["rows"].append(row)
    earlier = json.loads(options.compare.read_text()) if options.compare else None
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        show(report, earlier)
    if not options.only and not options.no_peers:
        path = options.output or RESULTS / f"{_slug(machine['machine'])}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measure(
    case: registry.Case,
    direction: str,
    rng: np.random.Generator,
    limit: dict[str, float],
    rounds: int,
    budget: float,
    with_peers: bool,
) -> dict[str, Any]:
    """Check every contender against the reference, then time them side by side."""
    arrays = case.arrays(rng)
    grad_out = testing.rounded(rng.standard_normal(case.plan.out_shape), case.dtype)
    contenders = _dynk(case, direction, arrays, grad_out)
    yardsticks = set()
    for peer in registry.peers(case, direction) if with_peers else []:
        contenders[peer.name] = peer.make(arrays, grad_out, case.options, direction)
        if peer.yardstick:
            yardsticks.add(peer.name)
    verify(case, direction, arrays, grad_out, {n: c for n, c in contenders.items() if n not in yardsticks})
    memory = {name: peak_extra_bytes(call) for name, call in contenders.items()}
    samples = interleave(contenders, rounds=rounds, budget_s=budget)
    moved = case.bytes_moved(direction)
    cached = moved < 16e6
    return {
        "operator": case.operator,
        "case": case.label,
        "shape": "x".join(map(str, case.shapes[0] or ())),
        "dtype": case.dtype,
        "direction": direction,
        "bytes_moved": moved,
        "limit_ms": moved / limit["copy_cache_GBs" if cached else "copy_memory_GBs"] / 1e6,
        "limit": "copy within the cache" if cached else "copy through memory",
        "contenders": {
            name: sample.summary() | {"extra_MB": _megabytes(memory[name]), "yardstick": name in yardsticks}
            for name, sample in samples.items()
        },
    }


def verify(
    case: registry.Case,
    direction: str,
    arrays: registry.Arrays,
    grad_out: Any,
    contenders: dict[str, Callable[[], tuple[Any, ...]]],
) -> None:
    """Raise AssertionError for a contender whose result is wrong: no time is shown for one."""
    call = testing.Call(case.op, arrays, case.options)
    if direction == "forward":
        wants, magnitudes = ((part,) for part in call.expected_forward())
    else:
        wants, magnitudes = call.expected_backward(grad_out)
    given = [(want, terms) for want, terms in zip(wants, magnitudes, strict=True) if want is not None]
    for name, contender in contenders.items():
        slack = 1.0 if name.startswith("dynk") else PEER_SLACK
        for got, (want, terms) in zip(contender(), given, strict=True):
            testing.assert_close(got, want, terms * slack, what=f"{name}: {case.operator} {direction}")


def _dynk(case: registry.Case, direction: str, arrays: Any, grad_out: Any) -> dict[str, Callable[[], tuple[Any, ...]]]:
    function = getattr(dynk, case.operator if direction == "forward" else f"{case.operator}_backward")
    if direction == "forward":
        out = np.zeros(case.plan.out_shape, arrays[0].dtype)
        return {
            "dynk, preallocated": lambda: (function(*arrays, **case.options, out=out),),
            "dynk, allocating": lambda: (function(*arrays, **case.options),),
        }
    grads = tuple(None if a is None else np.zeros_like(a) for a in arrays)

    def present(results: Any) -> tuple[Any, ...]:
        return tuple(result for result in results if result is not None)

    return {
        "dynk, preallocated": lambda: present(function(grad_out, *arrays, **case.options, grads=grads)),
        "dynk, allocating": lambda: present(function(grad_out, *arrays, **case.options)),
    }


def overhead(rounds: int) -> dict[str, Any]:
    """Time a public call on tiny arrays beside the kernel alone."""
    case = registry.Case("ddf", OVERHEAD, ((1, 1, 2, 2), (1, 1, 1, 1, 2, 2), (1, 1, 1, 1)))
    arrays = case.arrays(np.random.default_rng(0))
    plan = case.plan
    out = np.zeros(plan.out_shape, np.float32)
    kernel = case.op.launchers("cpu").ddf_forward
    flat = [array.reshape(-1) for array in (*arrays, out)]
    samples = interleave(
        {
            "dynk, preallocated": lambda: dynk.ddf(*arrays, out=out),
            "dynk, allocating": lambda: dynk.ddf(*arrays),
            "kernel alone": lambda: kernel(*flat, plan.geometry_array, plan.reals_array),
        },
        rounds=rounds,
    )
    return {
        "operator": "ddf",
        "case": OVERHEAD,
        "shape": "1x1x2x2",
        "dtype": "float32",
        "direction": "forward",
        "limit_ms": 0.0,
        "contenders": {name: sample.summary() | {"yardstick": False} for name, sample in samples.items()},
    }


def show(report: dict[str, Any], earlier: dict[str, Any] | None = None) -> None:
    """Print a table for each row; a yardstick, which computes something else, is dim."""
    console = Console()
    limit = report["limits"]
    console.print(
        f"copy {limit['copy_memory_GBs']:.1f} GB/s through memory, {limit['copy_cache_GBs']:.1f} within the cache; "
        f"matrix product {limit['matmul_GFLOPs']:.0f} GFLOP/s"
    )
    for row in report["rows"]:
        title = f"{row['operator']} {row['direction']} {row['shape']} {row['dtype']}: {row['case']}"
        table = Table(title=title, title_justify="left")
        table.add_column("contender", no_wrap=True)
        for heading in ("median ms", "spread", "clean", "extra MB", "of limit", "dynk faster by"):
            table.add_column(heading, justify="right")
        if earlier:
            table.add_column("to the earlier run", justify="right")
        base = row["contenders"]["dynk, preallocated"]["median_ms"]
        for name, result in row["contenders"].items():
            extra = result.get("extra_MB")
            cells = [
                f"[dim]{name}[/]" if result["yardstick"] else name,
                f"{result['median_ms']:.4g}",
                f"{result['spread_ms']:.2g}",
                f"{result['clean']}/{result['clean'] + result['rejected']}",
                "" if extra is None else f"{extra:.0f}",
                f"{row['limit_ms'] / result['median_ms']:.0%}" if row["limit_ms"] else "",
                "" if name.startswith("dynk") else f"{result['median_ms'] / base:.2f}",
            ]
            if earlier:
                cells.append(_ratio(earlier, row, name, result["median_ms"]))
            table.add_row(*cells)
        console.print(table)


def _ratio(earlier: dict[str, Any], row: dict[str, Any], name: str, median: float) -> str:
    key = ("operator", "case", "direction", "dtype")
    for old in earlier["rows"]:
        if all(old[k] == row[k] for k in key) and name in old["contenders"]:
            return f"{median / old['contenders'][name]['median_ms']:.2f}"
    return "new"


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def _slug(machine: dict[str, Any]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']}-{machine['threads']}-threads".lower()).strip("-")


def _commit() -> str:
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()
