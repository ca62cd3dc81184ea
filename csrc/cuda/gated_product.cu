// The gated product; lada_kernels/reference/gated_product.py derives every formula.
//
// A thread works on one vector of channels, of every few tokens; side by side, `lanes` threads cover a tile of the channels.
#include "team.h"
#include "vectors.h"

namespace lada {
namespace cuda {
namespace {

constexpr int kThreads = 256, kMostLanes = 32, kBlocks = 8;  // of a block; across a tile; for a processor

template <class Problem> struct Gate {
  Problem problem;
  Team team;  // for each batch element and tile
  int lanes, tiles;
  bool wide;
};

// Where a thread works.
template <class T> struct Place {
  int64_t b;
  int tile, row, rows;
  Channels<T, 1> channels;

  template <class Problem> __device__ explicit Place(const Gate<Problem>& gate) {
    const int lane = threadIdx.x % gate.lanes;
    b = gate.team.unit() / gate.tiles;
    tile = gate.team.unit() % gate.tiles;
    row = threadIdx.x / gate.lanes;
    rows = blockDim.x / gate.lanes;
    channels = {tile * gate.lanes + lane, 0, int(gate.problem.shape.channels), gate.wide};
  }
};

template <class T>
__global__ __launch_bounds__(kThreads, 3) void forward_kernel(const __grid_constant__ Gate<GateForward> gate) {
  constexpr int V = kVector<T>, U = 4;
  const GateForward& p = gate.problem;
  const Place<T> at(gate);
  float g[V];
  load_row(static_cast<const float*>(p.gate) + at.b * p.shape.channels, at.channels, g);
  const int64_t end = gate.team.end();
  for (int64_t n = gate.team.begin() + at.row; n < end; n += U * at.rows) {
    uint4 k[U][1], v[U][1];
    load(p.k, at.b, n, at.rows, end, at.channels, k);
    load(p.v, at.b, n, at.rows, end, at.channels, v);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float kn[V], vn[V];
      widen<T>(k[u][0], kn);
      widen<T>(v[u][0], vn);
#pragma unroll
      for (int i = 0; i < V; ++i) kn[i] *= g[i] * vn[i];
      if (n + u * at.rows < end) store(p.out, at.b, n + u * at.rows, at.channels, kn);
    }
  }
}

// Leave the sum over the block's rows of `values` [V] as its part: [lanes, V].
template <class T, class Problem>
__device__ inline float* leave_sum(const Gate<Problem>& gate, const Place<T>& at, const float* values) {
  constexpr int V = kVector<T>;
  float *shared = shared_memory(), *rows = shared + gate.team.part, *mine = gate.team.mine(shared);
#pragma unroll
  for (int i = 0; i < V; ++i) rows[threadIdx.x * V + i] = values[i];
  __syncthreads();
  for (int j = threadIdx.x; j < gate.team.part; j += blockDim.x) {
    float total = 0;
    for (int row = 0; row < at.rows; ++row) total += rows[row * gate.team.part + j];
    mine[j] = total;
  }
  return shared;
}

// Σ over the blocks of a unit, into its tile of result [B,D].
template <class Problem>
__device__ inline void write_sum(const Gate<Problem>& gate, int64_t unit, void* result, const Parts& parts,
                                 const Share& share) {
  const int64_t channels = gate.problem.shape.channels, b = unit / gate.tiles, first = unit % gate.tiles * gate.team.part;
  share.for_each(gate.team.part, [&](int64_t j) {
    if (first + j < channels) static_cast<float*>(result)[b * channels + first + j] = parts.sum(j);
  });
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void backward_kernel(const __grid_constant__ Gate<GateBackward> gate) {
  constexpr int V = kVector<T>, U = 2;
  const GateBackward& p = gate.problem;
  const Place<T> at(gate);
  float g[V], sum[V] = {};
  load_row(static_cast<const float*>(p.gate) + at.b * p.shape.channels, at.channels, g);
  const int64_t end = gate.team.end();
  for (int64_t n = gate.team.begin() + at.row; n < end; n += U * at.rows) {
    uint4 grad[U][1], k[U][1], v[U][1];
    load(p.grad, at.b, n, at.rows, end, at.channels, grad);
    load(p.k, at.b, n, at.rows, end, at.channels, k);
    load(p.v, at.b, n, at.rows, end, at.channels, v);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float r[V], kn[V], vn[V];
      widen<T>(grad[u][0], r);
      widen<T>(k[u][0], kn);
      widen<T>(v[u][0], vn);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum[i] += r[i] * kn[i] * vn[i];
        kn[i] *= r[i] * g[i];
        vn[i] *= r[i] * g[i];
      }
      if (n + u * at.rows >= end) continue;
      if (p.grad_k.data) store(p.grad_k, at.b, n + u * at.rows, at.channels, vn);
      if (p.grad_v.data) store(p.grad_v, at.b, n + u * at.rows, at.channels, kn);
    }
  }
  if (!p.grad_gate) return;
  float* shared = leave_sum(gate, at, sum);
  bring_together(gate.team, shared,
                 [&](const Parts& parts, const Share& share) { write_sum(gate, gate.team.unit(), p.grad_gate, parts, share); });
}

__global__ void backward_sum_kernel(const __grid_constant__ Gate<GateBackward> gate) {
  bring_together_later(gate.team, [&](const Parts& parts, const Share& share) {
    write_sum(gate, gate.team.unit_later(), gate.problem.grad_gate, parts, share);
  });
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void double_backward_kernel(const __grid_constant__ Gate<GateDoubleBackward> gate) {
  constexpr int V = kVector<T>, U = 1;
  const GateDoubleBackward& p = gate.problem;
  const Place<T> at(gate);
  float g[V], G[V], sum[V] = {};
  load_row(static_cast<const float*>(p.gate) + at.b * p.shape.channels, at.channels, g);
  const float* cot_gate = static_cast<const float*>(p.cot_gate);
  load_row(cot_gate ? cot_gate + at.b * p.shape.channels : nullptr, at.channels, G);
  const int64_t end = gate.team.end();
  for (int64_t n = gate.team.begin() + at.row; n < end; n += U * at.rows) {
    uint4 grad[U][1], k[U][1], v[U][1], cot_k[U][1], cot_v[U][1];
    load(p.grad, at.b, n, at.rows, end, at.channels, grad);
    load(p.k, at.b, n, at.rows, end, at.channels, k);
    load(p.v, at.b, n, at.rows, end, at.channels, v);
    load(p.cot_k, at.b, n, at.rows, end, at.channels, cot_k);
    load(p.cot_v, at.b, n, at.rows, end, at.channels, cot_v);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float r[V], kn[V], vn[V], K[V], VV[V], out[V];
      widen<T>(grad[u][0], r);
      widen<T>(k[u][0], kn);
      widen<T>(v[u][0], vn);
      widen<T>(cot_k[u][0], K);
      widen<T>(cot_v[u][0], VV);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float cross = K[i] * vn[i] + VV[i] * kn[i];
        out[i] = g[i] * cross + G[i] * kn[i] * vn[i];
        sum[i] += r[i] * cross;
        K[i] = r[i] * (g[i] * K[i] + G[i] * kn[i]);
        VV[i] = r[i] * (g[i] * VV[i] + G[i] * vn[i]);
      }
      if (n + u * at.rows >= end) continue;
      if (p.out_grad.data) store(p.out_grad, at.b, n + u * at.rows, at.channels, out);
      if (p.out_k.data) store(p.out_k, at.b, n + u * at.rows, at.channels, VV);
      if (p.out_v.data) store(p.out_v, at.b, n + u * at.rows, at.channels, K);
    }
  }
  if (!p.out_gate) return;
  float* shared = leave_sum(gate, at, sum);
  bring_together(gate.team, shared,
                 [&](const Parts& parts, const Share& share) { write_sum(gate, gate.team.unit(), p.out_gate, parts, share); });
}

