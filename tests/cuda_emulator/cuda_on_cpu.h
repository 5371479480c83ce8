// Included before every .cu source (g++ -include): makes CUDA C++ compile as host C++17.
// Sources may ask for CUDA_EMULATOR where there is no other way: inline PTX does not assemble here.
#pragma once
#define CUDA_EMULATOR 1

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include <vector_types.h>
#include <vector_functions.h>
#include <cuda_fp16.h>  // NVIDIA's own headers compute __half and __nv_bfloat16 on the host
#include <cuda_bf16.h>

// ---- declaration keywords

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __managed__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef assert
#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __shared__ thread_local  // one OS thread runs all: static, found in the symbol table, and legal after extern
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define EMU_INLINE static inline __attribute__((always_inline))  // findings then carry the line of the caller
#define assert(condition) ((condition) ? (void)0 : emu_assertion_failed(__FILE__, __LINE__))

// ---- the runtime

extern "C" {
// constant for one thread, so that the compiler may merge calls
uint3 emu_thread_idx() __attribute__((const));
uint3 emu_block_idx() __attribute__((const));
uint3 emu_block_dim() __attribute__((const));
uint3 emu_grid_dim() __attribute__((const));
int emu_lane() __attribute__((const));
void emu_barrier(int predicate, const char* file, int line, int* count, int* all);
unsigned emu_warp(unsigned mask, const void* value, void* result, unsigned bytes, int source);
unsigned emu_active_mask();
void emu_atomic_begin(const void* p, int bytes);
void emu_atomic_end();
void emu_assertion_failed(const char* file, int line);
void emu_argument(int index, void* value, unsigned bytes);
}

#define threadIdx emu_thread_idx()
#define blockIdx emu_block_idx()
#define blockDim emu_block_dim()
#define gridDim emu_grid_dim()
#define warpSize 32

// ---- barriers and fences (accesses are sequentially consistent here: a fence has nothing to add)

EMU_INLINE int __syncthreads_count(int p, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  int count, all;
  emu_barrier(p, file, line, &count, &all);
  return count;
}
EMU_INLINE int __syncthreads_and(int p, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  int count, all;
  emu_barrier(p, file, line, &count, &all);
  return all;
}
EMU_INLINE int __syncthreads_or(int p, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return __syncthreads_count(p, file, line) > 0;
}
EMU_INLINE void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  __syncthreads_count(0, file, line);
}
EMU_INLINE void __threadfence() {}
EMU_INLINE void __threadfence_block() {}
EMU_INLINE void __threadfence_system() {}
EMU_INLINE void __trap() { __builtin_trap(); }

// ---- warp operations

constexpr int emu_gather_all_lanes = -1, emu_synchronise_only = -2;

EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu) { emu_warp(mask, nullptr, nullptr, 0, emu_synchronise_only); }
EMU_INLINE unsigned __activemask() { return emu_active_mask(); }

template <typename T>
EMU_INLINE T emu_shuffle(unsigned mask, T value, int source, bool in_segment) {
  T result = value;
  emu_warp(mask, &value, &result, sizeof(T), in_segment ? source : emu_lane());
  return result;
}
template <typename T>
EMU_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emu_shuffle(mask, value, (emu_lane() & ~(width - 1)) | (source & (width - 1)), true);
}
template <typename T>
EMU_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = emu_lane() - static_cast<int>(delta);
  return emu_shuffle(mask, value, source, source >= (emu_lane() & ~(width - 1)));
}
template <typename T>
EMU_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = emu_lane() + static_cast<int>(delta);
  return emu_shuffle(mask, value, source, source <= (emu_lane() | (width - 1)));
}
template <typename T>
EMU_INLINE T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int source = emu_lane() ^ lane_mask;
  return emu_shuffle(mask, value, source, source <= (emu_lane() | (width - 1)));
}

