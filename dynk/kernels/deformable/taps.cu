// The gradients of deformable_conv2d that come from the gradient of each tap: of the offsets, of the mask, and of the image.
//
// The image's gradient is gathered. Where data offsets move the taps, those that reach each cell are listed first, in the
// order of their numbers: a counting sort by cell. So every sum has one order, whatever the order of threads.
#include "deformable.cuh"

using namespace dynk;

// DENSE: the gradient of the columns is in the workspace. Else groups have one channel and it is formed where it is needed.
template <bool DENSE, typename T, typename Index>
__device__ __forceinline__ auto gradient_of(const Operands<T, Index>& operands, const T* grad_out,
                                            const accumulator<T>* grad_columns, const Part<Index>& part) {
    if constexpr (DENSE) {
        return ColumnsGradient<T, Index>{operands, grad_columns, part};
    } else {
        return DepthwiseGradient<T, Index>{operands, grad_out};
    }
}

// ---- offsets and mask: sums over the channels of a block ---------------------------------------------------------------

// The output pixel, tap and block of a thread; threads along z share its channels.
template <typename Index>
struct Tap {
    Index number, t, block;
    bool valid;

    __device__ __forceinline__ Tap(const DeformGeometry<Index>& g, const Part<Index>& part, Index blocks) {
        long long rest = (long long)blockIdx.x * blockDim.x + threadIdx.x;
        number = part.first + Index(take(rest, (long long)part.pixels));
        t = Index(take(rest, (long long)g.taps()));
        valid = rest < blocks;
        block = valid ? Index(rest) : Index(0);
    }
};

template <typename T, typename Index, bool DENSE>
__global__ void __launch_bounds__(256, 1)
    deform_backward_data(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ weight,
                         const T* __restrict__ kernel_offset, const T* __restrict__ data_offset,
                         const T* __restrict__ mask, const accumulator<T>* __restrict__ grad_columns,
                         T* __restrict__ grad_data_offset, T* __restrict__ grad_mask, DeformGeometry<Index> g,
                         Part<Index> part) {
    using Acc = accumulator<T>;
    __shared__ Acc shared[256];
    const Operands<T, Index> operands{g, x, weight, kernel_offset, data_offset, mask};
    const auto gradient = gradient_of<DENSE>(operands, grad_out, grad_columns, part);
    const Tap<Index> tap(g, part, g.Gd);
    const Pixel<Index> pixel(g, tap.number);
    const auto data = operands.data_point(pixel, tap.block, tap.t);
    const Acc shade = operands.mask_of(pixel, tap.block, tap.t);
    const Index channels = g.C / g.Gd;
    Index kernel_block = -1;
    Point<Acc, Index> kernel;
    Chains<Acc, 3, 3> sums;
    for (Index c = tap.block * channels + threadIdx.z; c < (tap.block + 1) * channels; c += blockDim.z) {
        if (operands.kernel_block(c) != kernel_block) {
            kernel_block = operands.kernel_block(c);
            kernel = operands.kernel_point(pixel, kernel_block, tap.t);
        }
        if (kernel.read()) {
            const Acc grad = gradient.tap(pixel, kernel, c, tap.t);
            const auto image = operands.image(pixel.n, c);
            if (data.read()) sums.chain[0] += grad * data.value(image);
            if (data.moves_y()) sums.chain[1] += grad * shade * data.slope_y(image);
            if (data.moves_x()) sums.chain[2] += grad * shade * data.slope_x(image);
        }
        sums.step();
    }
    const Index at = ((pixel.n * g.Gd + tap.block) * g.taps() + tap.t) * g.pixels();
    const bool stores = tap.valid && threadIdx.z == 0;
    const Acc sum = slices_sum(sums.sum(0), shared);
    if (stores && grad_mask) store(grad_mask + at + pixel.at, sum);
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
        const Acc along = slices_sum(sums.sum(1 + axis), shared);
        if (stores && grad_data_offset) store(grad_data_offset + 2 * at + axis * g.pixels() + pixel.at, along);
    }
}

