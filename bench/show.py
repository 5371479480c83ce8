"""Results as tables: of the terminal, beside an earlier run, and of the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.peers import ALLOCATING, PREALLOCATED
from bench.timing import LEAST

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->\n", "<!-- benchmarks: end -->\n"

Row = dict[str, Any]


def console(*, stderr: bool) -> Console:
    """Return where tables are printed, wide enough for them where nobody looks at a terminal."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=140)


def heading(report: dict[str, Any]) -> str:
    """Return what the device is and can do."""
    return f"{escape(_machine(report))}\n{escape(_limits(report))}"


def _machine(report: dict[str, Any]) -> str:
    device = report["device"]
    if device["kind"] == "cuda":
        return f"{device['name']} (compute capability {device['compute capability']})"
    return f"{device['model']} ({device['processor']}, {device['SIMD']}, {device['threads']} threads)"


def _limits(report: dict[str, Any]) -> str:
    limits = report["limits"]
    copies = ", ".join(f"{speed:.3g} of {size} MiB" for size, speed in limits["copy_GBs"].items())
    busy = "" if limits["undisturbed"] else "≈ "
    return f"{busy}copy in GB/s: {copies}; float32 matrix product {limits['matmul_GFLOPs']:.3g} GFLOP/s"


# Of what limits: every array moved once, all that dynk's CUDA C kernels move, the arithmetic.
_LIMITS = {
    "of copying": "memory_limit_ms",
    "of kernels' bytes": "kernels_limit_ms",
    "of product": "arithmetic_limit_ms",
}


# ---- terminal --------------------------------------------------------------------------------------------------------


def table(row: Row, earlier: dict[str, Any] | None = None) -> Table:
    """Return the table of one row of the result; a yardstick, which computes something else, is dim."""
    title = f"{row['operator']} {row['direction']} {row['size']} {row['dtype']}: {row['case']}"
    found = Table(title=title, title_justify="left")
    found.add_column("contender", no_wrap=True)
    headings = ["median", "spread", "clean", "extra MB"]
    limits = {heading: row[limit] for heading, limit in _LIMITS.items() if limit in row}
    compared = PREALLOCATED in row["contenders"]
    headings += limits
    headings += ["to preallocated", "to allocating"] if compared else []
    headings += ["to earlier"] if earlier else []
    for name in headings:
        found.add_column(name, justify="right")
    for name, result in row["contenders"].items():
        median = result["median_ms"]
        extra = result.get("extra_MB")
        cells = [
            f"[dim]{name}[/]" if result["yardstick"] else name,
            _time(median),
            _time(result["spread_ms"]),
            _counts(result),
            "" if extra is None else f"{extra:.1f}",
        ]
        cells += ["" if result["yardstick"] else f"{limit / median:.0%}" for limit in limits.values()]
        if compared:
            cells += [f"{median / row['contenders'][base]['median_ms']:.2f}" for base in (PREALLOCATED, ALLOCATING)]
        if earlier:
            cells.append(ratio(earlier, row, name))
        found.add_row(*cells)
    return found


def _counts(result: dict[str, Any]) -> str:
    counts = f"{result['clean']}/{result['clean'] + result['rejected']}"
    return counts if _undisturbed(result) else f"[red]{counts}[/]"


def _undisturbed(result: dict[str, Any]) -> bool:
    """Return whether a median is one of clean samples."""
    return bool(result["clean"] >= LEAST)


def _time(ms: float) -> str:
    if ms < 1:
        return f"{ms * 1e3:.3g} µs"
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.3g} s"


def ratio(earlier: dict[str, Any], row: Row, name: str) -> str:
    """Return a contender's time over its time in an earlier report."""
    key = ("operator", "case", "size", "dtype", "direction")
    for old in earlier["rows"]:
        if all(old[k] == row[k] for k in key) and name in old["contenders"]:
            return f"{row['contenders'][name]['median_ms'] / old['contenders'][name]['median_ms']:.2f}"
    return "new"


