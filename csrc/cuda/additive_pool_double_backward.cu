// The double backward of additive pooling, in two halves; lada_kernels/reference/additive_pool.py derives it.
//
// u comes as v = u - t, whose mean v̄ is what rounding made of zero; with it, m = Σ α z - v̄ ā and
//     e = α (v - v̄)    σ = α (z - v̄ a - (v - v̄) ā - m),
// where no large t cancels. The first half reads x and its cotangent X for every per-token scalar and for the sums that need
// nothing else; the means over all tokens are known only then. The second takes the scalars from memory, and reads x again for
// the one sum over tokens that needs σ.
#include "pool_plan.h"
#include "weight_sums.h"

namespace lada {
namespace cuda {
namespace {

enum Scalar { kAlpha, kV, kA, kZ, kScalars };  // of a token and head: α, v = u - t, a, z = c + v a

struct Arguments {
  PoolStages stages;
  Layout layout;
  Team team;  // for each of layout.teams and each group of heads; the second half's first group also writes ∂x, of all groups
  float* slots;  // [slots, H, D] or null
};

// ---- the first half ----

// ∂ḡ = Σ α Y + Σ α a y - ā P, and ā, v̄ and m, for a group of heads of batch element b.
template <class T, class F, bool PER_HEAD>
__device__ inline void write_means(const Row<T, F, PER_HEAD>& row, const PoolStages& stages, int64_t b, const Parts& parts,
                                   const Share& share) {
  constexpr int HT = F::kHeads;
  const PoolDoubleBackward& p = stages.problem;
  const int64_t D = p.shape.channels, H = p.shape.heads, E = p.pool.per_head ? D / H : D, first = b * H + row.first_head;
  const float* pooled = static_cast<const float*>(p.pool.pooled) + first * E;
  float *out_grad = static_cast<float*>(p.out_grad) + first * E, *means = static_cast<float*>(stages.means) + first * 3;
  share.for_each(row.heads() * E, [&](int64_t i) {
    const int h = int(i / E), j = int(p.pool.per_head ? (row.first_head + h) * E + i % E : i % E);  // channel
    out_grad[i] = parts.sum(3 * HT + row.place_of(PER_HEAD ? 0 : h, j)) - parts.sum(h) * pooled[i];
  });
  if (share.rank) return;
  for (int h = threadIdx.x; h < row.heads(); h += blockDim.x) {
    const float a_mean = parts.sum(h), v_mean = parts.sum(2 * HT + h);
    means[3 * h] = a_mean;
    means[3 * h + 1] = v_mean;
    means[3 * h + 2] = parts.sum(HT + h) - v_mean * a_mean;
  }
}

template <class T, class F, bool PER_HEAD>
__global__ __launch_bounds__(F::kThreads, F::kBlocks) void gather_kernel(const __grid_constant__ Arguments arguments) {
  using R = Row<T, F, PER_HEAD>;
  constexpr int HT = F::kHeads, kPooled = R::kPooled;
  enum Kind { kOfAlpha, kOfAlphaA, kOfE, kKinds };
  const PoolStages& stages = arguments.stages;
  const PoolDoubleBackward& p = stages.problem;
  const Layout& layout = arguments.layout;
  const Team& team = arguments.team;
  const int64_t B = p.shape.batch, N = p.shape.tokens, D = p.shape.channels, H = p.shape.heads;
  const int64_t pooled_size = H * (p.pool.per_head ? D / H : D);
  const int teams = layout.teams, begin = int(team.begin()), end = int(team.end());
  const float scale = float(p.pool.scale);
  R row(layout, p.shape);
  const int group = team.unit() % layout.groups, index = team.unit() / layout.groups;  // groups side by side
  row.choose_group(group);
  const int rows = layout.rows();
  float *weight = row.shared, *cot_weight = weight + layout.operand(),
        *grads = cot_weight + (p.cot_weight ? layout.operand() : 0);
  float *inner = row.shared + layout.inner, *part = row.shared + layout.part;
  float weight_sum[HT][kChannels] = {};
  row.stage(weight, static_cast<const float*>(p.pool.weight), false);
  if (p.cot_weight) row.stage(cot_weight, static_cast<const float*>(p.cot_weight), false);

  for (int64_t b = index; b < B; b += teams) {
    const float* grad = static_cast<const float*>(p.grad) + b * pooled_size;
    float g[kChannels], shift, factor, a_sum = 0, z_sum = 0, v_sum = 0, sum[kPooled][kChannels] = {};
    __syncthreads();
    if constexpr (PER_HEAD)
      load_row(grad, row.channels, g);
    else
      row.stage(grads, grad, layout.diagonal);
    row.inner_products(static_cast<const float*>(p.pool.pooled) + b * pooled_size, grad, pooled_size / H, inner);
    __syncthreads();
    row.softmax_of(p.pool, b, shift, factor);
    const float t = row.mine_of(inner);
    Stream<T, 1> stream(p.pool.x, b, begin + row.index, rows, end, row.channels);
    Stream<T, 1> cot_stream(p.cot_x, b, begin + row.index, rows, end, row.channels);
    for (int first = begin; first < end; first += rows) {
      const int n = first + row.index;
      const unsigned live = live_tokens<1>(p.pool.mask, b * N, n, rows, end);
      float xs[2][1][kChannels], sums[4];  // x and X
      stream.take(n, live, xs[0]);
      cot_stream.take(n, live, xs[1]);
      const auto& both = reinterpret_cast<const float (&)[2][kChannels]>(xs);
      row.template sum_of<2>(sums, [&](auto& partial) {  // s, a
        row.dot(both, weight, partial);
        if (p.cot_weight) row.dot(xs[0], cot_weight, reinterpret_cast<float (&)[1][HT]>(partial[1]));
      });
      row.template sum_of<2>(sums + 2, [&](auto& partial) { row.project(both, g, grads, partial); });  // u, c
      row.across_warps(sums);
      const float alpha = live ? expf(sums[0] * scale - shift) * factor : 0.0f, v = sums[2] - t;
      const float a = scale * sums[1], z = sums[3] + v * a;
      a_sum += alpha * a;
      z_sum += alpha * z;
      v_sum += alpha * v;
      if (row.leads() && n < end) {
        float* scalars = static_cast<float*>(stages.scalars) + (b * N + n) * kScalars * H + row.first_head + row.head;
        scalars[kAlpha * H] = alpha;
        scalars[kV * H] = v;
        scalars[kA * H] = a;
        scalars[kZ * H] = z;
      }
      row.tell(kOfAlpha, kKinds, {alpha});
      row.tell(kOfAlphaA, kKinds, {alpha * a});
      row.tell(kOfE, kKinds, {scale * alpha * v});
      __syncwarp();
      row.pool(kOfAlphaA, kKinds, xs[0], sum);
      row.pool(kOfAlpha, kKinds, xs[1], sum);
      __syncwarp();  // keeps the compiler from having all weights in registers at once
      if (arguments.slots) row.accumulate(kOfE, kKinds, xs[1], weight_sum);
      __syncwarp();
    }

    float* states = row.shared + layout.weights;  // Σ α a, Σ α z and Σ α v, [rows, HT] each
    __syncthreads();
    if (row.channels.lane < HT) {
      states[row.index * HT + row.head] = a_sum;
      states[(rows + row.index) * HT + row.head] = z_sum;
      states[(2 * rows + row.index) * HT + row.head] = v_sum;
    }
    const int64_t unit = b * layout.groups + group;
    float* mine = team.needs_second_kernel() ? team.workspace + (unit * team.chunks + team.chunk()) * team.part : part;
    row.template sum_rows<kPooled>(mine + 3 * HT, sum, [](int, int) { return 1.0f; });
    for (int i = threadIdx.x; i < 3 * HT; i += blockDim.x) {
      float total = 0;
      for (int r = 0; r < rows; ++r) total += states[i / HT * rows * HT + r * HT + i % HT];
      mine[i] = total;
    }
    bring_together(team, part, [&](const Parts& parts, const Share& share) { write_means(row, stages, b, parts, share); });
  }
  if (!arguments.slots) return;
  row.template sum_rows<HT>(row.shared + layout.weight_part, weight_sum, [](int, int) { return 1.0f; });
  leave_weight_sum(row, team, index, arguments.slots);
}

// Units are batch elements and groups of heads.
template <class T, class F, bool PER_HEAD> __global__ void means_kernel(const __grid_constant__ Arguments arguments) {
  const Layout& layout = arguments.layout;
  Row<T, F, PER_HEAD> row(layout, arguments.stages.problem.shape);
  row.choose_group(arguments.team.unit_later() % layout.groups);
  bring_together_later(arguments.team, [&](const Parts& parts, const Share& share) {
    write_means(row, arguments.stages, arguments.team.unit_later() / layout.groups, parts, share);
  });
}

// ---- the second half ----

template <class T, class F, bool PER_HEAD>
__global__ __launch_bounds__(F::kThreads, F::kBlocks) void scatter_kernel(const __grid_constant__ Arguments arguments) {
  using R = Row<T, F, PER_HEAD>;
  constexpr int HT = F::kHeads, U = F::kTokens;
  enum Kind { kOfSigma, kOfE, kOfSlope, kOfAlpha, kKinds };
  const PoolStages& stages = arguments.stages;
  const PoolDoubleBackward& p = stages.problem;
  const Layout& layout = arguments.layout;
  const Team& team = arguments.team;
  const int64_t B = p.shape.batch, N = p.shape.tokens, D = p.shape.channels, H = p.shape.heads;
  const int64_t pooled_size = H * (p.pool.per_head ? D / H : D);
  const int teams = layout.teams, begin = int(team.begin()), end = int(team.end());
  const float scale = float(p.pool.scale);
  const bool reads_x = arguments.slots || stages.extra;
  const int group = F::kGeneral && arguments.slots ? team.unit() / teams : 0;
  const int last = F::kGeneral && group == 0 && p.out_x.data ? layout.groups : group + 1;
  R row(layout, p.shape);
  const int rows = layout.rows();
  float *weight = row.shared, *cot_weight = weight + layout.operand(),
        *grads = cot_weight + (p.cot_weight ? layout.operand() : 0);
  float *extras = grads + layout.operand(), *inner = row.shared + layout.inner;
  float g[kChannels], extra_g[kChannels], a_mean, v_mean, m, extra_t, weight_sum[HT][kChannels] = {};

  const auto enter = [&](int64_t b, int which) {
    const float *grad = static_cast<const float*>(p.grad) + b * pooled_size,
                *pooled = static_cast<const float*>(p.pool.pooled) + b * pooled_size;
    const float* extra = stages.extra ? static_cast<const float*>(stages.extra) + b * pooled_size : nullptr;
    __syncthreads();
    row.choose_group(which);
    row.stage(weight, static_cast<const float*>(p.pool.weight), false);
    if (p.cot_weight) row.stage(cot_weight, static_cast<const float*>(p.cot_weight), false);
    if constexpr (PER_HEAD) {
      load_row(grad, row.channels, g);
      load_row(extra, row.channels, extra_g);
    } else {
      row.stage(grads, grad, layout.diagonal);
      if (extra) row.stage(extras, extra, layout.diagonal);
    }
    if (extra) row.inner_products(pooled, extra, pooled_size / H, inner);
    __syncthreads();
    const float* means = static_cast<const float*>(stages.means) + (b * H + row.first_head + row.head) * 3;
    const bool there = row.head < row.heads();
    a_mean = there ? means[0] : 0.0f;
    v_mean = there ? means[1] : 0.0f;
    m = there ? means[2] : 0.0f;
    extra_t = extra ? row.mine_of(inner) : 0.0f;
  };

  for (int64_t b = team.unit() % teams; b < B; b += teams) {
    if (!F::kGeneral || layout.groups == 1) enter(b, 0);
    Stream<T, U> stream(p.pool.x, b, begin + row.index, rows, end, row.channels, reads_x);
    for (int first = begin; first < end; first += U * rows) {
      const int n = first + row.index;
      const unsigned live = live_tokens<U>(p.pool.mask, b * N, n, rows, end);
      float x[U][kChannels];
      stream.take(n, live, x);
      for (int which = group; which < last; ++which) {
        if (F::kGeneral && layout.groups > 1) enter(b, which);
        float more[U] = {};
        if (stages.extra) {
          row.sum_of(more, [&](auto& partial) { row.project(x, extra_g, extras, partial); });
          row.across_warps(more);
        }
        float sigma[U], e[U], slope[U], alpha[U];
#pragma unroll
        for (int u = 0; u < U; ++u) {
          sigma[u] = e[u] = slope[u] = alpha[u] = 0;
          if (!(live >> u & 1) || row.head >= row.heads()) continue;
          const int64_t token = b * N + n + u * rows;
          const float* scalars =
              static_cast<const float*>(stages.scalars) + token * (kScalars * int(H)) + row.first_head + row.head;
          const float v = scalars[kV * H] - v_mean, a = scalars[kA * H];
          alpha[u] = scalars[kAlpha * H];
          sigma[u] = scale * alpha[u] * (scalars[kZ * H] - v_mean * a - v * a_mean - m + (more[u] - extra_t));
          e[u] = scale * alpha[u] * v;
          slope[u] = alpha[u] * (a - a_mean);
        }
        row.tell(kOfSigma, kKinds, sigma);
        row.tell(kOfE, kKinds, e);
        row.tell(kOfSlope, kKinds, slope);
        row.tell(kOfAlpha, kKinds, alpha);
        __syncwarp();
        if (which == group && arguments.slots) row.accumulate(kOfSigma, kKinds, x, weight_sum);
        if (group == 0 && p.out_x.data) {
          float out[U][kChannels];
          row.take_carried(F::kGeneral && which > group, out);
          row.scatter(kOfSigma, kKinds, weight, out);
          if (p.cot_weight) row.scatter(kOfE, kKinds, cot_weight, out);
          row.scatter_pooled(kOfSlope, kKinds, g, grads, out);
          if (stages.extra) row.scatter_pooled(kOfAlpha, kKinds, extra_g, extras, out);
          if (F::kGeneral && which + 1 < last)
            row.carry(out);
          else
            row.store_all(p.out_x, b, n, rows, end, out);
        }
        __syncwarp();
      }
    }
  }
  if (!arguments.slots) return;
  row.choose_group(group);
  row.template sum_rows<HT>(row.shared + layout.weight_part, weight_sum, [](int, int) { return 1.0f; });
  leave_weight_sum(row, team, team.unit() % teams, arguments.slots);
}

// ---- on the host ----

// A half, laid out: `slots` is how many slots its sums of w̄ take.
struct Plan {
  Layout layout;
  Team team;
  int64_t groups, slots, team_bytes;
  bool general;

