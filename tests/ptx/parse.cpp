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
  for (const auto* table : {&arithmetic(), &logic(), &conversions(), &memory_accesses(), &collectives()})
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
      const bool directive = rest[0] == '.', location = rest.substr(0, 5) == ".loc\t" || rest.substr(0, 5) == ".loc " || rest.substr(0, 5) == ".file";
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
