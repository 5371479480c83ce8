// deformable_conv2d where each group has a single input channel and offsets move its taps, for what fits shared memory: a
// block has PIXELS pixels and many channels. Where a tap lies, and the weights of its neighbours, is formed once for each
// pixel, for all of the channels.
#include "scope.cuh"

using namespace dynk;

constexpr int TURNS = 2;  // how often a thread has outputs

// The output from the image; or, READERS, the gradient of the image from that of the output, where each channel has a single
// output and there are no data offsets. KERNEL: there are kernel offsets.
template <typename T, bool READERS, bool KERNEL, bool DATA>
__global__ void __launch_bounds__(PIXELS * WARPS, 1)
    deform_scope_forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ kernel_offset,
                         const T* __restrict__ data_offset, const T* __restrict__ mask, const T* __restrict__ bias,
                         T* __restrict__ out, DeformGeometry<int> g, Blocking blocking) {
    using Acc = accumulator<T>;
    constexpr int OUTPUTS = 4;  // neighbouring outputs of a thread, whose weights one load brings
    extern __shared__ __align__(32) unsigned char memory[];
    const Operands<T, int> operands{g, nullptr, nullptr, kernel_offset, data_offset, mask};
    const int read = READERS ? g.pixels() : g.plane();  // elements of a plane
    const Place place(blocking, g.O, READERS ? g.plane() : g.pixels(), int(blockIdx.x));
    if (place.n >= g.N) return;  // a whole block
    const Filters<Acc> filters(memory, weight, g, place, blocking.outputs, OUTPUTS);
    const Table<T, READERS ? Taps::READERS : Taps::READ, DATA> table(filters.end(), blocking.taps);
    const int lane = threadIdx.x % PIXELS, first_output = threadIdx.x / PIXELS * OUTPUTS;
    const T* planes[TURNS][OUTPUTS];
    Acc sums[TURNS][OUTPUTS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma unroll
        for (int k = 0; k < OUTPUTS; ++k) {
            const int own = first_output + turn * WARPS * OUTPUTS + k, o = place.first + (own < place.count ? own : 0);
            planes[turn][k] = x + (place.n * g.C + o / g.outputs()) * read;
            sums[turn][k] = 0;
        }
    }
    for (int first = 0; first < g.taps(); first += blocking.taps) {
        const int taps = g.taps() - first < blocking.taps ? g.taps() - first : blocking.taps;
        __syncthreads();
        table.fill(operands, place, first, taps, filters.width);
        __syncthreads();
        for (int at = lane; at < taps * PIXELS; at += PIXELS) {
            const int bits = table.scope[at];
            if (bits < 0) continue;
            const auto weights = table.of_scope[at];
#pragma unroll
            for (int turn = 0; turn < TURNS; ++turn) {
                const int own = first_output + turn * WARPS * OUTPUTS;
                if (own >= place.count) break;
                auto tap = filters.template at<OUTPUTS>(table.position(bits), 0, own);
                if constexpr (KERNEL) {
#pragma unroll
                    for (int k = 0; k < OUTPUTS; ++k) tap.element[k] *= weights.element[0];
#pragma unroll
                    for (int corner = 1; corner < 4; ++corner) {
                        const auto loaded = filters.template at<OUTPUTS>(table.position(bits), corner, own);
#pragma unroll
                        for (int k = 0; k < OUTPUTS; ++k) tap.element[k] += weights.element[corner] * loaded.element[k];
                    }
                }
#pragma unroll
                for (int k = 0; k < OUTPUTS; ++k) {
                    sums[turn][k] += tap.element[k] * table.sample(planes[turn][k], g.W, at, bits);
                }
            }
        }
    }
    if (place.first_pixel + lane >= place.extent) return;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma unroll
        for (int k = 0; k < OUTPUTS; ++k) {
            const int own = first_output + turn * WARPS * OUTPUTS + k, o = place.first + own;
            if (own >= place.count) continue;
            const Acc sum = sums[turn][k] + (bias ? load(bias + o) : Acc(0));
            store(out + (place.n * g.O + o) * place.extent + place.first_pixel + lane, sum);
        }
    }
}

