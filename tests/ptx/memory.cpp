#include "memory.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "decode.h"

namespace ptx {

GlobalMemory global_memory;

void fail_at(const Warp& w, int lane, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fail("thread %d of block %lu: %s", w.thread(lane), (unsigned long)w.block->index, text);
}

void GlobalMemory::allow(uint64_t begin, uint64_t bytes, bool fresh) {
  if (!bytes) return;
  auto after = ranges_.lower_bound(begin + bytes);
  while (after != ranges_.begin() && std::prev(after)->second.end > begin) ranges_.erase(std::prev(after));  // freed since
  ranges_.emplace(begin, Range{begin + bytes, std::vector<bool>(fresh ? bytes : 0)});
}

std::byte* GlobalMemory::at(const Warp& w, int lane, uint64_t address, uint32_t bytes, bool writes) {
  const char* verb = writes ? "writes" : "reads";
  if (address % bytes) fail_at(w, lane, "misaligned: %s %u bytes at %#lx", verb, bytes, (unsigned long)address);
  auto found = ranges_.upper_bound(address);
  if (found == ranges_.begin() || address + bytes > (--found)->second.end) {
    const bool near = found != ranges_.end() && address >= found->first;
    fail_at(w, lane, "out of bounds: %s %u bytes at %#lx, %ld bytes past the end of a tensor", verb, bytes, (unsigned long)address,
            near ? long(address - found->second.end) : -1);
  }
  Range& range = found->second;
  if (!range.written.empty()) {
    const uint64_t first = address - found->first;
    for (uint64_t byte = first; byte < first + bytes; ++byte) {
      if (writes) range.written[byte] = true;
      else if (!range.written[byte]) fail_at(w, lane, "reads %u bytes of global memory that nobody wrote, %lu bytes into a tensor", bytes, (unsigned long)first);
    }
  }
  return reinterpret_cast<std::byte*>(address);
}

// Whether what thread `other` (or others beside it) did at a time is synchronised with what this thread does now.
static bool ordered(int other, int scope, uint32_t time, const Warp& w, int lane) {
  const int me = w.block->rank * kMostThreads + w.thread(lane);
  if (scope == 0 && other == me) return true;
  if (scope <= 1 && other / kLanes == me / kLanes) return time < w.time;
  if (scope <= 2 && other / kMostThreads == me / kMostThreads) return time < w.block->time;
  return time < w.block->cluster->time;
}

std::byte* shared_at(Warp& w, int lane, uint32_t address, uint32_t bytes, const void* value, int* unwritten) {
  const char* verb = value ? "writes" : "reads";
  Block* block = w.block;
  if (const uint32_t rank = address >> kRankShift) {
    if (rank > block->cluster->blocks.size()) fail_at(w, lane, "%s shared memory of block %u of a cluster of %zu", verb, rank - 1, block->cluster->blocks.size());
    block = block->cluster->blocks[rank - 1];
    uint32_t alive = 0;
    for (const Warp& other : block->warps) alive |= other.alive;
    if (!alive) fail_at(w, lane, "%s shared memory of block %u of the cluster, which has ended", verb, rank - 1);
  }
  const uint32_t offset = (address & ((1u << kRankShift) - 1)) - kSharedStart;
  if (offset % bytes) fail_at(w, lane, "misaligned: %s %u bytes at %u of shared memory", verb, bytes, offset);
  if (uint64_t(offset) + bytes > block->shared.size())
    fail_at(w, lane, "out of bounds: %s %u bytes at %d of %zu of shared memory", verb, bytes, int(offset), block->shared.size());
  std::byte* place = block->shared.data() + offset;
  const int me = w.block->rank * kMostThreads + w.thread(lane);
  const uint32_t now = w.block->grid->clock;
  const uint32_t granule = w.block->grid->kernel.granule;
  const bool same = value && memcmp(place, value, bytes) == 0;  // threads that write the same do not race
  for (uint32_t g = offset / granule; g < (offset + bytes) / granule; ++g) {
    Shadow& shadow = block->shadows[g];
    if (!value && shadow.writer < 0) {  // a wide access may read padding beside what it wants
      if (unwritten) ++*unwritten;
      else fail_at(w, lane, "reads %u bytes at %u of shared memory that nobody wrote", bytes, offset);
      continue;
    }
    const bool together = value && shadow.store == w.block->grid->store;  // lanes of one store: one of them is kept
    if (!same && !together && shadow.writer >= 0 && !ordered(shadow.writer, 0, shadow.written, w, lane))
      fail_at(w, lane, "race: %s %u bytes at %u of shared memory, which thread %d wrote with no barrier in between", verb, bytes, offset, shadow.writer % kMostThreads);
    if (value) {
      if (!same && shadow.reader >= 0 && !ordered(shadow.reader, shadow.readers, shadow.read, w, lane))
        fail_at(w, lane, "race: writes %u bytes at %u of shared memory, which thread %d read with no barrier in between", bytes, offset, shadow.reader % kMostThreads);
      shadow.writer = me, shadow.written = now, shadow.store = w.block->grid->store;
    } else if (shadow.reader < 0 || ordered(shadow.reader, shadow.readers, shadow.read, w, lane)) {
      shadow.reader = me, shadow.read = now, shadow.readers = 0;
    } else {
      const uint32_t scope = shadow.reader / kLanes == me / kLanes ? 1 : shadow.reader / kMostThreads == me / kMostThreads ? 2 : 3;
      shadow.readers = std::max<uint32_t>(shadow.readers, scope), shadow.read = now;
    }
  }
  return place;
}

}  // namespace ptx
