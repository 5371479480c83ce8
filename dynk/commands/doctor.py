"""What this machine has: backends with reasons, threads, SIMD width, CUDA, versions."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import dynk

PACKAGES = (
    "numpy", "numba", "llvmlite", "tbb", "ml_dtypes", "torch", "jax", "jaxlib",
    "cupy-cuda13x", "cupy-cuda12x", "numba-cuda",
)  # fmt: skip


def run(*, as_json: bool = False) -> int:
    """Print the report and return 0."""
    report = collect()
    if as_json:
        print(json.dumps(report, indent=2))
        return 0
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    machine = report["machine"]
    table = Table("machine", "", title=f"dynk {report['dynk']}", title_justify="left")
    for name, value in machine.items():
        table.add_row(name, escape(str(value)))
    console.print(table)
    table = Table("backend", "arrays on", "dtypes", "state")
    for status in report["backends"]:
        state = "[green]ready[/]" if status["reason"] is None else f"[yellow]{escape(status['reason'])}[/]"
        table.add_row(status["name"], status["device"], ", ".join(status["dtypes"]), state)
    console.print(table)
    table = Table("package", "version")
    for name, version in report["versions"].items():
        table.add_row(name, version or "[dim]not installed[/]")
    console.print(table)
    return 0


def collect() -> dict[str, Any]:
    """Return the report as plain data."""
    return {
        "dynk": dynk.__version__,
        "machine": machine(),
        "backends": [status._asdict() for status in dynk.backends()],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def machine() -> dict[str, Any]:
    """Return the processor, its vector width, the threading layer and the CUDA devices."""
    import llvmlite.binding as llvm
    import numba

    from dynk.kernels.common import threads

    layer = threads.layer()  # before anything else starts Numba's threads
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": llvm.get_host_cpu_name(),
        "SIMD": simd(llvm.get_host_cpu_features()),
        "threads": numba.get_num_threads(),
        "threading layer": layer,
        "CUDA": cuda(),
    }


def simd(features: Any) -> str:
    """Return the widest vector instructions among LLVM's feature names."""
    for feature, name in (
        ("avx512f", "AVX-512 (512 bit)"),
        ("avx2", "AVX2 (256 bit)"),
        ("avx", "AVX (256 bit)"),
        ("sse2", "SSE2 (128 bit)"),
        ("sve", "SVE"),
        ("neon", "NEON (128 bit)"),
    ):
        if features.get(feature):
            return name
    return "unknown"


def cuda() -> str:
    """Return the CUDA devices, or why there are none."""
    for status in dynk.backends():
        if status.device == "cuda" and status.reason is None:
            return _cuda_devices(status.name)
    return "; ".join(f"{s.name}: {s.reason}" for s in dynk.backends() if s.device == "cuda")


def _cuda_devices(backend: str) -> str:
    if backend == "cupy":
        import cupy

        runtime = cupy.cuda.runtime
        names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
        return f"{', '.join(names)} (driver {runtime.driverGetVersion()}, runtime {runtime.runtimeGetVersion()})"
    from numba import cuda as numba_cuda

    return ", ".join(device.name.decode() for device in numba_cuda.gpus)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
