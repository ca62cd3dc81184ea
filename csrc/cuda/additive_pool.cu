// Additive pooling, forward and backward; lada_kernels/reference/additive_pool.py derives every formula.
#include "pool_forward.h"
#include "weight_sums.h"

namespace lada {
namespace cuda {
namespace {

// ---- forward ----

struct ForwardArguments {
  PoolForward problem;
  Layout layout;
  Team team;  // for each batch element and group of heads
};

template <class T, class F, bool PER_HEAD>
__device__ inline void write_pooled(const Row<T, F, PER_HEAD>& row, const PoolForward& p, int64_t b, float* factors,
                                    const Parts& parts, const Share& share) {
  const int64_t E = p.pool.per_head ? p.shape.channels / p.shape.heads : p.shape.channels;
  float* pooled = static_cast<float*>(p.pool.pooled) + (b * p.shape.heads + row.first_head) * E;
  combine_pools(row, p.shape, p.pool, b, factors, parts, share, share.rank == 0,
                [&](int64_t i, float value) { pooled[i] = value; });
}

template <class T, class F, bool PER_HEAD>
__global__ __launch_bounds__(F::kThreads, F::kBlocks) void forward_kernel(const __grid_constant__ ForwardArguments arguments) {
  const PoolForward& p = arguments.problem;
  const Layout& layout = arguments.layout;
  const Team& team = arguments.team;
  Row<T, F, PER_HEAD> row(layout, p.shape);
  const int64_t b = team.unit() / layout.groups;
  row.choose_group(team.unit() % layout.groups);
  float* part = row.shared + layout.part;
  pool_forward(row, p.shape, p.pool, static_cast<float*>(p.alpha), b, int(team.begin()), int(team.end()), team.mine(part));
  bring_together(team, part, [&](const Parts& parts, const Share& share) {
    write_pooled(row, p, b, row.shared + layout.weights, parts, share);
  });
}

template <class T, class F, bool PER_HEAD> __global__ void combine_kernel(const __grid_constant__ ForwardArguments arguments) {
  const PoolForward& p = arguments.problem;
  const Layout& layout = arguments.layout;
  const Team& team = arguments.team;
  Row<T, F, PER_HEAD> row(layout, p.shape);
  row.choose_group(team.unit_later() % layout.groups);
  bring_together_later(team, [&](const Parts& parts, const Share& share) {
    write_pooled(row, p, team.unit_later() / layout.groups, row.shared, parts, share);
  });
}

// Scores to α [B,H,N].
__global__ void weigh_kernel(const __grid_constant__ PoolForward p) {
  const float* normaliser = static_cast<const float*>(p.pool.normaliser) + 2 * int64_t(blockIdx.x);
  float* alpha = static_cast<float*>(p.alpha) + blockIdx.x * p.shape.tokens;
  const float shift = finite(normaliser[0]), factor = inverse(normaliser[1]);
  for (int64_t n = threadIdx.x; n < p.shape.tokens; n += blockDim.x) alpha[n] = expf(alpha[n] - shift) * factor;
}

// ---- backward ----

struct BackwardArguments {
  PoolBackward problem;
  Layout layout;
  Team team;     // for each of layout.teams and each group of heads; the first group's also write x̄, of all groups
  float* slots;  // [slots, H, D] or null
};

template <class T, class F, bool PER_HEAD>
__global__ __launch_bounds__(F::kThreads,
                             F::kBlocks) void backward_kernel(const __grid_constant__ BackwardArguments arguments) {
  constexpr int HT = F::kHeads, U = F::kTokens;
  enum Kind { kAlpha, kE, kKinds };
  const PoolBackward& p = arguments.problem;
  const Layout& layout = arguments.layout;
  const Team& team = arguments.team;
  float* slots = arguments.slots;
  const int64_t B = p.shape.batch, N = p.shape.tokens, D = p.shape.channels, H = p.shape.heads;
  const int64_t pooled_size = H * (p.pool.per_head ? D / H : D);
  const int teams = layout.teams, begin = int(team.begin()), end = int(team.end());
  const int group = F::kGeneral && slots ? team.unit() / teams : 0;
  const int last = F::kGeneral && group == 0 && p.grad_x.data ? layout.groups : group + 1;
  Row<T, F, PER_HEAD> row(layout, p.shape);
  const int rows = layout.rows();
  float *weight = row.shared, *grads = weight + layout.operand(), *inner = row.shared + layout.inner;
  float g[kChannels], shift, factor, t, weight_sum[HT][kChannels] = {};

  const auto enter = [&](int64_t b, int which) {
    const float* grad = static_cast<const float*>(p.grad) + b * pooled_size;
    __syncthreads();
    row.choose_group(which);
    row.stage(weight, static_cast<const float*>(p.pool.weight), false);
    if constexpr (PER_HEAD)
      load_row(grad, row.channels, g);
    else
      row.stage(grads, grad, layout.diagonal);
    row.inner_products(static_cast<const float*>(p.pool.pooled) + b * pooled_size, grad, pooled_size / H, inner);
    __syncthreads();
    row.softmax_of(p.pool, b, shift, factor);
    t = row.mine_of(inner);
  };

  for (int64_t b = team.unit() % teams; b < B; b += teams) {
    if (!F::kGeneral || layout.groups == 1) enter(b, 0);
    Stream<T, U> stream(p.pool.x, b, begin + row.index, rows, end, row.channels);
    for (int first = begin; first < end; first += U * rows) {
      const int n = first + row.index;
      const unsigned live = live_tokens<U>(p.pool.mask, b * N, n, rows, end);
      float x[U][kChannels];
      stream.take(n, live, x);
      for (int which = group; which < last; ++which) {
        if (F::kGeneral && layout.groups > 1) enter(b, which);
        float sums[2 * U], alpha[U], e[U];
        row.sum_of(sums, [&](auto& partial) { row.dot(x, weight, partial); });
        row.sum_of(sums + U, [&](auto& partial) { row.project(x, g, grads, partial); });
        row.across_warps(sums);
#pragma unroll
        for (int u = 0; u < U; ++u) {
          alpha[u] = live >> u & 1 ? expf(sums[u] * float(p.pool.scale) - shift) * factor : 0.0f;
          e[u] = float(p.pool.scale) * alpha[u] * (sums[U + u] - t);
        }
        row.tell(kAlpha, kKinds, alpha);
        row.tell(kE, kKinds, e);
        __syncwarp();
        if (which == group && slots) row.accumulate(kE, kKinds, x, weight_sum);
        if (group == 0 && p.grad_x.data) {
          float out[U][kChannels];
          row.take_carried(F::kGeneral && which > group, out);
          row.scatter(kE, kKinds, weight, out);
          row.scatter_pooled(kAlpha, kKinds, g, grads, out);
          if (F::kGeneral && which + 1 < last)
            row.carry(out);
          else
            row.store_all(p.grad_x, b, n, rows, end, out);
        }
        __syncwarp();
      }
    }
  }
  if (!slots) return;
  __syncthreads();
  row.choose_group(group);
  row.template sum_rows<HT>(row.shared + layout.weight_part, weight_sum, [](int, int) { return 1.0f; });
  leave_weight_sum(row, team, team.unit() % teams, slots);
}

}  // namespace

Outcome additive_pool_forward(const PoolForward& p, const Queue& queue) {
  return on_device(queue, [&](const Device& device) {
    return dispatch_pool(p.shape, p.pool.per_head, [&](auto storage, auto form, auto whole_vectors) -> Outcome {
      using T = decltype(storage);
      using F = decltype(form);
      constexpr bool PER_HEAD = decltype(whole_vectors)::value;
      const Layout layout =
          make_layout<T, F>(p.shape, p.pool.per_head, aligned<T>(p.shape, p.pool.x), pool_forward_needs<F>(PER_HEAD), device);
      if (!layout.fits(F::kGeneral, device.shared)) return {kDoesNotFit, nullptr};
      const int64_t units = p.shape.batch * layout.groups;
      const Team team = make_team(units, p.shape.tokens, 8 * layout.rows(), layout.weight_part - layout.part,
                                  pool_blocks<F>(device), device, queue);
      const ForwardArguments arguments{p, layout, team};
      const Outcome outcome = start_teams(forward_kernel<T, F, PER_HEAD>, combine_kernel<T, F, PER_HEAD>, arguments, units,
                                          layout.threads, 4 * layout.total, queue, 4 * (team.chunks + 1) * F::kHeads);
      if (outcome.wanted || outcome.error || !p.alpha) return outcome;
      return start(weigh_kernel, p, {p.shape.batch * p.shape.heads, 256, 0}, queue);
    });
  });
}

Outcome additive_pool_backward(const PoolBackward& p, const Queue& queue) {
  if (!p.grad_x.data && !p.grad_weight) return {};
  return on_device(queue, [&](const Device& device) {
    return dispatch_pool(p.shape, p.pool.per_head, [&](auto storage, auto form, auto whole_vectors) -> Outcome {
      using T = decltype(storage);
      using F = decltype(form);
      constexpr bool PER_HEAD = decltype(whole_vectors)::value;
      const Needs needs{PER_HEAD ? 1 : 2, 2, 2, 1, true, 0, p.grad_weight != nullptr, 0};
      Layout layout = make_layout<T, F>(p.shape, p.pool.per_head, aligned<T>(p.shape, p.pool.x, p.grad_x), needs, device);
      if (!layout.fits(F::kGeneral, device.shared)) return {kDoesNotFit, nullptr};
      const int64_t groups = p.grad_weight ? layout.groups : 1;
      const Team team = pool_team<F>(p.shape, layout, groups, 8 * layout.rows(), 0, device, queue);
      const WeightSlots slots(p.grad_weight, p.shape, layout.teams * (team.cluster ? 1 : team.chunks), queue.workspace);
      if (slots.wanted > queue.workspace_bytes) return {slots.wanted, nullptr};
      const Outcome outcome = start(
          backward_kernel<T, F, PER_HEAD>, BackwardArguments{p, layout, team, slots.first},
          {int64_t(layout.teams) * groups * team.chunks, layout.threads, 4 * layout.total, team.cluster ? team.chunks : 1},
          queue);
      return outcome.error ? outcome : slots.sum(queue);
    });
  });
}

}  // namespace cuda
}  // namespace lada
