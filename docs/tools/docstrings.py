"""Docstrings follow numpydoc and reStructuredText, the pages of the site Markdown: what differs is rewritten here."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

import griffe

_EQUATION = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
# The parser would take the first of these for the default, whatever the signature says.
_CHOICES = re.compile(r"^(\s*\w[\w, ]* : )\{([^{}]+)\}", re.MULTILINE)
_TABLE = re.compile(r"^( *)=+(?: +=+)+\n(?:\1.*\n)+?\1=+(?: +=+)+\n(?:\1.*\n)*?\1=+(?: +=+)+$", re.MULTILINE)
_TIMES = re.compile(r"(?<=[\w)])\*(?=[\w(])")
_DOCTEST = re.compile(r"\s*(>>>|\.\.\.) ")


def markdown(text: str) -> str:
    """Return a docstring with equations and tables fenced, choices in words and multiplications escaped."""

    def equation(found: re.Match[str]) -> str:
        lines = dedent(found[2]).strip("\n")
        return indent(f"```math\n{lines}\n```\n\n", found[1])

    def table(found: re.Match[str]) -> str:
        return indent(f"```text\n{dedent(found[0])}\n```", found[1])

    lines = [line if _DOCTEST.match(line) else _multiplications(line) for line in text.split("\n")]
    text = _CHOICES.sub(r"\1one of \2", "\n".join(lines))
    return _TABLE.sub(table, _EQUATION.sub(equation, text))


def _multiplications(line: str) -> str:
    parts = line.split("`")  # every second one is code
    parts[::2] = [_TIMES.sub(r"\\*", part) for part in parts[::2]]
    return "`".join(parts)


class MarkdownDocstrings(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
