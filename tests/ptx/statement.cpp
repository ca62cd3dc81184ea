// Of a statement: its types, numbers, names and operands.
#include <algorithm>
#include <cstring>
#include <set>

#include "decode.h"

namespace ptx {

std::string string_of(std::string_view text) { return std::string(text); }

std::string_view trim(std::string_view text) {
  while (!text.empty() && isspace(text.front())) text.remove_prefix(1);
  while (!text.empty() && isspace(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && strchr("{[(", text[i])) ++depth;
    if (i < text.size() && strchr("}])", text[i])) --depth;
    if (i < text.size() && (text[i] != separator || depth)) continue;
    if (const std::string_view part = trim(text.substr(begin, i - begin)); !part.empty()) parts.push_back(part);
    begin = i + 1;
  }
  return parts;
}

// ---- types, numbers and names ----

static const std::map<std::string_view, Type> kTypes = {
    {"pred", Type::Pred}, {"b8", Type::B8},   {"b16", Type::B16},   {"b32", Type::B32},     {"b64", Type::B64},
    {"u8", Type::U8},     {"u16", Type::U16}, {"u32", Type::U32},   {"u64", Type::U64},     {"s8", Type::S8},
    {"s16", Type::S16},   {"s32", Type::S32}, {"s64", Type::S64},   {"f16", Type::F16},     {"bf16", Type::BF16},
    {"f32", Type::F32},   {"f64", Type::F64}, {"f16x2", Type::F16x2}, {"bf16x2", Type::BF16x2}, {"f32x2", Type::F32x2}};

Type type_of(std::string_view name) {
  const auto found = kTypes.find(name);
  return found == kTypes.end() ? Type::None : found->second;
}

uint32_t size_of(Type type) {
  switch (type) {
    case Type::None: case Type::Pred: return 0;
    case Type::B8: case Type::U8: case Type::S8: return 1;
    case Type::B16: case Type::U16: case Type::S16: case Type::F16: case Type::BF16: return 2;
    case Type::B64: case Type::U64: case Type::S64: case Type::F64: case Type::F32x2: return 8;
    default: return 4;
  }
}

uint64_t literal(std::string_view text, Type type) {
  const std::string digits(text);
  if (digits.size() > 2 && digits[0] == '0' && strchr("fF", digits[1])) return strtoull(digits.c_str() + 2, nullptr, 16);
  if (digits.size() > 2 && digits[0] == '0' && strchr("dD", digits[1])) return strtoull(digits.c_str() + 2, nullptr, 16);
  if (digits.find('.') != std::string::npos) {
    uint64_t bits = 0;
    if (type == Type::F32) {
      const float value = strtof(digits.c_str(), nullptr);
      memcpy(&bits, &value, sizeof value);
    } else {
      const double value = strtod(digits.c_str(), nullptr);
      memcpy(&bits, &value, sizeof value);
    }
    return bits;
  }
  return digits[0] == '-' ? uint64_t(strtoll(digits.c_str(), nullptr, 0)) : strtoull(digits.c_str(), nullptr, 0);
}

uint32_t Scope::room(uint32_t width) {
  const uint32_t place = kernel.frame_bytes;
  kernel.frame_bytes += width ? std::max(width, 2u) * kLanes : 64;  // values of one byte stand in two
  return place;
}

uint32_t Scope::constant(uint32_t width, uint64_t bits) {
  const auto [found, is_new] = constants.try_emplace({width, bits}, 0);
  if (is_new) {
    found->second = room(width);
    kernel.constants.push_back({found->second, width, bits});
  }
  return found->second;
}

Register Scope::find(std::string_view name) {
  for (auto inner = registers.rbegin(); inner != registers.rend(); ++inner)
    if (const auto found = inner->find(name); found != inner->end()) return found->second;
  static const std::set<std::string_view> known = {
      "%tid.x",         "%tid.y",         "%tid.z",         "%ntid.x",        "%ntid.y",           "%ntid.z",
      "%ctaid.x",       "%ctaid.y",       "%ctaid.z",       "%nctaid.x",      "%nctaid.y",         "%nctaid.z",
      "%laneid",        "%warpid",        "%lanemask_lt",   "%lanemask_le",   "%lanemask_eq",      "%lanemask_ge",
      "%lanemask_gt",   "%cluster_ctarank", "%cluster_ctaid.x", "%cluster_nctarank", "%cluster_nctaid.x", "%clusterid.x",
      "%nclusterid.x"};
  if (!known.count(name)) fail("unknown name %s", string_of(name).c_str());
  const auto [found, is_new] = kernel.specials.try_emplace(string_of(name), 0);
  if (is_new) found->second = room(4);
  return {Type::B32, found->second};
}

// ---- statements ----

Statement::Statement(Scope& scope, std::string_view opcode, std::string_view operands, int line)
    : op(opcode.substr(0, opcode.find('.'))), line(line), scope(scope), operands_(split(operands, ',')) {
  std::string_view rest = opcode.substr(op.size());
  while (!rest.empty()) {  // .a::b is one modifier
    rest.remove_prefix(1);
    const size_t end = rest.find('.');
    modifiers_.push_back(rest.substr(0, end));
    rest = end == std::string_view::npos ? "" : rest.substr(end);
  }
}

bool Statement::take(std::string_view modifier) {
  if (done() || modifiers_[next_] != modifier) return false;
  ++next_;
  return true;
}

std::string_view Statement::take() { return done() ? std::string_view() : modifiers_[next_++]; }

Type Statement::type() {
  const Type type = done() ? Type::None : type_of(modifiers_[next_]);
  if (type == Type::None) unknown("expected a type");
  ++next_;
  return type;
}

void Statement::unknown(const char* why) const {
  std::string text(op);
  for (size_t i = 0; i < modifiers_.size(); ++i) text += (i == next_ ? " >." : ".") + string_of(modifiers_[i]);
  fail("unknown instruction: %s (%s)", text.c_str(), why);
}

std::string_view Statement::text(size_t index) const {
  if (index >= operands_.size()) unknown("an operand is missing");
  return operands_[index];
}

std::vector<std::string_view> Statement::parts(size_t index) const {
  const std::string_view whole = text(index);
  return whole[0] == '{' ? split(whole.substr(1, whole.size() - 2), ',') : split(whole, '|');
}

bool Statement::is_number(std::string_view operand) const { return isdigit(operand[0]) || operand[0] == '-'; }

uint64_t Statement::number(size_t index) const {
  if (!is_number(text(index))) unknown("an operand is no number");
  return literal(text(index), Type::B64);
}

uint32_t Statement::source(std::string_view operand, Type type, bool wider) {
  const uint32_t width = size_of(type);
  if (is_number(operand)) {
    const uint64_t bits = literal(operand, type);
    return scope.constant(width, type == Type::Pred ? bits ? 0xffffffff : 0 : width < 8 ? bits & ((1ull << 8 * width) - 1) : bits);
  }
  if (const auto found = scope.variables.find(operand); found != scope.variables.end()) return scope.constant(width, found->second);
  return target(operand, type, wider);
}

uint32_t Statement::target(std::string_view operand, Type type, bool wider) {
  const uint32_t width = size_of(type);
  if (operand == "_") return scope.room(8);
  const Register found = scope.find(operand);
  const uint32_t has = size_of(found.type);
  if (!(has == width || (wider && has > width)) || (has == 0) != (type == Type::Pred))
    fail("%s has %u bytes, the instruction takes %u", string_of(operand).c_str(), has, width);
  return found.place;
}

uint32_t Statement::width(std::string_view operand) const {
  if (is_number(operand) || operand == "_" || scope.variables.count(operand)) return 0;
  return size_of(scope.find(operand).type);
}

uint32_t Statement::address(size_t index, int64_t& offset, uint32_t& width) {
  std::string_view inside = text(index);
  if (inside[0] != '[') unknown("expected an address");
  inside = trim(inside.substr(1, inside.size() - 2));
  const size_t plus = inside.find('+');
  const std::string_view base = trim(inside.substr(0, plus));
  offset = plus == std::string_view::npos ? 0 : int64_t(literal(trim(inside.substr(plus + 1)), Type::B64));
  const uint32_t has = this->width(base);
  width = has ? has : 8;
  return source(base, width == 8 ? Type::B64 : Type::B32);
}

}  // namespace ptx
