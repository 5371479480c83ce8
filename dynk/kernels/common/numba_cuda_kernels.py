"""What the Numba CUDA kernels of all families share: launch geometry, sums over lanes and pixels, a strided copy.

Kernels take flat arrays and int scalars, compute in 64-bit indices (Numba widens every integer sum to 64 bits), and run
in one-dimensional grids of blocks of THREADS threads. They must tolerate more blocks than they need.

Sums are formed in chains of at most CHAIN terms. A long sum is first spread over `lanes` neighbouring threads, whose
values are added as a tree, and over `chunks` groups of lanes, whose sums a second kernel adds; both numbers follow from
shapes alone, so that the same call gives the same bits.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, uint64

from dynk._operator import Plan

THREADS = 128
CHAIN = 64
COPY_DIMS = 8
MAX_CHUNKS = 1024


def launch(runtime: Any, kernel: Any, threads: int, *args: Any) -> None:
    """Launch a kernel with one thread for each of `threads` pieces of work."""
    if threads > 0:
        runtime.launch(kernel, (-(-threads // THREADS),), (THREADS,), args)


def lanes_for(terms: int) -> int:
    """Return how many threads, a power of two, share a sum of so many terms."""
    lanes = 1
    while lanes < THREADS and 4 * lanes < terms:
        lanes *= 2
    return lanes


def chunks_for(terms: int, lanes: int, most: int = MAX_CHUNKS) -> int:
    """Return into how many partial sums a sum is split, so that a lane adds no more than CHAIN terms where it can."""
    return max(1, min(-(-terms // (lanes * CHAIN)), most, MAX_CHUNKS))


def merge(runtime: Any, partial: Any, out: Any, size: int, chunks: int) -> None:
    """Write to `out` the sums over chunks of `partial` (chunks, size)."""
    lanes = lanes_for(chunks)
    launch(runtime, merge_kernel, size * lanes, partial, out, size, chunks, lanes)


def backward_bias(
    runtime: Any, plan: Plan, grad_out: Any, grad_bias: Any, outputs: int, pixels: int, numbers: int
) -> None:
    """Write the sums over the `numbers` pixels of a batch of `grad_out` (N, outputs, pixels)."""
    lanes = lanes_for(numbers)
    chunks = chunks_for(numbers, lanes)
    partial = grad_bias if chunks == 1 else runtime.workspace(chunks * outputs, plan.dtype)
    args = (grad_out, partial, outputs, pixels, numbers, chunks, lanes)
    launch(runtime, backward_bias_kernel, chunks * outputs * lanes, *args)
    if chunks > 1:
        merge(runtime, partial, grad_bias, outputs, chunks)


@cuda.jit(device=True)
def load(array: Any, index: Any) -> Any:
    """Return array[index] without the instructions by which Numba wraps a negative index around."""
    return array[uint64(index)]


@cuda.jit(device=True)
def split(number: Any, extent: Any) -> Any:
    """Return number // extent and number % extent."""
    rest = number // extent
    return rest, number - rest * extent


@cuda.jit(device=True)
def staged(terms: Any, chain: Any, merged: Any, total: Any, zero: Any) -> Any:
    """Return the stages of a sum after its `terms`-th term was added to `chain`; their sum is that of all terms.

    Up to CHAIN**3 terms are summed in chains of no more than CHAIN.
    """
    if terms % CHAIN == 0:
        merged += chain
        chain = zero
        if terms % (CHAIN * CHAIN) == 0:
            total += merged
            merged = zero
    return chain, merged, total


@cuda.jit(device=True)
def sum_lanes(shared: Any, value: Any, lanes: int) -> Any:
    """Return the sum over `lanes` threads to the first of them; all threads of a block must call."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    step = lanes // 2
    while step > 0:
        if thread % lanes < step:
            shared[thread] += shared[thread + step]
        cuda.syncthreads()
        step //= 2
    total = shared[thread]
    cuda.syncthreads()  # before the next sum, of the same memory
    return total


@cuda.jit
def merge_kernel(partial, out, size, chunks, lanes):  # type: ignore[no-untyped-def]
    """One group of lanes for each element of `out`."""
    shared = cuda.shared.array(THREADS, partial.dtype)
    unit = cuda.grid(1)
    element = unit // lanes
    lane = unit % lanes
    total = partial.dtype.type(0)
    if element < size:
        for chunk in range(lane, chunks, lanes):
            total += load(partial, chunk * size + element)
    total = sum_lanes(shared, total, lanes)
    if element < size and lane == 0:
        out[element] = total


@cuda.jit
def backward_bias_kernel(grad_out, partial, outputs, pixels, numbers, chunks, lanes):  # type: ignore[no-untyped-def]
    """One group of lanes for each output channel and chunk of the pixels, of which lanes and chunks take turns."""
    shared = cuda.shared.array(THREADS, grad_out.dtype)
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    chunk = unit // outputs
    o = unit - chunk * outputs
    total = part = grad_out.dtype.type(0)
    if chunk < chunks:
        count = 0
        for number in range(chunk * lanes + lane, numbers, chunks * lanes):
            n = number // pixels
            part += load(grad_out, (n * outputs + o) * pixels + number - n * pixels)
            count += 1
            if count == CHAIN:
                total += part
                part = grad_out.dtype.type(0)
                count = 0
        total += part
    total = sum_lanes(shared, total, lanes)
    if chunk < chunks and lane == 0:
        partial[unit] = total


@cuda.jit
def copy_kernel(source, out, start, first, count, extents, strides):  # type: ignore[no-untyped-def]
    """out[first + index] = source[start + sum(coordinate * stride)], the coordinates row-major in COPY_DIMS extents."""
    index = cuda.grid(1)
    if index >= count:
        return
    at = start + index % extents[7] * strides[7]
    rest = index // extents[7]
    at += rest % extents[6] * strides[6]
    rest = rest // extents[6]
    at += rest % extents[5] * strides[5]
    rest = rest // extents[5]
    at += rest % extents[4] * strides[4]
    rest = rest // extents[4]
    at += rest % extents[3] * strides[3]
    rest = rest // extents[3]
    at += rest % extents[2] * strides[2]
    rest = rest // extents[2]
    at += rest % extents[1] * strides[1]
    at += rest // extents[1] * strides[0]
    out[first + index] = load(source, at)
