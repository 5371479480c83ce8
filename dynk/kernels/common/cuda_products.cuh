// Matrix products over shared memory: a block of THREADS multiplies strips of TILE rows and TILE columns, DEPTH at a time,
// and forms the factors as it loads them. Those of half types run on tensor cores where they take TF32.
#pragma once

#include "cuda_common.cuh"

namespace dynk {

constexpr int TILE = 64, DEPTH = 16, SIDE = 16, EACH = TILE / SIDE;
constexpr int THREADS = SIDE * SIDE;
constexpr int LOADS = TILE * DEPTH / THREADS;  // of a thread, for either factor
constexpr int PADDING = 8;                     // spreads a strip's rows over the banks

// Blocks whose registers a multiprocessor must hold at once: one loads while another multiplies.
template <typename T, typename Index>
constexpr int RESIDENT = sizeof(accumulator<T>) == 4 && sizeof(Index) == 4 ? 2 : 1;

template <typename Acc>
struct alignas(16) Strips {
    Acc rows[DEPTH][TILE + PADDING], columns[DEPTH][TILE + PADDING];
};

// Where a thread loads: position along a strip and depth, for strips whose neighbours in memory lie along the strip or
// along the depth.
__device__ __forceinline__ int strip_along() { return threadIdx.x % TILE; }
__device__ __forceinline__ int strip_depth(int load) { return threadIdx.x / TILE + load * (THREADS / TILE); }
__device__ __forceinline__ int depth_along(int load) { return threadIdx.x / DEPTH + load * (THREADS / DEPTH); }
__device__ __forceinline__ int depth_depth() { return threadIdx.x % DEPTH; }

// The first of the EACH rows and of the EACH columns of a tile whose sums a thread holds: a warp has 32 x 16 of them, as its
// matrix instructions leave them.
__device__ __forceinline__ int first_row() { return threadIdx.x / 128 * 32 + threadIdx.x % 32 / 4 * EACH; }
__device__ __forceinline__ int first_column() { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 4 * EACH; }

template <typename Acc>
using Sums = Acc[EACH][EACH];

// Calls visit(row, column) for each sum of a thread.
template <typename Visit>
__device__ __forceinline__ void each_place(Visit visit) {
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
#pragma unroll
        for (int c = 0; c < EACH; ++c) visit(r, c);
    }
}

// ---- a step of DEPTH ---------------------------------------------------------------------------------------------------

template <typename Acc>
__device__ __forceinline__ void multiply_step(Sums<Acc>& sums, const Strips<Acc>& strips) {
#pragma unroll
    for (int depth = 0; depth < DEPTH; ++depth) {
        Acc row[EACH], column[EACH];
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            row[e] = strips.rows[depth][first_row() + e];
            column[e] = strips.columns[depth][first_column() + e];
        }
        each_place([&](int r, int c) { sums[r][c] += row[r] * column[c]; });
    }
}

// Whether products of T run on tensor cores: TF32 holds the half types exactly.
template <typename T>
constexpr bool TENSOR_CORES =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    false;
#else
    sizeof(T) == 2;
#endif

// The leading part of a number that TF32 holds. A NaN's payload may be lost, never that two parts add up to one.
__device__ __forceinline__ float in_tf32(float value) { return __uint_as_float(__float_as_uint(value) & 0xffffe000u); }

// sums += rows (16 x 8) * columns (8 x 8) by a warp. With g = lane / 4 and t = lane % 4 a lane has rows (g, t), (g + 8, t),
// (g, t + 4), (g + 8, t + 4), columns (t, g), (t + 4, g), and sums (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const float (&rows)[4], const float (&columns)[2]) {
#ifdef CUDA_EMULATOR
    emu_multiply_tf32(sums, rows, columns);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(__float_as_uint(rows[0])), "r"(__float_as_uint(rows[1])), "r"(__float_as_uint(rows[2])),
                   "r"(__float_as_uint(rows[3])), "r"(__float_as_uint(columns[0])), "r"(__float_as_uint(columns[1])));
#endif
}

