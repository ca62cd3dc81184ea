// Arithmetic.
#include <cmath>
#include <cstring>

#include "lanes.h"
#include "numbers.h"

namespace ptx {
namespace {

// ---- integers ----

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
  if (!is_whole(type)) s.unknown("of this type");
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
    constexpr auto sum = [](auto a, auto b, auto c) { return uint64_t(kHigh(a, b)) + uint64_t(c); };
    i.run = adds ? integers3<sum>(type) : integers2<kHigh>(type);
  } else if (adds) {
    i.run = integers3<[](auto a, auto b, auto c) { return uint64_t(a) * uint64_t(b) + uint64_t(c); }>(type);
  } else {
    i.run = integers2<[](auto a, auto b) { return uint64_t(a) * uint64_t(b); }>(type);
  }
  if (!i.run) s.unknown("of this type");
}

// ---- floating point ----

struct Mode {
  bool ftz, sat, given;  // given: any of it
  int rounding;

  bool plain() const { return !ftz && !sat && rounding == FE_TONEAREST; }
};

Mode mode_of(Statement& s) {
  Mode mode{false, false, true, FE_TONEAREST};
  if (s.take("rz")) mode.rounding = FE_TOWARDZERO;
  else if (s.take("rm")) mode.rounding = FE_DOWNWARD;
  else if (s.take("rp")) mode.rounding = FE_UPWARD;
  else mode.given = s.take("rn");
  mode.ftz = s.take("ftz"), mode.sat = s.take("sat");
  mode.given |= mode.ftz || mode.sat;
  return mode;
}

// What is `lost` more than `near`, rounded to odd: the nearest of fewer bits to that is the nearest to the exact number.
template <class Bits, class T> T odd(T near, double lost) {
  Bits bits;
  memcpy(&bits, &near, sizeof near);
  if (std::fabs(lost) > 0 && !(bits & 1)) bits += (lost < 0) == std::signbit(near) ? 1 : -1;
  memcpy(&near, &bits, sizeof near);
  return near;
}

template <auto f, class T> constexpr auto flushed2 = [](T a, T b) { return flush(T(f(flush(a), flush(b)))); };
template <auto f, class T> constexpr auto flushed3 = [](T a, T b, T c) { return flush(T(f(flush(a), flush(b), flush(c)))); };
template <auto f, class T> constexpr auto through2 = [](T a, T b) { return T(f(float(a), float(b))); };
constexpr auto kSaturate = [](auto x) { return x > 0 ? x < 1 ? x : decltype(x)(1) : decltype(x)(0); };

template <Run run> void saturated(Warp& w, const Instruction& i, uint32_t on) {
  run(w, i, on);
  float* d = w.at_place<float>(i.d[0]);
  each(on, [&](int l) { d[l] = kSaturate(d[l]); });
}

template <Run run> Run with_rounding(const Mode& mode) { return mode.rounding == FE_TONEAREST ? run : in_mode<run>; }

template <Run plain, Run flushes> Run floats(const Mode& mode) {  // of float32, in each mode
  if (mode.sat) return mode.ftz ? with_rounding<saturated<flushes>>(mode) : with_rounding<saturated<plain>>(mode);
  return mode.ftz ? with_rounding<flushes>(mode) : with_rounding<plain>(mode);
}

template <auto f> Run floats2(Statement& s, Type type, const Mode& mode) {
  if (type == Type::F32) return floats<binary<float, float, f>, binary<float, float, flushed2<f, float>>>(mode);
  if (type == Type::F64 && !mode.ftz && !mode.sat) return with_rounding<binary<double, double, f>>(mode);
  if (!mode.plain()) s.unknown("of this type in this mode");
  switch (type) {
    case Type::F32x2: return binary_pairs<float, f>;
    case Type::F16: return binary<Half, Half, through2<f, Half>>;
    case Type::BF16: return binary<Bfloat, Bfloat, through2<f, Bfloat>>;
    case Type::F16x2: return binary_pairs<Half, through2<f, Half>>;
    case Type::BF16x2: return binary_pairs<Bfloat, through2<f, Bfloat>>;
    default: return nullptr;
  }
}

template <auto f, class T> constexpr auto widened2 = [](T a, float b) { return f(float(a), b); };
template <auto f, class T> constexpr auto widened3 = [](T a, T b, float c) { return f(float(a), float(b), c); };

// add, sub of both kinds of numbers, mul of floating point
template <auto whole, auto real> void decode_both(Statement& s, Instruction& i) {
  const Mode mode = mode_of(s);
  const Type type = s.type();
  i.option = uint32_t(mode.rounding);
  if (type == Type::F32 && !s.done() && s.op != "mul") {  // of a first operand that is narrower
    const Type narrow = s.type();
    i.d[0] = s.target(0, type), i.a[0] = s.source(1, narrow), i.b[0] = s.source(2, type);
    if (mode.plain() && narrow == Type::F16) i.run = binary<float, Half, widened2<real, Half>, float>;
    if (mode.plain() && narrow == Type::BF16) i.run = binary<float, Bfloat, widened2<real, Bfloat>, float>;
    if (!i.run) s.unknown("of this type");
    return;
  }
  operands(s, i, type, 2);
  if (is_float(type)) i.run = floats2<real>(s, type, mode);
  if constexpr (!std::is_null_pointer_v<decltype(whole)>)
    if (is_whole(type) && !mode.given) i.run = integers2<whole>(type);
  if (!i.run) s.unknown("of this type");
}

