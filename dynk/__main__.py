"""`python -m dynk doctor | check | bench | demo | tables`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dynk", description="Dynamic image filtering operators.")
    commands = parser.add_subparsers(dest="command", required=True)
    json_flag = argparse.ArgumentParser(add_help=False)
    json_flag.add_argument("--json", action="store_true", help="print JSON for machines instead of a table")

    commands.add_parser("doctor", parents=[json_flag], help="what is there: backends, threads, SIMD, CUDA, versions")
    check = commands.add_parser(
        "check", parents=[json_flag], help="run every operator of this machine's backends against the reference"
    )
    check.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default 0)")
    # Its arguments, --help among them, are for the parser in bench/run.py.
    commands.add_parser("bench", add_help=False, help="time the operators beside their peers (source tree only)")
    demo = commands.add_parser("demo", parents=[json_flag], help="joint depth upsampling on a real stereo pair")
    demo.add_argument("--output", type=Path, default=Path("demo.png"), help="the picture (default demo.png)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    demo.add_argument("--seeds", type=int, default=1, help="from how many seeds a network is trained (default 1)")
    demo.add_argument("--results", type=Path, help="where the table is recorded as JSON (nowhere)")

    commands.add_parser("tables", parents=[json_flag], help="figures of the papers' tables, counted, and as published")

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "bench":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run(options, rest)
    except ModuleNotFoundError as error:
        extra = {"demo": "demo", "bench": "bench", "tables": "demo"}.get(options.command, "cli")
        missing = (error.name or "").split(".")[0]
        if missing.startswith("dynk"):
            raise
        sys.stderr.write(f'{options.command} needs {missing}: pip install "dynk[{extra}]"\n')
        return 2


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    if options.command == "doctor":
        from dynk.commands import doctor

        return doctor.run(as_json=options.json)
    if options.command == "check":
        from dynk.commands import check

        return check.run(seed=options.seed, as_json=options.json)
    if options.command == "demo":
        from dynk import demo

        return demo.run(
            options.output, options.seed, seeds=max(1, options.seeds), as_json=options.json, record=options.results
        )
    if options.command == "tables":
        from dynk.commands import tables

        return tables.run(as_json=options.json)
    return _bench(rest)


def _bench(arguments: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "run.py").is_file():
        sys.stderr.write("bench runs from the source tree: clone dynk, then `make bench`\n")
        return 2
    sys.path.insert(0, str(root))
    from bench import run

    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
