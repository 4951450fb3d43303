// qlora/text/jinja_lexer.hpp — a chat template cut into text and tokens, by the rules of Jinja's lexer with trim_blocks
// and lstrip_blocks, as the package transformers sets them: a newline behind a tag goes, and so does what indents one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/white_space.hpp"

namespace qlora {
inline namespace v0 {
namespace jinja {

/// What a token is.
enum class TokenKind : std::uint8_t {
  data,         ///< text that is written as it is
  block_begin,  ///< {%
  block_end,    ///< %}
  print_begin,  ///< {{
  print_end,    ///< }}
  name,         ///< a word of an expression
  text,         ///< a quoted text, without quotes and escapes
  integer,      ///< digits
  decimal,      ///< digits with a point
  symbol,       ///< an operator or a bracket
  end           ///< behind the last token
};

/// A piece of a template.
struct Token {
  TokenKind kind = TokenKind::end;  ///< what it is
  std::string text;                 ///< of data, names, texts, numbers and symbols
  int line = 0;                     ///< from 1
};

/// Cuts a template. Throws Error that names the line.
class Lexer {
 public:
  /// Line ends become "\n", and the last one goes, as in Jinja.
  explicit Lexer(std::string_view source) {
    for (std::size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        if (i + 1 < source.size() && source[i + 1] == '\n') continue;
        source_ += '\n';
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  /// All tokens, with an `end` behind them.
  [[nodiscard]] std::vector<Token> tokens() {
    bool line_starting = true;
    while (at_ < source_.size()) {
      const std::size_t tag = next_tag();
      const bool found = tag != std::string::npos;
      std::string_view data = std::string_view(source_).substr(at_, (found ? tag : source_.size()) - at_);
      const char kind = found ? source_[tag + 1] : ' ';
      const char sign = found && tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      const std::string_view whole = data;
      if (found && sign == '-') {
        data = ::qlora::detail::right_stripped(data);
      } else if (found && sign != '+' && kind != '{') {
        const std::size_t line = data.rfind('\n') + 1;  // 0 without a newline
        if ((line > 0 || line_starting) && line < data.size() && ::qlora::detail::stripped(data.substr(line)).empty())
          data = data.substr(0, line);
      }
      if (!data.empty()) add(TokenKind::data, std::string(data));
      line_ += static_cast<int>(std::count(whole.begin(), whole.end(), '\n'));
      if (!found) break;
      at_ = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      if (kind == '#') {
        skip_comment();
      } else {
        add(kind == '%' ? TokenKind::block_begin : TokenKind::print_begin, {});
        expression(kind == '%');
      }
      line_starting = source_[at_ - 1] == '\n';
    }
    add(TokenKind::end, {});
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(concat("line ", line_, " of the chat template ", why));
  }
  void add(TokenKind kind, std::string text) { out_.push_back({kind, std::move(text), line_}); }
  [[nodiscard]] bool starts(std::string_view text) const {
    return std::string_view(source_).substr(at_).starts_with(text);
  }
  [[nodiscard]] std::size_t next_tag() const {
    for (std::size_t at = source_.find('{', at_); at != std::string::npos; at = source_.find('{', at + 1)) {
      if (at + 1 < source_.size() && std::string_view("{%#").find(source_[at + 1]) != std::string_view::npos) return at;
    }
    return std::string::npos;
  }
  void skip_spaces() {
    while (at_ < source_.size()) {
      const std::size_t length = ::qlora::detail::space_length(std::string_view(source_).substr(at_));
      if (length == 0) return;
      line_ += source_[at_] == '\n' ? 1 : 0;
      at_ += length;
    }
  }
  /// Behind a tag: all white space after "-", one newline after the end of a block or a comment.
  void close(std::size_t length, bool minus, bool trims) {
    at_ += length;
    if (minus) {
      skip_spaces();
    } else if (trims && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
      ++line_;
    }
  }
  void skip_comment() {
    const std::size_t end = source_.find("#}", at_);
    if (end == std::string::npos) refuse("begins a comment that does not end");
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    const char sign = end > at_ ? source_[end - 1] : ' ';
    at_ = end;
    close(2, sign == '-', sign != '+');
  }

  /// Tokens up to the end of the tag.
  void expression(bool block) {
    const std::string_view end = block ? "%}" : "}}";
    int depth = 0;
    while (true) {
      skip_spaces();
      if (at_ >= source_.size()) refuse("begins a tag that does not end");
      if (depth == 0) {
        const char sign = source_[at_];
        const bool signed_end =
            (sign == '-' || (sign == '+' && block)) && std::string_view(source_).substr(at_ + 1).starts_with(end);
        if (signed_end || starts(end)) {
          add(block ? TokenKind::block_end : TokenKind::print_end, {});
          return close(signed_end ? 3 : 2, signed_end && sign == '-', block && !signed_end);
        }
      }
      depth += token();
    }
  }
  /// One token; how it changes the number of open brackets.
  int token() {
    const char c = source_[at_];
    const auto is_word = [](char x) {
      return (x >= 'a' && x <= 'z') || (x >= 'A' && x <= 'Z') || (x >= '0' && x <= '9') || x == '_';
    };
    if (c == '\'' || c == '"') {
      quoted(c);
      return 0;
    }
    if (is_word(c)) {
      std::size_t end = at_;
      const bool number = c >= '0' && c <= '9';
      const auto goes_on = [&](std::size_t at) {
        const bool point =
            number && source_[at] == '.' && at + 1 < source_.size() && source_[at + 1] >= '0' && source_[at + 1] <= '9';
        return is_word(source_[at]) || point;
      };
      while (end < source_.size() && goes_on(end)) ++end;
      const std::string word = source_.substr(at_, end - at_);
      at_ = end;
      const bool digits = word.find_first_not_of("0123456789.") == std::string::npos;
      if (number && (!digits || word.size() > 18)) refuse("holds the number " + word + ", which is not supported");
      const bool decimal = word.find('.') != std::string::npos;
      add(!number ? TokenKind::name : decimal ? TokenKind::decimal : TokenKind::integer, word);
      return 0;
    }
    for (const std::string_view symbol : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (starts(symbol)) {
        add(TokenKind::symbol, std::string(symbol));
        at_ += 2;
        return 0;
      }
    }
    if (std::string_view("()[]{}.,:|=<>+-*/%~").find(c) == std::string_view::npos)
      refuse(concat("holds the character '", c, "' in a tag"));
    add(TokenKind::symbol, std::string(1, c));
    ++at_;
    return std::string_view("([{").find(c) != std::string_view::npos   ? 1
           : std::string_view(")]}").find(c) != std::string_view::npos ? -1
                                                                       : 0;
  }
  void quoted(char quote) {
    std::string text;
    for (++at_; at_ < source_.size() && source_[at_] != quote; ++at_) {
      if (source_[at_] == '\n') ++line_;
      if (source_[at_] != '\\' || at_ + 1 >= source_.size()) {
        text += source_[at_];
        continue;
      }
      constexpr std::string_view names = "nrt\\'\"bfav0", meanings("\n\r\t\\'\"\b\f\a\v\0", 11);
      const char escape = source_[++at_];
      const std::size_t found = names.find(escape);
      if (escape == '\n') {
        ++line_;
      } else if (found != std::string_view::npos) {
        text += meanings[found];
      } else if (escape == 'x' || escape == 'u' || escape == 'U' || escape == 'N' || (escape >= '1' && escape <= '7')) {
        refuse(concat("holds the escape \\", escape, ", which is not supported"));
      } else {
        (text += '\\') += escape;  // as in Python
      }
    }
    if (at_ >= source_.size()) refuse("begins a quoted text that does not end");
    ++at_;
    add(TokenKind::text, std::move(text));
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> out_;
};

}  // namespace jinja
}  // namespace v0
}  // namespace qlora
