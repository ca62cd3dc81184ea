// How an instruction is carried out for the lanes of a warp: the same function of each lane's operands.
#pragma once

#include <cfenv>

#include "decode.h"

namespace ptx {

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

inline void operands(Statement& s, Instruction& i, Type type, int count) {
  i.d[0] = s.target(0, type);
  uint32_t* places[] = {&i.a[0], &i.b[0], &i.c[0]};
  for (int k = 0; k < count; ++k) *places[k] = s.source(size_t(k) + 1, type);
}

inline bool is_float(Type type) { return type >= Type::F16; }
inline bool is_whole(Type type) { return type >= Type::U16 && type <= Type::S64 && size_of(type) > 1; }

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
    case Type::U16: return ternary<uint16_t, uint16_t, f>;
    case Type::S16: return ternary<int16_t, int16_t, f>;
    case Type::U32: return ternary<uint32_t, uint32_t, f>;
    case Type::S32: return ternary<int32_t, int32_t, f>;
    case Type::U64: return ternary<uint64_t, uint64_t, f>;
    case Type::S64: return ternary<int64_t, int64_t, f>;
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

}  // namespace ptx
