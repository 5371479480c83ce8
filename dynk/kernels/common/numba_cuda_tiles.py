"""Matrix products over shared memory in Numba CUDA: what the kernels of all families do alike.

A block forms ROWS x COLUMNS sums, DEPTH terms at a time, in chains of CHAIN terms. A thread forms EACH of them, STEP
rows apart, and holds them in tuples, which stay in registers.
"""

# Every function here but the launch is a device function, of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import CHAIN

ROWS, COLUMNS, DEPTH = 64, 16, 16
BLOCK = 256
EACH = ROWS * COLUMNS // BLOCK
STEP = ROWS // EACH


def launch_tiles(runtime: Any, kernel: Any, products: int, rows: int, columns: int, *args: Any) -> None:
    """Launch a block for each tile of some products of so many rows and columns."""
    tiles = products * -(-rows // ROWS) * -(-columns // COLUMNS)
    if tiles > 0:
        runtime.launch(kernel, (tiles,), (BLOCK,), args)


@cuda.jit(device=True)
def tile(rows, columns):
    """Return the first row and column of a block's tile, and the number of its product."""
    across = (columns + COLUMNS - 1) // COLUMNS
    down = (rows + ROWS - 1) // ROWS
    block = cuda.blockIdx.x
    product = block // (across * down)
    rest = block - product * across * down
    row = rest // across
    return row * ROWS, (rest - row * across) * COLUMNS, product


@cuda.jit(device=True)
def add_strips(row_strip, column_strip, parts):
    """Add DEPTH terms to each of a thread's sums and return them; all threads of a block must call."""
    across = cuda.threadIdx.x % COLUMNS
    down = cuda.threadIdx.x // COLUMNS
    part0, part1, part2, part3 = parts
    cuda.syncthreads()
    for k in range(DEPTH):
        factor = column_strip[k, across]
        part0 += row_strip[k, down] * factor
        part1 += row_strip[k, down + STEP] * factor
        part2 += row_strip[k, down + 2 * STEP] * factor
        part3 += row_strip[k, down + 3 * STEP] * factor
    cuda.syncthreads()
    return part0, part1, part2, part3


@cuda.jit(device=True)
def merged(totals, parts, terms, zeros):
    """Return a thread's sums and chains after their `terms`-th term: a full chain is added to its sum."""
    if terms % CHAIN != 0:
        return totals, parts
    return added(totals, parts), zeros


@cuda.jit(device=True)
def added(totals, parts):
    """Return a thread's sums, their last chains included."""
    return totals[0] + parts[0], totals[1] + parts[1], totals[2] + parts[2], totals[3] + parts[3]


@cuda.jit(device=True)
def chosen(sums, e):
    """Return one of a thread's sums; in an array they would leave the registers."""
    if e < 2:
        return sums[0] if e == 0 else sums[1]
    return sums[2] if e == 2 else sums[3]
