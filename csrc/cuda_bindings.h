#pragma once

#include <pybind11/pybind11.h>

namespace lada {

// Define the CUDA kernels in a module: name(queue, ...) -> bytes of workspace to call again with, 0 once it was started; and
// why_not(device) -> text or None.
void bind_cuda(pybind11::module_& m);

}  // namespace lada