template <typename T, typename Index, bool DENSE>
__global__ void __launch_bounds__(256, 1)
    deform_backward_kernel(const T* __restrict__ grad_out, const T* __restrict__ x, const T* __restrict__ weight,
                           const T* __restrict__ kernel_offset, const T* __restrict__ data_offset,
                           const T* __restrict__ mask, const accumulator<T>* __restrict__ grad_columns,
                           T* __restrict__ grad_kernel_offset, DeformGeometry<Index> g, Part<Index> part) {
    using Acc = accumulator<T>;
    __shared__ Acc shared[256];
    const Operands<T, Index> operands{g, x, weight, kernel_offset, data_offset, mask};
    const auto gradient = gradient_of<DENSE>(operands, grad_out, grad_columns, part);
    const Tap<Index> tap(g, part, g.Gk);
    const Pixel<Index> pixel(g, tap.number);
    const auto kernel = operands.kernel_point(pixel, tap.block, tap.t);
    const Index channels = g.C / g.Gk;
    Index data_block = -1;
    Point<Acc, Index> data;
    Acc shade;
    Chains<Acc, 2, 3> sums;
    for (Index c = tap.block * channels + threadIdx.z; c < (tap.block + 1) * channels; c += blockDim.z) {
        if (operands.data_block(c) != data_block) {
            data_block = operands.data_block(c);
            data = operands.data_point(pixel, data_block, tap.t);
            shade = operands.mask_of(pixel, data_block, tap.t);
        }
        if (data.read()) {
            const Acc sample = shade * data.value(operands.image(pixel.n, c));
            if (kernel.moves_y()) sums.chain[0] += sample * gradient.slope_y(pixel, kernel, c);
            if (kernel.moves_x()) sums.chain[1] += sample * gradient.slope_x(pixel, kernel, c);
        }
        sums.step();
    }
    const Index at = ((pixel.n * g.Gk + tap.block) * g.taps() + tap.t) * 2 * g.pixels();
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
        const Acc sum = slices_sum(sums.sum(axis), shared);
        if (tap.valid && threadIdx.z == 0) store(grad_kernel_offset + at + axis * g.pixels() + pixel.at, sum);
    }
}

// ---- which taps read a cell of the image -------------------------------------------------------------------------------

// The taps of `pixels` output pixels from `first_pixel` of each plane, for `blocks` blocks of data offsets of `images` images,
// are listed for the cells that touch rows [first_row, first_row + rows) of the image. A tap's entry is its number
// t * pixels + pixel; a warp lists a segment of them at a time.
template <typename Index>
struct Listing {
    Index first_image, images, first_block, blocks, first_pixel, pixels, first_row, rows, segments, segment;

    __device__ __forceinline__ Index entries(const DeformGeometry<Index>& g) const { return g.taps() * pixels; }
    // Cells start a row above and a column before.
    __device__ __forceinline__ Index cells(const DeformGeometry<Index>& g) const { return (rows + 1) * (g.W + 1); }
};

// The cell in which an entry's tap lies, -1 if it reads nothing there.
template <typename T, typename Index>
__device__ __forceinline__ Index cell_of(const Operands<T, Index>& operands, const Listing<Index>& listing, Index n,
                                         Index block, Index entry) {
    const auto& g = operands.g;
    const Index t = entry / listing.pixels, at = listing.first_pixel + entry - t * listing.pixels;
    const auto data = operands.data_point(Pixel<Index>(g, n * g.pixels() + at), block, t);
    const Index row = data.y.cell - listing.first_row + 1, column = data.x.cell + 1;
    const bool listed = data.read() && !data.unknown() && inside(row, listing.rows + 1);
    return listed ? row * (g.W + 1) + column : Index(-1);
}

// A warp walks a segment of the entries of a block of an image in order, and counts how many lie in each cell; or, when
// `places` says where the first of each cell goes, writes them there. Then `places` says where the next one would go.
template <typename T, typename Index, bool LIST>
__global__ void __launch_bounds__(256, 1)
    deform_list(const T* __restrict__ data_offset, int* __restrict__ places, int* __restrict__ entries,
                DeformGeometry<Index> g, Listing<Index> listing) {
    const Operands<T, Index> operands{g, nullptr, nullptr, nullptr, data_offset, nullptr};
    const long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const int lane = int(threadIdx.x % 32);
    if (warp >= (long long)listing.images * listing.blocks * listing.segments) return;
    const Index cells = listing.cells(g), count = listing.entries(g);
    long long rest = warp;
    const Index segment = Index(take(rest, (long long)listing.segments)), unit = Index(rest);
    const Index n = listing.first_image + unit / listing.blocks, block = listing.first_block + unit % listing.blocks;
    int* place = places + warp * cells;
    int* list = entries + (long long)unit * count;
    if (!LIST) {
        for (Index cell = lane; cell < cells; cell += 32) place[cell] = 0;
        __syncwarp();
    }
    const Index begin = segment * listing.segment;
    const Index end = count - begin < listing.segment ? count : begin + listing.segment;
    for (Index first = begin; first < end; first += 32) {
        const Index entry = first + lane;
        const Index cell = entry < end ? cell_of(operands, listing, n, block, entry) : Index(-1);
        const unsigned peers = __match_any_sync(0xffffffffu, cell);
        const int leader = __ffs(int(peers)) - 1;
        int next = 0;
        if (cell >= 0 && lane == leader) next = atomicAdd(place + cell, __popc(peers));  // of this warp alone: in order
        next = __shfl_sync(0xffffffffu, next, leader);
        if (LIST && cell >= 0) list[next + __popc(peers & ((1u << lane) - 1))] = int(entry);
        __syncwarp();
    }
}

