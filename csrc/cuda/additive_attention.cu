// Additive attention's forward: for small problems in one launch, else as its two parts.
#include "pool_forward.h"

namespace lada {
namespace cuda {
namespace {

constexpr int64_t kSmall = int64_t(1) << 24;  // channels of all tokens, up to which a launch saved is worth a fuller device
constexpr int64_t kAlone = int64_t(1) << 16;  // of one batch element, for a block without a cluster

struct Arguments {
  AttentionForward problem;
  Layout layout;
  Team team;  // for each batch element: a cluster, or one block
};

template <class T, class F>
__global__ __launch_bounds__(F::kThreads, F::kBlocks) void forward_kernel(const __grid_constant__ Arguments arguments) {
  constexpr int U = F::kTokens;
  const AttentionForward& p = arguments.problem;
  const Layout& layout = arguments.layout;
  const Team& team = arguments.team;
  const int64_t b = team.unit(), D = p.shape.channels;
  const int begin = int(team.begin()), end = int(team.end());
  Row<T, F, true> row(layout, p.shape);
  float *part = row.shared + layout.part, *gate = row.shared + layout.inner;  // [D]
  pool_forward(row, p.shape, p.pool, nullptr, b, begin, end, part);
  bring_together(team, part, [&](const Parts& parts, const Share& share) {  // by every block for itself
    float* pooled = share.rank ? nullptr : static_cast<float*>(p.pool.pooled) + b * D;
    combine_pools(row, p.shape, p.pool, b, row.shared + layout.weights, parts, Share{0, 1}, pooled != nullptr,
                  [&](int64_t i, float value) {
                    gate[i] = value;
                    if (pooled) pooled[i] = value;
                  });
  });
  __syncthreads();
  float g[kChannels];
  load_row(gate, row.channels, g);
  const int rows = layout.rows();
  Stream<T, U> k_stream(p.k, b, begin + row.index, rows, end, row.channels);
  Stream<T, U> v_stream(p.v, b, begin + row.index, rows, end, row.channels);
  for (int n = begin + row.index; n < end; n += U * rows) {
    float k[U][kChannels], v[U][kChannels];
    k_stream.take(n, ~0u, k);
    v_stream.take(n, ~0u, v);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int j = 0; j < kChannels; ++j) k[u][j] *= g[j] * v[u][j];
    row.store_all(p.out, b, n, rows, end, k);
  }
}

template <class T, class F>
bool start_at_once(const AttentionForward& p, const Device& device, const Queue& queue, Outcome& outcome) {
  const int64_t B = p.shape.batch, size = p.shape.tokens * p.shape.channels;
  if (B * size > kSmall || p.alpha) return false;
  Needs needs = pool_forward_needs<F>(true);
  needs.inner = int((p.shape.channels + F::kHeads - 1) / F::kHeads);  // the gate
  const bool wide = aligned<T>(p.shape, p.pool.x, p.k, p.v, p.out);
  const Layout layout = make_layout<T, F>(p.shape, true, wide, needs, device);
  if (!layout.fits(false, device.shared)) return false;
  const int part = layout.weight_part - layout.part;
  Team team = make_team(B, p.shape.tokens, 8 * layout.rows(), part, pool_blocks<F>(device), device, queue);
  if (team.needs_second_kernel() && size <= kAlone) team = make_team(B, p.shape.tokens, p.shape.tokens, part, 1, device, queue);
  if (team.needs_second_kernel()) return false;
  const Grid grid{B * team.chunks, layout.threads, 4 * layout.total, team.cluster ? team.chunks : 1};
  outcome = start(forward_kernel<T, F>, Arguments{p, layout, team}, grid, queue);
  return true;
}

}  // namespace

Outcome additive_attention_forward(const AttentionForward& p, const Queue& queue) {
  Outcome outcome;
  bool started = false;
  const Outcome tried = on_device(queue, [&](const Device& device) {
    return dispatch_pool(p.shape, true, [&](auto storage, auto form, auto per_head) -> Outcome {
      using F = decltype(form);
      if constexpr (!F::kGeneral && decltype(per_head)::value)
        started = start_at_once<decltype(storage), F>(p, device, queue, outcome);
      return {};
    });
  });
  if (started || tried.error) return tried.error ? tried : outcome;
  outcome = additive_pool_forward({p.shape, p.pool, p.alpha}, queue);
  if (outcome.wanted || outcome.error) return outcome;
  return gated_product_forward({p.shape, p.pool.pooled, p.k, p.v, p.out}, queue);
}

}  // namespace cuda
}  // namespace lada
