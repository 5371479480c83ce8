// ddf and ddf_upsample of stride, scale and dilation 1, for rows of whole vectors: the kernels that are to be as fast as
// memory. The launch functions take `kernels.cu` for everything else.
//
// A thread owns a vector of PIXELS neighbouring pixels, keeps their spatial filters in registers and goes through a block
// of channels. What a block's threads read of a channel is a tile with a halo, copied to shared memory STAGES - 1 channels
// ahead of its use. So bytes are in flight that no register waits for: an H100 needs 3.35 TB/s * 0.7 us = 2.3 MB of them,
// 18 KB on each multiprocessor, and a block of 3 x 3 alone has 15 KB. The registers are those of the filters and a row:
// 64 for two to four blocks on a multiprocessor, and at most 128, for two, with a second sum for each tap and pixel.
//
// Taps are summed in the order of `kernels.cu`, and misaligned data by the same steps: the bits are the same.
#include "cuda_tiles.cuh"
#include "ddf.cuh"

using namespace dynk;

constexpr int THREADS = 256;
constexpr int COPIES = 2;  // vectors of a tile that a thread copies at most

// What the launch function chooses: columns and rows of vectors in a tile, and the most channels of a block.
struct Tiling {
    int columns, rows, channels;
};

__device__ __forceinline__ int clamped(int position, int extent) {
    return position < 0 ? 0 : position < extent ? position : extent - 1;
}

// A block's tile and channels, and its thread's vector of pixels.
template <int KH, int KW, int PIXELS>
struct Tile {
    static constexpr int UP = KH / 2, LEFT = KW / 2;  // odd sizes: as much halo below and on the right
    static constexpr int WINDOW = PIXELS + 2 * LEFT;
    static_assert(KH % 2 == 1 && KW % 2 == 1 && LEFT <= PIXELS, "the halo is of one vector on each side");

    int group, part, tile;      // n * G + group, number of the block of channels, number of the tile
    int channel, channels;      // the first as n * C + c, and how many
    int y, x, width, height;
    bool exists;
    int pitch, vectors;         // of a tile with its halo
    int corner;                 // the thread's window in the tile, left halo included
    int from[COPIES];           // what the thread copies, -1 for nothing

    // Blocks are numbered with channels fastest, so that neighbours share the spatial filters of a tile.
    __device__ __forceinline__ Tile(const FilterGeometry<int>& g, const Tiling& tiling) : width(g.W), height(g.H) {
        const int in_group = g.C / g.G, columns = width / PIXELS, across = divide_up(columns, tiling.columns);
        int block = blockIdx.x;
        part = take(block, divide_up(in_group, tiling.channels));
        tile = take(block, across * divide_up(height, tiling.rows));
        group = block;
        channel = group * in_group + part * tiling.channels;
        channels = min(tiling.channels, in_group - part * tiling.channels);

        const int left = tile % across * tiling.columns, top = tile / across * tiling.rows;
        int row = threadIdx.x;
        const int column = take(row, tiling.columns);
        x = (left + column) * PIXELS;
        y = top + row;
        exists = row < tiling.rows && x < width && y < height;
        pitch = (tiling.columns + 2) * PIXELS;
        vectors = (tiling.columns + 2) * (tiling.rows + 2 * UP);
        corner = row * pitch + (column + 1) * PIXELS - LEFT;
#pragma unroll
        for (int k = 0; k < COPIES; ++k) {
            int below = threadIdx.x + k * THREADS;
            const bool wanted = below < vectors;
            const int beside = take(below, tiling.columns + 2);
            // Outside the image any element will do, no tap reads it.
            const int at = clamped(top - UP + below, height) * width + clamped(left - 1 + beside, columns) * PIXELS;
            from[k] = wanted ? at : -1;
        }
    }

    // Begins to copy the block's part of a plane.
    template <typename T>
    __device__ __forceinline__ void copy(T* shared, const T* plane, bool aligned) const {
#pragma unroll
        for (int k = 0; k < COPIES; ++k) {
            if (from[k] < 0) break;
            copy_ahead<PIXELS>(shared + (threadIdx.x + k * THREADS) * PIXELS, plane + from[k], aligned);
        }
    }

