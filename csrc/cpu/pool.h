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
    dot<A>({x, weight}, count, H, D, {s, H});
    for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) { store(s + i, load(s + i, lanes) * scale, lanes); });
    if (!pool.mask) return;
    for (int64_t t = 0; t < count; ++t)
      if (!pool.mask[b * N + n + t])
        for (int64_t h = 0; h < H; ++h) s[t * H + h] = A(-kInfinity);
  }

  // α = e^(s - m) / Z, with what repeat_normaliser made of m and Z
  void attention(Rows<const A> x, int64_t b, int64_t n, int64_t count, const A* normaliser, A* alpha) const {
    const A *largest = normaliser, *inverse = normaliser + block * H;
    scores(x, b, n, count, alpha);
    subtract(alpha, largest, count * H);
    exp_all(alpha, count * H);
    for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) {
      store(alpha + i, load(alpha + i, lanes) * load(inverse + i, lanes), lanes);
    });
  }

  // m and 1/Z of batch element b for `attention`: [2,block,H]
  void repeat_normaliser(int64_t b, A* out) const {
    for (int64_t h = 0; h < H; ++h) {
      out[h] = finite(normaliser(b, h)[0]);
      out[block * H + h] = inverse(normaliser(b, h)[1]);
    }
    repeat(out);
    repeat(out + block * H);
  }

  A* normaliser(int64_t b, int64_t h) const { return static_cast<A*>(pool.normaliser) + (b * H + h) * 2; }

  // t[h] = ⟨P_h, vectors_h⟩, repeated for every token of a block
  void repeat_inner(int64_t b, const A* vectors, A* out) const {
    for (int64_t h = 0; h < H; ++h) dot<A>({{pooled(b) + h * E, E}, {vectors + h * E, E}}, 1, 1, E, {out + h, 1});
    repeat(out);
  }

  // The first H values again for every further token of a block: [H] -> [block,H].
  void repeat(A* values) const {
    for (int64_t i = H; i < block * H; ++i) values[i] = values[i - H];
  }

  // total[h] += what `places` [block,H] holds of head h
  void sum_places(const A* places, A* total) const {
    for (int64_t t = 0; t < block; ++t)
      for (int64_t h = 0; h < H; ++h) total[h] += places[t * H + h];
  }

  static void subtract(A* values, const A* other, int64_t count) {
    for_vectors<A>(0, count, [&](int64_t i, auto lanes) {
      store(values + i, load(values + i, lanes) - load(other + i, lanes), lanes);
    });
  }

  // A row without tokens has m = -inf and Z = 0; its weights e^(-inf - 0) · 0 are zeros, not NaN.
  static A finite(A largest) { return largest == A(-kInfinity) ? A(0) : largest; }
  static A inverse(A total) { return total == 0 ? A(0) : 1 / total; }

  // out[t][h] = ⟨y_t, vectors_h⟩, y the pooled part of x
  void project(Rows<const A> x, int64_t count, const A* vectors, A* out) const {
    dot<A>({x, {vectors, E}, pool.per_head ? E : 0}, count, H, E, {out, H});
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

// A sum over many vectors, kept accurate by adding them up in short runs first.
template <class A> class RunningSum {
 public:
  // Adds to `total` as it finds it; `run` is working memory.
  RunningSum(A* total, A* run, int64_t size) : total_(total), run_(run), size_(size) { set_zero(run, size); }
  A* run() const { return run_; }
  void added(int64_t vectors) {
    constexpr int64_t kRun = 256;
    if ((count_ += vectors) >= kRun) flush();
  }
  void flush() {
    add_to(total_, run_, size_);
    set_zero(run_, size_);
    count_ = 0;
  }

 private:
  A *total_, *run_;
  int64_t size_, count_ = 0;
};

// The gradient of the weight, Σ c[t][h] x_t over all tokens: a sum per thread, added up in the threads' order.
template <class A> class WeightSum {
 public:
  WeightSum(void* out, int64_t size, const Plan& plan)
      : out_(static_cast<A*>(out)), size_(out ? size : 0), totals_(plan.threads, size_), runs_(plan.threads, size_) {
    set_zero(totals_[0], plan.threads * size_);
  }
  bool wanted() const { return out_; }
  RunningSum<A> open(int thread) const { return {totals_[thread], runs_[thread], size_}; }
  void finish(int threads) const {
    if (out_) totals_.sum(0, threads, out_);
  }

 private:
  A* out_;
  int64_t size_;
  Partials<A> totals_, runs_;
};

// ---- forward: online softmax; each unit keeps its maximum, its sum and its weighted sum ----

template <class T> class PoolForwardStages {
  using A = Accumulate<T>;

 public:
  PoolForwardStages(const Shape& shape, const Pool& pool, void* alpha, const Plan& plan)
      : p_(shape, pool), plan_(plan), alpha_(static_cast<A*>(alpha)), blocks_(shape, plan.threads),
        states_(plan.units(), 2 * p_.H + p_.H * p_.E), work_(plan.threads, 3 * p_.block * p_.H + p_.H * p_.E) {}

  auto pool() {
    return per_unit([this](const Unit& unit) { pool_unit(unit); });
  }
  auto combine() {
    return per_batch([this](int64_t b) { combine_batch(b); });
  }
  // Scores were kept while pooling; the normaliser turns them into weights.
  auto weigh() {
    return per_unit([this](const Unit& unit) {
      if (!alpha_) return;
      for (int64_t h = 0; h < p_.H; ++h) {
        A* alpha = alpha_ + (unit.b * p_.H + h) * p_.N;
        const A *normaliser = p_.normaliser(unit.b, h), largest = p_.finite(normaliser[0]), inverse = p_.inverse(normaliser[1]);
        for (int64_t n = unit.begin; n < unit.end; ++n) alpha[n] -= largest;
        exp_all(alpha + unit.begin, unit.end - unit.begin);
        for (int64_t n = unit.begin; n < unit.end; ++n) alpha[n] *= inverse;
      }
    });
  }

 private:
  void pool_unit(const Unit& unit) {
    const int64_t H = p_.H, E = p_.E, size = p_.block * H;
    A *maximum = states_[unit.index], *total = maximum + H, *sum = total + H;
    A *s = work_[unit.thread], *shift = s + size, *totals = shift + size;  // totals: Σ e^s for each place in a block by itself
    RunningSum<A> sums(sum, totals + size, H * E);
    for (int64_t h = 0; h < H; ++h) maximum[h] = A(-kInfinity);
    set_zero(totals, size);
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
          for (int64_t t = 0; t < p_.block; ++t) totals[t * H + h] *= factor;
          sums.flush();
          for (int64_t j = 0; j < E; ++j) sum[h * E + j] *= factor;
          maximum[h] = highest;
        }
        shift[h] = p_.finite(maximum[h]);
      }
      p_.repeat(shift);
      p_.subtract(s, shift, count * H);
      exp_all(s, count * H);
      add_to(totals, s, count * H);
      p_.pool_add(s, x, count, sums.run());
      sums.added(count);
    }
    sums.flush();
    p_.sum_places(totals, total);
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
      p_.normaliser(b, h)[0] = highest;
      p_.normaliser(b, h)[1] = total;
      const A inverse = p_.inverse(total);
      for (int64_t j = 0; j < E; ++j) pooled[h * E + j] *= inverse;
    }
  }

  Pooling<T> p_;
  const Plan& plan_;
  A* alpha_;
  Blocks<T> blocks_;
  Partials<A> states_, work_;
};

