// Whether the kernels can run on a device.
#include <device.h>

namespace lada {
namespace cuda {

const char* why_not(int32_t device) {
  return on_device({device, nullptr, nullptr, 0}, [](const Device&) { return Outcome{}; }).error;
}

}  // namespace cuda
}  // namespace lada
