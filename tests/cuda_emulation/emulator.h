// CUDA's execution model on the CPU, so that tests can run kernels without a GPU.
//
// Emulated: grids of blocks and clusters of them; barriers of a block and of a cluster; votes and shuffles of a warp; each
// block's shared memory, and a cluster's reach into it; the limits of a start. Every CUDA thread is a fiber. All threads of a
// cluster live at once; clusters run one after another, in a random order. A fiber runs until it waits at a barrier or a
// collective of its warp; which one goes on then is drawn at random, in some clusters with a liking for the one that was let
// go last, so that a few threads run far ahead of the rest. A missing barrier shows as a wrong number under some seeds.
//
// Errors, as a launch that fails: threads that wait forever (at different barriers, or for one that has ended: stricter than
// CUDA, whose warps do without those that have ended), a shuffle from a lane outside of its mask, a misaligned load_once,
// shared_of a block outside of the cluster, or of an address outside of shared memory. Shared memory is NaN until written, and
// again once all of its block's threads have ended. It has exactly the bytes asked for: with AddressSanitizer, an access past
// them is seen, as one past a tensor is.
//
// Not emulated: the memory model (memory is sequentially consistent), threads interleaved between synchronisation points, or
// blocks of different clusters at all (two that write one address go unseen), time, caches, streams (a start returns when the
// kernel has ended), static shared memory, launch bounds, more than one device. PTX is not run: device.h has twins of the
// functions made of it. Device mathematics is that of the C library: rounding differs from a GPU's in the last places.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <functional>

#include "lada.h"

namespace lada {
namespace cuda {

struct Device {
  int processors;
  int64_t shared;
  bool clusters;
};

struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared;
  int cluster = 1;
};

}  // namespace cuda

namespace emulation {

struct Settings {
  uint64_t seed;
  cuda::Device device;
};
extern Settings settings;

// Draw from the beginning of this seed's numbers.
void set_seed(uint64_t seed);

// Run body() as every thread of the grid. Returns null, or why that failed: a text that stays until the next launch.
const char* launch(const cuda::Grid& grid, const std::function<void()>& body);

// ---- for the thread that runs ----

struct Position {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern Position position;

float* shared_memory();
const float* shared_of(const float* mine, int rank);

void block_barrier();
void cluster_barrier();

// Each lane of the mask brings 32 bits and takes those that lane `source` has brought.
uint32_t shuffle(uint32_t mask, uint32_t bits, int source);
// The lanes of the mask whose predicate holds.
uint32_t vote(uint32_t mask, bool predicate);
void warp_barrier(uint32_t mask);

// End the launch with this error.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulation
}  // namespace lada
