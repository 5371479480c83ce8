"""What the documentation site is made of besides its pages: pictures, and docstrings as Markdown."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from dynk._operator import operators

DOCS = Path(__file__).parent.parent / "docs"


def tool(name: str) -> ModuleType:
    """Return one of the site's scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", operators())
def test_every_operator_has_a_picture_that_its_page_shows(name: str) -> None:
    pytest.importorskip("matplotlib")
    pictures = tool("pictures")
    drawing = pictures.svg(name)
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert drawing == pictures.svg(name)
    assert f"](pictures/{name}.svg)" in (DOCS / f"{name}.md").read_text()


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe")
    docstring = """Do it.

    .. math::
        a = b

    It costs y*stride numbers, and `a*b` more.

    ====  =====
    left  right
    ====  =====
    1     2
    ====  =====

    Parameters
    ----------
    combine : {"mul", "add"}, default "mul"
        How.

    Examples
    --------
    >>> 2*x
    """
    found = tool("docstrings").markdown(docstring)
    assert "    ```math\n    a = b\n    ```\n" in found
    assert r"y\*stride" in found
    assert "`a*b`" in found
    assert "    ```text\n    ====  =====\n    left" in found
    assert 'combine : one of "mul", "add", default "mul"' in found
    assert ">>> 2*x" in found


def test_results_that_pages_show_are_recorded_with_their_spread() -> None:
    names = {name for page in DOCS.rglob("*.md") for name in re.findall(r"<!-- results: (\w+) -->", page.read_text())}
    assert names == {path.stem for path in (DOCS / "gallery").glob("*.json")}
    for name in names:
        found = json.loads((DOCS / "gallery" / f"{name}.json").read_text())
        assert {len(row) for row in found["rows"]} == {len(found["columns"])}
        assert any("±" in cell for row in found["rows"] for cell in row)
        assert 0 < found["seconds"] < 120


def test_results_are_shown_as_a_table_and_the_time_in_whole_minutes(tmp_path, monkeypatch) -> None:
    for package in ("mkdocs", "latex2mathml", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.setattr("sys.path", [*sys.path])
    hooks = tool("hooks")
    monkeypatch.setattr(hooks, "DOCS", tmp_path)
    (tmp_path / "gallery").mkdir()
    found: dict[str, object] = {"title": "T.", "columns": ["a", "b"], "rows": [["x", "1 ± 2"]], "cores": 2}
    table = "| a | b |\n| --- | --- |\n| x | 1 ± 2 |\n\nT."
    for seconds, minutes in ((59.0, "1 minute"), (61.0, "2 minutes")):
        (tmp_path / "gallery" / "n.json").write_text(json.dumps({**found, "seconds": seconds}))
        assert hooks.results("n") == f"{table} One seed took under {minutes} on 2 cores."
