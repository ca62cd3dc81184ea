// Fibers: stacks to run on, and the switch between two of them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define LADA_UNSANITIZED __attribute__((no_sanitize_address))
#else
#define LADA_UNSANITIZED
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace lada {
namespace emulation {

constexpr size_t kStack = 128 << 10, kGuard = 4 << 10;  // bytes; an overflow hits the guard at the stack's low end

struct Fiber {
#if defined(__x86_64__)
  void* registers = nullptr;  // where they lie on its stack while another fiber runs
#else
  ucontext_t registers;
#endif
  const void* low = nullptr;  // its stack
  size_t bytes = 0;
  void* fake = nullptr;  // AddressSanitizer's part of the stack
};

#if defined(__x86_64__)
// What a function must leave as it was lies on the stack; the rest, the caller of this has saved. No system call, unlike
// swapcontext.
__attribute__((naked, noinline)) LADA_UNSANITIZED inline void swap_registers(void** /* from */, void* /* to */) {
  asm("push %rbp\n\tpush %rbx\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
      "mov %rsp, (%rdi)\n\tmov %rsi, %rsp\n\t"
      "pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbx\n\tpop %rbp\n\tret");
}
#endif

inline Fiber* left_last = nullptr;  // the fiber that switched to the one that runs

// First on a fiber's stack, when it is switched to.
LADA_UNSANITIZED inline void arrive_on(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake, &left_last->low, &left_last->bytes);
#else
  (void)fiber;
#endif
}

LADA_UNSANITIZED inline void switch_fiber(Fiber& from, Fiber& to, bool for_good) {
  left_last = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake, to.low, to.bytes);
#else
  (void)for_good;
#endif
#if defined(__x86_64__)
  swap_registers(&from.registers, to.registers);
#else
  swapcontext(&from.registers, &to.registers);
#endif
  arrive_on(from);
}

inline void give_stack(Fiber& fiber) {
  void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) throw std::bad_alloc();
  fiber.low = static_cast<char*>(memory) + kGuard;
  fiber.bytes = kStack - kGuard;
}

// The next switch to the fiber calls entry(), which must not return. `index` staggers the stacks: what lies at the same
// place in each of them would share a few lines of the cache.
inline void prepare(Fiber& fiber, size_t index, void (*entry)()) {
  fiber.fake = nullptr;
  char* low = static_cast<char*>(const_cast<void*>(fiber.low));
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(low, fiber.bytes);  // the last kernel may have been left in the middle
#endif
  const size_t bytes = fiber.bytes - index % 128 * 64;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(low + bytes);
  *--top = nullptr;  // where a call would have left its return address
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.registers = top;
#else
  getcontext(&fiber.registers);
  fiber.registers.uc_stack.ss_sp = low;
  fiber.registers.uc_stack.ss_size = bytes;
  makecontext(&fiber.registers, entry, 0);
#endif
}

}  // namespace emulation
}  // namespace lada
