"""Numba CUDA device functions of `deformable_conv2d`: what a tap sees and what it is multiplied by.

`at` numbers the output pixels of a sample, `tap` the taps and `s` the places of the scope, all row by row. Columns, and
their gradients, are (C, Sh * Sw, count): those of `count` output pixels of the batch in a row, of which `p` is one.
"""

# Every function here is a device function, of Numba's types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from numba import cuda

from dynk.kernels.common.numba_cuda_kernels import load, split, staged
from dynk.kernels.deformable import geometry
from dynk.kernels.deformable.geometry import DeformGeometry
from dynk.kernels.deformable.numba_cuda_points import Point, image_point, scope_point, share, slopes, value


@cuda.jit(device=True)
def named(numbers):
    """Return the integers by their names."""
    return DeformGeometry(*numbers)


is_depthwise = cuda.jit(device=True)(geometry.is_depthwise)  # its filters are then sampled, no columns multiplied


# ---- the image -------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def data_point(data_offset, g, n, c, tap, at):
    """Return where tap reads channel c."""
    return image_point(data_offset, g, n, c // (g.C // g.Gd), tap, at)


@cuda.jit(device=True)
def masked(mask, g, n, c, tap, at):
    """Return what the mask holds for a tap of channel c, 1 without one."""
    if not g.has_mask:
        return mask.dtype.type(1)
    block = n * g.Gd + c // (g.C // g.Gd)
    return load(mask, (block * g.kh * g.kw + tap) * g.Ho * g.Wo + at)


@cuda.jit(device=True)
def sample(x, g, n, c, point):
    """Return the value of a channel of the image at a point that is read."""
    first = (n * g.C + c) * g.H * g.W
    if not g.has_data:
        return load(x, first + point.row * g.W + point.column)
    return value(x, first, 1, g.H, g.W, point)


@cuda.jit(device=True)
def sample_slopes(x, g, n, c, point):
    return slopes(x, (n * g.C + c) * g.H * g.W, 1, g.H, g.W, point)


# ---- the filters -----------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def filter_point(kernel_offset, g, n, c, tap, at):
    """Return where in the scope tap is sampled for channel c; without offsets at its own place."""
    if not g.has_kernel:
        zero = kernel_offset.dtype.type(0)
        return Point(tap // g.kw, tap % g.kw, zero, zero, True, False, False)
    return scope_point(kernel_offset, g, n * g.Gk + c // (g.C // g.Gk), tap, at, g.Ho * g.Wo)


@cuda.jit(device=True)
def filter_value(array, g, first, step, place):
    """Return a filter at a point of the scope that is read."""
    if not g.has_kernel:
        return load(array, first + (place.row * g.Sw + place.column) * step)
    return value(array, first, step, g.Sh, g.Sw, place)


@cuda.jit(device=True)
def filter_grad(grad_out, weight, grad_columns, g, n, c, at, p, count, place):
    """Return the gradient of what a tap of channel c sees, whose filters are read at `place`."""
    scope = g.Sh * g.Sw
    if not is_depthwise(g):
        return filter_value(grad_columns, g, c * scope * count + p, count, place)
    chain = merged = total = zero = weight.dtype.type(0)
    outputs = g.O // g.C
    for k in range(outputs):
        o = c * outputs + k
        grad = load(grad_out, (n * g.O + o) * g.Ho * g.Wo + at)
        chain += grad * filter_value(weight, g, o * scope, 1, place)
        chain, merged, total = staged(k + 1, chain, merged, total, zero)
    return total + (merged + chain)


@cuda.jit(device=True)
def filter_slopes(grad_out, weight, grad_columns, g, n, c, at, p, count, place):
    """Return the derivatives of `filter_grad` by the row and the column of `place`."""
    scope = g.Sh * g.Sw
    if not is_depthwise(g):
        return slopes(grad_columns, c * scope * count + p, count, g.Sh, g.Sw, place)
    down_chain = down_merged = down_total = zero = weight.dtype.type(0)
    right_chain = right_merged = right_total = zero
    outputs = g.O // g.C
    for k in range(outputs):
        o = c * outputs + k
        grad = load(grad_out, (n * g.O + o) * g.Ho * g.Wo + at)
        down, right = slopes(weight, o * scope, 1, g.Sh, g.Sw, place)
        down_chain += grad * down
        right_chain += grad * right
        down_chain, down_merged, down_total = staged(k + 1, down_chain, down_merged, down_total, zero)
        right_chain, right_merged, right_total = staged(k + 1, right_chain, right_merged, right_total, zero)
    return down_total + (down_merged + down_chain), right_total + (right_merged + right_chain)


# ---- results, tap by tap: what a product of columns must be where a tap is skipped ----------------------------------


@cuda.jit(device=True)
def output(x, weight, data_offset, mask, g, n, o, at):
    """Return an element of the output of a dense convolution without kernel offsets, without its bias."""
    chain = merged = total = zero = x.dtype.type(0)
    inputs = g.C // g.groups
    taps = g.kh * g.kw
    first = o // (g.O // g.groups) * inputs
    terms = 0
    for k in range(inputs * taps):
        c = first + k // taps
        tap = k % taps
        point = data_point(data_offset, g, n, c, tap, at)
        if point.read:
            seen = masked(mask, g, n, c, tap, at) * sample(x, g, n, c, point)
            chain += load(weight, o * inputs * taps + k) * seen
            terms += 1
            chain, merged, total = staged(terms, chain, merged, total, zero)
    return total + (merged + chain)


@cuda.jit(device=True)
def grad_filter(grad_out, x, kernel_offset, data_offset, mask, g, o, c, s, numbers):
    """Return what output pixels of the batch add to the gradient of a weight; numbers are (begin, end, step)."""
    chain = merged = total = zero = x.dtype.type(0)
    one = x.dtype.type(1)
    pixels = g.Ho * g.Wo
    terms = 0
    for number in range(numbers[0], numbers[1], numbers[2]):
        n, at = split(number, pixels)
        for tap in range(g.kh * g.kw):
            place = filter_point(kernel_offset, g, n, c, tap, at)
            if not g.has_kernel and tap != s:
                continue
            point = data_point(data_offset, g, n, c, tap, at)
            if not point.read or not place.read:
                continue
            part, taken = share(place, s // g.Sw, s % g.Sw, one)
            if g.has_kernel and not taken:
                continue
            seen = masked(mask, g, n, c, tap, at) * sample(x, g, n, c, point)
            chain += load(grad_out, (n * g.O + o) * pixels + at) * seen * part
            terms += 1
            chain, merged, total = staged(terms, chain, merged, total, zero)
    return total + (merged + chain)
