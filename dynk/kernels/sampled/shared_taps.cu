// Gradients by way of the taps that all input channels of ls_dfn share: of the channel sum, `within`, and the attentions.
// Each is gathered by the thread, or the threads, that own an element.
#include "sampled.cuh"

using namespace dynk;

// Where a block's thread works: a pixel, and TAPS taps of one output channel, which share the weight of a sample.
template <typename Index>
struct TapWork {
    static constexpr int TAPS = Held<float>::TAPS;
    Index first, pixel, plane_of;
    int count;
    bool exists;

    __device__ __forceinline__ explicit TapWork(const Sampling<Index>& g) {
        Index block = blockIdx.x;
        first = take(block, divide_up(g.taps, Index(TAPS))) * TAPS;
        pixel = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
        plane_of = block * blockDim.y + threadIdx.y;
        count = g.taps - first < TAPS ? int(g.taps - first) : TAPS;
        exists = pixel < g.plane && plane_of < g.N * g.O;
    }
};

template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sampled_backward_within(const T* __restrict__ grad_out, const T* __restrict__ sample_attention,
                            const T* __restrict__ position_attention, const accumulator<T>* __restrict__ channel_sum,
                            const int* __restrict__ choice, T* __restrict__ grad_within,
                            SampleGeometry<Index> geometry) {
    using Acc = accumulator<T>;
    const Sampling<Index> g(geometry);
    constexpr int TAPS = TapWork<Index>::TAPS;
    const TapWork<Index> work(g);
    const Filters<T, Index> filters{nullptr, sample_attention, position_attention};
    const Gradients<T, Index> gradients{grad_out, choice};
    if (!work.exists) return;
    const Index y = g.row_of(work.pixel), x = g.column_of(work.pixel);
    const Acc* const plane = channel_sum + work.plane_of / g.O * g.plane;
    Chains<Acc, TAPS, 2> sums;
    Walk<Index> walk(g, 0, y, x);
    for (Index sample = 0; sample < g.grid; ++sample, walk.step(g)) {
        if (!gradients.takes_part(g, work.plane_of, sample, work.pixel)) continue;
        const Index at = walk.position(g);
        if (!g.is_attended(at)) continue;
        const Acc weight = gradients.weighted(g, filters, work.plane_of, sample, work.pixel);
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            if (t >= work.count) break;
            const Index tap = work.first + t;
            const Index from = g.position(walk.row + g.tap_down(tap), walk.column + g.tap_right(tap));
            if (from < 0) continue;
            sums.chain[t] += weight * filters.of_position(g, work.plane_of, tap, at) * plane[from];
        }
        sums.step();
    }
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        if (t >= work.count) break;
        store(grad_within + (work.plane_of * g.taps + work.first + t) * g.plane + work.pixel, sums.sum(t));
    }
}

// All taps but, where there is `across`, the centre, which `sampled_backward_gather` writes.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sampled_backward_position(const T* __restrict__ grad_out, const T* __restrict__ within,
                              const T* __restrict__ sample_attention, const accumulator<T>* __restrict__ channel_sum,
                              const int* __restrict__ choice, T* __restrict__ grad_position_attention,
                              SampleGeometry<Index> geometry) {
    using Acc = accumulator<T>;
    const Sampling<Index> g(geometry);
    constexpr int TAPS = TapWork<Index>::TAPS;
    const TapWork<Index> work(g);
    const Filters<T, Index> filters{within, sample_attention, nullptr};
    const Gradients<T, Index> gradients{grad_out, choice};
    if (!work.exists) return;
    const Index y = g.row_of(work.pixel), x = g.column_of(work.pixel);
    const Acc* const plane = channel_sum + work.plane_of / g.O * g.plane;
    Chains<Acc, TAPS, 2> sums;
    Walk<Index, true> walk(g, 0, y, x);
    for (Index sample = 0; sample < g.grid; ++sample) {
        const Index pixel = walk.next(g);
        if (pixel < 0 || !gradients.takes_part(g, work.plane_of, sample, pixel)) continue;
        const Acc weight = gradients.weighted(g, filters, work.plane_of, sample, pixel);
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            if (t >= work.count) break;
            const Index tap = work.first + t;
            const Index from = g.position(y + g.tap_down(tap), x + g.tap_right(tap));
            if (from < 0 || !g.is_shared(tap)) continue;
            sums.chain[t] += weight * filters.shared(g, work.plane_of, tap, pixel) * plane[from];
        }
        sums.step();
    }
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
        const Index tap = work.first + t;
        if (t >= work.count) break;
        if (g.has_across && tap == g.centre) continue;
        store(grad_position_attention + (work.plane_of * g.taps + tap) * g.plane + work.pixel, sums.sum(t));
    }
}

