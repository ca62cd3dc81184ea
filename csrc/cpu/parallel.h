// How the work of a kernel is shared among threads, and the memory a kernel needs for itself. No class templates of the
// standard library: their functions would be shared between instruction sets by the linker.
#pragma once

#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../lada.h"
#include "simd.h"

namespace lada {
namespace LADA_ISA {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t common_divisor(int64_t a, int64_t b) { return b == 0 ? a : common_divisor(b, a % b); }

// Every batch element's tokens are cut into `chunks`; a unit is one chunk of one batch element.
struct Plan {
  int64_t batch, tokens, chunks;
  int threads;

  explicit Plan(const Shape& shape) : batch(shape.batch), tokens(shape.tokens) {
    constexpr int64_t kElementsPerThread = 16384, kTokensPerChunk = 16;  // less is not worth a thread
    const int64_t elements = batch * tokens * shape.channels;
    threads = int(larger(1, smaller(shape.threads, elements / kElementsPerThread)));
    // Whole batch elements keep all stages of one in a core's cache; cut only where that would leave threads idle.
    const bool balanced = batch % threads == 0 || batch >= 8 * threads;
    const int64_t wanted = balanced ? 1 : threads / common_divisor(batch, threads);
    chunks = larger(1, smaller(wanted, tokens / kTokensPerChunk));
  }

  int64_t units() const { return batch * chunks; }
  int64_t begin(int64_t chunk) const { return tokens * chunk / chunks; }
};

// Where a stage works: tokens [begin, end) of batch element b.
struct Unit {
  int64_t b, index, begin, end;
  int thread;
};

template <class Body> struct PerUnit { Body body; };    // body(Unit), for every unit
template <class Body> struct PerBatch { Body body; };   // body(b), after all of b's units have passed the stages before
template <class Body> PerUnit<Body> per_unit(Body body) { return {body}; }
template <class Body> PerBatch<Body> per_batch(Body body) { return {body}; }

inline void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

template <class Body> void run_alone(const PerUnit<Body>& stage, const Plan& plan, int64_t b, int thread) {
  stage.body(Unit{b, b, 0, plan.tokens, thread});
}
template <class Body> void run_alone(const PerBatch<Body>& stage, const Plan&, int64_t b, int) { stage.body(b); }

template <class Body> void run_together(const PerUnit<Body>& stage, const Plan& plan, int thread, int team) {
  for (int64_t u = plan.units() * thread / team; u < plan.units() * (thread + 1) / team; ++u) {
    const int64_t chunk = u % plan.chunks;
    stage.body(Unit{u / plan.chunks, u, plan.begin(chunk), plan.begin(chunk + 1), thread});
  }
}
template <class Body> void run_together(const PerBatch<Body>& stage, const Plan& plan, int thread, int team) {
  for (int64_t b = plan.batch * thread / team; b < plan.batch * (thread + 1) / team; ++b) stage.body(b);
}

// Runs the stages in order. The assignment of units to threads depends on shape and thread count alone, so that
// results repeat bit for bit. Returns how many threads took part.
template <class... Stages> int run(const Plan& plan, const Stages&... stages) {
  int joined = 1;
  const auto work = [&](int thread, int team) {
    if (thread == 0) joined = team;
    if (plan.chunks == 1) {
      for (int64_t b = plan.batch * thread / team; b < plan.batch * (thread + 1) / team; ++b)
        (run_alone(stages, plan, b, thread), ...);
    } else {
      ((run_together(stages, plan, thread, team), barrier()), ...);
    }
    finish_streaming();
  };
#ifdef _OPENMP
  if (plan.threads > 1) {
#pragma omp parallel num_threads(plan.threads)
    work(omp_get_thread_num(), omp_get_num_threads());
    return joined;
  }
#endif
  work(0, 1);
  return joined;
}

// Aligned memory of a kernel's own, uninitialised; throws std::bad_alloc.
template <class A> class Scratch {
 public:
  explicit Scratch(int64_t count) {
    constexpr std::size_t kAlignment = 64;
    const std::size_t bytes = (std::size_t(count) * sizeof(A) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes && !(data_ = static_cast<A*>(std::aligned_alloc(kAlignment, bytes)))) throw std::bad_alloc();
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  A* data() const { return data_; }

 private:
  A* data_ = nullptr;
};

template <class A> inline void set_zero(A* values, int64_t count) {
  if (count) std::memset(values, 0, count * sizeof(A));
}

template <class A> inline void add_to(A* sum, const A* values, int64_t count) {
  for_vectors<A>(0, count, [&](int64_t j, auto lanes) { store(sum + j, load(sum + j, lanes) + load(values + j, lanes), lanes); });
}

// One partial sum of `size` values a slot, added up in the slots' order.
template <class A> class Partials {
 public:
  Partials(int64_t slots, int64_t size) : size_(size), values_(slots * size) {}
  A* operator[](int64_t slot) const { return values_.data() + slot * size_; }
  void sum(int64_t first, int64_t count, A* out) const {
    std::memcpy(out, (*this)[first], size_ * sizeof(A));
    for (int64_t slot = first + 1; slot < first + count; ++slot) add_to(out, (*this)[slot], size_);
  }

 private:
  int64_t size_;
  Scratch<A> values_;
};

// The element at [b, n, 0].
template <class T> inline T* row(const Tokens& tokens, int64_t b, int64_t n) {
  return static_cast<T*>(tokens.data) + b * tokens.batch_stride + n * tokens.token_stride;
}

// Stores past the caches pay for results that the caches cannot hold, and need aligned rows.
template <class T> bool streams(const Shape& shape, const Tokens& out) {
  constexpr int64_t kCached = 8 << 20;
  const auto aligned = [](int64_t bytes) { return bytes % kVectorBytes == 0; };
  return shape.batch * shape.tokens * shape.channels * int64_t(sizeof(T)) >= kCached &&
         aligned(reinterpret_cast<intptr_t>(out.data)) && aligned(out.batch_stride * sizeof(T)) &&
         aligned(out.token_stride * sizeof(T));
}

// Calls body with a value of the storage type; an exception becomes a status.
template <class Body> Status dispatch(DType dtype, Body&& body) {
  try {
    switch (dtype) {
      case DType::F32: body(float{}); break;
      case DType::F64: body(double{}); break;
      case DType::BF16: body(BFloat16{}); break;
      case DType::F16: body(Half{}); break;
    }
    return Status::Ok;
  } catch (const std::bad_alloc&) {
    return Status::OutOfMemory;
  }
}

}  // namespace LADA_ISA
}  // namespace lada
