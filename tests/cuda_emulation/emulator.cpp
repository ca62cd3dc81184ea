#include "emulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "fiber.h"

namespace lada {
namespace emulation {

Position position;
Settings settings{0, {2, 227 << 10, true}};  // an H100's shared memory, and few processors: small problems fill them

namespace {

constexpr int kWarp = 32;

enum class State { Running, BlockBarrier, ClusterBarrier, WarpBarrier, Vote, Shuffle, Ended };
constexpr const char* kStates[] = {"run", "wait at __syncthreads", "wait at cluster_barrier", "wait at __syncwarp",
                                   "wait at a vote", "wait at a shuffle", "have ended"};
constexpr int kStateCount = sizeof kStates / sizeof *kStates;

struct Block {
  unsigned index;
  std::unique_ptr<char, decltype(&std::free)> shared{nullptr, &std::free};
  int waiting = 0, alive;
};

struct Thread {
  Fiber fiber;
  int rank;  // of its block in the cluster
  unsigned index;
  State state;
  uint32_t mask, bits, result;  // of a collective of its warp: its lanes; what this one brings; what it takes
  int source;
};

uint64_t random_state = 0;

cuda::Grid grid;
const std::function<void()>* kernel;
std::vector<Block> blocks;    // of the cluster that runs
std::deque<Thread> threads;   // likewise, block after block; those past the cluster's are kept for the next launch
std::vector<Thread*> ready;   // those that can run
Thread* running;
Fiber host;                   // what called launch
int cluster_waiting;
bool newest_first;
char error[256];

uint64_t draw(uint64_t below) {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return ((z ^ z >> 31) >> 32) * below >> 32;
}

void switch_to(Thread* next, bool for_good = false) {
  Fiber& from = running ? running->fiber : host;
  running = next;
  if (next) {
    position.thread.x = next->index;
    position.block.x = blocks[next->rank].index;
  }
  Fiber& to = next ? next->fiber : host;
  if (&from != &to) switch_fiber(from, to, for_good);
}

void run_another(bool for_good = false) {
  if (ready.empty()) return switch_to(nullptr, for_good);
  const size_t last = ready.size() - 1, chosen = newest_first && draw(8) ? last : draw(ready.size());
  std::swap(ready[chosen], ready[last]);
  Thread* next = ready[last];
  ready.pop_back();
  switch_to(next, for_good);
}

void let_go(Thread& thread) {
  thread.state = State::Running;
  ready.push_back(&thread);
}

// These threads can go on, in an order that begins anywhere.
void let_go(int first, int count) {
  const int begin = int(draw(count));
  for (int i = 0; i < count; ++i) let_go(threads[first + (begin + i) % count]);
}

void end_thread() {
  Block& block = blocks[running->rank];
  running->state = State::Ended;
  if (--block.alive == 0) memset(block.shared.get(), 0xff, grid.shared);
  run_another(true);
}

LADA_UNSANITIZED void enter() {
  arrive_on(running->fiber);
  (*kernel)();
  end_thread();
}

void wait_for_all(State state, int& waiting, int first, int count) {
  running->state = state;
  if (++waiting == count) {
    waiting = 0;
    let_go(first, count);
  }
  run_another();
}

int warp_begin() { return running->rank * grid.threads + int(running->index) / kWarp * kWarp; }
int warp_size() { return std::min(kWarp, grid.threads - int(running->index) / kWarp * kWarp); }

// Wait until all lanes of the mask are here, and give each of them what take(lane) returns.
template <class Take> uint32_t collect(State state, uint32_t mask, Take take) {
  Thread& self = *running;
  if (!(mask >> self.index % kWarp & 1)) fail("a collective of lanes 0x%08x, which it is none of", mask);
  self.state = state;
  self.mask = mask;
  const int begin = warp_begin(), size = warp_size();
  const auto is_here = [&](int lane) {
    return lane < size && threads[begin + lane].state == state && threads[begin + lane].mask == mask;
  };
  bool complete = true;
  for (int lane = 0; lane < kWarp && complete; ++lane) complete = !(mask >> lane & 1) || is_here(lane);
  if (complete) {
    for (int lane = 0; lane < size; ++lane)
      if (mask >> lane & 1) threads[begin + lane].result = take(threads[begin + lane]);
    for (int lane = 0; lane < size; ++lane)
      if (mask >> lane & 1) let_go(threads[begin + lane]);
  }
  run_another();
  return self.result;
}

// Nobody can run, and these are not all at their end.
void explain_deadlock(int count) {
  int in_state[kStateCount] = {};
  for (int i = 0; i < count; ++i) ++in_state[int(threads[i].state)];
  int length = snprintf(error, sizeof error, "deadlock in the cluster of block %u, threads:", blocks[0].index);
  for (int state = 0; state < kStateCount; ++state)
    if (in_state[state]) length += snprintf(error + length, sizeof error - length, " %d %s;", in_state[state], kStates[state]);
  error[length - 1] = 0;
}

void run_cluster(int64_t first) {
  newest_first = draw(2);
  cluster_waiting = 0;
  ready.clear();
  blocks.clear();
  const int count = grid.cluster * grid.threads;
  while (int(threads.size()) < count) give_stack(threads.emplace_back().fiber);
  for (int rank = 0; rank < grid.cluster; ++rank) {
    Block& block = blocks.emplace_back();
    block.index = unsigned(first + rank);
    block.alive = grid.threads;
    block.shared.reset(static_cast<char*>(malloc(grid.shared)));
    memset(block.shared.get(), 0xff, grid.shared);
    for (int index = 0; index < grid.threads; ++index) {
      const int i = rank * grid.threads + index;
      threads[i].rank = rank;
      threads[i].index = unsigned(index);
      prepare(threads[i].fiber, i, &enter);
    }
  }
  let_go(0, count);
  run_another();
  const auto alive = [](const Block& block) { return block.alive != 0; };
  if (!*error && std::any_of(blocks.begin(), blocks.end(), alive)) explain_deadlock(count);
}

// Why CUDA would not start it.
bool refused() {
  const auto refuse = [](const char* what, long long value) {
    return snprintf(error, sizeof error, "invalid configuration: %s %lld", what, value) > 0;
  };
  if (grid.threads < 1 || grid.threads > 1024) return refuse("threads of a block:", grid.threads);
  if (grid.blocks < 0 || grid.blocks > INT32_MAX) return refuse("blocks:", grid.blocks);
  if (grid.shared < 0 || grid.shared > settings.device.shared) return refuse("bytes of shared memory:", grid.shared);
  if (grid.cluster < 1 || grid.cluster > 8) return refuse("blocks of a cluster:", grid.cluster);
  if (grid.cluster > 1 && !settings.device.clusters) return refuse("blocks of a cluster, without such:", grid.cluster);
  if (grid.blocks % grid.cluster) return refuse("blocks that clusters do not divide:", grid.blocks);
  return false;
}

}  // namespace

void set_seed(uint64_t seed) { random_state = settings.seed = seed; }

const char* launch(const cuda::Grid& asked, const std::function<void()>& body) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  *error = 0;
  if (asked.blocks == 0) return nullptr;
  grid = asked;
  if (refused()) return error;
  kernel = &body;
  position.threads = dim3(unsigned(grid.threads));
  position.blocks = dim3(unsigned(grid.blocks));
  std::vector<int64_t> order(grid.blocks / grid.cluster);
  std::iota(order.begin(), order.end(), 0);
  for (size_t left = order.size(); left && !*error; --left) {
    std::swap(order[draw(left)], order[left - 1]);
    run_cluster(order[left - 1] * grid.cluster);
  }
  blocks.clear();
  return *error ? error : nullptr;
}

float* shared_memory() { return reinterpret_cast<float*>(blocks[running->rank].shared.get()); }

const float* shared_of(const float* mine, int rank) {
  const int64_t offset = reinterpret_cast<const char*>(mine) - blocks[running->rank].shared.get();
  if (offset < 0 || offset >= grid.shared) fail("shared_of: byte %lld of shared memory", static_cast<long long>(offset));
  if (rank < 0 || rank >= grid.cluster) fail("shared_of: block %d of a cluster of %d", rank, grid.cluster);
  return reinterpret_cast<const float*>(blocks[rank].shared.get() + offset);
}

void block_barrier() {
  wait_for_all(State::BlockBarrier, blocks[running->rank].waiting, running->rank * grid.threads, grid.threads);
}

void cluster_barrier() {
  if (settings.device.clusters) wait_for_all(State::ClusterBarrier, cluster_waiting, 0, grid.cluster * grid.threads);
}

uint32_t shuffle(uint32_t mask, uint32_t bits, int source) {
  running->bits = bits;
  running->source = source;
  if (!(mask >> source & 1)) fail("shuffle from lane %d, outside of its mask 0x%08x", source, mask);
  return collect(State::Shuffle, mask, [begin = warp_begin()](const Thread& to) { return threads[begin + to.source].bits; });
}

uint32_t vote(uint32_t mask, bool predicate) {
  running->bits = predicate;
  return collect(State::Vote, mask, [begin = warp_begin(), mask](const Thread&) {
    uint32_t lanes = 0;
    for (int lane = 0; lane < kWarp; ++lane)
      if (mask >> lane & 1) lanes |= threads[begin + lane].bits << lane;
    return lanes;
  });
}

void warp_barrier(uint32_t mask) {
  collect(State::WarpBarrier, mask, [](const Thread&) { return 0u; });
}

void fail(const char* format, ...) {
  const int length = snprintf(error, sizeof error, "thread %u of block %u: ", running->index, blocks[running->rank].index);
  va_list values;
  va_start(values, format);
  vsnprintf(error + length, sizeof error - length, format, values);
  va_end(values);
  switch_to(nullptr, true);
  __builtin_unreachable();
}

}  // namespace emulation
}  // namespace lada
