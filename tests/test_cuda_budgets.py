"""What the CUDA C kernels take of a GPU: registers, shared memory and spills, compiled without one.

`budgets.json` holds the most that any instantiation of a kernel takes, by element and index type, kernel size and
architecture. Taking more fails, taking less does not; `make budgets` renews the file. Another version of the compiler
than the file's may take a tenth and 8 more of each.

Every instantiation is compiled for sm_75 or sm_90, by turns, and the largest one of each kernel and size for one of the
other architectures, in turn too; all are for all of them with HYPOTHESIS_PROFILE=thorough.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_emulator.toolchain import cuda_include_folders
from emulated import has_size
from hypothesis import given
from hypothesis import strategies as st

from dynk._operator import Operator, operators
from dynk.decoupled import DDF
from dynk.kernels import common
from dynk.kernels.common.dtypes import FLOATS, STORAGE
from dynk.sampled import DYNAMIC_FILTER

FILE = Path(__file__).with_name("budgets.json")
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
COMPLETE = ("sm_75", "sm_90")
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SLACK_FACTOR, SLACK = 1.1, 8
TRIES = 6  # the compiler is not deterministic: of some sources, one result in six takes a few registers more


class Usage(NamedTuple):
    """What a kernel takes: registers of a thread, static shared memory of a block, spilled bytes of a thread."""

    registers: int
    shared: int
    spilled: int


# ---- what there is to compile ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the budgets: the instantiations of a kernel in the same types and kernel size, the largest last."""

    folder: Path
    source: str
    key: str
    expressions: tuple[str, ...]


def arguments(expression: str) -> tuple[str, list[str]]:
    """Return a kernel's name and its template arguments."""
    name, _, rest = expression.removesuffix(">").partition("<")
    return name, rest.split(", ")


@cache
def rows() -> tuple[Row, ...]:
    """Return everything that the families' launch functions declare."""
    found: dict[tuple[Path, str, str], list[str]] = {}
    with_kernels = [op for op in operators().values() if op.has_launchers("cupy_raw")]
    for launchers in {op.family: op.launchers("cupy_raw") for op in with_kernels}.values():
        for source, expression in launchers.instantiations():
            name, args = arguments(expression)
            key = f"{name}<{', '.join(args[: 4 if has_size(name) else 2])}>"
            if name == "sum_partials":
                key += f" of {source}"
            found.setdefault((Path(launchers.__file__).parent, source, key), []).append(expression)
    return tuple(Row(*place, tuple(expressions)) for place, expressions in found.items())


