"""`python -m dynk bench`: run the cases, print tables, write results/<device>.json."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import dynk
from bench import limits, registry, show, special
from bench.check import verify
from bench.devices import Cpu, Cuda, find
from bench.peers import contenders, peers
from bench.timing import interleave, pressure_is_known
from dynk.commands import doctor
from dynk.kernels.common.cuda_bytes import kernel_bytes

Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dynk bench", description=__doc__)
    parser.add_argument("--only", default="", help="run the rows whose description contains this (see --list)")
    parser.add_argument("--list", action="store_true", help="print the descriptions of the rows and end")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="what to measure (default cuda where there is one)")
    parser.add_argument("--rounds", type=int, default=9, help="clean samples of each contender (default 9)")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of sampling for each row (default 12)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the data (default: another one each time)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines instead of tables")
    parser.add_argument("--compare", type=Path, help="show the ratio of each time to an earlier result file")
    parser.add_argument("--output", type=Path, help="the result file (default, of a full run: results/<device>.json)")
    parser.add_argument("--no-peers", action="store_true", help="time dynk alone")
    parser.add_argument("--readme", action="store_true", help="write the README's table from the results and end")
    options = parser.parse_args(arguments)
    if options.readme:
        show.write_readme()
        return 0

    device = find(options.device)
    rng = np.random.default_rng(secrets.randbits(32) if options.seed is None else options.seed)
    report = _report(device)
    rows = [row for row in _rows(device, rng, report, options) if options.only in row[0]]
    if options.list:
        print("\n".join(description for description, _ in rows))
        return 0
    earlier = json.loads(options.compare.read_text()) if options.compare else None
    full = not options.only and not options.no_peers
    path = options.output or (show.RESULTS / f"{_slug(report['device'])}.json" if full else None)

    console = show.console(stderr=options.json)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("limits of the device", total=len(rows))
        report["limits"] = limits.measure(device)
        console.print(show.heading(report))
        for description, measured in rows:
            progress.update(task, description=description)
            report["rows"].append(measured())
            report["complete"] = full and len(report["rows"]) == len(rows)
            if path:  # after each row, so that a run cut short leaves what it has
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(report, indent=1) + "\n")
            console.print(show.table(report["rows"][-1], earlier))
            progress.advance(task)
    if options.json:
        print(json.dumps(report, indent=1))
    return 0


def _rows(device: Cpu | Cuda, rng: np.random.Generator, report: dict[str, Any], options: argparse.Namespace) -> Rows:
    """Yield what each row is about and how to measure it."""

    def of_case(case: registry.Case, direction: str) -> dict[str, Any]:
        return measure(
            registry.Problem.draw(case, direction, rng, device.kind),
            device,
            rng,
            report["limits"],
            rounds=options.rounds,
            budget=options.budget,
            with_peers=not options.no_peers,
        )

    kernels: dict[str, registry.Case] = {}
    for case in registry.cases():
        kernels.setdefault(case.op.launcher, case)
        for direction in registry.DIRECTIONS:
            description = f"{case.operator} {direction} {case.size} {case.dtype}: {case.label}"
            yield description, partial(of_case, case, direction)
    for direction in registry.DIRECTIONS:
        yield f"ddf {direction}: overhead of a call", partial(special.overhead, device, direction, options.rounds)
    for case in kernels.values():
        for direction in registry.DIRECTIONS:
            description = f"{case.operator} {direction}: first call of a process"
            yield description, partial(special.first_call, device, case, direction)


def measure(
    problem: registry.Problem,
    device: Cpu | Cuda,
    rng: np.random.Generator,
    limit: dict[str, Any],
    *,
    rounds: int,
    budget: float,
    with_peers: bool,
) -> dict[str, Any]:
    """Check every contender against the reference, then time them side by side."""
    case, direction = problem.case, problem.direction
    entered = contenders(problem) + (peers(problem) if with_peers else [])
    verify(problem, entered, rng)
    chosen, screened = {}, {}
    for contender in entered:
        screened[contender.name] = _screen(contender, device)
        fastest = min(screened[contender.name], key=screened[contender.name].__getitem__)
        chosen[contender.name] = contender.formulations[fastest]
    memory = {name: device.extra_bytes(call) for name, call in chosen.items()}
    samples = interleave(chosen, clock=device.clock, rounds=rounds, budget_s=budget)
    moved = case.bytes_moved(direction)
    bandwidth, at = limits.copy_bandwidth(limit, moved)
    row = special.row_of(
        case,
        direction,
        samples,
        bytes_moved=moved,
        memory_limit_ms=moved / bandwidth / 1e6,
        memory_limit=f"copy of {at} MiB",
        arithmetic_limit_ms=registry.operations(case, direction) / limit["matmul_GFLOPs"] / 1e6,
    )
    if device.kind == "cuda":
        row |= moved_by_kernels(case, direction, bandwidth)
    for contender in entered:
        result = row["contenders"][contender.name]
        extra = memory[contender.name]
        result["yardstick"] = contender.yardstick
        result["extra_MB"] = None if extra is None else extra / 2**20
        if len(contender.formulations) > 1:
            result["formulations_ms"] = screened[contender.name]
    return row


def moved_by_kernels(case: registry.Case, direction: str, bandwidth: float) -> dict[str, Any]:
    """Return what dynk's CUDA C kernels move, workspace included, and how long that takes at a bandwidth in GB/s."""
    kernels = kernel_bytes(case.op, direction, case.plan, case.shapes)
    total = sum(count for _, count in kernels)
    return {"kernels_bytes": dict(kernels), "kernels_limit_ms": total / bandwidth / 1e6}


def _screen(contender: registry.Contender, device: Cpu | Cuda) -> dict[str, float]:
    """Return the milliseconds of each formulation, the fastest of up to three calls after its first."""
    return {name: 1e3 * min(_few_times(call, device)) for name, call in contender.formulations.items()}


def _few_times(call: registry.Call, device: Cpu | Cuda) -> list[float]:
    times = [device.clock(call, 1)]
    while len(times) < 3 and sum(times) < 0.5:
        times.append(device.clock(call, 1))
    return times


def _report(device: Cpu | Cuda) -> dict[str, Any]:
    machine = doctor.collect()
    return {
        "device": {"name": device.name(machine["machine"]), "kind": device.kind}
        | device.describe()
        | machine["machine"],
        "versions": machine["versions"] | {"dynk": dynk.__version__},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "rejects busy samples": pressure_is_known(),
        "complete": False,
        "limits": {},
        "rows": [],
    }


def _slug(device: dict[str, Any]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device["name"].lower()).strip("-")


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
