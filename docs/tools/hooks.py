"""What the site holds besides its pages, made anew by every build.

- `pictures/<name>.svg`, which `pictures.py` draws;
- the operators' pages in the navigation, one for each operator that is declared;
- `benchmarks.md`, of the results in bench/results;
- CONTRIBUTING, CHANGELOG and the examples' sources, which lie outside docs/;
- tables of what the examples found, at `<!-- results: NAME -->`, of docs/gallery/NAME.json;
- equations as MathML, which browsers show without a script.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import pictures  # noqa: E402

from bench.show import load, readme_block  # noqa: E402
from dynk._operator import operators  # noqa: E402

_OUTSIDE = re.compile(r"\]\((?:\.\./)+(examples/|CONTRIBUTING\.md|CHANGELOG\.md)")
_README = re.compile(r"\]\((?:\.\./)+README\.md(?:#[\w-]*)?\)")
_RESULTS = re.compile(r"<!-- results: (\w+) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the operators to the navigation and equations to Markdown."""
    for section in config.nav or []:
        if "Operators" in section:
            section["Operators"] = [f"{name}.md" for name in operators()]
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": _equation}]
    return config


def _equation(source: str, *_: Any, **__: Any) -> str:
    """Return an equation as MathML; what cannot be read raises."""
    return f'<div class="math" style="overflow-x: auto">{convert(source, display="block")}</div>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made and what lies elsewhere."""
    for name in pictures.PICTURES:
        files.append(File.generated(config, f"pictures/{name}.svg", content=pictures.svg(name)))
    files.append(File.generated(config, "benchmarks.md", content=benchmarks()))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        content = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=content))
    for path in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to their copies, those to the README to the landing page; put in examples' results."""
    up = "../" * page.file.src_uri.count("/")
    markdown = _README.sub(f"]({up}index.md)", markdown)
    markdown = _OUTSIDE.sub(lambda found: f"]({up}{found[1]}", markdown)
    return _RESULTS.sub(lambda found: results(found[1]), markdown)


def results(name: str) -> str:
    """Return the table of what an example found, and how long one seed of it took."""
    found = json.loads((DOCS / "gallery" / f"{name}.json").read_text())
    rows = [found["columns"], ["---"] * len(found["columns"]), *found["rows"]]
    table = "\n".join(f"| {' | '.join(map(escape, row))} |" for row in rows)
    minutes = math.ceil(found["seconds"] / 60)
    time = f"One seed took under {minutes} minute{'s'[: minutes > 1]} on {found['cores']} cores."
    return f"{table}\n\n{escape(found['title'])} {time}"


def benchmarks() -> str:
    """Return the page of benchmarks: the README's words, and what the results say."""
    words = (ROOT / "README.md").read_text().split("## Speed\n")[1].split("<!-- benchmarks")[0]
    measured = readme_block(load()) or "\nNo complete run of this version has been recorded yet.\n"
    return f"# Benchmarks\n{words}{measured}"
