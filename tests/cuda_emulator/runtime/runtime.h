// What the files of the runtime share: a CUDA thread, a launch, a finding.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr size_t stack_bytes = 64 << 10;
constexpr int warp_size = 32;

struct Dim {
  unsigned x, y, z;
};

enum class State { ready, at_barrier, in_warp_operation, finished };

// Where in the source something happened: a code address, or a file and a line, whichever is known.
struct Site {
  uint64_t pc = 0;
  const char* file = nullptr;
  int line = 0;
};

// source of a warp operation: a lane to copy from, or one of these
constexpr int gather_all_lanes = -1;
constexpr int synchronise_only = -2;

struct WarpOperation {
  unsigned mask;
  const void* value;  // on the stack of the calling thread, which waits: no copy is needed
  void* result;
  unsigned bytes;
  int source;
  unsigned participants;
};

struct Thread {
  void* stack_pointer;
  char* stack;
  Dim index;
  int linear;
  State state;
  Site waiting_at;
  int predicate;           // of __syncthreads_count and its like
  WarpOperation warp;
  uint32_t warp_epoch;     // number of whole-warp synchronisations passed
  bool inside_atomic;
};

// The structs below are mirrored by ctypes in launch.py.
struct RegionSpec {
  uint64_t begin, end;
  uint8_t* initialised;    // a byte per byte of the region, or null: all of it is
  int32_t read_only, shared;
};

struct Launch {
  void (*entry)(void**);
  void** arguments;
  const RegionSpec* regions;
  uint64_t image_begin, image_end;  // the module's own constants and variables: never checked
  uint64_t max_accesses;
  uint64_t last_blocks;    // how many of the grid's blocks to run, its last ones
  uint32_t n_regions, grid[3], block[3], order, seed, checking, dynamic_shared_bytes;
};

struct Diagnostic {
  const char* kind;
  const char* file;
  uint64_t pc, other_pc, address;
  int32_t line, bytes, block, thread, other_block, other_thread;
};

// scheduler.cpp
extern Thread* current;          // the thread that runs, null while the scheduler does
extern int block_number;
extern uint32_t barrier_epoch;   // number of __syncthreads() this block has passed
uint32_t warp_epoch_of(int thread);
[[noreturn]] void stop_launch(); // leaves the current thread for good and ends the launch
void abandon_from_signal(void** instruction_pointer, void** stack_pointer);

// checker.cpp
struct Other {
  int block = -1, thread = -1;
  uint64_t pc = 0;
};
extern const Launch* launch;
void begin_checking(const Launch& launch);
void end_checking();
void begin_block();
void report(const char* kind, const Site& site, uint64_t address = 0, int bytes = 0, const Other& other = {});
// Bits of an access: an atomic update reads and writes.
enum AccessKind : unsigned { READ = 1, WRITE = 2, ATOMIC = 4 };
void access(uintptr_t address, int bytes, unsigned kind, uint64_t pc);

// faults.cpp
void catch_faults();
void release_faults();

}  // namespace emu