    // Reads a row of the thread's window.
    template <typename T, typename Acc>
    __device__ __forceinline__ void read(const T* shared, int row, Acc (&window)[WINDOW]) const {
        const T* first = shared + corner + row * pitch;
        const auto own = load_vector<PIXELS>(first + LEFT, true);
#pragma unroll
        for (int v = 0; v < WINDOW; ++v) {
            const bool halo = v < LEFT || v >= LEFT + PIXELS;
            window[v] = halo ? load(first + v) : load(&own.element[halo ? 0 : v - LEFT]);
        }
    }

    __device__ __forceinline__ bool has_row(int row) const { return inside(y - UP + row, height); }

    // Whether an element of a window's row is inside the image.
    __device__ __forceinline__ bool has_column(int v) const {
        if (v < LEFT) return x > 0;
        return v < LEFT + PIXELS || x + PIXELS < width;
    }
};

// Blocks that a multiprocessor is to hold, of 80, 128 or 255 registers, for so many filters and sums in a thread. (Those
// of 8 bytes need some for addresses too.)
template <typename Acc, int HELD>
constexpr int BYTES = HELD * sizeof(Acc) + (sizeof(Acc) == 8 ? 16 : 0);
template <typename Acc, int HELD>
constexpr int BLOCKS = BYTES<Acc, HELD> <= 144 ? 3 : BYTES<Acc, HELD> <= 288 ? 2 : 1;

// Elements of a tap's row of filters in shared memory, so that each starts at 16 bytes.
template <typename Acc, int TAPS>
constexpr int PADDED = (TAPS * int(sizeof(Acc)) + 15) / 16 * 16 / int(sizeof(Acc));

template <int TAPS, typename T, typename Acc>
__device__ __forceinline__ void share_filters(Acc* shared, const T* channel, int channels) {
    constexpr int ROW = PADDED<Acc, TAPS>;
    for (int k = threadIdx.x; k < channels * ROW; k += THREADS) {
        shared[k] = k % ROW < TAPS ? load(channel + k / ROW * TAPS + k % ROW) : Acc(0);
    }
}

template <int TAPS, typename Acc>
__device__ __forceinline__ void read_filter(const Acc* shared, Acc (&filter)[TAPS]) {
    constexpr int COUNT = 16 / sizeof(Acc);
#pragma unroll
    for (int t = 0; t < TAPS; t += COUNT) {
        const auto vector = load_vector<COUNT>(shared + t, true);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            if (t + k < TAPS) filter[t + k < TAPS ? t + k : 0] = vector.element[k];
        }
    }
}

// ---- out, or MIRRORED grad_x from grad_out: the same taps at the opposite places, each with the filter it has there ---

template <typename T, typename Index, int KH, int KW, int FILTER, int PIXELS, bool MIRRORED>
__global__ void __launch_bounds__(THREADS, BLOCKS<accumulator<T>, KH * KW * PIXELS>)
    ddf_stencil(const T* __restrict__ image, const T* __restrict__ spatial, const T* __restrict__ channel,
                T* __restrict__ out, FilterGeometry<Index> g, Tiling tiling) {
    using Acc = accumulator<T>;
    constexpr int TAPS = KH * KW, STAGES = 4;
    extern __shared__ __align__(16) unsigned char memory[];
    const Tile<KH, KW, PIXELS> at(g, tiling);
    T* const tiles = reinterpret_cast<T*>(memory);
    Acc* const filters = reinterpret_cast<Acc*>(tiles + STAGES * at.vectors * PIXELS);
    const bool aligned = is_aligned<PIXELS>(image) && is_aligned<PIXELS>(spatial) && is_aligned<PIXELS>(out);
    const int plane = g.H * g.W;
    image += at.channel * plane;
    const auto copy = [&](int u) {
        if (u < at.channels) at.copy(tiles + u % STAGES * at.vectors * PIXELS, image + u * plane, aligned);
        close_copies();
    };
#pragma unroll
    for (int u = 0; u < STAGES - 1; ++u) copy(u);
    if constexpr (FILTER != SPATIAL) share_filters<TAPS>(filters, channel + at.channel * TAPS, at.channels);

    Acc s[TAPS][PIXELS];
    if constexpr (FILTER != CHANNEL) {
        if (at.exists) {
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                const int down = MIRRORED ? Tile<KH, KW, PIXELS>::UP - t / KW : 0;
                const int right = MIRRORED ? Tile<KH, KW, PIXELS>::LEFT - t % KW : 0;
                const T* row = spatial + ((at.group * TAPS + t) * g.H + clamped(at.y + down, g.H)) * g.W;
                const auto own = load_vector<PIXELS>(row + at.x, aligned);
#pragma unroll
                for (int v = 0; v < PIXELS; ++v) {
                    const bool halo = v + right < 0 || v + right >= PIXELS;
                    s[t][v] = halo ? load(row + clamped(at.x + v + right, g.W)) : load(&own.element[halo ? 0 : v + right]);
                }
            }
        }
    }

