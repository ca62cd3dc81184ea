// Arithmetic, logic and comparison.
#include <cfenv>
#include <cmath>
#include <cstring>

#include "decode.h"
#include "numbers.h"

namespace ptx {
namespace {

// ---- how lanes are walked through ----

template <class D, class A, auto f> void unary(Warp& w, const Instruction& i, uint32_t on) {
  D* d = w.at_place<D>(i.d[0]);
  const A* a = w.at_place<A>(i.a[0]);
  each(on, [&](int l) { d[l] = D(f(a[l])); });
}

template <class D, class A, auto f, class B = A> void binary(Warp& w, const Instruction& i, uint32_t on) {
  D* d = w.at_place<D>(i.d[0]);
  const A* a = w.at_place<A>(i.a[0]);
  const B* b = w.at_place<B>(i.b[0]);
  each(on, [&](int l) { d[l] = D(f(a[l], b[l])); });
}

template <class D, class A, auto f, class B = A, class C = D> void ternary(Warp& w, const Instruction& i, uint32_t on) {
  D* d = w.at_place<D>(i.d[0]);
  const A* a = w.at_place<A>(i.a[0]);
  const B* b = w.at_place<B>(i.b[0]);
  const C* c = w.at_place<C>(i.c[0]);
  each(on, [&](int l) { d[l] = D(f(a[l], b[l], c[l])); });
}

// Two values to a register.
template <class T, auto f> void binary_pairs(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T *a = w.at_place<T>(i.a[0]), *b = w.at_place<T>(i.b[0]);
  each(on, [&](int l) { d[2 * l] = f(a[2 * l], b[2 * l]), d[2 * l + 1] = f(a[2 * l + 1], b[2 * l + 1]); });
}

template <class T, auto f> void ternary_pairs(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T *a = w.at_place<T>(i.a[0]), *b = w.at_place<T>(i.b[0]), *c = w.at_place<T>(i.c[0]);
  each(on, [&](int l) {
    d[2 * l] = f(a[2 * l], b[2 * l], c[2 * l]), d[2 * l + 1] = f(a[2 * l + 1], b[2 * l + 1], c[2 * l + 1]);
  });
}

template <class T, auto f> void unary_pairs(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T* a = w.at_place<T>(i.a[0]);
  each(on, [&](int l) { d[2 * l] = f(a[2 * l]), d[2 * l + 1] = f(a[2 * l + 1]); });
}

// Likewise in the rounding mode that `option` names; noinline, so that nothing is rounded before the mode is set.
template <Run run> __attribute__((noinline)) void in_mode(Warp& w, const Instruction& i, uint32_t on) {
  fesetround(int(i.option));
  run(w, i, on);
  fesetround(FE_TONEAREST);
}

void operands(Statement& s, Instruction& i, Type type, int count) {
  i.d[0] = s.target(0, type);
  uint32_t* places[] = {&i.a[0], &i.b[0], &i.c[0]};
  for (int k = 0; k < count; ++k) *places[k] = s.source(size_t(k) + 1, type);
}

// ---- integers ----

template <auto f> Run integers2(Type type) {
  switch (type) {
    case Type::U16: case Type::B16: return binary<uint16_t, uint16_t, f>;
    case Type::S16: return binary<int16_t, int16_t, f>;
    case Type::U32: case Type::B32: return binary<uint32_t, uint32_t, f>;
    case Type::S32: return binary<int32_t, int32_t, f>;
    case Type::U64: case Type::B64: return binary<uint64_t, uint64_t, f>;
    case Type::S64: return binary<int64_t, int64_t, f>;
    default: return nullptr;
  }
}

template <auto f> Run integers3(Type type) {
  switch (type) {
    case Type::U16: case Type::S16: return ternary<uint16_t, uint16_t, f>;
    case Type::U32: case Type::S32: return ternary<uint32_t, uint32_t, f>;
    case Type::U64: case Type::S64: return ternary<uint64_t, uint64_t, f>;
    default: return nullptr;
  }
}

template <auto f> Run integers1(Type type) {
  switch (type) {
    case Type::B16: case Type::S16: return unary<int16_t, int16_t, f>;
    case Type::B32: case Type::S32: return unary<int32_t, int32_t, f>;
    case Type::B64: case Type::S64: return unary<int64_t, int64_t, f>;
    default: return nullptr;
  }
}

template <auto f> void masks(Warp& w, const Instruction& i, uint32_t on) {  // of predicates
  uint32_t& d = w.predicate(i.d[0]);
  d = (d & ~on) | (f(w.predicate(i.a[0]), w.predicate(i.b[0])) & on);
}

template <auto f> void bitwise(Statement& s, Instruction& i) {
  const Type type = s.type();
  operands(s, i, type, 2);
  i.run = type == Type::Pred ? masks<f> : integers2<f>(type);
  if (!i.run) s.unknown("of this type");
}

constexpr auto kMulWide = [](auto a, auto b) { return a * b; };

void decode_mul(Statement& s, Instruction& i, bool adds);

constexpr auto kHigh = [](auto a, auto b) {
  if constexpr (std::is_signed_v<decltype(a)>) return (__int128(a) * b) >> (8 * sizeof a);
  else return (static_cast<unsigned __int128>(a) * b) >> (8 * sizeof a);
};

template <class Wide, class T> void wide_product(Warp& w, const Instruction& i, uint32_t on) {
  binary<Wide, T, [](T a, T b) { return Wide(a) * Wide(b); }>(w, i, on);
}

template <class Wide, class T> void wide_sum(Warp& w, const Instruction& i, uint32_t on) {
  using U = std::make_unsigned_t<Wide>;
  ternary<Wide, T, [](T a, T b, Wide c) { return Wide(U(Wide(a) * Wide(b)) + U(c)); }, T, Wide>(w, i, on);
}

void decode_mul(Statement& s, Instruction& i, bool adds) {
  const bool wide = s.take("wide"), high = s.take("hi");
  if (!wide && !high && !s.take("lo")) s.unknown("expected .lo, .hi or .wide");
  const Type type = s.type(), result = !wide ? type : size_of(type) == 2 ? Type::B32 : Type::B64;
  i.d[0] = s.target(0, result);
  i.a[0] = s.source(1, type), i.b[0] = s.source(2, type);
  if (adds) i.c[0] = s.source(3, result);
  if (wide) {
    switch (type) {
      case Type::U16: i.run = adds ? wide_sum<uint32_t, uint16_t> : wide_product<uint32_t, uint16_t>; break;
      case Type::S16: i.run = adds ? wide_sum<int32_t, int16_t> : wide_product<int32_t, int16_t>; break;
      case Type::U32: i.run = adds ? wide_sum<uint64_t, uint32_t> : wide_product<uint64_t, uint32_t>; break;
      case Type::S32: i.run = adds ? wide_sum<int64_t, int32_t> : wide_product<int64_t, int32_t>; break;
      default: break;
    }
  } else if (high) {
    if (!adds) i.run = integers2<kHigh>(type);
  } else if (adds) {
    i.run = integers3<[](auto a, auto b, auto c) { return uint64_t(a) * b + c; }>(type);
  } else {
    i.run = integers2<[](auto a, auto b) { return uint64_t(a) * uint64_t(b); }>(type);
  }
  if (!i.run) s.unknown("of this type");
}

// ---- floating point ----

struct Mode {
  bool ftz, sat;
  int rounding;
};

Mode mode_of(Statement& s) {
  int rounding = FE_TONEAREST;
  if (s.take("rz")) rounding = FE_TOWARDZERO;
  else if (s.take("rm")) rounding = FE_DOWNWARD;
  else if (s.take("rp")) rounding = FE_UPWARD;
  else s.take("rn");
  const bool ftz = s.take("ftz");
  return {ftz, s.take("sat"), rounding};
}

template <auto f, class T> constexpr auto flushed2 = [](T a, T b) { return flush(T(f(flush(a), flush(b)))); };
template <auto f, class T> constexpr auto flushed3 = [](T a, T b, T c) { return flush(T(f(flush(a), flush(b), flush(c)))); };
template <auto f, class T> constexpr auto through2 = [](T a, T b) { return T(f(float(a), float(b))); };
template <auto f, class T> constexpr auto through3 = [](T a, T b, T c) { return T(f(float(a), float(b), float(c))); };
constexpr auto kSaturate = [](auto x) { return x > 0 ? x < 1 ? x : decltype(x)(1) : decltype(x)(0); };

template <Run run> void saturated(Warp& w, const Instruction& i, uint32_t on) {
  run(w, i, on);
  float* d = w.at_place<float>(i.d[0]);
  each(on, [&](int l) { d[l] = kSaturate(d[l]); });
}

template <auto f> Run floats2(Statement& s, Type type, const Mode& mode) {
  if (mode.sat && !mode.ftz && type == Type::F32) return saturated<binary<float, float, f>>;
  if (mode.sat) s.unknown("saturated");
  if (mode.ftz && type == Type::F32) return binary<float, float, flushed2<f, float>>;
  if (mode.rounding != FE_TONEAREST) {
    if (type == Type::F32) return in_mode<binary<float, float, f>>;
    if (type == Type::F64) return in_mode<binary<double, double, f>>;
    s.unknown("rounded so");
  }
  switch (type) {
    case Type::F32: return binary<float, float, f>;
    case Type::F64: return binary<double, double, f>;
    case Type::F32x2: return binary_pairs<float, f>;
    case Type::F16: return binary<Half, Half, through2<f, Half>>;
    case Type::BF16: return binary<Bfloat, Bfloat, through2<f, Bfloat>>;
    case Type::F16x2: return binary_pairs<Half, through2<f, Half>>;
    case Type::BF16x2: return binary_pairs<Bfloat, through2<f, Bfloat>>;
    default: return nullptr;
  }
}

bool is_float(Type type) { return type >= Type::F16; }

// add, sub, min, max of both kinds of numbers
template <auto whole, auto real> void decode_both(Statement& s, Instruction& i) {
  const Mode mode = mode_of(s);
  const Type type = s.type();
  i.option = uint32_t(mode.rounding);
  operands(s, i, type, 2);
  i.run = is_float(type) ? floats2<real>(s, type, mode) : integers2<whole>(type);
  if (!i.run) s.unknown("of this type");
}

// The smaller or larger of two, and the one that is a number.
template <bool LARGER> constexpr auto extreme = [](auto a, auto b) { return a != a ? b : b != b ? a : (LARGER ? a > b : a < b) ? a : b; };
template <bool LARGER> constexpr auto with_nan = [](auto a, auto b) { return a != a ? a : b != b ? b : (LARGER ? a > b : a < b) ? a : b; };

template <bool LARGER> void decode_extreme(Statement& s, Instruction& i) {
  const Mode mode = mode_of(s);
  const bool nan = s.take("NaN");
  const Type type = s.type();
  operands(s, i, type, 2);
  i.run = !is_float(type) ? integers2<extreme<LARGER>>(type)
          : nan           ? floats2<with_nan<LARGER>>(s, type, mode)
                          : floats2<extreme<LARGER>>(s, type, mode);
  if (!i.run) s.unknown("of this type");
}

constexpr auto kFma = [](auto a, auto b, auto c) { return std::fma(a, b, c); };

void decode_fma(Statement& s, Instruction& i) {
  const Mode mode = mode_of(s);
  const Type type = s.type();
  i.option = uint32_t(mode.rounding);
  operands(s, i, type, 3);
  const bool nearest = mode.rounding == FE_TONEAREST;
  if (mode.sat || (mode.ftz && (type != Type::F32 || !nearest))) s.unknown("of this form");
  switch (type) {
    case Type::F32:
      i.run = mode.ftz ? ternary<float, float, flushed3<kFma, float>> : nearest ? ternary<float, float, kFma> : in_mode<ternary<float, float, kFma>>;
      break;
    case Type::F64: i.run = nearest ? ternary<double, double, kFma> : in_mode<ternary<double, double, kFma>>; break;
    case Type::F32x2: i.run = ternary_pairs<float, kFma>; break;
    case Type::F16: i.run = ternary<Half, Half, through3<kFma, Half>>; break;
    case Type::BF16: i.run = ternary<Bfloat, Bfloat, through3<kFma, Bfloat>>; break;
    case Type::F16x2: i.run = ternary_pairs<Half, through3<kFma, Half>>; break;
    case Type::BF16x2: i.run = ternary_pairs<Bfloat, through3<kFma, Bfloat>>; break;
    default: s.unknown("of this type");
  }
}

// An approximation whose relative error is at most 2^-BITS; erring at random where the device blurs.
template <class T, auto f, int TENTHS_OF_BITS> void approximate(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T *a = w.at_place<T>(i.a[0]), *b = w.at_place<T>(i.b[0]);
  const bool ftz = i.option & 1, blur = w.block->grid->device.blur;
  for (; on; on &= on - 1) {
    const int l = __builtin_ctz(on);
    T result = ftz ? flush(T(f(flush(a[l]), flush(b[l])))) : T(f(a[l], b[l]));
    if (blur) result *= T(1 + std::exp2(-TENTHS_OF_BITS / 10.0) * std::uniform_real_distribution<>(-1, 1)(w.block->grid->random));
    d[l] = result;
  }
}

// op.approx.f32, or exactly rounded where there is `exact`. Bounds on the errors: PTX ISA, the instruction's own page.
template <auto f, int TENTHS_OF_BITS, bool EXACT> void decode_function(Statement& s, Instruction& i) {
  const bool approximately = s.take("approx"), full = s.take("full");
  const Mode mode = mode_of(s);
  const Type type = s.type();
  const int count = s.count() == 3 ? 2 : 1;
  operands(s, i, type, count);
  if (count == 1) i.b[0] = i.a[0];
  i.option = mode.ftz;
  if (type == Type::F32 && (approximately || full)) i.run = approximate<float, f, TENTHS_OF_BITS>;
  else if (EXACT && !approximately && type == Type::F32 && mode.rounding == FE_TONEAREST && !mode.ftz) i.run = binary<float, float, f>;
  else if (EXACT && !approximately && type == Type::F64 && mode.rounding == FE_TONEAREST) i.run = binary<double, double, f>;
  else s.unknown("of this form");
}

// div: of floating point as above, of integers by zero all ones, as devices do.
void decode_div(Statement& s, Instruction& i) {
  constexpr auto whole = [](auto a, auto b) {
    using T = decltype(a);
    if (b == 0) return T(-1);
    if (std::is_signed_v<T> && b == T(-1)) return T(0 - uint64_t(a));
    return T(a / b);
  };
  Statement copy = s;
  const Type type = copy.done() ? Type::None : type_of(copy.take());
  if (type == Type::None || is_float(type)) return decode_function<[](auto a, auto b) { return a / b; }, 220, true>(s, i);
  s.type();
  operands(s, i, type, 2);
  i.run = integers2<whole>(type);
}

void decode_neg_or_abs(Statement& s, Instruction& i) {
  const bool ftz = s.take("ftz"), negative = s.op == "neg";
  const Type type = s.type();
  operands(s, i, type, 1);
  if (ftz) s.unknown("flushed");
  const auto pick = [&](Run neg, Run abs) { i.run = negative ? neg : abs; };
  constexpr auto minus = [](auto x) { return -x; };
  constexpr auto size = [](auto x) { return std::fabs(x); };
  constexpr auto sign16 = [](uint16_t x) { return x ^ 0x8000; };
  constexpr auto size16 = [](uint16_t x) { return x & 0x7fff; };
  switch (type) {
    case Type::F32: return pick(unary<float, float, minus>, unary<float, float, size>);
    case Type::F64: return pick(unary<double, double, minus>, unary<double, double, size>);
    case Type::F16: case Type::BF16: return pick(unary<uint16_t, uint16_t, sign16>, unary<uint16_t, uint16_t, size16>);
    case Type::F16x2: case Type::BF16x2: return pick(unary_pairs<uint16_t, sign16>, unary_pairs<uint16_t, size16>);
    default: i.run = integers1<[](auto x) { return 0 - uint64_t(x); }>(type);
  }
  if (!i.run || !negative) i.run = negative ? i.run : integers1<[](auto x) { return x < 0 ? 0 - uint64_t(x) : uint64_t(x); }>(type);
  if (!i.run) s.unknown("of this type");
}

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
  const auto is = [&](std::string_view ordered, std::string_view same = "-") { return name == ordered || name == same; };
  if (is("eq")) return compares<[](auto a, auto b) { return a == b; }>(type);
  if (is("ne")) return is_float(type) ? compares<[](auto a, auto b) { return (a < b) | (a > b); }>(type) : compares<[](auto a, auto b) { return a != b; }>(type);
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
  i.run = size_of(type) == 2 ? select<uint16_t> : size_of(type) == 4 ? select<uint32_t> : select<uint64_t>;
}

// ---- bits ----

template <auto f16, auto f32, auto f64> void decode_shift(Statement& s, Instruction& i) {
  const Type type = s.type();
  i.d[0] = s.target(0, type);
  i.a[0] = s.source(1, type), i.b[0] = s.source(2, Type::U32);
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

// Instructions of 32 bits, with their operands in order.
template <Run run, int COUNT> void decode_words(Statement& s, Instruction& i) {
  s.take("wrap");
  const Type type = s.type();
  if (size_of(type) != 4) s.unknown("of this type");
  operands(s, i, type, std::min(COUNT, 3));
  if (COUNT == 4) s.is_number(s.text(4)) && s.op == "lop3" ? void(i.option = uint32_t(s.number(4))) : void(i.c[1] = s.source(4, Type::U32));
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
  i.run = size_of(type) == 4 ? unary<uint32_t, uint32_t, f> : unary<uint32_t, uint64_t, f>;
}

void decode_shf(Statement& s, Instruction& i) {
  const bool to_left = s.take("l");
  if (!to_left && !s.take("r")) s.unknown("expected .l or .r");
  if (!s.take("wrap")) s.unknown("only .wrap");
  const Type type = s.type();
  operands(s, i, type, 3);
  i.run = to_left ? ternary<uint32_t, uint32_t, [](uint32_t a, uint32_t b, uint32_t c) { return uint32_t(((uint64_t(b) << 32 | a) << (c & 31)) >> 32); }>
                  : ternary<uint32_t, uint32_t, [](uint32_t a, uint32_t b, uint32_t c) { return uint32_t((uint64_t(b) << 32 | a) >> (c & 31)); }>;
}

}  // namespace

const std::map<std::string_view, Decode>& arithmetic() {
  static const std::map<std::string_view, Decode> table = {
      {"add", decode_both<[](auto a, auto b) { return uint64_t(a) + uint64_t(b); }, [](auto a, auto b) { return a + b; }>},
      {"sub", decode_both<[](auto a, auto b) { return uint64_t(a) - uint64_t(b); }, [](auto a, auto b) { return a - b; }>},
      {"mul", [](Statement& s, Instruction& i) {
         Statement copy = s;
         const std::string_view first = copy.take();
         if (first == "lo" || first == "hi" || first == "wide") return decode_mul(s, i, false);
         decode_both<[](auto a, auto) { return a; }, [](auto a, auto b) { return a * b; }>(s, i);
       }},
      {"mad", [](Statement& s, Instruction& i) { decode_mul(s, i, true); }},
      {"div", decode_div},
      {"rem", [](Statement& s, Instruction& i) {
         const Type type = s.type();
         operands(s, i, type, 2);
         i.run = integers2<[](auto a, auto b) { return b == 0 ? a : std::is_signed_v<decltype(a)> && b == decltype(b)(-1) ? 0 : a % b; }>(type);
       }},
      {"min", decode_extreme<false>},
      {"max", decode_extreme<true>},
      {"fma", decode_fma},
      {"neg", decode_neg_or_abs},
      {"abs", decode_neg_or_abs},
      {"rcp", decode_function<[](auto a, auto) { return 1 / a; }, 230, true>},
      {"sqrt", decode_function<[](auto a, auto) { return std::sqrt(a); }, 230, true>},
      {"rsqrt", decode_function<[](auto a, auto) { return 1 / std::sqrt(double(a)); }, 229, false>},
      {"ex2", decode_function<[](auto a, auto) { return std::exp2(a); }, 225, false>},
      {"lg2", decode_function<[](auto a, auto) { return std::log2(a); }, 226, false>},
      {"tanh", decode_function<[](auto a, auto) { return std::tanh(a); }, 110, false>},
      {"setp", decode_setp},
      {"selp", decode_selp},
      {"and", bitwise<[](auto a, auto b) { return a & b; }>},
      {"or", bitwise<[](auto a, auto b) { return a | b; }>},
      {"xor", bitwise<[](auto a, auto b) { return a ^ b; }>},
      {"not", decode_not},
      {"shl", decode_shift<left<16>, left<32>, left<64>>},
      {"shr", decode_shift<right<16>, right<32>, right<64>>},
      {"shf", decode_shf},
      {"lop3", decode_words<lop3, 4>},
      {"bfi", decode_words<bfi, 4>},
      {"prmt", decode_words<ternary<uint32_t, uint32_t, permute>, 3>},
      {"bfe", decode_bfe},
      {"popc", decode_count<[](auto a) { return __builtin_popcountll(a); }>},
      {"clz", decode_count<[](auto a) { return a ? __builtin_clzll(a) - (64 - 8 * int(sizeof a)) : 8 * int(sizeof a); }>},
  };
  return table;
}

}  // namespace ptx
