// qlora/io/name_pattern.hpp — regular expressions that name modules, as in peft's target_modules: a part of Python's
// `re`, matched against a whole name.
// What may not change: an expression matches the names that Python's re.fullmatch matches, or is refused; a count of
// steps bounds the time, whatever the expression. Look-around, back-references and flags are refused.
// How: each node maps the set of places where it may begin to that of places where it may end, so that nothing is tried
// twice; greedy and lazy are one, since only whether the whole name matches is asked.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {

/// A compiled expression. Const members may be called by any number of threads at once.
class NamePattern {
 public:
  /// Throws Error, which begins with `what`, for an expression that is malformed or not understood here.
  NamePattern(std::string_view text, std::string_view what) : text_(text), what_(what) {
    if (text.size() > 4096) refuse("it is longer than 4096 characters");
    root_ = alternatives(0);
    if (at_ != text_.size()) refuse("')' without '('");
  }

  /// Whether the whole name matches. Throws Error for a name of more than 63 bytes, and when it takes too many steps.
  [[nodiscard]] bool matches(std::string_view name) const {
    QLORA_EXPECTS(name.size() < 64, "a module's name of ", name.size(), " bytes");
    int steps = 0;
    return (ends(root_, Places{1}, name, steps) >> name.size() & 1U) != 0;
  }

 private:
  using Places = std::uint64_t;  // bit i: before character i

  enum class Kind : std::uint8_t { sequence, alternatives, repeat, one_of, begin, end, boundary, no_boundary };
  struct Node {
    Kind kind = Kind::sequence;
    std::vector<std::size_t> children{};
    int least = 0;
    int most = -1;                       // -1: any number
    std::array<std::uint64_t, 4> set{};  // of one_of: bytes

    void add(unsigned char c) { set[c / 64] |= std::uint64_t{1} << c % 64; }
    [[nodiscard]] bool has(unsigned char c) const { return (set[c / 64] >> c % 64 & 1U) != 0; }
  };
  static constexpr int most_depth = 50;
  static constexpr int most_repeats = 1000;
  static constexpr int most_steps = 20'000;

  [[noreturn]] void refuse(std::string_view why) const {
    throw Error(concat(what_, ": the regular expression '", detail::excerpt(text_), "' is not understood: ", why));
  }
  [[nodiscard]] bool more() const { return at_ < text_.size(); }
  [[nodiscard]] bool sees(std::string_view next) const { return std::string_view(text_).substr(at_).starts_with(next); }
  std::size_t keep(Node node) {
    nodes_.push_back(std::move(node));
    return nodes_.size() - 1;
  }

  std::size_t alternatives(int depth) {
    if (depth > most_depth) refuse("it is nested too deeply");
    Node node{.kind = Kind::alternatives};
    node.children.push_back(sequence(depth));
    while (more() && text_[at_] == '|') {
      ++at_;
      node.children.push_back(sequence(depth));
    }
    return keep(std::move(node));
  }
  std::size_t sequence(int depth) {
    Node node{.kind = Kind::sequence};
    while (more() && text_[at_] != '|' && text_[at_] != ')') node.children.push_back(repeated(depth));
    return keep(std::move(node));
  }
  std::size_t repeated(int depth) {
    const std::size_t child = atom(depth);
    Node node{.kind = Kind::repeat, .children = {child}};
    if (!quantifier(node)) return child;
    if (more() && text_[at_] == '?') ++at_;  // lazy
    Node again{.kind = Kind::repeat};
    if (quantifier(again)) refuse("a quantifier of a quantifier");
    return keep(std::move(node));
  }
  /// Reads *, +, ?, {m}, {m,}, {,n} or {m,n}. A brace of another form is a character, as in Python.
  bool quantifier(Node& node) {
    if (!more()) return false;
    const char c = text_[at_];
    if (c == '*' || c == '+' || c == '?') {
      ++at_;
      node.least = c == '+' ? 1 : 0;
      node.most = c == '?' ? 1 : -1;
      return true;
    }
    if (c != '{') return false;
    const std::string_view text = text_;
    const std::size_t close = text.find('}', at_);
    if (close == std::string_view::npos) return false;
    const std::string_view inside = text.substr(at_ + 1, close - at_ - 1);
    const std::size_t comma = inside.find(',');
    const std::string_view low = inside.substr(0, comma);
    const std::string_view high = comma == std::string_view::npos ? low : inside.substr(comma + 1);
    const auto is_number = [](std::string_view part) {
      return part.find_first_not_of("0123456789") == std::string_view::npos && part.size() <= 4;
    };
    if (!is_number(low) || !is_number(high) || inside.empty() || inside == ",") return false;
    const auto number = [](std::string_view part) {
      int value = 0;
      for (const char digit : part) value = value * 10 + (digit - '0');
      return value;
    };
    node.least = number(low);
    node.most = high.empty() ? -1 : number(high);
    if (node.least > most_repeats || node.most > most_repeats) refuse("it repeats more than 1000 times");
    if (node.most >= 0 && node.most < node.least) refuse("the least of {m,n} is above the most");
    at_ = close + 1;
    return true;
  }

  std::size_t atom(int depth) {
    const char c = text_[at_];
    if (c == '(') return group(depth);
    if (c == '[') return keep(characters());
    if (c == '\\') return escaped();
    if (c == '*' || c == '+' || c == '?') refuse("a quantifier without anything before it");
    ++at_;
    if (c == '^') return keep({.kind = Kind::begin});
    if (c == '$') return keep({.kind = Kind::end});
    Node node{.kind = Kind::one_of};
    if (c == '.') {
      node.set.fill(~std::uint64_t{0});
      node.set[0] &= ~(std::uint64_t{1} << '\n');
    } else {
      node.add(static_cast<unsigned char>(c));
    }
    return keep(std::move(node));
  }
  std::size_t group(int depth) {
    ++at_;
    if (sees("?:")) {
      at_ += 2;
    } else if (sees("?P<")) {
      at_ = text_.find('>', at_);
      if (at_ == std::string::npos) refuse("a group's name without an end");
      ++at_;
    } else if (sees("?")) {
      refuse("of groups that begin with '?' only '(?:' and '(?P<name>' are");
    }
    const std::size_t inside = alternatives(depth + 1);
    if (!more()) refuse("'(' without ')'");
    ++at_;
    return inside;
  }

