// Moves and conversions between types.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>

#include "decode.h"
#include "numbers.h"

namespace ptx {
namespace {

// ---- mov ----

template <class T> void move(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const T* a = w.at_place<T>(i.a[0]);
  each(on, [&](int l) { d[l] = a[l]; });
}

void move_predicate(Warp& w, const Instruction& i, uint32_t on) {
  uint32_t& d = w.predicate(i.d[0]);
  d = (d & ~on) | (w.predicate(i.a[0]) & on);
}

// `count` registers of `bytes` each, and one of them all together.
void pack(Warp& w, const Instruction& i, uint32_t on) {
  each(on, [&](int l) {
    for (int k = 0; k < i.count; ++k)
      memcpy(w.frame + i.d[0] + (l * i.count + k) * i.bytes, w.frame + i.a[k] + l * i.bytes, i.bytes);
  });
}

void unpack(Warp& w, const Instruction& i, uint32_t on) {
  each(on, [&](int l) {
    for (int k = 0; k < i.count; ++k)
      memcpy(w.frame + i.d[k] + l * i.bytes, w.frame + i.a[0] + (l * i.count + k) * i.bytes, i.bytes);
  });
}

Type bits(uint32_t bytes) { return bytes == 2 ? Type::B16 : bytes == 4 ? Type::B32 : Type::B64; }

void decode_mov(Statement& s, Instruction& i) {
  const Type type = s.type();
  const auto to = s.parts(0), from = s.parts(1);
  i.count = uint8_t(std::max(to.size(), from.size()));
  if (i.count == 1) {
    i.d[0] = s.target(0, type), i.a[0] = s.source(1, type);
    switch (size_of(type)) {
      case 0: i.run = move_predicate; break;
      case 2: i.run = move<uint16_t>; break;
      case 4: i.run = move<uint32_t>; break;
      case 8: i.run = move<uint64_t>; break;
      default: s.unknown("of this type");
    }
    return;
  }
  i.bytes = uint8_t(size_of(type) / i.count);
  if (i.bytes < 2 || i.bytes * i.count != int(size_of(type))) s.unknown("of this type");
  if (std::min(to.size(), from.size()) != 1) s.unknown("from several to several");
  for (size_t k = 0; k < to.size(); ++k) i.d[k] = s.target(to[k], bits(size_of(type) / uint32_t(to.size())));
  for (size_t k = 0; k < from.size(); ++k) i.a[k] = s.source(from[k], bits(size_of(type) / uint32_t(from.size())));
  i.run = to.size() == 1 ? pack : unpack;
}

// ---- cvt ----

enum Option : uint32_t { kNearestInt = 1, kZeroInt, kDownInt, kUpInt, kRoundsToInt = 7, kSaturates, kFlushes = 16 };

template <class T> constexpr bool kIsSmall = std::is_same_v<T, Half> || std::is_same_v<T, Bfloat>;
template <class T> constexpr bool kIsFloat = std::is_floating_point_v<T> || kIsSmall<T>;

template <class T> T rounded(T x, uint32_t how) {
  switch (how & kRoundsToInt) {
    case kNearestInt: return std::nearbyint(x);
    case kZeroInt: return std::trunc(x);
    case kDownInt: return std::floor(x);
    case kUpInt: return std::ceil(x);
    default: return x;
  }
}

// To float32, rounded to odd: the nearest of fewer bits to it is then the nearest of fewer bits to `x`.
template <class S> float odd(S x) {
  using Exact = std::conditional_t<std::is_floating_point_v<S>, double, __int128>;
  float y = float(x);
  uint32_t bits;
  memcpy(&bits, &y, sizeof y);
  if (Exact(y) != Exact(x) && x == x && !(bits & 1)) bits += (Exact(x) > Exact(y)) == (x > 0) ? 1u : ~0u;
  memcpy(&y, &bits, sizeof y);
  return y;
}

// What is no number: 0 of 32 bits and less, but the highest bit where float64 or integers of 64 bits take part.
template <class D, class S>
constexpr D kOfNaN = std::max(sizeof(D), sizeof(S)) < 8 ? D(0) : D(uint64_t(1) << (8 * sizeof(D) - 1));

template <class D, class S> D converted(S from, uint32_t option) {
  if constexpr (!kIsFloat<S> && !kIsFloat<D>) {
    if (!(option & kSaturates)) return D(from);
    const __int128 wide = from, low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
    return D(std::clamp(wide, low, high));
  } else if constexpr (!kIsFloat<S>) {
    if (option & kSaturates) return D(float(from > 0));
    if constexpr (kIsSmall<D>) return D(odd(from));
    else return D(from);
  } else {
    using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;
    Wide x = Wide(from);
    if (option & kFlushes) x = flush(x);
    x = rounded(x, option);
    if constexpr (kIsFloat<D>) {
      if (option & kSaturates) x = x > 0 ? x < 1 ? x : 1 : 0;  // NaN -> 0
      if constexpr (kIsSmall<D>) return D(odd(x));
      if constexpr (std::is_same_v<D, float>) return option & kFlushes ? flush(D(x)) : D(x);
      return D(x);
    } else {
      if (x != x) return kOfNaN<D, S>;
      if (x <= Wide(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
      return x >= Wide(std::numeric_limits<D>::max()) ? std::numeric_limits<D>::max() : D(x);
    }
  }
}

// `bytes` and `count`: widths of the registers, which may be wider than the types.
template <class D, class S> void convert(Warp& w, const Instruction& i, uint32_t on) {
  D* d = w.at_place<D>(i.d[0]);
  const S* a = w.at_place<S>(i.a[0]);
  if (i.bytes == sizeof(S) && i.count == sizeof(D)) {
    if (i.option) return each(on, [&](int l) { d[l] = converted<D, S>(a[l], i.option); });
    return each(on, [&](int l) { d[l] = converted<D, S>(a[l], 0); });
  }
  each(on, [&](int l) {
    S from;
    memcpy(&from, w.frame + i.a[0] + l * i.bytes, sizeof from);
    const D result = converted<D, S>(from, i.option);
    int64_t wide = 0;  // extended as its type is, by zeros if that is floating point
    if constexpr (kIsFloat<D>) memcpy(&wide, &result, sizeof result);
    else wide = int64_t(result);
    memcpy(w.frame + i.d[0] + l * i.count, &wide, i.count);
  });
}

template <Run run, int MODE> __attribute__((noinline)) void in_mode(Warp& w, const Instruction& i, uint32_t on) {
  fesetround(MODE);
  run(w, i, on);
  fesetround(FE_TONEAREST);
}

template <class D, class S> Run in_modes(int mode) {
  if constexpr (kIsFloat<D> && !kIsSmall<D>) {
    if (mode == FE_TOWARDZERO) return in_mode<convert<D, S>, FE_TOWARDZERO>;
    if (mode == FE_DOWNWARD) return in_mode<convert<D, S>, FE_DOWNWARD>;
    if (mode == FE_UPWARD) return in_mode<convert<D, S>, FE_UPWARD>;
  }
  return mode == FE_TONEAREST ? convert<D, S> : nullptr;
}

template <class D> Run conversion_from(Type from, int mode) {
  switch (from) {
    case Type::U8: case Type::B8: return in_modes<D, uint8_t>(mode);
    case Type::S8: return in_modes<D, int8_t>(mode);
    case Type::U16: case Type::B16: return in_modes<D, uint16_t>(mode);
    case Type::S16: return in_modes<D, int16_t>(mode);
    case Type::U32: case Type::B32: return in_modes<D, uint32_t>(mode);
    case Type::S32: return in_modes<D, int32_t>(mode);
    case Type::U64: case Type::B64: return in_modes<D, uint64_t>(mode);
    case Type::S64: return in_modes<D, int64_t>(mode);
    case Type::F16: return in_modes<D, Half>(mode);
    case Type::BF16: return in_modes<D, Bfloat>(mode);
    case Type::F32: return in_modes<D, float>(mode);
    case Type::F64: return in_modes<D, double>(mode);
    default: return nullptr;
  }
}

Run conversion(Type to, Type from, int mode) {
  switch (to) {
    case Type::U8: case Type::B8: return conversion_from<uint8_t>(from, mode);
    case Type::S8: return conversion_from<int8_t>(from, mode);
    case Type::U16: case Type::B16: return conversion_from<uint16_t>(from, mode);
    case Type::S16: return conversion_from<int16_t>(from, mode);
    case Type::U32: case Type::B32: return conversion_from<uint32_t>(from, mode);
    case Type::S32: return conversion_from<int32_t>(from, mode);
    case Type::U64: case Type::B64: return conversion_from<uint64_t>(from, mode);
    case Type::S64: return conversion_from<int64_t>(from, mode);
    case Type::F16: return conversion_from<Half>(from, mode);
    case Type::BF16: return conversion_from<Bfloat>(from, mode);
    case Type::F32: return conversion_from<float>(from, mode);
    case Type::F64: return conversion_from<double>(from, mode);
    default: return nullptr;
  }
}

// Two numbers to a register: the first into the upper half.
template <class T> void convert_pair(Warp& w, const Instruction& i, uint32_t on) {
  T* d = w.at_place<T>(i.d[0]);
  const float *a = w.at_place<float>(i.a[0]), *b = w.at_place<float>(i.b[0]);
  each(on, [&](int l) { d[2 * l] = T(b[l]), d[2 * l + 1] = T(a[l]); });
}

void tf32(Warp& w, const Instruction& i, uint32_t on) {  // to the nearest of 10 bits, ties away from zero
  uint32_t* d = w.at_place<uint32_t>(i.d[0]);
  const uint32_t* a = w.at_place<uint32_t>(i.a[0]);
  each(on, [&](int l) { d[l] = (a[l] & 0x7f800000) == 0x7f800000 ? a[l] : (a[l] + 0x1000) & ~0x1fffu; });
}

void decode_cvt(Statement& s, Instruction& i) {
  int mode = FE_TONEAREST;
  bool rounds = true;
  if (s.take("rna")) {
    if (!s.take("tf32") || !s.take("f32")) s.unknown("only to .tf32");
    i.d[0] = s.target(0, Type::B32), i.a[0] = s.source(1, Type::B32);
    i.run = tf32;
    return;
  }
  if (s.take("rni")) i.option = kNearestInt;
  else if (s.take("rzi")) i.option = kZeroInt;
  else if (s.take("rmi")) i.option = kDownInt;
  else if (s.take("rpi")) i.option = kUpInt;
  else if (s.take("rz")) mode = FE_TOWARDZERO;
  else if (s.take("rm")) mode = FE_DOWNWARD;
  else if (s.take("rp")) mode = FE_UPWARD;
  else rounds = s.take("rn");
  const bool to_int = i.option != 0;
  if (s.take("ftz")) i.option |= kFlushes;
  if (s.take("sat")) i.option |= kSaturates;
  const Type to = s.type(), from = s.type();
  if (to == Type::BF16x2 || to == Type::F16x2) {
    if (from != Type::F32 || !rounds || i.option || mode != FE_TONEAREST) s.unknown("of this form");
    i.d[0] = s.target(0, to), i.a[0] = s.source(1, from), i.b[0] = s.source(2, from);
    i.run = to == Type::F16x2 ? convert_pair<Half> : convert_pair<Bfloat>;
    return;
  }
  // To an integer a floating point number is rounded by .rni and the like, to fewer bits by .rn and the like.
  const bool is_real = from >= Type::F16, wants_real = to >= Type::F16, narrows = !is_real || size_of(to) < size_of(from);
  const bool wants_int = is_real && !wants_real, wants_rounding = wants_real && (narrows || (size_of(to) == 2 && to != from));
  if (to_int ? !wants_int && (to != from || !is_real) : wants_int) s.unknown("rounded to an integer or not");
  if (!to_int && rounds != wants_rounding) s.unknown("rounded or not");
  i.d[0] = s.target(0, to, true), i.a[0] = s.source(1, from, true);
  const uint32_t width = s.width(s.text(1));
  i.bytes = uint8_t(width ? width : std::max(2u, size_of(from)));
  i.count = uint8_t(s.width(s.text(0)));
  i.run = conversion(to, from, mode);
  if (!i.run) s.unknown("of these types");
}

}  // namespace

const std::map<std::string_view, Decode>& conversions() {
  static const std::map<std::string_view, Decode> table = {{"mov", decode_mov}, {"cvt", decode_cvt}};
  return table;
}

}  // namespace ptx