__global__ void double_backward_sum_kernel(const __grid_constant__ Gate<GateDoubleBackward> gate) {
  bring_together_later(gate.team, [&](const Parts& parts, const Share& share) {
    write_sum(gate, gate.team.unit_later(), gate.problem.out_gate, parts, share);
  });
}

// The problem cut into tiles and runs of tokens; `sums` where each block leaves a part.
template <class T, class Problem>
Gate<Problem> plan(const Problem& problem, bool wide, bool sums, const Device& device, const Queue& queue) {
  const int64_t vectors = (problem.shape.channels + kVector<T> - 1) / kVector<T>;
  int lanes = 1;
  while (lanes < vectors && lanes < kMostLanes) lanes *= 2;
  const int tiles = int((vectors + lanes - 1) / lanes);
  const int64_t units = problem.shape.batch * tiles, least = 4 * kThreads / lanes, part = sums ? lanes * kVector<T> : 0;
  const Team team = make_team(units, problem.shape.tokens, least, part, int64_t(kBlocks) * device.processors, device, queue);
  return {problem, team, lanes, tiles, wide};
}

template <class T, class Problem>
Outcome run(void (*kernel)(Gate<Problem>), void (*second)(Gate<Problem>), const Gate<Problem>& gate, const Queue& queue) {
  const int64_t shared = (kThreads * kVector<T> + gate.team.part) * 4;
  return start_teams(kernel, second, gate, gate.problem.shape.batch * gate.tiles, kThreads, shared, queue);
}

}  // namespace

Outcome gated_product_forward(const GateForward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch(p.shape.dtype, [&](auto storage) -> Outcome {
      using T = decltype(storage);
      const auto gate = plan<T>(p, aligned<T>(p.shape, p.k, p.v, p.out), false, device, queue);
      return start(forward_kernel<T>, gate, {p.shape.batch * gate.tiles * gate.team.chunks, kThreads, 0}, queue);
    });
  });
}

Outcome gated_product_backward(const GateBackward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch(p.shape.dtype, [&](auto storage) -> Outcome {
      using T = decltype(storage);
      const bool wide = aligned<T>(p.shape, p.grad, p.k, p.v, p.grad_k, p.grad_v);
      const auto gate = plan<T>(p, wide, p.grad_gate != nullptr, device, queue);
      return run<T>(backward_kernel<T>, backward_sum_kernel, gate, queue);
    });
  });
}

Outcome gated_product_double_backward(const GateDoubleBackward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch(p.shape.dtype, [&](auto storage) -> Outcome {
      using T = decltype(storage);
      const bool wide = aligned<T>(p.shape, p.grad, p.k, p.v, p.cot_k, p.cot_v, p.out_grad, p.out_k, p.out_v);
      const auto gate = plan<T>(p, wide, p.out_gate != nullptr, device, queue);
      return run<T>(double_backward_kernel<T>, double_backward_sum_kernel, gate, queue);
    });
  });
}

}  // namespace cuda
}  // namespace lada
