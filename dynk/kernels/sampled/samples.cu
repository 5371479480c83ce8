// The samples of dynamic_filter and ls_dfn, reduced, or the choice of "max" among them.
//
// A thread owns a pixel, OUTPUTS output channels and up to SAMPLES samples, whose sums over the rows of the big tensor
// it keeps in registers; a row is `across` of one input channel, or a tap of it of the DENSE kernel of dynamic_filter.
// Each element of the image so serves OUTPUTS products, and one of the big tensor all samples of the thread. The threads
// of a block share pixels and outputs and have different samples. They copy the big tensor to shared memory, ROWS rows
// ahead of their use and in pieces of 16 bytes: once, for up to 9 x 9 samples, of more once for each 96. The image they
// gather from the L1 cache.
#include "cuda_tiles.cuh"
#include "sampled.cuh"

using namespace dynk;

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
    static constexpr int OUTPUTS = Held<Acc>::OUTPUTS;
    Index first_pixel, pixel, image, plane_of;  // plane_of: n * O + the first output
    int outputs;
    bool exists;

    __device__ __forceinline__ explicit Work(const Sampling<Index>& g) {
        Index block = blockIdx.x;
        const Index first = take(block, divide_up(g.O, Index(OUTPUTS))) * OUTPUTS;
        first_pixel = take(block, divide_up(g.plane, Index(blockDim.x))) * blockDim.x;
        pixel = first_pixel + threadIdx.x;
        image = block;
        plane_of = image * g.O + first;
        outputs = g.O - first < OUTPUTS ? int(g.O - first) : OUTPUTS;
        exists = pixel < g.plane;
    }
};

// Begins to copy ROWS rows of the block's part of the big tensor.
template <typename T, typename Index>
__device__ __forceinline__ void copy_rows(T* tile, const T* across, const Sampling<Index>& g,
                                          const Work<accumulator<T>, Index>& work, Index rows, Index first,
                                          bool aligned) {
    using Acc = accumulator<T>;
    constexpr int VECTOR = 16 / sizeof(T), OUTPUTS = Held<Acc>::OUTPUTS, ROWS = Held<Acc>::ROWS;
    const int step = aligned ? VECTOR : 1, vectors = blockDim.x / step;  // of a row
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const int beside = thread % vectors * step;
    const Index pixel = work.first_pixel + beside;
    for (int line = thread / vectors; line < OUTPUTS * ROWS && pixel < g.plane; line += threads / vectors) {
        const int u = line % OUTPUTS;
        const Index row = first + line / OUTPUTS;
        if (u >= work.outputs || row >= rows) continue;
        T* const to = tile + line * blockDim.x + beside;
        const T* const from = across + ((work.plane_of + u) * rows + row) * g.plane + pixel;
        if (aligned) {
            copy_ahead<VECTOR>(to, from, true);
        } else {
            *to = *from;
        }
    }
    close_copies();
}

// N sums side by side, of up to 64^2 terms, or, `many`, of up to 64^3: then only the first half of the sums is formed, and
// what would hold the others holds its third level.
template <typename Acc, int N>
struct SampleSums : Chains<Acc, N, 2> {
    using Chains<Acc, N, 2>::merged;
    const bool many;

    __device__ __forceinline__ explicit SampleSums(bool many) : many(many) {}

    __device__ __forceinline__ void step() {
        Chains<Acc, N, 2>::step();
        if (!many || this->terms % (CHAIN * CHAIN) != 0) return;
#pragma unroll
        for (int n = 0; n < N / 2; ++n) {
            merged[n + N / 2] += merged[n];
            merged[n] = 0;
        }
    }

    __device__ __forceinline__ Acc sum(int n) const {
        const Acc levels = Chains<Acc, N, 2>::sum(n);
        return many && n < N / 2 ? merged[n + N / 2] + levels : levels;
    }
};

// Returns `value(index)` of COUNT, a power of two, whose index is known to the compiler: registers have no addresses.
template <int COUNT, int FIRST = 0, typename Value>
__device__ __forceinline__ auto pick(int index, const Value& value) {
    if constexpr (COUNT == 1) {
        return value(FIRST);
    } else {
        const auto low = pick<COUNT / 2, FIRST>(index, value), high = pick<COUNT / 2, FIRST + COUNT / 2>(index, value);
        return index & COUNT / 2 ? high : low;
    }
}

// Whether a sample replaces the best so far: NaN is larger than all else, and of equals the first is taken.
template <typename Acc>
__device__ __forceinline__ bool is_larger(Acc value, int sample, Acc best, int chosen) {
    if (chosen < 0) return true;
    if (value != value) return best == best || sample < chosen;
    return value > best || (value == best && sample < chosen);
}

