"""What is compiled of the CPU kernels, and when it is taken from the cache."""

from __future__ import annotations

import operator
import shutil
from pathlib import Path

import numba
import numpy as np
from numba.core.registry import cpu_target
from numba.core.types.functions import BaseFunction
from test_cpu_kernels import CALL, PACKAGE, QUICK, run

from dynk.kernels.common import compile as kernels_compile
from dynk.kernels.common.compile import inlined, kernel
from dynk.kernels.common.lowering import remembering

# ---- what is compiled ------------------------------------------------------------------------------------------------


def test_a_call_compiles_the_kernel_it_needs(tmp_path):
    code = """
import numpy as np, dynk
from dynk.kernels.dilated import cpu
x = np.ones((1, 2, 3, 3), np.float32)
weight, shares = np.ones((2, 1, 1, 1), np.float32), np.ones((1, 1, 3, 3), np.float32)
dynk.adaptive_dilation_conv2d(x, weight, shares, dilations=(1,), groups=2)
for kernel in cpu.dilation_depthwise_forward, cpu.dilation_dense_forward, cpu.dilation_depthwise_backward:
    print(len(kernel.signatures))
"""
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path), **QUICK).split() == ["1", "0", "0"]


def test_numba_remembers_what_calls_return_while_a_kernel_is_compiled(monkeypatch):
    context, looked_up = cpu_target.typing_context, []
    add, of_integers = context.resolve_value_type(operator.add), (numba.int64, numba.int64)
    find = BaseFunction.get_call_type

    def counted(self, context, args, keywords):
        looked_up.append(args)
        return find(self, context, args, keywords)

    monkeypatch.setattr(BaseFunction, "get_call_type", counted)
    with remembering():
        for _ in range(3):
            assert add.get_call_type(context, of_integers, {}).return_type == numba.int64
        assert add.get_call_type(context, (numba.int64, numba.float64), {}).return_type == numba.float64
    assert looked_up == [of_integers, (numba.int64, numba.float64)]
    assert add.get_call_type(context, of_integers, {}).return_type == numba.int64
    assert len(looked_up) == 3


@inlined
def _element(array, index):
    return array[index]


@numba.njit
def _sum_of_elements(array):
    return _element(array, 0) + _element(array, array.size - 1)


def test_what_a_kernel_calls_is_compiled_for_types_not_for_numbers_written_out():
    assert _sum_of_elements(np.array([1.0, 2.0])) == 3.0
    assert len(_element.signatures) == 1


def test_what_a_kernel_calls_has_no_name_that_other_code_could_find(tmp_path):
    code = f"""
{CALL}
call()
from dynk.kernels.decoupled import cpu
(compiled,) = cpu.ddf_nine_forward.overloads.values()
lines = [line for line in compiled.library.get_llvm_str().splitlines() if line.startswith("define ")]
print(len(lines) > 0, sum("internal" in line or "linkonce" in line for line in lines))
"""
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path), **QUICK).split() == ["True", "0"]


# ---- the code cache --------------------------------------------------------------------------------------------------


def _copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "site" / "dynk", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "site"


def test_an_edit_to_a_helper_in_another_file_is_not_hidden_by_the_cache(tmp_path):
    site, cache = _copy(tmp_path), {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), **QUICK}
    code = "import numpy as np, dynk; print(dynk.ddf(np.ones((1, 1, 1, 1)), None, np.ones((1, 1, 1, 1)))[0, 0, 0, 0])"
    count_hits = (
        f"{code}\nfrom dynk.kernels.decoupled import cpu\nprint(sum(cpu.ddf_rows_forward.stats.cache_hits.values()))"
    )
    assert run(code, site, **cache).split() == ["1.0"]
    assert run(count_hits, site, **cache).split() == ["1.0", "1"]
    helper = site / "dynk" / "kernels" / "common" / "vector_llvm.py"
    source = helper.read_text()
    plain = "return builder.select(_bits(builder, values[0], values[1].type.count), *values[1:])"
    assert source.count(plain) == 1
    helper.write_text(source.replace(plain, "return values[2]"))  # no tap counts near a border
    assert run(count_hits, site, **cache).split() == ["0.0", "0"]


def test_a_numba_without_the_known_cache_runs_uncached(monkeypatch):
    def one():
        return 1

    class Unknown:
        py_func = one
        _cache = object()

    made = []

    def njit(**options):
        made.append(options)
        return lambda function: Unknown() if options.get("cache") else function

    monkeypatch.setattr(kernels_compile, "njit", njit)
    assert kernel(one) is one
    assert "cache" not in made[-1]


def test_works_where_nothing_can_be_written(tmp_path):
    site = _copy(tmp_path)
    # Stands in for a read-only installation also where the tests run as root.
    code = f"""
import os
from numba.core import caching
def refuse(self, *args, **kwargs):
    raise OSError("read-only file system")
caching._CacheLocator.ensure_cache_path = refuse
{CALL}
call()
from dynk.kernels.decoupled import cpu
assert "Null" in type(cpu.ddf_nine_forward._cache).__name__
"""
    for path in sorted(site.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        run(code, site, HOME=str(tmp_path / "none"), XDG_CACHE_HOME=str(tmp_path / "none"), **QUICK)
        assert not list(site.rglob("*.nbi"))
    finally:
        for path in (site, *site.rglob("*")):
            path.chmod(0o755)
