#include "cuda_bindings.h"

#include <stdexcept>
#include <string>

#include "arguments.h"

namespace lada {
namespace {

template <class Arguments> auto on_gpu(const char* name, Outcome (*kernel)(const Arguments&, const Queue&)) {
  return [name, kernel](const pybind11::tuple& given_queue, const pybind11::kwargs& given) {
    Queue queue;  // (device, stream, workspace, its bytes)
    set(given_queue[0], queue.device);
    set(given_queue[1], queue.stream);
    set(given_queue[2], queue.workspace);
    set(given_queue[3], queue.workspace_bytes);
    const Arguments arguments = arguments_from<Arguments>(given);
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
#define LADA_BIND(kernel, Arguments) m.def(#kernel, on_gpu(#kernel, &cuda::kernel));
  LADA_FOR_EACH_CUDA_KERNEL(LADA_BIND)
#undef LADA_BIND
  m.def("why_not", &cuda::why_not, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace lada