#pragma unroll 1
    for (int u = 0; u < at.channels; ++u) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        copy(u + STAGES - 1);  // to where channel u - 1 was, which all have read
        if (!at.exists) continue;
        const T* tile = tiles + u % STAGES * at.vectors * PIXELS;
        Acc c[TAPS] = {};
        if constexpr (FILTER != SPATIAL) read_filter<TAPS>(filters + u * PADDED<Acc, TAPS>, c);
        Acc sums[PIXELS] = {};
#pragma unroll
        for (int i = 0; i < KH; ++i) {
            const int row = MIRRORED ? KH - 1 - i : i;
            if (!at.has_row(row)) continue;
            Acc window[Tile<KH, KW, PIXELS>::WINDOW];
            at.read(tile, row, window);
#pragma unroll
            for (int j = 0; j < KW; ++j) {
                const int t = i * KW + j, column = MIRRORED ? KW - 1 - j : j;
#pragma unroll
                for (int v = 0; v < PIXELS; ++v) {
                    if (at.has_column(v + column)) sums[v] += combine<FILTER>(s[t][v], c[t]) * window[v + column];
                }
            }
        }
        store_vector<PIXELS>(out + (at.channel + u) * plane + at.y * g.W + at.x, sums, aligned);
    }
}

// ---- grad_spatial and grad_channel together, since both are of x and grad_out. FILTER is MUL where the other filter is a
// ---- factor of a filter's gradient, else ADD ------------------------------------------------------------------------

// A thread keeps the sums over its channels for each tap and pixel, at most 64 terms; they go to `grad_spatial`, or to
// `spatial_parts` if there are several blocks of channels. The sums over a tile's pixels go to `grad_channel`, or to
// `channel_parts` if there are several tiles. What is not wanted is null.
template <typename T, typename Index, int KH, int KW, int FILTER, int PIXELS, bool OF_SPATIAL, bool OF_CHANNEL>
__global__ void __launch_bounds__(THREADS, BLOCKS<accumulator<T>, 2 * KH * KW * PIXELS>)
    ddf_backward_filters(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ spatial,
                         const T* __restrict__ channel, T* __restrict__ grad_spatial, T* __restrict__ grad_channel,
                         accumulator<T>* __restrict__ spatial_parts, accumulator<T>* __restrict__ channel_parts,
                         FilterGeometry<Index> g, Tiling tiling) {
    using Acc = accumulator<T>;
    constexpr int TAPS = KH * KW, STAGES = 3, WARPS = THREADS / 32;
    constexpr bool WITH_SPATIAL = OF_CHANNEL && FILTER == MUL, WITH_CHANNEL = OF_SPATIAL && FILTER == MUL;
    extern __shared__ __align__(16) unsigned char memory[];
    __shared__ Acc of_warps[OF_CHANNEL ? 2 : 1][OF_CHANNEL ? WARPS : 1][OF_CHANNEL ? TAPS : 1];
    const Tile<KH, KW, PIXELS> at(g, tiling);
    const int stage = (at.vectors + THREADS) * PIXELS;  // a tile of x and the vectors of grad_out
    T* const tiles = reinterpret_cast<T*>(memory);
    Acc* const filters = reinterpret_cast<Acc*>(tiles + STAGES * stage);
    const bool aligned = is_aligned<PIXELS>(x) && is_aligned<PIXELS>(grad_out) && is_aligned<PIXELS>(spatial) &&
                         is_aligned<PIXELS>(grad_spatial);
    const int plane = g.H * g.W, pixel = at.y * g.W + at.x;
    const T* images = x + at.channel * plane;
    const T* grads = grad_out + at.channel * plane + pixel;
    const auto copy = [&](int u) {
        if (u < at.channels) {
            T* to = tiles + u % STAGES * stage;
            at.copy(to, images + u * plane, aligned);
            if (at.exists) copy_ahead<PIXELS>(to + (at.vectors + threadIdx.x) * PIXELS, grads + u * plane, aligned);
        }
        close_copies();
    };
#pragma unroll
    for (int u = 0; u < STAGES - 1; ++u) copy(u);
    if constexpr (WITH_CHANNEL) share_filters<TAPS>(filters, channel + at.channel * TAPS, at.channels);

    const int first_tap = at.group * TAPS * plane + pixel;
    Acc s[TAPS][PIXELS], sums[TAPS][PIXELS] = {};
    if constexpr (WITH_SPATIAL) {
        if (at.exists) {
#pragma unroll
            for (int t = 0; t < TAPS; ++t) {
                const auto own = load_vector<PIXELS>(spatial + first_tap + t * plane, aligned);
#pragma unroll
                for (int v = 0; v < PIXELS; ++v) s[t][v] = load(&own.element[v]);
            }
        }
    }

    // Adds up what the warps found for a channel.
    const auto finish = [&](int u) {
        if (threadIdx.x >= TAPS) return;
        Acc sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) sum += of_warps[u % 2][warp][threadIdx.x];
        const int element = (at.channel + u) * TAPS + threadIdx.x;
        if (channel_parts) {
            channel_parts[at.tile * g.N * g.C * TAPS + element] = sum;
        } else {
            store(grad_channel + element, sum);
        }
    };

