// What the kernels of adaptive_dilation_conv2d (PAD Eq. 1) share: a pixel's mixture of dilations, and every result term by
// term. A term is skipped where no dilation that a pixel takes reads the image: whatever it would be multiplied by.
#pragma once

#include "cuda_common.cuh"

namespace dynk {

constexpr int MAX_DILATIONS = 8;

// The fields of geometry.DilationGeometry, in its order.
template <typename Index>
struct DilationGeometry {
    Index N, C, O, H, W, kh, kw, Ho, Wo, D, stride_h, stride_w, groups, hard, has_bias;
    Index dilation_h[MAX_DILATIONS], dilation_w[MAX_DILATIONS];

    __device__ __forceinline__ Index taps() const { return kh * kw; }
    __device__ __forceinline__ Index inputs() const { return C / groups; }   // of a group
    __device__ __forceinline__ Index outputs() const { return O / groups; }  // of a group
    __device__ __forceinline__ Index pixels() const { return Ho * Wo; }      // of an output plane
};

// The array dilation_weights: shares of each dilation, or indices of either width; the others are null.
template <typename T>
struct Choices {
    const T* shares;
    const int* narrow;
    const long long* wide;

    // The dilation that output pixel `at` of the batch takes, -1 if its index is wrong.
    template <typename Index>
    __device__ __forceinline__ int chosen(Index at, Index D) const {
        const long long index = narrow ? narrow[at] : wide[at];
        return index >= 0 && index < D ? int(index) : -1;
    }
};

// An output pixel, and what its taps see.
template <typename T, typename Index>
struct Pixel {
    using Acc = accumulator<T>;
    Index n, at;      // the image, and the pixel's number in an output plane
    Index top, left;  // its anchor
    int chosen;       // the one dilation that it takes, -1 for a wrong index
    Acc share[MAX_DILATIONS];

    // `number` counts the pixels of the batch.
    __device__ __forceinline__ Pixel(const DilationGeometry<Index>& g, const Choices<T>& choices, Index number)
        : chosen(0) {
        Index rest = number;
        left = take(rest, g.Wo) * g.stride_w;
        top = take(rest, g.Ho) * g.stride_h;
        n = rest;
        at = number - n * g.pixels();
        if (g.hard) chosen = choices.chosen(number, g.D);
#pragma unroll
        for (int d = 0; d < MAX_DILATIONS; ++d) {
            share[d] = 1;
            if (!g.hard && d < g.D) share[d] = load(choices.shares + (n * g.D + d) * g.pixels() + at);
        }
    }

    // Whether the pixel takes dilation d at all.
    __device__ __forceinline__ bool takes(const DilationGeometry<Index>& g, int d) const {
        return g.hard ? d == chosen : d < g.D;
    }

    // What tap (i, j) with dilation d reads in a plane of the image; whether there is anything.
    __device__ __forceinline__ bool read(const DilationGeometry<Index>& g, const T* plane, Index i, Index j, int d,
                                         Acc& value) const {
        const Index y = top + tap_offset(i, g.kh, g.dilation_h[d]), x = left + tap_offset(j, g.kw, g.dilation_w[d]);
        if (!inside(y, g.H) || !inside(x, g.W)) return false;
        value = load(plane + y * g.W + x);
        return true;
    }

    // The mixture that tap (i, j) sees, 0 if it sees nothing; `seen` tells whether it does.
    __device__ __forceinline__ Acc column(const DilationGeometry<Index>& g, const T* plane, Index i, Index j,
                                          bool& seen) const {
        Acc value, sum = 0;
        seen = chosen < 0;
#pragma unroll
        for (int d = 0; d < MAX_DILATIONS; ++d) {  // no index but a constant, so that all stays in registers
            if (takes(g, d) && read(g, plane, i, j, d, value)) {
                sum += share[d] * value;
                seen = true;
            }
        }
        return chosen < 0 ? Acc(nan("")) : sum;
    }
};

// A pixel of the image, and the output pixels that read it.
template <typename T, typename Index>
struct Source {
    using Acc = accumulator<T>;
    Index n, y, x;

    __device__ __forceinline__ Source(const DilationGeometry<Index>& g, Index number) {
        x = take(number, g.W);
        y = take(number, g.H);
        n = number;
    }

