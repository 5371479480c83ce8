// deformable_conv2d where each group has a single input channel and kernel offsets move its taps, for what fits shared memory:
// a block has PIXELS output pixels and many channels. Where a tap lies, and the weights of its neighbours, is formed once for
// each pixel, for all of the channels.
#include "cuda_tiles.cuh"
#include "deformable.cuh"

using namespace dynk;

constexpr int PIXELS = 32, WARPS = 8;
constexpr int TURNS = 2;  // how often a thread has outputs

// What a block holds: `run` outputs lie in the same blocks of offsets, `outputs` of them are those of a block of threads;
// `taps` are in shared memory at a time.
struct Blocking {
    int run, outputs, taps;

    // Of threads, that have the same pixels.
    __device__ __forceinline__ int blocks(int O) const { return O / run * divide_up(run, outputs); }
};

// Pixels and outputs of a block of threads.
struct Place {
    int first_pixel, n, first, count;

    __device__ __forceinline__ Place(const DeformGeometry<int>& g, const Blocking& blocking, int block) {
        const int output_block = take(block, blocking.blocks(g.O)), in_run = divide_up(blocking.run, blocking.outputs);
        const int within = output_block % in_run * blocking.outputs;
        first = output_block / in_run * blocking.run + within;
        count = blocking.run - within < blocking.outputs ? blocking.run - within : blocking.outputs;
        first_pixel = take(block, divide_up(g.pixels(), PIXELS)) * PIXELS;
        n = block;
    }
};

// Where the taps of a block's pixels lie, in shared memory. A skipped tap has a negative `scope`.
template <typename T, bool DATA>
struct Table {
    using Acc = accumulator<T>;
    using Weights = Vector<Acc, 4>;
    Weights *of_scope, *of_image;  // of the four neighbours; on the image there is one if nothing moves its taps
    Acc* mask;
    int *scope, *image;  // the numbers of the first neighbours, in `scope` above the bits of those that there are

    __device__ __forceinline__ Table(void* memory, int taps) {
        of_scope = static_cast<Weights*>(memory);
        of_image = of_scope + taps * PIXELS;
        mask = reinterpret_cast<Acc*>(of_image + (DATA ? taps * PIXELS : 0));
        scope = reinterpret_cast<int*>(mask + taps * PIXELS);
        image = scope + taps * PIXELS;
    }

    // Forms taps [first, first + taps). Positions of the scope are numbered in rows of `width`, from one row above and one
    // column before on.
    __device__ __forceinline__ void fill(const Operands<T, int>& operands, const Place& place, int first, int taps,
                                         int width) const {
        const auto& g = operands.g;
        const int c = place.first / g.outputs();
        for (int at = threadIdx.x; at < taps * PIXELS; at += blockDim.x) {
            const int number = place.first_pixel + at % PIXELS, t = first + at / PIXELS;
            scope[at] = -1;
            if (number >= g.pixels()) continue;
            const Pixel<int> pixel(g, place.n * g.pixels() + number);
            const auto data = operands.data_point(pixel, operands.data_block(c), t);
            const auto kernel = operands.kernel_point(pixel, operands.kernel_block(c), t);
            if (!data.read() || !kernel.read()) continue;
            int there = 0;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int a = k / 2, b = k % 2;
                of_scope[at].element[k] = kernel.unknown() ? Acc(nan("")) : kernel.weight(a, b);
                if (!kernel.unknown() && kernel.has(a, b)) there |= 16 << k;
                if (DATA) of_image[at].element[k] = data.unknown() ? Acc(nan("")) : data.weight(a, b);
                if (!data.unknown() && data.has(a, b)) there |= 1 << k;
            }
            mask[at] = operands.mask_of(pixel, operands.data_block(c), t);
            const int position = kernel.unknown() ? 0 : (kernel.y.cell + 1) * width + kernel.x.cell + 1;
            scope[at] = position << 8 | there;
            image[at] = data.unknown() ? 0 : data.y.cell * g.W + data.x.cell;
        }
    }

    // The masked sample of a tap in a plane of the image.
    __device__ __forceinline__ Acc sample(const T* plane, int W, int at, int there) const {
        const T* from = plane + image[at];
        if constexpr (!DATA) return mask[at] * load(from);
        const Weights weights = of_image[at];
        Acc sum = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Acc value = there >> k & 1 ? load(from + k / 2 * W + k % 2) : Acc(0);
            sum += weights.element[k] * value;
        }
        return mask[at] * sum;
    }
};

