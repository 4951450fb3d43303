// qlora/text/jinja_parser.hpp — a chat template as a tree of statements and expressions, by the precedence of Jinja's
// parser: or, and, not, comparisons, + and -, ~, the other arithmetic, unary signs, then filters and tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/jinja_lexer.hpp"
#include "qlora/text/jinja_value.hpp"

namespace qlora {
inline namespace v0 {
namespace jinja {

/// What a node of the tree is. Children stand in brackets.
enum class NodeKind : std::uint8_t {
  list_of,      ///< statements [any number]
  data,         ///< writes `text`
  print,        ///< writes [expression]
  branch,       ///< if [condition, statements, statements of else]
  loop,         ///< for `names` [list, condition or nothing, statements, statements of else]
  set,          ///< `names` = [expression], or `text`.names[0] = [expression]
  set_block,    ///< names[0] = what [statements] write
  macro,        ///< `text`(names...) [statements, default of each name or nothing]
  leave,        ///< break
  next,         ///< continue
  nothing,      ///< no expression
  constant,     ///< `value`
  variable,     ///< `text`
  attribute,    ///< [value].text
  item,         ///< [value][key]
  slice,        ///< [value][begin:end:step], each of which may be nothing
  call,         ///< [function, arguments...], the last of which are called `names`
  filter,       ///< [value, arguments...] | text, the last of which are called `names`
  test,         ///< [value, arguments...] is text
  list,         ///< a list or a tuple of [values...]
  map,          ///< [key, value, key, value, ...]
  unary,        ///< `text` [value]: not, -, +
  binary,       ///< [left] text [right]
  conditional,  ///< [value] if [condition] else [other]
};

/// A statement or an expression.
struct Node {
  NodeKind kind = NodeKind::nothing;  ///< what it is
  std::string text{};                 ///< see NodeKind
  std::vector<std::string> names{};   ///< see NodeKind
  std::vector<Node> children{};       ///< see NodeKind
  Value value{};                      ///< of constants
  int line = 0;                       ///< in the template, from 1
};

/// Makes the tree. Throws Error that names the line, for what Jinja does not know and for what is not supported.
class Parser {
 public:
  /// Reads a template's text.
  explicit Parser(std::string_view source) : tokens_(Lexer(source).tokens()) {}

  /// The whole template.
  [[nodiscard]] Node tree() {
    Node all = statements({});
    if (kind() != TokenKind::end) refuse("ends a block that is not open: '" + now().text + "'");
    return all;
  }

 private:
  static constexpr int max_depth = 100;
  using Words = std::vector<std::string_view>;

  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(concat("line ", now().line, " of the chat template ", why));
  }
  [[nodiscard]] const Token& now() const { return tokens_[at_]; }
  [[nodiscard]] TokenKind kind() const { return now().kind; }
  [[nodiscard]] bool is_symbol(std::string_view text) const {
    return kind() == TokenKind::symbol && now().text == text;
  }
  [[nodiscard]] bool is_word(std::string_view text) const { return kind() == TokenKind::name && now().text == text; }
  bool take_symbol(std::string_view text) { return is_symbol(text) && ++at_ != 0; }
  bool take_word(std::string_view text) { return is_word(text) && ++at_ != 0; }
  void expect_symbol(std::string_view text) {
    if (!take_symbol(text)) refuse(concat("has '", now().text, "' where '", text, "' is due"));
  }
  std::string expect_name() {
    if (kind() != TokenKind::name) refuse(concat("has '", now().text, "' where a name is due"));
    return tokens_[at_++].text;
  }
  void expect_end_of_block() {
    if (kind() != TokenKind::block_end) refuse(concat("has '", now().text, "' where the tag should end"));
    ++at_;
  }
  [[nodiscard]] Node node(NodeKind node_kind, std::string text = {}, std::vector<Node> children = {}) const {
    return {.kind = node_kind, .text = std::move(text), .children = std::move(children), .line = now().line};
  }
  /// Counts how deep the tree is, so that no template overflows the stack.
  struct Deeper {
    explicit Deeper(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > max_depth) parser_.refuse("is nested too deep");
    }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;
    ~Deeper() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  // --- statements -------------------------------------------------------------------------------------------------

  /// Statements up to a block that begins with one of `ends`, which stays.
  Node statements(const Words& ends) {
    const Deeper deeper(*this);
    Node all = node(NodeKind::list_of);
    while (kind() != TokenKind::end) {
      if (kind() == TokenKind::data) {
        all.children.push_back(node(NodeKind::data, now().text));
        ++at_;
      } else if (kind() == TokenKind::print_begin) {
        ++at_;
        all.children.push_back(node(NodeKind::print));
        all.children.back().children.push_back(expression_or_tuple());
        if (kind() != TokenKind::print_end) refuse(concat("has '", now().text, "' where '}}' is due"));
        ++at_;
      } else {
        for (const std::string_view end : ends) {
          if (tokens_[at_ + 1].kind == TokenKind::name && tokens_[at_ + 1].text == end) return all;
        }
        ++at_;
        all.children.push_back(statement());
      }
    }
    if (!ends.empty()) refuse(concat("is the last, and '", ends.back(), "' is missing"));
    return all;
  }
  Node statement() {
    const std::string word = expect_name();
    if (word == "if") return branch();
    if (word == "for") return loop();
    if (word == "set") return assignment();
    if (word == "macro") return macro();
    if (word == "break" || word == "continue") {
      expect_end_of_block();
      return node(word == "break" ? NodeKind::leave : NodeKind::next);
    }
    if (word == "generation") {  // transformers marks the assistant's text with it, and writes it as it is
      expect_end_of_block();
      Node body = statements({"endgeneration"});
      end_block(1);
      return body;
    }
    --at_;
    refuse("has the statement '" + word + "', which is not supported");
  }
  /// The tag at which statements() stopped: `{%`, so many words, `%}`.
  void end_block(int words) {
    at_ += 1 + static_cast<std::size_t>(words);
    expect_end_of_block();
  }
  Node branch() {
    const Deeper deeper(*this);
    Node out = node(NodeKind::branch);
    out.children.push_back(expression_or_tuple());
    expect_end_of_block();
    out.children.push_back(statements({"elif", "else", "endif"}));
    ++at_;
    const std::string word = expect_name();
    if (word == "elif") {
      out.children.push_back(branch());
      return out;
    }
    expect_end_of_block();
    out.children.push_back(word == "else" ? statements({"endif"}) : node(NodeKind::list_of));
    if (word == "else") end_block(1);
    return out;
  }
  Node loop() {
    Node out = node(NodeKind::loop);
    do out.names.push_back(expect_name());
    while (take_symbol(","));
    if (!take_word("in")) refuse(concat("has '", now().text, "' where 'in' is due"));
    out.children.push_back(conditional(false));
    out.children.push_back(take_word("if") ? expression() : node(NodeKind::nothing));
    if (is_word("recursive")) refuse("has a recursive loop, which is not supported");
    expect_end_of_block();
    out.children.push_back(statements({"else", "endfor"}));
    const bool otherwise = tokens_[at_ + 1].text == "else";
    end_block(1);
    out.children.push_back(otherwise ? statements({"endfor"}) : node(NodeKind::list_of));
    if (otherwise) end_block(1);
    return out;
  }
  Node assignment() {
    Node out = node(NodeKind::set);
    out.names.push_back(expect_name());
    if (take_symbol(".")) {
      out.text = std::exchange(out.names[0], expect_name());
    } else {
      while (take_symbol(",")) out.names.push_back(expect_name());
    }
    if (take_symbol("=")) {
      out.children.push_back(expression_or_tuple());
      expect_end_of_block();
      return out;
    }
    if (out.names.size() > 1 || !out.text.empty() || kind() != TokenKind::block_end)
      refuse("sets a block in a way that is not supported");
    expect_end_of_block();
    out.kind = NodeKind::set_block;
    out.children.push_back(statements({"endset"}));
    end_block(1);
    return out;
  }
  Node macro() {
    Node out = node(NodeKind::macro, expect_name());
    expect_symbol("(");
    std::vector<Node> defaults;
    while (!take_symbol(")")) {
      if (!out.names.empty()) expect_symbol(",");
      out.names.push_back(expect_name());
      defaults.push_back(take_symbol("=") ? expression() : node(NodeKind::nothing));
    }
    expect_end_of_block();
    out.children.push_back(statements({"endmacro"}));
    end_block(1);
    for (Node& fallback : defaults) out.children.push_back(std::move(fallback));
    return out;
  }

  // --- expressions ------------------------------------------------------------------------------------------------

  Node expression() { return conditional(true); }
  Node expression_or_tuple() {
    Node first = expression();
    if (!is_symbol(",")) return first;
    Node tuple = node(NodeKind::list);
    tuple.children.push_back(std::move(first));
    while (take_symbol(",")) tuple.children.push_back(expression());
    return tuple;
  }
  /// A loop's list is read without its own `if`.
  Node conditional(bool with_if) {
    const Deeper deeper(*this);
    Node value = either();
    while (with_if && take_word("if")) {
      Node out = node(NodeKind::conditional);
      out.children.push_back(std::move(value));
      out.children.push_back(either());
      out.children.push_back(take_word("else") ? expression() : node(NodeKind::nothing));
      value = std::move(out);
    }
    return value;
  }
  [[nodiscard]] Node joined(std::string_view op, Node left, Node right) const {
    Node out = node(NodeKind::binary, std::string(op));
    out.children.push_back(std::move(left));
    out.children.push_back(std::move(right));
    return out;
  }
  Node either() {
    Node left = both();
    while (take_word("or")) left = joined("or", std::move(left), both());
    return left;
  }
  Node both() {
    Node left = negation();
    while (take_word("and")) left = joined("and", std::move(left), negation());
    return left;
  }
  Node negation() {
    const Deeper deeper(*this);
    if (!take_word("not")) return comparison();
    Node out = node(NodeKind::unary, "not");
    out.children.push_back(negation());
    return out;
  }
  Node comparison() {
    Node left = sum();
    std::vector<Node> parts;  // a < b < c is a < b and b < c
    while (true) {
      std::string op;
      for (const std::string_view name : {"==", "!=", "<=", ">=", "<", ">"}) {
        if (op.empty() && take_symbol(name)) op = name;
      }
      if (op.empty() && take_word("in")) op = "in";
      if (op.empty() && is_word("not") && tokens_[at_ + 1].kind == TokenKind::name && tokens_[at_ + 1].text == "in") {
        at_ += 2;
        op = "not in";
      }
      if (op.empty()) break;
      Node right = sum();
      parts.push_back(joined(op, std::move(left), right));
      left = std::move(right);
    }
    if (parts.empty()) return left;
    Node out = std::move(parts[0]);
    for (std::size_t i = 1; i < parts.size(); ++i) out = joined("and", std::move(out), std::move(parts[i]));
    return out;
  }
  Node sum() {
    Node left = chain();
    while (is_symbol("+") || is_symbol("-")) {
      const std::string op = tokens_[at_++].text;
      left = joined(op, std::move(left), chain());
    }
    return left;
  }
  Node chain() {
    Node left = product();
    while (take_symbol("~")) left = joined("~", std::move(left), product());
    return left;
  }
  Node product() {
    Node left = signed_value(true);
    while (is_symbol("*") || is_symbol("/") || is_symbol("//") || is_symbol("%")) {
      const std::string op = tokens_[at_++].text;
      left = joined(op, std::move(left), signed_value(true));
    }
    if (is_symbol("**")) refuse("raises to a power, which is not supported");
    return left;
  }
  Node signed_value(bool with_filters) {
    const Deeper deeper(*this);
    Node value;
    if (is_symbol("-") || is_symbol("+")) {
      value = node(NodeKind::unary, tokens_[at_++].text);
      value.children.push_back(signed_value(false));
    } else {
      value = primary();
    }
    value = postfix(std::move(value));
    return with_filters ? filtered(std::move(value)) : value;
  }
  Node primary() {
    const Token& token = now();
    Node out = node(NodeKind::constant);
    switch (token.kind) {
      case TokenKind::text: {
        std::string text;
        while (kind() == TokenKind::text) text += tokens_[at_++].text;  // texts side by side are one
        out.value = std::move(text);
        return out;
      }
      case TokenKind::integer:
        out.value = static_cast<std::int64_t>(std::stoll(tokens_[at_++].text));
        return out;
      case TokenKind::decimal:
        out.value = std::stod(tokens_[at_++].text);
        return out;
      case TokenKind::name:
        break;
      default:
        if (take_symbol("(")) return bracketed(")");
        if (take_symbol("[")) return bracketed("]");
        if (take_symbol("{")) return map();
        refuse(concat("has '", token.text, "' where a value is due"));
    }
    const std::string name = expect_name();
    if (name == "true" || name == "True" || name == "false" || name == "False") {
      out.value = name == "true" || name == "True";
    } else if (name == "none" || name == "None") {
      out.value = None{};
    } else {
      out.kind = NodeKind::variable;
      out.text = name;
    }
    return out;
  }
  /// Behind "(" or "[": a list; one value in round brackets without a comma is that value.
  Node bracketed(std::string_view end) {
    Node out = node(NodeKind::list);
    bool comma = false;
    while (!take_symbol(end)) {
      if (!out.children.empty() && !comma) refuse(concat("has '", now().text, "' where '", end, "' is due"));
      out.children.push_back(expression());
      comma = take_symbol(",");
    }
    if (end == ")" && out.children.size() == 1 && !comma) {
      Node inner = std::move(out.children[0]);
      return inner;
    }
    return out;
  }
  Node map() {
    Node out = node(NodeKind::map);
    while (!take_symbol("}")) {
      if (!out.children.empty()) {
        expect_symbol(",");
        if (take_symbol("}")) break;
      }
      out.children.push_back(expression());
      expect_symbol(":");
      out.children.push_back(expression());
    }
    return out;
  }
  Node postfix(Node value) {
    while (true) {
      if (take_symbol(".")) {
        Node out = node(NodeKind::attribute, kind() == TokenKind::integer ? tokens_[at_++].text : expect_name());
        out.children.push_back(std::move(value));
        value = std::move(out);
      } else if (take_symbol("[")) {
        value = subscript(std::move(value));
      } else if (take_symbol("(")) {
        Node out = node(NodeKind::call);
        out.children.push_back(std::move(value));
        arguments(out);
        value = std::move(out);
      } else {
        return value;
      }
    }
  }
  Node subscript(Node value) {
    Node out = node(NodeKind::item);
    out.children.push_back(std::move(value));
    const auto part = [&] {
      out.children.push_back(is_symbol(":") || is_symbol("]") ? node(NodeKind::nothing) : expression());
    };
    part();
    if (is_symbol(":")) {
      out.kind = NodeKind::slice;
      while (take_symbol(":")) part();
      if (out.children.size() > 4) refuse("has a slice of more than three parts");
      while (out.children.size() < 4) out.children.push_back(node(NodeKind::nothing));
    }
    expect_symbol("]");
    if (out.children[1].kind == NodeKind::nothing && out.kind == NodeKind::item) refuse("has nothing between [ and ]");
    return out;
  }
  /// Behind "(": arguments, those with names last.
  void arguments(Node& out) {
    bool first = true;
    while (!take_symbol(")")) {
      if (!std::exchange(first, false)) {
        expect_symbol(",");
        if (take_symbol(")")) return;
      }
      if (is_symbol("*") || is_symbol("**")) refuse("spreads arguments, which is not supported");
      const Token& behind = tokens_[at_ + 1];
      if (kind() == TokenKind::name && behind.kind == TokenKind::symbol && behind.text == "=") {
        out.names.push_back(expect_name());
        ++at_;
      } else if (!out.names.empty()) {
        refuse("has an argument without a name behind one with a name");
      }
      out.children.push_back(expression());
    }
  }
  Node filtered(Node value) {
    while (true) {
      if (take_symbol("|")) {
        Node out = node(NodeKind::filter, expect_name());
        out.children.push_back(std::move(value));
        if (take_symbol("(")) arguments(out);
        value = std::move(out);
      } else if (take_word("is")) {
        value = test(std::move(value));
      } else {
        return value;
      }
    }
  }
  Node test(Node value) {
    const bool negated = take_word("not");
    Node out = node(NodeKind::test, expect_name());
    out.children.push_back(std::move(value));
    const bool value_follows = kind() == TokenKind::text || kind() == TokenKind::integer || is_symbol("[") ||
                               (kind() == TokenKind::name && !is_word("else") && !is_word("or") && !is_word("and") &&
                                !is_word("is") && !is_word("if") && !is_word("in") && !is_word("not"));
    if (take_symbol("(")) {
      arguments(out);
    } else if (value_follows) {
      out.children.push_back(postfix(primary()));
    }
    if (!negated) return out;
    Node without = node(NodeKind::unary, "not");
    without.children.push_back(std::move(out));
    return without;
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace jinja
}  // namespace v0
}  // namespace qlora
