// What the lanes of a warp, the threads of a block and the blocks of a cluster do together.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "decode.h"
#include "memory.h"
#include "numbers.h"

namespace ptx {
namespace {

// The mask is the last operand; the instruction runs once all of its lanes are there (launch.cpp).
void collective(Statement& s, Instruction& i, size_t mask) {
  i.flow = Flow::Collective;
  i.c[3] = s.source(mask, Type::B32);
}

// ---- shuffles, votes, reductions ----

enum Direction : uint32_t { kUp, kDown, kXor, kIndex };

void shuffle(Warp& w, const Instruction& i, uint32_t on) {
  uint32_t* d = w.at_place<uint32_t>(i.d[0]);
  const uint32_t *a = w.at_place<uint32_t>(i.a[0]), *b = w.at_place<uint32_t>(i.b[0]), *c = w.at_place<uint32_t>(i.c[0]);
  uint32_t values[kLanes], inside = 0;
  memcpy(values, a, sizeof values);
  for (uint32_t rest = on; rest; rest &= rest - 1) {
    const int l = __builtin_ctz(rest);
    const int segment = c[l] >> 8 & 31, clamp = c[l] & 31, by = b[l] & 31;
    const int last = (l & segment) | (clamp & ~segment), first = l & segment;
    int from;
    bool there;
    switch (i.option) {
      case kUp: from = l - by, there = from >= last; break;
      case kDown: from = l + by, there = from <= last; break;
      case kXor: from = l ^ by, there = from <= last; break;
      default: from = first | (by & ~segment), there = from <= last;
    }
    if (!there) from = l;
    if (!(on >> from & 1)) fail_at(w, l, "shuffles from lane %d, which takes no part: %#010x do", from, on);
    d[l] = values[from];
    inside |= uint32_t(there) << l;
  }
  if (i.count == 2) {
    uint32_t& p = w.predicate(i.d[1]);
    p = (p & ~on) | (inside & on);
  }
}

void decode_shfl(Statement& s, Instruction& i) {
  if (!s.take("sync")) s.unknown("only .sync");
  i.option = s.take("up") ? kUp : s.take("down") ? kDown : s.take("bfly") ? kXor : kIndex;
  if (i.option == kIndex && !s.take("idx")) s.unknown("no such mode");
  if (s.type() != Type::B32) s.unknown("of this type");
  const auto targets = s.parts(0);
  i.count = uint8_t(targets.size());
  i.d[0] = s.target(targets[0], Type::B32);
  if (i.count == 2) i.d[1] = s.target(targets[1], Type::Pred);
  i.a[0] = s.source(1, Type::B32), i.b[0] = s.source(2, Type::B32), i.c[0] = s.source(3, Type::B32);
  collective(s, i, 4);
  i.run = shuffle;
}

enum Vote : uint32_t { kAll, kAny, kUniform, kBallot };

void vote(Warp& w, const Instruction& i, uint32_t on) {
  const uint32_t holds = (i.aligned ? ~w.predicate(i.a[0]) : w.predicate(i.a[0])) & on;
  if (i.option == kBallot) {
    uint32_t* d = w.at_place<uint32_t>(i.d[0]);
    return each(on, [&](int l) { d[l] = holds; });
  }
  const bool result = i.option == kAll ? holds == on : i.option == kAny ? holds != 0 : holds == on || holds == 0;
  uint32_t& p = w.predicate(i.d[0]);
  p = result ? p | on : p & ~on;
}

void decode_vote(Statement& s, Instruction& i) {
  if (!s.take("sync")) s.unknown("only .sync");
  i.option = s.take("all") ? kAll : s.take("any") ? kAny : s.take("uni") ? kUniform : kBallot;
  if (i.option == kBallot && !s.take("ballot")) s.unknown("no such mode");
  const Type type = s.type();
  if (type != (i.option == kBallot ? Type::B32 : Type::Pred)) s.unknown("of this type");
  i.d[0] = s.target(0, type);
  std::string_view predicate = s.text(1);
  i.aligned = predicate[0] == '!';
  i.a[0] = s.source(i.aligned ? predicate.substr(1) : predicate, Type::Pred);
  collective(s, i, 2);
  i.run = vote;
}

template <class T, auto f> void reduce(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T* a = w.at_place<T>(i.a[0]);
  T result = a[__builtin_ctz(on)];
  for (uint32_t rest = on & (on - 1); rest; rest &= rest - 1) result = f(result, a[__builtin_ctz(rest)]);
  each(on, [&](int l) { d[l] = result; });
}

// The smaller or larger of two, -0 below +0; NaN if one of them is, or only if both are.
template <bool LARGER, bool KEEPS_NAN> constexpr auto extreme = [](float a, float b) {
  if (a != a || b != b) return (a != a) == KEEPS_NAN ? a : b;
  return (LARGER ? a > b : a < b) || (a == b && std::signbit(a) != LARGER) ? a : b;
};

void decode_redux(Statement& s, Instruction& i) {
  if (!s.take("sync")) s.unknown("only .sync");
  const std::string_view name = s.take();
  const bool nan = s.take("NaN"), max = name == "max", orders = max || name == "min";
  const Type type = s.type();
  if (size_of(type) != 4 || (nan && type != Type::F32) || (!orders && type == Type::F32)) s.unknown("of this type");
  i.d[0] = s.target(0, type), i.a[0] = s.source(1, type);
  collective(s, i, 2);
  constexpr auto larger = [](auto a, auto b) { return a > b ? a : b; };
  constexpr auto smaller = [](auto a, auto b) { return a < b ? a : b; };
  if (name == "add") i.run = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a + b; }>;
  else if (name == "and") i.run = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a & b; }>;
  else if (name == "or") i.run = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a | b; }>;
  else if (name == "xor") i.run = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a ^ b; }>;
  else if (!orders) s.unknown("no such reduction");
  else if (type == Type::F32 && nan) i.run = max ? reduce<float, extreme<true, true>> : reduce<float, extreme<false, true>>;
  else if (type == Type::F32) i.run = max ? reduce<float, extreme<true, false>> : reduce<float, extreme<false, false>>;
  else if (type == Type::S32) i.run = max ? reduce<int32_t, larger> : reduce<int32_t, smaller>;
  else i.run = max ? reduce<uint32_t, larger> : reduce<uint32_t, smaller>;
}

