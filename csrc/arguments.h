// An argument struct of csrc/lada.h from what Python passes for its fields, by name.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "lada.h"

namespace lada {

// The fields of each struct: visit(name, field), the name a Python string that is made once.
#define FIELD(name)                                                   \
  {                                                                   \
    static PyObject* const key = PyUnicode_InternFromString(#name);   \
    visit(key, s.name);                                               \
  }
template <class Visit> void fields(Shape& s, Visit& visit) {
  FIELD(batch) FIELD(tokens) FIELD(channels) FIELD(heads) FIELD(dtype) FIELD(threads)
}
template <class Visit> void fields(Pool& s, Visit& visit) {
  FIELD(x) FIELD(weight) FIELD(mask) FIELD(pooled) FIELD(normaliser) FIELD(scale) FIELD(per_head)
}
template <class Visit> void fields(PoolForward& s, Visit& visit) {
  FIELD(shape) FIELD(pool) FIELD(alpha)
}
template <class Visit> void fields(PoolBackward& s, Visit& visit) {
  FIELD(shape) FIELD(pool) FIELD(grad) FIELD(grad_x) FIELD(grad_weight)
}
template <class Visit> void fields(PoolDoubleBackward& s, Visit& visit) {
  FIELD(shape) FIELD(pool) FIELD(grad) FIELD(cot_x) FIELD(cot_weight) FIELD(out_grad) FIELD(out_x) FIELD(out_weight)
}
template <class Visit> void fields(PoolStages& s, Visit& visit) {
  fields(s.problem, visit);
  FIELD(extra) FIELD(scalars) FIELD(means) FIELD(weight_sum)
}
template <class Visit> void fields(GateForward& s, Visit& visit) {
  FIELD(shape) FIELD(gate) FIELD(k) FIELD(v) FIELD(out)
}
template <class Visit> void fields(GateBackward& s, Visit& visit) {
  FIELD(shape) FIELD(gate) FIELD(grad) FIELD(k) FIELD(v) FIELD(grad_gate) FIELD(grad_k) FIELD(grad_v)
}
template <class Visit> void fields(GateDoubleBackward& s, Visit& visit) {
  FIELD(shape) FIELD(gate) FIELD(grad) FIELD(k) FIELD(v) FIELD(cot_gate) FIELD(cot_k) FIELD(cot_v) FIELD(out_gate)
  FIELD(out_grad) FIELD(out_k) FIELD(out_v)
}
template <class Visit> void fields(AttentionForward& s, Visit& visit) {
  FIELD(shape) FIELD(pool) FIELD(alpha) FIELD(k) FIELD(v) FIELD(out)
}
template <class Visit> void fields(AttentionBackward& s, Visit& visit) {
  FIELD(shape) FIELD(pool) FIELD(grad) FIELD(k) FIELD(v) FIELD(grad_q) FIELD(grad_k) FIELD(grad_v) FIELD(grad_pooled)
  FIELD(grad_weight)
}
template <class Visit> void fields(AttentionDoubleBackward& s, Visit& visit) {
  FIELD(shape) FIELD(pool) FIELD(grad) FIELD(k) FIELD(v) FIELD(grad_pooled) FIELD(cot_q) FIELD(cot_k) FIELD(cot_v)
  FIELD(cot_weight) FIELD(out_grad) FIELD(out_q) FIELD(out_k) FIELD(out_v) FIELD(out_weight)
}
template <class Visit> void fields(NormForward& s, Visit& visit) {
  FIELD(shape) FIELD(eps) FIELD(x) FIELD(gamma) FIELD(beta) FIELD(out) FIELD(mean) FIELD(rstd)
}
template <class Visit> void fields(NormBackward& s, Visit& visit) {
  FIELD(shape) FIELD(grad) FIELD(x) FIELD(gamma) FIELD(mean) FIELD(rstd) FIELD(grad_x) FIELD(grad_gamma) FIELD(grad_beta)
}
template <class Visit> void fields(NormDoubleBackward& s, Visit& visit) {
  FIELD(shape) FIELD(grad) FIELD(x) FIELD(gamma) FIELD(mean) FIELD(rstd) FIELD(cot_x) FIELD(cot_gamma) FIELD(cot_beta)
  FIELD(out_grad) FIELD(out_x) FIELD(out_gamma)
}
#undef FIELD

template <class Struct> void read(pybind11::handle given, Struct& s);

inline void set(pybind11::handle given, int64_t& field) { field = given.cast<int64_t>(); }
inline void set(pybind11::handle given, int32_t& field) { field = given.cast<int32_t>(); }
inline void set(pybind11::handle given, double& field) { field = given.cast<double>(); }
inline void set(pybind11::handle given, bool& field) { field = given.cast<bool>(); }
inline void set(pybind11::handle given, DType& field) { field = DType(given.cast<int32_t>()); }
inline void set(pybind11::handle given, Shape& field) { read(given, field); }
inline void set(pybind11::handle given, Pool& field) { read(given, field); }

template <class T> void set(pybind11::handle address, T*& field) {  // 0 = absent
  field = reinterpret_cast<T*>(address.cast<std::uintptr_t>());
}

inline void set(pybind11::handle given, Tokens& field) {  // (address, batch stride, token stride)
  const auto given_tuple = pybind11::reinterpret_borrow<pybind11::tuple>(given);
  set(given_tuple[0], field.data);
  set(given_tuple[1], field.batch_stride);
  set(given_tuple[2], field.token_stride);
}

// A dict holds all fields and nothing else.
template <class Struct> void read(pybind11::handle given, Struct& s) {
  Py_ssize_t count = 0;
  const auto visit = [&](PyObject* name, auto& field) {
    PyObject* value = PyDict_GetItem(given.ptr(), name);
    if (!value) throw pybind11::type_error(std::string(pybind11::str(name)) + ": got nothing for this field");
    set(value, field);
    ++count;
  };
  fields(s, visit);
  if (count != PyDict_Size(given.ptr()))
    throw pybind11::type_error("got " + std::to_string(PyDict_Size(given.ptr())) + " fields, expected " + std::to_string(count));
}

template <class Arguments> Arguments arguments_from(const pybind11::kwargs& given) {
  Arguments arguments{};
  read(given, arguments);
  return arguments;
}

}  // namespace lada
