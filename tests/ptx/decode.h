// How the text of an instruction becomes its decoded form.
#pragma once

#include "machine.h"

namespace ptx {

enum class Type : uint8_t { None, Pred, B8, B16, B32, B64, U8, U16, U32, U64, S8, S16, S32, S64, F16, BF16, F32, F64, F16x2, BF16x2, F32x2 };
uint32_t size_of(Type type);
Type type_of(std::string_view name);  // None if it is none

struct Register {
  Type type;
  uint32_t place;
};

// What the statements of a kernel share while it is decoded: its names, and where their values lie in the frame.
struct Scope {
  Kernel& kernel;
  std::vector<std::map<std::string_view, Register>> registers;  // innermost last
  std::map<std::string_view, uint32_t> labels;
  std::map<std::string_view, uint32_t> variables;  // -> address in their space
  std::map<std::pair<uint32_t, uint64_t>, uint32_t> constants;  // (width, bits) -> place
  std::deque<std::string> names;                                // that the maps look at

  uint32_t room(uint32_t width);  // of 32 values of that many bytes; 0: a predicate
  uint32_t constant(uint32_t width, uint64_t bits);
  Register find(std::string_view name);
};

class Statement {
 public:
  Statement(Scope& scope, std::string_view opcode, std::string_view operands, int line);

  const std::string_view op;  // before the first dot
  const int line;

  // The next modifier if it is this one, or the next one whatever it is.
  bool take(std::string_view modifier);
  std::string_view take();
  bool done() const { return next_ == modifiers_.size(); }
  Type type();  // the next modifier, which is a type
  [[noreturn]] void unknown(const char* why) const;

  size_t count() const { return operands_.size(); }
  std::string_view text(size_t index) const;
  std::vector<std::string_view> parts(size_t index) const;  // of {a, b}, or of a|b, or of one

  // Where an operand lies in the frame; its register is as wide as `type`, or at least so wide if `wider`.
  uint32_t source(std::string_view operand, Type type, bool wider = false);
  uint32_t source(size_t index, Type type, bool wider = false) { return source(text(index), type, wider); }
  uint32_t target(std::string_view operand, Type type, bool wider = false);
  uint32_t target(size_t index, Type type, bool wider = false) { return target(text(index), type, wider); }
  uint32_t width(std::string_view operand) const;  // of its register, in bytes; 0 if it is none
  // [register + offset], [variable + offset] or [number]: the place of the base, its width and the offset
  uint32_t address(size_t index, int64_t& offset, uint32_t& width);
  uint64_t number(size_t index) const;  // an operand that is a constant
  bool is_number(std::string_view operand) const;

  Scope& scope;

 private:
  std::vector<std::string_view> modifiers_, operands_;
  size_t next_ = 0;
};

std::vector<std::string_view> split(std::string_view text, char separator);  // outside of brackets; trimmed
std::string_view trim(std::string_view text);
uint64_t literal(std::string_view text, Type type);
std::string string_of(std::string_view text);

constexpr uint32_t kSharedStart = 1024;               // of a block's memory in the window of shared addresses
constexpr int kRankShift = 24;                        // an address of block r's shared memory: (r + 1) << 24 | offset
constexpr uint64_t kSharedWindow = uint64_t(1) << 58;  // of generic addresses
constexpr uint64_t kLocalWindow = uint64_t(1) << 59;

}  // namespace ptx
