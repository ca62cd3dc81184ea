// The machine as a Python module, with the CUDA kernels of the objects that it was linked with.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "cudart.h"
#include "memory.h"

namespace lada {
void bind_cuda(pybind11::module_& m) __attribute__((weak));
}

namespace {

namespace py = pybind11;
using namespace ptx;

// Make the device that is the current one but for what is given here the current one; a seed begins its numbers anew.
// Returns its description.
py::dict configure(std::optional<uint64_t> seed, std::optional<int> architecture, std::optional<int> processors,
                   std::optional<int64_t> shared, std::optional<bool> clusters, std::optional<bool> blur) {
  const Device& now = devices[size_t(current)];
  const Device wanted{architecture.value_or(now.architecture), processors.value_or(now.processors), shared.value_or(now.shared),
                      clusters.value_or(now.clusters), blur.value_or(now.blur)};
  current = int(std::find(devices.begin(), devices.end(), wanted) - devices.begin());
  if (size_t(current) == devices.size()) devices.push_back(wanted);
  if (seed) randomness.seed(*seed);
  using namespace py::literals;
  return py::dict("architecture"_a = wanted.architecture, "processors"_a = wanted.processors, "shared"_a = wanted.shared,
                  "clusters"_a = wanted.clusters, "blur"_a = wanted.blur);
}

void launch_text(Module& module, const std::string& name, std::tuple<uint32_t, uint32_t, uint32_t> blocks, uint32_t threads,
                 uint32_t shared, const std::string& parameters, uint32_t cluster) {
  Kernel& kernel = module.kernel(name);
  std::vector<std::byte> padded(std::max<size_t>(kernel.parameter_bytes, parameters.size()));
  memcpy(padded.data(), parameters.data(), parameters.size());
  const auto [x, y, z] = blocks;
  launch(devices[size_t(current)], module, kernel, {{x, y, z}, {threads, 1, 1}, shared, shared, cluster}, padded.data(), randomness);
  ++launched[{name, module.architecture()}];
}

std::vector<std::tuple<std::string, uint32_t, uint32_t>> parameters_of(Module& module, const std::string& name) {
  std::vector<std::tuple<std::string, uint32_t, uint32_t>> all;
  for (const Parameter& parameter : module.kernel(name).parameters) all.push_back({parameter.name, parameter.place, parameter.bytes});
  return all;
}

}  // namespace

PYBIND11_MODULE(_ptx, m) {
  using namespace py::literals;
  py::register_local_exception<Error>(m, "Error", PyExc_RuntimeError);
  m.def("configure", &configure, py::kw_only(), "seed"_a = py::none(), "architecture"_a = py::none(), "processors"_a = py::none(),
        "shared"_a = py::none(), "clusters"_a = py::none(), "blur"_a = py::none());
  m.def("device", [] { return current; });
  m.def("allow", [](uint64_t begin, uint64_t bytes, bool fresh) { global_memory.allow(begin, bytes, fresh); });
  m.def("forget", [] { global_memory.forget(); });
  m.def("launched", [] { return launched; });
  m.def("registered", &registered);
  py::class_<Module>(m, "Module", py::module_local())  // a process may load the machine with several sets of kernels
      .def(py::init<std::string>())
      .def("kernels", &Module::kernels)
      .def("parameters", &parameters_of)  // (name, place, bytes) of each
      .def("launch", &launch_text, "kernel"_a, "blocks"_a, "threads"_a, "shared"_a, "parameters"_a, "cluster"_a = 1);
  if (lada::bind_cuda) lada::bind_cuda(m);
}
