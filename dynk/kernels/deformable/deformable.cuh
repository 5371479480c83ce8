// What the kernels of deformable_conv2d and sample_kernel share: points between positions, by the rules of geometry.py, and
// every result term by term.
#pragma once

#include "cuda_common.cuh"

namespace dynk {

constexpr int FAR = 1 << 30;  // an offset beyond this lies outside, whatever it moves

// The fields of geometry.DeformGeometry, in its order.
template <typename Index>
struct DeformGeometry {
    Index N, C, O, H, W, Sh, Sw, kh, kw, Ho, Wo, Gk, Gd, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups, clip,
        has_kernel, has_data, has_mask, has_bias;

    __device__ __forceinline__ Index taps() const { return kh * kw; }
    __device__ __forceinline__ Index scope() const { return Sh * Sw; }       // elements of a stored filter
    __device__ __forceinline__ Index inputs() const { return C / groups; }   // of a group
    __device__ __forceinline__ Index outputs() const { return O / groups; }  // of a group
    __device__ __forceinline__ Index pixels() const { return Ho * Wo; }      // of an output plane
    __device__ __forceinline__ Index plane() const { return H * W; }         // elements of a plane of the image
};

// ---- points ----------------------------------------------------------------------------------------------------------

// A coordinate of a point: its cell, and how far beyond the cell it lies.
template <typename Acc, typename Index>
struct Axis {
    Index cell, extent;
    Acc fraction;
    bool read, moves, unknown;  // it has values; they have derivatives; it is NaN
    bool between;               // the next position is a neighbour too

    Axis() = default;

    // A position that nothing moves.
    __device__ __forceinline__ Axis(Index position, Index extent_)
        : cell(position), extent(extent_), fraction(0), read(inside(position, extent_)), moves(false), unknown(false),
          between(false) {}

    // base + shift; outside the positions it is clamped, or not read.
    __device__ __forceinline__ Axis(Index base, Acc shift, Index extent_, bool clip)
        : extent(extent_), between(true) {
        unknown = shift != shift;
        const bool far = shift > Acc(FAR) || shift < Acc(-FAR);
        const Acc near = unknown || far ? Acc(0) : shift;
        const Acc whole = floor(near);
        fraction = near - whole;
        cell = far ? (shift > 0 ? extent : Index(-2)) : base + Index(whole);
        if (clip) {
            moves = cell >= 0 && cell < extent - 1;
            if (!moves) {
                fraction = 0;
                cell = cell < 0 ? Index(0) : extent - 1;
            }
            read = true;
        } else {
            moves = cell >= -1 && cell < extent;
            read = moves && !(cell == -1 && fraction == 0);
        }
        if (unknown) read = moves = true;
    }

    __device__ __forceinline__ bool has(int neighbour) const {
        return inside(cell + neighbour, extent) && (neighbour == 0 || between);
    }
    __device__ __forceinline__ Acc weight(int neighbour) const { return neighbour ? fraction : 1 - fraction; }
};

template <typename Acc, typename Index>
struct Point {
    Axis<Acc, Index> y, x;

    __device__ __forceinline__ bool read() const { return y.read && x.read; }
    __device__ __forceinline__ bool moves_y() const { return y.moves && x.read; }  // it has a derivative by y
    __device__ __forceinline__ bool moves_x() const { return y.read && x.moves; }
    __device__ __forceinline__ bool unknown() const { return y.unknown || x.unknown; }
    __device__ __forceinline__ bool has(int a, int b) const { return y.has(a) && x.has(b); }
    __device__ __forceinline__ Acc weight(int a, int b) const { return y.weight(a) * x.weight(b); }

    // The bilinear value of what at(row, column) loads, and its derivatives. Only neighbours that are there are loaded.
    template <typename At>
    __device__ __forceinline__ Acc value(At at) const {
        return sum(read(), at, [&](int a, int b) { return weight(a, b); });
    }
    template <typename At>
    __device__ __forceinline__ Acc slope_y(At at) const {
        return slope(moves_y(), [&](int b) { return x.weight(b) * difference(at, 0, b, 1, b); });
    }
    template <typename At>
    __device__ __forceinline__ Acc slope_x(At at) const {
        return slope(moves_x(), [&](int a) { return y.weight(a) * difference(at, a, 0, a, 1); });
    }

  private:
    // Differences first: those between equal values are 0.
    template <typename Side>
    __device__ __forceinline__ Acc slope(bool there, Side side) const {
        if (!there) return 0;
        return unknown() ? Acc(nan("")) : side(0) + side(1);
    }
    template <typename At>
    __device__ __forceinline__ Acc difference(At at, int a, int b, int next_a, int next_b) const {
        const Acc after = has(next_a, next_b) ? at(y.cell + next_a, x.cell + next_b) : Acc(0);
        return has(a, b) ? after - at(y.cell + a, x.cell + b) : after;
    }
    template <typename At, typename Weight>
    __device__ __forceinline__ Acc sum(bool there, At at, Weight weight) const {
        if (!there) return 0;
        if (unknown()) return nan("");
        Acc total = 0;
#pragma unroll
        for (int a = 0; a < 2; ++a) {
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                if (has(a, b)) total += weight(a, b) * at(y.cell + a, x.cell + b);
            }
        }
        return total;
    }
};

