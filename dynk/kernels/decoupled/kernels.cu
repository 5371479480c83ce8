// ddf and ddf_upsample (DDF Eq. 2), forward and backward.
//
//   out[n, c, y*s + p, x*s + q] = sum_ij f(spatial[n, g, p, q, i, j, y, x], channel[n, c, p, q, i, j]) * x[n, c, row, column]
//
// A thread owns a pixel and a block of channels of one group, so that a spatial filter is loaded once for the block; its
// warp runs along x. KH, KW are the kernel's size, 0 for one known only at run time. Blocks are numbered along x alone.
#include "ddf.cuh"

using namespace dynk;

// One thread's pixel of a (height, width) plane and its block of at most CHANNELS channels of a group.
template <typename Index, int CHANNELS>
struct Place {
    Index n, group, c, y, x;
    int channels;
    bool exists;

    // Blocks are numbered with channels fastest, so that neighbours share the spatial filters of a tile.
    __device__ __forceinline__ Place(const FilterGeometry<Index>& g, Index height, Index width) {
        const Index per_group = divide_up(g.C / g.G, Index(CHANNELS));
        const Index units = g.G * per_group;
        Index block = blockIdx.x;
        Index unit = take(block, divide_up(units, Index(blockDim.z))) * blockDim.z + threadIdx.z;
        x = take(block, divide_up(width, Index(blockDim.x))) * blockDim.x + threadIdx.x;
        y = take(block, divide_up(height, Index(blockDim.y))) * blockDim.y + threadIdx.y;
        n = block;
        exists = x < width && y < height && unit < units;
        const Index first = take(unit, per_group) * CHANNELS;
        const Index left = g.C / g.G - first;
        group = unit;
        c = group * (g.C / g.G) + first;
        channels = left < CHANNELS ? int(left) : CHANNELS;
    }
};

// ---- forward ---------------------------------------------------------------------------------------------------------

template <typename T, typename Index, int KH, int KW, int FILTER, int CHANNELS, int LEVELS>
__global__ void __launch_bounds__(256, 1)
    ddf_forward(const T* __restrict__ x, const T* __restrict__ spatial, const T* __restrict__ channel,
                T* __restrict__ out, FilterGeometry<Index> g) {
    using Acc = accumulator<T>;
    const Index kh = KH ? KH : g.kh, kw = KW ? KW : g.kw, taps = kh * kw;
    const Index height = g.scale * g.Ho, width = g.scale * g.Wo;
    const Place<Index, CHANNELS> at(g, height, width);
    if (!at.exists) return;
    Index anchor_y = at.y, anchor_x = at.x;
    const Index p = take(anchor_y, g.scale), q = take(anchor_x, g.scale);
    const Index subpixels = g.scale * g.scale, subpixel = p * g.scale + q;
    const Index pixels = g.Ho * g.Wo, plane = g.H * g.W;
    const Index n = at.n;
    const T* image = x + (n * g.C + at.c) * plane;

    Chains<Acc, CHANNELS, LEVELS> sums;
#pragma unroll 1
    for (Index i = 0; i < kh; ++i) {
        const Index row = anchor_y * g.stride_h + tap_offset(i, kh, g.dilation_h);
        if (!inside(row, g.H)) continue;
#pragma unroll
        for (Index j = 0; j < kw; ++j) {
            const Index column = anchor_x * g.stride_w + tap_offset(j, kw, g.dilation_w);
            if (!inside(column, g.W)) continue;
            const Index t = i * kw + j;
            Acc s = 0;
            if constexpr (FILTER != CHANNEL) {
                const Index tap = ((n * g.G + at.group) * subpixels + subpixel) * taps + t;
                s = load(spatial + tap * pixels + anchor_y * g.Wo + anchor_x);
            }
#pragma unroll
            for (int u = 0; u < CHANNELS; ++u) {
                if (u >= at.channels) break;
                Acc c = 0;
                if constexpr (FILTER != SPATIAL) {
                    c = load(channel + ((n * g.C + at.c + u) * subpixels + subpixel) * taps + t);
                }
                sums.chain[u] += combine<FILTER>(s, c) * load(image + u * plane + row * g.W + column);
            }
            sums.step();
        }
    }
    T* pixel = out + ((n * g.C + at.c) * height + at.y) * width + at.x;
#pragma unroll
    for (int u = 0; u < CHANNELS; ++u) {
        if (u < at.channels) store(pixel + u * height * width, sums.sum(u));
    }
}

// ---- grad_x: a thread gathers from every output that read its pixel --------------------------------------------------

