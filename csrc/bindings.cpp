// The Python module lada_kernels._native: addresses and strides in by name, results written in place, a status as an exception.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "arguments.h"
#include "cuda_bindings.h"

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

template <class Arguments> auto on_cpu(Status (*Kernels::*kernel)(const Arguments&)) {
  return [kernel](const py::kwargs& given) {
    const Arguments arguments = arguments_from<Arguments>(given);
    Status status;
    {
      const py::gil_scoped_release release;
      status = (kernels().*kernel)(arguments);
    }
    if (status == Status::OutOfMemory) throw std::bad_alloc();
  };
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
#ifdef LADA_CUDA_ARCHS
#define LADA_TEXT(...) #__VA_ARGS__
#define LADA_TEXT_OF(...) LADA_TEXT(__VA_ARGS__)
  info["cuda_architectures"] = LADA_TEXT_OF(LADA_CUDA_ARCHS);
#else
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  kernels();  // an unknown LADA_CPU_ISA fails at import
  m.def("build_info", build_info);
  m.def("instruction_sets", [] { return names(supported()); });

#define LADA_BIND(kernel, Arguments) m.def(#kernel, on_cpu(&Kernels::kernel));
  LADA_FOR_EACH_KERNEL(LADA_BIND)
#undef LADA_BIND
#ifdef LADA_CUDA_ARCHS
  py::module_ cuda = m.def_submodule("cuda");
  bind_cuda(cuda);
#endif
}
