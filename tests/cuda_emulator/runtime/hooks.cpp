// The functions that g++ calls from code compiled with -fsanitize=thread,undefined. The sanitizers' own
// libraries are not linked: these take their place and feed the checker.
#include "runtime.h"

using namespace emu;

#define PC reinterpret_cast<uint64_t>(__builtin_return_address(0))

extern "C" {

// ---- ThreadSanitizer: every load and store. Volatile accesses are taken as atomic ones, as in spin flags.

#define ACCESS_HOOK(NAME, BYTES, KIND) \
  void __tsan_##NAME##BYTES(void* p) { access(reinterpret_cast<uintptr_t>(p), BYTES, KIND, PC); }
#define ACCESS_HOOKS(BYTES)                                  \
  ACCESS_HOOK(read, BYTES, READ)                             \
  ACCESS_HOOK(write, BYTES, WRITE)                           \
  ACCESS_HOOK(unaligned_read, BYTES, READ)                   \
  ACCESS_HOOK(unaligned_write, BYTES, WRITE)                 \
  ACCESS_HOOK(volatile_read, BYTES, READ | ATOMIC)           \
  ACCESS_HOOK(volatile_write, BYTES, WRITE | ATOMIC)         \
  ACCESS_HOOK(unaligned_volatile_read, BYTES, READ | ATOMIC) \
  ACCESS_HOOK(unaligned_volatile_write, BYTES, WRITE | ATOMIC)
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)
void __tsan_read_range(void* p, long bytes) { access(reinterpret_cast<uintptr_t>(p), int(bytes), READ, PC); }
void __tsan_write_range(void* p, long bytes) { access(reinterpret_cast<uintptr_t>(p), int(bytes), WRITE, PC); }
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// ---- the header's atomics: one access, then the plain loads and stores that carry it out pass unseen

void emu_atomic_begin(const void* p, int bytes) {
  access(reinterpret_cast<uintptr_t>(p), bytes, READ | WRITE | ATOMIC, PC);
  current->inside_atomic = true;
}
void emu_atomic_end() { current->inside_atomic = false; }

void emu_assertion_failed(const char* file, int line) {
  report("assertion failed", {0, file, line});
  stop_launch();
}

// ---- UndefinedBehaviorSanitizer: every record handed over starts with the place in the source

struct UbsanLocation {
  const char* file;
  uint32_t line, column;
};
#define UBSAN_HOOK(NAME, KIND)                                                       \
  void __ubsan_handle_##NAME(const UbsanLocation* at, ...) {                         \
    if (current) report(KIND, {0, at->file, static_cast<int>(at->line)});            \
  }
UBSAN_HOOK(out_of_bounds, "index outside a fixed array")
UBSAN_HOOK(add_overflow, "integer overflow")
UBSAN_HOOK(sub_overflow, "integer overflow")
UBSAN_HOOK(mul_overflow, "integer overflow")
UBSAN_HOOK(negate_overflow, "integer overflow")
UBSAN_HOOK(divrem_overflow, "integer division fault")
UBSAN_HOOK(shift_out_of_bounds, "shift out of range")
UBSAN_HOOK(pointer_overflow, "pointer overflow")
UBSAN_HOOK(type_mismatch_v1, "null or misaligned pointer")
UBSAN_HOOK(load_invalid_value, "invalid bool or enum value")
UBSAN_HOOK(float_cast_overflow, "float does not fit the integer")
UBSAN_HOOK(nonnull_arg, "null argument")
UBSAN_HOOK(nonnull_return_v1, "null returned")
UBSAN_HOOK(alignment_assumption, "null or misaligned pointer")
UBSAN_HOOK(invalid_builtin, "zero given to a bit-counting builtin")
UBSAN_HOOK(vla_bound_not_positive, "array of no elements")
UBSAN_HOOK(builtin_unreachable, "unreachable code reached")
UBSAN_HOOK(missing_return, "missing return")

}  // extern "C"