// Shared memory holds the filters, `stride` elements of all outputs for each position of the scope and the ring around it,
// which is 0; and then the table.
template <typename T, bool DATA>
__global__ void __launch_bounds__(PIXELS * WARPS, 1)
    deform_scope_forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ kernel_offset,
                         const T* __restrict__ data_offset, const T* __restrict__ mask, const T* __restrict__ bias,
                         T* __restrict__ out, DeformGeometry<int> g, Blocking blocking) {
    using Acc = accumulator<T>;
    constexpr int OUTPUTS = 4;  // neighbouring outputs of a thread, whose weights one load brings
    extern __shared__ __align__(32) unsigned char memory[];
    const Operands<T, int> operands{g, x, weight, kernel_offset, data_offset, mask};
    const Place place(g, blocking, int(blockIdx.x));
    if (place.n >= g.N) return;  // a whole block
    const int width = g.Sw + 2, ring = width * (g.Sh + 2), stride = blocking.outputs + OUTPUTS;
    Acc* filters = reinterpret_cast<Acc*>(memory);
    const Table<T, DATA> table(filters + ring * stride, blocking.taps);
    for (int at = threadIdx.x; at < ring * blocking.outputs; at += PIXELS * WARPS) {
        int k = at;
        const int column = take(k, width) - 1, row = take(k, g.Sh + 2) - 1;
        const bool is_weight = k < place.count && inside(row, g.Sh) && inside(column, g.Sw);
        filters[at % ring * stride + k] =
            is_weight ? load(weight + (place.first + k) * g.scope() + row * g.Sw + column) : Acc(0);
    }
    const int lane = threadIdx.x % PIXELS, first_output = threadIdx.x / PIXELS * OUTPUTS;
    const T* planes[TURNS][OUTPUTS];
    Acc sums[TURNS][OUTPUTS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma unroll
        for (int k = 0; k < OUTPUTS; ++k) {
            const int own = first_output + turn * WARPS * OUTPUTS + k, o = place.first + (own < place.count ? own : 0);
            planes[turn][k] = x + (place.n * g.C + o / g.outputs()) * g.plane();
            sums[turn][k] = 0;
        }
    }
    for (int first = 0; first < g.taps(); first += blocking.taps) {
        const int taps = g.taps() - first < blocking.taps ? g.taps() - first : blocking.taps;
        __syncthreads();
        table.fill(operands, place, first, taps, width);
        __syncthreads();
        for (int at = lane; at < taps * PIXELS; at += PIXELS) {
            const int scope = table.scope[at];
            if (scope < 0) continue;
            const auto weights = table.of_scope[at];
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                const int own = first_output + turn * WARPS * OUTPUTS;
                if (own >= place.count) break;
                Acc tap[OUTPUTS] = {};
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) {
                    const int position = (scope >> 8) + corner / 2 * width + corner % 2;
                    const auto loaded = *reinterpret_cast<const Vector<Acc, OUTPUTS>*>(filters + position * stride + own);
#pragma unroll
                    for (int k = 0; k < OUTPUTS; ++k) tap[k] += weights.element[corner] * loaded.element[k];
                }
#pragma unroll
                for (int k = 0; k < OUTPUTS; ++k) sums[turn][k] += tap[k] * table.sample(planes[turn][k], g.W, at, scope);
            }
        }
    }
    if (place.first_pixel + lane >= g.pixels()) return;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma unroll
        for (int k = 0; k < OUTPUTS; ++k) {
            const int own = first_output + turn * WARPS * OUTPUTS + k, o = place.first + own;
            if (own >= place.count) continue;
            const Acc sum = sums[turn][k] + (g.has_bias ? load(bias + o) : Acc(0));
            store(out + (place.n * g.O + o) * g.pixels() + place.first_pixel + lane, sum);
        }
    }
}

