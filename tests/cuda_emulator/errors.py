"""What a launch found wrong with a kernel."""

import dataclasses
from collections.abc import Sequence

Index = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of a source file."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f"  {self.text}" if self.text else "")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault: what, where, by which thread, and the thread it conflicts with.

    Attributes
    ----------
    kind
        In words: "out-of-bounds read", "race between writes", "divergent barrier", ...
    place
        The source line; None where the fault is the caller's (a wrong argument).
    block, thread
        ``blockIdx`` and ``threadIdx`` as (x, y, z).
    bytes
        Size of the access; 0 where the fault is no memory access.
    other_place, other_block, other_thread
        The other side of a race or of a divergent barrier; None where unknown, or where it is several.
    """

    kind: str
    place: Place | None = None
    block: Index | None = None
    thread: Index | None = None
    bytes: int = 0
    other_place: Place | None = None
    other_block: Index | None = None
    other_thread: Index | None = None
    detail: str = ""

    def __str__(self) -> str:
        words = self.kind
        if self.bytes:
            words += f" of {self.bytes} bytes"
        if self.detail:
            words += f": {self.detail}"
        if self.place:
            words += f"\n    at {self.place}"
        if self.thread:
            words += f"\n    by block {self.block}, thread {self.thread}"
        if self.other_place or self.other_thread:
            words += "\n    against"
            if self.other_thread:
                words += f" block {self.other_block}, thread {self.other_thread}"
            if self.other_place:
                words += f" at {self.other_place}"
        return words


class KernelCheckError(Exception):
    """A kernel, or the call that launches it, is wrong.

    Attributes
    ----------
    kernel : str
        Name of the kernel.
    findings : tuple of Finding
        All that was found, first things first. ``kind``, ``line``, ``block`` and ``thread`` are the first one's.
    """

    def __init__(self, kernel: str, findings: Sequence[Finding]) -> None:
        self.kernel = kernel
        self.findings = tuple(findings)
        first = self.findings[0]
        self.kind = first.kind
        self.line = first.place.line if first.place else None
        self.block = first.block
        self.thread = first.thread
        shown = self.findings[:8]
        more = len(self.findings) - len(shown)
        lines = [f"{kernel}: {finding}" for finding in shown] + ([f"and {more} more"] if more else [])
        super().__init__("\n".join(lines))
