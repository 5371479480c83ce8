"""What examples print and record: a table of means and deviations over seeds, and how long one seed took."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table


class Found(NamedTuple):
    """A table of text, the seconds that the slowest seed took, and how many cores the machine has."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    seconds: float
    cores: int


def add_options(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Let an example be run from several seeds and its table be recorded."""
    parser.add_argument("--seeds", type=int, default=seeds, help=f"how many seeds, one after the other ({seeds})")
    parser.add_argument("--results", type=Path, help="where the table is recorded as JSON (nowhere)")


def deviation(numbers: ArrayLike) -> NDArray[np.float64]:
    """Return the standard deviation over seeds, the first axis; 0 of one seed."""
    array = np.asarray(numbers, np.float64)
    return np.asarray(array.std(0, ddof=min(1, len(array) - 1)))


def spread(numbers: Sequence[float], digits: int = 1) -> str:
    """Return the mean, of more than one number with the standard deviation."""
    mean = f"{np.mean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {deviation(numbers):.{digits}f}"


def report(
    title: str, columns: list[str], rows: list[list[str]], seconds: list[float], path: Path | None, console: Console
) -> None:
    """Print a table of so many seeds as took these seconds, and record it."""
    title += f": mean ± deviation of {len(seconds)} seeds." if len(seconds) > 1 else ": one seed."
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if path is not None:
        found = Found(title, columns, rows, round(max(seconds), 1), os.cpu_count() or 1)
        path.write_text(json.dumps(found._asdict(), ensure_ascii=False, indent=1) + "\n")
