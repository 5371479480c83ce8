"""Launches the CUDA C kernels of the family.

Arrays are C-contiguous and of the storage types; None where one is absent or not wanted. `cuda` is what
`decoupled.cupy_raw` says. Kernels, grids, blocks and how a sum is split depend on shapes alone, so that the same call
gives the same bits on every device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynk._operator import Plan
from dynk.kernels.common.cuda_launch import (
    CHAIN,
    ELEMENT,
    INDEX,
    THREADS,
    WARP,
    by_value,
    divide_up,
    index_dtype,
    power_of_two,
)
from dynk.kernels.common.dtypes import ITEMSIZE, accumulator
from dynk.kernels.sampled.geometry import MAX, SampleGeometry

FORWARD, BACKWARD, TAPS = "samples.cu", "backward.cu", "shared_taps.cu"

# Threads of the largest blocks, by index type: MANY_THREADS of the sources. Forward blocks are the same for both.
MANY_THREADS = {np.dtype(np.int32): 512, np.dtype(np.int64): 384}
FORWARD_THREADS = 384
# Threads that share a pixel of the gradient of the channel sum, at most.
SUM_SLICES = 16
# What a thread of each kernel holds: the constants of the sources.
SAMPLES = 8
TAPS_OF_A_THREAD = 9
MAX_PIXELS = 128  # of a block of `sampled_forward`: its tiles then fit shared memory


def dynamic_filter_forward(cuda: Any, plan: Plan, x: Any, kernel: Any, out: Any) -> None:
    """Write out = dynamic_filter(x, kernel)."""
    _Call(cuda, plan, dense=True).forward((x, kernel, None, None, None, None), out, None)


def dynamic_filter_backward(
    cuda: Any, plan: Plan, grad_out: Any, x: Any, kernel: Any, grad_x: Any, grad_kernel: Any
) -> None:
    """Write the gradients of `dynamic_filter` that are not None.

    The workspace is a 32-bit number for each output for "max", whose choice reads `kernel` once more.
    """
    call = _Call(cuda, plan, dense=True)
    choice = call.choice((x, kernel, None, None, None, None)) if call.is_any(grad_x, grad_kernel) else None
    if grad_x is not None:
        call.backward_x_dense(grad_out, kernel, choice, grad_x)
    if grad_kernel is not None:
        call.backward_across((grad_out, x, None, None, choice, grad_kernel))


def ls_dfn_forward(
    cuda: Any,
    plan: Plan,
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any,
    position_attention: Any,
    out: Any,
) -> None:
    """Write out = ls_dfn(x, across, within, sample_attention, position_attention).

    The workspace is the channel sum (N, 1, H, W) in the accumulator type.
    """
    call = _Call(cuda, plan)
    arrays = x, across, within, sample_attention, position_attention, call.channel_sum(x)
    call.forward(arrays, out, None)


def ls_dfn_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    across: Any,
    within: Any,
    sample_attention: Any,
    position_attention: Any,
    grad_x: Any,
    grad_across: Any,
    grad_within: Any,
    grad_sample_attention: Any,
    grad_position_attention: Any,
) -> None:
    """Write the gradients of `ls_dfn` that are not None.

    `across` is read once, for all gradients that it is a factor of: twice if there are more channels than a block holds
    (128, of float64 64; with 64-bit indices 96 and 48) and both `x` and an attention have a gradient. "max" reads it
    once more, to choose again. The workspace is the channel sum and its gradient, (N, 1, H, W) each, in the accumulator
    type, and a 32-bit number for each output for "max".
    """
    call = _Call(cuda, plan)
    g = call.g
    of_filters = call.is_any(grad_within, grad_sample_attention, grad_position_attention)
    chosen = g.reduce == MAX and (of_filters or call.is_any(grad_x, grad_across))
    channel_sum = call.channel_sum(x) if of_filters or chosen else None
    choice = call.choice((x, across, within, sample_attention, position_attention, channel_sum)) if chosen else None
    attentions = sample_attention, position_attention
    if grad_within is not None:
        call.taps("sampled_backward_within", (grad_out, *attentions, channel_sum, choice, grad_within))
    if grad_sample_attention is not None and not (g.has_across and g.samples == 1):  # that is centred in the image
        call.backward_sample((grad_out, within, position_attention, channel_sum, choice, grad_sample_attention))
    if grad_position_attention is not None and not (g.has_across and g.kh * g.kw == 1):
        args = grad_out, within, sample_attention, channel_sum, choice, grad_position_attention
        call.taps("sampled_backward_position", args)
    if grad_across is not None:
        call.backward_across((grad_out, x, *attentions, choice, grad_across))
    grad_sum = None
    if grad_x is not None and (g.has_within or g.kernel_residual):
        grad_sum = call.backward_sum((grad_out, within, *attentions, choice))
    inputs = grad_out, x, across, within, *attentions, channel_sum, grad_sum, choice
    call.gather(inputs, grad_x, *((grad_sample_attention, grad_position_attention) if g.has_across else (None, None)))


class _Call:
    """One call's geometry, types and launches."""

    def __init__(self, cuda: Any, plan: Plan, *, dense: bool = False) -> None:
        self.cuda = cuda
        self.g = SampleGeometry(*plan.geometry)
        self.dtype = plan.dtype
        self.dense = dense
        self.index = _index(self.g, dense)
        self.plane = self.g.H * self.g.W
        self.columns = min(WARP, 1 << (self.plane - 1).bit_length())

    @staticmethod
    def is_any(*gradients: Any) -> bool:
        return any(gradient is not None for gradient in gradients)

    def launch(
        self,
        source: str,
        name: str,
        blocks: int,
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *more: int,
        shared: int = 0,
    ) -> None:
        """Launch a kernel, with the geometry and `more` numbers behind its arguments."""
        numbers = by_value(self.g, self.index), *map(self.index.type, more)
        self.cuda.launch(source, self._expression(name), (blocks,), block, (*args, *numbers), shared)

    def _expression(self, name: str) -> str:
        return _expression(name, self.dtype, self.index, self.dense)

    def channel_sum(self, x: Any) -> Any:
        """Return the sum of the image over its channels, None where no tap sees it."""
        g = self.g
        if not (g.has_within or g.kernel_residual):
            return None
        out = self.cuda.workspace(g.N * self.plane, accumulator(self.dtype))
        self.launch(FORWARD, "sampled_channel_sum", g.N * divide_up(self.plane, THREADS), (THREADS,), (x, out))
        return out

    def choice(self, arrays: tuple[Any, ...]) -> Any:
        """Return the sample that "max" chooses for each output, None for the other reductions."""
        g = self.g
        if g.reduce != MAX:
            return None
        out = self.cuda.workspace(g.N * g.O * self.plane, "int32")
        self.forward(arrays, None, out)
        return out

    def forward(self, arrays: tuple[Any, ...], out: Any, choice: Any) -> None:
        """Write outputs, or choices, from (x, across or kernel, filters and attentions, channel sum)."""
        g = self.g
        grid, rows = g.samples**2, g.C * (g.kh * g.kw if self.dense else g.has_across)
        held = SAMPLES if rows <= CHAIN**2 else SAMPLES // 2
        groups = min(FORWARD_THREADS // WARP, divide_up(grid, held))
        passes = divide_up(grid, groups * held)
        each = divide_up(grid, groups * passes)
        pixels = max(WARP, power_of_two(THREADS // min(groups, THREADS // WARP)))
        pixels = min(pixels, MAX_PIXELS, max(WARP, 1 << (self.plane - 1).bit_length()))
        outputs = _outputs(self.dtype)
        blocks = g.N * divide_up(self.plane, pixels) * divide_up(g.O, outputs)
        tiles = 2 * outputs * _rows(self.dtype) * pixels * ITEMSIZE[self.dtype] if rows > 0 else 0
        reduction = groups * pixels * outputs * (ITEMSIZE[accumulator(self.dtype)] + 4)
        block = (pixels, groups)
        self.launch(FORWARD, "sampled_forward", blocks, block, (*arrays, out, choice), each, shared=reduction + tiles)

    def backward_across(self, args: tuple[Any, ...]) -> None:
        """Write the gradient of the big tensor."""
        g = self.g
        turns = divide_up(g.C * (g.kh * g.kw if self.dense else 1), _rows(self.dtype))
        warps = min(THREADS // WARP, turns)
        blocks = g.N * divide_up(self.plane, WARP) * divide_up(g.O, _outputs(self.dtype)) * divide_up(turns, warps)
        self.launch(BACKWARD, "sampled_backward_across", blocks, (WARP, warps), args)

    def backward_x_dense(self, grad_out: Any, kernel: Any, choice: Any, grad_x: Any) -> None:
        """Write the gradient of the image of `dynamic_filter`."""
        turns = divide_up(self.g.C, _rows(self.dtype))
        warps = min(THREADS // WARP, turns)
        blocks = self.g.N * divide_up(self.plane, WARP) * divide_up(turns, warps)
        args = grad_out, kernel, choice, grad_x
        self.launch(BACKWARD, "sampled_backward_x_dense", blocks, (WARP, warps), args)

    def gather(self, inputs: tuple[Any, ...], grad_x: Any, grad_sample: Any, grad_position: Any) -> None:
        """Write the gradients that gather from `across`: in one launch where a block holds all channels."""
        if not self.is_any(grad_x, grad_sample, grad_position):
            return
        g = self.g
        turns = divide_up(g.C, _rows(self.dtype))
        warps = min(MANY_THREADS[self.index] // WARP, turns)
        if grad_x is not None and turns > warps and self.is_any(grad_sample, grad_position):
            self.gather(inputs, grad_x, None, None)
            grad_x = None
        blocks = g.N * divide_up(self.plane, WARP) * (1 if grad_x is None else divide_up(turns, warps))
        shared = SAMPLES * warps * WARP * ITEMSIZE[accumulator(self.dtype)]
        args = (*inputs, grad_x, grad_sample, grad_position)
        self.launch(BACKWARD, "sampled_backward_gather", blocks, (WARP, warps), args, shared=shared)

    def taps(self, name: str, args: tuple[Any, ...]) -> None:
        """Write the gradient of a filter of all taps."""
        g = self.g
        planes = divide_up(g.N * g.O, THREADS // WARP)
        blocks = planes * divide_up(self.plane, WARP) * divide_up(g.kh * g.kw, TAPS_OF_A_THREAD)
        self.launch(TAPS, name, blocks, (WARP, THREADS // WARP), args)

    def backward_sample(self, args: tuple[Any, ...]) -> None:
        """Write the gradient of the attention of samples that no tap of `across` reads."""
        g = self.g
        planes = divide_up(g.N * g.O, THREADS // WARP)
        blocks = planes * divide_up(self.plane, WARP) * g.samples**2
        self.launch(TAPS, "sampled_backward_sample", blocks, (WARP, THREADS // WARP), args)

    def backward_sum(self, args: tuple[Any, ...]) -> Any:
        """Return the gradient of the channel sum."""
        g = self.g
        out = self.cuda.workspace(g.N * self.plane, accumulator(self.dtype))
        slices = min(SUM_SLICES, g.O * g.samples**2)
        blocks = g.N * divide_up(self.plane, WARP)
        self.launch(TAPS, "sampled_backward_sum", blocks, (WARP, 1, slices), (*args, out))
        return out


def _outputs(dtype: str) -> int:
    """Return the output channels of a thread: OUTPUTS of the sources."""
    return 2 if dtype == "float64" else 4


def _rows(dtype: str) -> int:
    """Return the rows of the big tensor, and the input channels, of a thread: ROWS and CHANNELS of the sources."""
    return 4 if dtype == "float64" else 8


def _index(g: SampleGeometry, dense: bool) -> np.dtype[Any]:
    taps, grid = g.kh * g.kw, g.samples**2
    reach = g.samples * g.sample_stride
    return index_dtype(
        g.N * g.C * g.H * g.W,
        g.N * g.O * g.H * g.W * (g.C * taps if dense else max(g.C * g.has_across, taps)),
        g.N * g.O * g.H * g.W * grid,
        g.H + reach + g.kh * g.dilation_h,
        g.W + reach + g.kw * g.dilation_w,
    )


# ---- what can be asked for -------------------------------------------------------------------------------------------

_KERNELS = {
    FORWARD: ("sampled_channel_sum", "sampled_forward"),
    BACKWARD: ("sampled_backward_across", "sampled_backward_x_dense", "sampled_backward_gather"),
    TAPS: ("sampled_backward_within", "sampled_backward_position", "sampled_backward_sample", "sampled_backward_sum"),
}
_OF_BOTH = ("sampled_forward", "sampled_backward_across")


def _expression(name: str, dtype: str, index: np.dtype[Any], dense: bool) -> str:
    more = f", {str(dense).lower()}" if name in _OF_BOTH else ""
    return f"{name}<{ELEMENT[dtype]}, {INDEX[index]}{more}>"


def instantiations() -> list[tuple[str, str]]:
    """Return (source, name expression) of every kernel that the launch functions can ask for."""
    return [
        (source, _expression(name, dtype, index, dense))
        for source, names in _KERNELS.items()
        for name in names
        for dtype in ELEMENT
        for index in INDEX
        for dense in ((False, True) if name in _OF_BOTH else (False,))
    ]
