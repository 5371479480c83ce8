// deformable_conv2d where each group has a single input channel: every thread forms sums of its own. And the gradient of the
// bias, of any groups.
#include "cuda_bias.cuh"
#include "deformable.cuh"

using namespace dynk;

template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    deform_depthwise_forward(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ kernel_offset,
                             const T* __restrict__ data_offset, const T* __restrict__ mask, const T* __restrict__ bias,
                             T* __restrict__ out, DeformGeometry<Index> g) {
    const Operands<T, Index> operands{g, x, weight, kernel_offset, data_offset, mask};
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (long long)g.N * g.O * g.pixels()) return;
    Index rest = Index(thread);
    const Index at = take(rest, g.pixels()), o = take(rest, g.O);
    auto sum = operands.output(Pixel<Index>(g, rest * g.pixels() + at), o);
    if (g.has_bias) sum += load(bias + o);
    store(out + thread, sum);
}

// A warp sums a segment of the output pixels for one element of the weight.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    deform_depthwise_backward_weight(const T* __restrict__ grad_out, const T* __restrict__ x,
                                     const T* __restrict__ kernel_offset, const T* __restrict__ data_offset,
                                     const T* __restrict__ mask, accumulator<T>* __restrict__ partial,
                                     DeformGeometry<Index> g, Index segment, Index parts) {
    const Operands<T, Index> operands{g, x, nullptr, kernel_offset, data_offset, mask};
    long long part = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const Index elements = g.O * g.scope(), pixels = g.N * g.pixels();
    const Index element = Index(take(part, (long long)elements));
    if (part >= parts) return;  // a whole warp
    const Index begin = Index(part) * segment, end = pixels - begin < segment ? pixels : begin + segment;
    Index o = element;
    const Index column = take(o, g.Sw), row = take(o, g.Sh);
    const auto sum = warp_sum(operands.template grad_weight<32>(grad_out, o, Index(0), row, column,
                                                                begin + Index(threadIdx.x % 32), end));
    if (threadIdx.x % 32 == 0) partial[Index(part) * elements + element] = sum;
}

// A warp sums a segment of the output pixels for one channel.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    deform_backward_bias(const T* __restrict__ grad_out, accumulator<T>* __restrict__ partial, DeformGeometry<Index> g,
                         Index segment, Index parts) {
    long long part = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const Index o = Index(take(part, (long long)g.O)), pixels = g.N * g.pixels();
    if (part >= parts) return;  // a whole warp
    const Index begin = Index(part) * segment, end = pixels - begin < segment ? pixels : begin + segment;
    const auto sum = bias_sum(grad_out, g.O, o, g.pixels(), begin, end);
    if (threadIdx.x % 32 == 0) partial[Index(part) * g.O + o] = sum;
}