void decode_elect(Statement& s, Instruction& i) {  // the lowest lane of the mask
  if (!s.take("sync")) s.unknown("only .sync");
  const auto targets = s.parts(0);
  i.d[0] = s.target(targets.at(0), Type::B32), i.d[1] = s.target(targets.at(1), Type::Pred);
  collective(s, i, 1);
  i.run = [](Warp& w, const Instruction& i, uint32_t on) {
    uint32_t *d = w.at_place<uint32_t>(i.d[0]), &p = w.predicate(i.d[1]);
    const int leader = __builtin_ctz(on);
    each(on, [&](int l) { d[l] = uint32_t(leader); });
    p = (p & ~on) | 1u << leader;
  };
}

void decode_activemask(Statement& s, Instruction& i) {
  if (s.type() != Type::B32) s.unknown("of this type");
  i.d[0] = s.target(0, Type::B32);
  i.run = [](Warp& w, const Instruction& i, uint32_t on) {
    uint32_t* d = w.at_place<uint32_t>(i.d[0]);
    each(on, [&](int l) { d[l] = on; });
  };
}

// ---- barriers ----

void synchronise_warp(Warp& w, const Instruction&, uint32_t on) {
  if (on == w.alive) w.time = ++w.block->grid->clock;  // a part of the warp is not taken for all of it
}

void decode_bar(Statement& s, Instruction& i) {
  if (s.take("warp")) {
    if (!s.take("sync")) s.unknown("only .sync");
    collective(s, i, 0);
    i.run = synchronise_warp;
    return;
  }
  if (s.take("cluster")) {
    if (s.take("wait")) {
      s.take("acquire");
      i.flow = Flow::ClusterWait;
    } else if (s.take("arrive")) {
      if (!s.take("release")) s.take("relaxed");
      i.run = [](Warp& w, const Instruction&, uint32_t on) {
        if (const uint32_t twice = on & (w.cluster_arrived | w.cluster_passed))
          fail_at(w, __builtin_ctz(twice), "arrives at the cluster's barrier twice without waiting");
        w.cluster_arrived |= on;
        w.block->cluster->arrived += __builtin_popcount(on);
      };
    } else {
      s.unknown("no such barrier");
    }
    s.take("aligned");
    return;
  }
  s.take("cta");
  if (!s.take("sync")) s.unknown("only .sync");
  i.aligned = s.take("aligned") || s.op == "bar";
  i.option = uint32_t(s.number(0));
  i.c[0] = s.count() > 1 ? uint32_t(s.number(1)) : 0;
  if (i.option >= kBarriers) s.unknown("no such barrier");
  i.flow = Flow::BlockBarrier;
}

void decode_fence(Statement& s, Instruction& i) {  // memory is sequentially consistent here
  for (const char* known : {"sc", "acq_rel", "acquire", "release", "cta", "cluster", "gpu", "gl", "sys"}) s.take(known);
  i.run = [](Warp&, const Instruction&, uint32_t) {};
}

// ---- tensor cores ----

template <class T> float element(const Warp& w, uint32_t place, int lane, int half) {
  T value;
  memcpy(&value, w.frame + place + 4 * lane + int(sizeof(T)) * half, sizeof value);
  return float(value);
}

