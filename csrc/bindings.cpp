// The Python module lada_kernels._native: addresses and strides in, results written in place, a status as an exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "lada.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;
using namespace lada;

namespace {

// ---- instruction sets ----

struct Kernels {
  const char* name;
#define LADA_POINTER(kernel, Arguments) Status (*kernel)(const Arguments&);
  LADA_FOR_EACH_KERNEL(LADA_POINTER)
};

#define LADA_AVX512(kernel, Arguments) avx512::kernel,
#define LADA_AVX2(kernel, Arguments) avx2::kernel,
#define LADA_BASELINE(kernel, Arguments) baseline::kernel,

// The kernels that were compiled and that this processor can run, widest first.
std::vector<Kernels> supported() {
  std::vector<Kernels> sets;
#ifdef LADA_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    sets.push_back({"avx512", LADA_FOR_EACH_KERNEL(LADA_AVX512)});
#endif
#ifdef LADA_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("f16c"))
    sets.push_back({"avx2", LADA_FOR_EACH_KERNEL(LADA_AVX2)});
#endif
  sets.push_back({"baseline", LADA_FOR_EACH_KERNEL(LADA_BASELINE)});
  return sets;
}

std::vector<std::string> names(const std::vector<Kernels>& sets) {
  std::vector<std::string> result;
  for (const Kernels& set : sets) result.push_back(set.name);
  return result;
}

Kernels choose() {
  const std::vector<Kernels> sets = supported();
  const char* wanted = std::getenv("LADA_CPU_ISA");
  if (!wanted || !*wanted) return sets.front();
  std::string known;
  for (const Kernels& set : sets) {
    if (set.name == std::string(wanted)) return set;
    known += std::string(known.empty() ? "" : ", ") + set.name;
  }
  throw std::invalid_argument("LADA_CPU_ISA: got '" + std::string(wanted) + "', expected one of " + known);
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

// ---- arguments ----

using Address = std::uintptr_t;  // 0 = absent
template <class T = void> T* at(Address address) { return reinterpret_cast<T*>(address); }

using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int, int>;  // B, N, D, H, dtype, threads
using TokensTuple = std::tuple<Address, int64_t, int64_t>;                    // data, batch stride, token stride
using PoolTuple = std::tuple<TokensTuple, Address, Address, Address, Address, double, bool>;

Shape shape(const ShapeTuple& s) {
  const auto [batch, tokens, channels, heads, dtype, threads] = s;
  return {batch, tokens, channels, heads, DType(dtype), threads};
}

Tokens tokens(const TokensTuple& t) { return {at(std::get<0>(t)), std::get<1>(t), std::get<2>(t)}; }

Pool pool(const PoolTuple& p) {
  const auto& [x, weight, mask, pooled, normaliser, scale, per_head] = p;
  return {tokens(x), at(weight), at<uint8_t>(mask), at(pooled), at(normaliser), scale, per_head};
}

template <class Arguments> void launch(Status (*kernel)(const Arguments&), const Arguments& args) {
  Status status;
  {
    const py::gil_scoped_release release;
    status = kernel(args);
  }
  if (status == Status::OutOfMemory) throw std::bad_alloc();
}

py::dict build_info() {
  py::dict info;
#ifdef __clang__
  info["compiler"] = "clang " __VERSION__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  info["instruction_sets"] = names(supported());
  info["instruction_set"] = kernels().name;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  kernels();  // an unknown LADA_CPU_ISA fails at import
  m.def("build_info", build_info);
  m.def("instruction_sets", [] { return names(supported()); });

  m.def("additive_pool_forward", [](const ShapeTuple& s, const PoolTuple& p, Address alpha) {
    launch(kernels().additive_pool_forward, {shape(s), pool(p), at(alpha)});
  });
  m.def("additive_pool_backward", [](const ShapeTuple& s, const PoolTuple& p, Address grad, const TokensTuple& grad_x,
                                     Address grad_weight) {
    launch(kernels().additive_pool_backward, {shape(s), pool(p), at(grad), tokens(grad_x), at(grad_weight)});
  });
  m.def("additive_pool_double_backward",
        [](const ShapeTuple& s, const PoolTuple& p, Address grad, const TokensTuple& cot_x, Address cot_weight, Address out_grad,
           const TokensTuple& out_x, Address out_weight) {
          launch(kernels().additive_pool_double_backward,
                 {shape(s), pool(p), at(grad), tokens(cot_x), at(cot_weight), at(out_grad), tokens(out_x), at(out_weight)});
        });

  m.def("gated_product_forward", [](const ShapeTuple& s, Address gate, const TokensTuple& k, const TokensTuple& v,
                                    const TokensTuple& out) {
    launch(kernels().gated_product_forward, {shape(s), at(gate), tokens(k), tokens(v), tokens(out)});
  });
  m.def("gated_product_backward",
        [](const ShapeTuple& s, Address gate, const TokensTuple& grad, const TokensTuple& k, const TokensTuple& v,
           Address grad_gate, const TokensTuple& grad_k, const TokensTuple& grad_v) {
          launch(kernels().gated_product_backward, {shape(s), at(gate), tokens(grad), tokens(k), tokens(v), at(grad_gate),
                                                    tokens(grad_k), tokens(grad_v)});
        });
  m.def("gated_product_double_backward",
        [](const ShapeTuple& s, Address gate, const TokensTuple& grad, const TokensTuple& k, const TokensTuple& v,
           Address cot_gate, const TokensTuple& cot_k, const TokensTuple& cot_v, Address out_gate, const TokensTuple& out_grad,
           const TokensTuple& out_k, const TokensTuple& out_v) {
          launch(kernels().gated_product_double_backward,
                 {shape(s), at(gate), tokens(grad), tokens(k), tokens(v), at(cot_gate), tokens(cot_k), tokens(cot_v),
                  at(out_gate), tokens(out_grad), tokens(out_k), tokens(out_v)});
        });

  m.def("additive_attention_forward", [](const ShapeTuple& s, const PoolTuple& p, Address alpha, const TokensTuple& k,
                                         const TokensTuple& v, const TokensTuple& out) {
    launch(kernels().additive_attention_forward, {shape(s), pool(p), at(alpha), tokens(k), tokens(v), tokens(out)});
  });
  m.def("additive_attention_backward",
        [](const ShapeTuple& s, const PoolTuple& p, const TokensTuple& grad, const TokensTuple& k, const TokensTuple& v,
           const TokensTuple& grad_q, const TokensTuple& grad_k, const TokensTuple& grad_v, Address grad_pooled,
           Address grad_weight) {
          launch(kernels().additive_attention_backward,
                 {shape(s), pool(p), tokens(grad), tokens(k), tokens(v), tokens(grad_q), tokens(grad_k), tokens(grad_v),
                  at(grad_pooled), at(grad_weight)});
        });
  m.def("additive_attention_double_backward",
        [](const ShapeTuple& s, const PoolTuple& p, const TokensTuple& grad, const TokensTuple& k, const TokensTuple& v,
           Address grad_pooled, const TokensTuple& cot_q, const TokensTuple& cot_k, const TokensTuple& cot_v, Address cot_weight,
           const TokensTuple& out_grad, const TokensTuple& out_q, const TokensTuple& out_k, const TokensTuple& out_v,
           Address out_weight) {
          launch(kernels().additive_attention_double_backward,
                 {shape(s), pool(p), tokens(grad), tokens(k), tokens(v), at(grad_pooled), tokens(cot_q), tokens(cot_k),
                  tokens(cot_v), at(cot_weight), tokens(out_grad), tokens(out_q), tokens(out_k), tokens(out_v),
                  at(out_weight)});
        });

  m.def("modulated_layer_norm_forward", [](const ShapeTuple& s, double eps, const TokensTuple& x, Address gamma, Address beta,
                                           const TokensTuple& out, Address mean, Address rstd) {
    launch(kernels().modulated_layer_norm_forward,
           {shape(s), eps, tokens(x), at(gamma), at(beta), tokens(out), at(mean), at(rstd)});
  });
  m.def("modulated_layer_norm_backward",
        [](const ShapeTuple& s, const TokensTuple& grad, const TokensTuple& x, Address gamma, Address mean, Address rstd,
           const TokensTuple& grad_x, Address grad_gamma, Address grad_beta) {
          launch(kernels().modulated_layer_norm_backward, {shape(s), tokens(grad), tokens(x), at(gamma), at(mean), at(rstd),
                                                           tokens(grad_x), at(grad_gamma), at(grad_beta)});
        });
  m.def("modulated_layer_norm_double_backward",
        [](const ShapeTuple& s, const TokensTuple& grad, const TokensTuple& x, Address gamma, Address mean, Address rstd,
           const TokensTuple& cot_x, Address cot_gamma, Address cot_beta, const TokensTuple& out_grad, const TokensTuple& out_x,
           Address out_gamma) {
          launch(kernels().modulated_layer_norm_double_backward,
                 {shape(s), tokens(grad), tokens(x), at(gamma), at(mean), at(rstd), tokens(cot_x), at(cot_gamma), at(cot_beta),
                  tokens(out_grad), tokens(out_x), at(out_gamma)});
        });
}