template <typename T, typename Index, int KH, int KW, int FILTER, int CHANNELS, int LEVELS>
__global__ void __launch_bounds__(256, 1)
    ddf_backward_x(const T* __restrict__ grad_out, const T* __restrict__ spatial, const T* __restrict__ channel,
                   T* __restrict__ grad_x, FilterGeometry<Index> g) {
    using Acc = accumulator<T>;
    const Index kh = KH ? KH : g.kh, kw = KW ? KW : g.kw, taps = kh * kw;
    const Place<Index, CHANNELS> at(g, g.H, g.W);
    if (!at.exists) return;
    const Index subpixels = g.scale * g.scale, pixels = g.Ho * g.Wo, out_plane = subpixels * pixels;
    const T* grads = grad_out + (at.n * g.C + at.c) * out_plane;

    Chains<Acc, CHANNELS, LEVELS> sums;
#pragma unroll 1
    for (Index i = 0; i < kh; ++i) {
        const Index anchor_y = anchor_of(at.y, tap_offset(i, kh, g.dilation_h), g.stride_h, g.Ho);
        if (anchor_y < 0) continue;
#pragma unroll
        for (Index j = 0; j < kw; ++j) {
            const Index anchor_x = anchor_of(at.x, tap_offset(j, kw, g.dilation_w), g.stride_w, g.Wo);
            if (anchor_x < 0) continue;
#pragma unroll 1
            for (Index subpixel = 0; subpixel < subpixels; ++subpixel) {
                Index p = subpixel;
                const Index q = take(p, g.scale);
                const Index from = (anchor_y * g.scale + p) * g.scale * g.Wo + anchor_x * g.scale + q;
                const Index tap = subpixel * taps + i * kw + j;
                Acc s = 0;
                if constexpr (FILTER != CHANNEL) {
                    const Index first_tap = (at.n * g.G + at.group) * subpixels * taps;
                    s = load(spatial + (first_tap + tap) * pixels + anchor_y * g.Wo + anchor_x);
                }
#pragma unroll
                for (int u = 0; u < CHANNELS; ++u) {
                    if (u >= at.channels) break;
                    Acc c = 0;
                    if constexpr (FILTER != SPATIAL) {
                        c = load(channel + (at.n * g.C + at.c + u) * subpixels * taps + tap);
                    }
                    sums.chain[u] += combine<FILTER>(s, c) * load(grads + u * out_plane + from);
                }
                sums.step();
            }
        }
    }
    const Index plane = g.H * g.W;
    T* pixel = grad_x + (at.n * g.C + at.c) * plane + at.y * g.W + at.x;
#pragma unroll
    for (int u = 0; u < CHANNELS; ++u) {
        if (u < at.channels) store(pixel + u * plane, sums.sum(u));
    }
}

// ---- grad_spatial: a thread holds all taps of a pixel (one, if their number is known at run time only) and sums every
// ---- blockDim.z-th channel of its group ------------------------------------------------------------------------------