def to_compile() -> list[Any]:
    """Return a parameter set (architecture, row, expressions) for each test."""
    found = []
    for number, row in enumerate(rows()):
        complete = ARCHITECTURES if THOROUGH else COMPLETE[number % 2 :][:1]
        others = [architecture for architecture in ARCHITECTURES if architecture not in complete]
        found += [(architecture, row, row.expressions) for architecture in complete]
        if others:
            found.append((others[number // 2 % len(others)], row, row.expressions[-1:]))
    return [pytest.param(*case, id=f"{case[0]}-{case[1].key}") for case in found]


# ---- compiling -------------------------------------------------------------------------------------------------------


def nvrtc_version() -> str:
    """Return the compiler's version, major.minor."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def compile_kernels(row: Row, expressions: tuple[str, ...], architecture: str) -> dict[str, Usage]:
    """Return what each instantiation takes, as the assembler reports it."""
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    include = [str(folder) for folder in (Path(common.__file__).parent, row.folder, *cuda_include_folders())]
    options = core.ProgramOptions(arch=architecture, std="c++17", include_path=include, ptxas_options=["-v"])
    log = io.StringIO()
    program = core.Program((row.folder / row.source).read_text(), "c++", options)
    cubin = program.compile("cubin", name_expressions=expressions, logs=log)
    assert "warning" not in log.getvalue(), log.getvalue()
    reports = dict(re.findall(r"Function properties for (\S+)\n(.*\n.*)", log.getvalue()))
    return {expression: usage(reports[as_text(cubin.symbol_mapping[expression])]) for expression in expressions}


def as_text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def usage(report: str) -> Usage:
    """Read two lines of the assembler's report on a kernel. Local memory of any kind counts as spilled."""

    def number(pattern: str) -> int:
        found = re.search(pattern, report)
        return int(found[1]) if found else 0

    spilled = number(r"(\d+) bytes stack frame") + number(r"(\d+) bytes spill stores")
    return Usage(number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), spilled + number(r"(\d+) bytes spill l"))


# ---- budgets ---------------------------------------------------------------------------------------------------------


@cache
def budgets() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def write(most: dict[str, dict[str, Usage]]) -> None:
    """Write the file, a line for each row."""
    lines = [f"    {json.dumps(key)}: {json.dumps(most[key], sort_keys=True)}" for key in sorted(most)]
    head = f'  "figures": {json.dumps(Usage._fields)},\n  "nvrtc": "{nvrtc_version()}",\n'
    FILE.write_text("{\n" + head + '  "budgets": {\n' + ",\n".join(lines) + "\n  }\n}\n")


def over_budget(taken: Usage, budget: Usage, *, same_compiler: bool) -> list[str]:
    """Return what is wrong, with both figures."""
    allowed = budget if same_compiler else Usage(*(int(SLACK_FACTOR * figure) + SLACK for figure in budget))
    return [
        f"{name} {figure}, budget {most}"
        for name, figure, most in zip(Usage._fields, taken, allowed, strict=True)
        if figure > most
    ]


def most_of(usages: dict[str, Usage]) -> Usage:
    return Usage(*(max(figures) for figures in zip(*usages.values(), strict=True)))


# ---- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "row", "expressions"), to_compile())
def test_kernels_keep_within_budget(architecture: str, row: Row, expressions: tuple[str, ...]) -> None:
    same_compiler = nvrtc_version() == budgets()["nvrtc"]
    budget = Usage(*budgets()["budgets"][row.key][architecture])
    wrong: dict[str, list[str]] = {}
    for _ in range(TRIES):
        taken = compile_kernels(row, expressions, architecture)
        wrong = {name: over_budget(taken[name], budget, same_compiler=same_compiler) for name in taken}
        if not any(wrong.values()):
            return
    pytest.fail(f"on {architecture}, each time of {TRIES}, over budget (renew with make budgets): {wrong}")


def test_budgets_are_those_of_the_declared_kernels_without_spills() -> None:
    assert set(budgets()["budgets"]) == {row.key for row in rows()}
    for key, by_architecture in budgets()["budgets"].items():
        assert set(by_architecture) == set(ARCHITECTURES), key
        spilling = [name for name, figures in by_architecture.items() if Usage(*figures).spilled]
        assert not spilling, f"{key} spills on {spilling}"


def test_more_than_the_budget_is_reported_with_both_figures() -> None:
    budget = Usage(40, 1024, 0)
    assert over_budget(Usage(39, 1024, 0), budget, same_compiler=True) == []
    wrong = ["registers 41, budget 40", "spilled 8, budget 0"]
    assert over_budget(Usage(41, 1024, 8), budget, same_compiler=True) == wrong
    assert over_budget(Usage(52, 1134, 8), budget, same_compiler=False) == []
    assert over_budget(Usage(53, 1024, 0), budget, same_compiler=False) == ["registers 53, budget 52"]


def test_assembler_report_is_read() -> None:
    report = (
        "    16 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem"
    )
    assert usage(report) == Usage(255, 2048, 32)


class Recorder:
    """The runtime object of launch functions; notes the instantiations asked for."""

    def __init__(self) -> None:
        self.launched: set[tuple[str, str]] = set()

    def launch(self, source: str, expression: str, *launch: Any) -> None:
        self.launched.add((source, expression))

    def workspace(self, count: int, dtype: str) -> Any:
        return object()


few = st.integers(1, 3)
extents = st.sampled_from([1, 2, 5, 40, 300, 2**14])
taps = st.one_of(st.integers(1, 9), st.sampled_from([24, 25, 49, 65]))


@st.composite
def filter_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    groups, N = draw(few), draw(few)
    C = groups * draw(st.sampled_from([1, 2, 3, 4, 7, 8, 70, 5000, 2**17]))
    H, W, kh, kw = draw(extents), draw(extents), draw(taps), draw(taps)
    options: dict[str, Any] = {"combine": draw(st.sampled_from(["mul", "add"]))}
    if op is DDF:
        stride = options["stride"] = draw(few)
        subpixels, anchors = (), (-(-H // stride), -(-W // stride))
    else:
        scale = options["scale"] = draw(st.sampled_from([1, 2, 3, 30]))
        subpixels, anchors = (scale, scale), (H, W)
    has_spatial, has_channel = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    spatial = (N, groups, *subpixels, kh, kw, *anchors) if has_spatial else None
    channel = (N, C, *subpixels, kh, kw) if has_channel else None
    return ((N, C, H, W), spatial, channel), options


@st.composite
def norm_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kh = draw(taps)
    shape = (draw(few), draw(extents), kh, draw(taps.filter(lambda kw: kh * kw > 1)), draw(extents), draw(extents))
    parameters = [tuple(extent if draw(st.booleans()) else 1 for extent in shape) for _ in ("scale", "shift")]
    return (shape, *(parameter if draw(st.booleans()) else None for parameter in parameters)), {"axes": (2, 3)}


@st.composite
def sampled_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    N, C, O, H, W = draw(few), draw(extents), draw(st.sampled_from([1, 4, 9])), draw(extents), draw(extents)  # noqa: E741
    kh, kw, s = draw(taps), draw(taps), draw(st.sampled_from([1, 2, 5, 9, 10, 64]))
    options: dict[str, Any] = {
        "samples": s,
        "sample_stride": draw(few),
        "reduce": draw(st.sampled_from(["sum", "mean", "max", "none"])),
    }
    if op is DYNAMIC_FILTER:
        return ((N, C, H, W), (N, O, C, kh, kw, H, W)), options
    across, within = (N, O, C, H, W), (N, O, kh, kw, H, W)
    absent = draw(st.sampled_from([{1}, {2}, set(), {3, 4}, {2, 3}, {1, 4}]))
    shapes = (N, C, H, W), across, within, (N, O, s, s, H, W), within
    options |= {"kernel_residual": draw(st.booleans())}
    return tuple(None if number in absent else shape for number, shape in enumerate(shapes)), options


@st.composite
def dilated_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    groups, N, D = draw(st.sampled_from([1, 3, 70])), draw(few), draw(st.integers(1, 8))
    C, O = groups * draw(st.sampled_from([1, 2, 300])), groups * draw(st.sampled_from([1, 4, 5, 300]))  # noqa: E741
    H, W, stride = draw(extents), draw(extents), draw(few)
    anchors = -(-H // stride), -(-W // stride)
    shapes = (N, C, H, W), (O, C // groups, draw(st.integers(1, 7)), draw(st.integers(1, 7))), (N, D, *anchors), (O,)
    return shapes, {"dilations": (1,) * D, "stride": stride, "groups": groups}


@st.composite
def logit_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shape = draw(few), draw(extents), draw(extents)
    return (shape, draw(st.sampled_from([None, (1,)]))), {"axis": draw(st.integers(0, 2))}


@st.composite
def deformable_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    N, groups, large = 2, draw(st.sampled_from([1, 3, 64])), draw(st.booleans())
    C, O = groups * draw(st.sampled_from([1, 2, 30])), groups * draw(st.sampled_from([1, 4, 5]))  # noqa: E741
    H, W = draw(st.sampled_from([5, 40])), draw(st.sampled_from([5, 300]))
    kh, kw, *scope = (draw(st.integers(1, 5)) for _ in range(4))
    moves_kernel, moves_data, has_mask = (draw(st.booleans()) for _ in range(3))
    if large:
        groups, C, O, H, W, moves_data = 1, 1, 1, 2**15, 2**15, False  # noqa: E741
    Gk, Gd = (draw(st.sampled_from([1, C])) for _ in range(2))
    shapes = (
        (N, C, H, W),
        (O, C // groups, *(scope if moves_kernel else (kh, kw))),
        (N, Gk, kh, kw, 2, H - kh + 1, W - kw + 1) if moves_kernel else None,
        (N, Gd, kh, kw, 2, H - kh + 1, W - kw + 1) if moves_data else None,
        (N, Gd, kh, kw, H - kh + 1, W - kw + 1) if has_mask else None,
        (O,),
    )
    return shapes, {"groups": groups}


@st.composite
def resampled_shapes(draw: st.DrawFn, op: Operator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    O, large = draw(few), draw(st.sampled_from([1, 2**14]))  # noqa: E741
    return ((O * large, large, draw(few), 3), (8, draw(st.sampled_from([1, O])), draw(few), 3, 2)), {}


SHAPES = {
    "adaptive_dilation_conv2d": dilated_shapes,
    "ddf": filter_shapes,
    "ddf_upsample": filter_shapes,
    "deformable_conv2d": deformable_shapes,
    "filter_norm": norm_shapes,
    "dynamic_filter": sampled_shapes,
    "gumbel_softmax": logit_shapes,
    "ls_dfn": sampled_shapes,
    "sample_kernel": resampled_shapes,
}


def but_for_size(source: str, expression: str) -> tuple[Any, ...]:
    name, args = arguments(expression)
    if has_size(name):
        args[2:4] = ["any" if args[2:4] == ["0", "0"] else "compiled for one"]
    return source, name, *args


@pytest.mark.parametrize(
    "op", [op for op in operators().values() if op.has_launchers("cupy_raw")], ids=lambda op: op.name
)
@given(data=st.data())
def test_every_instantiation_asked_for_is_declared(op: Operator, data: st.DataObject) -> None:
    shapes, options = data.draw(SHAPES[op.name](op))
    dtype = data.draw(st.sampled_from(FLOATS))
    own = {"seed": "int64"}
    dtypes = tuple(None if s is None else own.get(name, dtype) for name, s in zip(op.arrays, shapes, strict=True))
    plan = op.plan(op.name, shapes, dtypes, op.canonical(**options))
    launchers = op.launchers("cupy_raw")
    arrays = [None if its_dtype is None else np.empty(1, STORAGE[its_dtype]) for its_dtype in dtypes]
    cuda = Recorder()
    getattr(launchers, f"{op.launcher}_forward")(cuda, plan, *arrays, object())
    getattr(launchers, f"{op.launcher}_backward")(cuda, plan, object(), *arrays, *arrays)
    declared = {but_for_size(*instantiation) for instantiation in launchers.instantiations()}
    assert {but_for_size(*instantiation) for instantiation in cuda.launched} <= declared


def _measure(case: tuple[Row, str]) -> tuple[str, str, Usage]:
    row, architecture = case
    return row.key, architecture, most_of(compile_kernels(row, row.expressions, architecture))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compiles every kernel for every architecture; minutes of CPU.")
    parser.add_argument("--write", action="store_true", required=True, help="renew budgets.json")
    parser.add_argument("--workers", type=int, help="processes that compile (default: one for each processor)")
    parser.add_argument("--only", metavar="TEXT", help="renew the lines that contain this and keep the others")
    options = parser.parse_args()
    only, declared = options.only, rows()
    renewed: dict[str, dict[str, Usage]] = {}
    if only is not None:
        kept = {row.key for row in declared if only not in row.key} & budgets()["budgets"].keys()
        renewed |= {key: budgets()["budgets"][key] for key in kept}
        declared = tuple(row for row in declared if only in row.key)
    with ProcessPoolExecutor(options.workers) as workers:
        for key, architecture, most in workers.map(_measure, [(r, a) for r in declared for a in ARCHITECTURES]):
            renewed.setdefault(key, {})[architecture] = most
    write(renewed)
