// What the CUDA kernels of all families share. Compiles under NVRTC, and as host C++ in the tests.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace dynk {

// ---- element types: stored as T, added and multiplied as accumulator<T>, rounded once to nearest even ----------------

template <typename T>
struct Accumulator {
    using type = float;
};
template <>
struct Accumulator<double> {
    using type = double;
};
template <typename T>
using accumulator = typename Accumulator<T>::type;

__device__ __forceinline__ float load(const float* element) { return *element; }
__device__ __forceinline__ double load(const double* element) { return *element; }
__device__ __forceinline__ float load(const __half* element) { return __half2float(*element); }
__device__ __forceinline__ float load(const __nv_bfloat16* element) { return __bfloat162float(*element); }

__device__ __forceinline__ void store(float* element, float value) { *element = value; }
__device__ __forceinline__ void store(double* element, double value) { *element = value; }
__device__ __forceinline__ void store(__half* element, float value) { *element = __float2half_rn(value); }
__device__ __forceinline__ void store(__nv_bfloat16* element, float value) { *element = __float2bfloat16_rn(value); }

// ---- numbering -------------------------------------------------------------------------------------------------------

template <typename Index>
__device__ __forceinline__ Index divide_up(Index number, Index divisor) {
    return (number + divisor - 1) / divisor;
}

// Splits the fastest digit off a number of mixed radix.
template <typename Index>
__device__ __forceinline__ Index take(Index& number, Index extent) {
    const Index rest = number / extent;
    const Index digit = number - rest * extent;
    number = rest;
    return digit;
}

// ---- taps and borders ------------------------------------------------------------------------------------------------

// Distance of tap i from its anchor along one axis.
template <typename Index>
__device__ __forceinline__ Index tap_offset(Index i, Index taps, Index dilation) {
    return (i - (taps - 1) / 2) * dilation;
}

template <typename Index>
__device__ __forceinline__ bool inside(Index position, Index extent) {
    return position >= 0 && position < extent;
}

// The anchor whose tap at `offset` reads `position`, -1 if there is none.
template <typename Index>
__device__ __forceinline__ Index anchor_of(Index position, Index offset, Index stride, Index anchors) {
    Index anchor = position - offset;
    if (anchor < 0) return -1;
    if (stride != 1) {
        if (anchor % stride != 0) return -1;
        anchor /= stride;
    }
    return anchor < anchors ? anchor : Index(-1);
}

// ---- sums ------------------------------------------------------------------------------------------------------------

constexpr int CHAIN = 64;  // terms added one after the other before chains are merged

// N sums formed side by side. Add a term to each `chain[n]`, then `step()`. With LEVELS 1, 2, 3 at most 64, 64^2, 64^3
// terms are summed without a chain of more than 64.
template <typename Acc, int N, int LEVELS>
struct Chains {
    Acc chain[N];
    Acc merged[LEVELS > 1 ? N : 1];
    Acc total[LEVELS > 2 ? N : 1];
    unsigned terms;

    __device__ __forceinline__ Chains() : terms(0) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            chain[n] = 0;
            if constexpr (LEVELS > 1) merged[n] = 0;
            if constexpr (LEVELS > 2) total[n] = 0;
        }
    }

    __device__ __forceinline__ void step() {
        if constexpr (LEVELS > 1) {
            if (++terms % CHAIN == 0) fold();
        }
    }

    __device__ __forceinline__ Acc sum(int n) const {
        if constexpr (LEVELS > 2) return total[n] + (merged[n] + chain[n]);
        if constexpr (LEVELS > 1) return merged[n] + chain[n];
        return chain[n];
    }

  private:
    __device__ __forceinline__ void fold() {
        const bool full = LEVELS > 2 && terms % (CHAIN * CHAIN) == 0;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            merged[n] += chain[n];
            chain[n] = 0;
            if constexpr (LEVELS > 2) {
                if (full) {
                    total[n] += merged[n];
                    merged[n] = 0;
                }
            }
        }
    }
};

// The sum over a whole warp, the same bits in every lane.
template <typename Acc>
__device__ __forceinline__ Acc warp_sum(Acc value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// The sum over LANES neighbouring threads: 1, or the 32 of a warp.
template <int LANES, typename Acc>
__device__ __forceinline__ Acc lanes_sum(Acc value) {
    static_assert(LANES == 1 || LANES == 32, "a thread or a warp");
    return LANES == 1 ? value : warp_sum(value);
}

// The sum over threadIdx.z, complete in the threads with threadIdx.z == 0. Every thread of the block must call it;
// `shared` holds one value per thread.
template <typename Acc>
__device__ __forceinline__ Acc slices_sum(Acc value, Acc* shared) {
    if (blockDim.z == 1) return value;
    const unsigned plane = blockDim.x * blockDim.y;
    const unsigned place = threadIdx.y * blockDim.x + threadIdx.x;
    shared[threadIdx.z * plane + place] = value;
    __syncthreads();
    if (threadIdx.z == 0) {
        for (unsigned z = 1; z < blockDim.z; ++z) value += shared[z * plane + place];
    }
    __syncthreads();
    return value;
}

}  // namespace dynk

// Second stage of every reduction: out[e] = sum over parts of partial[part, e], by LANES threads each.
template <typename T, typename Index, int LANES>
__global__ void __launch_bounds__(256, 1)
    sum_partials(const dynk::accumulator<T>* __restrict__ partial, T* __restrict__ out, Index elements, Index parts) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread / LANES >= elements) return;
    const Index element = Index(thread / LANES);
    dynk::Chains<dynk::accumulator<T>, 1, 3> sums;
    for (Index part = Index(thread % LANES); part < parts; part += LANES) {
        sums.chain[0] += partial[part * elements + element];
        sums.step();
    }
    const auto sum = dynk::lanes_sum<LANES>(sums.sum(0));
    if (thread % LANES == 0) dynk::store(out + element, sum);
}
