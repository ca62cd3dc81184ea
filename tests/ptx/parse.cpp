// From the text of a module to kernels, and from a kernel's text to instructions.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "decode.h"

namespace ptx {

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Error(text);
}

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
  if (name[0] != '%') fail("unknown name %s", string_of(name).c_str());
  const auto [found, is_new] = kernel.specials.try_emplace(string_of(name), 0);
  if (is_new) found->second = room(name == "%is_explicit_cluster" ? 0 : 4);
  return {name == "%is_explicit_cluster" ? Type::Pred : Type::B32, found->second};
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

// ---- modules ----

// Comments become spaces, so that lines stay where they are.
static std::string without_comments(std::string text) {
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const bool line = text[i] == '/' && text[i + 1] == '/', span = text[i] == '/' && text[i + 1] == '*';
    if (!line && !span) continue;
    const size_t end = std::min(text.size(), line ? text.find('\n', i) : text.find("*/", i + 2) + 2);
    for (; i < end; ++i)
      if (text[i] != '\n') text[i] = ' ';
  }
  return text;
}

// `.shared .align 16 .b8 name[size]` -> name and bytes; a size that is left out is 0.
static std::pair<std::string, uint32_t> variable(std::string_view declaration, uint32_t& align) {
  uint32_t each = 1;
  align = 1;
  const std::vector<std::string_view> words = split(declaration, ' ');
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == ".ptr") break;  // what follows is said of what it points to
    if (words[i] == ".align") align = uint32_t(literal(words[i + 1], Type::B64));
    if (const Type type = type_of(words[i].substr(1)); words[i][0] == '.' && type != Type::None) each = size_of(type);
  }
  align = std::max(align, each);
  const std::string_view name = words.back(), plain = name.substr(0, name.find('['));
  if (plain.size() == name.size()) return {string_of(name), each};
  const std::string_view inside = name.substr(plain.size() + 1, name.size() - plain.size() - 2);
  return {string_of(plain), inside.empty() ? 0 : each * uint32_t(literal(inside, Type::B64))};
}

Module::Module(std::string text) : text_(without_comments(std::move(text))) {
  for (size_t begin = 0; begin < text_.size();) {
    const size_t end = std::min(text_.size(), text_.find('\n', begin));
    lines_.push_back(std::string_view(text_).substr(begin, end - begin));
    begin = end + 1;
  }
  for (size_t i = 0; i < lines_.size(); ++i) {
    const std::string_view line = trim(lines_[i]);
    if (line.substr(0, 10) == ".target sm") architecture_ = int(strtol(line.data() + 11, nullptr, 10));
    if (line.find(".shared ") != std::string_view::npos && line.back() == ';') {
      uint32_t align;
      shared_.insert(variable(line.substr(0, line.size() - 1), align));
    }
    const size_t entry = line.find(".entry ");
    if (entry == std::string_view::npos || line[0] != '.') continue;
    Kernel kernel;
    kernel.name = string_of(trim(line.substr(entry + 7, line.find('(') - entry - 7)));
    kernel.first_line = int(i) + 1;
    const char *from = line.data(), *open = strchr(from, '{');
    int depth = 0;
    const char* close = open;
    do depth += (*close == '{') - (*close == '}');
    while (depth && *++close);
    const std::string_view head(from, size_t(open - from));
    kernel.body = std::string_view(open + 1, size_t(close - open - 1));
    const size_t paren = head.find('(');
    const std::string_view directives = paren == std::string_view::npos ? head : head.substr(head.rfind(')') + 1);
    if (paren != std::string_view::npos)
      for (std::string_view one : split(head.substr(paren + 1, head.rfind(')') - paren - 1), ',')) {
        uint32_t align;
        const auto [name, bytes] = variable(one, align);
        kernel.parameter_bytes = (kernel.parameter_bytes + align - 1) / align * align;
        kernel.parameters.push_back({name, kernel.parameter_bytes, bytes});
        kernel.parameter_bytes += bytes;
      }
    const std::vector<std::string_view> words = split(directives, '\n');
    for (const std::string_view word : words) {
      const auto product = [&](std::string_view list) {
        int total = 1;
        for (std::string_view number : split(list, ',')) total *= int(literal(number, Type::B64));
        return total;
      };
      if (word.substr(0, 7) == ".reqnti") kernel.wanted_threads = product(word.substr(8));
      if (word.substr(0, 7) == ".maxnti") kernel.most_threads = product(word.substr(8));
    }
    kernels_.emplace(kernel.name, std::move(kernel));
    while (i + 1 < lines_.size() && lines_[i + 1].data() <= close) ++i;
  }
}

std::vector<std::string> Module::kernels() const {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : kernels_) names.push_back(name);
  return names;
}

std::string_view Module::line(int number) const { return number ? trim(lines_.at(size_t(number) - 1)) : std::string_view(); }

Kernel& Module::kernel(const std::string& name) {
  const auto found = kernels_.find(name);
  if (found == kernels_.end()) fail("there is no kernel %s in the module", name.c_str());
  if (!found->second.decoded) decode(found->second);
  return found->second;
}

static Decode decoder(std::string_view op) {
  for (const auto* table : {&arithmetic(), &conversions(), &memory_accesses(), &collectives()})
    if (const auto found = table->find(op); found != table->end()) return found->second;
  return nullptr;
}

