#include "cuda_bindings.h"

#include <stdexcept>
#include <string>

#include "arguments.h"

namespace lada {
namespace {

using QueueTuple = std::tuple<int, Address, Address, int64_t>;  // device, stream, workspace and its bytes

template <class Arguments, class... Passed>
auto on_gpu(const char* name, Outcome (*kernel)(const Arguments&, const Queue&), Arguments (*make)(Passed...)) {
  return [name, kernel, make](const QueueTuple& q, Passed... passed) {
    const Queue queue{std::get<0>(q), at(std::get<1>(q)), at(std::get<2>(q)), std::get<3>(q)};
    const Arguments arguments = make(passed...);
    Outcome outcome;
    {
      const pybind11::gil_scoped_release release;  // a first start loads the kernel, or compiles its PTX
      outcome = kernel(arguments, queue);
    }
    if (outcome.error) throw std::runtime_error(std::string(name) + ": " + outcome.error);
    return outcome.wanted;
  };
}

}  // namespace

void bind_cuda(pybind11::module_& m) {
#define LADA_BIND(kernel, Arguments) m.def(#kernel, on_gpu(#kernel, &cuda::kernel, &From<Arguments>::make));
  LADA_FOR_EACH_CUDA_KERNEL(LADA_BIND)
#undef LADA_BIND
  m.def("why_not", &cuda::why_not, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace lada
