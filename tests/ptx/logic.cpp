// Comparison, selection and bits.
#include <algorithm>

#include "lanes.h"
#include "numbers.h"

namespace ptx {
namespace {

// ---- comparison and selection ----

enum Combine : uint32_t { kPlain, kAnd, kOr, kXor };

template <class T, auto f> void compare(Warp& w, const Instruction& i, uint32_t on) {
  const T *a = w.at_place<T>(i.a[0]), *b = w.at_place<T>(i.b[0]);
  uint32_t holds = 0;
  for (int l = 0; l < kLanes; ++l) holds |= uint32_t(bool(f(a[l], b[l]))) << l;
  uint32_t not_so = ~holds;
  if (i.option != kPlain) {
    const uint32_t c = w.predicate(i.c[0]);
    holds = i.option == kAnd ? holds & c : i.option == kOr ? holds | c : holds ^ c;
    not_so = i.option == kAnd ? not_so & c : i.option == kOr ? not_so | c : not_so ^ c;
  }
  uint32_t &p = w.predicate(i.d[0]), &q = w.predicate(i.d[1]);
  p = (p & ~on) | (holds & on);
  if (i.count == 2) q = (q & ~on) | (not_so & on);
}

template <auto f> Run compares(Type type) {
  switch (type) {
    case Type::U16: case Type::B16: return compare<uint16_t, f>;
    case Type::S16: return compare<int16_t, f>;
    case Type::U32: case Type::B32: return compare<uint32_t, f>;
    case Type::S32: return compare<int32_t, f>;
    case Type::U64: case Type::B64: return compare<uint64_t, f>;
    case Type::S64: return compare<int64_t, f>;
    case Type::F16: return compare<Half, [](Half a, Half b) { return f(float(a), float(b)); }>;
    case Type::BF16: return compare<Bfloat, [](Bfloat a, Bfloat b) { return f(float(a), float(b)); }>;
    case Type::F32: return compare<float, f>;
    case Type::F64: return compare<double, f>;
    default: return nullptr;
  }
}

Run comparison(std::string_view name, Type type) {
  const bool is_unsigned = type >= Type::U8 && type <= Type::U64;
  const auto is = [&](std::string_view ordered, std::string_view same = "") {
    return name == ordered || (is_unsigned && !same.empty() && name == same);
  };
  if (is("eq")) return compares<[](auto a, auto b) { return a == b; }>(type);
  if (is("ne") && is_float(type)) return compares<[](auto a, auto b) { return (a < b) | (a > b); }>(type);
  if (is("ne")) return compares<[](auto a, auto b) { return a != b; }>(type);
  if (type < Type::U8) return nullptr;  // bits have no order
  if (is("lt", "lo")) return compares<[](auto a, auto b) { return a < b; }>(type);
  if (is("le", "ls")) return compares<[](auto a, auto b) { return a <= b; }>(type);
  if (is("gt", "hi")) return compares<[](auto a, auto b) { return (a > b); }>(type);
  if (is("ge", "hs")) return compares<[](auto a, auto b) { return (a >= b); }>(type);
  if (!is_float(type)) return nullptr;
  if (is("equ")) return compares<[](auto a, auto b) { return !(a < b || a > b); }>(type);
  if (is("neu")) return compares<[](auto a, auto b) { return !(a == b); }>(type);
  if (is("ltu")) return compares<[](auto a, auto b) { return !(a >= b); }>(type);
  if (is("leu")) return compares<[](auto a, auto b) { return !(a > b); }>(type);
  if (is("gtu")) return compares<[](auto a, auto b) { return !(a <= b); }>(type);
  if (is("geu")) return compares<[](auto a, auto b) { return !(a < b); }>(type);
  if (is("num")) return compares<[](auto a, auto b) { return a == a && b == b; }>(type);
  if (is("nan")) return compares<[](auto a, auto b) { return a != a || b != b; }>(type);
  return nullptr;
}

void decode_setp(Statement& s, Instruction& i) {
  const std::string_view name = s.take();
  i.option = s.take("and") ? kAnd : s.take("or") ? kOr : s.take("xor") ? kXor : kPlain;
  if (s.take("ftz")) s.unknown("flushed");
  const Type type = s.type();
  const auto targets = s.parts(0);
  i.count = uint8_t(targets.size());
  for (size_t k = 0; k < targets.size(); ++k) i.d[k] = s.target(targets[k], Type::Pred);
  i.a[0] = s.source(1, type), i.b[0] = s.source(2, type);
  if (i.option != kPlain) {
    if (s.text(3)[0] == '!') s.unknown("with a negated predicate");
    i.c[0] = s.source(3, Type::Pred);
  }
  i.run = comparison(name, type);
  if (!i.run) s.unknown("no such comparison");
}

template <class T> void select(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T *a = w.at_place<T>(i.a[0]), *b = w.at_place<T>(i.b[0]);
  const uint32_t c = w.predicate(i.c[0]);
  each(on, [&](int l) { d[l] = c >> l & 1 ? a[l] : b[l]; });
}

void decode_selp(Statement& s, Instruction& i) {
  const Type type = s.type();
  operands(s, i, type, 2);
  i.c[0] = s.source(3, Type::Pred);
  if (size_of(type) < 2) s.unknown("of this type");
  i.run = size_of(type) == 2 ? select<uint16_t> : size_of(type) == 4 ? select<uint32_t> : select<uint64_t>;
}

// ---- bits ----

template <auto f> void masks(Warp& w, const Instruction& i, uint32_t on) {  // of predicates
  uint32_t& d = w.predicate(i.d[0]);
  d = (d & ~on) | (f(w.predicate(i.a[0]), w.predicate(i.b[0])) & on);
}

template <auto f16, auto f32, auto f64> void decode_shift(Statement& s, Instruction& i) {
  const Type type = s.type();
  i.d[0] = s.target(0, type);
  i.a[0] = s.source(1, type), i.b[0] = s.source(2, Type::U32);
  if (size_of(type) < 2 || is_float(type)) s.unknown("of this type");
  const bool is_signed = type == Type::S16 || type == Type::S32 || type == Type::S64;
  switch (size_of(type)) {
    case 2: i.run = is_signed ? binary<int16_t, int16_t, f16, uint32_t> : binary<uint16_t, uint16_t, f16, uint32_t>; break;
    case 4: i.run = is_signed ? binary<int32_t, int32_t, f32, uint32_t> : binary<uint32_t, uint32_t, f32, uint32_t>; break;
    default: i.run = is_signed ? binary<int64_t, int64_t, f64, uint32_t> : binary<uint64_t, uint64_t, f64, uint32_t>; break;
  }
}

template <int BITS> constexpr auto left = [](auto a, uint32_t b) { return b >= BITS ? 0 : uint64_t(a) << b; };
template <int BITS> constexpr auto right = [](auto a, uint32_t b) { return b >= BITS ? a < 0 ? -1 : 0 : a >> b; };

void decode_not(Statement& s, Instruction& i) {
  const Type type = s.type();
  operands(s, i, type, 1);
  i.b[0] = i.a[0];
  i.run = type == Type::Pred ? masks<[](uint32_t a, uint32_t) { return ~a; }> : integers1<[](auto a) { return ~a; }>(type);
  if (!i.run) s.unknown("of this type");
}

void lop3(Warp& w, const Instruction& i, uint32_t on) {
  uint32_t* d = w.at_place<uint32_t>(i.d[0]);
  const uint32_t *a = w.at_place<uint32_t>(i.a[0]), *b = w.at_place<uint32_t>(i.b[0]), *c = w.at_place<uint32_t>(i.c[0]);
  each(on, [&](int l) {
    uint32_t result = 0;
    for (int term = 0; term < 8; ++term)
      if (i.option >> term & 1) result |= (term & 4 ? a[l] : ~a[l]) & (term & 2 ? b[l] : ~b[l]) & (term & 1 ? c[l] : ~c[l]);
    d[l] = result;
  });
}

template <class T> constexpr auto field = [](T a, uint32_t position, uint32_t length) -> T {  // bfe
  constexpr int bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  T result = 0;
  const T sign = std::is_signed_v<T> && length ? a >> std::min<uint32_t>(position + length - 1, bits - 1) & 1 : 0;
  for (uint32_t k = 0; k < bits; ++k) {
    const T bit = k < length && position + k < bits ? a >> (position + k) & 1 : sign;
    result |= T(std::make_unsigned_t<T>(bit) << k);
  }
  return result;
};

void bfi(Warp& w, const Instruction& i, uint32_t on) {
  uint32_t* d = w.at_place<uint32_t>(i.d[0]);
  const uint32_t *a = w.at_place<uint32_t>(i.a[0]), *b = w.at_place<uint32_t>(i.b[0]);
  const uint32_t *position = w.at_place<uint32_t>(i.c[0]), *length = w.at_place<uint32_t>(i.c[1]);
  each(on, [&](int l) {
    const uint64_t from = std::min(position[l] & 255, 32u), many = std::min(length[l] & 255, 32u);
    const uint32_t mask = uint32_t(((uint64_t(1) << many) - 1) << from);
    d[l] = (b[l] & ~mask) | (uint32_t(uint64_t(a[l]) << from) & mask);
  });
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t pick = selector >> 4 * k & 15, byte = bytes >> 8 * (pick & 7) & 255;
    result |= (pick & 8 ? byte & 128 ? 255 : 0 : byte) << 8 * k;
  }
  return result;
}

template <Run run> void decode_words(Statement& s, Instruction& i) {  // of three words and, but for prmt, one more number
  if (s.type() != Type::B32) s.unknown("of this type");
  operands(s, i, Type::B32, 3);
  if (s.op == "lop3") i.option = uint32_t(s.number(4));
  if (s.op == "bfi") i.c[1] = s.source(4, Type::U32);
  i.run = run;
}

void decode_bfe(Statement& s, Instruction& i) {
  const Type type = s.type();
  operands(s, i, type, 1);
  i.b[0] = s.source(2, Type::U32), i.c[0] = s.source(3, Type::U32);
  switch (type) {
    case Type::U32: i.run = ternary<uint32_t, uint32_t, field<uint32_t>, uint32_t, uint32_t>; break;
    case Type::S32: i.run = ternary<int32_t, int32_t, field<int32_t>, uint32_t, uint32_t>; break;
    case Type::U64: i.run = ternary<uint64_t, uint64_t, field<uint64_t>, uint32_t, uint32_t>; break;
    case Type::S64: i.run = ternary<int64_t, int64_t, field<int64_t>, uint32_t, uint32_t>; break;
    default: s.unknown("of this type");
  }
}

template <auto f> void decode_count(Statement& s, Instruction& i) {  // popc, clz: -> 32 bits
  const Type type = s.type();
  i.d[0] = s.target(0, Type::B32);
  i.a[0] = s.source(1, type);
  if (type != Type::B32 && type != Type::B64) s.unknown("of this type");
  i.run = type == Type::B32 ? unary<uint32_t, uint32_t, f> : unary<uint32_t, uint64_t, f>;
}

void decode_shf(Statement& s, Instruction& i) {
  const bool to_left = s.take("l");
  if (!to_left && !s.take("r")) s.unknown("expected .l or .r");
  if (!s.take("wrap")) s.unknown("only .wrap");
  if (s.type() != Type::B32) s.unknown("of this type");
  operands(s, i, Type::B32, 3);
  constexpr auto left = [](uint32_t a, uint32_t b, uint32_t c) { return (uint64_t(b) << 32 | a) << (c & 31) >> 32; };
  constexpr auto right = [](uint32_t a, uint32_t b, uint32_t c) { return (uint64_t(b) << 32 | a) >> (c & 31); };
  i.run = to_left ? ternary<uint32_t, uint32_t, left> : ternary<uint32_t, uint32_t, right>;
}

template <auto f> void bitwise(Statement& s, Instruction& i) {
  const Type type = s.type();
  operands(s, i, type, 2);
  i.run = type == Type::Pred ? masks<f> : integers2<f>(type);
  if (!i.run) s.unknown("of this type");
}

}  // namespace

const std::map<std::string_view, Decode>& logic() {
  static const std::map<std::string_view, Decode> table = {
      {"setp", decode_setp},
      {"selp", decode_selp},
      {"and", bitwise<[](auto a, auto b) { return a & b; }>},
      {"or", bitwise<[](auto a, auto b) { return a | b; }>},
      {"xor", bitwise<[](auto a, auto b) { return a ^ b; }>},
      {"not", decode_not},
      {"shl", decode_shift<left<16>, left<32>, left<64>>},
      {"shr", decode_shift<right<16>, right<32>, right<64>>},
      {"shf", decode_shf},
      {"lop3", decode_words<lop3>},
      {"bfi", decode_words<bfi>},
      {"prmt", decode_words<ternary<uint32_t, uint32_t, permute>>},
      {"bfe", decode_bfe},
      {"popc", decode_count<[](auto a) { return __builtin_popcountll(a); }>},
      {"clz", decode_count<[](auto a) { return a ? __builtin_clzll(a) - (64 - 8 * int(sizeof a)) : 8 * int(sizeof a); }>},
  };
  return table;
}

}  // namespace ptx