// f(lane, its value) for every lane that takes part; returns their mask
template <typename T, typename F>
EMU_INLINE unsigned emu_for_lanes(unsigned mask, T value, F f) {
  T values[32];
  const unsigned lanes = emu_warp(mask, &value, values, sizeof(T), emu_gather_all_lanes);
  for (int lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) f(lane, values[lane]);
  return lanes;
}
EMU_INLINE unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned ballot = 0;
  emu_for_lanes(mask, predicate, [&](int lane, int p) { ballot |= unsigned(p != 0) << lane; });
  return ballot;
}
EMU_INLINE int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
EMU_INLINE int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <typename T>
EMU_INLINE unsigned __match_any_sync(unsigned mask, T value) {
  unsigned same = 0;
  emu_for_lanes(mask, value, [&](int lane, T v) { same |= unsigned(v == value) << lane; });
  return same;
}
template <typename T>
EMU_INLINE unsigned __match_all_sync(unsigned mask, T value, int* all) {
  unsigned same = 0;
  const unsigned lanes = emu_for_lanes(mask, value, [&](int lane, T v) { same |= unsigned(v == value) << lane; });
  *all = same == lanes;
  return *all ? lanes : 0;
}
#define EMU_WARP_REDUCTION(NAME, COMBINED)                                                 \
  template <typename T>                                                                    \
  EMU_INLINE T NAME(unsigned mask, T value) {                                              \
    bool first = true;                                                                     \
    T a{};                                                                                 \
    emu_for_lanes(mask, value, [&](int, T b) { a = first ? b : T(COMBINED), first = false; }); \
    return a;                                                                              \
  }
EMU_WARP_REDUCTION(__reduce_add_sync, a + b)
EMU_WARP_REDUCTION(__reduce_min_sync, a < b ? a : b)
EMU_WARP_REDUCTION(__reduce_max_sync, a > b ? a : b)
EMU_WARP_REDUCTION(__reduce_and_sync, a & b)
EMU_WARP_REDUCTION(__reduce_or_sync, a | b)
EMU_WARP_REDUCTION(__reduce_xor_sync, a ^ b)

// What `mma.sync.m16n8k8` does with factors in TF32. Others are a finding; sums are cut off, as tensor cores may do.
EMU_INLINE void emu_multiply_tf32(float (&sums)[4], const float (&rows)[4], const float (&columns)[2],
                                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  struct Factors { float rows[4], columns[2]; } own, all[32];
  for (int i = 0; i < 4; ++i) own.rows[i] = rows[i];
  for (int i = 0; i < 2; ++i) own.columns[i] = columns[i];
  for (float factor : {rows[0], rows[1], rows[2], rows[3], columns[0], columns[1]}) {
    uint32_t bits;
    memcpy(&bits, &factor, sizeof bits);
    bits &= 0xffffe000u;
    float held;
    memcpy(&held, &bits, sizeof held);
    if (held != factor && !(isnan(held) && isnan(factor))) emu_assertion_failed(file, line);
  }
  emu_warp(0xffffffffu, &own, all, sizeof own, emu_gather_all_lanes);
  const int g = emu_lane() / 4, t = emu_lane() % 4;
  for (int i = 0; i < 4; ++i) {
    double exact = sums[i];
    for (int k = 0; k < 8; ++k) {
      const float row = all[4 * g + k % 4].rows[2 * (k / 4) + i / 2];
      exact += double(row) * all[4 * (2 * t + i % 2) + k % 4].columns[k / 4];
    }
    float nearest = static_cast<float>(exact);
    if (fabs(double(nearest)) > fabs(exact) && !isinf(exact)) nearest = nextafterf(nearest, 0);
    sums[i] = nearest;
  }
}

// ---- atomics

template <typename T>
struct emu_type { using same = T; };  // keeps a parameter out of template deduction, as in atomicAdd(float*, 1)

template <typename T, typename F>
EMU_INLINE T emu_atomic(T* p, F update) {
  emu_atomic_begin(p, sizeof(T));
  T old = *p;
  *p = update(old);
  emu_atomic_end();
  return old;
}
#define EMU_ATOMIC(NAME, UPDATED)                                \
  template <typename T>                                          \
  EMU_INLINE T NAME(T* p, typename emu_type<T>::same v) {        \
    return emu_atomic(p, [&](T old) -> T { return UPDATED; });   \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicInc, old >= v ? T(0) : old + 1)
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
template <typename T>
EMU_INLINE T atomicCAS(T* p, typename emu_type<T>::same expected, typename emu_type<T>::same v) {
  return emu_atomic(p, [&](T old) -> T { return old == expected ? v : old; });
}