template <class T> constexpr T kNaN = T(__builtin_nan("0x7ffffffffffff"));  // the canonical one
template <> constexpr float kNaN<float> = __builtin_nanf("0x3fffff");

// The smaller or larger of two, -0 below +0; NaN if one of them is, or only if both are.
template <bool LARGER, bool KEEPS_NAN> constexpr auto extreme = [](auto a, auto b) {
  if constexpr (std::is_floating_point_v<decltype(a)>) {
    if (KEEPS_NAN ? a != a || b != b : a != a && b != b) return kNaN<decltype(a)>;
    if (a != a || b != b) return a != a ? b : a;
    if (a == b) return std::signbit(a) == LARGER ? b : a;
  }
  return (LARGER ? a > b : a < b) ? a : b;
};

template <bool LARGER> void decode_extreme(Statement& s, Instruction& i) {
  const bool ftz = s.take("ftz"), nan = s.take("NaN");
  const Type type = s.type();
  const Mode mode{ftz, false, ftz, FE_TONEAREST};
  operands(s, i, type, 2);
  if (is_float(type) && nan) i.run = floats2<extreme<LARGER, true>>(s, type, mode);
  else if (is_float(type)) i.run = floats2<extreme<LARGER, false>>(s, type, mode);
  else if (is_whole(type) && !ftz && !nan) i.run = integers2<extreme<LARGER, false>>(type);
  if (!i.run) s.unknown("of this type");
}

constexpr auto kFma = [](auto a, auto b, auto c) { return std::fma(a, b, c); };

// Of 16-bit numbers, rounded once: the product is exact, and the sum is rounded to odd by what it lost.
template <class T> constexpr auto fma16 = [](T a, T b, T c) {
  const double product = double(float(a)) * float(b), addend = float(c), near = product + addend, part = near - product;
  const double sum = odd<int64_t>(near, (product - (near - part)) + (addend - part));
  return T(odd<int32_t>(float(sum), sum - double(float(sum))));
};

void decode_fma(Statement& s, Instruction& i) {
  const Mode mode = mode_of(s);
  const Type type = s.type();
  i.option = uint32_t(mode.rounding);
  if (type == Type::F32 && !s.done()) {  // of two operands that are narrower
    const Type narrow = s.type();
    i.d[0] = s.target(0, type), i.a[0] = s.source(1, narrow), i.b[0] = s.source(2, narrow), i.c[0] = s.source(3, type);
    if (mode.plain() && narrow == Type::F16) i.run = ternary<float, Half, widened3<kFma, Half>, Half, float>;
    if (mode.plain() && narrow == Type::BF16) i.run = ternary<float, Bfloat, widened3<kFma, Bfloat>, Bfloat, float>;
    if (!i.run) s.unknown("of this type");
    return;
  }
  operands(s, i, type, 3);
  if (type != Type::F32 && (type == Type::F64 ? mode.ftz || mode.sat : !mode.plain())) s.unknown("of this type in this mode");
  switch (type) {
    case Type::F32: i.run = floats<ternary<float, float, kFma>, ternary<float, float, flushed3<kFma, float>>>(mode); break;
    case Type::F64: i.run = with_rounding<ternary<double, double, kFma>>(mode); break;
    case Type::F32x2: i.run = ternary_pairs<float, kFma>; break;
    case Type::F16: i.run = ternary<Half, Half, fma16<Half>>; break;
    case Type::BF16: i.run = ternary<Bfloat, Bfloat, fma16<Bfloat>>; break;
    case Type::F16x2: i.run = ternary_pairs<Half, fma16<Half>>; break;
    case Type::BF16x2: i.run = ternary_pairs<Bfloat, fma16<Bfloat>>; break;
    default: s.unknown("of this type");
  }
}

// An approximation whose relative error is at most 2^-BITS, rounding included; erring at random where the device blurs.
template <auto f, int TENTHS_OF_BITS> void approximate(Warp& w, const Instruction& i, uint32_t on) {
  float* d = w.at_place<float>(i.d[0]);
  const float *a = w.at_place<float>(i.a[0]), *b = w.at_place<float>(i.b[0]);
  const bool ftz = i.option & 1, blur = w.block->grid->device.blur;
  const double most = std::exp2(-TENTHS_OF_BITS / 10.0) - 0x1p-24;
  for (; on; on &= on - 1) {
    const int l = __builtin_ctz(on);
    double result = ftz ? f(double(flush(a[l])), double(flush(b[l]))) : f(double(a[l]), double(b[l]));
    if (blur) result *= 1 + most * std::uniform_real_distribution<>(-1, 1)(w.block->grid->random);
    d[l] = ftz ? flush(float(result)) : float(result);
  }
}