// ---- backward: one read of x, one write of its gradient ----

template <class T> class PoolBackwardStages {
  using A = Accumulate<T>;

 public:
  PoolBackwardStages(const Shape& shape, const Pool& pool, const void* grad, const Tokens& grad_x, void* grad_weight, const Plan& plan)
      : p_(shape, pool), grad_(static_cast<const A*>(grad)), grad_x_(grad_x), streaming_(streams<T>(shape, grad_x)), blocks_(shape, plan.threads), work_(plan.threads, 5 * p_.block * p_.H),
        weight_sum_(grad_weight, p_.H * p_.D, plan) {}

  auto backward() {
    return per_unit([this](const Unit& unit) { backward_unit(unit); });
  }
  void finish(int threads) { weight_sum_.finish(threads); }

 private:
  void backward_unit(const Unit& unit) {
    const int64_t H = p_.H, E = p_.E, size = p_.block * H;
    const A* grad = grad_ + unit.b * H * E;
    A *alpha = work_[unit.thread], *e = alpha + size, *t = e + size, *normaliser = t + size;
    RunningSum<A> weight_sum = weight_sum_.open(unit.thread);
    p_.repeat_normaliser(unit.b, normaliser);
    p_.repeat_inner(unit.b, grad, t);
    for (int64_t n = unit.begin; n < unit.end; n += p_.block) {
      const int64_t count = smaller(p_.block, unit.end - n);
      const Rows<const A> x = blocks_.read(p_.pool.x, p_.pool.mask, unit.b, n, count, p_.N, unit.thread);
      p_.attention(x, unit.b, n, count, normaliser, alpha);
      p_.project(x, count, grad, e);  // u
      for_vectors<A>(0, count * H, [&](int64_t i, auto lanes) {
        store(e + i, p_.scale * load(alpha + i, lanes) * (load(e + i, lanes) - load(t + i, lanes)), lanes);
      });
      if (grad_x_.data) {
        const Term<A> full[] = {{{e, H}, p_.weight, H}}, own[] = {{{alpha, H}, {grad, E}, H}};
        p_.scatter(full, 1, own, 1, count, {row<T>(grad_x_, unit.b, n), grad_x_.token_stride}, streaming_);
      }
      if (weight_sum_.wanted()) {
        accumulate<A>({e, H}, x, count, H, p_.D, {weight_sum.run(), p_.D});
        weight_sum.added(count);
      }
    }
    weight_sum.flush();
  }

  Pooling<T> p_;
  const A* grad_;
  Tokens grad_x_;
  bool streaming_;
  Blocks<T> blocks_;
  Partials<A> work_;
  WeightSum<A> weight_sum_;
};

}  // namespace LADA_ISA
}  // namespace lada