// ---- loads and stores with cache hints

template <typename T> EMU_INLINE T __ldg(const T* p) { return *p; }
template <typename T> EMU_INLINE T __ldcs(const T* p) { return *p; }
template <typename T> EMU_INLINE T __ldcg(const T* p) { return *p; }
template <typename T> EMU_INLINE T __ldca(const T* p) { return *p; }
template <typename T> EMU_INLINE void __stcs(T* p, typename emu_type<T>::same v) { *p = v; }
template <typename T> EMU_INLINE void __stcg(T* p, typename emu_type<T>::same v) { *p = v; }
template <typename T> EMU_INLINE void __stwb(T* p, typename emu_type<T>::same v) { *p = v; }

// ---- arithmetic. The approximate functions are exact here. Macros where glibc owns the name.

#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
EMU_INLINE float __fdividef(float a, float b) { return a / b; }
EMU_INLINE float __frcp_rn(float a) { return 1.0f / a; }
EMU_INLINE float __fsqrt_rn(float a) { return sqrtf(a); }
EMU_INLINE float __fadd_rn(float a, float b) { return a + b; }
EMU_INLINE float __fsub_rn(float a, float b) { return a - b; }
EMU_INLINE float __fmul_rn(float a, float b) { return a * b; }
EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INLINE double __dadd_rn(double a, double b) { return a + b; }
EMU_INLINE double __dmul_rn(double a, double b) { return a * b; }
EMU_INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
EMU_INLINE float rsqrtf(float a) { return 1.0f / sqrtf(a); }
EMU_INLINE double rsqrt(double a) { return 1.0 / sqrt(a); }
EMU_INLINE float __saturatef(float a) { return a >= 1.0f ? 1.0f : a > 0.0f ? a : 0.0f; }  // NaN to 0
EMU_INLINE int __float_as_int(float a) { int r; memcpy(&r, &a, 4); return r; }
EMU_INLINE unsigned __float_as_uint(float a) { unsigned r; memcpy(&r, &a, 4); return r; }
EMU_INLINE float __int_as_float(int a) { float r; memcpy(&r, &a, 4); return r; }
EMU_INLINE float __uint_as_float(unsigned a) { float r; memcpy(&r, &a, 4); return r; }
EMU_INLINE long long __double_as_longlong(double a) { long long r; memcpy(&r, &a, 8); return r; }
EMU_INLINE double __longlong_as_double(long long a) { double r; memcpy(&r, &a, 8); return r; }
EMU_INLINE int __float2int_rd(float a) { return static_cast<int>(floorf(a)); }
EMU_INLINE int __float2int_rn(float a) { return static_cast<int>(rintf(a)); }
EMU_INLINE float __int2float_rn(int a) { return static_cast<float>(a); }
EMU_INLINE int __popc(unsigned a) { return __builtin_popcount(a); }
EMU_INLINE int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
EMU_INLINE int __clz(int a) { return a ? __builtin_clz(a) : 32; }
EMU_INLINE int __clzll(long long a) { return a ? __builtin_clzll(a) : 64; }
EMU_INLINE int __ffs(int a) { return __builtin_ffs(a); }
EMU_INLINE int __mul24(int a, int b) { return a * b; }
EMU_INLINE int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned long long>(a) * b >> 32; }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

template <typename A, typename B>
using emu_number = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>;
template <typename A, typename B>
EMU_INLINE emu_number<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return ::fmin(T(a), T(b));
  else return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B>
EMU_INLINE emu_number<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return ::fmax(T(a), T(b));
  else return T(a) < T(b) ? T(b) : T(a);
}

// ---- what NVIDIA's headers leave out of the half types on the host. Templates: where a header has one, it wins.

template <typename H>
constexpr bool emu_is_half = std::is_same_v<H, __half> || std::is_same_v<H, __nv_bfloat16>;
template <typename H>
using emu_if_half = std::enable_if_t<emu_is_half<H>, H>;
template <typename H>
using emu_if_half2 = std::enable_if_t<std::is_same_v<H, __half2> || std::is_same_v<H, __nv_bfloat162>, H>;

