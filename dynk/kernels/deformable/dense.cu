// deformable_conv2d as matrix products. What each position of the scope is multiplied with, the columns, is formed once in
// the workspace, for as many output pixels as it holds: the taps are moved to the side of the image (DK Eq. 12). Without
// kernel offsets the columns are the samples of the taps.
//
// Without kernel offsets a tap that is skipped is a 0 in a product, which is right unless it meets NaN or infinity. So a sum
// that is not finite is then formed again, term by term.
#include "cuda_products.cuh"
#include "deformable.cuh"

using namespace dynk;

// columns[channel, position in the scope, pixel of the part]: a thread has a pixel and up to `each` channels of the `run` that
// lie in the same blocks of offsets. Its positions are added up in shared memory, a row of threads for each, or in place where
// no shared memory is given.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    deform_columns(const T* __restrict__ x, const T* __restrict__ kernel_offset, const T* __restrict__ data_offset,
                   const T* __restrict__ mask, accumulator<T>* __restrict__ columns, DeformGeometry<Index> g,
                   Part<Index> part, Index run, Index each, Index in_shared) {
    using Acc = accumulator<T>;
    extern __shared__ __align__(16) unsigned char memory[];
    const Operands<T, Index> operands{g, x, nullptr, kernel_offset, data_offset, mask};
    long long rest = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const Index number = Index(take(rest, (long long)part.pixels));
    const Index within = Index(take(rest, (long long)divide_up(run, each))) * each;
    if (rest >= g.C / run) return;
    const Index first = Index(rest) * run + within, count = run - within < each ? run - within : each;
    const Pixel<Index> pixel(g, part.first + number);
    const Index data_block = operands.data_block(first), kernel_block = operands.kernel_block(first);
    Acc* column = columns + first * g.scope() * part.pixels + number;
    Acc* sums = in_shared ? reinterpret_cast<Acc*>(memory) + threadIdx.x : column;
    const Index step = in_shared ? Index(blockDim.x) : part.pixels;
    for (Index k = 0; k < count * g.scope(); ++k) sums[k * step] = 0;
    for (Index t = 0; t < g.taps(); ++t) {
        const auto data = operands.data_point(pixel, data_block, t);
        const auto kernel = operands.kernel_point(pixel, kernel_block, t);
        if (!data.read() || !kernel.read()) continue;
        const Acc shade = operands.mask_of(pixel, data_block, t);
        for (Index c = 0; c < count; ++c) {
            const Acc sample = shade * data.value(operands.image(pixel.n, first + c));
            Acc* own = sums + c * g.scope() * step;
            if (!g.has_kernel) {
                own[t * step] = sample;
                continue;
            }
            if (kernel.unknown()) {
                own[0] = nan("");
                continue;
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const int a = k / 2, b = k % 2;
                if (!kernel.has(a, b)) continue;
                own[((kernel.y.cell + a) * g.Sw + kernel.x.cell + b) * step] += kernel.weight(a, b) * sample;
            }
        }
    }
    if (in_shared) {
        for (Index k = 0; k < count * g.scope(); ++k) column[k * part.pixels] = sums[k * step];
    }
}

// Rows are outputs, columns pixels of the part, the depth inputs x scope.
template <typename T, typename Index>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    deform_forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ kernel_offset,
                   const T* __restrict__ data_offset, const T* __restrict__ mask, const T* __restrict__ bias,
                   const accumulator<T>* __restrict__ columns, T* __restrict__ out, DeformGeometry<Index> g,
                   Part<Index> part) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Operands<T, Index> operands{g, x, weight, kernel_offset, data_offset, mask};
    const Index depth = g.inputs() * g.scope();
    const Tile<Index> tile(g.outputs(), part.pixels, g.groups);
    const Index number = tile.column + strip_along();
    const T* filters = weight + tile.group * g.outputs() * depth;
    const Acc* group = columns + tile.group * depth * part.pixels;
    Sums<Acc> total;
    multiply<T>(total, strips, Index(0), depth, [&](Strips<Acc>& to, Index first) {
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index o = tile.row + depth_along(l), k = first + depth_depth();
            to.rows[depth_depth()][depth_along(l)] = o < g.outputs() && k < depth ? load(filters + o * depth + k) : Acc(0);
        }
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index k = first + strip_depth(l);
            to.columns[strip_depth(l)][strip_along()] =
                number < part.pixels && k < depth ? group[k * part.pixels + number] : Acc(0);
        }
    });
    each_sum(total, [&](int row, int column, Acc sum, bool again) {
        const Index in_group = tile.row + row, its_number = tile.column + column;
        if (in_group >= g.outputs() || its_number >= part.pixels) return;
        const Index o = tile.group * g.outputs() + in_group;
        const Pixel<Index> pixel(g, part.first + its_number);
        if (again) sum = operands.output(pixel, o);
        if (g.has_bias) sum += load(bias + o);
        store(out + (pixel.n * g.O + o) * g.pixels() + pixel.at, sum);
    }, !g.has_kernel);
}

