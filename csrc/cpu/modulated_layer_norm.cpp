// One token row sits in the L1 cache while it is read twice: once for its means, once for the result.
// lada_kernels/reference/modulated_layer_norm.py derives every formula and names every letter.
#include <cmath>

#include "gate.h"
#include "parallel.h"

namespace lada {
namespace LADA_ISA {

namespace {

template <class A> const A* at(const void* values, int64_t offset) {
  return values ? static_cast<const A*>(values) + offset : nullptr;
}

template <class T> void forward(const NormForward& args) {
  using A = Accumulate<T>;
  const int64_t D = args.shape.channels, N = args.shape.tokens;
  const bool streaming = streams<T>(args.shape, args.out);
  run(Plan(args.shape), per_unit([&](const Unit& unit) {
        const A *gamma = at<A>(args.gamma, unit.b * D), *beta = at<A>(args.beta, unit.b * D);
        for (int64_t n = unit.begin; n < unit.end; ++n) {
          const T* x = row<T>(args.x, unit.b, n);
          T* out = row<T>(args.out, unit.b, n);
          Vector<A> sum{};
          for_vectors<A>(0, D, [&](int64_t j, auto lanes) { sum += load(x + j, lanes); });
          const A mean = sum_lanes<A>(sum) / D;
          sum = Vector<A>{};
          for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
            Vector<A> centred = load(x + j, lanes) - mean;
            if constexpr (!std::is_same_v<decltype(lanes), Whole>) {
              for (int i = lanes.count; i < kLanes<A>; ++i) centred[i] = 0;  // the lanes past D are not -mean
            }
            sum += centred * centred;
          });
          const A rstd = 1 / std::sqrt(sum_lanes<A>(sum) / D + A(args.eps));
          static_cast<A*>(args.mean)[unit.b * N + n] = mean;
          static_cast<A*>(args.rstd)[unit.b * N + n] = rstd;
          for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
            const Vector<A> normal = (load(x + j, lanes) - mean) * rstd;
            write(out + j, load(gamma + j, lanes) * normal + load(beta + j, lanes), streaming, lanes);
          });
        }
      }));
}

template <class T> void backward(const NormBackward& args) {
  using A = Accumulate<T>;
  const int64_t D = args.shape.channels, N = args.shape.tokens;
  const bool streaming = streams<T>(args.shape, args.grad_x);
  const Plan plan(args.shape);
  TokenSums<A> sums(plan, D, 2);
  run(plan, per_unit([&](const Unit& unit) {
        const A* gamma = at<A>(args.gamma, unit.b * D);
        sums.collect(unit, [&](int64_t first, int64_t last, A* sum) {
          A *gamma_sum = sum, *beta_sum = sum + D;
          for (int64_t n = first; n < last; ++n) {
            const T *x = row<T>(args.x, unit.b, n), *grad = row<T>(args.grad, unit.b, n);
            const A mean = at<A>(args.mean, unit.b * N)[n], rstd = at<A>(args.rstd, unit.b * N)[n];
            Vector<A> totals[2] = {};  // Σĝ, Σĝx̂
            for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
              const Vector<A> y = load(grad + j, lanes), normal = (load(x + j, lanes) - mean) * rstd;
              const Vector<A> g_hat = y * load(gamma + j, lanes);
              totals[0] += g_hat;
              totals[1] += g_hat * normal;
              store(gamma_sum + j, load(gamma_sum + j, lanes) + y * normal, lanes);
              store(beta_sum + j, load(beta_sum + j, lanes) + y, lanes);
            });
            if (!args.grad_x.data) continue;
            A means[2];
            sum_lanes<A, 2>(totals, means);
            for (A& value : means) value /= D;
            T* out = row<T>(args.grad_x, unit.b, n);
            for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
              const Vector<A> normal = (load(x + j, lanes) - mean) * rstd;
              const Vector<A> g_hat = load(grad + j, lanes) * load(gamma + j, lanes);
              write(out + j, rstd * (g_hat - means[0] - normal * means[1]), streaming, lanes);
            });
          }
        });
      }),
      per_batch([&](int64_t b) {
        const A* total = sums.total(b);
        if (args.grad_gamma) std::memcpy(static_cast<A*>(args.grad_gamma) + b * D, total, D * sizeof(A));
        if (args.grad_beta) std::memcpy(static_cast<A*>(args.grad_beta) + b * D, total + D, D * sizeof(A));
      }));
}

