// What the kernels of scope.cu share: where the taps of a block's pixels lie, formed once for all of its channels.
#pragma once

#include "cuda_tiles.cuh"
#include "deformable.cuh"

namespace dynk {

constexpr int PIXELS = 32, WARPS = 8;

// What a block holds: `run` outputs lie in the same blocks of offsets, `outputs` of them are those of a block of threads;
// `taps` are in shared memory at a time.
struct Blocking {
    int run, outputs, taps;

    // Of threads, that have the same pixels.
    __device__ __forceinline__ int blocks(int O) const { return O / run * divide_up(run, outputs); }
};

// Outputs and pixels of a block of threads: of a plane of `extent` pixels.
struct Place {
    int first, count, first_pixel, extent, n;

    __device__ __forceinline__ Place(const Blocking& blocking, int O, int extent_, int block) : extent(extent_) {
        const int output_block = take(block, blocking.blocks(O)), in_run = divide_up(blocking.run, blocking.outputs);
        const int within = output_block % in_run * blocking.outputs;
        first = output_block / in_run * blocking.run + within;
        count = blocking.run - within < blocking.outputs ? blocking.run - within : blocking.outputs;
        first_pixel = take(block, divide_up(extent, PIXELS)) * PIXELS;
        n = block;
    }
};

// What pixels are, and what is held of a tap in the scope: output pixels that read the image, with the weights of the four
// neighbours or of the derivatives; or pixels of the image, of which output pixels read one each, without data offsets.
enum class Taps { READ, READ_SLOPES, READERS };

// Where the taps of a block's pixels lie, in shared memory. A skipped tap has a negative `scope`.
template <typename T, Taps TAPS, bool DATA>
struct Table {
    static_assert(TAPS != Taps::READERS || !DATA, "data offsets leave no such output pixel");
    using Acc = accumulator<T>;
    using Weights = Vector<Acc, 4>;
    Weights *of_scope, *of_plane;  // in a plane there is one if nothing moves its taps
    Acc* mask;
    int *scope, *plane;  // the numbers of the first neighbours, in `scope` above bits

    __device__ __forceinline__ Table(void* memory, int taps) {
        of_scope = static_cast<Weights*>(memory);
        of_plane = of_scope + taps * PIXELS;
        mask = reinterpret_cast<Acc*>(of_plane + (DATA ? taps * PIXELS : 0));
        scope = reinterpret_cast<int*>(mask + taps * PIXELS);
        plane = scope + taps * PIXELS;
    }

    // Forms taps [first, first + taps). Positions of the scope are numbered in rows of `width`, from one row above and one
    // column before on.
    __device__ __forceinline__ void fill(const Operands<T, int>& operands, const Place& place, int first, int taps,
                                         int width) const {
        const int c = place.first / operands.g.outputs();
        for (int at = threadIdx.x; at < taps * PIXELS; at += blockDim.x) {
            const int number = place.first_pixel + at % PIXELS;
            scope[at] = -1;
            if (number < place.extent) fill_tap(operands, c, place.n, number, first + at / PIXELS, at, width);
        }
    }

    // The masked sample of a tap in a plane.
    __device__ __forceinline__ Acc sample(const T* from, int W, int at, int bits) const {
        from += plane[at];
        if constexpr (!DATA) return mask[at] * load(from);
        const Weights weights = of_plane[at];
        Acc sum = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const Acc value = bits >> k & 1 ? load(from + k / 2 * W + k % 2) : Acc(0);
            sum += weights.element[k] * value;
        }
        return mask[at] * sum;
    }

    // Which of the four neighbours in the scope there are; with slopes, along which axes there is one.
    __device__ __forceinline__ static bool has(int bits, int k) { return bits >> k & 16; }
    __device__ __forceinline__ static int position(int bits) { return bits >> 8; }

  private:
    __device__ __forceinline__ void fill_tap(const Operands<T, int>& operands, int c, int n, int number, int t, int at,
                                             int width) const {
        const auto& g = operands.g;
        int anchor = number, bits = 0;
        if constexpr (TAPS == Taps::READERS) {
            const int y = anchor_of(number / g.W, t / g.kw * g.dil_h - g.pad_h, g.stride_h, g.Ho);
            const int x = anchor_of(number % g.W, t % g.kw * g.dil_w - g.pad_w, g.stride_w, g.Wo);
            if (y < 0 || x < 0) return;
            anchor = y * g.Wo + x;
        }
        const Pixel<int> pixel(g, n * g.pixels() + anchor);
        const auto kernel = operands.kernel_point(pixel, operands.kernel_block(c), t);
        const bool unknown = kernel.unknown();
        if constexpr (TAPS == Taps::READERS) {
            plane[at] = anchor;
        } else {
            const auto data = operands.data_point(pixel, operands.data_block(c), t);
            if (!data.read()) return;
            plane[at] = data.unknown() ? 0 : data.y.cell * g.W + data.x.cell;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (DATA) of_plane[at].element[k] = data.unknown() ? Acc(nan("")) : data.weight(k / 2, k % 2);
                if (!data.unknown() && data.has(k / 2, k % 2)) bits |= 1 << k;
            }
        }
        if constexpr (TAPS == Taps::READ_SLOPES) {
            if (!kernel.moves_y() && !kernel.moves_x()) return;
            bits |= (kernel.moves_y() ? 16 : 0) | (kernel.moves_x() ? 32 : 0);
        } else {
            if (!kernel.read()) return;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int a = k / 2, b = k % 2;
            const Acc weight = TAPS != Taps::READ_SLOPES ? kernel.weight(a, b) : a ? kernel.y.weight(b) : kernel.x.weight(b);
            of_scope[at].element[k] = unknown ? Acc(nan("")) : weight;
            if (TAPS != Taps::READ_SLOPES && !unknown && kernel.has(a, b)) bits |= 16 << k;
        }
        mask[at] = operands.mask_of(pixel, operands.data_block(c), t);
        scope[at] = (unknown ? 0 : (kernel.y.cell + 1) * width + kernel.x.cell + 1) << 8 | bits;
    }
};

// The filters of a block's outputs in shared memory: `stride` elements of all outputs for each position of the scope, and of
// the ring around it, which is 0.
template <typename Acc>
struct Filters {
    Acc* elements;
    int width, height, stride;

    template <typename T>
    __device__ __forceinline__ Filters(void* memory, const T* weight, const DeformGeometry<int>& g, const Place& place,
                                       int outputs, int padding)
        : elements(static_cast<Acc*>(memory)), width(g.Sw + 2), height(g.Sh + 2), stride(outputs + padding) {
        for (int at = threadIdx.x; at < width * height * outputs; at += blockDim.x) {
            int k = at;
            const int column = take(k, width) - 1, row = take(k, height) - 1;
            const bool is_weight = k < place.count && inside(row, g.Sh) && inside(column, g.Sw);
            elements[at % (width * height) * stride + k] =
                is_weight ? load(weight + (place.first + k) * g.scope() + row * g.Sw + column) : Acc(0);
        }
    }

    __device__ __forceinline__ Acc* end() const { return elements + width * height * stride; }

    // The elements of neighbouring outputs from `first` on, at neighbour `corner` of a position.
    template <int COUNT>
    __device__ __forceinline__ Vector<Acc, COUNT> at(int position, int corner, int first) const {
        const int number = position + corner / 2 * width + corner % 2;
        return *reinterpret_cast<const Vector<Acc, COUNT>*>(elements + number * stride + first);
    }
};

}  // namespace dynk
