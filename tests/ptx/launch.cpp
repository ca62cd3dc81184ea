// A launch: what a device would refuse, and the order in which clusters, warps and lanes run.
#include <algorithm>
#include <cstring>

#include "decode.h"
#include "memory.h"

namespace ptx {
namespace {

constexpr uint64_t kMostJumps = uint64_t(1) << 32;  // of a warp: it hangs
constexpr uint32_t kNoPlace = ~0u;
const Instruction* running = nullptr;  // what the error is in

void check(const Device& device, const Module& module, const Kernel& kernel, const LaunchConfig& c) {
  const uint64_t threads = c.threads.count();
  if (module.architecture() > device.architecture) fail("the kernel is for sm_%d, the device is sm_%d", module.architecture(), device.architecture);
  if (c.blocks.count() == 0 || c.blocks.x > 0x7fffffff || c.blocks.y > 65535 || c.blocks.z > 65535)
    fail("invalid grid of %u x %u x %u blocks", c.blocks.x, c.blocks.y, c.blocks.z);
  if (threads == 0 || threads > kMostThreads || threads > uint64_t(kernel.most_threads) || c.threads.z > 64)
    fail("invalid block of %lu threads: the kernel takes up to %d", (unsigned long)threads, kernel.most_threads);
  if (kernel.wanted_threads && threads != uint64_t(kernel.wanted_threads)) fail("a block of %lu threads: the kernel takes %d", (unsigned long)threads, kernel.wanted_threads);
  if (int64_t(c.shared) + kernel.static_shared > std::min<int64_t>(device.shared, std::max<uint32_t>(c.most_shared, 48 << 10)))
    fail("%u bytes of shared memory and %u that were declared: the device has %ld, %u may be asked for at the launch", c.shared, kernel.static_shared, long(device.shared), c.most_shared);
  if (kernel.parameter_bytes > 4096) fail("%u bytes of parameters: up to 4096 can be passed", kernel.parameter_bytes);
  if (c.cluster > 1 && !device.clusters) fail("a cluster of %u blocks: the device has no clusters", c.cluster);
  if (c.cluster == 0 || c.cluster > 8 || c.blocks.x % c.cluster) fail("clusters of %u blocks in a grid of %u", c.cluster, c.blocks.x);
}

// ---- blocks ----

// What a special register holds that is the same for all threads of a block; false: it is each thread's own.
bool special_of(const Block& block, std::string_view name, uint32_t& value) {
  const LaunchConfig& c = block.grid->config;
  const uint64_t plane = uint64_t(c.blocks.x) * c.blocks.y;
  const uint32_t x = uint32_t(block.index % c.blocks.x);
  if (name == "%ctaid.x") value = x;
  else if (name == "%ctaid.y") value = uint32_t(block.index % plane / c.blocks.x);
  else if (name == "%ctaid.z") value = uint32_t(block.index / plane);
  else if (name == "%nctaid.x") value = c.blocks.x;
  else if (name == "%nctaid.y") value = c.blocks.y;
  else if (name == "%nctaid.z") value = c.blocks.z;
  else if (name == "%ntid.x") value = c.threads.x;
  else if (name == "%ntid.y") value = c.threads.y;
  else if (name == "%ntid.z") value = c.threads.z;
  else if (name == "%cluster_ctarank" || name == "%cluster_ctaid.x") value = uint32_t(block.rank);
  else if (name == "%cluster_nctarank" || name == "%cluster_nctaid.x") value = c.cluster;
  else if (name == "%clusterid.x") value = x / c.cluster;
  else if (name == "%nclusterid.x") value = c.blocks.x / c.cluster;
  else return false;
  return true;
}

uint32_t special_of(const Dim& threads, uint32_t thread, std::string_view name) {
  const uint32_t lane = thread % kLanes;
  if (name == "%tid.x") return thread % threads.x;
  if (name == "%tid.y") return thread / threads.x % threads.y;
  if (name == "%tid.z") return thread / threads.x / threads.y;
  if (name == "%laneid") return lane;
  if (name == "%warpid") return thread / kLanes;
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return (2u << lane) - 1;
  if (name == "%lanemask_eq") return 1u << lane;
  if (name == "%lanemask_ge") return ~((1u << lane) - 1);
  if (name == "%lanemask_gt") return ~((2u << lane) - 1);
  fail("unknown name %s", string_of(name).c_str());
}

void set_constants(const Kernel& kernel, std::byte* frame) {
  memset(frame, 0xff, kernel.frame_bytes);  // NaN
  for (const Constant& constant : kernel.constants) {
    if (!constant.width) memcpy(frame + constant.place, &constant.bits, 4);
    for (uint32_t l = 0; constant.width && l < kLanes; ++l) memcpy(frame + constant.place + l * std::max(2u, constant.width), &constant.bits, std::max(2u, constant.width));
  }
}

void begin(Block& block, Grid& grid, Cluster& cluster, int rank, uint64_t index) {
  block.grid = &grid, block.cluster = &cluster, block.rank = rank, block.index = index;
  block.time = 0;
  std::fill_n(block.arrived, kBarriers, 0);
  const size_t bytes = grid.kernel.static_shared + grid.config.shared;
  block.shared.assign(bytes, std::byte(0xff));
  block.shadows.assign(bytes / grid.kernel.granule + 1, Shadow());
  const int threads = int(grid.config.threads.count());
  block.local.assign(size_t((threads + kLanes - 1) / kLanes * kLanes) * grid.kernel.local_bytes, std::byte(0xff));
  for (Warp& w : block.warps) {
    const int here = std::min(kLanes, threads - w.index * kLanes);
    w.block = &block;
    w.lanes = w.alive = here == kLanes ? ~0u : (1u << here) - 1;
    w.waiting = w.cluster_arrived = w.cluster_passed = 0;
    w.time = 0;
    std::fill_n(w.at, kLanes, 0);
    w.copies.clear(), w.uncommitted.clear();
    for (const auto& [name, place] : grid.kernel.specials) {
      uint32_t value;
      if (special_of(block, name, value)) std::fill_n(w.at_place<uint32_t>(place), kLanes, value);
      else for (int l = 0; l < kLanes; ++l) w.at_place<uint32_t>(place)[l] = special_of(grid.config.threads, uint32_t(w.thread(l)), name);
    }
  }
}

void release_block(Block& block, uint32_t barrier) {
  block.arrived[barrier] = 0;
  block.time = ++block.grid->clock;
  for (Warp& w : block.warps) {
    for (uint32_t rest = w.waiting; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      const Instruction& at = block.grid->kernel.code[w.at[l]];
      if (at.flow != Flow::BlockBarrier || at.option != barrier) continue;
      w.waiting &= ~(1u << l);
      ++w.at[l];
    }
    w.time = block.time;
  }
}

void release_cluster(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.alive) return;
  cluster.arrived = 0;
  cluster.time = ++cluster.blocks[0]->grid->clock;
  for (Block* block : cluster.blocks) {
    block->time = cluster.time;
    for (Warp& w : block->warps) {
      w.time = cluster.time;
      w.cluster_passed |= w.cluster_arrived;
      w.cluster_arrived = 0;
      for (uint32_t rest = w.waiting; rest; rest &= rest - 1)
        if (const int l = __builtin_ctz(rest); block->grid->kernel.code[w.at[l]].flow == Flow::ClusterWait) w.waiting &= ~(1u << l);
    }
  }
}

// ---- warps ----

void send(Warp& w, uint32_t lanes, uint32_t to) {
  for (; lanes; lanes &= lanes - 1) w.at[__builtin_ctz(lanes)] = to;
}

// The lanes of `wanted` meet at instruction `pc`: those of `on` have come. Returns whether all are there; else they wait.
bool met(Warp& w, uint32_t pc, uint32_t on, uint32_t wanted, uint32_t& together) {
  together = on;
  for (uint32_t rest = w.waiting; rest; rest &= rest - 1)
    if (const int l = __builtin_ctz(rest); w.at[l] == pc) together |= 1u << l;
  if ((wanted & ~together) == 0) {
    w.waiting &= ~together;
    return true;
  }
  send(w, on, pc);
  w.waiting |= on;
  return false;
}

// Run the lanes at `pc`, until they diverge, wait, end, or come to where others are.
void run_group(Warp& w, uint32_t group, uint32_t pc, uint32_t others, uint64_t& jumps) {
  const Instruction* code = w.block->grid->kernel.code.data();
  for (;;) {
    const Instruction& i = code[pc];
    running = &i;
    const uint32_t on = i.guard < 0 ? group : group & (i.negated ? ~w.predicate(uint32_t(i.guard)) : w.predicate(uint32_t(i.guard)));
    uint32_t together;
    switch (i.flow) {
      case Flow::Next:
        if (on) i.run(w, i, on);
        if (++pc >= others) return send(w, group, pc);
        continue;
      case Flow::Branch:
        if (++jumps > kMostJumps) fail("the kernel does not end");
        if (on != group && on) return send(w, group & ~on, pc + 1), send(w, on, i.target);
        pc = on ? i.target : pc + 1;
        if (pc >= others) return send(w, group, pc);
        continue;
      case Flow::Exit:
        w.alive &= ~on;
        w.block->cluster->alive -= __builtin_popcount(on);
        if (on) release_cluster(*w.block->cluster);
        return send(w, group & ~on, pc + 1);
      case Flow::Collective: {
        send(w, group & ~on, pc + 1);
        if (!on) return;
        const uint32_t* masks = w.at_place<uint32_t>(i.c[3]);
        const int first = __builtin_ctz(on);
        const uint32_t mask = masks[first] & w.lanes;
        for (uint32_t rest = on; rest; rest &= rest - 1) {
          const int l = __builtin_ctz(rest);
          if (masks[l] != masks[first]) fail_at(w, l, "the masks of lanes differ: %#010x and %#010x", masks[first], masks[l]);
          if (!(mask >> l & 1)) fail_at(w, l, "is not in its own mask %#010x", masks[l]);
        }
        if (mask & ~w.alive) fail_at(w, first, "the mask %#010x has lanes that have ended: %#010x", mask, mask & ~w.alive);
        if (!met(w, pc, on, mask, together)) return;
        i.run(w, i, together);
        if (together != group) return send(w, together, pc + 1);
        if (++pc >= others) return send(w, group, pc);
        continue;
      }
      case Flow::BlockBarrier: {
        send(w, group & ~on, pc + 1);
        if (!on || (i.aligned && !met(w, pc, on, w.alive, together))) return;
        if (!i.aligned) together = on;
        const int all = int(w.block->grid->config.threads.count());
        if (i.c[0] && int(i.c[0]) != all) fail("a barrier of %u of a block's %d threads is not known here", i.c[0], all);
        send(w, together, pc);
        w.waiting |= together;
        w.block->arrived[i.option] += __builtin_popcount(together);
        if (w.block->arrived[i.option] == all) release_block(*w.block, i.option);
        return;
      }
      case Flow::ClusterWait:
        send(w, group & ~on, pc + 1);
        if (const uint32_t early = on & ~(w.cluster_arrived | w.cluster_passed)) fail_at(w, __builtin_ctz(early), "waits at the cluster's barrier without having arrived");
        release_cluster(*w.block->cluster);
        w.waiting |= on & w.cluster_arrived;
        send(w, on & w.cluster_arrived, pc);
        send(w, on & w.cluster_passed, pc + 1);
        w.cluster_passed &= ~on | w.cluster_arrived;
        return;
    }
  }
}

// Run a warp until all of its lanes wait or have ended.
void run_warp(Warp& w) {
  uint64_t jumps = 0;
  while (const uint32_t ready = w.alive & ~w.waiting) {
    uint32_t lowest = kNoPlace, others = kNoPlace, group = 0;
    for (uint32_t rest = ready; rest; rest &= rest - 1) lowest = std::min(lowest, w.at[__builtin_ctz(rest)]);
    for (uint32_t rest = ready; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      if (w.at[l] == lowest) group |= 1u << l;
      else others = std::min(others, w.at[l]);
    }
    run_group(w, group, lowest, others, jumps);
  }
}

[[noreturn]] void deadlock(const Grid& grid, const Cluster& cluster) {
  std::map<std::string, int> waiting;
  for (const Block* block : cluster.blocks)
    for (const Warp& w : block->warps)
      for (int l = 0; l < kLanes; ++l) {
        if (!(w.lanes >> l & 1)) continue;
        const int line = grid.kernel.code[w.at[l]].line;
        ++waiting[w.alive >> l & 1 ? "wait at line " + std::to_string(line) + ": " + string_of(grid.module.line(line)) : "have ended"];
      }
  std::string text;
  for (const auto& [where, count] : waiting) text += (text.empty() ? "" : "; ") + std::to_string(count) + " threads " + where;
  fail("deadlock in the cluster of block %lu: %s", (unsigned long)cluster.blocks[0]->index, text.c_str());
}

void run_cluster(Grid& grid, Cluster& cluster) {
  std::vector<Warp*> warps;
  for (;;) {
    warps.clear();
    for (Block* block : cluster.blocks)
      for (Warp& w : block->warps)
        if (w.alive & ~w.waiting) warps.push_back(&w);
    if (warps.empty()) break;
    // In some rounds one warp runs far ahead of the others, from barrier to barrier.
    std::shuffle(warps.begin(), warps.end(), grid.random);
    for (Warp* w : warps) {
      run_warp(*w);
      if (grid.random() % 4 == 0) break;
    }
  }
  for (const Block* block : cluster.blocks)
    for (const Warp& w : block->warps)
      if (w.alive) deadlock(grid, cluster);
}

}  // namespace

