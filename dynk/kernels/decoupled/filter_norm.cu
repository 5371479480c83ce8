// filter_norm (DDF Eq. 3), forward and backward: (f - mean) / (std + eps) * scale + shift over the taps of each filter.
//
// A thread owns a filter. The first tap is subtracted before anything is summed, so that equal taps give exactly 0, and
// squares are taken in units of the largest deviation, so that none overflows or vanishes. KH, KW are 0 for a size known only at run time.
#include "cuda_common.cuh"

using namespace dynk;

constexpr int NORM_DIMS = 6;

// The fields of geometry.NormGeometry, in its order.
template <typename Index>
struct NormGeometry {
    Index filters, kh, kw, f_kh, f_kw, scale_kh, scale_kw, shift_kh, shift_kw, has_scale, has_shift;
    Index extent[NORM_DIMS], f[NORM_DIMS], scale[NORM_DIMS], shift[NORM_DIMS];
    Index f_size, scale_size, shift_size;
};

// Where a filter's taps stand in f, scale and shift.
template <typename Index>
struct Offsets {
    Index f, scale, shift;

    __device__ __forceinline__ Offsets(const NormGeometry<Index>& g, Index filter) : f(0), scale(0), shift(0) {
        for (int d = NORM_DIMS - 1; d >= 0 && filter > 0; --d) {
            const Index digit = take(filter, g.extent[d]);
            f += digit * g.f[d];
            scale += digit * g.scale[d];
            shift += digit * g.shift[d];
        }
    }
};

// The taps of one filter with its moments; the taps stay in registers if their number is known at compile time.
template <typename T, typename Index, int KH, int KW>
struct Moments {
    using Acc = accumulator<T>;
    const T* f;
    Index kw, f_kh, f_kw;
    Acc first, mean;  // mean of f - first
    Acc range, std;   // the largest |deviation|, 0 where all taps are equal, and the standard deviation in units of it
    Acc values[KH ? KH * KW : 1];

    __device__ __forceinline__ Moments(const T* filter, const NormGeometry<Index>& g)
        : f(filter), kw(KW ? KW : g.kw), f_kh(g.f_kh), f_kw(g.f_kw), first(load(filter)), mean(0), range(0) {
        const Index taps = KH ? KH * KW : g.kh * g.kw;
        Chains<Acc, 1, KH ? 1 : 3> sum, squares;
#pragma unroll
        for (Index t = 0; t < taps; ++t) {
            const Acc difference = from_first(t);
            if constexpr (KH != 0) values[t] = difference;
            sum.chain[0] += difference;
            sum.step();
        }
        mean = sum.sum(0) / Acc(taps);
#pragma unroll
        for (Index t = 0; t < taps; ++t) {
            if constexpr (KH != 0) values[t] -= mean;
            const Acc size = fabs(deviation(t));
            if (size > range || size != size) range = size;  // NaN stays
        }
#pragma unroll
        for (Index t = 0; t < taps; ++t) {
            const Acc unit = in_units(t);
            squares.chain[0] += unit * unit;
            squares.step();
        }
        std = sqrt(squares.sum(0) / Acc(taps - 1));
    }

    // f - mean(f).
    __device__ __forceinline__ Acc deviation(Index t) const {
        if constexpr (KH != 0) {
            return values[t];
        } else {
            return from_first(t) - mean;
        }
    }

    __device__ __forceinline__ Acc in_units(Index t) const { return range == 0 ? Acc(0) : deviation(t) / range; }

    // std + eps, and anything but 0 where all taps are equal.
    __device__ __forceinline__ Acc divisor(Acc eps) const { return range == 0 ? Acc(1) : range * std + eps; }

  private:
    __device__ __forceinline__ Acc from_first(Index t) const {
        return load(f + t / kw * f_kh + t % kw * f_kw) - first;
    }
};

template <typename T, typename Index, int KH, int KW>
__global__ void __launch_bounds__(256, 1)
    filter_norm_forward(const T* __restrict__ f, const T* __restrict__ scale, const T* __restrict__ shift,
                        T* __restrict__ out, NormGeometry<Index> g, accumulator<T> eps) {
    using Acc = accumulator<T>;
    const long long filter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (filter >= g.filters) return;
    const Offsets<Index> at(g, Index(filter));
    const Moments<T, Index, KH, KW> moments(f + at.f, g);
    const Acc divisor = moments.divisor(eps);
    const Index kw = KW ? KW : g.kw, taps = KH ? KH * KW : g.kh * g.kw;
#pragma unroll
    for (Index t = 0; t < taps; ++t) {
        const Index i = t / kw, j = t % kw;
        Acc value = moments.deviation(t) / divisor;
        if (g.has_scale) value *= load(scale + at.scale + i * g.scale_kh + j * g.scale_kw);
        if (g.has_shift) value += load(shift + at.shift + i * g.shift_kh + j * g.shift_kw);
        store(out + at.f + i * g.f_kh + j * g.f_kw, value);
    }
}