// The same on tensor cores, for rows that TF32 holds. Columns are the sum of two such numbers, but for the last two of their
// 24 bits, or EXACT, a single one. A sum of few terms is formed at a time: tensor cores cut sums off. Not for NaN and
// infinity, which no sum of two parts gives back.
template <bool EXACT>
__device__ __forceinline__ void multiply_step_tf32(Sums<float>& sums, const Strips<float>& strips) {
    const int t = threadIdx.x % 4, first = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 * 2;
    float units[2][2][4] = {};  // of two rows and two columns of instructions, which share the thread's places by turns
#pragma unroll 1
    for (int depth = t; depth < DEPTH; depth += 8) {
        float rows[2][4], leading[2][2], rest[2][2];
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            rows[e / 2][e % 2] = strips.rows[depth][first_row() + e];
            rows[e / 2][2 + e % 2] = strips.rows[depth + 4][first_row() + e];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float column = strips.columns[depth + e / 2 * 4][first + e % 2];
            leading[e % 2][e / 2] = EXACT ? column : in_tf32(column);
            rest[e % 2][e / 2] = in_tf32(column - leading[e % 2][e / 2]);
        }
#pragma unroll
        for (int unit = 0; unit < 4; ++unit) {
            if constexpr (!EXACT) multiply_tf32(units[unit / 2][unit % 2], rows[unit / 2], rest[unit % 2]);
        }
#pragma unroll
        for (int unit = 0; unit < 4; ++unit) multiply_tf32(units[unit / 2][unit % 2], rows[unit / 2], leading[unit % 2]);
    }
    each_place([&](int r, int c) { sums[r][c] += units[r / 2][c % 2][r % 2 * 2 + c / 2]; });
}

// ---- a tile ------------------------------------------------------------------------------------------------------------

template <bool TF32, bool EXACT, typename Acc, typename Index, typename LoadStrips>
__device__ __forceinline__ void multiply_by(Sums<Acc>& total, Strips<Acc>& strips, Index begin, Index end,
                                            LoadStrips load_strips) {
    Sums<Acc> chain, merged;
    each_place([&](int r, int c) { chain[r][c] = merged[r][c] = total[r][c] = 0; });
    const auto fold = [](Sums<Acc>& from, Sums<Acc>& to) {
        each_place([&](int r, int c) {
            to[r][c] += from[r][c];
            from[r][c] = 0;
        });
    };
    unsigned turn = 0;
    for (Index k = begin; k < end; k += DEPTH) {
        load_strips(strips, k);
        __syncthreads();
        if constexpr (TF32) {
            multiply_step_tf32<EXACT>(chain, strips);
        } else {
            multiply_step(chain, strips);
        }
        __syncthreads();
        if (++turn % (CHAIN / DEPTH) == 0) fold(chain, merged);
        if (turn % (CHAIN * CHAIN / DEPTH) == 0) fold(merged, total);
    }
    fold(chain, merged);
    fold(merged, total);
}

template <typename Acc>
__device__ __forceinline__ bool is_finite(Acc value) {
    return value - value == 0;
}

// Adds up a tile of EACH x EACH sums of each thread. load_strips(strips, k) writes DEPTH factors from depth k on, zeros
// beyond the end; the rows are elements of T, and EXACT, so are the columns. All threads of a block must call it.
template <typename T, bool EXACT = false, typename Index, typename LoadStrips>
__device__ __forceinline__ void multiply(Sums<accumulator<T>>& total, Strips<accumulator<T>>& strips, Index begin, Index end,
                                         LoadStrips load_strips) {
    if constexpr (TENSOR_CORES<T>) {
        multiply_by<true, EXACT>(total, strips, begin, end, load_strips);
        bool finite = true;
        each_place([&](int r, int c) { finite = finite && is_finite(total[r][c]); });
        if (__syncthreads_and(finite)) return;
    }
    multiply_by<false, EXACT>(total, strips, begin, end, load_strips);
}

// Calls visit(row, column, sum, false) for each sum of a thread that is finite, rows and columns counted within the tile,
// and then visit(row, column, 0, true) for the others: so the code that forms a sum again is there once. Without `redo` all
// sums are taken as they are.
template <typename Acc, typename Visit>
__device__ __forceinline__ void each_sum(const Sums<Acc>& total, Visit visit, bool redo = true) {
    unsigned again = 0;
#pragma unroll
    for (int k = 0; k < EACH * EACH; ++k) {
        const Acc sum = total[k / EACH][k % EACH];
        if (!redo || is_finite(sum)) {
            visit(first_row() + k / EACH, first_column() + k % EACH, sum, false);
        } else {
            again |= 1u << k;
        }
    }
#pragma unroll 1
    for (int k = 0; k < EACH * EACH; ++k) {
        if (again >> k & 1) visit(first_row() + k / EACH, first_column() + k % EACH, Acc(0), true);
    }
}

// The tile of a block: strips of columns run fastest, then strips of rows, then groups, then parts.
template <typename Index>
struct Tile {
    Index column, row, group, part;

    __device__ __forceinline__ Tile(Index rows, Index columns, Index groups) {
        long long rest = blockIdx.x;
        column = Index(take(rest, (long long)divide_up<Index>(columns, TILE))) * TILE;
        row = Index(take(rest, (long long)divide_up<Index>(rows, TILE))) * TILE;
        group = Index(take(rest, (long long)groups));
        part = Index(rest);
    }
};

}  // namespace dynk
