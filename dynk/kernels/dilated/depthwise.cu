// adaptive_dilation_conv2d where a group has a single input channel and few outputs: each thread forms sums of its own.
// And the gradient of the bias, of any convolution.
#include "cuda_bias.cuh"
#include "dilation.cuh"

using namespace dynk;

template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    dilation_depthwise_forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ shares,
                               const int* __restrict__ narrow, const long long* __restrict__ wide,
                               const T* __restrict__ bias, T* __restrict__ out, DilationGeometry<Index> g) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (long long)g.N * g.O * g.pixels()) return;
    Index rest = Index(thread);
    const Index at = take(rest, g.pixels()), o = take(rest, g.O);
    const Pixel<T, Index> pixel(g, {shares, narrow, wide}, rest * g.pixels() + at);
    auto sum = output_of(g, x, weight, pixel, o);
    if (g.has_bias) sum += load(bias + o);
    store(out + thread, sum);
}

template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    dilation_depthwise_backward_x(const T* __restrict__ grad_out, const T* __restrict__ weight,
                                  const T* __restrict__ shares, const int* __restrict__ narrow,
                                  const long long* __restrict__ wide, T* __restrict__ grad_x, DilationGeometry<Index> g) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const Index plane = g.H * g.W;
    if (thread >= (long long)g.N * g.C * plane) return;
    Index rest = Index(thread);
    const Index at = take(rest, plane), c = take(rest, g.C);
    const Source<T, Index> source(g, rest * plane + at);
    store(grad_x + thread, grad_x_of(g, {shares, narrow, wide}, grad_out, weight, source, c));
}

// A warp sums a segment of the output pixels for one element of the weight.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    dilation_depthwise_backward_weight(const T* __restrict__ grad_out, const T* __restrict__ x,
                                       const T* __restrict__ shares, const int* __restrict__ narrow,
                                       const long long* __restrict__ wide, accumulator<T>* __restrict__ partial,
                                       DilationGeometry<Index> g, Index segment, Index parts) {
    long long part = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const Index filter = g.inputs() * g.taps(), elements = g.O * filter, pixels = g.N * g.pixels();
    const Index element = Index(take(part, (long long)elements));
    if (part >= parts) return;  // a whole warp
    const Index begin = Index(part) * segment, end = pixels - begin < segment ? pixels : begin + segment;
    const Index lane = threadIdx.x % 32;
    const auto sum = warp_sum(grad_weight_of<32>(g, {shares, narrow, wide}, grad_out, x, element / filter,
                                                 element % filter, begin + lane, end));
    if (lane == 0) partial[Index(part) * elements + element] = sum;
}

// Threads along z share the channels of a pixel.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    dilation_depthwise_backward_shares(const T* __restrict__ grad_out, const T* __restrict__ x,
                                       const T* __restrict__ weight, const T* __restrict__ shares,
                                       T* __restrict__ grad_shares, DilationGeometry<Index> g) {
    using Acc = accumulator<T>;
    __shared__ Acc shared[256];
    const long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x, pixels = (long long)g.N * g.pixels();
    const Pixel<T, Index> pixel(g, {shares, nullptr, nullptr}, Index(number < pixels ? number : 0));
    Chains<Acc, MAX_DILATIONS, 3> sums;
    for (Index c = threadIdx.z; c < g.C; c += blockDim.z) {
        const T* plane = x + (pixel.n * g.C + c) * g.H * g.W;
        for (Index t = 0; t < g.taps(); ++t) {
            const Acc grad = grad_column_of(g, grad_out, weight, pixel.n, c, t, pixel.at);
#pragma unroll
            for (int d = 0; d < MAX_DILATIONS; ++d) {
                Acc value;
                if (d < g.D && pixel.read(g, plane, t / g.kw, t % g.kw, d, value)) sums.chain[d] += grad * value;
            }
            sums.step();
        }
    }
#pragma unroll
    for (int d = 0; d < MAX_DILATIONS; ++d) {
        if (d >= g.D) break;
        const Acc sum = slices_sum(sums.sum(d), shared);
        if (number < pixels && threadIdx.z == 0) store(grad_shares + (pixel.n * g.D + d) * g.pixels() + pixel.at, sum);
    }
}

// A warp sums a segment of the output pixels for one channel.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    dilation_backward_bias(const T* __restrict__ grad_out, accumulator<T>* __restrict__ partial, DilationGeometry<Index> g,
                           Index segment, Index parts) {
    long long part = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const Index o = Index(take(part, (long long)g.O)), pixels = g.N * g.pixels();
    if (part >= parts) return;  // a whole warp
    const Index begin = Index(part) * segment, end = pixels - begin < segment ? pixels : begin + segment;
    const auto sum = bias_sum(grad_out, g.O, o, g.pixels(), begin, end);
    if (threadIdx.x % 32 == 0) partial[Index(part) * g.O + o] = sum;
}
