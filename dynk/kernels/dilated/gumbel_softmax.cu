// gumbel_softmax (PAD Eq. 2), forward and backward, float64 inside whatever the type: the choice among candidates is then
// the same on every device and for every type.
//
// LANES neighbouring threads, 1 or a warp, share a row of K candidates. Each holds the first HELD of its values; what is
// beyond is drawn again in each pass. A seed is two words, the low one first, whether it is one integer or two.
#include "cuda_common.cuh"
#include "philox.cuh"

using namespace dynk;

constexpr int HELD = 8;

// The fields of SoftmaxGeometry, in its order, but for the offset.
template <typename Index>
struct SoftmaxGeometry {
    Index outer, K, inner, per_seed, has_noise, hard;
};

// Whether a value comes before another in the search for the arg-max: NaN before numbers, then the larger, then the first.
template <typename Index>
__device__ __forceinline__ bool beats(double value, Index k, double other, Index other_k) {
    const bool is_nan = value != value, other_is_nan = other != other;
    if (is_nan != other_is_nan) return is_nan;
    if (is_nan || value == other) return k < other_k;
    return value > other;
}

// A row as one of its threads sees it.
template <typename T, typename Index, int LANES>
struct Row {
    const T* logits;
    const unsigned* seed;
    const SoftmaxGeometry<Index>& g;
    unsigned long long offset;
    double tau;
    Index start;
    int lane;
    double held[HELD];
    double top;  // the largest value of the row, and where it is
    Index best;

    __device__ __forceinline__ Row(const T* logits_, const void* seed_, const SoftmaxGeometry<Index>& g_,
                                   unsigned long long offset_, double tau_, Index row, int lane_)
        : logits(logits_), seed(static_cast<const unsigned*>(seed_)), g(g_), offset(offset_), tau(tau_), lane(lane_) {
        const Index outer = row / g.inner;
        start = outer * (g.K - 1) * g.inner + row;
        top = perturbed(0);  // any value of the row
        best = 0;
        each([&](Index k, double& value) {
            value = perturbed(k);
            look_at(value, k);
        }, [&](Index k) { look_at(perturbed(k), k); });
        if constexpr (LANES > 1) {
#pragma unroll
            for (int distance = LANES / 2; distance > 0; distance /= 2) {
                const double value = __shfl_xor_sync(0xffffffffu, top, distance);
                look_at(value, __shfl_xor_sync(0xffffffffu, best, distance));
            }
        }
    }

    // The element of candidate k.
    __device__ __forceinline__ Index at(Index k) const { return start + k * g.inner; }

    // Calls of_held(k, held value) or beyond(k) for each candidate of this thread.
    template <typename OfHeld, typename Beyond>
    __device__ __forceinline__ void each(OfHeld of_held, Beyond beyond) {
#pragma unroll
        for (int h = 0; h < HELD; ++h) {
            const Index k = lane + h * LANES;
            if (k < g.K) of_held(k, held[h]);
        }
        for (Index k = lane + HELD * LANES; k < g.K; k += LANES) beyond(k);
    }

    // Calls visit(k, value) for each candidate of this thread.
    template <typename Visit>
    __device__ __forceinline__ void each_value(Visit visit) {
        each([&](Index k, double value) { visit(k, value); }, [&](Index k) { visit(k, perturbed(k)); });
    }

    __device__ __forceinline__ double power(double value) const { return exp((value - top) / tau); }

  private:
    __device__ __forceinline__ double perturbed(Index k) const {
        const Index element = at(k);
        const double value = load(logits + element);
        if (!g.has_noise) return value;
        const Index number = element / g.per_seed;
        const unsigned long long index = (unsigned long long)(element - number * g.per_seed) + offset;
        return value - log(-log(philox_uniform(index, seed[2 * number], seed[2 * number + 1])));
    }

    __device__ __forceinline__ void look_at(double value, Index k) {
        if (beats(value, k, top, best)) top = value, best = k;
    }
};

// The number of a thread's row, and its lane.
template <int LANES>
__device__ __forceinline__ long long row_of_thread(int& lane) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    lane = int(thread % LANES);
    return thread / LANES;
}

template <typename T, typename Index, int LANES>
__global__ void __launch_bounds__(256, 1)
    gumbel_softmax_forward(const T* __restrict__ logits, const void* __restrict__ seed, T* __restrict__ out,
                           SoftmaxGeometry<Index> g, unsigned long long offset, double tau) {
    int lane;
    const long long number = row_of_thread<LANES>(lane);
    if (number >= (long long)g.outer * g.inner) return;  // all lanes of a row
    Row<T, Index, LANES> row(logits, seed, g, offset, tau, Index(number), lane);
    if (g.hard) {
        const bool is_nan = row.top != row.top;
        for (Index k = lane; k < g.K; k += LANES) {
            store(out + row.at(k), accumulator<T>(is_nan ? row.top : k == row.best));
        }
        return;
    }
    Chains<double, 1, 3> sums;
    row.each_value([&](Index k, double value) {
        sums.chain[0] += row.power(value);
        sums.step();
    });
    const double total = lanes_sum<LANES>(sums.sum(0));
    row.each_value(
        [&](Index k, double value) { store(out + row.at(k), accumulator<T>(row.power(value) / total)); });
}

// p * (grad_out - sum(p * grad_out)) / tau, whether the output was soft or hard.
template <typename T, typename Index, int LANES>
__global__ void __launch_bounds__(256, 1)
    gumbel_softmax_backward(const T* __restrict__ grad_out, const T* __restrict__ logits,
                            const void* __restrict__ seed, T* __restrict__ grad_logits, SoftmaxGeometry<Index> g,
                            unsigned long long offset, double tau) {
    int lane;
    const long long number = row_of_thread<LANES>(lane);
    if (number >= (long long)g.outer * g.inner) return;  // all lanes of a row
    Row<T, Index, LANES> row(logits, seed, g, offset, tau, Index(number), lane);
    Chains<double, 2, 3> sums;
    row.each_value([&](Index k, double value) {
        const double power = row.power(value);
        sums.chain[0] += power;
        sums.chain[1] += power * double(load(grad_out + row.at(k)));
        sums.step();
    });
    const double total = lanes_sum<LANES>(sums.sum(0)), mean = lanes_sum<LANES>(sums.sum(1)) / total;
    row.each_value([&](Index k, double value) {
        const double grad = row.power(value) / total * (double(load(grad_out + row.at(k))) - mean) / tau;
        store(grad_logits + row.at(k), accumulator<T>(grad));
    });
}
