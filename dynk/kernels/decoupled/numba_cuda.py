"""Numba CUDA kernels of `ddf` and `ddf_upsample`, and the launch functions of the whole family.

A thread owns one pixel and CHANNELS channels of one group, so that a pixel's spatial filter is read once for all of
them; neighbouring threads own neighbouring pixels. Gradients gather: each is written by the one thread, or the one
group of lanes, that owns it. All arrays are flat; the integers after them are those of `FilterGeometry`, with `add`
only where both filters are there.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from dynk._operator import Plan
from dynk.kernels.common.numba_cuda_kernels import CHAIN, THREADS, chunks_for, lanes_for, launch, load, merge, sum_lanes
from dynk.kernels.decoupled.geometry import FilterGeometry
from dynk.kernels.decoupled.numba_cuda_norm import filter_norm_backward, filter_norm_forward

__all__ = ["ddf_backward", "ddf_forward", "filter_norm_backward", "filter_norm_forward"]

CHANNELS = 4
TAPS = 4  # taps of the spatial filter whose gradients one thread forms


def ddf_forward(cuda: Any, plan: Plan, x: Any, spatial: Any, channel: Any, out: Any) -> None:
    """Run DDF Eq. 2 on flat arrays; None where a filter is absent. No workspace."""
    g = _geometry(plan)
    x, spatial, channel = _present(cuda, plan, x, spatial, channel)
    pixels = g.scale * g.Ho * g.scale * g.Wo
    launch(cuda, ddf_forward_kernel, g.N * _channel_blocks(g) * pixels, x, spatial, channel, out, *g)


def ddf_backward(
    cuda: Any,
    plan: Plan,
    grad_out: Any,
    x: Any,
    spatial: Any,
    channel: Any,
    grad_x: Any,
    grad_spatial: Any,
    grad_channel: Any,
) -> None:
    """Write the gradients that are not None.

    The workspace is at most 1/64 of the size of `x`, and none for images of fewer than THREADS * CHAIN pixels.
    """
    g = _geometry(plan)
    x, spatial, channel = _present(cuda, plan, x, spatial, channel)
    taps, pixels, subpixels = g.kh * g.kw, g.Ho * g.Wo, g.scale * g.scale
    if grad_x is not None:
        threads = g.N * _channel_blocks(g) * g.H * g.W
        launch(cuda, ddf_backward_x_kernel, threads, grad_out, spatial, channel, grad_x, *g)
    if grad_spatial is not None:
        threads = g.N * g.G * subpixels * -(-taps // TAPS) * pixels
        launch(cuda, ddf_backward_spatial_kernel, threads, grad_out, x, channel, grad_spatial, *g)
    if grad_channel is not None:
        size = g.N * g.C * subpixels * taps
        lanes = lanes_for(pixels)
        chunks = chunks_for(pixels, lanes, most=g.H * g.W // (64 * subpixels * taps))
        partial = grad_channel if chunks == 1 else cuda.workspace(chunks * size, plan.dtype)
        threads = g.N * _channel_blocks(g) * subpixels * taps * chunks * lanes
        launch(cuda, ddf_backward_channel_kernel, threads, grad_out, x, spatial, partial, chunks, lanes, *g)
        if chunks > 1:
            merge(cuda, partial, grad_channel, size, chunks)


def _geometry(plan: Plan) -> FilterGeometry:
    g = FilterGeometry(*plan.geometry)
    return g._replace(add=g.add * g.has_spatial * g.has_channel)


def _channel_blocks(g: FilterGeometry) -> int:
    return g.G * -(-(g.C // g.G) // CHANNELS)


def _present(cuda: Any, plan: Plan, *arrays: Any) -> list[Any]:
    return [cuda.absent(plan.dtype) if array is None else array for array in arrays]


# ---- kernels -------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _channels(block, C, G):  # type: ignore[no-untyped-def]
    """Return the group n * G + g of a block of channels, and its channels n * C + c.

    The last block of a group repeats its last channel where it has fewer than CHANNELS.
    """
    group_channels = C // G
    blocks = (group_channels + CHANNELS - 1) // CHANNELS
    group = block // blocks
    first = group * group_channels + (block - group * blocks) * CHANNELS
    last = (group + 1) * group_channels - 1
    return group, first, min(first + 1, last), min(first + 2, last), min(first + 3, last)


@cuda.jit(device=True)
def _position(h, w, H, W):  # type: ignore[no-untyped-def]
    """Return where pixel (h, w) stands in its plane, -1 outside the image."""
    return h * W + w if h >= 0 and h < H and w >= 0 and w < W else -1


@cuda.jit(device=True)
def _anchor(position, stride, anchors):  # type: ignore[no-untyped-def]
    """Return the output that is anchored at an input row or column, -1 if none is."""
    if position < 0:
        return -1
    anchor = position if stride == 1 else position // stride
    return anchor if anchor < anchors and anchor * stride == position else -1


@cuda.jit(device=True)
def _combine(spatial, channel, add):  # type: ignore[no-untyped-def]
    """Return f(spatial, channel), where a filter that is absent is 1."""
    return spatial + channel if add else spatial * channel


@cuda.jit(device=True)
def _store(out, first, step, i0, i1, i2, i3, v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    """Write values to out[first + i * step], each i once where the last are repeated."""
    out[first + i0 * step] = v0
    if i1 > i0:
        out[first + i1 * step] = v1
    if i2 > i1:
        out[first + i2 * step] = v2
    if i3 > i2:
        out[first + i3 * step] = v3


@cuda.jit
def ddf_forward_kernel(  # type: ignore[no-untyped-def]
    x, spatial, channel, out,
    N, C, G, H, W, Ho, Wo, kh, kw, scale, stride_h, stride_w, dilation_h, dilation_w, has_spatial, has_channel, add,
):  # fmt: skip
    """One thread for each output pixel and block of CHANNELS channels; pixels run fastest."""
    columns = scale * Wo
    out_pixels = scale * Ho * columns
    unit = cuda.grid(1)
    block = unit // out_pixels
    group, c0, c1, c2, c3 = _channels(block, C, G)
    if group >= N * G:
        return
    out_pixel = unit - block * out_pixels
    row = out_pixel // columns
    column = out_pixel - row * columns
    ay = row // scale  # the anchor
    ax = column // scale
    subpixel = (row - ay * scale) * scale + column - ax * scale

    pixels = H * W
    anchors = Ho * Wo
    taps = kh * kw
    all_taps = scale * scale * taps
    first_tap = subpixel * taps
    top = ay * stride_h - (kh - 1) // 2 * dilation_h
    left = ax * stride_w - (kw - 1) // 2 * dilation_w

    zero = x.dtype.type(0)
    one = x.dtype.type(1)
    total0 = total1 = total2 = total3 = zero
    part0 = part1 = part2 = part3 = zero
    s = f0 = f1 = f2 = f3 = one
    count = 0
    for i in range(kh):
        h = top + i * dilation_h
        if h < 0 or h >= H:
            continue
        w = left
        t = first_tap + i * kw
        spatial_at = (group * all_taps + t) * anchors + ay * Wo + ax
        for _ in range(kw):
            if w >= 0 and w < W:
                if has_spatial:
                    s = load(spatial, spatial_at)
                if has_channel:
                    f0 = load(channel, c0 * all_taps + t)
                    f1 = load(channel, c1 * all_taps + t)
                    f2 = load(channel, c2 * all_taps + t)
                    f3 = load(channel, c3 * all_taps + t)
                at = h * W + w
                part0 += _combine(s, f0, add) * load(x, c0 * pixels + at)
                part1 += _combine(s, f1, add) * load(x, c1 * pixels + at)
                part2 += _combine(s, f2, add) * load(x, c2 * pixels + at)
                part3 += _combine(s, f3, add) * load(x, c3 * pixels + at)
                count += 1
                if count == CHAIN:
                    total0 += part0
                    total1 += part1
                    total2 += part2
                    total3 += part3
                    part0 = part1 = part2 = part3 = zero
                    count = 0
            w += dilation_w
            t += 1
            spatial_at += anchors
    total0 += part0
    total1 += part1
    total2 += part2
    total3 += part3
    _store(out, out_pixel, out_pixels, c0, c1, c2, c3, total0, total1, total2, total3)


@cuda.jit
def ddf_backward_x_kernel(  # type: ignore[no-untyped-def]
    grad_out, spatial, channel, grad_x,
    N, C, G, H, W, Ho, Wo, kh, kw, scale, stride_h, stride_w, dilation_h, dilation_w, has_spatial, has_channel, add,
):  # fmt: skip
    """One thread for each input pixel and block of CHANNELS channels: gathers the outputs that read the pixel."""
    pixels = H * W
    unit = cuda.grid(1)
    block = unit // pixels
    group, c0, c1, c2, c3 = _channels(block, C, G)
    if group >= N * G:
        return
    pixel = unit - block * pixels
    h = pixel // W
    w = pixel - h * W

    anchors = Ho * Wo
    taps = kh * kw
    subpixels = scale * scale
    all_taps = subpixels * taps
    out_pixels = subpixels * anchors

    zero = grad_out.dtype.type(0)
    one = grad_out.dtype.type(1)
    total0 = total1 = total2 = total3 = zero
    part0 = part1 = part2 = part3 = zero
    s = f0 = f1 = f2 = f3 = one
    count = 0
    for i in range(kh):
        ay = _anchor(h - (i - (kh - 1) // 2) * dilation_h, stride_h, Ho)
        if ay < 0:
            continue
        for j in range(kw):
            ax = _anchor(w - (j - (kw - 1) // 2) * dilation_w, stride_w, Wo)
            if ax < 0:
                continue
            t = i * kw + j
            spatial_at = (group * all_taps + t) * anchors + ay * Wo + ax
            for p in range(scale):
                at = (ay * scale + p) * scale * Wo + ax * scale
                for _ in range(scale):
                    if has_spatial:
                        s = load(spatial, spatial_at)
                    if has_channel:
                        f0 = load(channel, c0 * all_taps + t)
                        f1 = load(channel, c1 * all_taps + t)
                        f2 = load(channel, c2 * all_taps + t)
                        f3 = load(channel, c3 * all_taps + t)
                    part0 += _combine(s, f0, add) * load(grad_out, c0 * out_pixels + at)
                    part1 += _combine(s, f1, add) * load(grad_out, c1 * out_pixels + at)
                    part2 += _combine(s, f2, add) * load(grad_out, c2 * out_pixels + at)
                    part3 += _combine(s, f3, add) * load(grad_out, c3 * out_pixels + at)
                    count += 1
                    if count == CHAIN:
                        total0 += part0
                        total1 += part1
                        total2 += part2
                        total3 += part3
                        part0 = part1 = part2 = part3 = zero
                        count = 0
                    at += 1
                    t += taps
                    spatial_at += taps * anchors
    total0 += part0
    total1 += part1
    total2 += part2
    total3 += part3
    _store(grad_x, pixel, pixels, c0, c1, c2, c3, total0, total1, total2, total3)


@cuda.jit
def ddf_backward_spatial_kernel(  # type: ignore[no-untyped-def]
    grad_out, x, channel, grad_spatial,
    N, C, G, H, W, Ho, Wo, kh, kw, scale, stride_h, stride_w, dilation_h, dilation_w, has_spatial, has_channel, add,
):  # fmt: skip
    """One thread for each anchor, sub-pixel and block of TAPS taps: sums over the channels of the group."""
    pixels = H * W
    anchors = Ho * Wo
    taps = kh * kw
    subpixels = scale * scale
    blocks = (taps + TAPS - 1) // TAPS
    unit = cuda.grid(1)
    block = unit // anchors
    filter = block // blocks  # (n * G + g) * s * s + p * s + q
    group = filter // subpixels
    if group >= N * G:
        return
    anchor = unit - block * anchors
    ay = anchor // Wo
    ax = anchor - ay * Wo
    subpixel = filter - group * subpixels
    p = subpixel // scale
    out_at = (ay * scale + p) * scale * Wo + ax * scale + subpixel - p * scale

    # The last block repeats the last tap where it has fewer than TAPS.
    t0 = (block - filter * blocks) * TAPS
    t1 = min(t0 + 1, taps - 1)
    t2 = min(t0 + 2, taps - 1)
    t3 = min(t0 + 3, taps - 1)
    top = ay * stride_h - (kh - 1) // 2 * dilation_h
    left = ax * stride_w - (kw - 1) // 2 * dilation_w
    at0 = _position(top + t0 // kw * dilation_h, left + t0 % kw * dilation_w, H, W)
    at1 = _position(top + t1 // kw * dilation_h, left + t1 % kw * dilation_w, H, W)
    at2 = _position(top + t2 // kw * dilation_h, left + t2 % kw * dilation_w, H, W)
    at3 = _position(top + t3 // kw * dilation_h, left + t3 % kw * dilation_w, H, W)

    weighted = has_channel and not add
    group_channels = C // G
    end = (group + 1) * group_channels
    zero = x.dtype.type(0)
    total0 = total1 = total2 = total3 = zero
    for first in range(group * group_channels, end, CHAIN):
        part0 = part1 = part2 = part3 = zero
        for c in range(first, min(first + CHAIN, end)):
            f0 = f1 = f2 = f3 = load(grad_out, c * subpixels * anchors + out_at)
            if weighted:
                tap = (c * subpixels + subpixel) * taps
                f0 *= load(channel, tap + t0)
                f1 *= load(channel, tap + t1)
                f2 *= load(channel, tap + t2)
                f3 *= load(channel, tap + t3)
            if at0 >= 0:
                part0 += f0 * load(x, c * pixels + at0)
            if at1 >= 0:
                part1 += f1 * load(x, c * pixels + at1)
            if at2 >= 0:
                part2 += f2 * load(x, c * pixels + at2)
            if at3 >= 0:
                part3 += f3 * load(x, c * pixels + at3)
        total0 += part0
        total1 += part1
        total2 += part2
        total3 += part3
    first_tap = filter * taps * anchors + anchor
    _store(grad_spatial, first_tap, anchors, t0, t1, t2, t3, total0, total1, total2, total3)


@cuda.jit
def ddf_backward_channel_kernel(  # type: ignore[no-untyped-def]
    grad_out, x, spatial, partial, chunks, lanes,
    N, C, G, H, W, Ho, Wo, kh, kw, scale, stride_h, stride_w, dilation_h, dilation_w, has_spatial, has_channel, add,
):  # fmt: skip
    """One group of lanes for each tap of CHANNELS channels and chunk of the anchors; taps run fastest, then chunks."""
    shared = cuda.shared.array(THREADS, x.dtype)
    pixels = H * W
    anchors = Ho * Wo
    taps = kh * kw
    subpixels = scale * scale
    all_taps = subpixels * taps
    out_pixels = subpixels * anchors
    index = cuda.grid(1)
    unit = index // lanes
    lane = index - unit * lanes
    rest = unit // all_taps
    tap = unit - rest * all_taps  # (p * s + q) * T + t
    block = rest // chunks
    chunk = rest - block * chunks
    group, c0, c1, c2, c3 = _channels(block, C, G)

    zero = x.dtype.type(0)
    total0 = total1 = total2 = total3 = zero
    if group < N * G:
        subpixel = tap // taps
        t = tap - subpixel * taps
        p = subpixel // scale
        q = subpixel - p * scale
        i = t // kw
        top = (i - (kh - 1) // 2) * dilation_h
        left = (t - i * kw - (kw - 1) // 2) * dilation_w
        weighted = has_spatial and not add
        part0 = part1 = part2 = part3 = zero
        s = x.dtype.type(1)
        count = 0
        # The lanes of all chunks take turns at the anchors; a step is so many rows and columns.
        begin = chunk * lanes + lane
        step = chunks * lanes
        ay = begin // Wo
        ax = begin - ay * Wo
        rows = step // Wo
        columns = step - rows * Wo
        for anchor in range(begin, anchors, step):
            at = _position(ay * stride_h + top, ax * stride_w + left, H, W)
            if at >= 0:
                if weighted:
                    s = load(spatial, (group * all_taps + tap) * anchors + anchor)
                out_at = (ay * scale + p) * scale * Wo + ax * scale + q
                part0 += load(grad_out, c0 * out_pixels + out_at) * s * load(x, c0 * pixels + at)
                part1 += load(grad_out, c1 * out_pixels + out_at) * s * load(x, c1 * pixels + at)
                part2 += load(grad_out, c2 * out_pixels + out_at) * s * load(x, c2 * pixels + at)
                part3 += load(grad_out, c3 * out_pixels + out_at) * s * load(x, c3 * pixels + at)
                count += 1
                if count == CHAIN:
                    total0 += part0
                    total1 += part1
                    total2 += part2
                    total3 += part3
                    part0 = part1 = part2 = part3 = zero
                    count = 0
            ay += rows
            ax += columns
            if ax >= Wo:
                ax -= Wo
                ay += 1
        total0 += part0
        total1 += part1
        total2 += part2
        total3 += part3

    total0 = sum_lanes(shared, total0, lanes)
    total1 = sum_lanes(shared, total1, lanes)
    total2 = sum_lanes(shared, total2, lanes)
    total3 = sum_lanes(shared, total3, lanes)
    if group < N * G and lane == 0:
        first_channel = chunk * N * C * all_taps + tap
        _store(partial, first_channel, all_taps, c0, c1, c2, c3, total0, total1, total2, total3)