    // The output pixel whose tap (i, j) reads this one with dilation d, -1 if there is none that does, and its share.
    __device__ __forceinline__ Index reader(const DilationGeometry<Index>& g, const Choices<T>& choices, Index i, Index j,
                                            int d, Acc& share) const {
        const Index ay = anchor_of(y, tap_offset(i, g.kh, g.dilation_h[d]), g.stride_h, g.Ho);
        if (ay < 0) return -1;
        const Index ax = anchor_of(x, tap_offset(j, g.kw, g.dilation_w[d]), g.stride_w, g.Wo);
        if (ax < 0) return -1;
        const Index at = ay * g.Wo + ax;
        if (g.hard) {
            share = 1;
            return choices.chosen(n * g.pixels() + at, g.D) == d ? at : Index(-1);
        }
        share = load(choices.shares + (n * g.D + d) * g.pixels() + at);
        return at;
    }

    // The gradient of an output plane, mixed as tap (i, j) sends it here.
    __device__ __forceinline__ Acc column(const DilationGeometry<Index>& g, const Choices<T>& choices, const T* plane,
                                          Index i, Index j) const {
        Acc sum = 0, share;
#pragma unroll
        for (int d = 0; d < MAX_DILATIONS; ++d) {
            if (d >= g.D) continue;
            const Index at = reader(g, choices, i, j, d, share);
            if (at >= 0) sum += share * load(plane + at);
        }
        return sum;
    }
};

// ---- term by term ----------------------------------------------------------------------------------------------------

// An element of the output, without its bias.
template <typename T, typename Index>
__device__ accumulator<T> output_of(const DilationGeometry<Index>& g, const T* x, const T* weight,
                                    const Pixel<T, Index>& pixel, Index o) {
    const Index first = o / g.outputs() * g.inputs();
    const T* filter = weight + o * g.inputs() * g.taps();
    Chains<accumulator<T>, 1, 3> sums;
    for (Index c = 0; c < g.inputs(); ++c) {
        const T* plane = x + (pixel.n * g.C + first + c) * g.H * g.W;
        for (Index i = 0; i < g.kh; ++i) {
            for (Index j = 0; j < g.kw; ++j) {
                bool seen;
                const auto column = pixel.column(g, plane, i, j, seen);
                if (seen) sums.chain[0] += load(filter + (c * g.kh + i) * g.kw + j) * column;
                sums.step();
            }
        }
    }
    return sums.sum(0);
}

// The gradient of the mixture that tap t of channel c sees at output pixel `at`: sum of weight * grad_out.
template <typename T, typename Index>
__device__ accumulator<T> grad_column_of(const DilationGeometry<Index>& g, const T* grad_out, const T* weight, Index n,
                                         Index c, Index t, Index at) {
    const Index group = c / g.inputs(), in_group = c - group * g.inputs();
    Chains<accumulator<T>, 1, 3> sums;
    for (Index o = group * g.outputs(); o < (group + 1) * g.outputs(); ++o) {
        const auto filter = load(weight + (o * g.inputs() + in_group) * g.taps() + t);
        sums.chain[0] += filter * load(grad_out + (n * g.O + o) * g.pixels() + at);
        sums.step();
    }
    return sums.sum(0);
}

// An element of the gradient of the image.
template <typename T, typename Index>
__device__ accumulator<T> grad_x_of(const DilationGeometry<Index>& g, const Choices<T>& choices, const T* grad_out,
                                    const T* weight, const Source<T, Index>& source, Index c) {
    accumulator<T> share;
    Chains<accumulator<T>, 1, 3> sums;
    for (Index i = 0; i < g.kh; ++i) {
        for (Index j = 0; j < g.kw; ++j) {
#pragma unroll
            for (int d = 0; d < MAX_DILATIONS; ++d) {
                if (d >= g.D) continue;
                const Index at = source.reader(g, choices, i, j, d, share);
                if (at >= 0) {
                    sums.chain[0] += share * grad_column_of(g, grad_out, weight, source.n, c, i * g.kw + j, at);
                }
                sums.step();
            }
        }
    }
    return sums.sum(0);
}

// The share of every STEP-th output pixel in [begin, end) of the batch in an element of the gradient of the weight.
template <int STEP, typename T, typename Index>
__device__ accumulator<T> grad_weight_of(const DilationGeometry<Index>& g, const Choices<T>& choices, const T* grad_out,
                                         const T* x, Index o, Index k, Index begin, Index end) {
    const Index c = o / g.outputs() * g.inputs() + k / g.taps(), t = k % g.taps();
    Chains<accumulator<T>, 1, 3> sums;
    for (Index number = begin; number < end; number += STEP) {
        const Pixel<T, Index> pixel(g, choices, number);
        bool seen;
        const auto column = pixel.column(g, x + (pixel.n * g.C + c) * g.H * g.W, t / g.kw, t % g.kw, seen);
        if (seen) sums.chain[0] += load(grad_out + (pixel.n * g.O + o) * g.pixels() + pixel.at) * column;
        sums.step();
    }
    return sums.sum(0);
}

}  // namespace dynk
