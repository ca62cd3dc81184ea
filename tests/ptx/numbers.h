// The 16-bit floating-point numbers, and what instructions do with subnormal ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

using Half = _Float16;

struct Bfloat {
  uint16_t bits;

  Bfloat() = default;
  explicit Bfloat(float value) {  // to the nearest, ties to even
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    bits = uint16_t(value != value ? 0x7fff : (wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
  }
};

inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline double flush(double x) { return x; }

}  // namespace ptx