// d = a b + c of 16x8 in float32, k = 16 or 8 (option), with the fragments that the PTX manual draws: row g = lane / 4 and
// pairs of columns 2 (lane % 4). Products are exact; sums are kept in float64 and rounded once.
template <class T> void multiply(Warp& w, const Instruction& i, uint32_t on) {
  if (on != ~0u) fail_at(w, __builtin_ctz(on), "mma by some lanes only");
  constexpr int kPer = 4 / int(sizeof(T));  // elements of a register
  const int depth = int(i.option);
  float a[16][16], b[16][8];
  for (int l = 0; l < kLanes; ++l)
    for (int k = 0; k < depth / (4 * kPer); ++k)
      for (int half = 0; half < kPer; ++half) {
        const int g = l / 4, column = kPer * (l % 4) + half + 4 * kPer * k;
        a[g][column] = element<T>(w, i.a[2 * k], l, half);
        a[g + 8][column] = element<T>(w, i.a[2 * k + 1], l, half);
        b[column][g] = element<T>(w, i.b[k], l, half);
      }
  for (int r = 0; r < 4; ++r) {
    float results[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int row = l / 4 + r / 2 * 8, column = 2 * (l % 4) + r % 2;
      double sum = w.at_place<float>(i.c[r])[l];
      for (int k = 0; k < depth; ++k) sum += double(a[row][k]) * b[k][column];
      results[l] = float(sum);
    }
    memcpy(w.frame + i.d[r], results, sizeof results);
  }
}

struct Tf32 {
  uint32_t bits;
  explicit operator float() const {
    const uint32_t kept = bits & ~0x1fffu;
    float value;
    memcpy(&value, &kept, sizeof value);
    return value;
  }
};

// d [8,8] = a [8,4] b [4,8] + c in float64.
void multiply_doubles(Warp& w, const Instruction& i, uint32_t on) {
  if (on != ~0u) fail_at(w, __builtin_ctz(on), "mma by some lanes only");
  const double *a = w.at_place<double>(i.a[0]), *b = w.at_place<double>(i.b[0]);
  double results[2][kLanes];
  for (int r = 0; r < 2; ++r)
    for (int l = 0; l < kLanes; ++l) {
      double sum = w.at_place<double>(i.c[r])[l];
      for (int k = 0; k < 4; ++k) sum = std::fma(a[l / 4 * 4 + k], b[(2 * (l % 4) + r) * 4 + k], sum);
      results[r][l] = sum;
    }
  for (int r = 0; r < 2; ++r) memcpy(w.frame + i.d[r], results[r], sizeof results[r]);
}

void decode_mma(Statement& s, Instruction& i) {
  if (!s.take("sync") || !s.take("aligned")) s.unknown("only .sync.aligned");
  const std::string_view shape = s.take();
  if (!s.take("row") || !s.take("col")) s.unknown("only .row.col");
  const bool doubles = s.take("f64");
  if (!doubles && !s.take("f32")) s.unknown("only sums in .f32 or .f64");
  const std::string_view kind = s.take();
  if (s.take() != kind || s.take() != (doubles ? "f64" : "f32")) s.unknown("of mixed types");
  if (shape == "m16n8k16") i.option = 16;
  else if (shape == "m16n8k8") i.option = 8;
  else if (shape == "m16n8k4") i.option = 4;
  else if (!doubles || shape != "m8n8k4") s.unknown("no such shape");
  if (doubles && shape == "m8n8k4") i.run = multiply_doubles;
  else if (kind == "f16" && i.option >= 8) i.run = multiply<Half>;
  else if (kind == "bf16" && i.option >= 8) i.run = multiply<Bfloat>;
  else if (kind == "tf32" && i.option <= 8) i.run = multiply<Tf32>;
  else s.unknown("of this type");
  const Type word = doubles ? Type::F64 : Type::B32;
  const auto d = s.parts(0), a = s.parts(1), b = s.parts(2), c = s.parts(3);
  const size_t results = doubles ? 2 : 4, halves = doubles ? 1 : i.option / (kind == "tf32" ? 4 : 8);  // registers of b
  if (d.size() != results || c.size() != results || a.size() != (doubles ? 1 : 2 * halves) || b.size() != halves)
    s.unknown("another number of registers");
  for (size_t k = 0; k < d.size(); ++k) i.d[k] = s.target(d[k], word);
  for (size_t k = 0; k < a.size(); ++k) i.a[k] = s.source(a[k], word);
  for (size_t k = 0; k < b.size(); ++k) i.b[k] = s.source(b[k], word);
  for (size_t k = 0; k < c.size(); ++k) i.c[k] = s.source(c[k], word);
}

}  // namespace

const std::map<std::string_view, Decode>& collectives() {
  static const std::map<std::string_view, Decode> table = {
      {"shfl", decode_shfl}, {"vote", decode_vote},   {"redux", decode_redux}, {"elect", decode_elect},
      {"bar", decode_bar},   {"barrier", decode_bar}, {"fence", decode_fence}, {"membar", decode_fence},
      {"mma", decode_mma},   {"activemask", decode_activemask}};
  return table;
}

}  // namespace ptx
