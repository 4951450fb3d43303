// qlora/web/prescan.hpp — one linear pass over a page before the HTML parser sees it.
// Removes what holds no text (comments, declarations, script and style with their content) and what could hurt the
// parser (tags over 64 KiB or with over 1000 attributes, e.g. pictures inlined as data:), and decodes the HTML5
// character names that the parser does not know. What may not change: no position is scanned twice.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/web/charset.hpp"
#include "qlora/web/entities.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

inline constexpr std::size_t max_tag_bytes = std::size_t{64} << 10;
inline constexpr std::size_t max_tag_attributes = 1000;

class Prescan {
 public:
  explicit Prescan(std::string_view page) : page_(page) { out_.reserve(page.size()); }

  [[nodiscard]] std::string run() {
    while (at_ < page_.size()) {
      const std::size_t next = page_.find_first_of("<&", at_);
      out_ += page_.substr(at_, next - at_);
      if (next == std::string_view::npos) break;
      at_ = next;
      if (page_[at_] == '&')
        reference();
      else
        markup();
    }
    return std::move(out_);
  }

 private:
  [[nodiscard]] char peek(std::size_t ahead) const { return at_ + ahead < page_.size() ? page_[at_ + ahead] : '\0'; }

  /// Moves past `end`, or to the end of the page.
  void skip_past(std::string_view end) {
    const std::size_t found = page_.find(end, at_);
    at_ = found == std::string_view::npos ? page_.size() : found + end.size();
  }

  /// Named references are decoded here, except those that stand for markup, which the parser must see.
  void reference() {
    std::size_t n = 1;
    while (n < 40 && (is_letter(peek(n)) || is_digit(peek(n)))) ++n;
    const std::string_view value = peek(n) == ';' ? find_entity(page_.substr(at_ + 1, n - 1)) : std::string_view();
    if (value.empty() || value.find_first_of("<>&") != std::string_view::npos) {
      out_ += page_[at_++];
      return;
    }
    out_ += value;
    at_ += n + 1;
  }

  void markup() {
    if (page_.substr(at_, 4) == "<!--") {
      at_ += 4;
      if (peek(0) == '>') {
        ++at_;
      } else {
        skip_past("-->");
      }
    } else if (page_.substr(at_, 9) == "<![CDATA[") {
      at_ += 9;  // its text is text; the closing brackets are dropped with it
      const std::size_t end = page_.find("]]>", at_);
      for (const char c : page_.substr(at_, end - at_))
        c == '<' ? out_ += "&lt;" : c == '&' ? out_ += "&amp;" : out_ += c;
      skip_past("]]>");
    } else if (peek(1) == '!' || peek(1) == '?') {
      skip_past(">");
    } else if (is_letter(peek(1)) || (peek(1) == '/' && is_letter(peek(2)))) {
      tag();
    } else {
      out_ += "&lt;";
      ++at_;
    }
  }

  void tag() {
    const std::size_t start = at_;
    std::size_t name_end = at_ + 2;
    while (name_end < page_.size() && name_end - at_ < 20 && !is_space(page_[name_end]) && page_[name_end] != '>' &&
           page_[name_end] != '/')
      ++name_end;
    const std::string name = lower(page_.substr(at_ + 1, name_end - at_ - 1));
    at_ = name_end;
    std::size_t attributes = 0;
    char before = ' ';  // the last character that was not a space
    for (; at_ < page_.size() && page_[at_] != '>'; ++at_) {
      const char c = page_[at_];
      attributes += !is_space(c) && (is_space(page_[at_ - 1]) || page_[at_ - 1] == '/' || page_[at_ - 1] == '"' ||
                                     page_[at_ - 1] == '\'');
      if ((c == '"' || c == '\'') && before == '=') {
        const std::size_t close = open_quote_[c == '"'] ? std::string_view::npos : page_.find(c, at_ + 1);
        if (close == std::string_view::npos)
          open_quote_[c == '"'] = true;  // no more of these: never search again
        else
          at_ = close;
      }
      if (!is_space(c)) before = c;
    }
    at_ = std::min(at_ + 1, page_.size());
    const bool usable = at_ - start <= max_tag_bytes && attributes <= max_tag_attributes && page_[at_ - 1] == '>';
    if (name == "script" || name == "style")  // an end tag has its slash in the name
      skip_raw(name);
    else
      out_ += usable ? page_.substr(start, at_ - start) : " ";
  }

  /// Content of script and style up to its end tag, in any case.
  void skip_raw(const std::string& name) {
    for (std::size_t end = page_.find("</", at_); end != std::string_view::npos; end = page_.find("</", end + 2)) {
      if (lower(page_.substr(end + 2, name.size())) != name) continue;
      at_ = end;
      skip_past(">");
      out_ += ' ';
      return;
    }
    at_ = page_.size();
  }

  std::string_view page_;
  std::string out_;
  std::size_t at_ = 0;
  std::array<bool, 2> open_quote_{};
};

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