template <typename T, typename Index, int KH, int KW, int FILTER, int LEVELS>
__global__ void __launch_bounds__(256, 1)
    ddf_backward_spatial(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ channel,
                         T* __restrict__ grad_spatial, FilterGeometry<Index> g) {
    using Acc = accumulator<T>;
    constexpr int ROWS = KH ? KH : 1, COLUMNS = KH ? KW : 1, TAPS = ROWS * COLUMNS;
    __shared__ Acc shared[256];
    const Index kh = KH ? KH : g.kh, kw = KW ? KW : g.kw, taps = kh * kw;
    const Index height = g.scale * g.Ho, width = g.scale * g.Wo;
    Index block = blockIdx.x;
    const Index first = KH ? Index(0) : take(block, taps);
    const Index group = take(block, g.G);
    const Index out_x = take(block, divide_up(width, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    const Index out_y = take(block, divide_up(height, Index(blockDim.y))) * blockDim.y + threadIdx.y;
    const Index n = block;
    const bool exists = out_x < width && out_y < height;
    Index anchor_y = out_y, anchor_x = out_x;
    const Index p = take(anchor_y, g.scale), q = take(anchor_x, g.scale);
    const Index subpixels = g.scale * g.scale, subpixel = p * g.scale + q;
    const Index per_group = g.C / g.G, plane = g.H * g.W;

    Chains<Acc, TAPS, LEVELS> sums;
    if (exists) {
        for (Index k = threadIdx.z; k < per_group; k += blockDim.z) {
            const Index nc = n * g.C + group * per_group + k;
            const Acc grad = load(grad_out + (nc * height + out_y) * width + out_x);
#pragma unroll
            for (int a = 0; a < ROWS; ++a) {  // row by row: taps share what a row needs, and with it registers
                const Index i = KH ? Index(a) : first / kw;
                const Index row = anchor_y * g.stride_h + tap_offset(i, kh, g.dilation_h);
                if (!inside(row, g.H)) continue;
#pragma unroll
                for (int b = 0; b < COLUMNS; ++b) {
                    const Index j = KH ? Index(b) : first % kw;
                    const Index column = anchor_x * g.stride_w + tap_offset(j, kw, g.dilation_w);
                    if (!inside(column, g.W)) continue;
                    Acc value = load(x + nc * plane + row * g.W + column);
                    if constexpr (FILTER == MUL) value *= load(channel + (nc * subpixels + subpixel) * taps + i * kw + j);
                    sums.chain[a * COLUMNS + b] += grad * value;
                }
            }
            sums.step();
        }
    }
    const Index first_tap = ((n * g.G + group) * subpixels + subpixel) * taps + first;
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        const Acc sum = slices_sum(sums.sum(t), shared);
        if (exists && threadIdx.z == 0) {
            store(grad_spatial + ((first_tap + t) * g.Ho + anchor_y) * g.Wo + anchor_x, sum);
        }
    }
}

// ---- grad_channel: a warp holds all taps (or one) of CHANNELS channels and walks a segment of the pixels; the warps of a
// ---- block share its spatial filters. `out` is the gradient, or the workspace if there are several segments ----------

template <typename T, typename Index, int KH, int KW, int FILTER, int CHANNELS, typename Out>
__global__ void __launch_bounds__(256, 1)
    ddf_backward_channel(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ spatial,
                         Out* __restrict__ out, FilterGeometry<Index> g, Index segment) {
    using Acc = accumulator<T>;
    constexpr int TAPS = KH ? KH * KW : 1;
    constexpr int SUMS = TAPS * CHANNELS;
    const Index kh = KH ? KH : g.kh, kw = KW ? KW : g.kw, taps = kh * kw;
    const Index width = g.scale * g.Wo, out_plane = g.scale * g.Ho * width;
    const Index subpixels = g.scale * g.scale, pixels = g.Ho * g.Wo, plane = g.H * g.W;
    const Index in_group = g.C / g.G, per_group = divide_up(in_group, Index(CHANNELS)), units = g.G * per_group;
    const int lane = threadIdx.x;

    Index block = blockIdx.x;
    const Index first = KH ? Index(0) : take(block, taps);
    Index unit = take(block, divide_up(units, Index(blockDim.y))) * blockDim.y + threadIdx.y;
    const Index subpixel = take(block, subpixels);
    const Index part = take(block, divide_up(pixels, segment));
    const Index n = block;
    if (unit >= units) return;  // a whole warp
    const Index first_channel = take(unit, per_group) * CHANNELS, group = unit;
    const int channels = in_group - first_channel < CHANNELS ? int(in_group - first_channel) : CHANNELS;
    const Index nc = n * g.C + group * in_group + first_channel;
    const Index p = subpixel / g.scale, q = subpixel % g.scale;
    const Index begin = part * segment, end = pixels - begin < segment ? pixels : begin + segment;

    Chains<Acc, (SUMS + 31) / 32, 3> totals;  // lane k % 32 keeps sum k
    for (Index start = begin; start < end; start += 32 * CHAIN) {
        Chains<Acc, SUMS, 1> sums;
#pragma unroll 1
        for (int step = 0; step < CHAIN; ++step) {
            const Index pixel = start + step * 32 + lane;
            if (pixel >= end) break;
            const Index anchor_y = pixel / g.Wo, anchor_x = pixel % g.Wo;
            Acc grad[CHANNELS];
#pragma unroll
            for (int u = 0; u < CHANNELS; ++u) {
                const Index from = (nc + u) * out_plane + (anchor_y * g.scale + p) * width + anchor_x * g.scale + q;
                grad[u] = u < channels ? load(grad_out + from) : Acc(0);
            }
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                const Index i = (first + t) / kw, j = (first + t) % kw;
                const Index row = anchor_y * g.stride_h + tap_offset(i, kh, g.dilation_h);
                const Index column = anchor_x * g.stride_w + tap_offset(j, kw, g.dilation_w);
                if (!inside(row, g.H) || !inside(column, g.W)) continue;
                Acc s = 1;
                if constexpr (FILTER == MUL) {
                    const Index tap = ((n * g.G + group) * subpixels + subpixel) * taps + first + t;
                    s = load(spatial + tap * pixels + pixel);
                }
#pragma unroll
                for (int u = 0; u < CHANNELS; ++u) {
                    if (u >= channels) break;
                    sums.chain[t * CHANNELS + u] += grad[u] * (s * load(x + (nc + u) * plane + row * g.W + column));
                }
            }
        }
#pragma unroll
        for (int k = 0; k < SUMS; ++k) {
            const Acc sum = warp_sum(sums.chain[k]);
            if (lane == k % 32) totals.chain[k / 32] += sum;
        }
        totals.step();
    }
    Out* gradient = out + part * (g.N * g.C * subpixels * taps);
#pragma unroll
    for (int k = 0; k < SUMS; ++k) {
        const int t = k / CHANNELS, u = k % CHANNELS;
        if (lane == k % 32 && u < channels) {
            store(gradient + ((nc + u) * subpixels + subpixel) * taps + first + t, totals.sum(k / 32));
        }
    }
}