# ---- README ----------------------------------------------------------------------------------------------------------


def write_readme() -> None:
    """Write the README's table anew."""
    README.write_text(with_block(README.read_text(), readme_block(load())))


def load() -> list[dict[str, Any]]:
    """Return the complete reports there are, the CPUs' before the GPUs'."""
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    complete = [report for report in reports if report.get("complete")]
    return sorted(complete, key=lambda report: report["device"]["kind"])


def block_of(text: str) -> str:
    """Return the README's part between the markers."""
    return text.split(BEGIN)[1].split(END)[0]


def with_block(text: str, block: str) -> str:
    """Return the README with something else between the markers, where there may be nothing."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{block}{END}{rest.split(END)[1]}"


def readme_block(reports: list[dict[str, Any]]) -> str:
    """Return the README's part about speed: nothing that is not in a report."""
    return "".join(_section(report) for report in reports)


def _section(report: dict[str, Any]) -> str:
    rows = [row for row in report["rows"] if "memory_limit_ms" in row]
    cuda = report["device"]["kind"] == "cuda"
    columns = {"case": _case, **(_CUDA if cuda else _CPU)}
    lines = [
        f"{_machine(report)}; {_limits(report)}; dynk {report['versions']['dynk']}, "
        f"PyTorch {report['versions']['torch']}"
        + ("" if cuda else f", JAX {report['versions']['jax']}")
        + f", {report['date']}:",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows),
    ]
    return "\n" + "\n".join(lines) + "\n\n"


def _case(row: Row) -> str:
    dtype = "" if row["dtype"] == "float32" else f" {row['dtype']}"
    direction = "" if row["direction"] == "forward" else " backward"
    return f"`{row['operator']}`{direction}{dtype} {row['size']}: {row['case']}"


def _faster(*names: str) -> Any:
    """Return a cell: how many times faster dynk is than the fastest contender whose name begins so."""

    def cell(row: Row) -> str:
        results = [result for name, result in row["contenders"].items() if name.startswith(names)]
        if not results:
            return ""
        fastest = min(results, key=lambda result: result["median_ms"])
        own = [row["contenders"][name] for name in (PREALLOCATED, ALLOCATING)]
        numbers = "{:.1f} ({:.1f})".format(*(fastest["median_ms"] / result["median_ms"] for result in own))
        return numbers if all(map(_undisturbed, [fastest, *own])) else f"≈ {numbers}"

    return cell


def _of_copy(row: Row) -> str:
    own = row["contenders"][PREALLOCATED]
    return f"{'' if _undisturbed(own) else '≈ '}{row['memory_limit_ms'] / own['median_ms']:.0%}"


def _microseconds(row: Row) -> str:
    return f"{row['contenders'][PREALLOCATED]['median_ms'] * 1e3:.3g}"


def _memory(row: Row) -> str:
    """Return the memory that dynk takes, and the least that a peer takes."""
    own = row["contenders"][ALLOCATING].get("extra_MB")
    others = [
        result["extra_MB"]
        for name, result in row["contenders"].items()
        if not name.startswith("dynk") and not result["yardstick"] and result.get("extra_MB") is not None
    ]
    return "" if own is None or not others else f"{own:.0f} / {min(others):.0f} MB"


_CPU = {
    "PyTorch eager": _faster("PyTorch eager"),
    "`torch.compile`": _faster("torch.compile"),
    "`jax.jit`": _faster("jax.jit"),
    "depth-wise convolution": _faster("PyTorch depth-wise"),
    "of copying": _of_copy,
    "memory": _memory,
}
_CUDA = {
    "µs": _microseconds,
    "PyTorch eager": _faster("PyTorch eager"),
    "`torch.compile`": _faster("torch.compile"),
    "depth-wise convolution": _faster("PyTorch depth-wise", "cuDNN depth-wise"),
    "of copying": _of_copy,
    "memory": _memory,
}