// The point of tap (i, j) in the scope of a stored filter; `offset` is that of its y, `step` elements before that of x.
template <typename T, typename Index>
__device__ __forceinline__ Point<accumulator<T>, Index> point_of_scope(const T* offset, Index step, Index i, Index j,
                                                                       Index Sh, Index Sw, Index kh, Index kw, bool clip) {
    using Acc = accumulator<T>;
    const auto half = [](Index difference) { return difference & 1 ? Acc(0.5) : Acc(0); };
    return {{i + ((Sh - kh) >> 1), load(offset) + half(Sh - kh), Sh, clip},
            {j + ((Sw - kw) >> 1), load(offset + step) + half(Sw - kw), Sw, clip}};
}

// ---- the operands of a call ------------------------------------------------------------------------------------------

// An output pixel: its image, its number in a plane, and its place there.
template <typename Index>
struct Pixel {
    Index n, at, y, x;

    // `number` counts the pixels of the batch.
    __device__ __forceinline__ Pixel(const DeformGeometry<Index>& g, Index number) {
        Index rest = number;
        x = take(rest, g.Wo);
        y = take(rest, g.Ho);
        n = rest;
        at = number - n * g.pixels();
    }
    __device__ __forceinline__ Pixel(const DeformGeometry<Index>& g, Index n_, Index at_) : n(n_), at(at_) {
        y = at / g.Wo;
        x = at - y * g.Wo;
    }
};

template <typename T, typename Index>
struct Operands {
    using Acc = accumulator<T>;
    const DeformGeometry<Index>& g;
    const T *x, *weight, *kernel_offset, *data_offset, *mask;

    __device__ __forceinline__ Index data_block(Index c) const { return c / (g.C / g.Gd); }
    __device__ __forceinline__ Index kernel_block(Index c) const { return c / (g.C / g.Gk); }

    // Where tap t of a block reads the image.
    __device__ __forceinline__ Point<Acc, Index> data_point(const Pixel<Index>& pixel, Index block, Index t) const {
        const Index i = t / g.kw, j = t - i * g.kw;
        const Index y = pixel.y * g.stride_h - g.pad_h + i * g.dil_h, at = pixel.x * g.stride_w - g.pad_w + j * g.dil_w;
        if (!g.has_data) return {{y, g.H}, {at, g.W}};
        const T* offset = data_offset + ((pixel.n * g.Gd + block) * g.taps() + t) * 2 * g.pixels() + pixel.at;
        return {{y, load(offset), g.H, false}, {at, load(offset + g.pixels()), g.W, false}};
    }

    // Where it reads the stored filters.
    __device__ __forceinline__ Point<Acc, Index> kernel_point(const Pixel<Index>& pixel, Index block, Index t) const {
        const Index i = t / g.kw, j = t - i * g.kw;
        if (!g.has_kernel) return {{i, g.Sh}, {j, g.Sw}};
        const T* offset = kernel_offset + ((pixel.n * g.Gk + block) * g.taps() + t) * 2 * g.pixels() + pixel.at;
        return point_of_scope(offset, g.pixels(), i, j, g.Sh, g.Sw, g.kh, g.kw, g.clip);
    }

    __device__ __forceinline__ Acc mask_of(const Pixel<Index>& pixel, Index block, Index t) const {
        if (!g.has_mask) return 1;
        return load(mask + ((pixel.n * g.Gd + block) * g.taps() + t) * g.pixels() + pixel.at);
    }

    // Loads of a plane of the image, and of the filter from an input of its group to an output.
    __device__ __forceinline__ auto image(Index n, Index c) const {
        return [plane = x + (n * g.C + c) * g.plane(), W = g.W](Index row, Index column) {
            return load(plane + row * W + column);
        };
    }
    __device__ __forceinline__ auto filter(Index o, Index input) const {
        return [filter = weight + (o * g.inputs() + input) * g.scope(), Sw = g.Sw](Index row, Index column) {
            return load(filter + row * Sw + column);
        };
    }

    // ---- term by term: where a skipped tap takes no part -------------------------------------------------------------

    // An element of the output, without its bias.
    __device__ Acc output(const Pixel<Index>& pixel, Index o) const {
        const Index first = o / g.outputs() * g.inputs();
        Chains<Acc, 1, 3> sums;
        for (Index input = 0; input < g.inputs(); ++input) {
            const Index c = first + input, block = data_block(c);
            for (Index t = 0; t < g.taps(); ++t) {
                const auto data = data_point(pixel, block, t);
                const auto kernel = kernel_point(pixel, kernel_block(c), t);
                if (data.read() && kernel.read()) {
                    sums.chain[0] += kernel.value(filter(o, input)) *
                                     (mask_of(pixel, block, t) * data.value(image(pixel.n, c)));
                }
                sums.step();
            }
        }
        return sums.sum(0);
    }

