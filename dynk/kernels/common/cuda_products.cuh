// Matrix products over shared memory: a block of THREADS multiplies strips of TILE rows and TILE columns, DEPTH at a time,
// and forms the factors as it loads them.
#pragma once

#include "cuda_common.cuh"

namespace dynk {

constexpr int TILE = 64, DEPTH = 16, SIDE = 16, EACH = TILE / SIDE;
constexpr int THREADS = SIDE * SIDE;
constexpr int LOADS = TILE * DEPTH / THREADS;  // of a thread, for either factor
constexpr int PADDING = 4;                     // spreads a strip's rows over the banks

template <typename Acc>
struct Strips {
    Acc rows[DEPTH][TILE + PADDING], columns[DEPTH][TILE + PADDING];
};

// Where a thread loads: position along a strip and depth, for strips whose neighbours in memory lie along the strip or
// along the depth.
__device__ __forceinline__ int strip_along() { return threadIdx.x % TILE; }
__device__ __forceinline__ int strip_depth(int load) { return threadIdx.x / TILE + load * (THREADS / TILE); }
__device__ __forceinline__ int depth_along(int load) { return threadIdx.x / DEPTH + load * (THREADS / DEPTH); }
__device__ __forceinline__ int depth_depth() { return threadIdx.x % DEPTH; }

// Adds up a tile of EACH x EACH sums of each thread. load_strips(strips, k) writes DEPTH factors from depth k on, zeros
// beyond the end. All threads of a block must call it.
template <typename Acc, typename Index, typename LoadStrips>
__device__ __forceinline__ void multiply(Acc (&total)[EACH][EACH], Strips<Acc>& strips, Index begin, Index end,
                                         LoadStrips load_strips) {
    const int first_row = threadIdx.x / SIDE * EACH, first_column = threadIdx.x % SIDE * EACH;
    Acc chain[EACH][EACH], merged[EACH][EACH];
#pragma unroll
    for (int r = 0; r < EACH; ++r) {
#pragma unroll
        for (int c = 0; c < EACH; ++c) chain[r][c] = merged[r][c] = total[r][c] = 0;
    }
    const auto fold = [](Acc(&from)[EACH][EACH], Acc(&to)[EACH][EACH]) {
#pragma unroll
        for (int r = 0; r < EACH; ++r) {
#pragma unroll
            for (int c = 0; c < EACH; ++c) {
                to[r][c] += from[r][c];
                from[r][c] = 0;
            }
        }
    };
    unsigned turn = 0;
    for (Index k = begin; k < end; k += DEPTH) {
        load_strips(strips, k);
        __syncthreads();
#pragma unroll
        for (int depth = 0; depth < DEPTH; ++depth) {
            Acc row[EACH], column[EACH];
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
                row[e] = strips.rows[depth][first_row + e];
                column[e] = strips.columns[depth][first_column + e];
            }
#pragma unroll
            for (int r = 0; r < EACH; ++r) {
#pragma unroll
                for (int c = 0; c < EACH; ++c) chain[r][c] += row[r] * column[c];
            }
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

// Calls visit(row, column, sum, false) for each sum of a thread that is finite, rows and columns counted within the tile,
// and then visit(row, column, 0, true) for the others: so the code that forms a sum again is there once. Without `redo` all
// sums are taken as they are.
template <typename Acc, typename Visit>
__device__ __forceinline__ void each_sum(const Acc (&total)[EACH][EACH], Visit visit, bool redo = true) {
    const int first_row = threadIdx.x / SIDE * EACH, first_column = threadIdx.x % SIDE * EACH;
    unsigned again = 0;
#pragma unroll
    for (int k = 0; k < EACH * EACH; ++k) {
        const Acc sum = total[k / EACH][k % EACH];
        if (!redo || is_finite(sum)) {
            visit(first_row + k / EACH, first_column + k % EACH, sum, false);
        } else {
            again |= 1u << k;
        }
    }
#pragma unroll 1
    for (int k = 0; k < EACH * EACH; ++k) {
        if (again >> k & 1) visit(first_row + k / EACH, first_column + k % EACH, Acc(0), true);
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