template <class T> void double_backward(const NormDoubleBackward& args) {
  using A = Accumulate<T>;
  const int64_t D = args.shape.channels, N = args.shape.tokens;
  const bool streaming_grad = streams<T>(args.shape, args.out_grad), streaming_x = streams<T>(args.shape, args.out_x);
  const Plan plan(args.shape);
  TokenSums<A> sums(plan, D, 1);
  const auto read = [](const auto* from, int64_t j, auto lanes) { return from ? load(from + j, lanes) : Vector<A>{}; };
  run(plan, per_unit([&](const Unit& unit) {
        const A *gamma = at<A>(args.gamma, unit.b * D), *cot_gamma = at<A>(args.cot_gamma, unit.b * D),
                *cot_beta = at<A>(args.cot_beta, unit.b * D);
        sums.collect(unit, [&](int64_t first, int64_t last, A* gamma_sum) {
          for (int64_t n = first; n < last; ++n) {
            const T *x = row<T>(args.x, unit.b, n), *grad = row<T>(args.grad, unit.b, n);
            const T* cot = args.cot_x.data ? row<T>(args.cot_x, unit.b, n) : nullptr;
            const A mean = at<A>(args.mean, unit.b * N)[n], rstd = at<A>(args.rstd, unit.b * N)[n];
            Vector<A> totals[8] = {};
            for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
              const Vector<A> y = load(grad + j, lanes), normal = (load(x + j, lanes) - mean) * rstd, X = read(cot, j, lanes);
              const Vector<A> g_hat = y * load(gamma + j, lanes), shifted = y * read(cot_gamma, j, lanes);
              totals[0] += X;
              totals[1] += X * normal;
              totals[2] += g_hat;
              totals[3] += g_hat * normal;
              totals[4] += X * g_hat;
              totals[5] += shifted;
              totals[6] += shifted * normal;
            });
            A means[8];
            sum_lanes<A, 8>(totals, means);
            for (A& value : means) value /= D;
            const A X_mean = means[0], X_normal = means[1], g_mean = means[2], g_normal = means[3];
            const A g_projected = means[4] - X_mean * g_mean - X_normal * g_normal;         // ⟨ĝ P X⟩
            const A h_mean = means[5] - rstd * (g_mean * X_normal + X_mean * g_normal);     // ⟨h⟩
            const A h_normal = means[6] - 2 * rstd * X_normal * g_normal;                   // ⟨h x̂⟩
            T* out_grad = args.out_grad.data ? row<T>(args.out_grad, unit.b, n) : nullptr;
            T* out_x = args.out_x.data ? row<T>(args.out_x, unit.b, n) : nullptr;
            for_vectors<A>(0, D, [&](int64_t j, auto lanes) {
              const Vector<A> y = load(grad + j, lanes), normal = (load(x + j, lanes) - mean) * rstd, X = read(cot, j, lanes);
              const Vector<A> g = load(gamma + j, lanes), G = read(cot_gamma, j, lanes);
              const Vector<A> projected = rstd * (X - X_mean - normal * X_normal);  // r P X
              if (out_grad) write(out_grad + j, g * projected + G * normal + read(cot_beta, j, lanes), streaming_grad, lanes);
              if (out_x) {
                const Vector<A> h = G * y - rstd * (g * y * X_normal + X * g_normal);
                write(out_x + j, rstd * (h - h_mean - normal * h_normal - rstd * g_projected * normal), streaming_x, lanes);
              }
              store(gamma_sum + j, load(gamma_sum + j, lanes) + y * projected, lanes);
            });
          }
        });
      }),
      per_batch([&](int64_t b) {
        if (args.out_gamma) std::memcpy(static_cast<A*>(args.out_gamma) + b * D, sums.total(b), D * sizeof(A));
      }));
}

}  // namespace

Status modulated_layer_norm_forward(const NormForward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) { forward<decltype(storage)>(args); });
}

Status modulated_layer_norm_backward(const NormBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) { backward<decltype(storage)>(args); });
}

Status modulated_layer_norm_double_backward(const NormDoubleBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) { double_backward<decltype(storage)>(args); });
}

}  // namespace LADA_ISA
}  // namespace lada
