// The gated product, stage by stage; lada_kernels/reference/gated_product.py derives every formula.
#pragma once

#include "parallel.h"

namespace lada {
namespace LADA_ISA {

// Calls body(first, count) over [begin, end) in short runs of tokens, whose sums stay accurate before they join a long one.
template <class Body> inline void for_runs(int64_t begin, int64_t end, Body&& body) {
  constexpr int64_t kRun = 64;
  for (int64_t n = begin; n < end; n += kRun) body(n, smaller(n + kRun, end));
}

// Sums over tokens of D-wide vectors: a short sum per thread that joins a partial sum per unit, added up per batch element.
template <class A> class TokenSums {
 public:
  TokenSums(const Plan& plan, int64_t channels, int64_t vectors)
      : plan_(plan), size_(channels * vectors), runs_(plan.threads, size_), units_(plan.units(), size_) {}

  // body(first, last, sums) adds tokens [first, last) to sums [vectors, D].
  template <class Body> void collect(const Unit& unit, Body&& body) {
    set_zero(units_[unit.index], size_);
    for_runs(unit.begin, unit.end, [&](int64_t first, int64_t last) {
      A* sums = runs_[unit.thread];
      set_zero(sums, size_);
      body(first, last, sums);
      add_to(units_[unit.index], sums, size_);
    });
  }
  // The totals [vectors, D] of batch element b; to be asked for once, as it adds the units up in place.
  const A* total(int64_t b) {
    A* sum = units_[b * plan_.chunks];
    for (int64_t c = 1; c < plan_.chunks; ++c) add_to(sum, units_[b * plan_.chunks + c], size_);
    return sum;
  }

 private:
  const Plan& plan_;
  int64_t size_;
  Partials<A> runs_, units_;
};

template <class T, class Value> inline void write(T* to, Value value, bool streaming, Whole) {
  streaming ? stream(to, value) : store(to, value);
}
template <class T, class Value> inline void write(T* to, Value value, bool, First lanes) { store(to, value, lanes); }

template <class T> class GateForwardStage {
  using A = Accumulate<T>;

 public:
  explicit GateForwardStage(const GateForward& args) : args_(args), streaming_(streams<T>(args.shape, args.out)) {}

  auto multiply() {
    return per_unit([this](const Unit& unit) {
      const int64_t D = args_.shape.channels;
      const A* gate = static_cast<const A*>(args_.gate) + unit.b * D;
      for (int64_t n = unit.begin; n < unit.end; ++n) {
        const T *k = row<T>(args_.k, unit.b, n), *v = row<T>(args_.v, unit.b, n);
        T* out = row<T>(args_.out, unit.b, n);
        for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
          write(out + j, load(gate + j, lanes) * load(k + j, lanes) * load(v + j, lanes), streaming_, lanes);
        });
      }
    });
  }

 private:
  GateForward args_;
  bool streaming_;
};

template <class T> class GateBackwardStages {
  using A = Accumulate<T>;

 public:
  GateBackwardStages(const GateBackward& args, const Plan& plan)
      : args_(args), sums_(plan, args.shape.channels, 1), streaming_k_(streams<T>(args.shape, args.grad_k)),
        streaming_v_(streams<T>(args.shape, args.grad_v)) {}

  auto backward() {
    return per_unit([this](const Unit& unit) {
      const int64_t D = args_.shape.channels;
      const A* gate = static_cast<const A*>(args_.gate) + unit.b * D;
      sums_.collect(unit, [&](int64_t first, int64_t last, A* sum) {
        for (int64_t n = first; n < last; ++n) {
          const T *r = row<T>(args_.grad, unit.b, n), *k = row<T>(args_.k, unit.b, n), *v = row<T>(args_.v, unit.b, n);
          T *grad_k = row<T>(args_.grad_k, unit.b, n), *grad_v = row<T>(args_.grad_v, unit.b, n);
          for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
            const Vector<A> rv = load(r + j, lanes), kv = load(k + j, lanes), vv = load(v + j, lanes);
            const Vector<A> rg = rv * load(gate + j, lanes);
            if (args_.grad_k.data) write(grad_k + j, rg * vv, streaming_k_, lanes);
            if (args_.grad_v.data) write(grad_v + j, rg * kv, streaming_v_, lanes);
            store(sum + j, load(sum + j, lanes) + rv * kv * vv, lanes);
          });
        }
      });
    });
  }
  auto combine() {
    return per_batch([this](int64_t b) {
      const int64_t D = args_.shape.channels;
      if (args_.grad_gate) std::memcpy(static_cast<A*>(args_.grad_gate) + b * D, sums_.total(b), D * sizeof(A));
    });
  }

 private:
  GateBackward args_;
  TokenSums<A> sums_;
  bool streaming_k_, streaming_v_;
};

template <class T> class GateDoubleBackwardStages {
  using A = Accumulate<T>;

 public:
  GateDoubleBackwardStages(const GateDoubleBackward& args, const Plan& plan)
      : args_(args), sums_(plan, args.shape.channels, 1), streaming_grad_(streams<T>(args.shape, args.out_grad)),
        streaming_k_(streams<T>(args.shape, args.out_k)), streaming_v_(streams<T>(args.shape, args.out_v)) {}

  auto double_backward() {
    return per_unit([this](const Unit& unit) {
      const int64_t D = args_.shape.channels;
      const A* gate = static_cast<const A*>(args_.gate) + unit.b * D;
      const A* cot_gate = static_cast<const A*>(args_.cot_gate) + (args_.cot_gate ? unit.b * D : 0);
      const auto read = [](const auto* from, int64_t j, auto lanes) { return from ? load(from + j, lanes) : Vector<A>{}; };
      const auto row_or_null = [&](const Tokens& x, int64_t n) -> T* { return x.data ? row<T>(x, unit.b, n) : nullptr; };
      sums_.collect(unit, [&](int64_t first, int64_t last, A* sum) {
        for (int64_t n = first; n < last; ++n) {
          const T *r = row<T>(args_.grad, unit.b, n), *k = row<T>(args_.k, unit.b, n), *v = row<T>(args_.v, unit.b, n);
          const T *cot_k = row_or_null(args_.cot_k, n), *cot_v = row_or_null(args_.cot_v, n);
          T *out_grad = row_or_null(args_.out_grad, n), *out_k = row_or_null(args_.out_k, n), *out_v = row_or_null(args_.out_v, n);
          for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
            const Vector<A> rv = load(r + j, lanes), kv = load(k + j, lanes), vv = load(v + j, lanes), g = load(gate + j, lanes);
            const Vector<A> G = read(cot_gate, j, lanes), K = read(cot_k, j, lanes), V = read(cot_v, j, lanes);
            const Vector<A> cross = K * vv + V * kv;
            if (out_grad) write(out_grad + j, g * cross + G * kv * vv, streaming_grad_, lanes);
            if (out_k) write(out_k + j, rv * (g * V + G * vv), streaming_k_, lanes);
            if (out_v) write(out_v + j, rv * (g * K + G * kv), streaming_v_, lanes);
            store(sum + j, load(sum + j, lanes) + rv * cross, lanes);
          });
        }
      });
    });
  }
  auto combine() {
    return per_batch([this](int64_t b) {
      const int64_t D = args_.shape.channels;
      if (args_.out_gate) std::memcpy(static_cast<A*>(args_.out_gate) + b * D, sums_.total(b), D * sizeof(A));
    });
  }

 private:
  GateDoubleBackward args_;
  TokenSums<A> sums_;
  bool streaming_grad_, streaming_k_, streaming_v_;
};

}  // namespace LADA_ISA
}  // namespace lada
