// adaptive_dilation_conv2d as matrix products over shared memory: a block multiplies strips of TILE rows and TILE columns,
// DEPTH at a time, and mixes the columns as it loads them: the matrix of columns is never stored.
//
// A factor that no dilation sees is a 0 in a product, which is right unless it meets NaN or infinity. So a sum that is not
// finite is formed again, term by term.
#include "cuda_products.cuh"
#include "dilation.cuh"

using namespace dynk;

// Rows are outputs, columns pixels, the depth inputs x taps.
template <typename T, typename Index>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    dilation_forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ shares,
                     const int* __restrict__ narrow, const long long* __restrict__ wide, const T* __restrict__ bias,
                     T* __restrict__ out, DilationGeometry<Index> g) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Choices<T> choices{shares, narrow, wide};
    const Index pixels = g.N * g.pixels(), depth = g.inputs() * g.taps();
    const Tile<Index> tile(g.outputs(), pixels, g.groups);
    const Index number = tile.column + strip_along();
    const Pixel<T, Index> pixel(g, choices, number < pixels ? number : 0);
    const T* planes = x + (pixel.n * g.C + tile.group * g.inputs()) * g.H * g.W;
    const T* filters = weight + tile.group * g.outputs() * depth;
    Sums<Acc> total;
    multiply<T>(total, strips, Index(0), depth, [&](Strips<Acc>& to, Index first) {
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index o = tile.row + depth_along(l), k = first + depth_depth();
            to.rows[depth_depth()][depth_along(l)] = o < g.outputs() && k < depth ? load(filters + o * depth + k) : Acc(0);
        }
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index k = first + strip_depth(l), c = k / g.taps(), t = k - c * g.taps(), i = t / g.kw;
            bool seen;
            to.columns[strip_depth(l)][strip_along()] =
                number < pixels && k < depth ? pixel.column(g, planes + c * g.H * g.W, i, t - i * g.kw, seen) : Acc(0);
        }
    });
    each_sum(total, [&](int row, int column, Acc sum, bool again) {
        const Index in_group = tile.row + row, its_number = tile.column + column;
        if (in_group >= g.outputs() || its_number >= pixels) return;
        const Index o = tile.group * g.outputs() + in_group, n = its_number / g.pixels();
        if (again) sum = output_of(g, x, weight, Pixel<T, Index>(g, choices, its_number), o);
        if (g.has_bias) sum += load(bias + o);
        store(out + (n * g.O + o) * g.pixels() + its_number - n * g.pixels(), sum);
    });
}

// Rows are inputs, columns pixels of the image, the depth outputs x taps.
template <typename T, typename Index>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    dilation_backward_x(const T* __restrict__ grad_out, const T* __restrict__ weight, const T* __restrict__ shares,
                        const int* __restrict__ narrow, const long long* __restrict__ wide, T* __restrict__ grad_x,
                        DilationGeometry<Index> g) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Choices<T> choices{shares, narrow, wide};
    const Index plane = g.H * g.W, pixels = g.N * plane, depth = g.outputs() * g.taps();
    const Tile<Index> tile(g.inputs(), pixels, g.groups);
    const Index number = tile.column + strip_along();
    const Source<T, Index> source(g, number < pixels ? number : 0);
    const T* planes = grad_out + (source.n * g.O + tile.group * g.outputs()) * g.pixels();
    const T* filters = weight + tile.group * g.outputs() * g.inputs() * g.taps();
    Sums<Acc> total;
    multiply<T>(total, strips, Index(0), depth, [&](Strips<Acc>& to, Index first) {
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index c = tile.row + depth_along(l), k = first + depth_depth(), o = k / g.taps();
            to.rows[depth_depth()][depth_along(l)] =
                c < g.inputs() && k < depth ? load(filters + (o * g.inputs() + c) * g.taps() + k - o * g.taps()) : Acc(0);
        }
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index k = first + strip_depth(l), o = k / g.taps(), t = k - o * g.taps(), i = t / g.kw;
            to.columns[strip_depth(l)][strip_along()] =
                number < pixels && k < depth ? source.column(g, choices, planes + o * g.pixels(), i, t - i * g.kw) : Acc(0);
        }
    });
    each_sum(total, [&](int row, int column, Acc sum, bool again) {
        const Index in_group = tile.row + row, its_number = tile.column + column;
        if (in_group >= g.inputs() || its_number >= pixels) return;
        const Index c = tile.group * g.inputs() + in_group, n = its_number / plane;
        if (again) sum = grad_x_of(g, choices, grad_out, weight, Source<T, Index>(g, its_number), c);
        store(grad_x + (n * g.C + c) * plane + its_number - n * plane, sum);
    });
}

