// What the orders of additive pooling share; lada_kernels/reference/additive_pool.py derives every formula and names each letter.
//
// A row of `lanes` threads works on a token, each on 8 of its channels, and on a few tokens at a time. Scores are sums over all
// channels, for every head: partial sums are exchanged in a pattern that leaves each lane with those of one head, lane % HT,
// for which it then takes the exponentials alone. The weights of all heads come back to all lanes through shared memory.
// Heads are worked on in groups of at most HT; what a thread reads of [H,D] operands lies in shared memory.
#pragma once

#include "team.h"
#include "vectors.h"

namespace lada {
namespace cuda {

constexpr int kChannels = 8;  // of a thread, in halves of 4
// How a kernel is built: heads of a group, tokens of a row at a time, threads of a block, and as many blocks for a processor as
// leave enough registers. GENERAL takes more heads than a group has, and tokens wider than 128 threads. ONLY_DOTS reads
// operands for inner products alone, and keeps them in the order in which each lane does: that spares addresses.
template <int HEADS, int TOKENS, int THREADS, int BLOCKS, bool GENERAL, bool ONLY_DOTS = false> struct Form {
  static constexpr int kHeads = HEADS, kTokens = TOKENS, kThreads = THREADS, kBlocks = BLOCKS;
  static constexpr bool kGeneral = GENERAL, kOnlyDots = ONLY_DOTS;
};
using ForFour = Form<4, 2, 128, 3, false>;
using ForEight = Form<8, 2, 128, 2, false>;
using ForAll = Form<2, 1, 512, 1, true>;

// For inner products alone, of two tensors: half the heads where there would be too few registers. Groups stand side by side,
// so that the second finds the tokens in a cache.
template <class F> struct Dots {
  using Type = Form<4, 1, 128, 2, F::kHeads == 8, true>;
};
template <> struct Dots<ForAll> {
  using Type = Form<1, 1, 512, 1, true, true>;
};
template <class F> using ForDots = typename Dots<F>::Type;

template <class T> using PoolChannels = Channels<T, kChannels / kVector<T>>;

// How a kernel is laid out; chosen on the host. Offsets count floats of shared memory.
struct Layout {
  int lanes, threads, group, groups, held;  // held: heads of an operand in shared memory
  int teams;                                // that share the batch elements among them
  bool wide;
  // Each head pools its own channels, but PER_HEAD's vectors do not fit them: pooled vectors are spread over all channels,
  // zero outside of their head.
  bool diagonal;
  int weights, exchange, inner, carry, part, weight_part, total;

