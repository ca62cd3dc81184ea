// How the tokens of a batch element are shared among blocks, and how what each of them sums is brought together.
#pragma once

#include <device.h>

namespace lada {
namespace cuda {

constexpr int kMostInCluster = 8;  // what every device with clusters takes

// The blocks that work on one unit, such as a batch element: each on a run of its tokens. What they sum is brought together
// in each other's shared memory where they are a cluster (or one block), else in the workspace, by a second kernel.
struct Team {
  float* workspace;
  int64_t tokens, size;  // of all; of a block's run
  int64_t part;          // floats that each block brings
  int chunks;            // blocks
  bool cluster;
  int spread;  // blocks of the second kernel for a unit

  __host__ __device__ bool needs_second_kernel() const { return chunks > 1 && !cluster; }
  int64_t workspace_bytes(int64_t units) const { return needs_second_kernel() ? units * chunks * part * 4 : 0; }

  __device__ int unit() const { return int(blockIdx.x) / chunks; }
  __device__ int unit_later() const { return int(blockIdx.x) / spread; }  // in the second kernel
  __device__ int chunk() const { return int(blockIdx.x) % chunks; }
  __device__ int64_t begin() const { return chunk() * size; }
  __device__ int64_t end() const { return begin() + size < tokens ? begin() + size : tokens; }

  // Where this block leaves its part; `shared` has room for it.
  __device__ float* mine(float* shared) const { return needs_second_kernel() ? workspace + blockIdx.x * part : shared; }
};

// The parts of one unit's blocks.
struct Parts {
  const float* first;
  int64_t stride;
  int count;
  bool remote;

  __device__ const float* operator[](int chunk) const { return remote ? shared_of(first, chunk) : first + chunk * stride; }

  __device__ float sum(int64_t place) const {
    float total = 0;
#pragma unroll 8
    for (int chunk = 0; chunk < count; ++chunk) total += (*this)[chunk][place];
    return total;
  }
};

// What one block brings together: every `ranks`-th stretch of places, from its `rank` on.
struct Share {
  int rank, ranks;

  template <class Body> __device__ void for_each(int64_t places, Body body) const {
    for (int64_t i = int64_t(rank) * blockDim.x + threadIdx.x; i < places; i += int64_t(ranks) * blockDim.x) body(i);
  }
};

// Once every block has left its part at team.mine(shared): combine(parts, share), unless that is the second kernel's.
template <class Combine> __device__ inline void bring_together(const Team& team, float* shared, Combine combine) {
  if (team.chunks == 1) {
    __syncthreads();
    combine(Parts{shared, 0, 1, false}, Share{0, 1});
  } else if (team.cluster) {
    cluster_barrier();
    combine(Parts{shared, 0, team.chunks, true}, Share{team.chunk(), team.chunks});
    cluster_barrier();  // no block may leave while others read its memory
  }
}

template <class Combine> __device__ inline void bring_together_later(const Team& team, Combine combine) {
  const float* first = team.workspace + int64_t(team.unit_later()) * team.chunks * team.part;
  combine(Parts{first, team.part, team.chunks, false}, Share{int(blockIdx.x % team.spread), team.spread});
}

// A team for each of `units`: about `blocks` in all, `least` tokens a block. Without parts to bring together it is no cluster.
inline Team make_team(int64_t units, int64_t tokens, int64_t least, int64_t part, int64_t blocks, const Device& device,
                      const Queue& queue) {
  const int64_t most = (tokens + least - 1) / least, wanted = units ? (blocks + units - 1) / units : 1;
  int64_t chunks = wanted < most ? wanted : most;
  // A cluster spares a launch; only where it would leave most of the device idle is it too few.
  const bool enough = chunks <= kMostInCluster || units * kMostInCluster >= blocks / 4;
  const bool cluster = device.clusters && part && chunks > 1 && enough;
  if (cluster) {
    int64_t power = 2;
    while (power < chunks && power < kMostInCluster) power *= 2;
    chunks = power;
  }
  return {static_cast<float*>(queue.workspace),
          tokens,
          (tokens + chunks - 1) / chunks,
          part,
          int(chunks),
          cluster,
          int((part + 255) / 256 < 1 ? 1 : (part + 255) / 256)};
}

// Start a kernel that leaves parts, and where they are no cluster's the one that brings them together.
template <class Arguments>
Outcome start_teams(void (*kernel)(Arguments), void (*second)(Arguments), const Arguments& arguments, int64_t units,
                    int threads, int64_t shared, const Queue& queue, int64_t second_shared = 0) {
  const Team& team = arguments.team;
  const int64_t wanted = team.workspace_bytes(units);
  if (wanted > queue.workspace_bytes) return {wanted, nullptr};
  const Outcome outcome =
      start(kernel, arguments, {units * team.chunks, threads, shared, team.cluster ? team.chunks : 1}, queue);
  if (outcome.error || wanted == 0) return outcome;
  return start(second, arguments, {units * team.spread, threads, second_shared}, queue);
}

}  // namespace cuda
}  // namespace lada
