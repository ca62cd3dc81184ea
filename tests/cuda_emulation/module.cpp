// The kernels, run by the emulator, as a Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda_bindings.h"
#include "emulator.h"

namespace {

namespace py = pybind11;

// Change what is given; a seed begins its numbers anew. Returns all settings.
py::dict configure(std::optional<uint64_t> seed, std::optional<int> processors, std::optional<bool> clusters,
                   std::optional<int64_t> shared) {
  lada::emulation::Settings& settings = lada::emulation::settings;
  lada::cuda::Device& device = settings.device;
  device = {processors.value_or(device.processors), shared.value_or(device.shared), clusters.value_or(device.clusters)};
  if (seed) lada::emulation::set_seed(*seed);
  using namespace py::literals;
  return py::dict("seed"_a = settings.seed, "processors"_a = device.processors, "clusters"_a = device.clusters,
                  "shared"_a = device.shared);
}

}  // namespace

PYBIND11_MODULE(_cuda_emulated, m) {
  using namespace py::literals;
  lada::bind_cuda(m);
  m.def("configure", &configure, py::kw_only(), "seed"_a = py::none(), "processors"_a = py::none(), "clusters"_a = py::none(),
        "shared"_a = py::none());
}