  bool fits(bool general, int64_t shared) const { return 4 * int64_t(total) <= shared && (general || groups == 1); }
  __host__ __device__ int operand() const { return held * kChannels * lanes; }
  __host__ __device__ int rows() const { return threads / lanes; }
};

__device__ inline float finite(float largest) { return largest == -INFINITY ? 0.0f : largest; }
__device__ inline float inverse(float total) { return total == 0.0f ? 0.0f : 1.0f / total; }

template <int N> struct alignas(N < 4 ? 4 * N : 16) Some {  // read or written 16 bytes at once
  float values[N];
};

// A thread's place, and what it does with its row.
template <class T, class F, bool PER_HEAD> struct Row {
  static constexpr int P = kChannels / kVector<T>, HT = F::kHeads, U = F::kTokens;
  const Layout& layout;
  float* shared;
  PoolChannels<T> channels;
  int index, head;  // which row; the head, of a group, that this lane ends up with
  int warp,
      neighbours;  // the row's first warp; which of the rows, or warps of a row, whose lanes tell each other their weights
  int own[2];      // for PER_HEAD, the heads that the halves of its channels belong to, counted from the group's first
  int total_heads, channels_of_head, first_head = 0, parity = 0;

  __device__ Row(const Layout& layout, const Shape& shape)
      : layout(layout),
        shared(shared_memory()),
        channels{int(threadIdx.x) % layout.lanes, layout.lanes, int(shape.channels), layout.wide},
        index(threadIdx.x / layout.lanes),
        head(threadIdx.x % HT),
        warp(index * layout.lanes / 32),
        neighbours(threadIdx.x / min(layout.lanes, 32)),
        total_heads(int(shape.heads)),
        channels_of_head(max(1, int(shape.channels / shape.heads))) {
    choose_group(0);
  }

  __device__ void choose_group(int group) {
    if (F::kGeneral) first_head = group * layout.group;
    for (int half = 0; half < 2; ++half) own[half] = channel(4 * half) / channels_of_head - first_head;
  }

  __device__ int heads() const {
    return F::kGeneral ? min(layout.group, total_heads - first_head) : total_heads;
  }                                                                               // of this group
  __device__ bool leads() const { return channels.lane < HT && head < heads(); }  // among the lanes with this head
  __device__ int channel(int place) const { return channels.first(place / kVector<T>) + place % kVector<T>; }
  __device__ bool owns(int half) const { return own[half] >= 0 && own[half] < heads(); }

  // Heads of this group from [H,D], or with `spread` from [H,D/H], to shared memory as [held, half, lane, 4]; for inner
  // products alone, each lane's in the order i ^ `head`.
  __device__ void stage(float* operand, const float* from, bool spread) const {
    const int lanes = layout.lanes, total = channels.total;
    for (int i = threadIdx.x; i < layout.operand(); i += layout.threads) {
      const int lane = i / 4 % lanes, half = i / (4 * lanes) % 2, slot = i / (kChannels * lanes);
      const int h = first_head + (F::kOnlyDots ? slot ^ lane % HT : slot);
      const int place = 4 * half + i % 4;
      const int j = (lane + place / kVector<T> * lanes) * kVector<T> + place % kVector<T>;
      const bool there = j < total && h < first_head + heads() && (!spread || j / channels_of_head == h);
      operand[i] = there ? from[spread ? j : int64_t(h) * total + j] : 0.0f;
    }
  }

  __device__ float4 half_of(const float* operand, int h, int half) const {
    return h < layout.held ? reinterpret_cast<const float4*>(operand)[(h * 2 + half) * layout.lanes + channels.lane]
                           : float4{0, 0, 0, 0};
  }

  __device__ void all_of(const float* operand, int h, float (&out)[kChannels]) const {
    const float4 a = half_of(operand, h, 0), b = half_of(operand, h, 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w, out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  }

  // partial[u][i] += ⟨x_u, operand of head i ^ `head`⟩ over this thread's channels
  template <int M> __device__ void dot(const float (&x)[M][kChannels], const float* operand, float (&partial)[M][HT]) const {
#pragma unroll
    for (int i = 0; i < HT; ++i) {
      float w[kChannels];
      all_of(operand, F::kOnlyDots ? i : i ^ head, w);
#pragma unroll
      for (int u = 0; u < M; ++u)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) partial[u][i] += x[u][j] * w[j];
    }
  }

  // Likewise with pooled vectors: for PER_HEAD `g`, this thread's channels, else an operand.
  template <int M>
  __device__ void project(const float (&x)[M][kChannels], const float (&g)[kChannels], const float* operand,
                          float (&partial)[M][HT]) const {
    if constexpr (!PER_HEAD) {
      dot(x, operand, partial);
    } else {
#pragma unroll
      for (int u = 0; u < M; ++u)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float product = 0;
#pragma unroll
          for (int j = 4 * half; j < 4 * half + 4; ++j) product += x[u][j] * g[j];
#pragma unroll
          for (int i = 0; i < HT; ++i) partial[u][i] += own[half] == (i ^ head) ? product : 0.0f;
        }
    }
  }

  // The sums over this warp's share of the row of what `fill` adds to partial sums [M, HT], for `head`.
  template <int M = U, class Fill> __device__ void sum_of(float* sums, Fill fill) const {
    float partial[M][HT] = {};
    fill(partial);
    fold(partial, sums);
  }

  // Partial sums of every head -> those of `head`, over the row's lanes of this warp
  template <int M> __device__ void fold(float (&partial)[M][HT], float* sums) const {
#pragma unroll
    for (int width = 1; width < HT; width *= 2)
#pragma unroll
      for (int i = 0; i < HT; i += 2 * width)
#pragma unroll
        for (int u = 0; u < M; ++u) partial[u][i] += __shfl_xor_sync(~0u, partial[u][i + width], width);
#pragma unroll
    for (int u = 0; u < M; ++u) sums[u] = partial[u][0];
    for (int width = HT; width < 32 && width < layout.lanes; width *= 2)
#pragma unroll
      for (int u = 0; u < M; ++u) sums[u] += __shfl_xor_sync(~0u, sums[u], width);
  }