  bool fits(const Device& device) const { return layout.fits(general, device.shared); }

  Grid grid() const {
    return {int64_t(layout.teams) * groups * team.chunks, layout.threads, 4 * layout.total, team.cluster ? team.chunks : 1};
  }
};

int64_t slots_of(const Plan& plan) { return plan.layout.teams * (plan.team.cluster ? 1 : plan.team.chunks); }

template <class T, class Any, bool PER_HEAD>
Plan plan_gather(const PoolStages& stages, bool sums, const Device& device, const Queue& queue) {
  using F = ForDots<Any>;
  const PoolDoubleBackward& p = stages.problem;
  const Needs needs{1 + (p.cot_weight != nullptr) + !PER_HEAD, 3, 4, 1, false, PER_HEAD ? 1 : F::kHeads, sums, 3};
  Plan plan;
  plan.layout = make_layout<T, F>(p.shape, p.pool.per_head, aligned<T>(p.shape, p.pool.x, p.cot_x), needs, device);
  plan.general = F::kGeneral;
  plan.groups = plan.layout.groups;
  plan.team = pool_team<F>(p.shape, plan.layout, plan.groups, 8 * plan.layout.rows(),
                           plan.layout.weight_part - plan.layout.part, device, queue);
  plan.slots = sums ? slots_of(plan) : 0;
  plan.team_bytes = plan.team.workspace_bytes(p.shape.batch * plan.groups);
  return plan;
}

template <class T, class F, bool PER_HEAD>
Plan plan_scatter(const PoolStages& stages, bool sums, const Device& device, const Queue& queue) {
  const PoolDoubleBackward& p = stages.problem;
  const int operands = 1 + (p.cot_weight != nullptr) + (PER_HEAD ? 0 : stages.extra ? 2 : 1);
  const Needs needs{operands, 4, 1, 1, true, 0, sums, 0};
  Plan plan;
  plan.layout = make_layout<T, F>(p.shape, p.pool.per_head, aligned<T>(p.shape, p.pool.x, p.out_x), needs, device);
  plan.general = F::kGeneral;
  plan.groups = sums ? plan.layout.groups : 1;
  plan.team = pool_team<F>(p.shape, plan.layout, plan.groups, 8 * plan.layout.rows(), 0, device, queue);
  plan.slots = sums ? slots_of(plan) : 0;
  plan.team_bytes = 0;
  return plan;
}

template <class T, class F, bool PER_HEAD>
Outcome gather(const PoolStages& stages, Plan plan, float* workspace, float* slots, const Queue& queue) {
  plan.team.workspace = workspace;
  const Arguments arguments{stages, plan.layout, plan.team, slots};
  const Outcome outcome = start(gather_kernel<T, ForDots<F>, PER_HEAD>, arguments, plan.grid(), queue);
  if (outcome.error || !plan.team_bytes) return outcome;
  const int64_t units = stages.problem.shape.batch * plan.groups;
  return start(means_kernel<T, ForDots<F>, PER_HEAD>, arguments, {units * plan.team.spread, plan.layout.threads, 0}, queue);
}

template <class T, class F, bool PER_HEAD>
Outcome scatter(const PoolStages& stages, const Plan& plan, float* slots, const Queue& queue) {
  return start(scatter_kernel<T, F, PER_HEAD>, Arguments{stages, plan.layout, plan.team, slots}, plan.grid(), queue);
}

// body(T, F, PER_HEAD, device) as types, on the queue's device
template <class Body> Outcome with_types(const PoolDoubleBackward& p, const Queue& queue, Body body) {
  return on_device(queue, [&](const Device& device) {
    return dispatch_pool(p.shape, p.pool.per_head,
                         [&](auto storage, auto form, auto per_head) { return body(storage, form, per_head, device); });
  });
}

}  // namespace

Outcome additive_pool_gather(const PoolStages& stages, const Queue& queue) {
  const PoolDoubleBackward& p = stages.problem;
  return with_types(p, queue, [&](auto storage, auto form, auto per_head, const Device& device) -> Outcome {
    using T = decltype(storage);
    using F = decltype(form);
    constexpr bool PER_HEAD = decltype(per_head)::value;
    const bool sums = stages.weight_sum && p.cot_x.data;
    const Plan plan = plan_gather<T, F, PER_HEAD>(stages, sums, device, queue);
    if (!plan.fits(device)) return {kDoesNotFit, nullptr};
    const int64_t wanted = plan.team_bytes + plan.slots * p.shape.heads * p.shape.channels * 4;
    if (wanted > queue.workspace_bytes) return {wanted, nullptr};
    float *workspace = static_cast<float*>(queue.workspace), *slots = sums ? workspace + plan.team_bytes / 4 : nullptr;
    const Outcome outcome = gather<T, F, PER_HEAD>(stages, plan, workspace, slots, queue);
    if (outcome.error || !stages.weight_sum) return outcome;
    return sum_slots({slots, nullptr, static_cast<float*>(stages.weight_sum), plan.slots, p.shape.heads * p.shape.channels},
                     queue);
  });
}

Outcome additive_pool_scatter(const PoolStages& stages, const Queue& queue) {
  const PoolDoubleBackward& p = stages.problem;
  if (!p.out_x.data && !p.out_weight) return {};
  return with_types(p, queue, [&](auto storage, auto form, auto per_head, const Device& device) -> Outcome {
    using T = decltype(storage);
    using F = decltype(form);
    constexpr bool PER_HEAD = decltype(per_head)::value;
    const Plan plan = plan_scatter<T, F, PER_HEAD>(stages, p.out_weight != nullptr, device, queue);
    if (!plan.fits(device)) return {kDoesNotFit, nullptr};
    const int64_t size = p.shape.heads * p.shape.channels, wanted = plan.slots * size * 4;
    if (wanted > queue.workspace_bytes) return {wanted, nullptr};
    float* slots = p.out_weight ? static_cast<float*>(queue.workspace) : nullptr;
    const Outcome outcome = scatter<T, F, PER_HEAD>(stages, plan, slots, queue);
    if (outcome.error || !p.out_weight) return outcome;
    const float* before = static_cast<const float*>(stages.weight_sum);
    return sum_slots({slots, before, static_cast<float*>(p.out_weight), plan.slots, size}, queue);
  });
}

// Both halves, with what goes between them in the workspace.
Outcome additive_pool_double_backward(const PoolDoubleBackward& p, const Queue& queue) {
  return with_types(p, queue, [&](auto storage, auto form, auto per_head, const Device& device) -> Outcome {
    using T = decltype(storage);
    using F = decltype(form);
    constexpr bool PER_HEAD = decltype(per_head)::value;
    const int64_t B = p.shape.batch, N = p.shape.tokens, H = p.shape.heads, size = H * p.shape.channels;
    const bool sums = p.out_weight != nullptr, writes = sums || p.out_x.data;
    PoolStages stages{p, nullptr, nullptr, nullptr, nullptr};
    const Plan first = plan_gather<T, F, PER_HEAD>(stages, sums && p.cot_x.data, device, queue);
    const Plan second = plan_scatter<T, F, PER_HEAD>(stages, sums, device, queue);
    for (const Plan* plan : {&first, &second})
      if (!plan->fits(device)) return {kDoesNotFit, nullptr};
    const int64_t counts[] = {B * N * kScalars * H, B * H * 3, first.team_bytes / 4, (first.slots + second.slots) * size};
    int64_t wanted = 0;
    for (const int64_t count : counts) wanted += (count + 3) / 4 * 16;  // bytes, each aligned to 16
    if (wanted > queue.workspace_bytes) return {wanted, nullptr};
    float* parts[4];
    float* next = static_cast<float*>(queue.workspace);
    for (int i = 0; i < 4; ++i) {
      parts[i] = next;
      next += (counts[i] + 3) / 4 * 4;
    }
    stages.scalars = parts[0];
    stages.means = parts[1];
    Outcome outcome = gather<T, F, PER_HEAD>(stages, first, parts[2], first.slots ? parts[3] : nullptr, queue);
    if (!outcome.error && writes)
      outcome = scatter<T, F, PER_HEAD>(stages, second, sums ? parts[3] + first.slots * size : nullptr, queue);
    if (outcome.error || !sums) return outcome;
    return sum_slots({parts[3], nullptr, static_cast<float*>(p.out_weight), first.slots + second.slots, size}, queue);
  });
}

}  // namespace cuda
}  // namespace lada