// The gradient of the kernel offsets, where each channel has a single output: the share of a block's channels, in
// partial[block of its run][gradient]. In shared memory each warp has a sum for each coordinate of each pixel.
template <typename T, bool DATA>
__global__ void __launch_bounds__(PIXELS * WARPS, 1)
    deform_scope_backward_kernel(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ weight,
                                 const T* __restrict__ kernel_offset, const T* __restrict__ data_offset,
                                 const T* __restrict__ mask, accumulator<T>* __restrict__ partial, DeformGeometry<int> g,
                                 Blocking blocking, int first_image, int images) {
    using Acc = accumulator<T>;
    constexpr int OUTPUTS = 4;
    extern __shared__ __align__(32) unsigned char memory[];
    const Operands<T, int> operands{g, nullptr, nullptr, kernel_offset, data_offset, mask};
    Place place(blocking, g.O, g.pixels(), int(blockIdx.x));
    if (place.n >= images) return;  // a whole block
    const int image = place.n;
    place.n += first_image;
    const Filters<Acc> filters(memory, weight, g, place, blocking.outputs, OUTPUTS);
    const Table<T, Taps::READ_SLOPES, DATA> table(filters.end(), blocking.taps);
    Acc* of_warps = reinterpret_cast<Acc*>(table.plane + blocking.taps * PIXELS);
    const int lane = threadIdx.x % PIXELS, warp = threadIdx.x / PIXELS, number = place.first_pixel + lane;
    const T* planes = x + (place.n * g.C + place.first) * g.plane();
    Acc grads[TURNS][OUTPUTS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma unroll
        for (int k = 0; k < OUTPUTS; ++k) {
            const int own = (turn * WARPS + warp) * OUTPUTS + k;
            const bool there = own < place.count && number < place.extent;
            grads[turn][k] = there ? load(grad_out + (place.n * g.O + place.first + own) * place.extent + number) : Acc(0);
        }
    }
    const int in_block = g.C / g.Gk, block = place.first / in_block;
    const int part = (place.first - block * in_block) / blocking.run * divide_up(blocking.run, blocking.outputs) +
                     place.first % blocking.run / blocking.outputs;
    Acc* gradient = partial + ((part * images + image) * g.Gk + block) * g.taps() * 2 * g.pixels();
    for (int first = 0; first < g.taps(); first += blocking.taps) {
        const int taps = g.taps() - first < blocking.taps ? g.taps() - first : blocking.taps;
        __syncthreads();
        table.fill(operands, place, first, taps, filters.width);
        __syncthreads();
        for (int at = lane; at < taps * PIXELS; at += PIXELS) {
            const int bits = table.scope[at];
            Acc sums[2] = {};
            if (bits >= 0) {
                const auto weights = table.of_scope[at];
#pragma unroll
                for (int turn = 0; turn < TURNS; ++turn) {
                    const int own = (turn * WARPS + warp) * OUTPUTS;
                    if (own >= place.count) break;
                    Vector<Acc, OUTPUTS> loaded[4];
#pragma unroll
                    for (int corner = 0; corner < 4; ++corner) {
                        loaded[corner] = filters.template at<OUTPUTS>(table.position(bits), corner, own);
                    }
#pragma unroll
                    for (int k = 0; k < OUTPUTS; ++k) {
                        if (own + k >= place.count) break;
                        const Acc sample = table.sample(planes + (own + k) * g.plane(), g.W, at, bits);
                        const auto value = [&](int a, int b) { return loaded[2 * a + b].element[k]; };
                        const auto along = [&](int axis) { return weights.element + 2 * axis; };
                        if (table.has(bits, 0)) {
                            const Acc slope = along(0)[0] * (value(1, 0) - value(0, 0)) +
                                              along(0)[1] * (value(1, 1) - value(0, 1));
                            sums[0] += sample * (grads[turn][k] * slope);
                        }
                        if (table.has(bits, 1)) {
                            const Acc slope = along(1)[0] * (value(0, 1) - value(0, 0)) +
                                              along(1)[1] * (value(1, 1) - value(1, 0));
                            sums[1] += sample * (grads[turn][k] * slope);
                        }
                    }
                }
            }
#pragma unroll
            for (int axis = 0; axis < 2; ++axis) {
                of_warps[(axis * WARPS + warp) * blocking.taps * PIXELS + at] = sums[axis];
            }
        }
        __syncthreads();
        for (int at = threadIdx.x; at < 2 * taps * PIXELS; at += PIXELS * WARPS) {
            const int t = at / PIXELS % taps, axis = at / PIXELS / taps, its_number = place.first_pixel + at % PIXELS;
            if (its_number >= place.extent) continue;
            Acc sum = 0;
            for (int other = 0; other < WARPS; ++other) {
                sum += of_warps[((axis * WARPS + other) * blocking.taps + t) * PIXELS + at % PIXELS];
            }
            gradient[((first + t) * 2 + axis) * g.pixels() + its_number] = sum;
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
    const Table<T, Taps::READ, DATA> table(sums + blocking.outputs * scope_size * 32, blocking.taps);
    const auto own = [&](int turn) { return sums + (turn * warps + warp) * scope_size * 32 + lane; };
    Place place(blocking, g.O, g.pixels(), output_block);
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
        place = Place(blocking, g.O, g.pixels(), tile * blocks + output_block);
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
                    const int bits = table.scope[at];
                    if (bits < 0) continue;
                    const Acc term = grad * table.sample(plane, g.W, at, bits);
                    const auto weights = table.of_scope[at];
                    Acc* sum = own(turn) + (table.position(bits) - g.Sw - 1) * 32;
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        if (table.has(bits, k)) sum[(k / 2 * g.Sw + k % 2) * 32] += weights.element[k] * term;
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
