// Runs the threads of a block as fibres on one OS thread: each runs until it waits or ends.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "runtime.h"

// emu_switch(&save, to): keep the callee-saved registers on this stack, go on with another stack.
extern "C" void emu_switch(void** save, void* to);
extern "C" void emu_resume();  // the second half of emu_switch: where a faulting thread is sent
asm(R"(
.text
.globl emu_switch, emu_resume
.type emu_switch, @function
.type emu_resume, @function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
emu_resume:
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

namespace emu {

Thread* current;
int block_number;
uint32_t barrier_epoch;

namespace {

enum Order { sequential, reverse, shuffled };

constexpr size_t page_bytes = 4096;

std::vector<char*> stacks;
std::vector<Thread> threads;
void* scheduler_stack_pointer;
Dim block_index, block_dim, grid_dim;
bool stopped;
struct {
  int count;
  bool all;
} barrier_result;

void wait() { emu_switch(&current->stack_pointer, scheduler_stack_pointer); }

void thread_main() {
  launch->entry(launch->arguments);
  current->state = State::finished;
  wait();
  abort();  // a finished thread is never resumed
}

char* new_stack() {
  auto* memory = static_cast<char*>(mmap(nullptr, page_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) abort();
  mprotect(memory, page_bytes, PROT_NONE);  // an overflow faults instead of reaching the next stack
  return memory + page_bytes;
}

void prepare(Thread& thread, int linear) {
  thread = Thread{};
  thread.stack = stacks[linear];
  thread.linear = linear;
  const unsigned n = linear;
  thread.index = {n % block_dim.x, n / block_dim.x % block_dim.y, n / block_dim.x / block_dim.y};
  // What emu_resume pops: six registers, then the address to return to. The odd slot above keeps the
  // stack aligned to 16 bytes at the entry of thread_main.
  void** top = reinterpret_cast<void**>(thread.stack + stack_bytes) - 1;
  *--top = reinterpret_cast<void*>(thread_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}

void run(Thread& thread) {
  current = &thread;
  emu_switch(&scheduler_stack_pointer, thread.stack_pointer);
  current = nullptr;
}

void report_for(Thread& thread, const char* kind, const Other& other = {}) {
  current = &thread;
  report(kind, thread.waiting_at, 0, 0, other);
  current = nullptr;
}

// ---- warp operations

void finish_lane(Thread* warp, Thread& lane, unsigned participants, bool whole_warp) {
  WarpOperation& op = lane.warp;
  auto* result = static_cast<char*>(op.result);
  op.participants = participants;
  if (op.source >= 0) {
    if (participants >> op.source & 1) {
      memcpy(result, warp[op.source].warp.value, op.bytes);
    } else {
      memset(result, 0xff, op.bytes);
      report_for(lane, "shuffle from an inactive lane");
    }
  } else if (op.source == gather_all_lanes) {
    for (int l = 0; l < warp_size; ++l)
      if (participants >> l & 1) memcpy(result + l * op.bytes, warp[l].warp.value, op.bytes);
  } else if (whole_warp) {
    ++lane.warp_epoch;
  }
  lane.state = State::ready;
}

bool release_warp(Thread* warp, int lanes) {
  unsigned live = 0;
  for (int l = 0; l < lanes; ++l) live |= unsigned(warp[l].state != State::finished) << l;
  bool released = false;
  for (int first = 0; first < lanes; ++first) {
    if (warp[first].state != State::in_warp_operation) continue;
    const unsigned mask = warp[first].warp.mask, participants = mask & live;
    bool complete = true;
    for (int l = 0; l < lanes && complete; ++l)
      if (participants >> l & 1)
        complete = warp[l].state == State::in_warp_operation && warp[l].warp.mask == mask;
    if (!complete) continue;
    for (int l = 0; l < lanes; ++l)
      if (participants >> l & 1) finish_lane(warp, warp[l], participants, participants == live);
    released = true;
  }
  return released;
}

bool release_warps() {
  const int n = static_cast<int>(threads.size());
  bool released = false;
  for (int first = 0; first < n; first += warp_size)
    released |= release_warp(&threads[first], std::min(warp_size, n - first));
  return released;
}

// ---- the block's barrier

bool release_barrier() {
  Thread *first = nullptr, *elsewhere = nullptr, *gone = nullptr;
  int waiting = 0, count = 0;
  for (Thread& thread : threads) {
    if (thread.state == State::finished) {
      gone = &thread;
      continue;
    }
    if (thread.state != State::at_barrier) return false;
    ++waiting;
    count += thread.predicate != 0;
    if (!first) first = &thread;
    const Site &a = thread.waiting_at, &b = first->waiting_at;
    // by source line: a compiler may copy one barrier to several addresses
    if (a.line != b.line || a.pc != b.pc || (a.file != b.file && strcmp(a.file, b.file))) elsewhere = &thread;
  }
  if (!first) return false;
  if (elsewhere) report_for(*first, "divergent barrier", {block_number, elsewhere->linear, 0});
  if (gone) report_for(*first, "divergent barrier", {block_number, gone->linear, 0});
  barrier_result = {count, count == waiting};
  ++barrier_epoch;
  for (Thread& thread : threads)
    if (thread.state == State::at_barrier) thread.state = State::ready;
  return true;
}

// ---- a block, a grid

void run_block(std::vector<int>& order, std::mt19937& random) {
  for (size_t i = 0; i < threads.size(); ++i) prepare(threads[i], static_cast<int>(i));
  for (;;) {
    if (launch->order == shuffled) std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    for (int i : order) {
      if (threads[i].state != State::ready) continue;
      run(threads[i]);
      progress = true;
      if (stopped) return;
    }
    progress |= release_warps();
    progress |= release_barrier();
    if (progress) continue;
    for (Thread& thread : threads)
      if (thread.state != State::finished) {
        report_for(thread, "deadlock");
        stopped = true;
      }
    return;
  }
}

void run_grid() {
  const size_t n_blocks = size_t(grid_dim.x) * grid_dim.y * grid_dim.z;
  std::vector<size_t> blocks(std::min(n_blocks, size_t(launch->last_blocks)));
  std::vector<int> order(threads.size());
  std::iota(blocks.begin(), blocks.end(), n_blocks - blocks.size());
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(launch->seed);
  if (launch->order == shuffled) std::shuffle(blocks.begin(), blocks.end(), random);
  if (launch->order == reverse) {
    std::reverse(blocks.begin(), blocks.end());
    std::reverse(order.begin(), order.end());
  }
  for (size_t b : blocks) {
    block_number = static_cast<int>(b);
    block_index = {unsigned(b % grid_dim.x), unsigned(b / grid_dim.x % grid_dim.y),
                   unsigned(b / grid_dim.x / grid_dim.y)};
    barrier_epoch = 0;
    begin_block();
    run_block(order, random);
    if (stopped) return;
  }
}

}  // namespace

uint32_t warp_epoch_of(int thread) { return threads[thread].warp_epoch; }

void stop_launch() {
  stopped = true;
  wait();
  abort();
}

void abandon_from_signal(void** instruction_pointer, void** stack_pointer) {
  stopped = true;
  *instruction_pointer = reinterpret_cast<void*>(emu_resume);
  *stack_pointer = scheduler_stack_pointer;
}

}  // namespace emu

using namespace emu;

extern "C" {

Dim emu_thread_idx() { return current->index; }
Dim emu_block_idx() { return block_index; }
Dim emu_block_dim() { return block_dim; }
Dim emu_grid_dim() { return grid_dim; }
int emu_lane() { return current->linear % warp_size; }

void emu_barrier(int predicate, const char* file, int line, int* count, int* all) {
  current->predicate = predicate;
  current->waiting_at = {0, file, line};
  current->state = State::at_barrier;
  wait();
  *count = barrier_result.count;
  *all = barrier_result.all;
}

unsigned emu_warp(unsigned mask, const void* value, void* result, unsigned bytes, int source) {
  current->waiting_at = {reinterpret_cast<uint64_t>(__builtin_return_address(0)), nullptr, 0};
  if (!(mask >> emu_lane() & 1)) {
    report("warp operation by a lane that its mask leaves out", current->waiting_at);
    stop_launch();
  }
  current->warp = {mask, value, result, bytes, source, 0};
  current->state = State::in_warp_operation;
  wait();
  return current->warp.participants;
}

unsigned emu_active_mask() {
  const size_t first = current->linear / warp_size * warp_size;
  unsigned mask = 0;
  for (size_t i = first; i < std::min(threads.size(), first + warp_size); ++i)
    mask |= unsigned(threads[i].state != State::finished) << (i - first);
  return mask;
}

void emu_launch(const Launch* spec) {
  begin_checking(*spec);
  block_dim = {spec->block[0], spec->block[1], spec->block[2]};
  grid_dim = {spec->grid[0], spec->grid[1], spec->grid[2]};
  threads.resize(size_t(block_dim.x) * block_dim.y * block_dim.z);
  while (stacks.size() < threads.size()) stacks.push_back(new_stack());
  stopped = false;
  catch_faults();
  run_grid();
  release_faults();
  end_checking();
}

void emu_argument(int index, void* value, unsigned bytes) { memcpy(value, launch->arguments[index], bytes); }

// ---- the same services with the signatures that Numba-compiled kernels call

int64_t emu_numba_index(int64_t which) {
  const Dim dims[] = {current->index, block_index, block_dim, grid_dim};
  return (&dims[which / 3].x)[which % 3];
}

int64_t emu_numba_lane() { return emu_lane(); }

void emu_numba_barrier(int64_t site) {
  current->waiting_at = {static_cast<uint64_t>(site), nullptr, 0};
  current->state = State::at_barrier;
  wait();
}

void emu_numba_warp(int64_t mask, void* value, void* result, int64_t bytes, int64_t source, int64_t site) {
  current->waiting_at = {static_cast<uint64_t>(site), nullptr, 0};
  if (!(mask >> emu_lane() & 1)) {
    report("warp operation by a lane that its mask leaves out", current->waiting_at);
    stop_launch();
  }
  current->warp = {unsigned(mask), value, result, unsigned(bytes), int(source), 0};
  current->state = State::in_warp_operation;
  wait();
}

}  // extern "C"