// A thread owns a sample of a pixel and an output channel. Where there is `across`, samples centred in the image are left
// to `sampled_backward_gather`.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sampled_backward_sample(const T* __restrict__ grad_out, const T* __restrict__ within,
                            const T* __restrict__ position_attention, const accumulator<T>* __restrict__ channel_sum,
                            const int* __restrict__ choice, T* __restrict__ grad_sample_attention,
                            SampleGeometry<Index> geometry) {
    const Sampling<Index> g(geometry);
    const Filters<T, Index> filters{within, nullptr, position_attention};
    const Gradients<T, Index> gradients{grad_out, choice};
    Index block = blockIdx.x;
    const Index sample = take(block, g.grid);
    const Index pixel = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    const Index plane_of = block * blockDim.y + threadIdx.y;
    if (pixel >= g.plane || plane_of >= g.N * g.O) return;
    if (g.has_across && g.position(g.row_of(pixel) + g.down(sample), g.column_of(pixel) + g.right(sample)) >= 0) return;
    accumulator<T> grad = 0;
    if (gradients.takes_part(g, plane_of, sample, pixel)) {
        grad = gradients.of_sample(g, plane_of, sample, pixel);
        grad *= shared_taps(g, filters, channel_sum, plane_of, sample, pixel);
    }
    store(grad_sample_attention + (plane_of * g.grid + sample) * g.plane + pixel, grad);
}

// The threads of a pixel take turns at its output channels and samples.
template <typename T, typename Index>
__global__ void __launch_bounds__(512, 1)
    sampled_backward_sum(const T* __restrict__ grad_out, const T* __restrict__ within,
                         const T* __restrict__ sample_attention, const T* __restrict__ position_attention,
                         const int* __restrict__ choice, accumulator<T>* __restrict__ grad_sum,
                         SampleGeometry<Index> geometry) {
    using Acc = accumulator<T>;
    __shared__ Acc shared[512];
    const Sampling<Index> g(geometry);
    const Filters<T, Index> filters{within, sample_attention, position_attention};
    const Gradients<T, Index> gradients{grad_out, choice};
    Index block = blockIdx.x;
    const Index here = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    const Index image = block;
    const bool exists = here < g.plane;
    const Index y = g.row_of(here), x = g.column_of(here);
    Chains<Acc, 1, 3> sums;
    for (Index k = threadIdx.z; k < g.O * g.grid && exists; k += blockDim.z) {
        const Index sample = k % g.grid, plane_of = image * g.O + k / g.grid;
        for (Index tap = 0; tap < g.taps; ++tap) {
            if (!g.is_shared(tap)) continue;
            const Index row = y - g.tap_down(tap), column = x - g.tap_right(tap);  // of the sample's centre
            const Index pixel = g.position(row - g.down(sample), column - g.right(sample)), at = g.position(row, column);
            if (pixel < 0 || !g.is_attended(at) || !gradients.takes_part(g, plane_of, sample, pixel)) continue;
            const Acc weight = filters.shared(g, plane_of, tap, pixel) * filters.of_position(g, plane_of, tap, at);
            sums.chain[0] += gradients.weighted(g, filters, plane_of, sample, pixel) * weight;
            sums.step();
        }
    }
    const Acc sum = slices_sum(sums.sum(0), shared);
    if (exists && threadIdx.z == 0) grad_sum[image * g.plane + here] = sum;
}
