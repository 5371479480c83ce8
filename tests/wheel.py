"""Builds dynk as it is published and tries the wheel where there is nothing but NumPy and Numba: `make wheel-test`."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"dynk": ROOT / "dynk", "dynk_torch": ROOT / "adapters/dynk_torch", "dynk_jax": ROOT / "adapters/dynk_jax"}
NEEDED = (".py", ".cu", ".cuh", "py.typed")

# A call of each operator and of one gradient, which the CPU's kernels are compiled for, against the reference; and no
# library is imported that was not asked for.
SMOKE = """
import importlib.metadata, importlib.resources, sys

import numpy as np

import dynk
from dynk import testing
from dynk._operator import operators

assert dynk.__version__ == importlib.metadata.version("dynk")
for name, op in operators().items():
    call = testing.sample_calls(op, "float32", np.random.default_rng(0))[0]
    expected, magnitude = call.expected_forward()
    out = call.forward(backend="cpu")
    testing.assert_close(out, expected, magnitude, what=name)
    print(name)
call = testing.sample_calls(operators()["ddf"], "float32", np.random.default_rng(0))[0]
grad_out = np.ones(call.plan.out_shape, np.float32)
for gradient, expected, magnitude in zip(call.backward(grad_out), *call.expected_backward(grad_out), strict=True):
    testing.assert_close(gradient, expected, magnitude)
for folder in ("common", "decoupled", "sampled", "dilated", "deformable"):
    files = importlib.resources.files(f"dynk.kernels.{folder}")
    assert any(file.name.endswith((".cu", ".cuh")) for file in files.iterdir()), folder
assert not {"torch", "jax", "cupy", "hypothesis", "rich"} & set(sys.modules)
installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
assert installed - {"pip", "setuptools"} == {"dynk", "numpy", "numba", "llvmlite"}, installed
"""


def run(*command: str | Path) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(part) for part in command], check=True)


def sources(folder: Path) -> set[str]:
    """Return the files that a package must hold, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name.endswith(NEEDED)}


def check_wheel(wheel: Path) -> None:
    """Raise if the wheel lacks a file of the packages, or has one that is none of theirs."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"{package}/{file}" for package, folder in PACKAGES.items() for file in sources(folder)}
    if names != expected:
        msg = f"{wheel.name}: missing {sorted(expected - names)}, should not be there {sorted(names - expected)}"
        raise SystemExit(msg)


def check_sdist(sdist: Path) -> None:
    """Raise if the source distribution lacks what is tracked, or holds what a build or a run left behind."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    expected = {name for name in tracked if not name.startswith(".ci/")} | {"PKG-INFO"}
    if names != expected:
        msg = f"{sdist.name}: missing {sorted(expected - names)}, should not be there {sorted(names - expected)}"
        raise SystemExit(msg)


def main() -> int:
    """Build, look into what was built, install and run it."""
    with tempfile.TemporaryDirectory() as folder:
        dist, empty = Path(folder, "dist"), Path(folder, "venv")
        run(sys.executable, "-m", "build", "--outdir", dist, ROOT)
        (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        check_wheel(wheel)
        check_sdist(sdist)
        venv.create(empty, with_pip=True)
        python = empty / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", wheel)
        subprocess.run([str(python), "-c", SMOKE], check=True, cwd=folder)
        print(f"{wheel.name} and {sdist.name} are in order")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
