// The twin of csrc/cuda/device.h: its names, and those of CUDA that the kernels use, by the emulator on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math.h>
#include <vector_functions.h>

#include <algorithm>
#include <cstring>

#include "emulator.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__  // static shared memory is not emulated: using it does not compile

#define threadIdx (::lada::emulation::position.thread)
#define blockIdx (::lada::emulation::position.block)
#define blockDim (::lada::emulation::position.threads)
#define gridDim (::lada::emulation::position.blocks)

constexpr int warpSize = 32;

namespace lada {
namespace emulation {

inline int lane() { return threadIdx.x % warpSize; }

// `source`, or this lane itself where that lies past its group of `width` lanes.
inline int within(int source, int width) { return source <= (lane() | (width - 1)) ? source : lane(); }

template <class T> T shuffle_value(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4, "only shuffles of 32 bits are emulated");
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = shuffle(mask, bits, source);
  memcpy(&value, &bits, sizeof bits);
  return value;
}

}  // namespace emulation
}  // namespace lada

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  using namespace lada::emulation;
  return shuffle_value(mask, value, (lane() & -width) | (source & (width - 1)));
}

template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  using namespace lada::emulation;
  return shuffle_value(mask, value, within(lane() ^ bits, width));
}

template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  using namespace lada::emulation;
  return shuffle_value(mask, value, within(lane() + int(delta), width));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return lada::emulation::vote(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline void __syncwarp(unsigned mask = 0xffffffffu) { lada::emulation::warp_barrier(mask); }
inline void __syncthreads() { lada::emulation::block_barrier(); }

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
using std::max, std::min;  // of one type; CUDA's mix them

namespace lada {
namespace cuda {

template <class Body> Outcome on_device(const Queue&, Body body) { return body(emulation::settings.device); }

template <class Arguments>
Outcome start(void (*kernel)(Arguments), const Arguments& arguments, const Grid& grid, const Queue&) {
  return {0, emulation::launch(grid, [&] { kernel(arguments); })};
}

inline float* shared_memory() { return emulation::shared_memory(); }
inline void cluster_barrier() { emulation::cluster_barrier(); }
inline const float* shared_of(const float* mine, int rank) { return emulation::shared_of(mine, rank); }

inline uint4 load_once(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(uint4)) emulation::fail("misaligned address: load_once(%p)", address);
  return *static_cast<const uint4*>(address);
}

inline void store_at_once(void* address, const uint4& value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(uint4)) emulation::fail("misaligned address: store_at_once(%p)", address);
  *static_cast<uint4*>(address) = value;
}

}  // namespace cuda
}  // namespace lada
