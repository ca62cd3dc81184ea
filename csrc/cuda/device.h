// The GPU and its runtime: every call of the CUDA runtime and all PTX is in this file. What of the runtime it calls,
// tests/ptx/cudart.cpp has too, which executes the kernels' PTX on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdio>
#include <mutex>

#include "../lada.h"

namespace lada {
namespace cuda {

// ---- on the host ----

struct Device {
  int processors;
  int64_t shared;  // bytes of shared memory that a block can have
  bool clusters;   // blocks can be started in clusters that reach into each other's shared memory, and the kernels know how
};

struct Grid {
  int64_t blocks;
  int threads;      // of a block
  int64_t shared;   // bytes of a block
  int cluster = 1;  // blocks of a cluster; divides `blocks`
};

// A text with numbers, which stays until this thread makes the next one.
template <class... Numbers> const char* text_of(const char* format, Numbers... numbers) {
  static thread_local char text[256];
  snprintf(text, sizeof text, format, numbers...);
  return text;
}

inline const char* error_text(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

template <int> __global__ void probe_kernel() {}

// What is known of device `index`, the current one.
inline const char* describe(int index, Device& device) {
  static std::mutex mutex;
  static std::array<Device, 64> known{};
  const std::lock_guard<std::mutex> lock(mutex);
  const bool kept = index < int(known.size());
  if (kept && known[index].processors) {
    device = known[index];
    return nullptr;
  }
  int processors, shared, clusters;
  cudaFuncAttributes built;  // PTX of an architecture without clusters may be all that was built, and runs on one with them
  cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, index);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&built, probe_kernel<0>);
  if (error != cudaSuccess) return error_text(error);
  device = {processors, shared, clusters && built.ptxVersion >= 90};
  if (kept) known[index] = device;
  return nullptr;
}

// body(device) with the queue's device as the current one. It stays that: Python puts the former one back by torch's guard,
// which gives it no context; cudaSetDevice would.
template <class Body> Outcome on_device(const Queue& queue, Body body) {
  int current;
  if (const char* error = error_text(cudaGetDevice(&current))) return {0, error};
  if (current != queue.device)
    if (const char* error = error_text(cudaSetDevice(queue.device))) return {0, error};
  Device device;
  const char* error = describe(queue.device, device);
  return error ? Outcome{0, error} : body(device);
}

// Start a kernel, which takes one struct; no blocks, no start.
template <class Arguments>
Outcome start(void (*kernel)(Arguments), const Arguments& arguments, const Grid& grid, const Queue& queue) {
  if (grid.blocks == 0) return {};
  constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
  if (grid.blocks > kMostBlocks)
    return {0, text_of("the grid is too large: %lld blocks, and 2^31 - 1 are the most", static_cast<long long>(grid.blocks))};
  constexpr int64_t kUnasked = 48 << 10;  // more shared memory has to be asked for
  if (grid.shared > kUnasked) {
    int most;  // for every start the same: another thread may start this kernel in between, with more
    cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue.device);
    const void* function = reinterpret_cast<const void*>(kernel);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess) return {0, error_text(error)};
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.blocks));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = size_t(grid.shared);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  config.attrs = &attribute;
  config.numAttrs = grid.cluster > 1;
  return {0, error_text(cudaLaunchKernelEx(&config, kernel, arguments))};
}

// ---- on the device ----

// The block's shared memory, all of it.
__device__ inline float* shared_memory() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
}

// Every thread of the cluster's blocks arrives; what they wrote, to global memory too, is seen by all after it.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Where what lies at `mine` in this block's shared memory lies in that of the cluster's block `rank`.
__device__ inline const float* shared_of(const float* mine, int rank) {
#if __CUDA_ARCH__ >= 900
  const float* address;
  // volatile: else the compiler hoists it above a test of `rank`, and a rank beyond the cluster is undefined
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(mine), "r"(rank));
  return address;
#else
  return mine;
#endif
}

// 16 bytes that this kernel reads once, past the L1 cache.
__device__ inline uint4 load_once(const void* address) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(address));
  return value;
}

// 16 bytes at once, which the compiler may make of a plain assignment or not.
__device__ inline void store_at_once(void* address, const uint4& value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

}  // namespace cuda
}  // namespace lada