  /// Digits, letters of words or spaces, or all others, into a set. False: another letter.
  static bool add_class(char letter, Node& node) {
    Node all{.kind = Kind::one_of};
    const char lower = static_cast<char>(letter | 0x20);
    for (int c = 0; c < 128; ++c) {
      const bool digit = c >= '0' && c <= '9';
      const bool word = digit || c == '_' || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
      const bool space = c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
      if (lower == 'd' ? digit : lower == 'w' ? word : space) all.add(static_cast<unsigned char>(c));
    }
    if (lower != 'd' && lower != 'w' && lower != 's') return false;
    for (std::size_t i = 0; i < node.set.size(); ++i) node.set[i] |= letter == lower ? all.set[i] : ~all.set[i];
    return true;
  }
  [[nodiscard]] char literal(char c) const {
    const bool letter = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
    if (letter) refuse(concat("\\", std::string_view(&c, 1)));
    return c;
  }
  std::size_t escaped() {
    if (at_ + 1 == text_.size()) refuse("it ends with a backslash");
    const char c = text_[at_ + 1];
    at_ += 2;
    if (c == 'A') return keep({.kind = Kind::begin});
    if (c == 'Z') return keep({.kind = Kind::end});
    if (c == 'b') return keep({.kind = Kind::boundary});
    if (c == 'B') return keep({.kind = Kind::no_boundary});
    Node node{.kind = Kind::one_of};
    if (!add_class(c, node)) node.add(static_cast<unsigned char>(literal(c)));
    return keep(std::move(node));
  }
  /// "[a-z0-9_]", "[^.]"
  Node characters() {
    Node node{.kind = Kind::one_of};
    ++at_;
    const bool other = more() && text_[at_] == '^';
    if (other) ++at_;
    for (bool first = true; first || (more() && text_[at_] != ']'); first = false) {
      if (!more()) break;
      if (text_[at_] == '\\' && at_ + 1 < text_.size() && add_class(text_[at_ + 1], node)) {
        at_ += 2;
        continue;
      }
      const unsigned char low = one_character();
      unsigned char high = low;
      if (sees("-") && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        high = one_character();
        if (high < low) refuse("a range of characters that ends before it begins");
      }
      for (int c = low; c <= high; ++c) node.add(static_cast<unsigned char>(c));
    }
    if (!more()) refuse("'[' without ']'");
    ++at_;
    if (other) {
      for (std::uint64_t& part : node.set) part = ~part;
    }
    return node;
  }
  unsigned char one_character() {
    if (text_[at_] != '\\') return static_cast<unsigned char>(text_[at_++]);
    if (at_ + 1 == text_.size()) refuse("it ends with a backslash");
    at_ += 2;
    return static_cast<unsigned char>(literal(text_[at_ - 1]));
  }

  [[nodiscard]] Places ends(std::size_t index, Places from, std::string_view name, int& steps) const {
    if (from == 0) return 0;
    if (++steps > most_steps) refuse("it takes too many steps");
    const Node& node = nodes_[index];
    switch (node.kind) {
      case Kind::sequence:
        for (const std::size_t child : node.children) from = ends(child, from, name, steps);
        return from;
      case Kind::alternatives: {
        Places all = 0;
        for (const std::size_t child : node.children) all |= ends(child, from, name, steps);
        return all;
      }
      case Kind::repeat:
        return repeats(node, from, name, steps);
      case Kind::one_of: {
        Places all = 0;
        for (std::size_t i = 0; i < name.size(); ++i) {
          if ((from >> i & 1U) != 0 && node.has(static_cast<unsigned char>(name[i]))) all |= Places{1} << (i + 1);
        }
        return all;
      }
      case Kind::begin:
        return from & 1U;
      case Kind::end:
        return from & Places{1} << name.size();
      case Kind::boundary:
      case Kind::no_boundary:
        break;
    }
    Places all = 0;
    const auto is_word = [&](std::size_t i) {
      return i < name.size() && (name[i] == '_' || (name[i] >= '0' && name[i] <= '9') ||
                                 ((name[i] | 0x20) >= 'a' && (name[i] | 0x20) <= 'z'));
    };
    for (std::size_t i = 0; i <= name.size(); ++i) {
      const bool edge = is_word(i) != (i > 0 && is_word(i - 1));
      if (edge == (node.kind == Kind::boundary)) all |= Places{1} << i;
    }
    return from & all;
  }
  [[nodiscard]] Places repeats(const Node& node, Places from, std::string_view name, int& steps) const {
    for (int i = 0; i < node.least; ++i) {
      const Places next = ends(node.children[0], from, name, steps);
      if (next == from) break;  // and so it stays
      from = next;
    }
    Places all = from;
    for (int i = node.least; from != 0 && (node.most < 0 || i < node.most); ++i) {
      from = ends(node.children[0], from, name, steps) & ~all;  // places reached before have more repeats left
      all |= from;
    }
    return all;
  }

  std::string text_;
  std::string what_;
  std::size_t at_ = 0;
  std::vector<Node> nodes_;
  std::size_t root_ = 0;
};

}  // namespace v0
}  // namespace qlora
