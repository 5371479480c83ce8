// The samples of dynamic_filter and ls_dfn, reduced, or the choice of "max" among them.
//
// A thread owns a pixel, OUTPUTS output channels and up to SAMPLES samples, whose sums over the rows of the big tensor it
// keeps in registers; a row is `across` of one input channel, or a tap of it of the DENSE kernel of dynamic_filter. Each
// element of the image so serves OUTPUTS products, and one of the big tensor all samples of the thread. The threads of a
// block share pixels and outputs and have different samples. They copy the big tensor to shared memory once, CHANNELS
// rows ahead of their use, in pieces of 16 bytes; the image they gather from the L1 cache.
#include "cuda_tiles.cuh"
#include "sampled.cuh"

using namespace dynk;

constexpr int SAMPLES = 8;
template <typename Acc>
constexpr int OUTPUTS = sizeof(Acc) == 8 ? 2 : 4;
template <typename Acc>
constexpr int CHANNELS = sizeof(Acc) == 8 ? 4 : 8;

template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sampled_channel_sum(const T* __restrict__ x, accumulator<T>* __restrict__ out, SampleGeometry<Index> geometry) {
    const Sampling<Index> g(geometry);
    Index block = blockIdx.x;
    const Index pixel = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x + threadIdx.x;
    if (pixel >= g.plane) return;
    Chains<accumulator<T>, 1, 3> sums;
    for (Index c = 0; c < g.C; ++c) {
        sums.chain[0] += load(x + (block * g.C + c) * g.plane + pixel);
        sums.step();
    }
    out[block * g.plane + pixel] = sums.sum(0);
}

// A block's pixels and outputs, and those of its thread.
template <typename Acc, typename Index>
struct Work {
    Index first_pixel, pixel, image, plane_of;  // plane_of: n * O + the first output
    int outputs;
    bool exists;

    __device__ __forceinline__ explicit Work(const Sampling<Index>& g) {
        Index block = blockIdx.x;
        const Index first = take(block, divide_up(g.O, Index(OUTPUTS<Acc>))) * OUTPUTS<Acc>;
        first_pixel = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x;
        pixel = first_pixel + threadIdx.x;
        image = block;
        plane_of = image * g.O + first;
        outputs = g.O - first < OUTPUTS<Acc> ? int(g.O - first) : OUTPUTS<Acc>;
        exists = pixel < g.plane;
    }
};

// Begins to copy CHANNELS rows of the block's part of the big tensor.
template <typename T, typename Index>
__device__ __forceinline__ void copy_rows(T* tile, const T* across, const Sampling<Index>& g,
                                          const Work<accumulator<T>, Index>& work, Index rows, Index first,
                                          bool aligned) {
    using Acc = accumulator<T>;
    constexpr int VECTOR = 16 / sizeof(T);
    const int pixels = blockDim.x, step = aligned ? VECTOR : 1;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (int k = thread * step; k < OUTPUTS<Acc> * CHANNELS<Acc> * pixels; k += threads * step) {
        const int u = k / pixels % OUTPUTS<Acc>;
        const Index row = first + k / pixels / OUTPUTS<Acc>, pixel = work.first_pixel + k % pixels;
        if (u >= work.outputs || row >= rows || pixel >= g.plane) continue;
        const T* from = across + ((work.plane_of + u) * rows + row) * g.plane + pixel;
        if (aligned) {
            copy_ahead<VECTOR>(tile + k, from, true);
        } else {
            tile[k] = *from;
        }
    }
    close_copies();
}

