// Turns a fault of a kernel (wild pointer, stack overflow, integer division by zero) into a finding.
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdlib>

#include "runtime.h"

namespace emu {
namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int n_signals = sizeof signals / sizeof *signals;
struct sigaction previous[n_signals];
stack_t previous_stack;
pthread_t launching_thread;

const char* kind_of(int signal, uintptr_t address) {
  if (signal == SIGFPE) return "integer division fault";
  if (signal == SIGILL) return "trap";
  const auto stack = reinterpret_cast<uintptr_t>(current->stack);
  return address < stack && address + stack_bytes >= stack ? "stack overflow" : "memory fault";
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (!current || !pthread_equal(pthread_self(), launching_thread)) {  // not ours: the fault repeats under the handler that was there before
    release_faults();
    return;
  }
  auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  // pc + 1: findings hold return addresses, one past the instruction
  report(kind_of(signal, address), {uint64_t(registers[REG_RIP]) + 1, nullptr, 0}, address);
  abandon_from_signal(reinterpret_cast<void**>(&registers[REG_RIP]), reinterpret_cast<void**>(&registers[REG_RSP]));
}

}  // namespace

void catch_faults() {
  launching_thread = pthread_self();
  static char memory[64 << 10];
  stack_t stack = {};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  sigaltstack(&stack, &previous_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < n_signals; ++i) sigaction(signals[i], &action, &previous[i]);
}

void release_faults() {
  for (int i = 0; i < n_signals; ++i) sigaction(signals[i], &previous[i], nullptr);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace emu
