// sample_kernel (DK Eq. 12): filters resampled once for each image.
#include "deformable.cuh"

using namespace dynk;

// The fields of geometry.SampleGeometry, in its order.
template <typename Index>
struct SampleGeometry {
    Index N, O, I, Sh, Sw, kh, kw, Gk, clip;

    __device__ __forceinline__ Index taps() const { return kh * kw; }
};

// The point of tap t of a block of outputs.
template <typename T, typename Index>
__device__ __forceinline__ Point<accumulator<T>, Index> point_of(const SampleGeometry<Index>& g, const T* kernel_offset,
                                                                 Index n, Index block, Index t) {
    const T* offset = kernel_offset + ((n * g.Gk + block) * g.taps() + t) * 2;
    return point_of_scope(offset, Index(1), t / g.kw, t % g.kw, g.Sh, g.Sw, g.kh, g.kw, g.clip);
}

// Loads of the filter from an input to an output, both in one number.
template <typename T, typename Index>
__device__ __forceinline__ auto filter_of(const SampleGeometry<Index>& g, const T* weight, Index number) {
    return [filter = weight + number * g.Sh * g.Sw, Sw = g.Sw](Index row, Index column) {
        return load(filter + row * Sw + column);
    };
}

template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sample_kernel_forward(const T* __restrict__ weight, const T* __restrict__ kernel_offset, T* __restrict__ out,
                          SampleGeometry<Index> g) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (long long)g.N * g.O * g.I * g.taps()) return;
    Index rest = Index(thread);
    const Index t = take(rest, g.taps()), filter = take(rest, g.O * g.I), block = filter / g.I / (g.O / g.Gk);
    store(out + thread, point_of(g, kernel_offset, rest, block, t).value(filter_of(g, weight, filter)));
}

// A thread has an element of the weight.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sample_kernel_backward_weight(const T* __restrict__ grad_out, const T* __restrict__ kernel_offset,
                                  T* __restrict__ grad_weight, SampleGeometry<Index> g) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= (long long)g.O * g.I * g.Sh * g.Sw) return;
    Index rest = Index(thread);
    const Index column = take(rest, g.Sw), row = take(rest, g.Sh), filter = rest, block = filter / g.I / (g.O / g.Gk);
    Chains<accumulator<T>, 1, 3> sums;
    for (Index n = 0; n < g.N; ++n) {
        for (Index t = 0; t < g.taps(); ++t) {
            const auto point = point_of(g, kernel_offset, n, block, t);
            const Index a = row - point.y.cell, b = column - point.x.cell;
            if (!point.read() || point.unknown() || a < 0 || a > 1 || b < 0 || b > 1) continue;
            if (!point.has(int(a), int(b))) continue;
            const auto grad = load(grad_out + (n * g.O * g.I + filter) * g.taps() + t);
            sums.chain[0] += point.weight(int(a), int(b)) * grad;
            sums.step();
        }
    }
    store(grad_weight + thread, sums.sum(0));
}

// A warp has a tap of a block of outputs.
template <typename T, typename Index>
__global__ void __launch_bounds__(256, 1)
    sample_kernel_backward_offset(const T* __restrict__ grad_out, const T* __restrict__ weight,
                                  const T* __restrict__ kernel_offset, T* __restrict__ grad_offset,
                                  SampleGeometry<Index> g) {
    long long rest = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const long long number = rest;
    const Index t = Index(take(rest, (long long)g.taps())), block = Index(take(rest, (long long)g.Gk));
    if (rest >= g.N) return;  // a whole warp
    const Index n = Index(rest), filters = g.O / g.Gk * g.I;
    const auto point = point_of(g, kernel_offset, n, block, t);
    Chains<accumulator<T>, 2, 3> sums;
    for (Index filter = block * filters + threadIdx.x % 32; filter < (block + 1) * filters; filter += 32) {
        const auto grad = load(grad_out + (n * g.O * g.I + filter) * g.taps() + t);
        const auto of_filter = filter_of(g, weight, filter);
        if (point.moves_y()) sums.chain[0] += grad * point.slope_y(of_filter);
        if (point.moves_x()) sums.chain[1] += grad * point.slope_x(of_filter);
        sums.step();
    }
    const auto along_y = warp_sum(sums.sum(0)), along_x = warp_sum(sums.sum(1));
    if (threadIdx.x % 32 == 0) {
        store(grad_offset + 2 * number, along_y);
        store(grad_offset + 2 * number + 1, along_x);
    }
}