// Turns the counts of a block of an image into places: those of a cell behind those of the cells before, segment by segment.
template <typename Index>
__global__ void __launch_bounds__(1024, 1) deform_places(int* __restrict__ places, Index cells, Index segments) {
    __shared__ int of_warps[32];
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    int* counts = places + (long long)blockIdx.x * segments * cells;
    int listed = 0;  // in the cells before
    for (Index first = 0; first < cells; first += 1024) {
        const Index cell = first + threadIdx.x;
        int own = 0;
        if (cell < cells) {
            for (Index segment = 0; segment < segments; ++segment) own += counts[segment * cells + cell];
        }
        int upto = own;  // in the cells of this warp up to this thread's
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, upto, distance);
            if (lane >= distance) upto += other;
        }
        if (lane == 31) of_warps[warp] = upto;
        __syncthreads();
        int place = listed + upto - own;
        for (int other = 0; other < 32; ++other) {
            if (other < warp) place += of_warps[other];
            listed += of_warps[other];
        }
        if (cell < cells) {
            for (Index segment = 0; segment < segments; ++segment) {
                const int count = counts[segment * cells + cell];
                counts[segment * cells + cell] = place;
                place += count;
            }
        }
        __syncthreads();
    }
}

// ---- the image -----------------------------------------------------------------------------------------------------------

// Channels of a thread, and warps of a block: each has EACH channels of the same positions.
template <typename Acc>
constexpr int CHANNELS = sizeof(Acc) == 8 ? 2 : 4;
constexpr int WARPS = 8;

// A tap that reads a position: its output pixel, -1 if there is none, what the position counts in its sample, and the mask.
template <typename Acc, typename Index>
struct Reader {
    Index at, t;
    Acc share, shade;
};

// The taps of a block that read position (n, y, x) of the image, among those listed, in order.
template <typename T, typename Index>
struct Readers {
    using Acc = accumulator<T>;
    const Operands<T, Index>& operands;
    const Listing<Index>& listing;
    Index n, y, x, block, count;
    const int* list = nullptr;
    int base[4], upto[4];  // of each neighbour: where the list has its readers, less their numbers, and the end of these

    __device__ __forceinline__ Readers(const Operands<T, Index>& operands_, const Listing<Index>& listing_, const int* places,
                                       const int* entries, Index n_, Index y_, Index x_, Index block_)
        : operands(operands_), listing(listing_), n(n_), y(y_), x(x_), block(block_), count(operands_.g.taps()) {
        const auto& g = operands.g;
        if (!g.has_data) return;
        const Index unit = (n - listing.first_image) * listing.blocks + block - listing.first_block;
        const Index cells = listing.cells(g);
        const int* ends = places + ((long long)unit * listing.segments + listing.segments - 1) * cells;
        list = entries + (long long)unit * listing.entries(g);
        count = 0;
#pragma unroll
        for (int neighbour = 0; neighbour < 4; ++neighbour) {
            const Index cell = (y - neighbour / 2 - listing.first_row + 1) * (g.W + 1) + x - neighbour % 2 + 1;
            const int first = cell > 0 ? ends[cell - 1] : 0;
            base[neighbour] = first - int(count);
            count += ends[cell] - first;
            upto[neighbour] = int(count);
        }
    }

    __device__ __forceinline__ Reader<Acc, Index> operator[](Index k) const {
        const auto& g = operands.g;
        if (!g.has_data) {  // the tap of this number, if any pixel's reads here
            const Index i = k / g.kw, j = k - i * g.kw;
            const Index ay = anchor_of(y, i * g.dil_h - g.pad_h, g.stride_h, g.Ho);
            const Index ax = anchor_of(x, j * g.dil_w - g.pad_w, g.stride_w, g.Wo);
            const Index at = ay * g.Wo + ax;
            if (ay < 0 || ax < 0 || !inside(at - listing.first_pixel, listing.pixels)) return {-1, 0, 0, 0};
            return reader(at, k, 0, 0);
        }
        int neighbour = 0, place = base[0];
#pragma unroll
        for (int next = 1; next < 4; ++next) {
            if (k >= upto[next - 1]) neighbour = next, place = base[next];
        }
        const Index entry = list[place + k], t = entry / listing.pixels;
        return reader(listing.first_pixel + entry - t * listing.pixels, t, neighbour / 2, neighbour % 2);
    }

