// A stand-in for the CUDA runtime: what nvcc's host code registers and launches runs on the machine that executes PTX.
// Objects hold the PTX of each architecture, uncompressed; a device gets the newest that it can run. Every description that was
// ever asked for is a device of its own, so that host code may keep what it has learnt of one.
#include <cuda_runtime_api.h>

#include <cstring>

#include "cudart.h"

namespace ptx {

std::vector<Device> devices(1);
int current = 0;
std::mt19937_64 randomness(0);
std::map<std::pair<std::string, int>, int64_t> launched;

namespace {

struct Binary {  // the modules of one source file, by architecture
  std::map<int, std::string> texts;
  std::map<int, Module> modules;

  Module* module() {
    auto found = texts.upper_bound(devices[size_t(current)].architecture);
    if (found == texts.begin()) return nullptr;
    --found;
    return &modules.try_emplace(found->first, found->second).first->second;
  }
};

struct Function {
  Binary* binary;
  std::string name;
  uint32_t most_shared = 48 << 10;
};

// Functions register before anything in this file is sure to be initialised.
std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> known;
  return known;
}

std::string last_error;

cudaError_t failure(const std::string& text) {
  last_error = text;
  return cudaErrorLaunchFailure;
}

// The entries of a fat binary (the format of `cuobjdump`, version 1): each a header and text or machine code.
void read(const char* fat, Binary& binary) {
  constexpr uint16_t kText = 1;
  uint64_t bytes;
  uint16_t header;
  memcpy(&header, fat + 6, sizeof header);
  memcpy(&bytes, fat + 8, sizeof bytes);
  for (const char *entry = fat + header, *end = entry + bytes; entry < end;) {
    uint16_t kind;
    uint32_t head, architecture;
    uint64_t size;
    memcpy(&kind, entry, sizeof kind);
    memcpy(&head, entry + 4, sizeof head);
    memcpy(&size, entry + 8, sizeof size);
    memcpy(&architecture, entry + 28, sizeof architecture);
    if (kind == kText) binary.texts[int(architecture)] = std::string(entry + head, strnlen(entry + head, size));
    entry += head + size;
  }
}

}  // namespace

std::vector<std::string> registered() {
  std::vector<std::string> names;
  for (const auto& [host, function] : functions()) names.push_back(function.name);
  return names;
}

}  // namespace ptx

using namespace ptx;

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  Binary* binary = new Binary;  // lives as long as the process, as the code it describes
  const char* fat;
  memcpy(&fat, static_cast<char*>(wrapper) + 8, sizeof fat);
  read(fat, *binary);
  return reinterpret_cast<void**>(binary);
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  functions()[host] = {reinterpret_cast<Binary*>(binary), name};
}

// What `kernel<<<...>>>` takes, which no kernel of ours is started by.
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }

cudaError_t cudaGetDevice(int* index) { return *index = current, cudaSuccess; }

cudaError_t cudaSetDevice(int index) {
  if (index < 0 || size_t(index) >= devices.size()) return cudaErrorInvalidDevice;
  current = index;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index < 0 || size_t(index) >= devices.size()) return cudaErrorInvalidDevice;
  const Device& device = devices[size_t(index)];
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = device.processors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(device.shared); break;
    case cudaDevAttrClusterLaunch: *value = device.clusters; break;
    case cudaDevAttrComputeCapabilityMajor: *value = device.architecture / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = device.architecture % 10; break;
    default: return cudaErrorNotSupported;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  Module* module = functions().at(function).binary->module();
  if (!module) return cudaErrorNoKernelImageForDevice;
  *attributes = {};
  attributes->ptxVersion = attributes->binaryVersion = module->architecture();
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  if (value > devices[size_t(current)].shared) return cudaErrorInvalidValue;
  functions().at(function).most_shared = uint32_t(value);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  Function& called = functions().at(function);
  Module* module = called.binary->module();
  if (!module) return cudaErrorNoKernelImageForDevice;
  LaunchConfig launch{{config->gridDim.x, config->gridDim.y, config->gridDim.z},
                      {config->blockDim.x, config->blockDim.y, config->blockDim.z},
                      uint32_t(config->dynamicSmemBytes), called.most_shared};
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    if (config->attrs[k].id != cudaLaunchAttributeClusterDimension) return cudaErrorNotSupported;
    launch.cluster = config->attrs[k].val.clusterDim.x;
  }
  try {
    Kernel& kernel = module->kernel(called.name);
    std::vector<std::byte> parameters(kernel.parameter_bytes);
    for (size_t k = 0; k < kernel.parameters.size(); ++k)
      memcpy(parameters.data() + kernel.parameters[k].place, arguments[k], kernel.parameters[k].bytes);
    ptx::launch(devices[size_t(current)], *module, kernel, launch, parameters.data(), randomness);
    ++launched[{called.name, module->architecture()}];
  } catch (const Error& error) {
    return failure(error.what());
  }
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorLaunchFailure: return last_error.c_str();
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidValue: return "invalid argument";
    default: return "not known to the stand-in for the CUDA runtime";
  }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

}  // extern "C"