// Writes the outputs, and for "max" which sample each is; what is null is not wanted. The threads of a pixel take `each`
// samples at a time, SAMPLES at most, half of that of more than 64^2 rows, and keep what is left of them in shared memory.
template <typename T, typename Index, bool DENSE>
__global__ void __launch_bounds__(MANY_THREADS<Index>, 1)
    sampled_forward(const T* __restrict__ x, const T* __restrict__ across, const T* __restrict__ within,
                    const T* __restrict__ sample_attention, const T* __restrict__ position_attention,
                    const accumulator<T>* __restrict__ channel_sum, T* __restrict__ out, int* __restrict__ choice,
                    SampleGeometry<Index> geometry, Index each) {
    using Acc = accumulator<T>;
    constexpr int SAMPLES = Held<Acc>::SAMPLES, OUTPUTS = Held<Acc>::OUTPUTS, ROWS = Held<Acc>::ROWS;
    extern __shared__ __align__(16) unsigned char memory[];
    const int pixels = blockDim.x, kept = OUTPUTS * blockDim.x * blockDim.y;
    Acc* const reduced = reinterpret_cast<Acc*>(memory);
    int* const chosen = reinterpret_cast<int*>(reduced + kept);
    T* const tiles = reinterpret_cast<T*>(chosen + kept);
    const int place = threadIdx.y * OUTPUTS * pixels + threadIdx.x;

    const Sampling<Index> g(geometry);
    const Work<Acc, Index> work(g);
    const Filters<T, Index> filters{within, sample_attention, position_attention};
    const Index rows = DENSE ? g.C * g.taps : g.has_across ? g.C : Index(0);
    const bool aligned = is_aligned<16 / sizeof(T)>(across) && g.plane * sizeof(T) % 16 == 0;
    const Index y = g.row_of(work.pixel), x0 = g.column_of(work.pixel);
    const auto copy = [&](Index row) {
        if (row >= rows) return;
        copy_rows(tiles + row / ROWS % 2 * (ROWS * OUTPUTS * pixels), across, g, work, rows, row, aligned);
    };
    for (Index pass = 0; pass < g.grid; pass += each * blockDim.y) {
        const Index first = pass + each * threadIdx.y;
        const int count = int(g.grid - first < each ? g.grid - first : each);
        SampleSums<Acc, SAMPLES * OUTPUTS> sums(rows > CHAIN * CHAIN);
        const Walk<Index> start(g, first, y, x0);
        Rows<Index, DENSE> source(g, 0);
        Index at[SAMPLES];
        if constexpr (!DENSE) {
            Walk<Index> walk = start;
#pragma unroll
            for (int k = 0; k < SAMPLES; ++k) at[k] = walk.next(g);
        }
        __syncthreads();
        copy(0);
        for (Index row = 0; row < rows; row += ROWS) {
            const T* factors = tiles + row / ROWS % 2 * (ROWS * OUTPUTS * pixels) + threadIdx.x;
            wait_for_copies<0>();
            __syncthreads();
            copy(row + ROWS);  // to where the rows before these were, which all have read
            if (!work.exists) continue;
            const int held = rows - row < ROWS ? int(rows - row) : ROWS;
#pragma unroll 1
            for (int r = 0; r < held; ++r) {
                Acc factor[OUTPUTS];
#pragma unroll
                for (int u = 0; u < OUTPUTS; ++u) {
                    factor[u] = u < work.outputs ? load(factors + (r * OUTPUTS + u) * pixels) : Acc(0);
                }
                Walk<Index> walk = start;
                walk.row += source.down(g);
                walk.column += source.right(g);
                const T* const plane = x + (work.image * g.C + source.channel) * g.plane;
#pragma unroll
                for (int k = 0; k < SAMPLES; ++k) {
                    if (k >= count) break;
                    const Index from = DENSE ? walk.next(g) : at[k];
                    if (from < 0) continue;
                    const Acc value = load(plane + from);
#pragma unroll
                    for (int u = 0; u < OUTPUTS; ++u) sums.chain[k * OUTPUTS + u] += value * factor[u];
                }
                source.step(g);
                sums.step();
            }
        }
        if (!work.exists) continue;

#pragma unroll 1
        for (int u = 0; u < work.outputs; ++u) {
            const Index plane_of = work.plane_of + u;
            Acc total = pass > 0 ? reduced[place + u * pixels] : Acc(0), part = 0;
            int best = pass > 0 && g.reduce == MAX ? chosen[place + u * pixels] : -1;
            Walk<Index> walk = start;
#pragma unroll 1
            for (int k = 0; k < count; ++k) {
                const Index sample = first + k, centred = walk.next(g);
                Acc value = pick<SAMPLES * OUTPUTS>(k * OUTPUTS + u, [&](int own) { return sums.sum(own); });
                if constexpr (!DENSE) {
                    if (centred >= 0 && rows > 0) value *= filters.of_position(g, plane_of, g.centre, centred);
                    value += shared_taps(g, filters, channel_sum, plane_of, sample, work.pixel);
                    value *= filters.of_sample(g, plane_of, sample, work.pixel);
                }
                if (g.reduce == NONE) {
                    const Index to = (work.image * g.grid + sample) * g.O + (plane_of - work.image * g.O);
                    store(out + to * g.plane + work.pixel, value);
                } else if (g.reduce != MAX) {
                    part += value;
                } else if (is_larger(value, int(sample), total, best)) {
                    total = value;
                    best = int(sample);
                }
            }
            reduced[place + u * pixels] = total + part;
            if (g.reduce == MAX) chosen[place + u * pixels] = best;
        }
    }
    __syncthreads();
    if (g.reduce == NONE || !work.exists) return;
    // The outputs of a pixel are shared out among its threads.
    for (int u = threadIdx.y; u < work.outputs; u += blockDim.y) {
        Acc total = 0;
        int best = -1;
        for (int group = 0; group < int(blockDim.y); ++group) {
            const int from = (group * OUTPUTS + u) * pixels + threadIdx.x;
            if (g.reduce != MAX) {
                total += reduced[from];
            } else if (chosen[from] >= 0 && is_larger(reduced[from], chosen[from], total, best)) {
                total = reduced[from];
                best = chosen[from];
            }
        }
        if (g.reduce == MEAN) total /= Acc(g.grid);
        const Index to = (work.plane_of + u) * g.plane + work.pixel;
        if (out != nullptr) store(out + to, total);
        if (choice != nullptr) choice[to] = best;
    }
}
