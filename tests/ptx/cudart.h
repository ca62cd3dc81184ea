// What launches through the stand-in for the CUDA runtime share with the Python module.
#pragma once

#include "machine.h"

namespace ptx {

extern std::vector<Device> devices;
extern int current;  // of them
extern std::mt19937_64 randomness;
extern std::map<std::pair<std::string, int>, int64_t> launched;  // (kernel, architecture of its PTX) -> launches that went well
std::vector<std::string> registered();                          // the kernels of the objects that were linked

}  // namespace ptx
