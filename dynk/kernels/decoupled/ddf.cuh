// What all kernels of ddf and ddf_upsample share.
#pragma once

#include "cuda_common.cuh"

// Which filters there are, and how f combines them.
enum Filter { SPATIAL, CHANNEL, MUL, ADD };

// The fields of geometry.FilterGeometry, in its order.
template <typename Index>
struct FilterGeometry {
    Index N, C, G, H, W, Ho, Wo, kh, kw, scale, stride_h, stride_w, dilation_h, dilation_w, has_spatial, has_channel, add;
};

template <int FILTER, typename Acc>
__device__ __forceinline__ Acc combine(Acc spatial, Acc channel) {
    if constexpr (FILTER == SPATIAL) return spatial;
    if constexpr (FILTER == CHANNEL) return channel;
    if constexpr (FILTER == MUL) return spatial * channel;
    return spatial + channel;
}
