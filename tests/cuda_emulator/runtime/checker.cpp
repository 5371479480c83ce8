// Judges every memory access of a kernel: inside an array? initialised? ordered with the other threads'?
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "runtime.h"

namespace emu {

const Launch* launch;

namespace {

// The last access of a kind to one byte. An all-zero entry means: none yet.
struct Access {
  uint64_t pc;
  uint32_t barrier_epoch, warp_epoch;
  int32_t block;   // number + 1, or many
  int32_t thread;  // or many
  bool atomic;
};
constexpr int32_t many = -1;

struct Shadow {
  Access write, read;
};

struct Region {
  RegionSpec spec;
  Shadow* shadow;
};

constexpr size_t max_diagnostics = 64;

std::vector<Region> regions;
size_t last_region;
uint64_t n_accesses;
std::vector<Diagnostic> diagnostics;
std::set<std::tuple<const char*, uint64_t, uint64_t, const char*, int>> reported;

// Zero pages on demand: only the shadow of bytes that are touched costs memory.
Shadow* new_shadow(size_t bytes) {
  void* memory = mmap(nullptr, bytes * sizeof(Shadow), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return static_cast<Shadow*>(memory);
}

void add_region(const RegionSpec& spec) {
  const size_t bytes = spec.end - spec.begin;
  regions.push_back({spec, launch->checking && bytes ? new_shadow(bytes) : nullptr});
}

void clear_regions() {
  for (Region& region : regions)
    if (region.shadow) munmap(region.shadow, (region.spec.end - region.spec.begin) * sizeof(Shadow));
  regions.clear();
  last_region = 0;
}

Region* find_region(uintptr_t address) {
  auto holds = [&](const Region& r) { return address >= r.spec.begin && address < r.spec.end; };
  if (last_region < regions.size() && holds(regions[last_region])) return &regions[last_region];
  for (size_t i = 0; i < regions.size(); ++i)
    if (holds(regions[i])) {
      last_region = i;
      return &regions[i];
    }
  return nullptr;
}

// ---- order between threads: a block barrier or a whole-warp __syncwarp lies between, or it is one thread

bool same_block(const Access& earlier) { return earlier.block == block_number + 1; }

bool happened_before(const Access& earlier) {
  if (!same_block(earlier)) return false;
  if (earlier.barrier_epoch != barrier_epoch) return true;
  if (earlier.thread == many) return false;
  if (earlier.thread == current->linear) return true;
  // a whole-warp __syncwarp that the other thread has passed since: this one was part of it
  return earlier.thread / warp_size == current->linear / warp_size &&
         earlier.warp_epoch != warp_epoch_of(earlier.thread);
}

bool conflicts(const Access& earlier, bool atomic, const Region& region) {
  if (!earlier.block || (atomic && earlier.atomic)) return false;
  if (region.spec.shared && !same_block(earlier)) return false;  // left over from a block that is gone
  return !happened_before(earlier);
}

void remember_write(Access& last, bool atomic, uint64_t pc) {
  last = {pc, barrier_epoch, current->warp_epoch, block_number + 1, current->linear, atomic};
}

void remember_read(Access& last, bool atomic, uint64_t pc, const Region& region) {
  const bool fresh = !last.block || (region.spec.shared && !same_block(last));
  const bool same_epoch = !fresh && same_block(last) && last.barrier_epoch == barrier_epoch;
  const bool all_atomic = atomic && (fresh || last.atomic);
  const int32_t block = fresh || same_block(last) ? block_number + 1 : many;
  const int32_t thread = block == many || (same_epoch && last.thread != current->linear) ? many : current->linear;
  last = {pc, barrier_epoch, current->warp_epoch, block, thread, all_atomic};
}

Other other_of(const Access& access) {
  return {access.block == many ? -1 : access.block - 1, access.thread, access.pc};
}

bool on_own_stack(uintptr_t address) {
  const auto stack = reinterpret_cast<uintptr_t>(current->stack);
  return address >= stack && address < stack + stack_bytes;
}

void check_bytes(Region& region, uintptr_t address, int bytes, unsigned kind, uint64_t pc) {
  const bool read = kind & READ, write = kind & WRITE, atomic = kind & ATOMIC;
  const size_t offset = address - region.spec.begin;
  const Site site{pc, nullptr, 0};
  for (size_t i = offset; i < offset + bytes; ++i) {
    Shadow& shadow = region.shadow[i];
    uint8_t* initialised = region.spec.initialised ? region.spec.initialised + i : nullptr;
    if (read && initialised && !*initialised) report("uninitialised read", site, address, bytes);
    if (conflicts(shadow.write, atomic, region))
      report(write ? "race between writes" : "race between a read and a write", site, address, bytes,
             other_of(shadow.write));
    if (write && conflicts(shadow.read, atomic, region))
      report("race between a read and a write", site, address, bytes, other_of(shadow.read));
    if (write) {
      remember_write(shadow.write, atomic, pc);
      if (initialised) *initialised = 1;
    }
    if (read) remember_read(shadow.read, atomic, pc, region);
  }
}

// ---- arrays that Numba kernels ask for by cuda.shared.array

struct SharedArray {
  std::vector<uint8_t> memory, initialised;
};
std::map<int64_t, SharedArray> numba_arrays;

void* numba_shared_array(int64_t id, size_t bytes) {
  auto [found, fresh] = numba_arrays.try_emplace(id);
  SharedArray& array = found->second;
  if (fresh) {
    array.memory.assign(bytes, 0xff);
    array.initialised.assign(bytes, 0);
    const auto begin = reinterpret_cast<uint64_t>(array.memory.data());
    add_region({begin, begin + bytes, array.initialised.data(), 0, 1});
  }
  return array.memory.data();
}

}  // namespace

void begin_checking(const Launch& spec) {
  clear_regions();
  launch = &spec;
  diagnostics.clear();
  reported.clear();
  n_accesses = 0;
  for (uint32_t i = 0; i < spec.n_regions; ++i) add_region(spec.regions[i]);
}

void end_checking() {
  clear_regions();
  numba_arrays.clear();
  launch = nullptr;
}

void begin_block() {
  for (Region& region : regions) {
    if (!region.spec.shared) continue;
    const size_t bytes = region.spec.end - region.spec.begin;
    memset(reinterpret_cast<void*>(region.spec.begin), 0xff, bytes);
    if (region.spec.initialised) memset(region.spec.initialised, 0, bytes);
  }
}

void report(const char* kind, const Site& site, uint64_t address, int bytes, const Other& other) {
  if (diagnostics.size() >= max_diagnostics) return;
  if (!reported.insert({kind, site.pc, other.pc, site.file, site.line}).second) return;
  diagnostics.push_back({kind, site.file, site.pc, other.pc, address, site.line, bytes, block_number,
                         current ? current->linear : -1, other.block, other.thread});
}

void access(uintptr_t address, int bytes, unsigned kind, uint64_t pc) {
  if (!current || !launch->checking || current->inside_atomic || on_own_stack(address)) return;
  const Site site{pc, nullptr, 0};
  if (++n_accesses > launch->max_accesses) {
    report("endless loop", site, address, bytes);
    stop_launch();
  }
  Region* region = find_region(address);
  if (!region && address >= launch->image_begin && address + bytes <= launch->image_end) return;
  if (!region || address + bytes > region->spec.end) {
    report(kind & WRITE ? "out-of-bounds write" : "out-of-bounds read", site, address, bytes);
    stop_launch();
  }
  if ((kind & WRITE) && region->spec.read_only) report("write to read-only memory", site, address, bytes);
  check_bytes(*region, address, bytes, kind, pc);
}

}  // namespace emu

using namespace emu;

extern "C" {

int emu_diagnostics(const Diagnostic** found) {
  *found = diagnostics.data();
  return static_cast<int>(diagnostics.size());
}

void* emu_numba_shared_array(int64_t id, int64_t bytes) {
  return numba_shared_array(id, bytes < 0 ? launch->dynamic_shared_bytes : bytes);
}

int64_t emu_numba_dynamic_bytes() { return launch->dynamic_shared_bytes; }

void emu_numba_access(int64_t address, int64_t bytes, int64_t kind, int64_t site) {
  access(address, static_cast<int>(bytes), static_cast<unsigned>(kind), static_cast<uint64_t>(site));
}

void emu_numba_bad_index(int64_t write, int64_t site) {
  report(write ? "out-of-bounds write" : "out-of-bounds read", {static_cast<uint64_t>(site), nullptr, 0});
  stop_launch();
}

}  // extern "C"