// With h = grad_out * scale, z the normalised and w = z * (std + eps) / std the filter:
// grad_f = (h - mean(h) - w * sum(h z) / (T - 1)) / (std + eps), and 0 where all taps are equal.
template <typename T, typename Index, int KH, int KW>
__global__ void __launch_bounds__(256, 1)
    filter_norm_backward_f(const T* __restrict__ grad_out, const T* __restrict__ f, const T* __restrict__ scale,
                           T* __restrict__ grad_f, NormGeometry<Index> g, accumulator<T> eps) {
    using Acc = accumulator<T>;
    const long long filter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (filter >= g.filters) return;
    const Offsets<Index> at(g, Index(filter));
    const Moments<T, Index, KH, KW> moments(f + at.f, g);
    const Acc divisor = moments.divisor(eps);
    const Index kw = KW ? KW : g.kw, taps = KH ? KH * KW : g.kh * g.kw;
    const auto h = [&](Index t) {
        const Index i = t / kw, j = t % kw;
        const Acc grad = load(grad_out + at.f + i * g.f_kh + j * g.f_kw);
        return g.has_scale ? grad * load(scale + at.scale + i * g.scale_kh + j * g.scale_kw) : grad;
    };
    Chains<Acc, 2, KH ? 1 : 3> sums;
#pragma unroll
    for (Index t = 0; t < taps; ++t) {
        const Acc value = h(t);
        sums.chain[0] += value;
        sums.chain[1] += value * (moments.deviation(t) / divisor);
        sums.step();
    }
    const Acc mean = sums.sum(0) / Acc(taps), slope = sums.sum(1) / (Acc(taps - 1) * moments.std);
#pragma unroll
    for (Index t = 0; t < taps; ++t) {
        const Acc value = (h(t) - mean - moments.in_units(t) * slope) / divisor;
        store(grad_f + at.f + t / kw * g.f_kh + t % kw * g.f_kw, moments.range == 0 ? Acc(0) : value);
    }
}

// The two numbers that give (f - first - statistics[0]) / statistics[1] = (f - mean) / (std + eps), for each filter.
template <typename T, typename Index, int KH, int KW>
__global__ void __launch_bounds__(256, 1)
    filter_norm_statistics(const T* __restrict__ f, accumulator<T>* __restrict__ statistics, NormGeometry<Index> g,
                           accumulator<T> eps) {
    const long long filter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (filter >= g.filters) return;
    const Offsets<Index> at(g, Index(filter));
    const Moments<T, Index, KH, KW> moments(f + at.f, g);
    statistics[filter] = moments.mean;
    statistics[g.filters + filter] = moments.divisor(eps);
}

// How the elements of f fall on the elements of scale or shift: `kept` dimensions number those, the `summed` dimensions
// behind them in the arrays what is summed for each. `filter` steps through the filters' numbers, 0 along the taps.
constexpr int REDUCTION_DIMS = NORM_DIMS + 2;

template <typename Index>
struct Reduction {
    Index elements, terms, filters, kept, summed;
    Index extent[REDUCTION_DIMS], f[REDUCTION_DIMS], filter[REDUCTION_DIMS];
};

// An element of f, the first tap of its filter and that filter's number.
template <typename Index>
struct Place {
    Index tap = 0, first = 0, filter = 0;

    // Moves along the dimensions from `begin` to `end` by a number in row-major order.
    __device__ __forceinline__ void add(const Reduction<Index>& r, Index begin, Index end, Index number) {
#pragma unroll
        for (int d = REDUCTION_DIMS - 1; d >= 0; --d) {
            if (d < begin || d >= end) continue;
            const Index digit = take(number, r.extent[d]);
            tap += digit * r.f[d];
            filter += digit * r.filter[d];
            if (r.filter[d] != 0) first += digit * r.f[d];
        }
    }
};

// Sums grad_out (shift), or grad_out times the normalised filters (NORMALISED, scale), over a segment of the terms of an
// element by LANES threads. `out` is the gradient, or the workspace if there are several segments.
template <typename T, typename Index, int LANES, bool NORMALISED, typename Out>
__global__ void __launch_bounds__(256, 1)
    filter_norm_backward_scale(const T* __restrict__ grad_out, const T* __restrict__ f,
                               const accumulator<T>* __restrict__ statistics, Out* __restrict__ out, Reduction<Index> r,
                               Index segment, Index parts) {
    using Acc = accumulator<T>;
    long long part = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const int lane = int(take(part, (long long)LANES));
    const Index element = Index(take(part, (long long)r.elements));
    if (part >= parts) return;  // a whole warp

    Place<Index> kept;
    kept.add(r, 0, r.kept, element);
    const Index begin = Index(part) * segment, end = r.terms - begin < segment ? r.terms : begin + segment;
    Chains<Acc, 1, 3> sums;
    for (Index term = begin + lane; term < end; term += LANES) {
        Place<Index> at = kept;
        at.add(r, r.kept, r.kept + r.summed, term);
        Acc value = load(grad_out + at.tap);
        if constexpr (NORMALISED) {
            value *= (load(f + at.tap) - load(f + at.first) - statistics[at.filter]) / statistics[r.filters + at.filter];
        }
        sums.chain[0] += value;
        sums.step();
    }
    const Acc sum = lanes_sum<LANES>(sums.sum(0));
    if (lane == 0) store(out + Index(part) * r.elements + element, sum);
}
