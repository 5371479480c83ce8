"""Every Python block of the README and of the pages in docs/ runs, those of a page in order, and prints what it shows.

A block of text right behind a Python block is what that prints.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the Python blocks of a page with what each is to print."""
    return [(code, printed) for code, printed in BLOCK.findall(page.read_text())]


def test_the_readme_has_a_block_for_raw_arrays_pytorch_and_jax() -> None:
    names = ("numpy", "dynk_torch", "dynk_jax")
    assert all(name in code for name, (code, _) in zip(names, blocks(README), strict=True))


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_every_page_has_an_example_whose_output_it_shows(page: Path) -> None:
    assert any(printed for _, printed in blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for code, expected in blocks(page):
        exec(compile(code, page.name, "exec"), names)
        printed = capsys.readouterr().out
        if expected:
            assert printed == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_tree_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []
