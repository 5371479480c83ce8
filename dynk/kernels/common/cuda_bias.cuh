// The gradient of a bias, which is added to every pixel of an output channel.
#pragma once

#include "cuda_common.cuh"

namespace dynk {

// A warp's sum over output pixels [begin, end) of the batch of one of `channels` planes of `pixels` each.
template <typename T, typename Index>
__device__ __forceinline__ accumulator<T> bias_sum(const T* grad_out, Index channels, Index channel, Index pixels,
                                                   Index begin, Index end) {
    Chains<accumulator<T>, 1, 3> sums;
    for (Index number = begin + threadIdx.x % 32; number < end; number += 32) {
        const Index n = number / pixels;
        sums.chain[0] += load(grad_out + (n * channels + channel) * pixels + number - n * pixels);
        sums.step();
    }
    return warp_sum(sums.sum(0));
}

}  // namespace dynk
