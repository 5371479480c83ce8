"""Every Python block of the README and of the pages in docs/ runs, those of a page in order, and prints what it shows.

A block of text right behind a Python block is what that prints. A block behind `<!-- needs a GPU -->` runs on CuPy
where there is a CUDA device, and everywhere on host_cupy.py: its kernels on the emulator, and no work done that was not
waited for. The guide to a new operator is for test_guide.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from cuda_emulator import emulator_unavailable
from host_cupy import install
from torch_cases import ignore_torch_jit

import dynk
from dynk._operator import operators

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GUIDE = DOCS / "guides" / "adding_an_operator.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(
    r"^(<!-- needs a GPU -->\n)?```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
QUOTED = re.compile(r"^````.*?^````$", re.DOTALL | re.MULTILINE)  # a page in a page, which test_guide.py writes
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
GENERATED = re.compile(r"docs/(pictures/(\w+)\.svg|benchmarks\.md)")
SECTION = re.compile(r"^## (.*)\n((?:(?!## ).*\n)*)", re.MULTILINE)
# How the sections that every operator's page has begin, and what is in each.
SECTIONS = {
    "The equation": r"^```math\n[^`]+^```$",
    "What it reads": r"^!\[.+\]\(pictures/{name}\.svg\)$",
    "An example": r"^```python\n[^`]+^```\n\n```text\n",
    "Complexity and memory": r"\w",
    "Differences from the paper": r"^- \S",
}
OPTIONS = re.compile(r"^\| option \| values \|.*\n((?:\|.*\n)+)", re.MULTILINE)


class Block(NamedTuple):
    """A Python block: whether it needs a GPU, what it holds and what it is to print."""

    gpu: bool
    code: str
    printed: str


def blocks(page: Path) -> list[Block]:
    return [Block(bool(gpu), *rest) for gpu, *rest in BLOCK.findall(page.read_text())]


def ids(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


WITH_BLOCKS = [page for page in PAGES if page != GUIDE and blocks(page)]
FOR_A_GPU = [page for page in WITH_BLOCKS if any(block.gpu for block in blocks(page))]


def test_the_readme_has_a_block_for_raw_arrays_pytorch_and_jax() -> None:
    names = ("numpy", "dynk_torch", "dynk_jax")
    assert all(name in block.code for name, block in zip(names, blocks(README), strict=True))


@pytest.mark.parametrize("name", operators())
def test_every_operator_has_a_page_with_an_example_whose_output_it_shows(name: str) -> None:
    assert any(block.printed for block in blocks(DOCS / f"{name}.md"))


@pytest.mark.parametrize("heading", SECTIONS)
@pytest.mark.parametrize("name", operators())
def test_the_page_of_every_operator_has_all_sections(name: str, heading: str) -> None:
    sections = SECTION.findall((DOCS / f"{name}.md").read_text())
    bodies = [body for title, body in sections if title.startswith(heading)]
    assert len(bodies) == 1
    assert re.search(SECTIONS[heading].replace("{name}", name), bodies[0], re.MULTILINE)


@pytest.mark.parametrize("name", [name for name, op in operators().items() if op.options])
def test_the_page_of_every_operator_has_a_table_of_its_options(name: str) -> None:
    table = OPTIONS.search((DOCS / f"{name}.md").read_text())
    assert table is not None
    named = [option for row in table[1].splitlines() for option in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(operators()[name].options)


def run(page: Path, capsys: pytest.CaptureFixture[str], *, gpu: bool) -> dict[str, object]:
    """Run the blocks of a page one after the other, and return the names that are then there."""
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        code = compile(block.code, page.name, "exec")
        if block.gpu and not gpu:
            continue
        exec(code, names)
        printed = capsys.readouterr().out
        if block.printed:
            assert printed == block.printed
    return names


@ignore_torch_jit  # PyTorch's own forward mode uses what it deprecates
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=ids)
def test_blocks_run(page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if page not in FOR_A_GPU or emulator_unavailable():
        run(page, capsys, gpu=False)
        return
    cupy = install(monkeypatch)
    arrays = [array for array in run(page, capsys, gpu=True).values() if isinstance(array, cupy.ndarray)]
    assert arrays
    assert cupy.launched_on
    assert not any(np.isnan(array.memory).any() for array in arrays), "what nobody waited for is poison"


@pytest.mark.gpu
@pytest.mark.parametrize("page", FOR_A_GPU, ids=ids)
def test_blocks_for_a_gpu_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = [backend.reason for backend in dynk.backends() if backend.name == "cupy"]
    if reasons != [None]:
        pytest.skip(f"cupy: {reasons[0]}")
    run(page, capsys, gpu=True)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_within_the_tree_lead_somewhere(page: Path) -> None:
    targets = [(page.parent / link).resolve() for link in LINK.findall(QUOTED.sub("", page.read_text()))]
    missing = [target for target in targets if not target.exists()]
    generated = [GENERATED.fullmatch(target.relative_to(ROOT).as_posix()) for target in missing]
    assert None not in generated, missing
    drawn = (DOCS / "tools" / "pictures.py").read_text()
    assert all(found[2] is None or f'"{found[2]}":' in drawn for found in generated if found)
