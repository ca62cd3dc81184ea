// Instructions that access memory, and those on addresses.
#include <algorithm>
#include <cstring>

#include "decode.h"
#include "memory.h"

namespace ptx {
namespace {

enum Space : uint32_t { kGeneric, kGlobal, kShared, kLocal, kParameter };

// The address of each lane: `aligned` says that the base is 64 bits wide.
uint64_t address_of(Warp& w, const Instruction& i, int lane) {
  return uint64_t(i.offset) + (i.aligned ? w.at_place<uint64_t>(i.a[0])[lane] : w.at_place<uint32_t>(i.a[0])[lane]);
}

std::byte* parameter_at(const Warp& w, int lane, uint64_t address, uint32_t bytes) {
  const Grid& grid = *w.block->grid;
  if (address + bytes > grid.kernel.parameter_bytes) fail_at(w, lane, "out of bounds: reads %u bytes at %lu of the parameters", bytes, (unsigned long)address);
  if (address % bytes) fail_at(w, lane, "misaligned: reads %u bytes at %lu of the parameters", bytes, (unsigned long)address);
  return const_cast<std::byte*>(grid.parameters) + address;
}

std::byte* local_at(const Warp& w, int lane, uint64_t address, uint32_t bytes) {
  const uint32_t most = w.block->grid->kernel.local_bytes;
  if (address + bytes > most || address % bytes) fail_at(w, lane, "accesses %u bytes at %ld of %u of local memory", bytes, long(address), most);
  return w.block->local.data() + uint64_t(w.thread(lane)) * most + address;
}

std::byte* place_of(Warp& w, int lane, Space space, uint64_t address, uint32_t bytes, const void* value, int* unwritten = nullptr) {
  switch (space) {
    case kParameter: return parameter_at(w, lane, address, bytes);
    case kShared: return shared_at(w, lane, uint32_t(address), bytes, value, unwritten);
    case kLocal: return local_at(w, lane, address, bytes);
    case kGlobal: return global_memory.at(w, lane, address, bytes, value != nullptr);
    default:
      if (address >= kLocalWindow) return local_at(w, lane, address - kLocalWindow, bytes);
      if (address >= kSharedWindow) return shared_at(w, lane, uint32_t(address - kSharedWindow), bytes, value, unwritten);
      return global_memory.at(w, lane, address, bytes, value != nullptr);
  }
}

// An access of `count` elements must be aligned to all of them; each is then an access of its own.
void check_alignment(Warp& w, int lane, const Instruction& i, uint64_t address) {
  const uint32_t all = uint32_t(i.bytes) * i.count;
  if (address % all) fail_at(w, lane, "misaligned: %u bytes at %#lx", all, (unsigned long)address);
}

// b[0]: the width of the registers; b[1]: whether a narrower value is extended by its sign.
template <uint32_t SPACE> void load(Warp& w, const Instruction& i, uint32_t on) {
  const uint32_t width = i.b[0];
  for (; on; on &= on - 1) {
    const int l = __builtin_ctz(on);
    const uint64_t address = address_of(w, i, l);
    int unwritten = 0;
    if (i.count > 1) check_alignment(w, l, i, address);
    for (int k = 0; k < i.count; ++k) {
      const std::byte* from = place_of(w, l, Space(SPACE), address + uint64_t(k) * i.bytes, i.bytes, nullptr, i.count > 1 ? &unwritten : nullptr);
      std::byte* to = w.frame + i.d[k] + uint32_t(l) * width;
      if (width == i.bytes && width == 4) {
        memcpy(to, from, 4);
      } else {
        int64_t value = 0;
        memcpy(&value, from, i.bytes);
        if (i.b[1] && i.bytes < 8) value = value << (64 - 8 * i.bytes) >> (64 - 8 * i.bytes);
        memcpy(to, &value, width);
      }
    }
    if (unwritten && unwritten == i.bytes * i.count / int(w.block->grid->kernel.granule))
      fail_at(w, l, "reads %d bytes of shared memory that nobody wrote", i.bytes * i.count);
  }
}

template <uint32_t SPACE> void store(Warp& w, const Instruction& i, uint32_t on) {
  const uint32_t width = i.b[0];
  ++w.block->grid->store;
  for (; on; on &= on - 1) {
    const int l = __builtin_ctz(on);
    const uint64_t address = address_of(w, i, l);
    if (i.count > 1) check_alignment(w, l, i, address);
    for (int k = 0; k < i.count; ++k) {
      const std::byte* from = w.frame + i.d[k] + uint32_t(l) * width;
      memcpy(place_of(w, l, Space(SPACE), address + uint64_t(k) * i.bytes, i.bytes, from), from, i.bytes);
    }
  }
}

// A parameter's address is nearly always the same for all lanes.
void load_parameter(Warp& w, const Instruction& i, uint32_t on) { load<kParameter>(w, i, on); }

bool skip_hints(Statement& s) {
  bool any = false, more = true;
  while (more) {
    more = false;
    for (const char* hint : {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "weak", "volatile", "L1::no_allocate", "L1::evict_first",
                             "L1::evict_last", "L1::evict_normal", "L1::evict_unchanged", "L2::64B", "L2::128B", "L2::256B"})
      more |= s.take(hint);
    any |= more;
  }
  return any;
}

Space space_of(Statement& s) {
  if (s.take("global")) return kGlobal;
  if (s.take("shared") || s.take("shared::cta") || s.take("shared::cluster")) return kShared;
  if (s.take("local")) return kLocal;
  if (s.take("param") || s.take("param::entry")) return kParameter;
  return kGeneric;
}

template <bool LOADS> void decode_access(Statement& s, Instruction& i) {
  skip_hints(s);
  const Space space = space_of(s);
  skip_hints(s);
  for (const char* many : {"v2", "v4", "v8"})
    if (s.take(many)) i.count = uint8_t(many[1] - '0');
  const Type type = s.type();
  const size_t values = LOADS ? 0 : 1;
  const auto registers = s.parts(values);
  if (registers.size() != std::max<size_t>(1, i.count)) s.unknown("another number of registers");
  i.count = uint8_t(registers.size());
  i.bytes = uint8_t(size_of(type));
  i.b[0] = i.bytes == 1 ? 2 : i.bytes;
  for (const std::string_view name : registers) i.b[0] = std::max(i.b[0], s.width(name));
  i.b[1] = type == Type::S8 || type == Type::S16 || type == Type::S32;
  for (size_t k = 0; k < registers.size(); ++k) i.d[k] = LOADS ? s.target(registers[k], type, true) : s.source(registers[k], type, true);
  if (!LOADS && s.is_number(registers[0])) i.b[0] = std::max(2u, uint32_t(i.bytes));
  uint32_t width;
  i.a[0] = s.address(LOADS ? 1 : 0, i.offset, width);
  i.aligned = width == 8;
  if (space == kShared || space == kGeneric) s.scope.kernel.granule = std::min<uint32_t>(s.scope.kernel.granule, i.bytes);
  constexpr Run runs[] = {LOADS ? load<kGeneric> : store<kGeneric>, LOADS ? load<kGlobal> : store<kGlobal>,
                          LOADS ? load<kShared> : store<kShared>, LOADS ? load<kLocal> : store<kLocal>, load_parameter};
  if (!LOADS && space == kParameter) s.unknown("to parameters");
  i.run = runs[space];
}

// ---- addresses ----

template <uint64_t ADDED> void shift_window(Warp& w, const Instruction& i, uint32_t on) {
  uint64_t* d = w.at_place<uint64_t>(i.d[0]);
  const uint64_t* a = w.at_place<uint64_t>(i.a[0]);
  each(on, [&](int l) { d[l] = a[l] + ADDED; });
}

void decode_cvta(Statement& s, Instruction& i) {
  const bool to = s.take("to");
  const Space space = space_of(s);
  if (s.type() != Type::U64) s.unknown("of this type");
  i.d[0] = s.target(0, Type::U64), i.a[0] = s.source(1, Type::U64);
  switch (space) {
    case kGlobal: case kParameter: i.run = shift_window<0>; break;
    case kShared: i.run = to ? shift_window<0 - kSharedWindow> : shift_window<kSharedWindow>; break;
    case kLocal: i.run = to ? shift_window<0 - kLocalWindow> : shift_window<kLocalWindow>; break;
    default: s.unknown("of this space");
  }
}

// option: the address is generic
template <class T> void map_address(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T* a = w.at_place<T>(i.a[0]);
  const uint32_t* rank = w.at_place<uint32_t>(i.b[0]);
  each(on, [&](int l) {
    const size_t blocks = w.block->cluster->blocks.size();
    if (rank[l] >= blocks) fail_at(w, l, "maps an address to block %u of a cluster of %zu", rank[l], blocks);
    if (i.option && uint64_t(a[l]) < kSharedWindow) fail_at(w, l, "maps %#lx, which is no address of shared memory", (unsigned long)a[l]);
    d[l] = (a[l] & ~T(0xffu << kRankShift)) | T(rank[l] + 1) << kRankShift;
  });
}

void decode_mapa(Statement& s, Instruction& i) {
  i.option = !s.take("shared::cluster");
  const Type type = s.type();
  i.d[0] = s.target(0, type), i.a[0] = s.source(1, type), i.b[0] = s.source(2, Type::U32);
  i.run = type == Type::U64 ? map_address<uint64_t> : map_address<uint32_t>;
}

// ---- cp.async: what is copied arrives when it is waited for ----

void copy(Warp& w, const Instruction& i, uint32_t on) {
  for (; on; on &= on - 1) {
    const int l = __builtin_ctz(on);
    const uint32_t to = i.aligned ? uint32_t(w.at_place<uint64_t>(i.a[0])[l]) : w.at_place<uint32_t>(i.a[0])[l];
    const uint32_t filled = i.option ? w.at_place<uint32_t>(i.c[0])[l] : i.bytes;
    const uint64_t from = w.at_place<uint64_t>(i.b[0])[l] + uint64_t(int64_t(int32_t(i.b[1])));
    if (filled > i.bytes) fail_at(w, l, "cp.async of %u bytes of %u", filled, i.bytes);
    if ((to + uint32_t(i.offset)) % i.bytes || from % i.bytes) fail_at(w, l, "misaligned: cp.async of %u bytes", i.bytes);
    w.uncommitted.push_back({l, to + uint32_t(i.offset), i.bytes, filled, from});
  }
}

void land(Warp& w, const std::vector<Copy>& copies) {
  ++w.block->grid->store;
  for (const Copy& one : copies)
    for (uint32_t k = 0; k < one.bytes; k += 4) {
      uint32_t word = 0;
      if (k < one.filled) memcpy(&word, global_memory.at(w, one.lane, one.from + k, 4, false), 4);
      memcpy(shared_at(w, one.lane, one.to + k, 4, &word), &word, 4);
    }
}

void wait(Warp& w, const Instruction& i, uint32_t) {
  for (; w.copies.size() > i.option; w.copies.pop_front()) land(w, w.copies.front());
}

void decode_cp(Statement& s, Instruction& i) {
  if (!s.take("async")) s.unknown("only cp.async");
  if (s.take("commit_group")) {
    i.run = [](Warp& w, const Instruction&, uint32_t) {
      w.copies.push_back(std::move(w.uncommitted));
      w.uncommitted.clear();
    };
    return;
  }
  if (s.take("wait_group")) {
    i.option = uint32_t(s.number(0));
    i.run = wait;
    return;
  }
  skip_hints(s);
  if (space_of(s) != kShared || space_of(s) != kGlobal) s.unknown("only to shared memory from global");
  skip_hints(s);
  i.bytes = uint8_t(s.number(2));
  int64_t offset;
  uint32_t width;
  i.a[0] = s.address(0, i.offset, width);
  i.aligned = width == 8;
  i.b[0] = s.address(1, offset, width);
  i.b[1] = uint32_t(int32_t(offset));
  i.option = s.count() > 3;
  if (i.option) i.c[0] = s.source(3, Type::U32);
  if (i.bytes % 4) s.unknown("of this size");
  i.run = copy;
}

// ---- matrices of 8x8 16-bit elements ----

// Lane 8m + r gives the address of row r of matrix m; lane l takes elements 2(l%4) and 2(l%4)+1 of row l/4 of each.
template <bool LOADS> void matrices(Warp& w, const Instruction& i, uint32_t on) {
  if (on != ~0u) fail_at(w, __builtin_ctz(on), "a matrix is accessed by some lanes only");
  ++w.block->grid->store;
  for (int m = 0; m < i.count; ++m) {
    std::byte* rows[8];
    uint16_t values[8][8];
    for (int l = 0; !LOADS && l < kLanes; ++l)
      for (int k = 0; k < 2; ++k) {
        const int row = l / 4, column = 2 * (l % 4) + k;
        memcpy(i.option ? &values[column][row] : &values[row][column], w.frame + i.d[m] + 4 * l + 2 * k, 2);
      }
    for (int r = 0; r < 8; ++r) {
      const uint64_t address = address_of(w, i, 8 * m + r);
      if (address % 16) fail_at(w, 8 * m + r, "misaligned: a row of a matrix at %lu", (unsigned long)address);
      for (uint32_t k = 0; k < 16; k += 4) {
        std::byte* place = shared_at(w, 8 * m + r, uint32_t(address) + k, 4, LOADS ? nullptr : &values[r][k / 2]);
        if (k == 0) rows[r] = place;
      }
      LOADS ? memcpy(values[r], rows[r], 16) : memcpy(rows[r], values[r], 16);
    }
    for (int l = 0; LOADS && l < kLanes; ++l)
      for (int k = 0; k < 2; ++k) {
        const int row = l / 4, column = 2 * (l % 4) + k;
        memcpy(w.frame + i.d[m] + 4 * l + 2 * k, i.option ? &values[column][row] : &values[row][column], 2);
      }
  }
}

template <bool LOADS> void decode_matrix(Statement& s, Instruction& i) {
  if (!s.take("sync") || !s.take("aligned") || !s.take("m8n8")) s.unknown("only .sync.aligned.m8n8");
  i.count = s.take("x4") ? 4 : s.take("x2") ? 2 : 1;
  if (i.count == 1 && !s.take("x1")) s.unknown("expected .x1, .x2 or .x4");
  i.option = s.take("trans");
  if (space_of(s) != kShared || s.type() != Type::B16) s.unknown("only .shared.b16");
  const auto registers = s.parts(LOADS ? 0 : 1);
  if (registers.size() != i.count) s.unknown("another number of registers");
  for (size_t k = 0; k < registers.size(); ++k) i.d[k] = LOADS ? s.target(registers[k], Type::B32) : s.source(registers[k], Type::B32);
  uint32_t width;
  i.a[0] = s.address(LOADS ? 1 : 0, i.offset, width);
  i.aligned = width == 8;
  i.run = matrices<LOADS>;
}

}  // namespace

const std::map<std::string_view, Decode>& memory_accesses() {
  static const std::map<std::string_view, Decode> table = {
      {"ld", decode_access<true>}, {"st", decode_access<false>},      {"cvta", decode_cvta},
      {"mapa", decode_mapa},       {"cp", decode_cp},                 {"ldmatrix", decode_matrix<true>},
      {"stmatrix", decode_matrix<false>}};
  return table;
}

}  // namespace ptx
