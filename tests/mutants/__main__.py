"""``python -m mutants``: make the mutants, run the tests against them, report."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .mutate import Mutant, mutants
from .report import Report, key, reasons
from .run import SURVIVED, kind_of, run_all, sources

ROOT = Path(__file__).parents[2]
ENOUGH = 0.9


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="mutants", description="Mutation tests of the kernels.")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help="only sources whose path holds this (repeatable)"
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="at most N mutants of each family and language, drawn at random"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; the order is random")
    parser.add_argument(
        "--again", action="store_true", help="go on with the sample of the report, and run what survived again"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / "bench" / "results" / "mutants.json",
        help="the report to write (default bench/results/mutants.json)",
    )
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that were asked for."""
    kinds: dict[str, list[Mutant]] = {}
    for path in sources(ROOT):
        if options.only is None or any(text in path for text in options.only):
            kinds.setdefault(kind_of(path), []).extend(mutants(ROOT, path))
    picked = []
    for kind, found in kinds.items():
        number = min(len(found), len(found) if options.sample is None else options.sample)
        picked += random.Random(f"{options.seed} {kind}").sample(found, number)
    random.Random(options.seed).shuffle(picked)  # what is done when time is up is a fair sample
    return picked


def main() -> int:
    """Run, print and write the report; the exit status is 1 if a kind of sources has too many survivors."""
    options, console = arguments(), Console()
    report = Report(reasons("equivalent"), reasons("survivor"))
    if options.again:
        options.sample, options.seed = report.read(options.json)
        report.take_survivors()
    done = {(result.mutant.line, key(result.mutant)) for result in report.results}
    todo = [mutant for mutant in chosen(options) if (mutant.line, key(mutant)) not in done]
    if options.list:
        for mutant in todo:
            console.print(described(mutant))
        return 0
    os.nice(5)
    columns = (
        TextColumn("mutants"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}"),
    )
    # without a thread of its own: children are forked from here
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(todo), now="")
        for result in run_all(ROOT, _until(todo, options.minutes), jobs=options.jobs):
            report.add(result)
            if result.verdict == SURVIVED and key(result.mutant) not in report.equivalent:
                progress.console.print(f"[yellow]survived[/] {described(result.mutant)}")
            progress.update(task, advance=1, now=f"{len(report.survivors())} survived")
            progress.refresh()
            report.write(options.json, options.sample, options.seed)
    show(report, console)
    return int(any(row["kill rate"] < ENOUGH for row in report.kinds()))


def _until(todo: list[Mutant], minutes: float) -> Iterator[Mutant]:
    """Yield the mutants until time is up."""
    end = time.monotonic() + 60 * minutes
    yield from takewhile(lambda _: time.monotonic() < end, todo)


def described(mutant: Mutant) -> str:
    """Return a mutant as a line of rich's markup."""
    change = f"[red]{escape(mutant.original)}[/]  →  [green]{escape(mutant.mutated)}[/]"
    return f"{mutant.path}:{mutant.line} ({mutant.kind}) {change}"


def show(report: Report, console: Console) -> None:
    """Print the counts."""
    rows = report.sources()
    table = Table(*rows[0])
    for row in (*rows, *report.kinds()):
        table.add_row(
            *(
                f"{value:.1%}" if isinstance(value, float) else str(value).removeprefix("dynk/kernels/")
                for value in row.values()
            )
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