// The gradient of the columns. Rows are inputs x scope of the part's channels, columns its pixels, the depth outputs.
template <typename T, typename Index>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    deform_backward_columns(const T* __restrict__ grad_out, const T* __restrict__ weight,
                            accumulator<T>* __restrict__ grad_columns, DeformGeometry<Index> g, Part<Index> part) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Index filter = g.inputs() * g.scope();
    Tile<Index> tile(filter, part.pixels, g.groups);
    // Rows count from the first channel of the group; those outside the part are not stored.
    const Index begin = part.first_channel * g.scope() - tile.group * filter, end = begin + part.channels * g.scope();
    if (tile.row >= end || tile.row + TILE <= begin) return;  // a whole block
    const Index number = tile.column + strip_along(), k = tile.row + strip_along();
    const bool is_pixel = number < part.pixels;
    const Pixel<Index> pixel(g, part.first + (is_pixel ? number : 0));
    const T* grads = grad_out + (pixel.n * g.O + tile.group * g.outputs()) * g.pixels() + pixel.at;
    const T* filters = weight + tile.group * g.outputs() * filter + k;
    Sums<Acc> total;
    multiply<T, true>(total, strips, Index(0), g.outputs(), [&](Strips<Acc>& to, Index first) {
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index o = first + strip_depth(l);
            to.rows[strip_depth(l)][strip_along()] = k < filter && o < g.outputs() ? load(filters + o * filter) : Acc(0);
            to.columns[strip_depth(l)][strip_along()] =
                is_pixel && o < g.outputs() ? load(grads + o * g.pixels()) : Acc(0);
        }
    });
    each_place([&](int r, int c) {
        const Index row = tile.row + first_row() + r, its_number = tile.column + first_column() + c;
        if (row >= filter || row < begin || row >= end || its_number >= part.pixels) return;
        grad_columns[(row - begin) * part.pixels + its_number] = total[r][c];
    });
}

// Rows are outputs, columns inputs x scope, the depth a segment of the part's pixels. `out` is the gradient, or the workspace
// of partial sums: each of its parts gets a segment of every part of the pixels.
template <typename T, typename Index, typename Out>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    deform_backward_weight(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ kernel_offset,
                           const T* __restrict__ data_offset, const T* __restrict__ mask,
                           const accumulator<T>* __restrict__ columns, Out* __restrict__ out, DeformGeometry<Index> g,
                           Part<Index> part, Index segment) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Operands<T, Index> operands{g, x, nullptr, kernel_offset, data_offset, mask};
    const Index filter = g.inputs() * g.scope();
    const Tile<Index> tile(g.outputs(), filter, g.groups);
    const Index begin = tile.part * segment < part.pixels ? tile.part * segment : part.pixels;
    const Index end = part.pixels - begin < segment ? part.pixels : begin + segment;
    const Acc* group = columns + tile.group * filter * part.pixels;
    Sums<Acc> total;
    multiply<T>(total, strips, begin, end, [&](Strips<Acc>& to, Index first) {
        const Index number = first + depth_depth();
        const Pixel<Index> pixel(g, part.first + (number < end ? number : begin));
        const T* grads = grad_out + (pixel.n * g.O + tile.group * g.outputs()) * g.pixels() + pixel.at;
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index o = tile.row + depth_along(l), k = tile.column + depth_along(l);
            to.rows[depth_depth()][depth_along(l)] =
                o < g.outputs() && number < end ? load(grads + o * g.pixels()) : Acc(0);
            to.columns[depth_depth()][depth_along(l)] =
                k < filter && number < end ? group[k * part.pixels + number] : Acc(0);
        }
    });
    each_sum(total, [&](int row, int column, Acc sum, bool again) {
        const Index in_group = tile.row + row, k = tile.column + column;
        if (in_group >= g.outputs() || k >= filter) return;
        const Index o = tile.group * g.outputs() + in_group;
        if (again) {
            Index input = k;
            const Index position = take(input, g.scope());
            sum = operands.template grad_weight<1>(grad_out, o, input, position / g.Sw, position % g.Sw,
                                                   part.first + begin, part.first + end);
        }
        Out* element = out + (tile.part * g.O + o) * filter + k;
        if (part.first > 0) sum += load(element);
        store(element, sum);
    }, !g.has_kernel);
}
