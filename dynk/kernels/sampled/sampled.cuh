// What all kernels of dynamic_filter and ls_dfn share: where samples and taps lie, and what they weigh.
#pragma once

#include "cuda_common.cuh"

// How much a thread holds, which the launch functions know too: of what is summed in 8 bytes, half.
template <typename Acc>
struct Held {
    static constexpr int SAMPLES = 8, TAPS = 9;
    static constexpr int OUTPUTS = sizeof(Acc) == 8 ? 2 : 4;
    static constexpr int CHANNELS = sizeof(Acc) == 8 ? 4 : 8;
    static constexpr int ROWS = CHANNELS;  // of the big tensor
};

// Threads of the largest blocks, for 128 registers each, or the 168 that numbers of 8 bytes take.
template <typename Index>
constexpr int MANY_THREADS = sizeof(Index) == 8 ? 384 : 512;

// The numbers of geometry.REDUCTIONS.
enum Reduction { SUM, MEAN, MAX, NONE };

// The fields of geometry.SampleGeometry, in its order.
template <typename Index>
struct SampleGeometry {
    Index N, C, O, H, W, kh, kw, samples, sample_stride, dilation_h, dilation_w, reduce, has_across, has_within,
        has_sample_attention, has_position_attention, kernel_residual, sample_residual, position_residual;
};

// Where things lie. Pixels and positions number a plane row by row; a position is -1 outside the image. Samples are
// numbered row by row, and so are taps.
template <typename Index>
struct Sampling : SampleGeometry<Index> {
    Index plane, grid, taps, centre;

    __device__ __forceinline__ explicit Sampling(const SampleGeometry<Index>& g) : SampleGeometry<Index>(g) {
        plane = g.H * g.W;
        grid = g.samples * g.samples;
        taps = g.kh * g.kw;
        centre = (g.kh - 1) / 2 * g.kw + (g.kw - 1) / 2;
    }

    __device__ __forceinline__ Index row_of(Index pixel) const { return pixel / this->W; }
    __device__ __forceinline__ Index column_of(Index pixel) const { return pixel % this->W; }

    // Distance of a sample's centre from its pixel.
    __device__ __forceinline__ Index down(Index sample) const { return step(sample / this->samples); }
    __device__ __forceinline__ Index right(Index sample) const { return step(sample % this->samples); }

    // Distance of a tap from its sample's centre.
    __device__ __forceinline__ Index tap_down(Index tap) const {
        return dynk::tap_offset(tap / this->kw, this->kh, this->dilation_h);
    }
    __device__ __forceinline__ Index tap_right(Index tap) const {
        return dynk::tap_offset(tap % this->kw, this->kw, this->dilation_w);
    }

    __device__ __forceinline__ Index position(Index y, Index x) const {
        return dynk::inside(y, this->H) && dynk::inside(x, this->W) ? y * this->W + x : Index(-1);
    }

    // Whether a tap sees the channel sum.
    __device__ __forceinline__ bool is_shared(Index tap) const {
        return this->has_within || (this->kernel_residual && tap == centre);
    }

    // Whether the taps of a sample with this centre are read: not if their attention is the 0 outside the image.
    __device__ __forceinline__ bool is_attended(Index at) const {
        return at >= 0 || !this->has_position_attention || this->position_residual;
    }

  private:
    __device__ __forceinline__ Index step(Index k) const { return (k - (this->samples - 1) / 2) * this->sample_stride; }
};

// Steps through the samples from `first` on: their centres as seen from a pixel or, BACK, the pixels whose samples are
// centred there.
template <typename Index, bool BACK = false>
struct Walk {
    Index row, column, b;

    __device__ __forceinline__ Walk(const Sampling<Index>& g, Index first, Index y, Index x)
        : row(BACK ? y - g.down(first) : y + g.down(first)),
          column(BACK ? x - g.right(first) : x + g.right(first)),
          b(first % g.samples) {}

    __device__ __forceinline__ Index position(const Sampling<Index>& g) const { return g.position(row, column); }

    __device__ __forceinline__ void step(const Sampling<Index>& g) {
        column += BACK ? -g.sample_stride : g.sample_stride;
        if (++b < g.samples) return;
        b = 0;
        column += BACK ? g.samples * g.sample_stride : -g.samples * g.sample_stride;
        row += BACK ? -g.sample_stride : g.sample_stride;
    }

    __device__ __forceinline__ Index next(const Sampling<Index>& g) {
        const Index here = position(g);
        step(g);
        return here;
    }
};

// Splits the tap off a number c * taps + tap.
template <typename Index>
__device__ __forceinline__ Index take_tap(const Sampling<Index>& g, Index& row) {
    return dynk::take(row, g.taps);
}

// Steps through the rows of the big tensor from `first` on: its channel, and DENSE, how far its tap lies from the centre.
template <typename Index, bool DENSE>
struct Rows {
    Index channel, i, j;

