// Sums over all tokens of w̄, [H,D]: every team leaves its own in a slot, and another kernel adds the slots up.
#pragma once

#include "pool.h"

namespace lada {
namespace cuda {

// Sums of w̄: those that a block has at layout.weight_part, or its cluster's, go to a slot of their own: [slots, H, D].
template <class T, class F, bool PER_HEAD>
__device__ inline void leave_weight_sum(const Row<T, F, PER_HEAD>& row, const Team& team, int64_t slot, float* slots) {
  const float* part = row.shared + row.layout.weight_part;
  const int64_t D = row.channels.total;
  const auto write = [&](const Parts& parts, const Share& share, int64_t to) {
    share.for_each(row.heads() * D, [&](int64_t i) {
      slots[(to * row.total_heads + row.first_head) * D + i] = parts.sum(row.place_of(int(i / D), int(i % D)));
    });
  };
  if (team.cluster)
    bring_together(team, const_cast<float*>(part), [&](const Parts& parts, const Share& share) { write(parts, share, slot); });
  else
    write(Parts{part, 0, 1, false}, Share{0, 1}, slot * team.chunks + team.chunk());
}

struct SlotSum {
  const float* slots;   // [count, size]
  const float* addend;  // [size] or null
  float* out;           // [size]
  int64_t count, size;
};

constexpr int kSlotLanes = 8, kSlotThreads = 256;

// 32 places by 8 shares of the slots.
template <int> __global__ void sum_slots_kernel(const __grid_constant__ SlotSum sum) {
  float* shared = shared_memory();
  const int64_t place = int64_t(blockIdx.x) * (kSlotThreads / kSlotLanes) + threadIdx.x % (kSlotThreads / kSlotLanes);
  float total = 0;
  if (place < sum.size)
    for (int64_t slot = threadIdx.x / (kSlotThreads / kSlotLanes); slot < sum.count; slot += kSlotLanes)
      total += sum.slots[slot * sum.size + place];
  shared[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x >= kSlotThreads / kSlotLanes || place >= sum.size) return;
  total = sum.addend ? sum.addend[place] : 0.0f;
  for (int share = 0; share < kSlotLanes; ++share) total += shared[share * (kSlotThreads / kSlotLanes) + threadIdx.x];
  sum.out[place] = total;
}

// ---- on the host ----

inline Outcome sum_slots(const SlotSum& sum, const Queue& queue) {
  const int64_t places = kSlotThreads / kSlotLanes;
  return start(sum_slots_kernel<0>, sum, {(sum.size + places - 1) / places, kSlotThreads, kSlotThreads * 4}, queue);
}

// Where the slots of a sum of w̄ are: in the workspace, or, for a sole one, in the result.
struct WeightSlots {
  float *out, *first;
  int64_t count, size, wanted;

  WeightSlots(void* result, const Shape& shape, int64_t count, void* workspace)
      : out(static_cast<float*>(result)),
        first(static_cast<float*>(count == 1 || !out ? result : workspace)),
        count(count),
        size(shape.heads * shape.channels),
        wanted(out && count > 1 ? count * size * 4 : 0) {}

  Outcome sum(const Queue& queue) const {
    return out && count != 1 ? sum_slots({first, nullptr, out, count, size}, queue) : Outcome{};
  }
};

}  // namespace cuda
}  // namespace lada