    // The share of every STEP-th output pixel in [begin, end) of the batch in an element of the gradient of the weight:
    // row and column are of its scope.
    template <int STEP>
    __device__ Acc grad_weight(const T* grad_out, Index o, Index input, Index row, Index column, Index begin,
                               Index end) const {
        const Index c = o / g.outputs() * g.inputs() + input, block = data_block(c);
        const Index only = g.has_kernel ? Index(-1) : row * g.kw + column;
        Chains<Acc, 1, 3> sums;
        for (Index number = begin; number < end; number += STEP) {
            const Pixel<Index> pixel(g, number);
            const Acc grad = load(grad_out + (pixel.n * g.O + o) * g.pixels() + pixel.at);
            for (Index t = 0; t < g.taps(); ++t) {
                if (only >= 0 && t != only) continue;
                const auto kernel = kernel_point(pixel, kernel_block(c), t);
                const auto data = data_point(pixel, block, t);
                if (!data.read() || !kernel.read() || kernel.unknown()) continue;
                const Index a = row - kernel.y.cell, b = column - kernel.x.cell;
                if (a < 0 || a > 1 || b < 0 || b > 1 || !kernel.has(int(a), int(b))) continue;
                const Acc sample = mask_of(pixel, block, t) * data.value(image(pixel.n, c));
                sums.chain[0] += kernel.weight(int(a), int(b)) * (grad * sample);
                sums.step();
            }
        }
        return sums.sum(0);
    }
};

// The gradient of what tap t of channel c contributes to output pixel `pixel`, and that of the point of its filter, for
// groups of one channel: sums over the outputs of the channel.
template <typename T, typename Index>
struct DepthwiseGradient {
    using Acc = accumulator<T>;
    const Operands<T, Index>& operands;
    const T* grad_out;

    __device__ __forceinline__ Acc tap(const Pixel<Index>& pixel, const Point<Acc, Index>& kernel, Index c, Index) const {
        return kernel.read() ? sum(pixel, c, [&](auto filter) { return kernel.value(filter); }) : Acc(0);
    }
    __device__ __forceinline__ Acc slope_y(const Pixel<Index>& pixel, const Point<Acc, Index>& kernel, Index c) const {
        return sum(pixel, c, [&](auto filter) { return kernel.slope_y(filter); });
    }
    __device__ __forceinline__ Acc slope_x(const Pixel<Index>& pixel, const Point<Acc, Index>& kernel, Index c) const {
        return sum(pixel, c, [&](auto filter) { return kernel.slope_x(filter); });
    }

  private:
    template <typename Of>
    __device__ __forceinline__ Acc sum(const Pixel<Index>& pixel, Index c, Of of) const {
        const auto& g = operands.g;
        Chains<Acc, 1, 3> sums;
        for (Index o = c * g.outputs(); o < (c + 1) * g.outputs(); ++o) {
            const Acc grad = load(grad_out + (pixel.n * g.O + o) * g.pixels() + pixel.at);
            sums.chain[0] += grad * of(operands.filter(o, Index(0)));
            sums.step();
        }
        return sums.sum(0);
    }
};

// The part of a call whose columns are in the workspace: output pixels of the batch, and channels.
template <typename Index>
struct Part {
    Index first, pixels, first_channel, channels;
};

// The same for any groups, from the gradient of the columns: grads[channel of the part, position in the scope, pixel of
// the part].
template <typename T, typename Index>
struct ColumnsGradient {
    using Acc = accumulator<T>;
    const Operands<T, Index>& operands;
    const Acc* grads;
    const Part<Index>& part;

    __device__ __forceinline__ Acc tap(const Pixel<Index>& pixel, const Point<Acc, Index>& kernel, Index c, Index t) const {
        return kernel.value(scope(pixel, c));
    }
    __device__ __forceinline__ Acc slope_y(const Pixel<Index>& pixel, const Point<Acc, Index>& kernel, Index c) const {
        return kernel.slope_y(scope(pixel, c));
    }
    __device__ __forceinline__ Acc slope_x(const Pixel<Index>& pixel, const Point<Acc, Index>& kernel, Index c) const {
        return kernel.slope_x(scope(pixel, c));
    }

  private:
    __device__ __forceinline__ auto scope(const Pixel<Index>& pixel, Index c) const {
        const auto& g = operands.g;
        const Index number = pixel.n * g.pixels() + pixel.at - part.first;
        return [at = grads + (c - part.first_channel) * g.scope() * part.pixels + number, step = part.pixels,
                Sw = g.Sw](Index row, Index column) { return at[(row * Sw + column) * step]; };
    }
};

}  // namespace dynk
