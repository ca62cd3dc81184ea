// The forward of additive pooling: one read of x, and an online softmax for each row of threads.
#pragma once

#include "pool_plan.h"

namespace lada {
namespace cuda {

// The part of a block: m [HT], Z [HT], Σ exp(s - m) y [group, half, lane, 4] or, for PER_HEAD, [1, half, lane, 4].
template <class F> constexpr Needs pool_forward_needs(bool per_head) {
  return {1, 2, 1, 0, false, per_head ? 1 : F::kHeads, 0, 2};
}

// Pool tokens [begin, end) of batch element b, leaving the block's part at `part`. The scores go to alpha [B,H,N], if wanted.
template <class T, class F, bool PER_HEAD>
__device__ inline void pool_forward(Row<T, F, PER_HEAD>& row, const Shape& shape, const Pool& pool, float* alpha, int64_t b,
                                    int begin, int end, float* part) {
  constexpr int HT = F::kHeads, U = F::kTokens, kPooled = Row<T, F, PER_HEAD>::kPooled;
  enum Kind { kWeight, kFactor, kKinds };
  const int rows = row.layout.rows();
  const uint8_t* mask = pool.mask;
  row.stage(row.shared, static_cast<const float*>(pool.weight), false);
  __syncthreads();

  float largest = -INFINITY, total = 0, sum[kPooled][kChannels] = {};  // of this row
  Stream<T, U> stream(pool.x, b, begin + row.index, rows, end, row.channels);
  for (int first = begin; first < end; first += U * rows) {
    const int n = first + row.index;
    const unsigned live = live_tokens<U>(mask, b * shape.tokens, n, rows, end);
    float x[U][kChannels], s[U];
    stream.take(n, live, x);
    row.sum_of(s, [&](auto& partial) { row.dot(x, row.shared, partial); });
    row.across_warps(s);

    float highest = largest;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      s[u] = live >> u & 1 ? s[u] * float(pool.scale) : -INFINITY;
      highest = fmaxf(highest, s[u]);
      if (alpha && row.leads() && n + u * rows < end)
        alpha[(b * shape.heads + row.first_head + row.head) * shape.tokens + n + u * rows] = s[u];
    }
    if (__any_sync(~0u, highest > largest)) {
      const float factor[U] = {expf(largest - finite(highest))};  // of which the first is used
      total *= factor[0];
      largest = highest;
      row.tell(kFactor, kKinds, factor);
      __syncwarp();
#pragma unroll
      for (int h = 0; h < kPooled; ++h)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (PER_HEAD && !row.owns(half)) continue;
          const float shrink = row.told(kFactor, kKinds, PER_HEAD ? row.own[half] : h).values[0];
#pragma unroll
          for (int j = 4 * half; j < 4 * half + 4; ++j) sum[h][j] *= shrink;
        }
    }
    const float shift = finite(largest);
#pragma unroll
    for (int u = 0; u < U; ++u) total += s[u] = expf(s[u] - shift);
    row.tell(kWeight, kKinds, s);
    __syncwarp();
    row.pool(kWeight, kKinds, x, sum);
    __syncwarp();
  }

  // The rows' states as one: their largest scores side by side in shared memory, where the weights are no longer needed.
  float* states = row.shared + row.layout.weights;  // m [rows, HT], Z [rows, HT]
  __syncthreads();
  if (row.channels.lane < HT) {
    states[row.index * HT + row.head] = largest;
    states[(rows + row.index) * HT + row.head] = total;
  }
  __syncthreads();
  if (threadIdx.x < HT) {
    const int h = threadIdx.x;
    float highest = -INFINITY, together = 0;
    for (int r = 0; r < rows; ++r) highest = fmaxf(highest, states[r * HT + h]);
    for (int r = 0; r < rows; ++r) {
      const float factor = expf(states[r * HT + h] - finite(highest));
      together += states[(rows + r) * HT + h] * factor;
      states[(rows + r) * HT + h] = factor;
    }
    part[h] = highest;
    part[HT + h] = together;
  }
  row.template sum_rows<kPooled>(part + 2 * HT, sum, [&](int h, int half) {
    const int own = PER_HEAD ? row.own[half] : h;
    return own >= 0 && own < HT ? states[(rows + row.index) * HT + own] : 0.0f;
  });
}

// One batch element's parts as one, for a group of heads: P [heads, E], by place, to sink(place, value), and,
// by the one who `leads`, the normaliser.
// `factors` has room for (parts + 1) x HT floats in shared memory.
template <class T, class F, bool PER_HEAD, class Sink>
__device__ inline void combine_pools(const Row<T, F, PER_HEAD>& row, const Shape& shape, const Pool& pool, int64_t b,
                                     float* factors, const Parts& parts, const Share& share, bool leads, Sink sink) {
  constexpr int HT = F::kHeads;
  const int64_t D = shape.channels, E = pool.per_head ? D / shape.heads : D;
  float* normaliser = static_cast<float*>(pool.normaliser) + (b * shape.heads + row.first_head) * 2;
  for (int h = threadIdx.x / 32; h < row.heads(); h += blockDim.x / 32) {
    float highest = -INFINITY, total = 0;
    for (int c = threadIdx.x % 32; c < parts.count; c += 32) highest = fmaxf(highest, parts[c][h]);
    for (int width = 16; width; width /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, width));
    for (int c = threadIdx.x % 32; c < parts.count; c += 32) {
      const float factor = expf(parts[c][h] - finite(highest));
      factors[c * HT + h] = factor;
      total += parts[c][HT + h] * factor;
    }
    for (int width = 16; width; width /= 2) total += __shfl_xor_sync(~0u, total, width);
    if (threadIdx.x % 32) continue;
    factors[parts.count * HT + h] = inverse(total);
    if (!leads) continue;
    normaliser[2 * h] = highest;
    normaliser[2 * h + 1] = total;
  }
  __syncthreads();
  share.for_each(row.heads() * E, [&](int64_t i) {
    const int h = int(i / E), j = int(pool.per_head ? (row.first_head + h) * E + i % E : i % E);  // channel
    const int place = 2 * HT + row.place_of(PER_HEAD ? 0 : h, j);
    float sum = 0;
#pragma unroll 8
    for (int c = 0; c < parts.count; ++c) sum += parts[c][place] * factors[c * HT + h];
    sink(i, sum * factors[parts.count * HT + h]);
  });
}

}  // namespace cuda
}  // namespace lada
