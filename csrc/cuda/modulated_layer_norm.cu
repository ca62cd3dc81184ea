// The modulated layer norm; lada_kernels/reference/modulated_layer_norm.py derives every formula and names every letter.
//
// A token lies in the registers of `lanes` threads, 16 channels in each; a block works on as many tokens at a time as fit it.
#include "team.h"
#include "vectors.h"

namespace lada {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kHeld = 16;  // of a block and of a warp; channels that a thread holds
constexpr int kBlocks = 8, kSummingBlocks = 4;         // for a processor; fewer where each leaves a part
constexpr int kMostSums = 8;                           // over the channels of a token, at once
constexpr int kSlots = kThreads / kWarp * kMostSums;   // floats by which the warps of a token tell each other theirs
template <class T> constexpr int kPieces = kHeld / kVector<T>;
template <class T> constexpr int kTogether = kVector<T> / 4;  // tokens that a thread of the forward loads at once, 64 bytes

template <class Problem> struct Norm {
  Problem problem;
  Team team;  // for each batch element
  int lanes;
  bool wide;
};

// Where a thread works.
template <class T> struct Place {
  int64_t b;
  int row, rows, lanes, turn = 0;
  Channels<T, kPieces<T>> channels;

  template <class Problem> __device__ explicit Place(const Norm<Problem>& norm) {
    b = norm.team.unit();
    lanes = norm.lanes;
    row = threadIdx.x / lanes;
    rows = kThreads / lanes;
    channels = {int(threadIdx.x) % lanes, lanes, int(norm.problem.shape.channels), norm.wide};
  }

  // One vector of the channels.
  __device__ Channels<T, 1> piece(int q) const { return {channels.lane + q * lanes, 0, channels.total, channels.wide}; }

  // This batch element's row of values [B,D], which may be absent.
  __device__ const float* row_of(const void* values) const {
    return values ? static_cast<const float*>(values) + b * channels.total : nullptr;
  }

  // K sums over the threads of a token, for all of these. Every thread of the block takes part, token or not.
  template <int K> __device__ void add_up(float (&values)[K]) {
    static_assert(K <= kMostSums);
    for (int bits = 1; bits < lanes && bits < kWarp; bits *= 2)
#pragma unroll
      for (int k = 0; k < K; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], bits);
    if (lanes <= kWarp) return;
    float* slots = shared_memory() + turn * kSlots;
    turn ^= 1;  // who is ahead writes elsewhere than others still read, so that one barrier is enough
    if (threadIdx.x % kWarp == 0)
#pragma unroll
      for (int k = 0; k < K; ++k) slots[threadIdx.x / kWarp * kMostSums + k] = values[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = 0;
#pragma unroll 1
    for (int warp = row * lanes / kWarp; warp < (row + 1) * lanes / kWarp; ++warp)
#pragma unroll
      for (int k = 0; k < K; ++k) values[k] += slots[warp * kMostSums + k];
  }
};

// What a block has in shared memory after the slots: rows, until it leaves its sums there.
__device__ inline float* rows_or_sums() { return shared_memory() + 2 * kSlots; }

template <class T>
__global__ __launch_bounds__(kThreads, 4 - kTogether<T>) void forward_kernel(const __grid_constant__ Norm<NormForward> norm) {
  constexpr int V = kVector<T>, P = kPieces<T>, U = kTogether<T>;
  const NormForward& p = norm.problem;
  Place<T> at(norm);
  float gamma[kHeld], beta[kHeld];
  load_row(at.row_of(p.gamma), at.channels, gamma);
  load_row(at.row_of(p.beta), at.channels, beta);
  const float inverse = 1 / float(at.channels.total), eps = float(p.eps);
  const int64_t end = norm.team.end();
  for (int64_t first = norm.team.begin(); first < end; first += U * at.rows) {
    const int64_t n = first + at.row;
    uint4 raw[U][P];
    load(p.x, at.b, n, at.rows, end, at.channels, raw);
    float x[U][kHeld], mean[U] = {}, moments[2 * U] = {};  // about the mean: Σ, and Σ of squares
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int q = 0; q < P; ++q) widen<T>(raw[u][q], x[u] + q * V);
#pragma unroll
      for (int i = 0; i < kHeld; ++i) mean[u] += x[u][i];
    }
    at.add_up(mean);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      mean[u] *= inverse;
      at.channels.for_each([&](int i, int) {
        const float centred = x[u][i] - mean[u];
        moments[2 * u] += centred;
        moments[2 * u + 1] += centred * centred;
      });
    }
    at.add_up(moments);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      // Rounding's share of the mean: equal channels would show it divided by their tiny deviation.
      const float rest = moments[2 * u] * inverse;
      const float rstd = rsqrtf(fmaxf(moments[2 * u + 1] * inverse - rest * rest, 0) + eps);
      mean[u] += rest;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) x[u][i] = gamma[i] * ((x[u][i] - mean[u]) * rstd) + beta[i];
      if (n + u * at.rows >= end) continue;
      store(p.out, at.b, n + u * at.rows, at.channels, x[u]);
      if (at.channels.lane > 0) continue;
      static_cast<float*>(p.mean)[at.b * p.shape.tokens + n + u * at.rows] = mean[u];
      static_cast<float*>(p.rstd)[at.b * p.shape.tokens + n + u * at.rows] = rstd;
    }
  }
}

