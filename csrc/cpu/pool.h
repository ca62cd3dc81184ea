// Additive pooling, stage by stage; lada_kernels/reference/additive_pool.py derives every formula and names every letter.
#pragma once

#include <cmath>
#include <limits>

#include "parallel.h"
#include "tiles.h"

namespace lada {
namespace LADA_ISA {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Token rows in the accumulation type: the tensor itself where it is, else a converted copy with masked rows zeroed.
template <class T> class Blocks {
  using A = Accumulate<T>;

 public:
  Blocks(const Shape& shape, int threads)
      : channels_(shape.channels), size_(tokens_for(shape.channels)), buffers_(threads * size_ * channels_) {}

  // As many rows as half of a 32 KiB L1 cache holds; at least a tile.
  static int64_t tokens_for(int64_t channels) {
    return larger(kTileTokens, smaller(64, 16384 / int64_t(sizeof(A)) / channels / kTileTokens * kTileTokens));
  }

  Rows<const A> read(const Tokens& x, const uint8_t* mask, int64_t b, int64_t n, int64_t count, int64_t tokens, int thread) {
    if constexpr (std::is_same_v<T, A>) {
      if (!mask) {
        const Rows<const A> rows{row<A>(x, b, n), x.token_stride};
        fetch(rows, count);
        return rows;
      }
    }
    A* buffer = buffers_.data() + thread * size_ * channels_;
    for (int64_t t = 0; t < count; ++t) {
      const T* from = row<T>(x, b, n + t);
      A* to = buffer + t * channels_;
      if (mask && !mask[b * tokens + n + t])
        set_zero(to, channels_);
      else
        for_vectors<A>(0, channels_, [&](int64_t j, auto lanes) { store(to + j, load(from + j, lanes), lanes); });
    }
    return {buffer, channels_};
  }

 private:
  // Touches every cache line in order: the tiles' four rows at a time are no stream that a hardware prefetcher follows.
  void fetch(Rows<const A> rows, int64_t count) const {
    constexpr int64_t kLine = 64 / sizeof(A);
    for (int64_t t = 0; t < count; ++t)
      for (int64_t j = 0; j < channels_; j += kLine) static_cast<void>(*static_cast<const volatile A*>(rows[t] + j));
  }

  int64_t channels_, size_;
  Scratch<A> buffers_;
};

// What all orders share: geometry, scores and the two maps between tokens and pooled vectors.
template <class T> struct Pooling {
  using A = Accumulate<T>;
  const int64_t B, N, D, H, E;
  const Pool& pool;
  const A scale;
  const Rows<const A> weight;  // [H,D]
  const int64_t block = Blocks<T>::tokens_for(D);

  Pooling(const Shape& shape, const Pool& pool)
      : B(shape.batch), N(shape.tokens), D(shape.channels), H(shape.heads), E(pool.per_head ? D / H : D), pool(pool),
        scale(A(pool.scale)), weight{static_cast<const A*>(pool.weight), D} {}

  const A* pooled(int64_t b) const { return static_cast<const A*>(pool.pooled) + b * H * E; }

  // s = τ⟨x, w⟩ as [tokens,H]; -inf where masked
  void scores(Rows<const A> x, int64_t b, int64_t n, int64_t count, A* s) const {
    dot<A>(x, count, weight, H, D, {s, H});
    for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) { store(s + i, load(s + i, lanes) * scale, lanes); });
    if (!pool.mask) return;
    for (int64_t t = 0; t < count; ++t)
      if (!pool.mask[b * N + n + t])
        for (int64_t h = 0; h < H; ++h) s[t * H + h] = A(-kInfinity);
  }

  // α = e^(s - lse), with lse repeated for every token of a block
  void attention(Rows<const A> x, int64_t b, int64_t n, int64_t count, const A* lse, A* alpha) const {
    scores(x, b, n, count, alpha);
    subtract(alpha, lse, count * H);
    exp_all(alpha, count * H);
  }

  // lse[b] for `attention`
  void repeat_log_sum_exp(int64_t b, A* out) const {
    const A* lse = static_cast<const A*>(pool.log_sum_exp) + b * H;
    for (int64_t h = 0; h < H; ++h) out[h] = finite(lse[h]);
    repeat(out);
  }

  // t[h] = ⟨P_h, vectors_h⟩, repeated for every token of a block
  void repeat_inner(int64_t b, const A* vectors, A* out) const {
    for (int64_t h = 0; h < H; ++h) dot<A>({pooled(b) + h * E, E}, 1, {vectors + h * E, E}, 1, E, {out + h, 1});
    repeat(out);
  }

  // The first H values again for every further token of a block: [H] -> [block,H].
  void repeat(A* values) const {
    for (int64_t i = H; i < block * H; ++i) values[i] = values[i - H];
  }