void launch(const Device& device, Module& module, Kernel& kernel, const LaunchConfig& config, const std::byte* parameters,
            std::mt19937_64& random) {
  std::vector<Block> blocks(config.cluster);
  std::vector<std::vector<std::byte>> frames;
  running = nullptr;
  try {
    check(device, module, kernel, config);
    Grid grid{device, module, kernel, config, parameters, 1, 0, random};
    for (Block& block : blocks)
      for (int index = 0; index * kLanes < int(config.threads.count()); ++index) {
        frames.emplace_back(kernel.frame_bytes + 64);
        Warp& w = block.warps.emplace_back();
        w.frame = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(frames.back().data()) + 63) / 64 * 64);
        w.index = index;
        set_constants(kernel, w.frame);
      }
    std::vector<uint64_t> order(config.blocks.count() / config.cluster);
    for (uint64_t k = 0; k < order.size(); ++k) order[k] = k;
    std::shuffle(order.begin(), order.end(), random);
    for (const uint64_t first : order) {
      Cluster cluster;
      cluster.alive = int(config.cluster * config.threads.count());
      for (Block& block : blocks) cluster.blocks.push_back(&block);
      for (uint32_t rank = 0; rank < config.cluster; ++rank) begin(blocks[rank], grid, cluster, int(rank), first * config.cluster + rank);
      run_cluster(grid, cluster);
    }
  } catch (const Error& error) {
    const int line = running ? running->line : 0;
    const std::string where = line ? ", line " + std::to_string(line) + ": " + string_of(module.line(line)) : "";
    fail("%s%s: %s", kernel.name.c_str(), where.c_str(), error.what());
  }
}

}  // namespace ptx