__device__ inline void write_quad(float* to, const float* values) {
  *reinterpret_cast<float4*>(to) = {values[0], values[1], values[2], values[3]};
}

// Leave the sums over the block's rows as its part: [K, lanes * kHeld].
template <int K, class T>
__device__ inline float* leave_sums(const Team& team, const Place<T>& at, const float (&sums)[K][kHeld]) {
  float *shared = rows_or_sums(), *mine = team.mine(shared);
  __syncthreads();  // rows may still be read
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int i = 0; i < kHeld; i += 4) {
      const int channel = at.channels.first(i / kVector<T>) + i % kVector<T>;
      write_quad(shared + at.row * team.part + k * at.lanes * kHeld + channel, sums[k] + i);
    }
  __syncthreads();
  for (int rows = at.rows / 2; rows > 0; rows /= 2) {
    for (int j = threadIdx.x; j < rows * team.part; j += kThreads) shared[j] += shared[j + rows * team.part];
    __syncthreads();
  }
  for (int j = threadIdx.x; mine != shared && j < team.part; j += kThreads) mine[j] = shared[j];
  return shared;
}

// Σ over the blocks of a batch element, into its rows of the results [B,D].
template <int K, class Problem>
__device__ inline void write_sums(const Norm<Problem>& norm, int64_t b, void* const (&results)[K], const Parts& parts,
                                  const Share& share) {
  const int64_t channels = norm.problem.shape.channels, width = norm.lanes * kHeld;
  share.for_each(K * width, [&](int64_t j) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t channel = j - k * width;
      if (!results[k] || channel < 0 || channel >= channels) continue;
      static_cast<float*>(results[k])[b * channels + channel] = parts.sum(j);
    }
  });
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void backward_kernel(const __grid_constant__ Norm<NormBackward> norm) {
  constexpr int V = kVector<T>, P = kPieces<T>;
  const NormBackward& p = norm.problem;
  Place<T> at(norm);
  float gamma[kHeld], sums[2][kHeld] = {};  // ȳ x̂ and ȳ
  load_row(at.row_of(p.gamma), at.channels, gamma);
  const float inverse = 1 / float(at.channels.total);
  const int64_t end = norm.team.end();
  for (int64_t first = norm.team.begin(); first < end; first += at.rows) {
    const int64_t n = first + at.row, token = at.b * p.shape.tokens + n;
    uint4 raw_grad[1][P], raw_x[1][P];
    load(p.grad, at.b, n, at.rows, end, at.channels, raw_grad);
    load(p.x, at.b, n, at.rows, end, at.channels, raw_x);
    const float mean = n < end ? static_cast<const float*>(p.mean)[token] : 0;
    const float rstd = n < end ? static_cast<const float*>(p.rstd)[token] : 0;
    float y[kHeld], normal[kHeld], means[2] = {};  // of ĝ and ĝ x̂
#pragma unroll
    for (int q = 0; q < P; ++q) {
      widen<T>(raw_grad[0][q], y + q * V);
      widen<T>(raw_x[0][q], normal + q * V);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      normal[i] = (normal[i] - mean) * rstd;
      sums[0][i] += y[i] * normal[i];
      sums[1][i] += y[i];
      y[i] *= gamma[i];
      means[0] += y[i];
      means[1] += y[i] * normal[i];
    }
    if (!p.grad_x.data) continue;
    at.add_up(means);
    for (float& value : means) value *= inverse;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) y[i] = rstd * (y[i] - means[0] - normal[i] * means[1]);
    if (n < end) store(p.grad_x, at.b, n, at.channels, y);
  }
  if (!p.grad_gamma && !p.grad_beta) return;
  float* shared = leave_sums(norm.team, at, sums);
  bring_together(norm.team, shared, [&](const Parts& parts, const Share& share) {
    write_sums(norm, at.b, {p.grad_gamma, p.grad_beta}, parts, share);
  });
}

