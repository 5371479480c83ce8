// The gradients of the big tensor of dynamic_filter and ls_dfn, and what gathers from it: grad_x, and with `across` the
// gradients of the attentions. A row of the big tensor is `across` of one input channel, or a tap of it of the DENSE
// kernel of dynamic_filter.
//
// A product of `across` and the image is needed at the pixel of `across` for the one gradient and at that of the image
// for the others. Gathered at the image, everything but grad_across, which does not depend on `across`, comes of one pass
// over it without a float atomic: s*s loads and 2*s*s multiplications for each element, in rows that neighbouring blocks
// have in the L2 cache. So `across` is read from memory once and its gradient written once.
#include "sampled.cuh"

using namespace dynk;

// ---- the big tensor: each element is written once, the sum over the samples of its pixel --------------------------

// A thread owns a pixel, ROWS rows and OUTPUTS output channels: it weighs each sample for all of its rows at once.
template <typename T, typename Index, bool DENSE>
__global__ void __launch_bounds__(256, sizeof(Index) == 8 ? 1 : 2)
    sampled_backward_across(const T* __restrict__ grad_out, const T* __restrict__ x,
                            const T* __restrict__ sample_attention, const T* __restrict__ position_attention,
                            const int* __restrict__ choice, T* __restrict__ grad_across,
                            SampleGeometry<Index> geometry) {
    using Acc = accumulator<T>;
    constexpr int OUTPUTS = Held<Acc>::OUTPUTS, ROWS = Held<Acc>::ROWS;
    const Sampling<Index> g(geometry);
    const Filters<T, Index> filters{nullptr, sample_attention, position_attention};
    const Gradients<T, Index> gradients{grad_out, choice};
    const Index rows = DENSE ? g.C * g.taps : g.C;
    Index block = blockIdx.x;
    const Index first_row = (take(block, divide_up(rows, Index(ROWS * blockDim.y))) * blockDim.y + threadIdx.y) * ROWS;
    const Index first_output = take(block, divide_up(g.O, Index(OUTPUTS))) * OUTPUTS;
    const Index pixel = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    const Index image = block, plane_of = image * g.O + first_output;
    if (pixel >= g.plane || first_row >= rows) return;
    const int outputs = g.O - first_output < OUTPUTS ? int(g.O - first_output) : OUTPUTS;
    const int count = rows - first_row < ROWS ? int(rows - first_row) : ROWS;
    const Index y = g.row_of(pixel), x0 = g.column_of(pixel);

    Chains<Acc, ROWS * OUTPUTS, 2> sums;
    Walk<Index> walk(g, 0, y, x0);
    for (Index sample = 0; sample < g.grid; ++sample, walk.step(g)) {
        const Index at = walk.position(g);
        if (!DENSE && at < 0) continue;
        Acc weight[OUTPUTS] = {};
        bool taken[OUTPUTS], any = false;
#pragma unroll
        for (int u = 0; u < OUTPUTS; ++u) {
            taken[u] = u < outputs && gradients.takes_part(g, plane_of + u, sample, pixel);
            if (!taken[u]) continue;
            any = true;
            weight[u] = gradients.weighted(g, filters, plane_of + u, sample, pixel);
            if constexpr (!DENSE) weight[u] *= filters.of_position(g, plane_of + u, g.centre, at);
        }
        if (!any) continue;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (r >= count) break;
            Index from = at, channel = first_row + r;
            if constexpr (DENSE) {
                const Index tap = take_tap(g, channel);
                from = g.position(walk.row + g.tap_down(tap), walk.column + g.tap_right(tap));
            }
            if (from < 0) continue;
            const Acc value = load(x + (image * g.C + channel) * g.plane + from);
#pragma unroll
            for (int u = 0; u < OUTPUTS; ++u) {
                if (taken[u]) sums.chain[r * OUTPUTS + u] += weight[u] * value;
            }
        }
        sums.step();
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int u = 0; u < OUTPUTS; ++u) {
            if (r >= count || u >= outputs) break;
            store(grad_across + ((plane_of + u) * rows + first_row + r) * g.plane + pixel, sums.sum(r * OUTPUTS + u));
        }
    }
}