// A warp sums the gradient of the filters of TURNS outputs at most, over every `parts`-th tile of pixels. In shared memory each
// lane has a sum for each position of the scope; before more than CHAIN terms are in one, the sums of all lanes are added up.
template <typename T, bool DATA>
__global__ void __launch_bounds__(PIXELS * WARPS, 1)
    deform_scope_backward_weight(const T* __restrict__ grad_out, const T* __restrict__ x,
                                 const T* __restrict__ kernel_offset, const T* __restrict__ data_offset,
                                 const T* __restrict__ mask, accumulator<T>* __restrict__ partial, DeformGeometry<int> g,
                                 Blocking blocking, int parts) {
    using Acc = accumulator<T>;
    constexpr int MAX_SCOPE = 128, EACH = MAX_SCOPE / 32;  // positions of the scope: each lane adds up EACH of them
    extern __shared__ __align__(32) unsigned char memory[];
    const Operands<T, int> operands{g, x, nullptr, kernel_offset, data_offset, mask};
    const int scope_size = g.scope(), warps = int(blockDim.x) / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int blocks = blocking.blocks(g.O), tiles = g.N * divide_up(g.pixels(), PIXELS);
    const int part = int(blockIdx.x) / blocks, output_block = int(blockIdx.x) % blocks;
    if (part >= parts) return;  // a whole block
    Acc* sums = reinterpret_cast<Acc*>(memory);
    const Table<T, DATA> table(sums + blocking.outputs * scope_size * 32, blocking.taps);
    const auto own = [&](int turn) { return sums + (turn * warps + warp) * scope_size * 32 + lane; };
    Place place(g, blocking, output_block);
    Chains<Acc, EACH, 2> totals[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        if (turn * warps + warp >= place.count) break;
        for (int k = 0; k < scope_size; ++k) own(turn)[k * 32] = 0;
    }
    const auto fold = [&] {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            if (turn * warps + warp >= place.count) break;
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
                for (int k = e * 32; k < scope_size && k < e * 32 + 32; ++k) {
                    const Acc sum = warp_sum(own(turn)[k * 32]);
                    own(turn)[k * 32] = 0;
                    if (lane == k % 32) totals[turn].chain[e] += sum;
                }
            }
            totals[turn].step();
        }
    };
    int terms = 0;
    for (int tile = part; tile < tiles; tile += parts) {
        place = Place(g, blocking, tile * blocks + output_block);
        const int number = place.first_pixel + lane;
        for (int first = 0; first < g.taps(); first += blocking.taps) {
            const int taps = g.taps() - first < blocking.taps ? g.taps() - first : blocking.taps;
            __syncthreads();
            table.fill(operands, place, first, taps, g.Sw);
            __syncthreads();
            if (terms + taps > CHAIN) {
                fold();
                terms = 0;
            }
            terms += taps;
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                const int o = place.first + turn * warps + warp;
                if (turn * warps + warp >= place.count || number >= g.pixels()) break;
                const T* plane = x + (place.n * g.C + o / g.outputs()) * g.plane();
                const Acc grad = load(grad_out + (place.n * g.O + o) * g.pixels() + number);
                for (int at = lane; at < taps * PIXELS; at += PIXELS) {
                    const int scope = table.scope[at];
                    if (scope < 0) continue;
                    const Acc term = grad * table.sample(plane, g.W, at, scope);
                    const auto weights = table.of_scope[at];
                    Acc* sum = own(turn) + ((scope >> 8) - g.Sw - 1) * 32;
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        if (scope >> k & 16) sum[(k / 2 * g.Sw + k % 2) * 32] += weights.element[k] * term;
                    }
                }
            }
        }
    }
    fold();
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int o = place.first + turn * warps + warp;
        if (turn * warps + warp >= place.count) break;
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int k = e * 32 + lane;
            if (k < scope_size) partial[(part * g.O + o) * scope_size + k] = totals[turn].sum(e);
        }
    }
}