// Forms the thread's samples and gives each with its centre to `take_sample(sample, values, at)`, in order; all threads
// of a block must call. `rows` are those of the big tensor, 0 if there is none.
template <typename T, typename Index, bool DENSE, typename TakeSample>
__device__ __forceinline__ void form_samples(const Sampling<Index>& g, const Work<accumulator<T>, Index>& work, const T* x,
                                             const T* across, const Filters<T, Index>& filters,
                                             const accumulator<T>* channel_sum, Index rows, Index each, T* tiles,
                                             TakeSample take_sample) {
    using Acc = accumulator<T>;
    constexpr int HELD = OUTPUTS<Acc>, ROWS = CHANNELS<Acc>;
    const int pixels = blockDim.x;
    const bool aligned = is_aligned<16 / sizeof(T)>(across) && g.plane * sizeof(T) % 16 == 0;
    const Index y = g.row_of(work.pixel), x0 = g.column_of(work.pixel);
    for (Index pass = 0; pass < g.grid; pass += each * blockDim.y) {
        const Index first = pass + each * threadIdx.y;
        const int count = int(g.grid - first < each ? g.grid - first : each);
        Chains<Acc, SAMPLES * HELD, 2> sums;
        Index at[SAMPLES];
#pragma unroll
        for (int k = 0; k < SAMPLES; ++k) {
            const bool exists = work.exists && k < count;
            at[k] = exists ? g.position(y + g.down(first + k), x0 + g.right(first + k)) : Index(-1);
        }
        __syncthreads();
        if (rows > 0) copy_rows(tiles, across, g, work, rows, Index(0), aligned);
        for (Index row = 0; row < rows; row += ROWS) {
            const T* tile = tiles + row / ROWS % 2 * (ROWS * HELD * pixels) + threadIdx.x;
            wait_for_copies<0>();
            __syncthreads();
            const Index next = row + ROWS;
            if (next < rows) copy_rows(tiles + next / ROWS % 2 * (ROWS * HELD * pixels), across, g, work, rows, next, aligned);
            if (!work.exists) continue;
            Acc factor[ROWS][HELD];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
#pragma unroll
                for (int u = 0; u < HELD; ++u) {
                    factor[r][u] = row + r < rows && u < work.outputs ? load(tile + (r * HELD + u) * pixels) : Acc(0);
                }
            }
#pragma unroll
            for (int k = 0; k < SAMPLES; ++k) {
                if (k >= count) break;
                Acc part[HELD] = {};
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    if (row + r >= rows) break;
                    Index from = at[k], channel = row + r;
                    if constexpr (DENSE) {
                        const Index tap = take_tap(g, channel);
                        from = g.position(y + g.down(first + k) + g.tap_down(tap), x0 + g.right(first + k) + g.tap_right(tap));
                    }
                    if (from < 0) continue;
                    const Acc value = load(x + (work.image * g.C + channel) * g.plane + from);
#pragma unroll
                    for (int u = 0; u < HELD; ++u) part[u] += value * factor[r][u];
                }
#pragma unroll
                for (int u = 0; u < HELD; ++u) sums.chain[k * HELD + u] += part[u];
            }
            sums.step();
        }
        if (!work.exists) continue;
#pragma unroll 1
        for (int k = 0; k < count; ++k) {
            Acc values[HELD] = {};
#pragma unroll
            for (int same = 0; same < SAMPLES; ++same) {  // registers have no addresses
#pragma unroll
                for (int u = 0; u < HELD; ++u) {
                    if (same == k) values[u] = sums.sum(same * HELD + u);
                }
            }
            const Index sample = first + k;
            const Index centred = g.position(y + g.down(sample), x0 + g.right(sample));
            if constexpr (!DENSE) {
#pragma unroll
                for (int u = 0; u < HELD; ++u) {
                    if (u >= work.outputs) break;
                    if (centred >= 0 && rows > 0) {
                        values[u] *= filters.of_position(g, work.plane_of + u, g.centre, centred);
                    }
                    values[u] += shared_taps(g, filters, channel_sum, work.plane_of + u, sample, work.pixel);
                }
            }
            take_sample(sample, values, centred);
        }
    }
}

// ---- forward ---------------------------------------------------------------------------------------------------------

