// Checked memory. Global memory is the process's own, where it has been allowed; every access is checked for bounds and
// alignment, and for bytes that nobody has written yet where they were allowed as fresh. In shared memory two threads'
// accesses to the same bytes, one of them a write, need a barrier in between, even where the order of warps hides the race.
#pragma once

#include "machine.h"

namespace ptx {

struct Range {
  uint64_t end;
  std::vector<bool> written;  // of each byte; empty: all of them
};

class GlobalMemory {
 public:
  // The bytes from `begin` on may be accessed; `fresh`: not read before they are written. Allowed bytes stay as they are.
  void allow(uint64_t begin, uint64_t bytes, bool fresh);
  void forget() { ranges_.clear(); }
  std::byte* at(const Warp& w, int lane, uint64_t address, uint32_t bytes, bool writes);

 private:
  std::map<uint64_t, Range> ranges_;
};
extern GlobalMemory global_memory;

// A thread's access to shared memory: `value` is what it writes, or null. Returns where the bytes are. Bytes that nobody wrote
// are an error, or are counted.
std::byte* shared_at(Warp& w, int lane, uint32_t address, uint32_t bytes, const void* value, int* unwritten = nullptr);

[[noreturn]] void fail_at(const Warp& w, int lane, const char* format, ...) __attribute__((format(printf, 3, 4)));

}  // namespace ptx