// ---- what gathers from the big tensor ----------------------------------------------------------------------------------

// A thread owns a pixel and CHANNELS input channels, those of a block the same pixels: grad_x is summed over the output
// channels and samples of which the pixel is a tap.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sampled_backward_x_dense(const T* __restrict__ grad_out, const T* __restrict__ kernel,
                             const int* __restrict__ choice, T* __restrict__ grad_x, SampleGeometry<Index> geometry) {
    using Acc = accumulator<T>;
    constexpr int CHANNELS = Held<Acc>::CHANNELS;
    const Sampling<Index> g(geometry);
    const Gradients<T, Index> gradients{grad_out, choice};
    Index block = blockIdx.x;
    const Index first = (take(block, divide_up(g.C, Index(CHANNELS * blockDim.y))) * blockDim.y + threadIdx.y) * CHANNELS;
    const Index here = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    const Index image = block;
    if (here >= g.plane || first >= g.C) return;
    const int channels = g.C - first < CHANNELS ? int(g.C - first) : CHANNELS;
    const Index y = g.row_of(here), x = g.column_of(here);

    Chains<Acc, CHANNELS, 3> sums;
    for (Index sample = 0; sample < g.grid; ++sample) {
        for (Index tap = 0; tap < g.taps; ++tap) {
            const Index pixel = g.position(y - g.down(sample) - g.tap_down(tap), x - g.right(sample) - g.tap_right(tap));
            if (pixel < 0) continue;
            for (Index o = 0; o < g.O; ++o) {
                const Index plane_of = image * g.O + o;
                if (!gradients.takes_part(g, plane_of, sample, pixel)) continue;
                const Acc grad = gradients.of_sample(g, plane_of, sample, pixel);
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    if (c >= channels) break;
                    sums.chain[c] += grad * load(kernel + ((plane_of * g.C + first + c) * g.taps + tap) * g.plane + pixel);
                }
                sums.step();
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        if (c >= channels) break;
        store(grad_x + (image * g.C + first + c) * g.plane + here, sums.sum(c));
    }
}

// A thread owns a pixel, at which samples of others are centred, and CHANNELS input channels, which each element of
// `across` that reads them meets twice: times its gradient, summed over output channels and samples, for grad_x; times
// the image, summed over the channels, by all threads of the pixel, for the attentions: of those samples, and of the
// centre tap of their position. What is null is not wanted. With grad_x a block has its channels at once, all of them if
// attentions are wanted too; without, it takes turns.
template <typename T, typename Index>
__global__ void __launch_bounds__(MANY_THREADS<Index>, 1)
    sampled_backward_gather(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ across,
                            const T* __restrict__ within, const T* __restrict__ sample_attention,
                            const T* __restrict__ position_attention, const accumulator<T>* __restrict__ channel_sum,
                            const accumulator<T>* __restrict__ grad_sum, const int* __restrict__ choice,
                            T* __restrict__ grad_x, T* __restrict__ grad_sample_attention,
                            T* __restrict__ grad_position_attention, SampleGeometry<Index> geometry) {
    using Acc = accumulator<T>;
    constexpr int CHANNELS = Held<Acc>::CHANNELS, SAMPLES = Held<Acc>::SAMPLES;
    extern __shared__ __align__(16) unsigned char memory[];
    Acc* const shared = reinterpret_cast<Acc*>(memory);
    const Sampling<Index> g(geometry);
    const Filters<T, Index> filters{within, sample_attention, position_attention};
    const Gradients<T, Index> gradients{grad_out, choice};
    const bool of_attention = grad_sample_attention != nullptr || grad_position_attention != nullptr;
    const Index turn = CHANNELS * blockDim.y, turns = divide_up(g.C, turn);
    Index block = blockIdx.x;
    const Index own_turn = grad_x != nullptr ? take(block, turns) : Index(0);
    const Index here = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    const Index image = block;
    const bool exists = here < g.plane;
    const Index y = g.row_of(here), x0 = g.column_of(here);

    Chains<Acc, CHANNELS, 3> sums;
    for (Index o = 0; o < (g.has_across ? g.O : Index(0)); ++o) {
        const Index plane_of = image * g.O + o;
        const Acc attention = exists ? filters.of_position(g, plane_of, g.centre, here) : Acc(0);
        Chains<Acc, 1, 2> of_centre;
        for (Index first = 0; first < g.grid; first += SAMPLES) {
            Acc mixed[SAMPLES] = {};
            for (Index t = own_turn; t < (grad_x != nullptr ? own_turn + 1 : turns) && exists; ++t) {
                const Index channel = t * turn + threadIdx.y * CHANNELS;
                const int channels = g.C - channel < CHANNELS ? int(g.C - channel) : CHANNELS;
                Acc value[CHANNELS] = {};
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    if (of_attention && c < channels) value[c] = load(x + (image * g.C + channel + c) * g.plane + here);
                }
                Walk<Index, true> walk(g, first, y, x0);
#pragma unroll
                for (int k = 0; k < SAMPLES; ++k) {
                    const Index sample = first + k, pixel = walk.next(g);
                    if (sample >= g.grid) break;
                    if (pixel < 0 || !gradients.takes_part(g, plane_of, sample, pixel)) continue;
                    const Acc weight = gradients.weighted(g, filters, plane_of, sample, pixel) * attention;
                    Acc part = 0;
#pragma unroll
                    for (int c = 0; c < CHANNELS; ++c) {
                        if (c >= channels) break;
                        const Acc factor = load(across + (plane_of * g.C + channel + c) * g.plane + pixel);
                        sums.chain[c] += weight * factor;
                        part += factor * value[c];
                    }
                    mixed[k] += part;
                    sums.step();
                }
            }
            if (!of_attention) continue;
            __syncthreads();
#pragma unroll
            for (int k = 0; k < SAMPLES; ++k) shared[(k * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x] = mixed[k];
            __syncthreads();
            for (Index k = threadIdx.y; k < SAMPLES && exists; k += blockDim.y) {
                const Index sample = first + k;
                if (sample >= g.grid) break;
                const Index pixel = g.position(y - g.down(sample), x0 - g.right(sample));
                if (pixel < 0) continue;
                const bool taken = gradients.takes_part(g, plane_of, sample, pixel);
                Acc total = 0;
                for (int part = 0; part < int(blockDim.y); ++part) {
                    total += shared[(k * blockDim.y + part) * blockDim.x + threadIdx.x];
                }
                if (grad_sample_attention != nullptr) {
                    Acc grad = 0;
                    if (taken) {
                        const Acc taps = shared_taps(g, filters, channel_sum, plane_of, sample, pixel);
                        grad = gradients.of_sample(g, plane_of, sample, pixel) * (total * attention + taps);
                    }
                    store(grad_sample_attention + (plane_of * g.grid + sample) * g.plane + pixel, grad);
                }
                if (grad_position_attention != nullptr && taken) {
                    const Acc weight = gradients.weighted(g, filters, plane_of, sample, pixel);
                    total *= weight;
                    if (g.is_shared(g.centre)) {
                        const Acc sum = channel_sum[image * g.plane + here];
                        total += weight * filters.shared(g, plane_of, g.centre, pixel) * sum;
                    }
                    of_centre.chain[0] += total;
                    of_centre.step();
                }
            }
        }
        if (grad_position_attention == nullptr) continue;
        __syncthreads();
        shared[threadIdx.y * blockDim.x + threadIdx.x] = of_centre.sum(0);
        __syncthreads();
        if (threadIdx.y == 0 && exists) {
            Acc total = 0;
            for (int part = 0; part < int(blockDim.y); ++part) total += shared[part * blockDim.x + threadIdx.x];
            store(grad_position_attention + (plane_of * g.taps + g.centre) * g.plane + here, total);
        }
    }
    const Index channel = own_turn * turn + threadIdx.y * CHANNELS;
    if (grad_x == nullptr || !exists) return;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        if (channel + c >= g.C) break;
        const Acc of_sum = grad_sum != nullptr ? grad_sum[image * g.plane + here] : Acc(0);
        store(grad_x + (image * g.C + channel + c) * g.plane + here, sums.sum(c) + of_sum);
    }
}
