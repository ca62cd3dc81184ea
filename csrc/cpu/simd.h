// Vectors of one machine register, loads and stores for every storage type, exp. Compiled once per instruction set:
// everything lives in that set's namespace, so that no inline function of one set is ever linked into another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define LADA_X86 1
#endif

#define LADA_INLINE __attribute__((always_inline)) inline
// Arrays of vectors stay in registers only where every loop over them is unrolled.
#if defined(__clang__)
#define LADA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LADA_UNROLL _Pragma("GCC unroll 16")
#endif

namespace lada {
namespace LADA_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileTokens = 4, kTileVectors = 4;  // tiles that fill 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileTokens = 2, kTileVectors = 2;  // tiles that fill 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kTileTokens = 2, kTileVectors = 2;
#endif
constexpr int kTileHeads = 4;

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

template <class T> using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class Element, int Count> struct VectorOf {
  typedef Element type __attribute__((vector_size(Count * sizeof(Element))));
  typedef Element unaligned __attribute__((vector_size(Count * sizeof(Element)), aligned(alignof(Element)), may_alias));
};
template <class A> constexpr int kLanes = kVectorBytes / int(sizeof(A));
template <class A> using Vector = typename VectorOf<A, kLanes<A>>::type;
template <class A> using IntVector =
    typename VectorOf<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>, kLanes<A>>::type;
using Words = VectorOf<uint32_t, kLanes<float>>;
using Halves = VectorOf<uint16_t, kLanes<float>>;

template <class A> inline Vector<A> broadcast(A value) { return value - Vector<A>{}; }  // 0 + x would lose the sign of -0

template <class To, class From> inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// ---- conversion between 16-bit storage and float ----

inline Vector<float> widen(Halves::type bits, BFloat16) {
  return bit_cast<Vector<float>>(__builtin_convertvector(bits, Words::type) << 16);
}

inline Halves::type narrow(Vector<float> value, BFloat16) {
  const auto bits = bit_cast<Words::type>(value);
  const Words::type rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Words::type quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(value == value ? rounded : quiet, Halves::type);
}

#if defined(__AVX512F__)
inline Vector<float> widen(Halves::type bits, Half) { return _mm512_cvtph_ps(bit_cast<__m256i>(bits)); }
inline Halves::type narrow(Vector<float> value, Half) {
  return bit_cast<Halves::type>(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
inline Vector<float> widen(Halves::type bits, Half) { return _mm256_cvtph_ps(bit_cast<__m128i>(bits)); }
inline Halves::type narrow(Vector<float> value, Half) {
  return bit_cast<Halves::type>(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
inline Vector<float> widen(Halves::type halves, Half) {
  const auto bits = __builtin_convertvector(halves, Words::type);
  const Words::type magnitude = (bits & 0x7fff) << 13;
  const Words::type scaled = bit_cast<Words::type>(bit_cast<Vector<float>>(magnitude) * 0x1p112f);  // subnormals too
  const Words::type special = magnitude | 0x7f800000;
  return bit_cast<Vector<float>>((magnitude >= 0x0f800000u ? special : scaled) | ((bits & 0x8000) << 16));
}
inline Halves::type narrow(Vector<float> value, Half) {
  const auto bits = bit_cast<Words::type>(value);
  const Words::type sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const Words::type normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 1/2 aligns a subnormal half's last bit with the float's, so the addition itself rounds.
  const Words::type subnormal = bit_cast<Words::type>(bit_cast<Vector<float>>(magnitude) + 0.5f) - 0x3f000000;
  Words::type result = magnitude < 0x38800000u ? subnormal : normal;
  result = result > 0x7c00u || magnitude >= 0x47800000u ? Words::type{} + 0x7c00u : result;
  result = magnitude > 0x7f800000u ? Words::type{} + 0x7e00u : result;
  return __builtin_convertvector(result | sign, Halves::type);
}
#endif

// ---- loads and stores of one vector, whole or of its first lanes ----

struct Whole {};
struct First { int count; };

template <class A> using IfWide = std::enable_if_t<std::is_floating_point_v<A>>;

template <class A, class = IfWide<A>> inline Vector<A> load(const A* from, Whole = {}) {
  return *reinterpret_cast<const typename VectorOf<A, kLanes<A>>::unaligned*>(from);
}
template <class T> inline Vector<float> load16(const T* from) {
  return widen(*reinterpret_cast<const Halves::unaligned*>(from), T{});
}
inline Vector<float> load(const BFloat16* from, Whole = {}) { return load16(from); }
inline Vector<float> load(const Half* from, Whole = {}) { return load16(from); }

template <class A, class = IfWide<A>> inline void store(A* to, Vector<A> value, Whole = {}) {
  *reinterpret_cast<typename VectorOf<A, kLanes<A>>::unaligned*>(to) = value;
}
template <class T> inline void store16(T* to, Vector<float> value) {
  *reinterpret_cast<Halves::unaligned*>(to) = narrow(value, T{});
}
inline void store(BFloat16* to, Vector<float> value, Whole = {}) { store16(to, value); }
inline void store(Half* to, Vector<float> value, Whole = {}) { store16(to, value); }

template <class T> inline Vector<Accumulate<T>> load(const T* from, First lanes) {
  T buffer[kLanes<Accumulate<T>>] = {};
  for (int i = 0; i < lanes.count; ++i) buffer[i] = from[i];
  return load(buffer, Whole{});
}
template <class T> inline void store(T* to, Vector<Accumulate<T>> value, First lanes) {
  T buffer[kLanes<Accumulate<T>>];
  store(buffer, value, Whole{});
  for (int i = 0; i < lanes.count; ++i) to[i] = buffer[i];
}
#if defined(__AVX512F__)
inline Vector<float> load(const float* from, First lanes) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << lanes.count) - 1), from);
}
inline void store(float* to, Vector<float> value, First lanes) {
  _mm512_mask_storeu_ps(to, __mmask16((1u << lanes.count) - 1), value);
}
#endif

// A store past the caches, for results that will not fit in them; `to` is aligned to the stored width.
template <class T> inline void stream(T* to, Vector<Accumulate<T>> value) {
#if defined(LADA_X86)
  if constexpr (std::is_same_v<T, float>) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, value);
#elif defined(__AVX2__)
    _mm256_stream_ps(to, value);
#else
    _mm_stream_ps(to, value);
#endif
    return;
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bit_cast<__m256i>(narrow(value, T{})));
    return;
  }