  // -> the sums over the row's warps
  template <int K> __device__ void across_warps(float (&sums)[K]) {
    if (layout.lanes <= 32) return;
    const int warps = layout.lanes / 32;
    Some<K>* exchange = reinterpret_cast<Some<K>*>(shared + layout.exchange) + parity * layout.threads / 32 * HT;
    parity ^= 1;  // who is ahead writes to the other half
    if (threadIdx.x % 32 < HT) {
#pragma unroll
      for (int k = 0; k < K; ++k) exchange[threadIdx.x / 32 * HT + head].values[k] = sums[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) sums[k] = 0;
    for (int i = 0; i < warps; ++i) {
      const Some<K> other = exchange[(warp + i) * HT + head];
#pragma unroll
      for (int k = 0; k < K; ++k) sums[k] += other.values[k];
    }
  }

  // Where the lanes of a row, within a warp, tell each other the weights of their heads: [kind, HT, U].
  __device__ float* weights_of(int kind, int kinds, int h) const {
    return shared + layout.weights + ((neighbours * kinds + kind) * HT + h) * U;
  }

  __device__ void tell(int kind, int kinds, const float (&values)[U]) const {
    if (channels.lane % 32 >= HT) return;
    Some<U> all;
#pragma unroll
    for (int u = 0; u < U; ++u) all.values[u] = values[u];
    *reinterpret_cast<Some<U>*>(weights_of(kind, kinds, head)) = all;
  }

  __device__ Some<U> told(int kind, int kinds, int h) const {
    return *reinterpret_cast<const Some<U>*>(weights_of(kind, kinds, h));
  }

  // sum[h] += Σ_u p[h][u] x_u for every head, with the weights p of a kind
  __device__ void accumulate(int kind, int kinds, const float (&x)[U][kChannels], float (&sum)[HT][kChannels]) const {
#pragma unroll
    for (int h = 0; h < HT; ++h) {
      const Some<U> p = told(kind, kinds, h);
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) sum[h][j] += p.values[u] * x[u][j];
    }
  }

  // sum += Σ_u p[u] x_u with the weights of the heads that own the channels
  __device__ void accumulate_own(int kind, int kinds, const float (&x)[U][kChannels], float (&sum)[1][kChannels]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!owns(half)) continue;
      const Some<U> p = told(kind, kinds, own[half]);
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int j = 4 * half; j < 4 * half + 4; ++j) sum[0][j] += p.values[u] * x[u][j];
    }
  }

  // Sums of pooled parts: a thread's own channels for PER_HEAD, else all heads of the group.
  static constexpr int kPooled = PER_HEAD ? 1 : HT;
  __device__ void pool(int kind, int kinds, const float (&x)[U][kChannels], float (&sum)[kPooled][kChannels]) const {
    if constexpr (PER_HEAD)
      accumulate_own(kind, kinds, x, sum);
    else
      accumulate(kind, kinds, x, sum);
  }

  // out_u += Σ_h p[h][u] operand_h
  __device__ void scatter(int kind, int kinds, const float* operand, float (&out)[U][kChannels]) const {
#pragma unroll
    for (int h = 0; h < HT; ++h) {
      float w[kChannels];
      all_of(operand, h, w);
      const Some<U> p = told(kind, kinds, h);
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) out[u][j] += p.values[u] * w[j];
    }
  }

  // Likewise with pooled vectors, into the parts that their heads pool.
  __device__ void scatter_pooled(int kind, int kinds, const float (&g)[kChannels], const float* operand,
                                 float (&out)[U][kChannels]) const {
    if constexpr (!PER_HEAD) {
      scatter(kind, kinds, operand, out);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (!owns(half)) continue;
        const Some<U> p = told(kind, kinds, own[half]);
#pragma unroll
        for (int u = 0; u < U; ++u)
#pragma unroll
          for (int j = 4 * half; j < 4 * half + 4; ++j) out[u][j] += p.values[u] * g[j];
      }
    }
  }

  __device__ void store_all(const Tokens& to, int64_t b, int n, int step, int end, const float (&values)[U][kChannels]) const {
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (n + u * step < end) store(to, b, n + u * step, channels, values[u]);
  }

  // What is written of a tile, on its way from one group of heads to the next: every thread's own.
  __device__ void carry(const float (&values)[U][kChannels]) const {
#pragma unroll
    for (int i = 0; i < U * kChannels; ++i)
      shared[layout.carry + i * F::kThreads + threadIdx.x] = values[i / kChannels][i % kChannels];
  }

  __device__ void take_carried(bool carried, float (&values)[U][kChannels]) const {
#pragma unroll
    for (int i = 0; i < U * kChannels; ++i)
      values[i / kChannels][i % kChannels] = carried ? shared[layout.carry + i * F::kThreads + threadIdx.x] : 0.0f;
  }

  // What α = exp(s - shift) · factor takes for this lane's head; 0 for one that is not there.
  __device__ void softmax_of(const Pool& pool, int64_t b, float& shift, float& factor) const {
    shift = factor = 0;
    if (head >= heads()) return;
    const float* normaliser = static_cast<const float*>(pool.normaliser) + (b * total_heads + first_head + head) * 2;
    shift = finite(normaliser[0]);
    factor = inverse(normaliser[1]);
  }

  // This lane's head's of a group's values in shared memory; 0 for one that is not there.
  __device__ float mine_of(const float* values) const { return head < heads() ? values[head] : 0.0f; }

  // The place in shared memory's [group, half, lane, 4] of channel j of head h.
  __device__ int place_of(int h, int j) const {
    const int vector = j / kVector<T>, lane = vector % layout.lanes;
    const int place = vector / layout.lanes * kVector<T> + j % kVector<T>;
    return ((h * 2 + place / 4) * layout.lanes + lane) * 4 + place % 4;
  }

  // to [count heads, half, lane, 4] = the sums over the block's rows of `values`, each times its row's `factor`. One place
  // after the other (volatile): all at once would take more registers than there are.
  template <int COUNT, class Factor>
  __device__ void sum_rows(float* to, const float (&values)[COUNT][kChannels], Factor factor) const {
    const int count = min(COUNT, layout.group);
    for (int r = 0; r < layout.rows(); ++r) {
      __syncthreads();
      if (r != index) continue;
#pragma unroll
      for (int h = 0; h < COUNT; ++h)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) {
          if (h >= count) continue;
          volatile float& place = to[((h * 2 + j / 4) * layout.lanes + channels.lane) * 4 + j % 4];
          place = (r == 0 ? 0.0f : place) + values[h][j] * factor(h, j / 4);
        }
    }
    __syncthreads();
  }

  // A group's inner products ⟨P_h, vectors_h⟩ of pooled vectors [H,E] at `inner` of shared memory; barriers around it.
  __device__ void inner_products(const float* pooled, const float* vectors, int64_t width, float* inner) const {
    for (int h = threadIdx.x / 32; h < heads(); h += layout.threads / 32) {
      float total = 0;
      for (int64_t j = threadIdx.x % 32; j < width; j += 32)
        total += pooled[(first_head + h) * width + j] * vectors[(first_head + h) * width + j];
      for (int width = 16; width; width /= 2) total += __shfl_xor_sync(~0u, total, width);
      if (threadIdx.x % 32 == 0) inner[h] = total;
    }
  }
};

