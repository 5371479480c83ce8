"""Makes mutants of kernels, each one change: of Python by the syntax tree, of CUDA C++ by its tokens."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One change of one source.

    Attributes
    ----------
    path : str
        The source, below the root of the tree.
    line : int
        Number of the changed line.
    kind : str
        What sort of change it is.
    original, mutated : str
        The changed line without its indent, before and after.
    code : str
        The whole mutated source.
    """

    path: str
    line: int
    kind: str
    original: str
    mutated: str
    code: str


@dataclass(frozen=True)
class Edit:
    """Put `text` in the place of the characters from `begin` to `end`."""

    begin: int
    end: int
    text: str
    kind: str


def mutants(root: Path, path: str) -> list[Mutant]:
    """Return every mutant of a source, in the order of its lines."""
    code = (root / path).read_text()
    edits = _python_edits(code) if path.endswith(".py") else _cuda_edits(code)
    made = (_mutant(path, code, edit) for edit in edits)
    # the same code by two ways is one mutant
    return sorted({mutant.code: mutant for mutant in made if mutant}.values(), key=lambda mutant: mutant.line)


def _mutant(path: str, code: str, edit: Edit) -> Mutant | None:
    mutated = code[: edit.begin] + edit.text + code[edit.end :]
    if mutated == code:
        return None
    start = code.rfind("\n", 0, edit.begin) + 1
    end = code.find("\n", edit.end) % (len(code) + 1)
    lines = code[start:end], code[start : edit.begin] + edit.text + code[edit.end : end]
    before, after = (" ".join(line.split()) for line in lines)
    return Mutant(path, code.count("\n", 0, edit.begin) + 1, edit.kind, before, after, mutated)


# ---- what is changed to what, in both languages ----------------------------------------------------------------------

COMPARISONS = {
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
}
ARITHMETIC = {
    "+": "-",
    "-": "+",
    "*": "+",
    "/": "*",
    "//": "*",
    "%": "//",
    "+=": "-=",
    "-=": "+=",
    "*=": "+=",
    "/=": "*=",
}
LOGIC = {"and": "or", "or": "and", "&&": "||", "||": "&&"}
_PAIRS = (
    *("H W", "h w", "Ho Wo", "kh kw", "i j", "ii jj", "p q", "y x", "C G", "c group", "row column", "height width"),
    *("stride_h stride_w", "dilation_h dilation_w", "f_kh f_kw", "scale_kh scale_kw", "shift_kh shift_kw"),
    *("anchor_y anchor_x", "out_y out_x", "first mean", "min max", "scale shift", "SCALE SHIFT", "KH KW"),
    *("a_step b_step", "at_scale at_shift", "gain bias", "parts part", "kept summed", "begin end", "spatial channel"),
)
# Names that are easily taken for one another.
SWAPS = {one: other for pair in map(str.split, _PAIRS) for one, other in (pair, pair[::-1])}
# Those that are there without being declared; where the other name is not, a swap would make no program.
BUILTINS = {"min", "max"}


def _neighbours(number: int) -> tuple[int, ...]:
    return (1,) if number == 0 else (number - 1, number + 1)


# ---- Python ----------------------------------------------------------------------------------------------------------

_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.And: "and",
    ast.Or: "or",
}


def _python_edits(code: str) -> Iterator[Edit]:
    """Yield the changes of every function and constant; docstrings, annotations and decorators have none."""
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: Any) -> tuple[int, int]:  # the sources are ASCII: columns count characters
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def between(left: Any, right: Any, symbol: str) -> tuple[int, int]:
        """Return where an operator stands between its operands, either of which may be in parentheses."""
        begin, end = span(left)[1], span(right)[0]
        at = code.index(symbol, begin, end)
        return at, at + len(symbol)

    tree = ast.parse(code)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node, names in _nodes(tree):
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _SYMBOLS:
                symbol = _SYMBOLS[type(operator)]
                for other in COMPARISONS[symbol]:
                    yield Edit(*between(left, right, symbol), other, "comparison")
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _SYMBOLS:
                symbol = _SYMBOLS[type(operator)]
                yield Edit(*between(left, right, symbol), ARITHMETIC[symbol], "arithmetic")
            case ast.BoolOp(op=operator, values=values):
                for left, right in pairwise(values):
                    symbol = _SYMBOLS[type(operator)]
                    yield Edit(*between(left, right, symbol), LOGIC[symbol], "logic")
            case ast.AugAssign(target=target, op=operator, value=value) if type(operator) in _SYMBOLS:
                symbol = f"{_SYMBOLS[type(operator)]}="
                yield Edit(*between(target, value, symbol), ARITHMETIC[symbol], "arithmetic")
                yield Edit(*between(target, value, symbol), "=", "arithmetic")
                yield Edit(*span(node), "pass", "statement")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                yield Edit(span(node)[0], span(operand)[0], "", "arithmetic")
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                for other in _neighbours(number):
                    yield Edit(*span(node), str(other), "constant")
            case ast.Constant(value=float(number)):
                yield Edit(*span(node), str(number + 1), "constant")
            case ast.Name(id=name) if SWAPS.get(name) in names and isinstance(node.ctx, ast.Load):
                yield Edit(*span(node), SWAPS[name], "index")
            case ast.Attribute(value=owner, attr=name) if SWAPS.get(name) in attributes:
                yield Edit(span(owner)[1] + 1, span(node)[1], SWAPS[name], "index")
            case ast.IfExp(body=body, orelse=other):
                yield Edit(*span(node), code[slice(*span(body))], "branch")
                yield Edit(*span(node), code[slice(*span(other))], "branch")
            case ast.If(test=test):
                yield Edit(*span(test), "True", "branch")
                yield Edit(*span(test), "False", "branch")
            case ast.Expr(value=ast.Call()) | ast.Continue() | ast.Return(value=None):
                yield Edit(*span(node), "pass", "statement")
            case ast.Call(func=ast.Name(id="prange" | "range"), args=[first, *more]):
                last = more[0] if more else first
                yield Edit(span(last)[1], span(last)[1], " - 1", "boundary")
                if more:
                    yield Edit(span(first)[1], span(first)[1], " + 1", "boundary")
                else:
                    yield Edit(span(first)[0], span(first)[0], "1, ", "boundary")


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, set[str]]]:
    """Yield the nodes of function bodies and of the values of constants, with the names that there are."""
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(body=body):
                inner = [node for part in body[ast.get_docstring(statement) is not None :] for node in ast.walk(part)]
                names = (
                    imported | BUILTINS | {node.arg for node in ast.walk(statement.args) if isinstance(node, ast.arg)}
                )
                names |= {node.id for node in inner if isinstance(node, ast.Name)}
                yield from ((node, names) for node in inner)
            case ast.Assign(value=ast.Constant() | ast.BinOp()):
                yield from ((node, BUILTINS) for node in ast.walk(statement.value))