// Whether a sample replaces the best so far: NaN is larger than all else, and of equals the first is taken.
template <typename Acc, typename Index>
__device__ __forceinline__ bool is_larger(Acc value, Index sample, Acc best, Index chosen) {
    if (value != value) return best == best || sample < chosen;
    return value > best || (value == best && sample < chosen);
}

// Writes the outputs, and for "max" which sample each is; what is null is not wanted.
template <typename T, typename Index, bool DENSE>
__global__ void __launch_bounds__(512, 1)
    sampled_forward(const T* __restrict__ x, const T* __restrict__ across, const T* __restrict__ within,
                    const T* __restrict__ sample_attention, const T* __restrict__ position_attention,
                    const accumulator<T>* __restrict__ channel_sum, T* __restrict__ out, int* __restrict__ choice,
                    SampleGeometry<Index> geometry, Index each) {
    using Acc = accumulator<T>;
    constexpr int HELD = OUTPUTS<Acc>;
    extern __shared__ __align__(16) unsigned char memory[];
    const Sampling<Index> g(geometry);
    const Work<Acc, Index> work(g);
    const Filters<T, Index> filters{within, sample_attention, position_attention};
    const Index rows = DENSE ? g.C * g.taps : g.has_across ? g.C : Index(0);
    Chains<Acc, HELD, 2> sums;
    Acc best[HELD] = {};
    int chosen[HELD];
#pragma unroll
    for (int u = 0; u < HELD; ++u) chosen[u] = -1;
    form_samples<T, Index, DENSE>(
        g, work, x, across, filters, channel_sum, rows, each, reinterpret_cast<T*>(memory),
        [&](Index sample, const Acc (&values)[HELD], Index) {
#pragma unroll
            for (int u = 0; u < HELD; ++u) {
                if (u >= work.outputs) break;
                const Acc value = values[u] * filters.of_sample(g, work.plane_of + u, sample, work.pixel);
                if (g.reduce == NONE) {
                    const Index of_sample = (work.image * g.grid + sample) * g.O + (work.plane_of + u - work.image * g.O);
                    store(out + of_sample * g.plane + work.pixel, value);
                } else if (g.reduce != MAX) {
                    sums.chain[u] += value;
                } else if (chosen[u] < 0 || is_larger(value, int(sample), best[u], chosen[u])) {
                    best[u] = value;
                    chosen[u] = int(sample);
                }
            }
            sums.step();
        });
    if (g.reduce == NONE) return;

    // The threads of a pixel leave what they have to the first.
    Acc* const shared = reinterpret_cast<Acc*>(memory);
    int* const shared_chosen = reinterpret_cast<int*>(shared + HELD * blockDim.x * blockDim.y);
    __syncthreads();
#pragma unroll
    for (int u = 0; u < HELD; ++u) {
        const int place = (threadIdx.y * HELD + u) * blockDim.x + threadIdx.x;
        shared[place] = g.reduce == MAX ? best[u] : sums.sum(u);
        if (g.reduce == MAX) shared_chosen[place] = chosen[u];
    }
    __syncthreads();
    if (threadIdx.y > 0 || !work.exists) return;
#pragma unroll
    for (int u = 0; u < HELD; ++u) {
        if (u >= work.outputs) break;
        Acc total = shared[u * blockDim.x + threadIdx.x];
        int sample = chosen[u];
        for (int group = 1; group < int(blockDim.y); ++group) {
            const int place = (group * HELD + u) * blockDim.x + threadIdx.x;
            if (g.reduce != MAX) {
                total += shared[place];
            } else if (shared_chosen[place] >= 0 && is_larger(shared[place], shared_chosen[place], total, sample)) {
                total = shared[place];
                sample = shared_chosen[place];
            }
        }
        if (g.reduce == MEAN) total /= Acc(g.grid);
        const Index at = (work.plane_of + u) * g.plane + work.pixel;
        if (out != nullptr) store(out + at, total);
        if (choice != nullptr) choice[at] = sample;
    }
}
