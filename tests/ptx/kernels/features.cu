// Small kernels that use the machine's features one by one, right and wrong.
#include <device.h>

#include <string>

#include "cuda_bindings.h"

namespace lada {
namespace cuda {
namespace {

struct Arguments {
  const float* in;
  float* out;
  int option;
};

__device__ int64_t place() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// out [blocks] = the sum of each block's threads' `in`, by halves; option 0 leaves out the barrier between them.
__global__ void block_sum(const __grid_constant__ Arguments a) {
  float* shared = shared_memory();
  shared[threadIdx.x] = a.in[place()];
  for (int half = blockDim.x / 2; half; half /= 2) {
    if (a.option || half == int(blockDim.x) / 2) __syncthreads();
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) a.out[blockIdx.x] = shared[0];
}

// out [threads] = the sum of the next thread's `in` and round, over three rounds; option 0 overwrites what is read.
__global__ void rounds(const __grid_constant__ Arguments a) {
  float *shared = shared_memory(), total = 0;
  for (int round = 0; round < 3; ++round) {
    shared[threadIdx.x] = a.in[place()] + float(round);
    __syncthreads();
    total += shared[(threadIdx.x + 1) % blockDim.x];
    if (a.option) __syncthreads();
  }
  a.out[place()] = total;
}

// out [threads, 5]: shuffles among groups of `option` lanes: from the third, from the neighbour, from three on; votes.
__global__ void warp(const __grid_constant__ Arguments a) {
  constexpr unsigned kAll = 0xffffffffu;
  const float x = a.in[place()];
  float* out = a.out + place() * 5;
  out[0] = __shfl_sync(kAll, x, 2, a.option);
  out[1] = __shfl_xor_sync(kAll, x, 1, a.option);
  out[2] = __shfl_down_sync(kAll, x, 3, a.option);
  __syncwarp();
  out[3] = float(__ballot_sync(kAll, x > 0) & 0xffff);
  out[4] = float(__any_sync(kAll, x > 2) * 2 + __all_sync(kAll, x > -2));
}

// out [blocks] = the sum of a cluster's blocks' first `in`, read in each other's memory; option 0 lets them leave too soon.
__global__ void cluster_sum(const __grid_constant__ Arguments a) {
  const int rank = blockIdx.x % 4;
  float* shared = shared_memory();
  if (threadIdx.x == 0) shared[0] = a.in[place()];
  cluster_barrier();
  if (int(threadIdx.x) == rank) {
    float total = 0;
    for (int other = 0; other < 4; ++other) total += *shared_of(shared, other);
    a.out[blockIdx.x] = total;
  }
  if (a.option) cluster_barrier();
}

// out [threads] = shared memory as it is found.
__global__ void unwritten(const __grid_constant__ Arguments a) { a.out[place()] = shared_memory()[threadIdx.x]; }

// out [threads] = the sum of the warp's `in`, through shared memory; option 0 leaves out the barrier of the warp.
__global__ void warp_sum(const __grid_constant__ Arguments a) {
  float *shared = shared_memory(), total = 0;
  shared[threadIdx.x] = a.in[place()];
  if (a.option) __syncwarp();
  for (int i = 0; i < 32; ++i) total += shared[threadIdx.x / 32 * 32 + i];
  a.out[place()] = total;
}

// out [threads] = `in` of lanes that have diverged, twice, and met again: those that branched one way count ten times.
__global__ void diverge(const __grid_constant__ Arguments a) {
  float value = a.in[place()];
  for (int i = 0; i < int(threadIdx.x) % 3; ++i) value += a.in[place()];
  if (threadIdx.x % 2) value *= 10;
  __syncwarp();
  a.out[place()] = __shfl_xor_sync(~0u, value, 1);
}

__global__ void past_the_end(const __grid_constant__ Arguments a) { a.out[place() + 1] = a.in[place()]; }

// `blockDim` floats of it are asked for.
__global__ void past_shared_memory(const __grid_constant__ Arguments a) { shared_memory()[threadIdx.x + 1] = a.in[0]; }

__global__ void misaligned_store(const __grid_constant__ Arguments a) { store_at_once(a.out + 1, {0, 0, 0, 0}); }

__global__ void barrier_for_some(const __grid_constant__ Arguments) {
  if (threadIdx.x != 5) __syncthreads();
}

__global__ void barriers_of_two_kinds(const __grid_constant__ Arguments) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    cluster_barrier();
  }
}

__global__ void collectives_of_two_kinds(const __grid_constant__ Arguments a) {
  if (threadIdx.x % 2) {
    a.out[place()] = __shfl_sync(0xffffffffu, 1.f, 0);
  } else {
    a.out[place()] = __any_sync(0xffffffffu, 1);
  }
}

__global__ void shuffle_outside_of_mask(const __grid_constant__ Arguments a) {
  if (threadIdx.x < 16) a.out[place()] = __shfl_xor_sync(0xffffu, 1.f, 16);
}

__global__ void misaligned(const __grid_constant__ Arguments a) { a.out[0] = bool(load_once(a.in + 1).x); }

__global__ void shared_of_nobody(const __grid_constant__ Arguments a) { a.out[0] = *shared_of(shared_memory(), 4); }

#define LADA_FOR_EACH_FEATURE(APPLY)                                                                                     \
  APPLY(block_sum) APPLY(rounds) APPLY(warp) APPLY(warp_sum) APPLY(diverge) APPLY(cluster_sum) APPLY(unwritten)          \
  APPLY(past_shared_memory) APPLY(past_the_end) APPLY(barrier_for_some) APPLY(barriers_of_two_kinds)                     \
  APPLY(collectives_of_two_kinds) APPLY(shuffle_outside_of_mask) APPLY(misaligned) APPLY(misaligned_store)               \
  APPLY(shared_of_nobody)

}  // namespace
}  // namespace cuda

// name(blocks, threads, bytes of shared memory, blocks of a cluster, in, out, option)
void bind_cuda(pybind11::module_& m) {
  const auto bind = [&](const char* name, void (*kernel)(cuda::Arguments)) {
    m.def(name, [kernel](int64_t blocks, int threads, int64_t shared, int cluster, uintptr_t in, uintptr_t out, int option) {
      const cuda::Arguments arguments{reinterpret_cast<const float*>(in), reinterpret_cast<float*>(out), option};
      Queue queue{};
      cudaGetDevice(&queue.device);
      const Outcome outcome = cuda::start(kernel, arguments, {blocks, threads, shared, cluster}, queue);
      if (outcome.error) throw std::runtime_error(outcome.error);
    });
  };
#define LADA_BIND(kernel) bind(#kernel, &cuda::kernel);
  LADA_FOR_EACH_FEATURE(LADA_BIND)
#undef LADA_BIND
}

}  // namespace lada