__global__ void backward_sum_kernel(const __grid_constant__ Norm<NormBackward> norm) {
  bring_together_later(norm.team, [&](const Parts& parts, const Share& share) {
    write_sums(norm, norm.team.unit_later(), {norm.problem.grad_gamma, norm.problem.grad_beta}, parts, share);
  });
}

// K rows of floats in shared memory, where registers are scarce: [lanes, kStride].
template <class T, int K> struct Rows {
  static constexpr int kStride = K * kHeld + 4;  // 16 bytes more than a lane needs, and eight of them read at once

  float* mine;

  __device__ Rows(const Place<T>& at, const void* const (&rows)[K]) : mine(rows_or_sums() + at.channels.lane * kStride) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (at.row > 0) break;
      float values[kHeld];
      load_row(at.row_of(rows[k]), at.channels, values);
#pragma unroll
      for (int i = 0; i < kHeld; i += 4) write_quad(mine + k * kHeld + i, values + i);
    }
    __syncthreads();
  }

  __device__ void read(int k, int q, float* out) const {  // -> [kVector]
#pragma unroll
    for (int i = 0; i < kVector<T>; i += 4) {
      const float4 quad = *reinterpret_cast<const float4*>(mine + k * kHeld + q * kVector<T> + i);
      out[i] = quad.x;
      out[i + 1] = quad.y;
      out[i + 2] = quad.z;
      out[i + 3] = quad.w;
    }
  }
};

template <class T>
__global__ __launch_bounds__(kThreads, 2) void double_backward_kernel(const __grid_constant__ Norm<NormDoubleBackward> norm) {
  constexpr int V = kVector<T>, P = kPieces<T>;
  const NormDoubleBackward& p = norm.problem;
  Place<T> at(norm);
  const Rows<T, 3> rows(at, {p.gamma, p.cot_gamma, p.cot_beta});
  float sums[1][kHeld] = {};  // ȳ r P X
  const float inverse = 1 / float(at.channels.total);
  const int64_t end = norm.team.end();
  for (int64_t first = norm.team.begin(); first < end; first += at.rows) {
    const int64_t n = first + at.row, token = at.b * p.shape.tokens + n;
    uint4 raw_grad[1][P], raw_x[1][P], raw_cot[1][P];
    load(p.grad, at.b, n, at.rows, end, at.channels, raw_grad);
    load(p.x, at.b, n, at.rows, end, at.channels, raw_x);
    load(p.cot_x, at.b, n, at.rows, end, at.channels, raw_cot);
    const float mean = n < end ? static_cast<const float*>(p.mean)[token] : 0;
    const float rstd = n < end ? static_cast<const float*>(p.rstd)[token] : 0;
    const auto read = [&](int q, float* y, float* normal, float* X, float* g, float* G) {  // -> [kVector] each
      widen<T>(raw_grad[0][q], y);
      widen<T>(raw_x[0][q], normal);
      widen<T>(raw_cot[0][q], X);
      rows.read(0, q, g);
      rows.read(1, q, G);
#pragma unroll
      for (int i = 0; i < V; ++i) normal[i] = (normal[i] - mean) * rstd;
    };
    float means[7] = {};
#pragma unroll
    for (int q = 0; q < P; ++q) {
      float y[V], normal[V], X[V], g[V], G[V];
      read(q, y, normal, X, g, G);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float g_hat = g[i] * y[i], shifted = G[i] * y[i];
        means[0] += X[i];
        means[1] += X[i] * normal[i];
        means[2] += g_hat;
        means[3] += g_hat * normal[i];
        means[4] += X[i] * g_hat;
        means[5] += shifted;
        means[6] += shifted * normal[i];
      }
    }
    at.add_up(means);
    for (float& value : means) value *= inverse;
    const float X_mean = means[0], X_normal = means[1], g_mean = means[2], g_normal = means[3];
    const float g_projected = means[4] - X_mean * g_mean - X_normal * g_normal;        // ⟨ĝ P X⟩
    const float h_mean = means[5] - rstd * (g_mean * X_normal + X_mean * g_normal);    // ⟨h⟩
    const float h_normal = means[6] - rstd * (2 * X_normal * g_normal - g_projected);  // ⟨h x̂⟩ + r ⟨ĝ P X⟩
    if (n >= end) continue;
#pragma unroll
    for (int q = 0; q < P; ++q) {
      float y[V], normal[V], X[V], g[V], G[V], out_grad[V], out_x[V];
      read(q, y, normal, X, g, G);
      rows.read(2, q, out_grad);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float projected = rstd * (X[i] - X_mean - normal[i] * X_normal);
        const float h = G[i] * y[i] - rstd * (g[i] * y[i] * X_normal + X[i] * g_normal);
        sums[0][q * V + i] += y[i] * projected;
        out_grad[i] += g[i] * projected + G[i] * normal[i];
        out_x[i] = rstd * (h - h_mean - normal[i] * h_normal);
      }
      if (p.out_grad.data) store(p.out_grad, at.b, n, at.piece(q), out_grad);
      if (p.out_x.data) store(p.out_x, at.b, n, at.piece(q), out_x);
    }
  }
  if (!p.out_gamma) return;
  float* shared = leave_sums(norm.team, at, sums);
  bring_together(norm.team, shared,
                 [&](const Parts& parts, const Share& share) { write_sums(norm, at.b, {p.out_gamma}, parts, share); });
}

