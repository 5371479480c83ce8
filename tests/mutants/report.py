"""What a run of mutants tells: counts by source, and the survivors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .mutate import Mutant
from .run import INVALID, SURVIVED, TIMEOUT, Result, kind_of

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

    def take_survivors(self) -> list[Mutant]:
        """Remove the survivors from the results, for another run, and return them."""
        taken = self.survivors()
        self.results = [r for r in self.results if r.mutant not in taken]
        return taken

    def sources(self) -> list[dict[str, Any]]:
        """Return the counts of each source."""
        return self._rows(lambda path: path)

    def kinds(self) -> list[dict[str, Any]]:
        """Return the counts of each family in each language, and of all."""
        return [*self._rows(kind_of), self._row("all", self.results)]

    def _rows(self, name_of: Callable[[str], str]) -> list[dict[str, Any]]:
        names = sorted({name_of(result.mutant.path) for result in self.results})
        return [self._row(name, [r for r in self.results if name_of(r.mutant.path) == name]) for name in names]

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

    def write(self, file: Path, sample: int | None, seed: int) -> None:
        """Write the counts, the survivors and the equivalents met, and all results, one in a line, to a JSON file."""
        alive = [r.mutant for r in self.results if r.verdict == SURVIVED]
        text = {
            "sample": sample,
            "seed": seed,
            "kinds": self.kinds(),
            "sources": self.sources(),
            "survivors": [
                _judged(m, self.known.get(key(m), "not looked into yet"))
                for m in alive
                if key(m) not in self.equivalent
            ],
            "equivalent": [_judged(m, self.equivalent[key(m)]) for m in alive if key(m) in self.equivalent],
        }
        results = ",\n  ".join(json.dumps([*_named(r.mutant).values(), r.verdict, r.by]) for r in self.results)
        head = json.dumps(text, indent=1).removesuffix("\n}")
        file.write_text(f'{head},\n "results": [\n  {results}\n ]\n}}\n')

    def read(self, file: Path) -> tuple[int | None, int]:
        """Take in the results of a file and return their sample and seed."""
        text = json.loads(file.read_text())
        for *mutant, verdict, by in text["results"]:
            self.add(Result(Mutant(*mutant, code=""), verdict, by))
        return text["sample"], text["seed"]


def _named(mutant: Mutant) -> dict[str, Any]:
    return {name: value for name, value in asdict(mutant).items() if name != "code"}


def _judged(mutant: Mutant, reason: str) -> dict[str, Any]:
    return {**_named(mutant), "reason": reason}
