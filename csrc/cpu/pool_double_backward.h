// The double backward of additive pooling, stage by stage; lada_kernels/reference/additive_pool.py derives it.
//
// It reads x and its cotangent X once for every per-token scalar and for the sums that need nothing else; the means ā and m
// over all tokens are known only then. The last stage reads x again, from cache where a batch element fits, because that is
// cheaper here than the three further D-wide sums per head that would make it unnecessary: arithmetic, not memory, bounds this
// order on a CPU.
#pragma once

#include "pool.h"

namespace lada {
namespace LADA_ISA {

template <class T> class PoolDoubleBackwardStages {
  using A = Accumulate<T>;
  enum Scalar { kAlpha, kU, kA, kZ, kScalars };  // per token and head: α, u, a, z = c + u a

 public:
  // `extra` [B,H,E] (or null) is a gradient of the pooled vector from elsewhere: its backward is added to the results.
  PoolDoubleBackwardStages(const Shape& shape, const Pool& pool, const void* grad, const Tokens& cot_x, const void* cot_weight,
                           void* out_grad, const Tokens& out_x, void* out_weight, const A* extra, const Plan& plan)
      : p_(shape, pool), plan_(plan), grad_(static_cast<const A*>(grad)), cot_x_(cot_x),
        cot_weight_{static_cast<const A*>(cot_weight), p_.D}, out_grad_(static_cast<A*>(out_grad)), out_x_(out_x),
        extra_(extra), streaming_(streams<T>(shape, out_x)), blocks_(shape, plan.threads),
        cot_blocks_(shape, plan.threads), scalars_(plan.chunks == 1 ? plan.threads : p_.B, kScalars * p_.N * p_.H),
        work_(plan.threads, 7 * p_.block * p_.H + p_.H * p_.E), sums_(plan.units(), p_.H * p_.E + 2 * p_.H),
        means_(p_.B, 2 * p_.H), weight_sum_(out_weight, p_.H * p_.D, plan) {}

  auto gather() {
    return per_unit([this](const Unit& unit) { gather_unit(unit); });
  }
  auto combine() {
    return per_batch([this](int64_t b) { combine_batch(b); });
  }
  auto scatter() {
    return per_unit([this](const Unit& unit) {
      if (out_x_.data || weight_sum_.wanted()) scatter_unit(unit);
    });
  }
  void finish(int threads) { weight_sum_.finish(threads); }

 private:
  A* scalars(const Unit& unit, Scalar which, int64_t n) {
    const int64_t slot = plan_.chunks == 1 ? unit.thread : unit.b;
    return scalars_[slot] + (which * p_.N + n) * p_.H;
  }

  void gather_unit(const Unit& unit) {
    const int64_t H = p_.H, E = p_.E, D = p_.D, size = p_.block * H;
    const A* grad = grad_ + unit.b * H * E;
    A *normaliser = work_[unit.thread], *t = normaliser + 2 * size, *e = t + size, *weighted = e + size;
    A *a_sums = weighted + size, *z_sums = a_sums + size;  // Σ α a and Σ α z, for each place in a block by itself
    A *sum = sums_[unit.index], *a_sum = sum + H * E, *z_sum = a_sum + H;
    RunningSum<A> pooled_sum(sum, z_sums + size, H * E), weight_sum = weight_sum_.open(unit.thread);
    set_zero(sum, H * E + 2 * H);
    set_zero(a_sums, 2 * size);
    p_.repeat_normaliser(unit.b, normaliser);
    p_.repeat_inner(unit.b, grad, t);
    for (int64_t n = unit.begin; n < unit.end; n += p_.block) {
      const int64_t count = smaller(p_.block, unit.end - n);
      A *alpha = scalars(unit, kAlpha, n), *u = scalars(unit, kU, n), *a = scalars(unit, kA, n), *z = scalars(unit, kZ, n);
      const Rows<const A> x = blocks_.read(p_.pool.x, p_.pool.mask, unit.b, n, count, p_.N, unit.thread);
      p_.attention(x, unit.b, n, count, normaliser, alpha);
      p_.project(x, count, grad, u);
      Rows<const A> cot{nullptr, 0};
      if (cot_x_.data) {
        cot = cot_blocks_.read(cot_x_, p_.pool.mask, unit.b, n, count, p_.N, unit.thread);
        p_.project(cot, count, grad, z);  // c
      } else {
        set_zero(z, count * H);
      }
      const Factors<A> terms[] = {{x, cot_weight_}, {cot, p_.weight}};
      const int first = cot_weight_.data ? 0 : 1, last = cot.data ? 2 : 1;
      dot<A>(terms + first, last - first, count, H, D, {a, H});
      for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) {
        const Vector<A> av = p_.scale * load(a + i, lanes), uv = load(u + i, lanes), alphav = load(alpha + i, lanes);
        const Vector<A> zv = load(z + i, lanes) + uv * av;
        store(a + i, av, lanes);
        store(z + i, zv, lanes);
        store(weighted + i, alphav * av, lanes);
        store(a_sums + i, load(a_sums + i, lanes) + alphav * av, lanes);
        store(z_sums + i, load(z_sums + i, lanes) + alphav * zv, lanes);
        store(e + i, p_.scale * alphav * (uv - load(t + i, lanes)), lanes);
      });
      p_.pool_add(weighted, x, count, pooled_sum.run());
      if (cot.data) {
        p_.pool_add(alpha, cot, count, pooled_sum.run());
        if (weight_sum_.wanted()) accumulate<A>({e, H}, cot, count, H, D, {weight_sum.run(), D});
      }
      pooled_sum.added(count);
      weight_sum.added(count);
    }
    pooled_sum.flush();
    weight_sum.flush();
    p_.sum_places(a_sums, a_sum);
    p_.sum_places(z_sums, z_sum);
  }

