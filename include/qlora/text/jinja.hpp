// qlora/text/jinja.hpp — the part of Jinja that chat templates are written in: a template rendered with variables.
// Statements: if, for, set, macro, break, continue, generation. Expressions: all of Jinja's but powers and spread
// arguments. What is not here is an error that names it, when the template is read or when it gets there.
// What may not change: a text that is rendered is the one that the packages jinja2 and transformers render.
// Reference: tests/text/jinja_test.cpp, texts of those packages.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/jinja_functions.hpp"
#include "qlora/text/jinja_parser.hpp"
#include "qlora/text/jinja_time.hpp"
#include "qlora/text/jinja_value.hpp"

namespace qlora {
inline namespace v0 {
namespace jinja {

/// Variables by name.
using Variables = std::map<std::string, Value, std::less<>>;

namespace detail {

/// Runs a tree once.
class Run {
 public:
  Run(const Variables& globals, const Moment& moment) : globals_(globals), moment_(moment), frames_(1) {}

  std::string render(const Node& tree) {
    execute(tree);
    return std::move(out_);
  }

 private:
  static constexpr std::int64_t max_steps = 2'000'000;            // nodes; a chat of 1,000 turns takes 50,000
  static constexpr std::size_t max_bytes = std::size_t{1} << 26;  // of a text
  static constexpr std::size_t max_elements = 100'000;
  static constexpr int max_calls = 50;

  enum class Flow : std::uint8_t { on, leave, next };

  [[noreturn]] static void refuse(const Node& node, const std::string& why) {
    throw Error(concat("line ", node.line, " of the chat template ", why));
  }

  /// A step is a node of the tree, or what takes as long: Value::weight() and its like say what is read and copied.
  void count_steps(std::int64_t steps = 1) {
    steps_ += std::min(steps, max_steps + 1);
    if (steps_ > max_steps) throw Error("the chat template takes too long");
  }
  /// For a function of a value with arguments. One that seeks a text in another may read the one as often as the other
  /// has places; some look at all that is in a list; lengths and the like read nothing.
  void count_call(std::string_view name, const Value& value, const Arguments& given) {
    constexpr std::array<std::string_view, 6> free{"defined", "undefined", "none", "length", "count", "first"};
    if (std::find(free.begin(), free.end(), name) != free.end()) return;
    constexpr std::array<std::string_view, 5> deep{"tojson", "in", "eq", "ne", "equalto"};
    const bool looks_inside = std::find(deep.begin(), deep.end(), name) != deep.end() || name.ends_with("=") ||
                              name.starts_with("select") || name.starts_with("reject");
    const auto cost = [&](const Value& read) {
      return looks_inside ? read.weight() : read.text() != nullptr ? read.own() : read.spread();
    };
    const bool seeks = value.text() != nullptr || name == "join";
    std::int64_t all = cost(value);
    const auto add = [&](const Value& read) {
      const bool multiplies = seeks && read.text() != nullptr && name != "==" && name != "!=";
      all = std::min(multiplies ? all * std::min(cost(read), max_steps + 1) : all + cost(read), max_steps + 1);
    };
    for (const Value& read : given.values) add(read);
    for (const auto& [key, read] : given.names) add(read);
    count_steps(all);
  }

  // --- statements -------------------------------------------------------------------------------------------------

  void write(std::string_view text) {
    count_steps(static_cast<std::int64_t>(text.size() / 64));
    out_ += text;
    if (out_.size() > max_bytes) throw Error("the chat template writes more than 64 MiB");
  }
  Flow execute(const Node& node) {
    count_steps();
    switch (node.kind) {
      case NodeKind::list_of:
        for (const Node& entry : node.children) {
          if (const Flow flow = execute(entry); flow != Flow::on) return flow;
        }
        return Flow::on;
      case NodeKind::data:
        write(node.text);
        return Flow::on;
      case NodeKind::print:
        write(evaluate(node.children[0]).str());
        return Flow::on;
      case NodeKind::branch:
        return execute(node.children[evaluate(node.children[0]).truth() ? 1 : 2]);
      case NodeKind::loop:
        loop(node);
        return Flow::on;
      case NodeKind::set:
        set(node);
        return Flow::on;
      case NodeKind::set_block: {
        std::string before = std::exchange(out_, {});
        const Flow flow = execute(node.children[0]);
        frames_.back()[node.names[0]] = std::exchange(out_, std::move(before));
        return flow;
      }
      case NodeKind::macro:
        frames_.back()[node.text] = Value(&node);
        return Flow::on;
      case NodeKind::leave:
        return Flow::leave;
      default:
        return Flow::next;  // NodeKind::next
    }
  }
  void bind(const Node& node, const Value& value) {
    if (node.names.size() == 1) {
      frames_.back()[node.names[0]] = value;
      return;
    }
    const Value::List parts = elements(value);
    if (parts.size() != node.names.size()) refuse(node, "takes a value of another number of parts apart");
    for (std::size_t i = 0; i < parts.size(); ++i) frames_.back()[node.names[i]] = parts[i];
  }
  void set(const Node& node) {
    const Value value = evaluate(node.children[0]);
    if (node.text.empty()) return bind(node, value);
    const Value target = variable(node.text);
    Value::Map* map = target.map();
    if (!target.is_name_space()) refuse(node, "sets a member of '" + node.text + "', which is no namespace");
    Value().hold(value);
    count_steps(static_cast<std::int64_t>(map->size() / 8));
    for (auto& [key, old] : *map) {
      if (key == node.names[0]) {
        old = value;
        return;
      }
    }
    map->emplace_back(node.names[0], value);
  }
  void loop(const Node& node) {
    Value::List all = parts(evaluate(node.children[0]));
    frames_.emplace_back();
    if (node.children[1].kind != NodeKind::nothing) {
      std::erase_if(all, [&](const Value& entry) {
        bind(node, entry);
        return !evaluate(node.children[1]).truth();
      });
    }
    const auto size = static_cast<std::int64_t>(all.size());
    for (std::int64_t i = 0; i < size; ++i) {
      const auto at = static_cast<std::size_t>(i);
      count_steps(3 * all[at].own());
      frames_.back().clear();  // what one turn of a loop sets, the next one does not see
      bind(node, all[at]);
      frames_.back()["loop"] = Value::Map{{"index", i + 1},
                                          {"index0", i},
                                          {"revindex", size - i},
                                          {"revindex0", size - i - 1},
                                          {"first", i == 0},
                                          {"last", i + 1 == size},
                                          {"length", size},
                                          {"previtem", i > 0 ? all[at - 1] : Value(Undefined{"previtem"})},
                                          {"nextitem", i + 1 < size ? all[at + 1] : Value(Undefined{"nextitem"})}};
      if (execute(node.children[2]) == Flow::leave) break;
    }
    frames_.pop_back();
    if (size == 0) execute(node.children[3]);
  }

  // --- expressions ------------------------------------------------------------------------------------------------

  Value variable(const std::string& name) const {
    for (auto frame = frames_.rbegin(); frame != frames_.rend(); ++frame) {
      if (const auto found = frame->find(name); found != frame->end()) return found->second;
    }
    const auto found = globals_.find(name);
    if (found != globals_.end()) return found->second;
    return is_function(name) ? Value(&function()) : Value(Undefined{name});
  }
  /// Names that are defined in every template of transformers.
  static bool is_function(std::string_view name) {
    constexpr std::array<std::string_view, 8> names{"raise_exception", "strftime_now", "namespace", "range", "dict",
                                                    "lipsum",          "cycler",       "joiner"};
    return std::find(names.begin(), names.end(), name) != names.end();
  }
  /// What they are where they are not called.
  static const Node& function() {
    static const Node node{};
    return node;
  }
  Value evaluate(const Node& node) {
    Value out = value_of(node);
    count_steps(out.own());
    return out;
  }
  Value::List parts(const Value& value) {
    count_steps(value.spread());
    return elements(value);
  }
  Value value_of(const Node& node) {
    switch (node.kind) {
      case NodeKind::nothing:
        return Undefined{"what no 'else' says"};
      case NodeKind::constant:
        return node.value;
      case NodeKind::variable:
        return variable(node.text);
      case NodeKind::attribute:
        return member(node, evaluate(node.children[0]), Value(node.text));
      case NodeKind::item:
        return member(node, evaluate(node.children[0]), evaluate(node.children[1]));
      case NodeKind::slice:
        return slice(node);
      case NodeKind::call:
        return call(node);
      case NodeKind::filter: {
        const Value value = evaluate(node.children[0]);
        const Arguments given = arguments(node);
        count_call(node.text, value, given);
        return filter(node.text, value, given);
      }
      case NodeKind::test: {
        const Value value = evaluate(node.children[0]);
        const Arguments given = arguments(node);
        count_call(node.text, value, given);
        return test(node.text, value, given);
      }
      case NodeKind::list: {
        Value::List out;
        for (const Node& entry : node.children) out.push_back(evaluate(entry));
        return out;
      }
      case NodeKind::map: {
        Value::Map out;
        for (std::size_t i = 0; i + 1 < node.children.size(); i += 2) {
          const Value key = evaluate(node.children[i]);
          if (key.text() == nullptr) refuse(node, "has a map whose keys are no texts");
          out.emplace_back(*key.text(), evaluate(node.children[i + 1]));
        }
        return out;
      }
      case NodeKind::unary: {
        const Value value = evaluate(node.children[0]);
        if (node.text == "not") return !value.truth();
        if (!value.is_number()) refuse(node, concat("has a sign before ", value.kind()));
        if (value.as<double>() != nullptr) return node.text == "-" ? -value.number() : value.number();
        return node.text == "-" ? -value.integer() : value.integer();
      }
      case NodeKind::binary:
        return binary(node);
      case NodeKind::conditional:
        return evaluate(node.children[evaluate(node.children[1]).truth() ? 0 : 2]);
      default:
        refuse(node, "has a statement where a value is due");
    }
  }
  Value member(const Node& node, const Value& value, const Value& key) {
    if (value.is_undefined()) refuse(node, concat("takes a part of ", value.kind()));
    if (const std::string* name = key.text()) {
      if (value.map() != nullptr) count_steps(static_cast<std::int64_t>(value.map()->size() / 8));
      const Value* found = value.find(*name);
      return found != nullptr ? *found : Value(Undefined{*name});
    }
    if (!key.is_number() || key.as<double>() != nullptr) refuse(node, concat("takes ", key.kind(), " for an index"));
    const Value::List made = value.map() != nullptr || value.list() != nullptr ? Value::List() : parts(value);
    const Value::List& all = value.list() != nullptr ? *value.list() : made;
    const auto size = static_cast<std::int64_t>(all.size());
    const std::int64_t at = key.integer() < 0 ? key.integer() + size : key.integer();
    if (at < 0 || at >= size) return Undefined{"element " + std::to_string(key.integer())};
    return all[static_cast<std::size_t>(at)];
  }
  Value slice(const Node& node) {
    const Value value = evaluate(node.children[0]);
    const Value::List all = parts(value);
    const auto size = static_cast<std::int64_t>(all.size());
    const auto given_part = [&](std::size_t child, std::int64_t otherwise) {
      if (node.children[child].kind == NodeKind::nothing) return otherwise;
      const Value given = evaluate(node.children[child]);
      return given.is_none() ? otherwise : given.integer();
    };
    constexpr std::int64_t limit = std::int64_t{1} << 40;  // no sum leaves 64 bits
    const std::int64_t step = std::clamp(given_part(3, 1), -limit, limit);
    if (step == 0 || value.map() != nullptr) refuse(node, "has a slice that is none");
    const std::int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
    const auto bound = [&](std::int64_t at) { return std::clamp(at < 0 ? at + size : at, low, high); };
    const std::int64_t begin =
        node.children[1].kind == NodeKind::nothing ? (step > 0 ? low : high) : bound(given_part(1, 0));
    const std::int64_t end =
        node.children[2].kind == NodeKind::nothing ? (step > 0 ? high : low) : bound(given_part(2, size));
    Value::List out;
    for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += step)
      out.push_back(all[static_cast<std::size_t>(i)]);
    if (value.text() == nullptr) return out;
    std::string text;
    for (const Value& entry : out) text += entry.str();
    return text;
  }
  Arguments arguments(const Node& node) {
    Arguments out;
    const std::size_t plain = node.children.size() - node.names.size();
    for (std::size_t i = 1; i < node.children.size(); ++i) {
      Value value = evaluate(node.children[i]);
      if (i < plain) {
        out.values.push_back(std::move(value));
      } else {
        out.names.emplace_back(node.names[i - plain], std::move(value));
      }
    }
    return out;
  }
  Value call(const Node& node) {
    const Node& function = node.children[0];
    if (function.kind == NodeKind::attribute) {
      const Value object = evaluate(function.children[0]);
      const Arguments given = arguments(node);
      count_call(function.text, object, given);
      return method(object, function.text, given);
    }
    if (function.kind != NodeKind::variable) refuse(node, "calls something that is no function");
    const std::string& name = function.text;
    const Value defined = variable(name);
    if (defined.macro() != nullptr && defined.macro() != &Run::function())
      return call_macro(*defined.macro(), arguments(node));
    const Arguments given = arguments(node);
    count_steps(100);
    if (name == "raise_exception") throw Error(given.get(0) == nullptr ? std::string() : given.get(0)->str());
    if (name == "strftime_now" && given.names.empty() && given.values.size() == 1)
      return time_text(given.text(0), moment_);
    if (name == "namespace" && given.values.empty()) {
      Value::Map out;
      for (const auto& [key, value] : given.names) out.emplace_back(key, value);
      return Value::name_space(std::move(out));
    }
    if (name == "range" && !given.values.empty()) return range(node, given);
    refuse(node, "calls '" + name + "', which is not supported");
  }
  Value range(const Node& node, const Arguments& given) {
    constexpr std::int64_t limit = std::int64_t{1} << 40;  // no sum leaves 64 bits
    const std::int64_t begin = given.values.size() > 1 ? given.values[0].integer() : 0;
    const std::int64_t end = given.values[given.values.size() > 1 ? 1 : 0].integer();
    const std::int64_t step = std::clamp(given.values.size() > 2 ? given.values[2].integer() : 1, -limit, limit);
    if (begin > limit || begin < -limit || end > limit || end < -limit) refuse(node, "has a range that is too long");
    if (step == 0 || end - begin > 100'000 || begin - end > 100'000) refuse(node, "has a range that is too long");
    Value::List out;
    for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += step) out.emplace_back(i);
    count_steps(static_cast<std::int64_t>(out.size()));
    return out;
  }
  Value call_macro(const Node& macro, const Arguments& given) {
    if (++calls_ > max_calls) refuse(macro, "calls its macros too deep");
    std::map<std::string, Value, std::less<>> frame;
    for (std::size_t i = 0; i < macro.names.size(); ++i) {
      const Value* value = given.get(i, macro.names[i]);
      const Node& otherwise = macro.children[i + 1];
      frame[macro.names[i]] = value != nullptr                      ? *value
                              : otherwise.kind == NodeKind::nothing ? Value(Undefined{macro.names[i]})
                                                                    : evaluate(otherwise);
    }
    std::vector<std::map<std::string, Value, std::less<>>> frames;
    frames.push_back(std::move(frames_.front()));
    frames.push_back(std::move(frame));
    std::swap(frames, frames_);
    std::string before = std::exchange(out_, {});
    execute(macro.children[0]);
    frames.front() = std::move(frames_.front());
    frames_ = std::move(frames);
    --calls_;
    return std::exchange(out_, std::move(before));
  }
  Value binary(const Node& node) {
    const std::string& op = node.text;
    Value left = evaluate(node.children[0]);
    if (op == "and" || op == "or") return left.truth() == (op == "or") ? left : evaluate(node.children[1]);
    const Value right = evaluate(node.children[1]);
    count_call(op, left, {{right}});
    if (op == "==") return equal(left, right);
    if (op == "!=") return !equal(left, right);
    if (op == "<") return less(left, right);
    if (op == ">") return less(right, left);
    if (op == "<=") return !less(right, left);
    if (op == ">=") return !less(left, right);
    if (op == "in" || op == "not in") return test("in", left, {{right}}) == (op == "in");
    if (op == "~" || (op == "+" && left.text() != nullptr && right.text() != nullptr)) {
      std::string out = left.str() + right.str();
      if (out.size() > max_bytes) throw Error("the chat template makes a text of more than 64 MiB");
      return out;
    }
    if (op == "+" && left.list() != nullptr && right.list() != nullptr) {
      Value::List out = *left.list();
      if (out.size() + right.list()->size() > max_elements) refuse(node, "makes a list of more than 100,000 values");
      out.insert(out.end(), right.list()->begin(), right.list()->end());
      return out;
    }
    if (op == "*" && left.text() != nullptr && right.as<std::int64_t>() != nullptr) {
      std::string out;
      if (left.text()->empty()) return out;
      for (std::int64_t i = 0; i < right.integer() && out.size() <= max_bytes; ++i) out += *left.text();
      if (out.size() > max_bytes) throw Error("the chat template makes a text of more than 64 MiB");
      return out;
    }
    if (!left.is_number() || !right.is_number())
      refuse(node, concat("computes '", op, "' of ", left.kind(), " and ", right.kind()));
    return arithmetic(node, left, right);
  }
  static Value arithmetic(const Node& node, const Value& left, const Value& right) {
    const std::string& op = node.text;
    const bool fraction = left.as<double>() != nullptr || right.as<double>() != nullptr;
    if ((op == "/" || op == "//" || op == "%") && right.number() == 0) refuse(node, "divides by zero");
    if (op == "/") return left.number() / right.number();
    if (fraction) {
      if (op == "+") return left.number() + right.number();
      if (op == "-") return left.number() - right.number();
      if (op == "*") return left.number() * right.number();
      refuse(node, "computes '" + op + "' of fractions, which is not supported");
    }
    constexpr std::int64_t limit = std::int64_t{1} << 31;  // no result leaves 64 bits
    const std::int64_t a = left.integer(), b = right.integer();
    if (a > limit || a < -limit || b > limit || b < -limit) refuse(node, "computes with numbers above 2^31");
    if (op == "+") return a + b;
    if (op == "-") return a - b;
    if (op == "*") return a * b;
    const std::int64_t rest = (a % b + b) % b;  // of the divisor's sign, as in Python
    return op == "%" ? rest : (a - rest) / b;
  }

  const Variables& globals_;
  const Moment& moment_;
  std::vector<std::map<std::string, Value, std::less<>>> frames_;
  std::string out_;
  std::int64_t steps_ = 0;
  int calls_ = 0;
};

}  // namespace detail

/// A template that has been read. Const calls are safe from many threads.
class Template {
 public:
  /// Throws Error that names the line, for text that is no template and for statements that are not supported.
  explicit Template(std::string_view source) : tree_(std::make_shared<const Node>(Parser(source).tree())) {}

  /// The text with these variables; names that are not among them are not defined. Throws Error when the template
  /// calls raise_exception, with that message, and for what is not supported. `moment` is what strftime_now() says.
  [[nodiscard]] std::string render(const Variables& variables, const Moment& moment) const {
    return detail::Run(variables, moment).render(*tree_);
  }
  /// At this time.
  [[nodiscard]] std::string render(const Variables& variables) const { return render(variables, now()); }

 private:
  std::shared_ptr<const Node> tree_;
};

}  // namespace jinja
}  // namespace v0
}  // namespace qlora