  static void subtract(A* values, const A* other, int64_t count) {
    for_vectors<A>(0, count, [&](int64_t i, auto lanes) {
      store(values + i, load(values + i, lanes) - load(other + i, lanes), lanes);
    });
  }

  // The log-sum-exp of a row without tokens is -inf, and there -inf - -inf must stay -inf.
  static A finite(A value) { return value == A(-kInfinity) ? A(0) : value; }

  // out[t][h] = ⟨y_t, vectors_h⟩, y the pooled part of x
  void project(Rows<const A> x, int64_t count, const A* vectors, A* out) const {
    if (!pool.per_head) return dot<A>(x, count, {vectors, D}, H, D, {out, H});
    for (int64_t h = 0; h < H; ++h)
      dot<A>({x.data + h * E, x.stride}, count, {vectors + h * E, E}, 1, E, {out + h, H});
  }

  // sum[h] += Σ_t c[t][h] y_t
  void pool_add(const A* c, Rows<const A> x, int64_t count, A* sum) const {
    if (!pool.per_head) return accumulate<A>({c, H}, x, count, H, D, {sum, D});
    for (int64_t h = 0; h < H; ++h)
      accumulate<A>({c + h, H}, {x.data + h * E, x.stride}, count, 1, E, {sum + h * E, E});
  }

  // out_t = Σ full terms over [H,D] rows + Σ pooled terms, c[t][h] vectors_h into the part that head h pools
  void scatter(const Term<A>* full, int full_count, const Term<A>* pooled, int pooled_count, int64_t count, Rows<T> out,
               bool streaming) const {
    Term<A> terms[4];
    for (int i = 0; i < full_count; ++i) terms[i] = full[i];
    if (!pool.per_head) {
      for (int i = 0; i < pooled_count; ++i) terms[full_count + i] = pooled[i];
      return expand<A, T>(terms, full_count + pooled_count, count, 0, D, out, streaming);
    }
    for (int64_t h = 0; h < H; ++h) {
      for (int i = 0; i < pooled_count; ++i)  // laid out [H,E], so that element j of [D] is head h's own
        terms[full_count + i] = {{pooled[i].c.data + h, H}, {pooled[i].rows.data, 0}, 1};
      expand<A, T>(terms, full_count + pooled_count, count, h * E, (h + 1) * E, out, streaming && E % kLanes<A> == 0);
    }
  }
};

// ---- forward: online softmax; each unit keeps its maximum, its sum and its weighted sum ----

template <class T> class PoolForwardStages {
  using A = Accumulate<T>;

 public:
  PoolForwardStages(const Shape& shape, const Pool& pool, void* alpha, const Plan& plan)
      : p_(shape, pool), plan_(plan), alpha_(static_cast<A*>(alpha)), blocks_(shape, plan.threads),
        states_(plan.units(), 2 * p_.H + p_.H * p_.E), scores_(plan.threads, 2 * p_.block * p_.H) {}

  auto pool() {
    return per_unit([this](const Unit& unit) { pool_unit(unit); });
  }
  auto combine() {
    return per_batch([this](int64_t b) { combine_batch(b); });
  }
  // Scores were kept while pooling; the log-sum-exp turns them into weights.
  auto weigh() {
    return per_unit([this](const Unit& unit) {
      if (!alpha_) return;
      for (int64_t h = 0; h < p_.H; ++h) {
        A* alpha = alpha_ + (unit.b * p_.H + h) * p_.N;
        const A lse = p_.finite(static_cast<const A*>(p_.pool.log_sum_exp)[unit.b * p_.H + h]);
        for (int64_t n = unit.begin; n < unit.end; ++n) alpha[n] -= lse;
        exp_all(alpha + unit.begin, unit.end - unit.begin);
      }
    });
  }

 private:
  void pool_unit(const Unit& unit) {
    const int64_t H = p_.H, E = p_.E;
    A *maximum = states_[unit.index], *total = maximum + H, *sum = total + H;
    A *s = scores_[unit.thread], *shift = s + p_.block * H;
    for (int64_t h = 0; h < H; ++h) maximum[h] = A(-kInfinity);
    set_zero(total, H + H * E);
    for (int64_t n = unit.begin; n < unit.end; n += p_.block) {
      const int64_t count = smaller(p_.block, unit.end - n);
      const Rows<const A> x = blocks_.read(p_.pool.x, p_.pool.mask, unit.b, n, count, p_.N, unit.thread);
      p_.scores(x, unit.b, n, count, s);
      for (int64_t h = 0; h < H; ++h) {
        A highest = maximum[h];
        for (int64_t t = 0; t < count; ++t) highest = s[t * H + h] > highest ? s[t * H + h] : highest;
        if (alpha_)
          for (int64_t t = 0; t < count; ++t) alpha_[(unit.b * H + h) * p_.N + n + t] = s[t * H + h];
        if (highest > maximum[h]) {
          const A factor = std::exp(maximum[h] - highest);
          total[h] *= factor;
          for (int64_t j = 0; j < E; ++j) sum[h * E + j] *= factor;
          maximum[h] = highest;
        }
        shift[h] = p_.finite(maximum[h]);
      }
      p_.repeat(shift);
      p_.subtract(s, shift, count * H);
      exp_all(s, count * H);
      for (int64_t t = 0; t < count; ++t)
        for (int64_t h = 0; h < H; ++h) total[h] += s[t * H + h];
      p_.pool_add(s, x, count, sum);
    }
  }

  void combine_batch(int64_t b) {
    const int64_t H = p_.H, E = p_.E, first = b * plan_.chunks;
    A* pooled = static_cast<A*>(p_.pool.pooled) + b * H * E;
    for (int64_t h = 0; h < H; ++h) {
      A highest = A(-kInfinity), total = 0;
      for (int64_t c = 0; c < plan_.chunks; ++c) highest = states_[first + c][h] > highest ? states_[first + c][h] : highest;
      set_zero(pooled + h * E, E);
      for (int64_t c = 0; c < plan_.chunks; ++c) {
        const A* state = states_[first + c];
        const A factor = std::exp(state[h] - p_.finite(highest));
        total += state[H + h] * factor;
        for (int64_t j = 0; j < E; ++j) pooled[h * E + j] += state[2 * H + h * E + j] * factor;
      }
      static_cast<A*>(p_.pool.log_sum_exp)[b * H + h] = p_.finite(highest) + std::log(total);
      const A normaliser = total == 0 ? A(0) : 1 / total;  // a row without tokens pools to zeros
      for (int64_t j = 0; j < E; ++j) pooled[h * E + j] *= normaliser;
    }
  }

  Pooling<T> p_;
  const Plan& plan_;
  A* alpha_;
  Blocks<T> blocks_;
  Partials<A> states_, scores_;
};

