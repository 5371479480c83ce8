"""Docstrings write equations as NumPy's do, `.. math::`; the pages of the site as fenced blocks."""

from __future__ import annotations

import re
from textwrap import dedent, indent
from typing import Any

import griffe

_DIRECTIVE = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n|\n)+)", re.MULTILINE)


def fenced(text: str) -> str:
    """Return a docstring with its equations as fenced blocks."""

    def block(found: re.Match[str]) -> str:
        equation = dedent(found[2]).strip("\n")
        return indent(f"```math\n{equation}\n```\n\n", found[1])

    return _DIRECTIVE.sub(block, text)


class MathInDocstrings(griffe.Extension):
    """Rewrites the docstring of every object before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
