// Token rows in registers: the storage types, 16 bytes of them at a time, and the channels that a thread works on.
#pragma once

#include <device.h>

#include <cstring>
#include <type_traits>

namespace lada {
namespace cuda {

template <class T> constexpr int kVector = 16 / int(sizeof(T));  // channels in 16 bytes

__device__ inline float bits_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

__device__ inline uint32_t float_as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T> struct Words;  // the one or two channels of 32 bits

template <> struct Words<float> {
  __device__ static void widen(uint32_t word, float* out) { out[0] = bits_as_float(word); }
  __device__ static uint32_t narrow(const float* from) { return float_as_bits(from[0]); }
};

template <> struct Words<__nv_bfloat16> {
  __device__ static void widen(uint32_t word, float* out) {
    out[0] = bits_as_float(word << 16);
    out[1] = bits_as_float(word & 0xffff0000u);
  }
  __device__ static uint32_t narrow(const float* from) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(from[0], from[1]);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
  }
};

template <> struct Words<__half> {
  __device__ static void widen(uint32_t word, float* out) {
    __half2 pair;
    memcpy(&pair, &word, sizeof word);
    const float2 values = __half22float2(pair);
    out[0] = values.x;
    out[1] = values.y;
  }
  __device__ static uint32_t narrow(const float* from) {
    const __half2 pair = __floats2half2_rn(from[0], from[1]);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
  }
};

template <class T> __device__ inline void widen(const uint4& vector, float* out) {  // -> [kVector]
  constexpr int kStep = kVector<T> / 4;
  Words<T>::widen(vector.x, out);
  Words<T>::widen(vector.y, out + kStep);
  Words<T>::widen(vector.z, out + 2 * kStep);
  Words<T>::widen(vector.w, out + 3 * kStep);
}

template <class T> __device__ inline uint4 narrow(const float* from) {  // [kVector] ->
  constexpr int kStep = kVector<T> / 4;
  return {Words<T>::narrow(from), Words<T>::narrow(from + kStep), Words<T>::narrow(from + 2 * kStep),
          Words<T>::narrow(from + 3 * kStep)};
}

// Which of D channels a thread works on: P vectors, each `lanes` vectors after the last.
template <class T, int P> struct Channels {
  int lane, lanes, total;
  bool wide;  // every vector is whole, and aligned in every tensor

  __device__ int first(int p) const { return (lane + p * lanes) * kVector<T>; }

  template <class Body> __device__ void for_each(Body body) const {  // body(place in registers, channel)
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i)
        if (first(p) + i < total) body(p * kVector<T> + i, first(p) + i);
  }
};

template <class T> __device__ inline const T* row(const Tokens& x, int64_t b, int64_t n) {
  return static_cast<const T*>(x.data) + b * x.batch_stride + n * x.token_stride;
}

template <class T> __device__ inline T* writable_row(const Tokens& x, int64_t b, int64_t n) {
  return static_cast<T*>(x.data) + b * x.batch_stride + n * x.token_stride;
}

// A thread's channels of U tokens, n and every `step` after it; zeros for those from `end` on and for an absent x.
// Tokens are counted in 64 bits or, to spare registers, in 32.
template <class T, int P, int U, class Count>
__device__ inline void load(const Tokens& x, int64_t b, Count n, std::common_type_t<Count> step, std::common_type_t<Count> end,
                            const Channels<T, P>& channels, uint4 (&out)[U][P]) {
#pragma unroll
  for (int u = 0; u < U; ++u)
#pragma unroll
    for (int p = 0; p < P; ++p) out[u][p] = {0, 0, 0, 0};
  if (!x.data) return;
  if (channels.wide) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (n + u * step >= end) continue;
      const T* from = row<T>(x, b, n + u * step) + channels.first(0);
#pragma unroll
      for (int p = 0; p < P; ++p)
        if (channels.first(p) < channels.total) out[u][p] = load_once(from + p * channels.lanes * kVector<T>);
    }
    return;
  }
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (n + u * step >= end) break;
    const T* from = row<T>(x, b, n + u * step);
    T values[P * kVector<T>];
    memset(values, 0, sizeof values);
    channels.for_each([&](int i, int channel) { values[i] = from[channel]; });
    memcpy(out[u], values, sizeof values);
  }
}

// A thread's channels of a row of floats, zeros where `from` is null.
template <class T, int P> __device__ inline void load_row(const float* from, const Channels<T, P>& channels, float* out) {
#pragma unroll
  for (int i = 0; i < P * kVector<T>; ++i) out[i] = 0;
  if (from) channels.for_each([&](int i, int channel) { out[i] = from[channel]; });
}

// Write a thread's channels of token n.
template <class T, int P>
__device__ inline void store(const Tokens& x, int64_t b, int64_t n, const Channels<T, P>& channels, const float* values) {
  T* to = writable_row<T>(x, b, n) + channels.first(0);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int first = channels.first(p), offset = p * channels.lanes * kVector<T>;
    const uint4 vector = narrow<T>(values + p * kVector<T>);
    if (channels.wide) {
      if (first < channels.total) store_at_once(to + offset, vector);
      continue;
    }
    T narrowed[kVector<T>];
    memcpy(narrowed, &vector, sizeof vector);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i)
      if (first + i < channels.total) to[offset + i] = narrowed[i];
  }
}

// ---- on the host ----

// body(a value of the storage type) for the type that `dtype` names; F64 never comes here.
template <class Body> Outcome dispatch(DType dtype, Body body) {
  switch (dtype) {
    case DType::BF16:
      return body(__nv_bfloat16());
    case DType::F16:
      return body(__half());
    default:
      return body(float());
  }
}

// Whether all of these can be accessed 16 bytes at a time; absent ones can, and no stride is taken along a dimension of one.
template <class T, class... Rest> bool aligned(const Shape& shape, const Rest&... tensors) {
  const auto whole = [](int64_t size, int64_t stride) { return size <= 1 || stride % kVector<T> == 0; };
  const auto fits = [&](const Tokens& x) {
    return !x.data || (reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && whole(shape.batch, x.batch_stride) &&
                       whole(shape.tokens, x.token_stride));
  };
  return shape.channels % kVector<T> == 0 && (fits(tensors) && ...);
}

}  // namespace cuda
}  // namespace lada
