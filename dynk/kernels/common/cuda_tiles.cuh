// Vectors of elements, copies to shared memory that nobody waits for, and the sum of several values over a warp.
#pragma once

#include "cuda_common.cuh"

namespace dynk {

// COUNT neighbouring elements, loaded and stored by one instruction.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T)) Vector {
    T element[COUNT];
};

template <int COUNT, typename T>
__device__ __forceinline__ bool is_aligned(const T* pointer) {
    return reinterpret_cast<unsigned long long>(pointer) % (COUNT * sizeof(T)) == 0;
}

// `aligned` must be the same in all threads: it chooses the instructions, never a value.
template <int COUNT, typename T>
__device__ __forceinline__ Vector<T, COUNT> load_vector(const T* from, bool aligned) {
    if (aligned) return *reinterpret_cast<const Vector<T, COUNT>*>(from);
    Vector<T, COUNT> vector;
#pragma unroll
    for (int v = 0; v < COUNT; ++v) vector.element[v] = from[v];
    return vector;
}

template <int COUNT, typename T, typename Acc>
__device__ __forceinline__ void store_vector(T* to, const Acc (&values)[COUNT], bool aligned) {
    Vector<T, COUNT> vector;
#pragma unroll
    for (int v = 0; v < COUNT; ++v) store(&vector.element[v], values[v]);
    if (aligned) {
        *reinterpret_cast<Vector<T, COUNT>*>(to) = vector;
    } else {
#pragma unroll
        for (int v = 0; v < COUNT; ++v) to[v] = vector.element[v];
    }
}

// Copies COUNT elements to shared memory. They are there for the thread itself after `wait_for_copies`, for others after
// a barrier behind that. Before sm_80 the thread waits at once.
template <int COUNT, typename T>
__device__ __forceinline__ void copy_ahead(T* shared, const T* from, bool aligned) {
    if (!aligned) {
#pragma unroll
        for (int v = 0; v < COUNT; ++v) shared[v] = from[v];
        return;
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    if constexpr (COUNT * sizeof(T) == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    } else {
        static_assert(COUNT * sizeof(T) == 8, "8 or 16 bytes");
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
    }
#else
    *reinterpret_cast<Vector<T, COUNT>*>(shared) = *reinterpret_cast<const Vector<T, COUNT>*>(from);
#endif
}

__device__ __forceinline__ void close_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all but the last OPEN groups of copies that the thread has closed are there.
template <int OPEN>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}

// Sums each of COUNT values over a warp, halving how many a lane keeps with each exchange: 12 shuffles for 9 values instead
// of 45. Returns the sum of value `index`, of which each is left in one lane; index is -1 in the other lanes.
template <int DISTANCE = 16, int COUNT, typename Acc>
__device__ __forceinline__ Acc warp_sums(const Acc (&values)[COUNT], int& index) {
    constexpr int HALF = (COUNT + 1) / 2;
    const bool upper = threadIdx.x & DISTANCE;
    Acc kept[HALF];
#pragma unroll
    for (int k = 0; k < HALF; ++k) {
        const Acc low = values[k];
        Acc high = 0;
        if (k + HALF < COUNT) high = values[k + HALF];
        if constexpr (COUNT == 1) high = low;
        kept[k] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, DISTANCE);
    }
    Acc sum;
    if constexpr (DISTANCE > 1) {
        sum = warp_sums<DISTANCE / 2>(kept, index);
    } else {
        static_assert(HALF == 1, "at most 32 values");
        sum = kept[0];
        index = 0;
    }
    if (upper && index >= 0) index += HALF;
    if (index >= COUNT) index = -1;
    return sum;
}

}  // namespace dynk