// Rows are outputs, columns inputs x taps, the depth a segment of the pixels. `out` is the gradient, or the workspace if
// there are several segments.
template <typename T, typename Index, typename Out>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    dilation_backward_weight(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ shares,
                             const int* __restrict__ narrow, const long long* __restrict__ wide, Out* __restrict__ out,
                             DilationGeometry<Index> g, Index segment) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    const Choices<T> choices{shares, narrow, wide};
    const Index filter = g.inputs() * g.taps(), pixels = g.N * g.pixels();
    const Tile<Index> tile(g.outputs(), filter, g.groups);
    const Index begin = tile.part * segment, end = pixels - begin < segment ? pixels : begin + segment;
    Sums<Acc> total;
    multiply<T>(total, strips, begin, end, [&](Strips<Acc>& to, Index first) {
        const Index number = first + depth_depth();
        const Pixel<T, Index> pixel(g, choices, number < end ? number : begin);
        const T* grads = grad_out + (pixel.n * g.O + tile.group * g.outputs()) * g.pixels() + pixel.at;
        const T* planes = x + (pixel.n * g.C + tile.group * g.inputs()) * g.H * g.W;
#pragma unroll
        for (int l = 0; l < LOADS; ++l) {
            const Index o = tile.row + depth_along(l), k = tile.column + depth_along(l);
            const Index c = k / g.taps(), t = k - c * g.taps(), i = t / g.kw;
            bool seen;
            to.rows[depth_depth()][depth_along(l)] =
                o < g.outputs() && number < end ? load(grads + o * g.pixels()) : Acc(0);
            to.columns[depth_depth()][depth_along(l)] =
                k < filter && number < end ? pixel.column(g, planes + c * g.H * g.W, i, t - i * g.kw, seen) : Acc(0);
        }
    });
    each_sum(total, [&](int row, int column, Acc sum, bool again) {
        const Index in_group = tile.row + row, k = tile.column + column;
        if (in_group >= g.outputs() || k >= filter) return;
        const Index o = tile.group * g.outputs() + in_group;
        if (again) sum = grad_weight_of<1>(g, choices, grad_out, x, o, k, begin, end);
        store(out + (tile.part * g.O + o) * filter + k, sum);
    });
}

