"""The papers' tables, as far as they can be counted, next to the published figures."""

from __future__ import annotations

import json


def run(*, as_json: bool = False) -> int:
    """Print the tables and return 0; whether a figure comes out is its row's to say.

    Parameters
    ----------
    as_json : bool
        Print JSON instead.

    Returns
    -------
    int
        0.

    Raises
    ------
    ModuleNotFoundError
        Without PyTorch or rich.
    """
    from dynk.commands.tables.rows import TABLES

    rows = [row for table in TABLES.values() for row in table()]
    if as_json:
        print(json.dumps([row._asdict() | {"agrees": row.agrees} for row in rows], indent=2))
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for name in dict.fromkeys(row.table for row in rows):
        table = Table("network or layer", "quantity", "counted", "published", "", "remark", title=name)
        table.title_justify = "left"
        for row in rows:
            if row.table != name:
                continue
            published = "—" if row.published is None else f"{row.published:.{row.digits}f}"
            verdict = {None: "", True: "[green]=[/]", False: "[yellow]≠[/]"}[row.agrees]
            table.add_row(
                row.row, row.quantity, f"{row.counted:.{row.digits}f}", published, verdict, escape(row.remark)
            )
        console.print(table)
    return 0