// op.approx.f32 by `rough`, or exactly rounded by `f`. Bounds on the errors: PTX ISA, the instruction's own page.
template <auto f, int TENTHS_OF_BITS, bool EXACT, auto rough = f> void decode_function(Statement& s, Instruction& i) {
  const bool divides = s.op == "div", approximately = s.take("approx"), full = divides && !approximately && s.take("full");
  const Mode mode = mode_of(s);
  const Type type = s.type();
  operands(s, i, type, divides ? 2 : 1);
  if (!divides) i.b[0] = i.a[0];
  i.option = mode.ftz;
  if (mode.sat || mode.rounding != FE_TONEAREST) s.unknown("of this form");
  if (type == Type::F32 && approximately) i.run = approximate<rough, TENTHS_OF_BITS>;
  else if (type == Type::F32 && full) i.run = approximate<f, TENTHS_OF_BITS>;
  else if (EXACT && !approximately && type == Type::F32 && !mode.ftz) i.run = binary<float, float, f>;
  else if (type == Type::F64 && !mode.ftz && EXACT != approximately) i.run = binary<double, double, f>;
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
  constexpr auto real = [](auto a, auto b) { return a / b; };
  constexpr auto rough = [](double a, double b) {  // the reciprocal of a large number is none
    return std::fabs(b) > 0x1p126 && std::fabs(b) < 0x1p128 ? a * std::copysign(0.0, b) : a / b;
  };
  Statement copy = s;
  if (!is_whole(type_of(copy.take()))) return decode_function<real, 227, true, rough>(s, i);
  const Type type = s.type();
  operands(s, i, type, 2);
  i.run = integers2<whole>(type);
}

void decode_rem(Statement& s, Instruction& i) {
  const Type type = s.type();
  if (!is_whole(type)) s.unknown("of this type");
  operands(s, i, type, 2);
  i.run = integers2<[](auto a, auto b) {
    return b == 0 ? a : std::is_signed_v<decltype(a)> && b == decltype(b)(-1) ? 0 : a % b;
  }>(type);
}

void decode_neg_or_abs(Statement& s, Instruction& i) {
  const bool ftz = s.take("ftz");
  const Type type = s.type();
  if (ftz && type != Type::F32) s.unknown("flushed");
  operands(s, i, type, 1);
  const auto pick = [&](Run neg, Run abs) { i.run = s.op == "neg" ? neg : abs; };
  constexpr auto minus = [](auto x) { return -x; };
  constexpr auto size = [](auto x) { return std::fabs(x); };
  constexpr auto flushed_minus = [](float x) { return -flush(x); };
  constexpr auto flushed_size = [](float x) { return std::fabs(flush(x)); };
  constexpr auto sign16 = [](uint16_t x) { return x ^ 0x8000; };
  constexpr auto size16 = [](uint16_t x) { return x & 0x7fff; };
  constexpr auto whole_minus = [](auto x) { return 0 - uint64_t(x); };
  constexpr auto whole_size = [](auto x) { return x < 0 ? 0 - uint64_t(x) : uint64_t(x); };
  switch (type) {
    case Type::F32:
      if (ftz) return pick(unary<float, float, flushed_minus>, unary<float, float, flushed_size>);
      return pick(unary<float, float, minus>, unary<float, float, size>);
    case Type::F64: return pick(unary<double, double, minus>, unary<double, double, size>);
    case Type::F16: case Type::BF16: return pick(unary<uint16_t, uint16_t, sign16>, unary<uint16_t, uint16_t, size16>);
    case Type::F16x2: case Type::BF16x2: return pick(unary_pairs<uint16_t, sign16>, unary_pairs<uint16_t, size16>);
    case Type::S16: case Type::S32: case Type::S64: return pick(integers1<whole_minus>(type), integers1<whole_size>(type));
    default: s.unknown("of this type");
  }
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
         decode_both<nullptr, [](auto a, auto b) { return a * b; }>(s, i);
       }},
      {"mad", [](Statement& s, Instruction& i) { decode_mul(s, i, true); }},
      {"div", decode_div},
      {"rem", decode_rem},
      {"min", decode_extreme<false>},
      {"max", decode_extreme<true>},
      {"fma", decode_fma},
      {"neg", decode_neg_or_abs},
      {"abs", decode_neg_or_abs},
      {"rcp", decode_function<[](auto a, auto) { return 1 / a; }, 235, true>},
      {"sqrt", decode_function<[](auto a, auto) { return std::sqrt(a); }, 230, true>},
      {"rsqrt", decode_function<[](auto a, auto) { return 1 / std::sqrt(a); }, 229, false>},
      {"ex2", decode_function<[](auto a, auto) { return std::exp2(a); }, 225, false>},
      {"lg2", decode_function<[](auto a, auto) { return std::log2(a); }, 226, false>},
      {"tanh", decode_function<[](auto a, auto) { return std::tanh(a); }, 110, false>},
  };
  return table;
}

}  // namespace ptx