// For each strip of inputs x taps (rows) and of pixels (columns) the gradient of the columns is a product over the outputs;
// what it gives the shares is added up over the rows, strip by strip. A part has every `parts`-th of all groups' strips.
template <typename T, typename Index, typename Out>
__global__ void __launch_bounds__(THREADS, RESIDENT<T, Index>)
    dilation_backward_shares(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ weight,
                             Out* __restrict__ out, DilationGeometry<Index> g, Index parts) {
    using Acc = accumulator<T>;
    __shared__ Strips<Acc> strips;
    __shared__ Acc of_threads[SIDE][TILE + 1];
    __shared__ Acc chain[MAX_DILATIONS][TILE], merged[MAX_DILATIONS][TILE];  // of the strips, for each pixel
    const Index filter = g.inputs() * g.taps(), pixels = g.N * g.pixels();
    const Index strips_of_group = divide_up<Index>(filter, TILE);
    const Index part = Index(blockIdx.x / divide_up<Index>(pixels, TILE));
    const Index first_pixel = Index(blockIdx.x % divide_up<Index>(pixels, TILE)) * TILE;
    const Index number = first_pixel + strip_along(), valid = number < pixels ? number : 0, n = valid / g.pixels();
    const T* grads = grad_out + n * g.O * g.pixels() + valid - n * g.pixels();
    const bool adds = threadIdx.x < TILE;
    if (adds) {
        for (int d = 0; d < g.D; ++d) chain[d][threadIdx.x] = merged[d][threadIdx.x] = 0;
    }
    unsigned turn = 0;
    for (Index strip = part; strip < g.groups * strips_of_group; strip += parts) {
        const Index group = strip / strips_of_group, first_k = (strip - group * strips_of_group) * TILE;
        const T* filters = weight + group * g.outputs() * filter;
        const T* group_grads = grads + group * g.outputs() * g.pixels();
        Sums<Acc> total;
        Acc sums[EACH][MAX_DILATIONS];
        multiply<T, true>(total, strips, Index(0), g.outputs(), [&](Strips<Acc>& to, Index first) {
#pragma unroll
            for (int l = 0; l < LOADS; ++l) {
                const Index o = first + strip_depth(l), k = first_k + strip_along();
                to.rows[strip_depth(l)][strip_along()] =
                    k < filter && o < g.outputs() ? load(filters + o * filter + k) : Acc(0);
                to.columns[strip_depth(l)][strip_along()] =
                    number < pixels && o < g.outputs() ? load(group_grads + o * g.pixels()) : Acc(0);
            }
        });
#pragma unroll
        for (int c = 0; c < EACH; ++c) {
#pragma unroll
            for (int d = 0; d < MAX_DILATIONS; ++d) sums[c][d] = 0;
            Index rest = first_pixel + first_column() + c;
            if (rest >= pixels) continue;
            const Index left = take(rest, g.Wo) * g.stride_w, top = take(rest, g.Ho) * g.stride_h;
            const T* planes = x + (rest * g.C + group * g.inputs()) * g.H * g.W;
#pragma unroll
            for (int r = 0; r < EACH; ++r) {
                const Index k = first_k + first_row() + r;
                if (k >= filter) continue;
                const Index channel = k / g.taps(), t = k - channel * g.taps(), i = t / g.kw, j = t - i * g.kw;
                const T* plane = planes + channel * g.H * g.W;
#pragma unroll
                for (int d = 0; d < MAX_DILATIONS; ++d) {
                    if (d >= g.D) continue;
                    const Index y = top + tap_offset(i, g.kh, g.dilation_h[d]);
                    const Index at = left + tap_offset(j, g.kw, g.dilation_w[d]);
                    if (inside(y, g.H) && inside(at, g.W)) sums[c][d] += total[r][c] * load(plane + y * g.W + at);
                }
            }
        }
        const bool full = ++turn % CHAIN == 0;
#pragma unroll
        for (int d = 0; d < MAX_DILATIONS; ++d) {
            if (d >= g.D) continue;
#pragma unroll
            for (int c = 0; c < EACH; ++c) of_threads[first_row() / EACH][first_column() + c] = sums[c][d];
            __syncthreads();
            if (adds) {
                Acc sum = 0;
                for (int other = 0; other < SIDE; ++other) sum += of_threads[other][threadIdx.x];
                chain[d][threadIdx.x] += sum;
                if (full) {
                    merged[d][threadIdx.x] += chain[d][threadIdx.x];
                    chain[d][threadIdx.x] = 0;
                }
            }
            __syncthreads();
        }
    }
    if (adds && number < pixels) {
        for (int d = 0; d < g.D; ++d) {
            const Acc sum = merged[d][threadIdx.x] + chain[d][threadIdx.x];
            store(out + ((part * g.N + n) * g.D + d) * g.pixels() + number - n * g.pixels(), sum);
        }
    }
}