void Module::decode(Kernel& kernel) {
  Scope scope{kernel, {{}}, {}, {}, {}, {}};
  for (const Parameter& parameter : kernel.parameters) scope.variables[parameter.name] = parameter.place;
  const auto place = [&](const std::string& name, uint32_t bytes, uint32_t align, uint32_t& total, uint32_t start) {
    total = (total + align - 1) / align * align;
    scope.names.push_back(name);
    scope.variables[scope.names.back()] = total + start;
    total += bytes;
  };
  for (const auto& [name, bytes] : shared_)
    if (bytes) place(name, bytes, 16, kernel.static_shared, kSharedStart);
  for (std::string_view text : split(kernel.body, ';')) {
    uint32_t align;
    const bool shared = text.substr(0, 8) == ".shared ";
    if (!shared && text.substr(0, 7) != ".local ") continue;
    const auto [name, bytes] = variable(text, align);
    shared ? place(name, bytes, align, kernel.static_shared, kSharedStart) : place(name, bytes, align, kernel.local_bytes, 0);
  }
  for (const auto& [name, bytes] : shared_)  // the dynamic memory comes last
    if (!bytes) place(name, 0, 16, kernel.static_shared, kSharedStart);
  std::vector<std::pair<size_t, std::string_view>> jumps;
  std::string_view rest = kernel.body;
  int line = kernel.first_line;
  const char* counted = lines_[size_t(line) - 1].data();
  const auto add = [&](std::string_view text) {
    Instruction instruction;
    instruction.line = line;
    if (text[0] == '@') {
      const size_t space = text.find_first_of(" \t");
      instruction.negated = text[1] == '!';
      instruction.guard = int32_t(scope.find(text.substr(1 + instruction.negated, space - 1 - instruction.negated)).place);
      text = trim(text.substr(space));
    }
    const size_t space = std::min(text.size(), text.find_first_of(" \t\n"));
    Statement statement(scope, text.substr(0, space), text.substr(space), line);
    if (statement.op == "bra") {
      statement.take("uni");
      instruction.flow = Flow::Branch;
      jumps.push_back({kernel.code.size(), statement.text(0)});
    } else if (statement.op == "ret" || statement.op == "exit") {
      instruction.flow = Flow::Exit;
    } else {
      const Decode decode = decoder(statement.op);
      if (!decode) statement.unknown("not in any table");
      decode(statement, instruction);
    }
    if (!statement.done()) statement.unknown("a modifier that is not known here");
    kernel.code.push_back(instruction);
  };
  try {
    while (!(rest = trim(rest)).empty()) {
      for (; counted < rest.data(); ++counted) line += *counted == '\n';
      if (rest[0] == '{') {
        scope.registers.emplace_back();
        rest.remove_prefix(1);
        continue;
      }
      if (rest[0] == '}') {
        scope.registers.pop_back();
        rest.remove_prefix(1);
        continue;
      }
      size_t end = rest.find_first_of(";:\n");
      const bool directive = rest[0] == '.', location = rest.substr(0, 4) == ".loc" || rest.substr(0, 5) == ".file";
      if (location) {
        rest.remove_prefix(std::min(rest.size(), rest.find('\n')));
        continue;
      }
      if (end != std::string_view::npos && rest[end] == ':' && rest.find_first_of(" \t.") > end && rest.substr(end, 2) != "::") {
        scope.labels[rest.substr(0, end)] = uint32_t(kernel.code.size());
        rest.remove_prefix(end + 1);
        continue;
      }
      end = rest.find(';');
      const std::string_view statement = trim(rest.substr(0, end));
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
      if (!directive) {
        add(statement);
      } else if (statement.substr(0, 4) == ".reg") {
        const std::string_view list = trim(statement.substr(4));
        const size_t space = list.find_first_of(" \t");
        const Type type = type_of(list.substr(1, space - 1));
        if (type == Type::None) fail("unknown type of registers: %s", string_of(list).c_str());
        for (std::string_view name : split(list.substr(space), ',')) {
          const size_t open = name.find('<');
          if (open == std::string_view::npos) {
            scope.registers.back()[name] = {type, scope.room(size_of(type))};
            continue;
          }
          const int count = int(literal(name.substr(open + 1), Type::B64));
          for (int i = 0; i < count; ++i) {
            const std::string numbered = string_of(name.substr(0, open)) + std::to_string(i);
            scope.names.push_back(numbered);
            scope.registers.back()[scope.names.back()] = {type, scope.room(size_of(type))};
          }
        }
      } else if (const auto word = statement.substr(0, 6); word != ".pragm" && word != ".share" && word != ".local") {
        fail("unknown directive: %s", string_of(statement).c_str());
      }
    }
    line = 0;
    add("ret");  // where the text ends
    for (const auto& [index, label] : jumps) {
      const auto found = scope.labels.find(label);
      if (found == scope.labels.end()) fail("unknown label %s", string_of(label).c_str());
      kernel.code[index].target = found->second;
    }
  } catch (const Error& error) {
    fail("%s, line %d, %s: %s", kernel.name.c_str(), line, string_of(this->line(line)).c_str(), error.what());
  }
  kernel.decoded = true;
}

}  // namespace ptx