#pragma unroll 1
    for (int u = 0; u < at.channels; ++u) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        copy(u + STAGES - 1);  // to where channel u - 1 was, which all have read
        if constexpr (OF_CHANNEL) {
            if (u > 0) finish(u - 1);
        }
        Acc over_pixels[TAPS] = {};
        if (at.exists) {
            const T* tile = tiles + u % STAGES * stage;
            Acc c[TAPS] = {};
            if constexpr (WITH_CHANNEL) read_filter<TAPS>(filters + u * PADDED<Acc, TAPS>, c);
            const auto grads_of = load_vector<PIXELS>(tile + (at.vectors + threadIdx.x) * PIXELS, true);
            Acc grad[PIXELS];
#pragma unroll
            for (int v = 0; v < PIXELS; ++v) grad[v] = load(&grads_of.element[v]);
#pragma unroll
            for (int i = 0; i < KH; ++i) {
                if (!at.has_row(i)) continue;
                Acc window[Tile<KH, KW, PIXELS>::WINDOW];
                at.read(tile, i, window);
#pragma unroll
                for (int j = 0; j < KW; ++j) {
                    const int t = i * KW + j;
#pragma unroll
                    for (int v = 0; v < PIXELS; ++v) {
                        const bool counts = at.has_column(v + j);  // chosen afterwards: a branch would cost more
                        const Acc product = grad[v] * window[v + j];
                        if constexpr (OF_SPATIAL) {
                            const Acc sum = sums[t][v] + (WITH_CHANNEL ? product * c[t] : product);
                            sums[t][v] = counts ? sum : sums[t][v];
                        }
                        if constexpr (OF_CHANNEL) {
                            const Acc sum = over_pixels[t] + (WITH_SPATIAL ? product * s[t][v] : product);
                            over_pixels[t] = counts ? sum : over_pixels[t];
                        }
                    }
                }
            }
        }
        if constexpr (OF_CHANNEL) {
            int t;
            const Acc sum = warp_sums(over_pixels, t);
            if (t >= 0) of_warps[u % 2][threadIdx.x / 32][t] = sum;
        }
    }
    if constexpr (OF_CHANNEL) {
        __syncthreads();
        finish(at.channels - 1);
    }
    if constexpr (OF_SPATIAL) {
        if (!at.exists) return;
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
            if (spatial_parts) {
                Acc* part = spatial_parts + at.part * g.N * g.G * TAPS * plane;
                store_vector<PIXELS>(part + first_tap + t * plane, sums[t], true);
            } else {
                store_vector<PIXELS>(grad_spatial + first_tap + t * plane, sums[t], aligned);
            }
        }
    }
}