    __device__ __forceinline__ Rows(const Sampling<Index>& g, Index first) : channel(first), i(0), j(0) {
        if constexpr (DENSE) {
            j = dynk::take(channel, g.kw);
            i = dynk::take(channel, g.kh);
        }
    }

    __device__ __forceinline__ void step(const Sampling<Index>& g) {
        if constexpr (DENSE) {
            if (++j < g.kw) return;
            j = 0;
            if (++i < g.kh) return;
            i = 0;
        }
        ++channel;
    }

    __device__ __forceinline__ Index down(const Sampling<Index>& g) const {
        return DENSE ? dynk::tap_offset(i, g.kh, g.dilation_h) : Index(0);
    }
    __device__ __forceinline__ Index right(const Sampling<Index>& g) const {
        return DENSE ? dynk::tap_offset(j, g.kw, g.dilation_w) : Index(0);
    }
};

// The filters and attentions of one output channel, of which none need be there; `plane_of` is n * O + o.
template <typename T, typename Index>
struct Filters {
    const T* within;
    const T* sample_attention;
    const T* position_attention;
    using Acc = dynk::accumulator<T>;

    // What a tap of the kernel holds for all input channels alike.
    __device__ __forceinline__ Acc shared(const Sampling<Index>& g, Index plane_of, Index tap, Index pixel) const {
        const Acc residual = g.kernel_residual && tap == g.centre ? Acc(1) / Acc(g.C) : Acc(0);
        if (!g.has_within) return residual;
        return dynk::load(within + (plane_of * g.taps + tap) * g.plane + pixel) + residual;
    }

    __device__ __forceinline__ Acc of_sample(const Sampling<Index>& g, Index plane_of, Index sample, Index pixel) const {
        if (!g.has_sample_attention) return 1;
        return dynk::load(sample_attention + (plane_of * g.grid + sample) * g.plane + pixel) + Acc(g.sample_residual);
    }

    // The attention of a tap of a sample that is centred `at` a position.
    __device__ __forceinline__ Acc of_position(const Sampling<Index>& g, Index plane_of, Index tap, Index at) const {
        if (!g.has_position_attention) return 1;
        const Acc residual = Acc(g.position_residual);
        if (at < 0) return residual;
        return dynk::load(position_attention + (plane_of * g.taps + tap) * g.plane + at) + residual;
    }
};

// The gradients of the samples. For "max", `choice` says which sample was chosen: others take no part.
template <typename T, typename Index>
struct Gradients {
    const T* grad_out;
    const int* choice;
    using Acc = dynk::accumulator<T>;

    __device__ __forceinline__ bool takes_part(const Sampling<Index>& g, Index plane_of, Index sample, Index pixel) const {
        return g.reduce != MAX || choice[plane_of * g.plane + pixel] == sample;
    }

    // With respect to a sample and its attention.
    __device__ __forceinline__ Acc of_sample(const Sampling<Index>& g, Index plane_of, Index sample, Index pixel) const {
        Index from = plane_of;
        if (g.reduce == NONE) from = (plane_of / g.O * g.grid + sample) * g.O + plane_of % g.O;
        const Acc grad = dynk::load(grad_out + from * g.plane + pixel);
        return g.reduce == MEAN ? grad / Acc(g.grid) : grad;
    }

    // With respect to a sample before its attention.
    __device__ __forceinline__ Acc weighted(const Sampling<Index>& g, const Filters<T, Index>& filters, Index plane_of,
                                            Index sample, Index pixel) const {
        return of_sample(g, plane_of, sample, pixel) * filters.of_sample(g, plane_of, sample, pixel);
    }
};

// The part of a sample that its channels share: the taps of the channel sum.
template <typename T, typename Index>
__device__ __forceinline__ dynk::accumulator<T> shared_taps(const Sampling<Index>& g, const Filters<T, Index>& filters,
                                                            const dynk::accumulator<T>* channel_sum, Index plane_of,
                                                            Index sample, Index pixel) {
    using Acc = dynk::accumulator<T>;
    const Index y = g.row_of(pixel) + g.down(sample), x = g.column_of(pixel) + g.right(sample), at = g.position(y, x);
    dynk::Chains<Acc, 1, 2> sums;
    if (!g.is_attended(at)) return 0;
    for (Index tap = 0; tap < g.taps; ++tap) {
        if (!g.is_shared(tap)) continue;
        const Index from = g.position(y + g.tap_down(tap), x + g.tap_right(tap));
        if (from < 0) continue;
        const Acc weight = filters.shared(g, plane_of, tap, pixel) * filters.of_position(g, plane_of, tap, at);
        sums.chain[0] += weight * channel_sum[plane_of / g.O * g.plane + from];
        sums.step();
    }
    return sums.sum(0);
}
