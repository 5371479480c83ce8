"""A call of `deformable_conv2d` on the CUDA C kernels: its types and launches, its columns and its sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    BUSY,
    ELEMENT,
    INDEX,
    THREADS,
    WARP,
    by_value,
    divide_up,
    index_dtype,
    power_of_two,
    sum_partials,
)
from dynk.kernels.common.dtypes import ITEMSIZE, accumulator
from dynk.kernels.deformable import cupy_raw_scope
from dynk.kernels.deformable.geometry import FAR, WORKSPACE, DeformGeometry

DENSE, DEPTHWISE, TAPS = "dense.cu", "depthwise.cu", "taps.cu"
TILE = 64  # of a product's block, as the source says
SHARED = 48 << 10  # bytes of a block, at most
CHANNELS, LEAST_THREADS = (
    8,
    128,
)  # of a thread and a block that form columns: no more channels if there are fewer threads
FEW_OUTPUTS = 4  # of a group of one channel that has kernels of its own even without kernel offsets

# How many bytes of the workspace columns may take, and partial sums.
COLUMNS = WORKSPACE // 2
PARTIAL = WORKSPACE // 8


def is_depthwise(g: DeformGeometry) -> bool:
    """Return whether the kernels for groups of one channel take a call: with kernel offsets their rules are others."""
    return g.groups == g.C and bool(g.has_kernel or g.O // g.groups <= FEW_OUTPUTS)


class Part(NamedTuple):
    """The struct of this name: output pixels of the batch, and channels."""

    first: int
    pixels: int
    first_channel: int
    channels: int


class Call:
    """One call's geometry, types and launches."""

    def __init__(self, cuda: Any, plan: Plan) -> None:
        self.cuda = cuda
        self.g = DeformGeometry(*plan.geometry)
        self.dtype = plan.dtype
        self.index = _index(self.g)
        self.pixels = self.g.Ho * self.g.Wo
        self.taps = self.g.kh * self.g.kw
        self.scope = self.g.Sh * self.g.Sw
        self.weights = self.g.O * (self.g.C // self.g.groups) * self.scope
        self.depthwise = is_depthwise(self.g)
        self.size = ITEMSIZE[accumulator(self.dtype)]
        self.rounds = accumulator(self.dtype) != self.dtype  # gradients cannot hold what is to be added to
        # Elements of the columns in the workspace.
        self.most = min(self.g.N * self.pixels * self.g.C * self.scope, COLUMNS // self.size)
        self._columns: Any = None
        self._part: Part | None = None  # whose gradient they hold

    def launch(self, source: str, name: str, blocks: int, args: tuple[Any, ...], *more: Any, kind: str = "") -> None:
        """Launch a kernel of one-dimensional blocks, with the geometry and `more` numbers behind its arguments."""
        args = *args, *self.numbers(*more)
        self.cuda.launch(source, self.expression(name, kind), (blocks,), (THREADS,), args)

    def expression(self, name: str, more: str = "") -> str:
        return f"{name}<{ELEMENT[self.dtype]}, {INDEX[self.index]}{f', {more}' if more else ''}>"

    def numbers(self, *more: Any) -> tuple[Any, ...]:
        return tuple(by_value(n, self.index) if isinstance(n, tuple) else self.index.type(n) for n in (self.g, *more))

    @property
    def kind(self) -> str:
        """The template argument DENSE."""
        return "false" if self.depthwise else "true"

    # ---- columns -----------------------------------------------------------------------------------------------------

    def workspace_of_columns(self) -> Any:
        """Return where the columns of a part go, or their gradient: one part after the other."""
        if self._columns is None:
            self._columns = self.cuda.workspace(self.most, accumulator(self.dtype))
        return self._columns

    def parts(self) -> Iterator[Part]:
        """Return the parts of the batch whose columns fit the workspace, with all channels."""
        g, pixels = self.g, self.g.N * self.pixels
        step = max(1, self.most // (g.C * self.scope))
        if TILE < step < pixels:
            step -= step % TILE
        for first in range(0, pixels, step):
            yield Part(first, min(step, pixels - first), 0, g.C)

    def columns(self, part: Part, args: tuple[Any, ...]) -> Any:
        """Return the columns of a part."""
        columns, self._part = self.workspace_of_columns(), None
        run = math.gcd(self.g.C // self.g.Gk, self.g.C // self.g.Gd)
        each, threads, shared = min(CHANNELS, run), THREADS, 0
        if self.g.has_kernel:
            fitting = SHARED // (self.scope * self.size)  # threads, of a channel each
            each = max(1, min(each, fitting // LEAST_THREADS))
            if fitting >= WARP:
                threads = min(THREADS, power_of_two(fitting // each))
                shared = threads * each * self.scope * self.size
        numbers = self.numbers(part, run, each, int(shared > 0))
        blocks = divide_up(part.pixels * (self.g.C // run) * divide_up(run, each), threads)
        args = *args, columns, *numbers
        self.cuda.launch(DENSE, self.expression("deform_columns"), (blocks,), (threads,), args, shared)
        return columns

    def grad_columns(self, part: Part, grad_out: Any, weight: Any) -> Any:
        """Return the gradient of the columns of a part, None where it is formed element by element."""
        if self.depthwise:
            return None
        columns = self.workspace_of_columns()
        if part != self._part:
            blocks = self.tiles(self.g.C // self.g.groups * self.scope, part.pixels)
            self.launch(DENSE, "deform_backward_columns", blocks, (grad_out, weight, columns), part)
            self._part = part
        return columns

    def tiles(self, rows: int, columns: int) -> int:
        """Return how many tiles the products of all groups have."""
        return self.g.groups * divide_up(rows, TILE) * divide_up(columns, TILE)

    # ---- sums --------------------------------------------------------------------------------------------------------

    def of_scope(self, fast: cupy_raw_scope.Launch, blocks: int, args: tuple[Any, ...], *more: int) -> None:
        """Launch a kernel of `scope.cu`."""
        args = *args, *self.numbers(fast.blocking, *more)
        self.cuda.launch(cupy_raw_scope.SOURCE, fast.expression, (blocks,), (fast.threads,), args, fast.shared)

    def by_warps(self, name: str, args: tuple[Any, ...], gradient: Any, size: int) -> None:
        """Write a gradient of so many elements of which warps sum the parts."""
        pixels = self.g.N * self.pixels
        count = self.split(pixels, divide_up(BUSY, size * WARP), size, WARP)
        segment = divide_up(pixels, count)
        count = divide_up(pixels, segment)
        out = self.cuda.workspace(count * size, accumulator(self.dtype))
        blocks = divide_up(count * size * WARP, THREADS)
        self.launch(DEPTHWISE, name, blocks, (*args, out), segment, count)
        sum_partials(self.cuda, DEPTHWISE, self.dtype, out, gradient, size, count)

    def split(self, terms: int, wanted: int, size: int, least: int) -> int:
        """Return how many parts, of at least `least` terms, a sum has that is a gradient of so many elements."""
        return max(1, min(wanted, divide_up(terms, least), PARTIAL // (size * self.size)))


def _index(g: DeformGeometry) -> Any:
    blocks = max(g.Gk, g.Gd)
    return index_dtype(
        g.N * g.C * g.H * g.W,
        g.N * max(g.O, 2 * blocks * g.kh * g.kw) * g.Ho * g.Wo,
        g.O * (g.C // g.groups) * g.Sh * g.Sw,
        FAR + g.H + 2 * g.pad_h + g.kh * g.dil_h,
        FAR + g.W + 2 * g.pad_w + g.kw * g.dil_w,
    )
