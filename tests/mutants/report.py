"""What a run of mutants tells: counts by source, and the survivors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .mutate import Mutant
from .run import INVALID, SURVIVED, TIMEOUT, Result

JUDGED = Path(__file__).with_name("judged.toml")
Key = tuple[str, str, str]


def reasons(verdict: str, file: Path = JUDGED) -> dict[Key, str]:
    """Return why mutants are "equivalent" or a "survivor", by path, original and mutated line."""
    entries = tomllib.loads(file.read_text()).get(verdict, [])
    return {
        (entry["path"], *(" ".join(line.split()) for line in pair)): entry["reason"]
        for entry in entries
        for pair in entry["changes"]
    }


def key(mutant: Mutant) -> Key:
    """Return what a mutant is known by, wherever its line stands."""
    return mutant.path, mutant.original, mutant.mutated


class Report:
    """The results so far, and what they amount to.

    `equivalent` are the mutants that no test can kill, `known` those that none does, with the reasons.
    """

    def __init__(self, equivalent: dict[Key, str], known: dict[Key, str]) -> None:
        self.equivalent = equivalent
        self.known = known
        self.results: list[Result] = []

    def add(self, result: Result) -> None:
        """Take in the result of one more mutant."""
        self.results.append(result)

    def survivors(self) -> list[Mutant]:
        """Return the mutants that live though they are not known to be equivalent."""
        return [r.mutant for r in self.results if r.verdict == SURVIVED and key(r.mutant) not in self.equivalent]

    def rows(self) -> list[dict[str, Any]]:
        """Return the counts of each source and of all."""
        paths = sorted({result.mutant.path for result in self.results})
        rows = [self._row(path, [r for r in self.results if r.mutant.path == path]) for path in paths]
        return [*rows, self._row("all", self.results)]

    def _row(self, name: str, results: Sequence[Result]) -> dict[str, Any]:
        valid = [r for r in results if r.verdict != INVALID]
        alive = [r for r in valid if r.verdict == SURVIVED]
        equivalent = sum(key(r.mutant) in self.equivalent for r in alive)
        killed = len(valid) - len(alive)
        return {
            "source": name,
            "mutants": len(results),
            "not compiling": len(results) - len(valid),
            "equivalent": equivalent,
            "killed": killed,
            "of these hung": sum(r.verdict == TIMEOUT for r in valid),
            "survived": len(alive) - equivalent,
            "kill rate": round(killed / max(1, len(valid) - equivalent), 4),
        }

    def write(self, file: Path, **about: Any) -> None:
        """Write the counts, the survivors and the equivalents met to a JSON file."""
        met = {key(r.mutant) for r in self.results if r.verdict == SURVIVED} & self.equivalent.keys()
        text = {
            **about,
            "sources": self.rows(),
            "survivors": [
                {
                    "path": m.path,
                    "line": m.line,
                    "kind": m.kind,
                    "original": m.original,
                    "mutated": m.mutated,
                    "reason": self.known.get(key(m), "not looked into yet"),
                }
                for m in self.survivors()
            ],
            "equivalent": [
                {
                    "path": path,
                    "original": original,
                    "mutated": mutated,
                    "reason": self.equivalent[path, original, mutated],
                }
                for path, original, mutated in sorted(met)
            ],
        }
        file.write_text(json.dumps(text, indent=1) + "\n")