# ---- CUDA C++ --------------------------------------------------------------------------------------------------------

# Nothing inside these is changed: comments, strings, directives, what is there for the compiler, template headers.
_KEPT = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"[^"\n]*"|^[ ]*\#[^\n]*|__launch_bounds__\([^)]*\)|static_assert\([^;]*;|\benum\b[^;]*;"""
    r"""|^template[ ]<[^\n]*>$|^(?:constexpr|using)[^\n]*;""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
# Binary operators stand between blanks; those of templates, pointers and references do not.
_OPERATOR = re.compile(r"(?<= )(<=|>=|==|!=|<|>|&&|\|\||\+=|-=|\*=|/=|\+|-|\*|/|%)(?= )")
_NUMBER = re.compile(r"(?<![\w.])(\d+)(?![\w.])")
_NAME = re.compile(r"(?<!\w)[A-Za-z_]\w*")
_AXIS = re.compile(r"(threadIdx|blockDim)\.([xyz])")
_STATEMENT = re.compile(
    r"(?:(?<=[{)] )|(?<=  ))"
    r"(continue|break|return|__sync\w+\([^;\n]*\)|(?:dynk::)?store\([^;\n]*\)|[\w.]+\(\)|"
    r"[\w.]+(?:\[[^]\n]*\])? [-+*/]?= [^;\n]*)(?=;)"
)


def _cuda_edits(code: str) -> Iterator[Edit]:
    """Yield the changes of everything outside of `_KEPT`."""
    # blanks of the same length, so that positions stay; what a macro or a comment says is no code
    text = _KEPT.sub(lambda kept: re.sub(r"[^\n]", " ", kept[0]), code)
    for at in _OPERATOR.finditer(text):
        symbol = at[0]
        for other in COMPARISONS.get(symbol, ()):
            yield Edit(*at.span(), other, "comparison")
        if symbol in ARITHMETIC:
            yield Edit(*at.span(), {"%": "/"}.get(symbol, ARITHMETIC[symbol]), "arithmetic")
        if symbol in LOGIC:
            yield Edit(*at.span(), LOGIC[symbol], "logic")
        if symbol in ("+=", "-=", "*=", "/="):
            yield Edit(*at.span(), "=", "arithmetic")
    for at in _NUMBER.finditer(text):
        for other in _neighbours(int(at[0])):
            yield Edit(*at.span(), str(other), "constant")
    names = BUILTINS.union(_NAME.findall(text))
    for at in _NAME.finditer(text):
        if SWAPS.get(at[0]) in names and not _is_declared(text, *at.span()):
            yield Edit(*at.span(), SWAPS[at[0]], "index")
    for at in _AXIS.finditer(text):
        for axis in set("xyz") - {at[2]}:
            yield Edit(*at.span(2), axis, "index")
    for at in _STATEMENT.finditer(text):
        yield Edit(*at.span(1), "", "barrier" if at[1].startswith("__sync") else "statement")
    for at in re.finditer(r"0xffffffffu", text):
        yield Edit(*at.span(), "0x0000ffffu", "constant")


def _is_declared(text: str, begin: int, end: int) -> bool:
    """Return whether a name is being declared: a type, or another declared name and a comma, stand before it."""
    line = text[text.rfind("\n", 0, begin) + 1 : begin]
    declares = re.search(r"(?:Index|Acc|T\*|int|bool|__restrict__|auto|&)(?: \w+(?:\[\w+\])?,)* $", line)
    return bool(declares) and text[end] in " ,;()["