#endif
#endif
  store(to, value);
}
inline void finish_streaming() {
#if defined(LADA_X86)
  _mm_sfence();
#endif
}

// body(j, lanes) for j = begin, begin + W, … up to end, the last one with the lanes that are left.
template <class A, class Body> inline void for_vectors(int64_t begin, int64_t end, Body&& body) {
  int64_t j = begin;
  for (; j + kLanes<A> <= end; j += kLanes<A>) body(j, Whole{});
  if (j < end) body(j, First{int(end - j)});
}

// ---- sums over lanes ----

template <int Block, class V, int... Lane>
LADA_INLINE V fold_pair(V a, V b, std::integer_sequence<int, Lane...>) {
  constexpr int width = sizeof...(Lane), half = Block / 2;
  // Lane = q·Block + s·half + o: half s of the result's block comes from a (s = 0) or b (s = 1).
  return __builtin_shufflevector(a, b, ((Lane % Block / half) * width + Lane / Block * Block + Lane % half)...) +
         __builtin_shufflevector(a, b, ((Lane % Block / half) * width + Lane / Block * Block + half + Lane % half)...);
}

template <class A, int Count, int Block> LADA_INLINE void fold(Vector<A>* v) {
  if constexpr (Count > 1 && Block > 1) {
    LADA_UNROLL for (int i = 0; i < Count / 2; ++i)
      v[i] = fold_pair<Block>(v[i], v[i + Count / 2], std::make_integer_sequence<int, kLanes<A>>{});
    fold<A, Count / 2, Block / 2>(v);
  }
}

// out[i] = the sum of v[i]'s lanes, for Count (a power of two) vectors at once, transposing as it adds.
template <class A, int Count> LADA_INLINE void sum_lanes(Vector<A>* v, A* out) {
  constexpr int width = kLanes<A>;
  if constexpr (Count > width) {
    for (int i = 0; i < Count; i += width) sum_lanes<A, width>(v + i, out + i);
  } else {
    fold<A, Count, width>(v);
    if constexpr (Count == width) {
      store(out, v[0]);
    } else {
      A lanes[width];
      store(lanes, v[0]);
      for (int i = 0; i < Count; ++i) {
        A sum = 0;
        for (int lane = 0; lane < width / Count; ++lane) sum += lanes[i * (width / Count) + lane];
        out[i] = sum;
      }
    }
  }
}

template <class A> inline A sum_lanes(Vector<A> v) {
  A sum;
  sum_lanes<A, 1>(&v, &sum);
  return sum;
}

// ---- exp ----

// e^x to about one unit in the last place; 0 below -87, inf above 88.7, NaN for NaN.
inline Vector<float> exp(Vector<float> x) {
  const Vector<float> low = broadcast(-87.0f), high = broadcast(89.0f);
  const Vector<float> clamped = x < low ? low : (x > high ? high : x);
  const Vector<float> shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5·2^23: the sum's low bits hold round(x/ln 2)
  const Vector<float> n = shifted - 12582912.0f;
  const Vector<float> r = clamped - n * 0.693145752f - n * 1.42860677e-6f;
  Vector<float> p = broadcast(1.0f / 5040);
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + coefficient;
  const IntVector<float> exponent = bit_cast<IntVector<float>>(shifted) << 23;
  // In two halves: 2^128 alone is no float.
  const IntVector<float> half = (exponent >> 24) << 23;
  const Vector<float> result = bit_cast<Vector<float>>(bit_cast<IntVector<float>>(p) + half);
  const Vector<float> scaled = result * bit_cast<Vector<float>>((exponent - half) + (127 << 23));
  return x < low ? Vector<float>{} : (x == x ? scaled : x);
}

// values[i] = e^values[i]
inline void exp_all(float* values, int64_t count) {
  for_vectors<float>(0, count, [&](int64_t i, auto lanes) { store(values + i, exp(load(values + i, lanes)), lanes); });
}
inline void exp_all(double* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = std::exp(values[i]);
}

}  // namespace LADA_ISA
}  // namespace lada
