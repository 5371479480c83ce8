"""What the Numba CUDA kernels of this family are made of: where samples and taps lie, and what they weigh.

Arrays are flat. Kernels take the integers of `SampleGeometry` as one tuple behind their arrays. `plane_of` is
n * O + o; pixels and positions number a plane row by row, and a position outside the image is -1. Samples and taps are
numbered row by row too.
"""

from __future__ import annotations

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import load, staged
from dynk.kernels.sampled.geometry import MAX, MEAN, NONE, SampleGeometry


@cuda.jit(device=True)
def named(numbers):  # type: ignore[no-untyped-def]
    """Return the integers by their names."""
    return SampleGeometry(*numbers)


@cuda.jit(device=True)
def position(y, x, g):  # type: ignore[no-untyped-def]
    return y * g.W + x if y >= 0 and y < g.H and x >= 0 and x < g.W else -1


@cuda.jit(device=True)
def down(sample, g):  # type: ignore[no-untyped-def]
    """Return how far the centre of a sample lies below its pixel."""
    return (sample // g.samples - (g.samples - 1) // 2) * g.sample_stride


@cuda.jit(device=True)
def right(sample, g):  # type: ignore[no-untyped-def]
    return (sample % g.samples - (g.samples - 1) // 2) * g.sample_stride


@cuda.jit(device=True)
def tap_down(tap, g):  # type: ignore[no-untyped-def]
    """Return how far a tap lies below the centre of its sample."""
    return (tap // g.kw - (g.kh - 1) // 2) * g.dilation_h


@cuda.jit(device=True)
def tap_right(tap, g):  # type: ignore[no-untyped-def]
    return (tap % g.kw - (g.kw - 1) // 2) * g.dilation_w


@cuda.jit(device=True)
def centre(g):  # type: ignore[no-untyped-def]
    """Return the number of the centre tap."""
    return (g.kh - 1) // 2 * g.kw + (g.kw - 1) // 2


@cuda.jit(device=True)
def is_shared(tap, g):  # type: ignore[no-untyped-def]
    """Return whether a tap sees the channel sum."""
    return g.has_within != 0 or (g.kernel_residual != 0 and tap == centre(g))


@cuda.jit(device=True)
def is_attended(at, g):  # type: ignore[no-untyped-def]
    """Return whether the taps of a sample centred there are read: not if their attention is the 0 outside."""
    return at >= 0 or g.has_position_attention == 0 or g.position_residual != 0


@cuda.jit(device=True)
def shared_filter(within, plane_of, tap, pixel, g):  # type: ignore[no-untyped-def]
    """Return what a tap of the kernel holds for all input channels alike."""
    value = within.dtype.type(0)
    if g.kernel_residual != 0 and tap == centre(g):
        value = within.dtype.type(1) / within.dtype.type(g.C)
    if g.has_within != 0:
        value += load(within, (plane_of * g.kh * g.kw + tap) * g.H * g.W + pixel)
    return value


@cuda.jit(device=True)
def sample_weight(sample_attention, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    if g.has_sample_attention == 0:
        return sample_attention.dtype.type(1)
    value = load(sample_attention, (plane_of * g.samples * g.samples + sample) * g.H * g.W + pixel)
    return value + sample_attention.dtype.type(g.sample_residual)


@cuda.jit(device=True)
def position_weight(position_attention, plane_of, tap, at, g):  # type: ignore[no-untyped-def]
    """Return the attention of a tap of a sample that is centred `at` a position."""
    if g.has_position_attention == 0:
        return position_attention.dtype.type(1)
    value = position_attention.dtype.type(g.position_residual)
    if at >= 0:
        value += load(position_attention, (plane_of * g.kh * g.kw + tap) * g.H * g.W + at)
    return value


@cuda.jit(device=True)
def takes_part(choice, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    """Return whether an output depends on a sample: with "max", if it is the chosen one."""
    return g.reduce != MAX or load(choice, plane_of * g.H * g.W + pixel) == sample


@cuda.jit(device=True)
def grad_of_sample(grad_out, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    """Return the gradient with respect to a sample, its attention included."""
    start = plane_of
    if g.reduce == NONE:
        start = (plane_of // g.O * g.samples * g.samples + sample) * g.O + plane_of % g.O
    grad = load(grad_out, start * g.H * g.W + pixel)
    return grad / grad_out.dtype.type(g.samples * g.samples) if g.reduce == MEAN else grad


@cuda.jit(device=True)
def weighted_grad(grad_out, sample_attention, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    """Return the gradient with respect to a sample before its attention."""
    grad = grad_of_sample(grad_out, plane_of, sample, pixel, g)
    return grad * sample_weight(sample_attention, plane_of, sample, pixel, g)


# ---- samples ---------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def is_dense(g):  # type: ignore[no-untyped-def]
    """Return whether this is `dynamic_filter`, whose kernel is passed as `across`."""
    return g.has_across == 0 and g.has_within == 0


@cuda.jit(device=True)
def dense_taps(x, kernel, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    """Return a sample of `dynamic_filter`."""
    chain = merged = total = zero = x.dtype.type(0)
    pixels = g.H * g.W
    taps = g.kh * g.kw
    image = plane_of // g.O * g.C * pixels
    filters = plane_of * g.C * taps * pixels + pixel
    terms = 0
    for tap in range(taps):
        row = pixel // g.W + down(sample, g) + tap_down(tap, g)
        at = position(row, pixel % g.W + right(sample, g) + tap_right(tap, g), g)
        if at < 0:
            continue
        for c in range(g.C):
            chain += load(kernel, filters + (c * taps + tap) * pixels) * load(x, image + c * pixels + at)
            terms += 1
            chain, merged, total = staged(terms, chain, merged, total, zero)
    return total + (merged + chain)


@cuda.jit(device=True)
def shared_taps(within, position_attention, channel_sum, plane_of, sample, pixel, g):  # type: ignore[no-untyped-def]
    """Return the part of a sample that its channels share: the taps of the channel sum."""
    chain = merged = total = zero = channel_sum.dtype.type(0)
    y = pixel // g.W + down(sample, g)
    x = pixel % g.W + right(sample, g)
    at = position(y, x, g)
    plane = plane_of // g.O * g.H * g.W
    terms = 0
    if is_attended(at, g):
        for tap in range(g.kh * g.kw):
            if not is_shared(tap, g):
                continue
            seen = position(y + tap_down(tap, g), x + tap_right(tap, g), g)
            if seen < 0:
                continue
            weight = shared_filter(within, plane_of, tap, pixel, g)
            weight *= position_weight(position_attention, plane_of, tap, at, g)
            chain += weight * load(channel_sum, plane + seen)
            terms += 1
            chain, merged, total = staged(terms, chain, merged, total, zero)
    return total + (merged + chain)


@cuda.jit(device=True)
def mixed_channels(x, across, plane_of, pixel, at, g):  # type: ignore[no-untyped-def]
    """Return the sum over the channels of `across` at a pixel times the image at a position."""
    chain = merged = total = zero = x.dtype.type(0)
    pixels = g.H * g.W
    image = plane_of // g.O * g.C * pixels + at
    filters = plane_of * g.C * pixels + pixel
    for c in range(g.C):
        chain += load(across, filters + c * pixels) * load(x, image + c * pixels)
        chain, merged, total = staged(c + 1, chain, merged, total, zero)
    return total + (merged + chain)


@cuda.jit(device=True)
def unattended(  # type: ignore[no-untyped-def]
    x, across, within, position_attention, channel_sum, plane_of, sample, pixel, g
):
    """Return a sample of `ls_dfn` before its attention."""
    value = shared_taps(within, position_attention, channel_sum, plane_of, sample, pixel, g)
    at = position(pixel // g.W + down(sample, g), pixel % g.W + right(sample, g), g)
    if g.has_across != 0 and at >= 0:
        mixed = mixed_channels(x, across, plane_of, pixel, at, g)
        value += mixed * position_weight(position_attention, plane_of, centre(g), at, g)
    return value


@cuda.jit(device=True)
def is_larger(value, best):  # type: ignore[no-untyped-def]
    """Return whether a later sample replaces the best so far: NaN wins, and the first of equals."""
    return value > best or (value != value and best == best)
