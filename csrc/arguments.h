// What Python hands to the kernels: addresses and strides as plain tuples.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "lada.h"

namespace lada {

using Address = std::uintptr_t;  // 0 = absent
template <class T = void> T* at(Address address) { return reinterpret_cast<T*>(address); }

using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int, int>;  // B, N, D, H, dtype, threads
using TokensTuple = std::tuple<Address, int64_t, int64_t>;                    // data, batch stride, token stride
using MapTuple = std::tuple<Address, int64_t, int64_t, int64_t>;             // data, batch, row and pixel stride
using PoolTuple = std::tuple<TokensTuple, Address, Address, Address, Address, double, bool>;

inline Shape shape(const ShapeTuple& s) {
  const auto [batch, tokens, channels, heads, dtype, threads] = s;
  return {batch, tokens, channels, heads, DType(dtype), threads};
}

inline Tokens tokens(const TokensTuple& t) { return {at(std::get<0>(t)), std::get<1>(t), std::get<2>(t)}; }

inline Pool pool(const PoolTuple& p) {
  const auto& [x, weight, mask, pooled, normaliser, scale, per_head] = p;
  return {tokens(x), at(weight), at<uint8_t>(mask), at(pooled), at(normaliser), scale, per_head};
}

// An argument struct from what Python passes for it, in the order of csrc/lada.h.
template <class Arguments> struct From;

template <> struct From<PoolForward> {
  static PoolForward make(const ShapeTuple& s, const PoolTuple& p, Address alpha) { return {shape(s), pool(p), at(alpha)}; }
};

template <> struct From<PoolBackward> {
  static PoolBackward make(const ShapeTuple& s, const PoolTuple& p, Address grad, const TokensTuple& grad_x, Address grad_weight) {
    return {shape(s), pool(p), at(grad), tokens(grad_x), at(grad_weight)};
  }
};

template <> struct From<PoolDoubleBackward> {
  static PoolDoubleBackward make(const ShapeTuple& s, const PoolTuple& p, Address grad, const TokensTuple& cot_x,
                                 Address cot_weight, Address out_grad, const TokensTuple& out_x, Address out_weight) {
    return {shape(s), pool(p), at(grad), tokens(cot_x), at(cot_weight), at(out_grad), tokens(out_x), at(out_weight)};
  }
};

template <> struct From<PoolStages> {
  static PoolStages make(const ShapeTuple& s, const PoolTuple& p, Address grad, const TokensTuple& cot_x, Address cot_weight,
                         Address out_grad, const TokensTuple& out_x, Address out_weight, Address extra, Address scalars,
                         Address means, Address weight_sum) {
    return {From<PoolDoubleBackward>::make(s, p, grad, cot_x, cot_weight, out_grad, out_x, out_weight), at(extra), at(scalars),
            at(means), at(weight_sum)};
  }
};

template <> struct From<GateForward> {
  static GateForward make(const ShapeTuple& s, Address gate, const TokensTuple& k, const TokensTuple& v, const TokensTuple& out) {
    return {shape(s), at(gate), tokens(k), tokens(v), tokens(out)};
  }
};

template <> struct From<GateBackward> {
  static GateBackward make(const ShapeTuple& s, Address gate, const TokensTuple& grad, const TokensTuple& k, const TokensTuple& v,
                           Address grad_gate, const TokensTuple& grad_k, const TokensTuple& grad_v) {
    return {shape(s), at(gate), tokens(grad), tokens(k), tokens(v), at(grad_gate), tokens(grad_k), tokens(grad_v)};
  }
};

template <> struct From<GateDoubleBackward> {
  static GateDoubleBackward make(const ShapeTuple& s, Address gate, const TokensTuple& grad, const TokensTuple& k,
                                 const TokensTuple& v, Address cot_gate, const TokensTuple& cot_k, const TokensTuple& cot_v,
                                 Address out_gate, const TokensTuple& out_grad, const TokensTuple& out_k,
                                 const TokensTuple& out_v) {
    return {shape(s),      at(gate),      tokens(grad),     tokens(k),     tokens(v),    at(cot_gate), tokens(cot_k),
            tokens(cot_v), at(out_gate), tokens(out_grad), tokens(out_k), tokens(out_v)};
  }
};

template <> struct From<AttentionForward> {
  static AttentionForward make(const ShapeTuple& s, const PoolTuple& p, Address alpha, const TokensTuple& k, const TokensTuple& v,
                               const TokensTuple& out) {
    return {shape(s), pool(p), at(alpha), tokens(k), tokens(v), tokens(out)};
  }
};

template <> struct From<AttentionBackward> {
  static AttentionBackward make(const ShapeTuple& s, const PoolTuple& p, const TokensTuple& grad, const TokensTuple& k,
                                const TokensTuple& v, const TokensTuple& grad_q, const TokensTuple& grad_k,
                                const TokensTuple& grad_v, Address grad_pooled, Address grad_weight) {
    return {shape(s),       pool(p),        tokens(grad),   tokens(k),       tokens(v),
            tokens(grad_q), tokens(grad_k), tokens(grad_v), at(grad_pooled), at(grad_weight)};
  }
};

template <> struct From<AttentionDoubleBackward> {
  static AttentionDoubleBackward make(const ShapeTuple& s, const PoolTuple& p, const TokensTuple& grad, const TokensTuple& k,
                                      const TokensTuple& v, Address grad_pooled, const TokensTuple& cot_q,
                                      const TokensTuple& cot_k, const TokensTuple& cot_v, Address cot_weight,
                                      const TokensTuple& out_grad, const TokensTuple& out_q, const TokensTuple& out_k,
                                      const TokensTuple& out_v, Address out_weight) {
    return {shape(s),      pool(p),        tokens(grad),   tokens(k),        tokens(v),     at(grad_pooled), tokens(cot_q),
            tokens(cot_k), tokens(cot_v),  at(cot_weight), tokens(out_grad), tokens(out_q), tokens(out_k),   tokens(out_v),
            at(out_weight)};
  }
};

template <> struct From<NormForward> {
  static NormForward make(const ShapeTuple& s, double eps, const TokensTuple& x, Address gamma, Address beta,
                          const TokensTuple& out, Address mean, Address rstd) {
    return {shape(s), eps, tokens(x), at(gamma), at(beta), tokens(out), at(mean), at(rstd)};
  }
};

template <> struct From<NormBackward> {
  static NormBackward make(const ShapeTuple& s, const TokensTuple& grad, const TokensTuple& x, Address gamma, Address mean,
                           Address rstd, const TokensTuple& grad_x, Address grad_gamma, Address grad_beta) {
    return {shape(s), tokens(grad), tokens(x), at(gamma), at(mean), at(rstd), tokens(grad_x), at(grad_gamma), at(grad_beta)};
  }
};

template <> struct From<NormDoubleBackward> {
  static NormDoubleBackward make(const ShapeTuple& s, const TokensTuple& grad, const TokensTuple& x, Address gamma, Address mean,
                                 Address rstd, const TokensTuple& cot_x, Address cot_gamma, Address cot_beta,
                                 const TokensTuple& out_grad, const TokensTuple& out_x, Address out_gamma) {
    return {shape(s),      tokens(grad),  tokens(x),    at(gamma),        at(mean),      at(rstd),
            tokens(cot_x), at(cot_gamma), at(cot_beta), tokens(out_grad), tokens(out_x), at(out_gamma)};
  }
};

template <> struct From<Winograd> {
  static Winograd make(const ShapeTuple& s, int64_t columns, const MapTuple& m, Address tiles, int64_t place_stride, bool mirrored) {
    const auto [map, batch_stride, row_stride, pixel_stride] = m;
    return {shape(s), columns, at(map), batch_stride, row_stride, pixel_stride, at(tiles), place_stride, mirrored};
  }
};

}  // namespace lada