template <typename H> EMU_INLINE emu_if_half<H> __hfma(H a, H b, H c) {
  return static_cast<H>(fma(double(float(a)), double(float(b)), double(float(c))));
}
#define EMU_HALF_FUNCTION(NAME, FUNCTION) \
  template <typename H> EMU_INLINE emu_if_half<H> NAME(H a) { return static_cast<H>(FUNCTION(float(a))); }
EMU_HALF_FUNCTION(hexp, expf)
EMU_HALF_FUNCTION(hexp2, exp2f)
EMU_HALF_FUNCTION(hlog, logf)
EMU_HALF_FUNCTION(hlog2, log2f)
EMU_HALF_FUNCTION(hsqrt, sqrtf)
EMU_HALF_FUNCTION(hrsqrt, rsqrtf)
EMU_HALF_FUNCTION(hrcp, __frcp_rn)
EMU_HALF_FUNCTION(hsin, sinf)
EMU_HALF_FUNCTION(hcos, cosf)
EMU_HALF_FUNCTION(htanh, tanhf)
EMU_HALF_FUNCTION(hfloor, floorf)
EMU_HALF_FUNCTION(hceil, ceilf)
EMU_HALF_FUNCTION(hrint, rintf)
template <typename H2> EMU_INLINE emu_if_half2<H2> __hfma2(H2 a, H2 b, H2 c) {
  return H2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
template <typename H2> EMU_INLINE emu_if_half2<H2> h2exp(H2 a) { return H2(hexp(a.x), hexp(a.y)); }
template <typename H2> EMU_INLINE emu_if_half2<H2> h2sqrt(H2 a) { return H2(hsqrt(a.x), hsqrt(a.y)); }

// ---- the kernel table: how to call a kernel and what its parameters are (mirrored in library.py)

struct emu_parameter {
  int bytes;          // of the argument
  int pointee_bytes;  // 0: not a pointer, or to void
  char type;          // f float, i integer or bool, h __half, b __nv_bfloat16, o other (of the pointee, for a pointer)
  char is_pointer, is_const;
};
template <typename T>
constexpr char emu_type_code() {
  if constexpr (std::is_same_v<T, __half>) return 'h';
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return 'b';
  else if constexpr (std::is_integral_v<T>) return 'i';
  else if constexpr (std::is_floating_point_v<T>) return 'f';
  else return 'o';
}
template <typename A>
constexpr emu_parameter emu_describe() {
  using P = std::remove_pointer_t<A>;
  if constexpr (std::is_void_v<P>) return {sizeof(A), 0, 'o', 1, std::is_const_v<P>};
  else if constexpr (std::is_pointer_v<A>)
    return {sizeof(A), sizeof(P), emu_type_code<std::remove_cv_t<P>>(), 1, std::is_const_v<P>};
  else return {sizeof(A), 0, emu_type_code<A>(), 0, 0};
}
template <auto kernel>
struct emu_kernel;
template <typename... A, void (*kernel)(A...)>
struct emu_kernel<kernel> {
  static constexpr int n = sizeof...(A);
  static constexpr emu_parameter parameters[n + 1] = {emu_describe<std::remove_cv_t<A>>()..., {}};
  template <size_t... I>
  static void call_with(std::tuple<std::remove_cv_t<A>...> values, std::index_sequence<I...>) {
    (emu_argument(I, &std::get<I>(values), sizeof(A)), ...);
    kernel(std::get<I>(values)...);
  }
  static void call(void**) { call_with({}, std::index_sequence_for<A...>{}); }
};
struct emu_entry {
  void (*call)(void**);
  const void* address;
  const emu_parameter* parameters;
  int n;
};
#define EMU_EXPORT(ID, ...)                                                                               \
  extern "C" const emu_entry emu_entry_##ID;                                                              \
  const emu_entry emu_entry_##ID = {&emu_kernel<&__VA_ARGS__>::call, reinterpret_cast<const void*>(&__VA_ARGS__), \
                                    emu_kernel<&__VA_ARGS__>::parameters, emu_kernel<&__VA_ARGS__>::n};
