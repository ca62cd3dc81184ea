// The machine that executes PTX on the CPU: what a kernel is once parsed, and the state of a grid while it runs.
//
// A warp executes an instruction for all of its active lanes at once: registers lie in the warp's frame as 32 values side by
// side. Lanes that diverge have program counters of their own; the lanes with the lowest one run, so they meet again. Which
// warp, and which cluster of blocks, goes on next is drawn from a seed. Memory is checked at every access (memory.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace ptx {

constexpr int kLanes = 32, kMostThreads = 1024, kBarriers = 16;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The device that launches are for. `blur`: approximate instructions err at random, within what the PTX manual allows.
struct Device {
  int architecture = 90, processors = 132;
  int64_t shared = 227 << 10;  // bytes of shared memory that a block can ask for
  bool clusters = true, blur = false;

  bool operator==(const Device&) const = default;
};

struct Warp;
struct Instruction;
using Run = void (*)(Warp&, const Instruction&, uint32_t lanes);

enum class Flow : uint8_t { Next, Branch, Exit, Collective, BlockBarrier, ClusterWait };

struct Instruction {
  Run run = nullptr;
  Flow flow = Flow::Next;
  bool negated = false, aligned = false;
  uint8_t bytes = 0, count = 0;  // of an access: bytes of an element, elements
  int32_t guard = -1;            // place of the predicate in the frame
  uint32_t target = 0;           // of a branch
  int64_t offset = 0;            // of an address
  uint32_t option = 0;           // a constant of the instruction's own
  uint32_t d[8] = {}, a[8] = {}, b[4] = {}, c[4] = {};  // places of registers and constants in the frame, in bytes
  int line = 0;
};

struct Parameter {
  std::string name;
  uint32_t place, bytes;
};

// A value that frames start with: a constant, or a special register.
struct Constant {
  uint32_t place, width;
  uint64_t bits;
};

struct Kernel {
  std::string name;
  int first_line = 0, most_threads = kMostThreads, wanted_threads = 0;  // .maxntid, .reqntid
  std::string_view body;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  bool decoded = false;
  std::vector<Instruction> code;
  std::vector<Constant> constants;
  std::map<std::string, uint32_t> specials;  // special registers that are read -> place
  uint32_t frame_bytes = 0, static_shared = 0, local_bytes = 0;
  uint32_t granule = 4;  // the smallest access to shared memory, in bytes
};

// A module of PTX. Kernels are decoded when they are first launched.
class Module {
 public:
  explicit Module(std::string text);
  Kernel& kernel(const std::string& name);
  std::vector<std::string> kernels() const;
  std::string_view line(int number) const;
  int architecture() const { return architecture_; }

 private:
  void decode(Kernel& kernel);
  std::string text_;
  int architecture_ = 0;
  std::map<std::string, Kernel> kernels_;
  std::map<std::string, uint32_t> shared_;  // static variables outside of kernels -> bytes; 0: the dynamic memory
  std::vector<std::string_view> lines_;
};

struct Block;
struct Grid;

struct Copy {  // cp.async on its way
  int lane;
  uint32_t to, bytes, filled;
  uint64_t from;
};

struct Warp {
  std::byte* frame = nullptr;
  Block* block = nullptr;
  uint32_t lanes = 0, alive = 0, waiting = 0;  // that there are; have not ended; wait at a barrier or for the rest of a mask
  uint32_t at[kLanes] = {};                    // program counters
  uint32_t cluster_arrived = 0, cluster_passed = 0;
  int index = 0;
  uint32_t time = 0;  // of the last synchronisation of the warp
  std::deque<std::vector<Copy>> copies;
  std::vector<Copy> uncommitted;

  template <class T> T* at_place(uint32_t place) { return reinterpret_cast<T*>(frame + place); }
  uint32_t& predicate(uint32_t place) { return *at_place<uint32_t>(place); }
  int thread(int lane) const { return index * kLanes + lane; }
};

struct Shadow {  // what is known of a granule of shared memory
  int32_t writer = -1, reader = -1;
  uint32_t written = 0, read : 30 = 0;  // when
  uint32_t readers : 2 = 0;             // 0: one thread, 1: several of a warp, 2: of a block, 3: of a cluster
  uint32_t store = 0;                   // which store wrote it
};

struct Cluster {
  uint32_t time = 0;
  int arrived = 0, alive = 0;
  std::vector<Block*> blocks;
};

struct Block {
  Grid* grid = nullptr;
  Cluster* cluster = nullptr;
  int rank = 0;
  uint64_t index = 0;
  uint32_t time = 0;
  int arrived[kBarriers] = {};
  std::vector<Warp> warps;
  std::vector<std::byte> shared;
  std::vector<Shadow> shadows;
  std::vector<std::byte> local;
};

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

struct LaunchConfig {
  Dim blocks, threads;
  uint32_t shared = 0, most_shared = 48 << 10;  // dynamic bytes, and how many of them were asked for by attribute
  uint32_t cluster = 1;
};

struct Grid {
  const Device& device;
  const Module& module;
  const Kernel& kernel;
  LaunchConfig config;
  const std::byte* parameters;
  uint32_t clock = 1;  // counts synchronisations
  uint32_t store = 0;  // counts stores
  std::mt19937_64& random;
};

// Run a kernel to its end; `parameters` has the bytes of all parameters. Throws Error.
void launch(const Device& device, Module& module, Kernel& kernel, const LaunchConfig& config, const std::byte* parameters,
            std::mt19937_64& random);

// One statement, as the decoders of instructions take it apart (decode.h).
class Statement;
using Decode = void (*)(Statement&, Instruction&);
const std::map<std::string_view, Decode>& arithmetic();
const std::map<std::string_view, Decode>& logic();
const std::map<std::string_view, Decode>& conversions();
const std::map<std::string_view, Decode>& memory_accesses();
const std::map<std::string_view, Decode>& collectives();

// body(lane) for each lane of a mask
template <class Body> inline void each(uint32_t lanes, Body body) {
  if (lanes == ~0u) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) body(lane);
  } else {
    for (; lanes; lanes &= lanes - 1) body(__builtin_ctz(lanes));
  }
}

}  // namespace ptx