// ---- backward: one read of x, one write of its gradient ----

template <class T> class PoolBackwardStages {
  using A = Accumulate<T>;

 public:
  PoolBackwardStages(const Shape& shape, const Pool& pool, const void* grad, const Tokens& grad_x, void* grad_weight, const Plan& plan)
      : p_(shape, pool), grad_(static_cast<const A*>(grad)), grad_x_(grad_x), grad_weight_(static_cast<A*>(grad_weight)),
        streaming_(streams<T>(shape, grad_x)), blocks_(shape, plan.threads), coefficients_(plan.threads, 4 * p_.block * p_.H),
        weight_sums_(plan.threads, grad_weight ? p_.H * p_.D : 0) {
    set_zero(weight_sums_[0], grad_weight ? plan.threads * p_.H * p_.D : 0);
  }

  auto backward() {
    return per_unit([this](const Unit& unit) { backward_unit(unit); });
  }
  void finish(int threads) {
    if (grad_weight_) weight_sums_.sum(0, threads, grad_weight_);
  }

 private:
  void backward_unit(const Unit& unit) {
    const int64_t H = p_.H, E = p_.E, size = p_.block * H;
    const A* grad = grad_ + unit.b * H * E;
    A *alpha = coefficients_[unit.thread], *e = alpha + size, *lse = e + size, *t = lse + size;
    p_.repeat_log_sum_exp(unit.b, lse);
    p_.repeat_inner(unit.b, grad, t);
    for (int64_t n = unit.begin; n < unit.end; n += p_.block) {
      const int64_t count = smaller(p_.block, unit.end - n);
      const Rows<const A> x = blocks_.read(p_.pool.x, p_.pool.mask, unit.b, n, count, p_.N, unit.thread);
      p_.attention(x, unit.b, n, count, lse, alpha);
      p_.project(x, count, grad, e);  // u
      for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) {
        store(e + i, p_.scale * load(alpha + i, lanes) * (load(e + i, lanes) - load(t + i, lanes)), lanes);
      });
      if (grad_x_.data) {
        const Term<A> full[] = {{{e, H}, p_.weight, H}}, own[] = {{{alpha, H}, {grad, E}, H}};
        p_.scatter(full, 1, own, 1, count, {row<T>(grad_x_, unit.b, n), grad_x_.token_stride}, streaming_);
      }
      if (grad_weight_) accumulate<A>({e, H}, x, count, H, p_.D, {weight_sums_[unit.thread], p_.D});
    }
  }

  Pooling<T> p_;
  const A* grad_;
  Tokens grad_x_;
  A* grad_weight_;
  bool streaming_;
  Blocks<T> blocks_;
  Partials<A> coefficients_, weight_sums_;
};

}  // namespace LADA_ISA
}  // namespace lada