  private:
    __device__ __forceinline__ Reader<Acc, Index> reader(Index at, Index t, int a, int b) const {
        const Pixel<Index> pixel(operands.g, n, at);
        return {at, t, operands.data_point(pixel, block, t).weight(a, b), operands.mask_of(pixel, block, t)};
    }
};

// Each thread gathers CHANNELS elements of a position; the taps that read it are found once for all warps. Where the pixels
// come in several parts, the sums over those before are in `carried`, or in the gradient itself if that is null; `more` says
// that this part is not the last.
template <typename T, typename Index, bool DENSE>
__global__ void __launch_bounds__(32 * WARPS, 1)
    deform_backward_x(const T* __restrict__ grad_out, const T* __restrict__ weight, const T* __restrict__ kernel_offset,
                      const T* __restrict__ data_offset, const T* __restrict__ mask,
                      const accumulator<T>* __restrict__ grad_columns, const int* __restrict__ places,
                      const int* __restrict__ entries, accumulator<T>* __restrict__ carried, T* __restrict__ grad_x,
                      DeformGeometry<Index> g, Part<Index> part, Listing<Index> listing, Index more) {
    using Acc = accumulator<T>;
    constexpr int EACH = CHANNELS<Acc>;
    __shared__ Reader<Acc, Index> found[WARPS][32];
    const Operands<T, Index> operands{g, nullptr, weight, kernel_offset, data_offset, mask};
    const auto gradient = gradient_of<DENSE>(operands, grad_out, grad_columns, part);
    // Channels of a block of data offsets that are in the part, all of it or several whole blocks.
    const Index in_block = g.C / g.Gd, channels = part.channels < in_block ? part.channels : in_block;
    const Index plane = listing.rows * g.W;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const Index turn = warps * EACH;  // channels of a block
    Index rest = blockIdx.x;
    const Index position = take(rest, divide_up<Index>(plane, 32)) * 32 + lane;
    const Index slice = take(rest, divide_up(channels, turn)) * turn + warp * EACH;
    const Index first_of_block = part.first_channel + take(rest, part.channels / channels) * channels;
    const bool there = position < plane;
    const Index row = there ? position / g.W : Index(0), x = there ? position - row * g.W : Index(0);
    const Index n = listing.first_image + rest, y = listing.first_row + row;
    const Index first = first_of_block + slice, block = operands.data_block(first_of_block);
    const int held = !there || slice >= channels ? 0 : channels - slice < EACH ? int(channels - slice) : EACH;
    const Readers<T, Index> readers(operands, listing, places, entries, n, y, x, block);
    int most = there ? int(readers.count) : 0;  // readers of a position of the block
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const int other = __shfl_xor_sync(0xffffffffu, most, distance);
        most = most < other ? other : most;
    }
    Chains<Acc, EACH, 3> sums;
    for (int begin = 0; begin < most; begin += warps) {
        __syncthreads();
        if (there) found[warp][lane] = begin + warp < readers.count ? readers[begin + warp] : Reader<Acc, Index>{-1, 0, 0, 0};
        __syncthreads();
        for (int k = 0; k < warps && held > 0; ++k) {
            const Reader<Acc, Index> reader = found[k][lane];
            if (reader.at < 0) continue;
            const Pixel<Index> pixel(g, n, reader.at);
            Index kernel_block = -1;
            Point<Acc, Index> kernel;
#pragma unroll
            for (int c = 0; c < EACH; ++c) {
                if (c >= held) break;
                if (operands.kernel_block(first + c) != kernel_block) {
                    kernel_block = operands.kernel_block(first + c);
                    kernel = operands.kernel_point(pixel, kernel_block, reader.t);
                }
                if (kernel.read()) {
                    sums.chain[c] += reader.share * (reader.shade * gradient.tap(pixel, kernel, first + c, reader.t));
                }
            }
            sums.step();
        }
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        if (k >= held) break;
        Acc sum = sums.sum(k);
        T* element = grad_x + (n * g.C + first + k) * g.plane() + y * g.W + x;
        Acc* before = carried + ((first - part.first_channel + k) * listing.rows + row) * g.W + x;
        if (listing.first_pixel > 0) sum += carried ? *before : load(element);
        if (carried && more) {
            *before = sum;
        } else {
            store(element, sum);
        }
    }
}