// Which of U tokens, n and every `step` after it, take part: one bit each.
template <int U> __device__ inline unsigned live_tokens(const uint8_t* mask, int64_t first, int n, int step, int end) {
  unsigned live = 0;
#pragma unroll
  for (int u = 0; u < U; ++u) live |= unsigned(n + u * step < end && (!mask || mask[first + n + u * step])) << u;
  return live;
}

// Tokens in the accumulation type, zeros for those that take no part, whatever they hold.
template <class T, int U>
__device__ inline void widen_live(const uint4 (&raw)[U][kChannels / kVector<T>], unsigned live, float (&out)[U][kChannels]) {
#pragma unroll
  for (int u = 0; u < U; ++u) {
#pragma unroll
    for (int p = 0; p < kChannels / kVector<T>; ++p) {
      const bool there = live >> u & 1;
      const uint4 vector = raw[u][p];
      widen<T>(uint4{there ? vector.x : 0, there ? vector.y : 0, there ? vector.z : 0, there ? vector.w : 0},
               out[u] + p * kVector<T>);
    }
  }
}

// A row's tokens, U at a time, the next ones under way; zeros where they are not `wanted`.
template <class T, int U> struct Stream {
  static constexpr int P = kChannels / kVector<T>, kAhead = 2 / P;
  const Tokens& x;
  const PoolChannels<T>& channels;
  int64_t b;
  int step, end;
  bool wanted;
  uint4 ahead[kAhead][U][P] = {};

  // From token n on, every `step`.
  __device__ Stream(const Tokens& x, int64_t b, int n, int step, int end, const PoolChannels<T>& channels, bool wanted = true)
      : x(x), channels(channels), b(b), step(step), end(end), wanted(wanted) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (wanted) load(x, b, n + i * U * step, step, end, channels, ahead[i]);
  }

  // Tokens n and on, which come next, in the accumulation type; zeros for those that are not live.
  __device__ void take(int n, unsigned live, float (&out)[U][kChannels]) {
    widen_live<T>(ahead[0], live, out);
    // Element by element: nvcc 13.0 drops half of a memcpy of this size for sm_80 and sm_90.
#pragma unroll
    for (int i = 1; i < kAhead; ++i)
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int p = 0; p < P; ++p) ahead[i - 1][u][p] = ahead[i][u][p];
    if (wanted) load(x, b, n + kAhead * U * step, step, end, channels, ahead[kAhead - 1]);
  }
};

}  // namespace cuda
}  // namespace lada