__global__ void double_backward_sum_kernel(const __grid_constant__ Norm<NormDoubleBackward> norm) {
  bring_together_later(norm.team, [&](const Parts& parts, const Share& share) {
    write_sums(norm, norm.team.unit_later(), {norm.problem.out_gamma}, parts, share);
  });
}

// The problem cut into runs of tokens, `least` or more for each row of a block, about `blocks` for a processor.
template <class Problem>
Norm<Problem> plan(const Problem& problem, bool wide, int least, int sums, int blocks, const Device& device,
                   const Queue& queue) {
  int lanes = 1;
  while (lanes * kHeld < problem.shape.channels) lanes *= 2;
  const Team team = make_team(problem.shape.batch, problem.shape.tokens, least * (kThreads / lanes), sums * lanes * kHeld,
                              int64_t(blocks) * device.processors, device, queue);
  return {problem, team, lanes, wide};
}

template <class Problem>
Outcome run(void (*kernel)(Norm<Problem>), void (*second)(Norm<Problem>), const Norm<Problem>& norm, int64_t row_floats,
            const Queue& queue) {
  const int64_t sums = norm.team.part * (kThreads / norm.lanes), kept = norm.lanes * row_floats;
  const int64_t shared = (2 * kSlots + (sums > kept ? sums : kept)) * 4;
  return start_teams(kernel, second, norm, norm.problem.shape.batch, kThreads, shared, queue);
}

}  // namespace

Outcome modulated_layer_norm_forward(const NormForward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch(p.shape.dtype, [&](auto storage) -> Outcome {
      using T = decltype(storage);
      const auto norm = plan(p, aligned<T>(p.shape, p.x, p.out), kTogether<T>, 0, kBlocks, device, queue);
      return start(forward_kernel<T>, norm, {p.shape.batch * norm.team.chunks, kThreads, 2 * kSlots * 4}, queue);
    });
  });
}

Outcome modulated_layer_norm_backward(const NormBackward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch(p.shape.dtype, [&](auto storage) -> Outcome {
      using T = decltype(storage);
      const bool wide = aligned<T>(p.shape, p.grad, p.x, p.grad_x), sums = p.grad_gamma || p.grad_beta;
      const auto norm = plan(p, wide, 2, sums ? 2 : 0, kSummingBlocks, device, queue);
      return run(backward_kernel<T>, backward_sum_kernel, norm, 0, queue);
    });
  });
}

Outcome modulated_layer_norm_double_backward(const NormDoubleBackward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch(p.shape.dtype, [&](auto storage) -> Outcome {
      using T = decltype(storage);
      const bool wide = aligned<T>(p.shape, p.grad, p.x, p.cot_x, p.out_grad, p.out_x);
      const auto norm = plan(p, wide, 2, p.out_gamma ? 1 : 0, kSummingBlocks, device, queue);
      return run(double_backward_kernel<T>, double_backward_sum_kernel, norm, Rows<T, 3>::kStride, queue);
    });
  });
}

}  // namespace cuda
}  // namespace lada
