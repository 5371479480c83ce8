"""The guide to a new operator is followed to the letter, in a copy of the tree.

A block whose first line names a file becomes that file, a block of `diff` is applied, and commands are run. The last
block is run, and prints what the one behind it shows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from cuda_emulator import emulator_unavailable

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guides" / "adding_an_operator.md"
BLOCK = re.compile(r"^(`{3,})(\w+)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"(?:#|//|<!--) (\S+\.\w+)(?: -->)?\n")
BLOCKS = [(language, text) for _, language, text in BLOCK.findall(GUIDE.read_text())]
COMMANDS = [text for language, text in BLOCKS if language == "sh"]
# What a command needs that not every machine has.
NEEDED = {"budgets": ("cuda.core", "numba_cuda", "matplotlib"), "mkdocs": ("mkdocs", "matplotlib")}
COPIED = ["adapters", "bench", "docs", "dynk", "examples", "tests", "pyproject.toml", "mkdocs.yml"]
COPIED += [path.name for path in ROOT.glob("*.md")]
# Every test of the operator is run, of a few examples each.
FEW = {"HYPOTHESIS_PROFILE": "soak", "DYNK_SOAK_EXAMPLES": "5"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree to which the guide was applied."""
    tree = tmp_path_factory.mktemp("guide") / "dynk"
    tree.mkdir()
    for path in map(ROOT.joinpath, COPIED):
        copy = shutil.copy if path.is_file() else partial(shutil.copytree, ignore=shutil.ignore_patterns("__pycache__"))
        copy(path, tree / path.name)
    for language, text in BLOCKS:
        if named := FILE.match(text):
            path = tree / named[1]
            assert not path.exists()
            path.parent.mkdir(exist_ok=True)
            path.write_text(text[named.end() :])
        elif language == "diff":
            apply(tree, text)
    return tree


def apply(tree: Path, diff: str) -> None:
    """Make the edits of a diff without line numbers: what each replaces must be there just once."""
    for edits in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, body = edits.partition("\n")
        content = (tree / name).read_text()
        for hunk in body.split("@@\n"):
            before, after = (re.sub(rf"^[{kept} ]|^[-+].*\n", "", hunk, flags=re.MULTILINE) for kept in "-+")
            assert content.count(before) == 1, f"{name}: {before!r}"
            content = content.replace(before, after)
        (tree / name).write_text(content)


def run(tree: Path, *arguments: str) -> str:
    environment = os.environ | FEW | {"PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "adapters")))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_last_block_prints_what_is_shown(tree: Path) -> None:
    (_, code), (_, printed) = BLOCKS[-2:]
    assert run(tree, "-W", "error", "-c", code) == printed


@pytest.mark.parametrize("commands", COMMANDS, ids=map(str, range(len(COMMANDS))))
def test_its_commands_run(tree: Path, commands: str) -> None:
    for word, packages in NEEDED.items():
        for package in packages if word in commands else ():
            pytest.importorskip(package)
    if "pytest" in commands and (reason := emulator_unavailable()):
        pytest.skip(str(reason))
    for command in commands.splitlines():
        python, *arguments = shlex.split(command)
        assert python == "python"
        printed = run(tree, *arguments)
        if "fuzz_worker" in command:
            assert json.loads(printed)["failures"] == []