  // ā and m over all tokens, and ∂ḡ = Σ α Y + Σ α a y - ā P
  void combine_batch(int64_t b) {
    const int64_t H = p_.H, E = p_.E;
    A *mean = means_[b], *sum = sums_[b * plan_.chunks];
    for (int64_t c = 1; c < plan_.chunks; ++c) add_to(sum, sums_[b * plan_.chunks + c], H * E + 2 * H);
    for (int64_t h = 0; h < H; ++h) {
      const A a_mean = sum[H * E + h], *pooled = p_.pooled(b) + h * E, *grad = grad_ + (b * H + h) * E;
      A t;
      dot<A>({{pooled, E}, {grad, E}}, 1, 1, E, {&t, 1});
      mean[h] = a_mean;
      mean[H + h] = sum[H * E + H + h] - 2 * t * a_mean;
      for (int64_t j = 0; j < E; ++j) out_grad_[(b * H + h) * E + j] = sum[h * E + j] - a_mean * pooled[j];
    }
  }

  void scatter_unit(const Unit& unit) {
    const int64_t H = p_.H, E = p_.E, D = p_.D, size = p_.block * H;
    const A *grad = grad_ + unit.b * H * E, *extra = extra_ ? extra_ + unit.b * H * E : nullptr, *mean = means_[unit.b];
    RunningSum<A> weight_sum = weight_sum_.open(unit.thread);
    A *a_mean = work_[unit.thread], *t = a_mean + size, *m = t + size, *extra_t = m + size, *sigma = extra_t + size;
    std::memcpy(a_mean, mean, H * sizeof(A));
    std::memcpy(m, mean + H, H * sizeof(A));
    p_.repeat(a_mean);
    p_.repeat(m);
    p_.repeat_inner(unit.b, grad, t);
    if (extra) p_.repeat_inner(unit.b, extra, extra_t);
    for (int64_t n = unit.begin; n < unit.end; n += p_.block) {
      const int64_t count = smaller(p_.block, unit.end - n);
      A *alpha = scalars(unit, kAlpha, n), *u = scalars(unit, kU, n), *a = scalars(unit, kA, n), *z = scalars(unit, kZ, n);
      const Rows<const A> x = blocks_.read(p_.pool.x, p_.pool.mask, unit.b, n, count, p_.N, unit.thread);
      if (extra) p_.project(x, count, extra, sigma);
      // u becomes e, a the slope α(a - ā); each carries the factor that its sum needs.
      for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) {
        const Vector<A> alphav = load(alpha + i, lanes), uv = load(u + i, lanes), av = load(a + i, lanes);
        const Vector<A> tv = load(t + i, lanes), mean_a = load(a_mean + i, lanes);
        Vector<A> inner = load(z + i, lanes) - uv * mean_a - tv * av - load(m + i, lanes);
        if (extra) inner += load(sigma + i, lanes) - load(extra_t + i, lanes);
        store(sigma + i, p_.scale * alphav * inner, lanes);
        store(u + i, p_.scale * alphav * (uv - tv), lanes);
        store(a + i, alphav * (av - mean_a), lanes);
      });
      if (out_x_.data) {
        const Term<A> full[] = {{{sigma, H}, p_.weight, H}, {{u, H}, cot_weight_, H}};
        const Term<A> own[] = {{{a, H}, {grad, E}, H}, {{alpha, H}, {extra, E}, H}};
        p_.scatter(full, cot_weight_.data ? 2 : 1, own, extra ? 2 : 1, count,
                   {row<T>(out_x_, unit.b, n), out_x_.token_stride}, streaming_);
      }
      if (weight_sum_.wanted()) {
        accumulate<A>({sigma, H}, x, count, H, D, {weight_sum.run(), D});
        weight_sum.added(count);
      }
    }
    weight_sum.flush();
  }

  Pooling<T> p_;
  const Plan& plan_;
  const A* grad_;
  Tokens cot_x_;
  Rows<const A> cot_weight_;
  A* out_grad_;
  Tokens out_x_;
  const A* extra_;
  bool streaming_;
  Blocks<T> blocks_, cot_blocks_;
  Partials<A> scalars_, work_, sums_, means_;
  WeightSum<A> weight_sum_;
};

}  // namespace LADA_ISA
}  // namespace lada
