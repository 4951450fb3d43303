// qlora/web/article_compat.hpp — the text that LangChain's WebBaseLoader took from a page, byte for byte:
// BeautifulSoup(html, "html.parser").get_text(), then every double space removed.
// Follows the tokenizer of Python 3.11.2 and the tree rules of bs4 4.11.2, oddities included
// (tests/web/make_bs4_golden.py makes the golden texts). Covered: all HTML5 names. Not covered: white space beyond
// ASCII inside tags, lone surrogates.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/web/charset.hpp"
#include "qlora/web/tree.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

/// What bs4 does with the tokenizer's events, as far as text can tell: which tags are open, and how runs of white
/// space shrink at each tag.
class SoupText {
 public:
  std::string text;

  void data(std::string_view piece) {
    pending_ += piece;
    has_pending_ = true;
  }

  void start_tag(const std::string& name, bool self_closed) {
    end_data(true);
    stack_.push_back(name);
    ++open_[name];
    containers_ += one_of(name, containers);
    preserving_ += one_of(name, preserving);
    if (self_closed) {
      end_tag(name);
    } else if (one_of(name, empty_elements)) {
      pop_to(name);
      ++already_closed_[name];
    }
  }

  /// bs4 ignores one later end tag per empty element that it closed by itself.
  void end_tag(const std::string& name) {
    const auto closed = already_closed_.find(name);
    if (closed != already_closed_.end() && closed->second > 0) {
      --closed->second;
      return;
    }
    end_data(true);
    pop_to(name);
  }

  void cdata(std::string_view content) {
    end_data(true);
    data(content);
    end_data(false);
  }

  /// A comment, declaration or processing instruction: no text, but the text before it ends.
  void other() { end_data(true); }
  void finish() { end_data(true); }

 private:
  static constexpr std::array<std::string_view, 5> containers = {"rt", "rp", "style", "script", "template"};
  static constexpr std::array<std::string_view, 2> preserving = {"pre", "textarea"};
  static constexpr std::array<std::string_view, 24> empty_elements = {
      "area",     "base",    "br",       "col",   "embed", "hr",      "img",    "input",
      "keygen",   "link",    "menuitem", "meta",  "param", "source",  "track",  "wbr",
      "basefont", "bgsound", "command",  "frame", "image", "isindex", "nextid", "spacer"};

  void end_data(bool ordinary) {
    if (!has_pending_) return;
    if (preserving_ == 0 && pending_.find_first_not_of(" \n\t\f\r") == std::string::npos)
      pending_ = pending_.find('\n') != std::string::npos ? "\n" : " ";
    if (!ordinary || containers_ == 0) text += pending_;
    pending_.clear();
    has_pending_ = false;
  }

  void pop_to(const std::string& name) {
    const auto open = open_.find(name);
    if (open == open_.end() || open->second == 0) return;
    for (bool found = false; !found && !stack_.empty();) {
      found = stack_.back() == name;
      --open_[stack_.back()];
      containers_ -= one_of(stack_.back(), containers);
      preserving_ -= one_of(stack_.back(), preserving);
      stack_.pop_back();
    }
  }

  std::string pending_;
  bool has_pending_ = false;
  std::vector<std::string> stack_;
  std::unordered_map<std::string, std::size_t> open_;
  std::unordered_map<std::string, std::size_t> already_closed_;
  std::size_t containers_ = 0;
  std::size_t preserving_ = 0;
};

/// Python's html.parser. It is run twice over what is left, as feed() and close() do; `end` is true the second time.
class PythonHtmlParser {
 public:
  PythonHtmlParser(std::string_view page, const ExtractOptions& options)
      : page_(page), begin_(thread_cpu_seconds()), limit_(cpu_limit(options, page.size())) {}

  [[nodiscard]] std::string run() {
    go_ahead(false);
    go_ahead(true);
    soup_.finish();
    return std::move(soup_.text);
  }

 private:
  static constexpr std::size_t none = std::string_view::npos;

  [[nodiscard]] char at(std::size_t i) const { return i < page_.size() ? page_[i] : '\0'; }
  [[nodiscard]] bool starts(std::size_t i, std::string_view with) const { return page_.substr(i, with.size()) == with; }
  [[nodiscard]] static bool space(char c) { return is_space(c) || c == '\v' || (c >= 0x1C && c <= 0x1F); }
  [[nodiscard]] static bool hex(char c) { return is_digit(c) || (lower(c) >= 'a' && lower(c) <= 'f'); }
  [[nodiscard]] std::size_t skip_space(std::size_t i) const {
    while (i < page_.size() && space(page_[i])) ++i;
    return i;
  }
  /// find() that remembers failures: later searches for the same character start further on and must fail too.
  [[nodiscard]] std::size_t find(char c, std::size_t from) {
    bool& gone = gone_[static_cast<unsigned char>(c)];
    if (gone) return none;
    const std::size_t found = page_.find(c, from);
    gone = found == none;
    return found;
  }

  void go_ahead(bool end) {
    const std::size_t n = page_.size();
    for (std::size_t turns = 0; i_ < n; ++turns) {
      if (turns % 64 == 0 && thread_cpu_seconds() - begin_ > limit_) throw Error("the page takes too long to parse");
      std::size_t j = raw_.empty() ? page_.find_first_of("<&", i_) : find_raw_end(i_);
      if (j == none && !raw_.empty()) break;
      if (j == none) j = n;
      if (i_ < j) soup_.data(page_.substr(i_, j - i_));
      i_ = j;
      if (i_ == n || !(page_[i_] == '<' ? markup(end) : reference(end))) break;
    }
    if (end && i_ < n && raw_.empty()) {
      soup_.data(page_.substr(i_));
      i_ = n;
    }
  }

  /// Start of the end tag of the script or style that is open.
  [[nodiscard]] std::size_t find_raw_end(std::size_t from) const {
    for (std::size_t i = page_.find("</", from); i != none; i = page_.find("</", i + 2)) {
      const std::size_t name = skip_space(i + 2);
      if (lower(page_.substr(name, raw_.size())) == raw_ && at(skip_space(name + raw_.size())) == '>') return i;
    }
    return none;
  }

  /// False: nothing more can be read in this run.
  bool markup(bool end) {
    std::size_t k = none;
    if (is_letter(at(i_ + 1))) {
      k = start_tag();
    } else if (starts(i_, "</")) {
      k = end_tag();
    } else if (starts(i_, "<!--")) {
      k = close_of("--", i_ + 4);
      if (k != none) soup_.other();
    } else if (starts(i_, "<?")) {
      k = find('>', i_ + 2);
      if (k++ != none) soup_.other();
    } else if (starts(i_, "<!")) {
      k = declaration();
    } else if (i_ + 1 < page_.size()) {
      soup_.data("<");
      k = i_ + 1;
    } else {
      return false;
    }
    if (k == none || k == 0) {
      if (!end) return false;
      k = find('>', i_ + 1);
      if (k != none)
        ++k;
      else if (k = page_.find('<', i_ + 1); k == none)
        k = i_ + 1;
      soup_.data(page_.substr(i_, k - i_));
    }
    i_ = k;
    return true;
  }

  /// Behind the first MARK, white space, ">" from `from` on, where MARK is "--", "]" or "]]" (space between allowed).
  [[nodiscard]] std::size_t close_of(std::string_view mark, std::size_t from, std::size_t* start = nullptr) {
    if (mark == "--" && no_comment_end_) return none;
    for (std::size_t i = page_.find(mark[0], from); i != none; i = page_.find(mark[0], i + 1)) {
      std::size_t k = i + 1;
      if (mark.size() == 2) {
        if (mark == "]]") k = skip_space(k);
        if (at(k) != mark[1]) continue;
        ++k;
      }
      k = skip_space(k);
      if (at(k) != '>') continue;
      if (start != nullptr) *start = i;
      return k + 1;
    }
    if (mark == "--") no_comment_end_ = true;
    return none;
  }

  [[nodiscard]] std::size_t declaration() {
    if (starts(i_, "<![")) return marked_section();
    const std::size_t from = lower(page_.substr(i_, 9)) == "<!doctype" ? i_ + 9 : i_ + 2;
    const std::size_t close = find('>', from);
    if (close == none) return none;
    soup_.other();
    return close + 1;
  }

  [[nodiscard]] std::size_t marked_section() {
    std::size_t j = i_ + 3;
    if (j >= page_.size()) return none;
    if (!is_letter(page_[j])) throw Error("the page holds a declaration that html.parser rejects");
    while (j < page_.size() &&
           (is_letter(page_[j]) || is_digit(page_[j]) || page_[j] == '-' || page_[j] == '_' || page_[j] == '.'))
      ++j;
    const std::string name = lower(page_.substr(i_ + 3, j - i_ - 3));
    if (skip_space(j) == page_.size()) return none;
    const bool standard =
        name == "temp" || name == "cdata" || name == "ignore" || name == "include" || name == "rcdata";
    if (!standard && name != "if" && name != "else" && name != "endif")
      throw Error("the page holds a declaration that html.parser rejects");
    std::size_t start = 0;
    const std::size_t after = close_of(standard ? "]]" : "]", i_ + 3, &start);
    if (after == none) return none;
    const std::string_view content = page_.substr(i_ + 3, start - i_ - 3);
    if (lower(content.substr(0, 6)) == "cdata[")
      soup_.cdata(content.substr(6));
    else
      soup_.other();
    return after;
  }

  /// End of the attribute at k (and the space behind it), or k if there is none.
  [[nodiscard]] std::size_t attribute_end(std::size_t k) {
    const char before = page_[k - 1];
    if (!(before == '\'' || before == '"' || before == '/' || space(before))) return k;
    if (k >= page_.size() || space(page_[k]) || page_[k] == '/' || page_[k] == '>') return k;
    ++k;
    while (k < page_.size() && !space(page_[k]) && page_[k] != '/' && page_[k] != '=' && page_[k] != '>') ++k;
    const std::size_t sign = skip_space(k);
    if (at(sign) == '=') {
      std::size_t signs = sign;
      while (at(signs) == '=') ++signs;
      std::size_t value = skip_space(signs);
      const char quote = at(value);
      if (quote == '"' || quote == '\'') {
        const std::size_t close = find(quote, value + 1);
        if (close != none)
          k = close + 1;
        else if (value > signs)
          k = value - 1;  // an unclosed quote after a space: the value is empty
        else if (signs - sign > 1)
          k = bare_end(signs - 1);
      } else {
        k = bare_end(value);
      }
    }
    return skip_slashes(k);
  }
  [[nodiscard]] std::size_t bare_end(std::size_t k) const {
    while (k < page_.size() && !space(page_[k]) && page_[k] != '>') ++k;
    return k;
  }
  [[nodiscard]] std::size_t skip_slashes(std::size_t k) const {
    while (k < page_.size() && (space(page_[k]) || (page_[k] == '/' && at(k + 1) != '>'))) ++k;
    return k;
  }
  [[nodiscard]] std::size_t attributes_end(std::size_t k) {
    for (std::size_t next = attribute_end(k); next != k; next = attribute_end(k)) k = next;
    return k;
  }
  [[nodiscard]] std::size_t name_end(std::size_t k) const {
    while (k < page_.size() && std::string_view("\t\n\r\f />\0", 8).find(page_[k]) == none) ++k;
    return k;
  }

  /// Where the start tag ends; none if it is not whole.
  [[nodiscard]] std::size_t whole_start_tag(std::size_t name_stop) {
    std::size_t j = name_stop;
    while (j < page_.size() && (space(page_[j]) || page_[j] == '/')) ++j;
    j = skip_space(attributes_end(j));
    const char next = at(j);
    if (j >= page_.size()) return none;
    if (next == '>') return j + 1;
    if (next == '/') return at(j + 1) == '>' ? j + 2 : none;
    return is_letter(next) || next == '=' ? none : j;
  }

  [[nodiscard]] std::size_t start_tag() {
    const std::size_t stop = name_end(i_ + 1);
    const std::size_t end = whole_start_tag(stop);
    if (end == none) return none;
    std::size_t k = skip_slashes(stop);
    while (k < end) {
      const std::size_t next = attribute_end(k);
      if (next == k) break;
      k = next;
    }
    std::string_view rest = k < end ? page_.substr(k, end - k) : std::string_view();
    while (!rest.empty() && space(rest.front())) rest.remove_prefix(1);
    while (!rest.empty() && space(rest.back())) rest.remove_suffix(1);
    if (rest != ">" && rest != "/>") {
      soup_.data(page_.substr(i_, end - i_));
      return end;
    }
    const std::string name = lower(page_.substr(i_ + 1, stop - i_ - 1));
    soup_.start_tag(name, rest == "/>");
    if (rest == ">" && (name == "script" || name == "style")) raw_ = name;
    return end;
  }

  [[nodiscard]] std::size_t end_tag() {
    const std::size_t close = find('>', i_ + 1);
    if (close == none) return none;
    const std::size_t name = skip_space(i_ + 2);
    std::size_t stop = name;
    if (is_letter(at(name)))
      while (is_letter(at(stop)) || is_digit(at(stop)) ||
             (at(stop) != '\0' && std::string_view("-.:_").find(at(stop)) != none))
        ++stop;
    if (stop > name && at(skip_space(stop)) == '>') {
      soup_.end_tag(lower(page_.substr(name, stop - name)));
      raw_.clear();
      return skip_space(stop) + 1;
    }
    if (is_letter(at(i_ + 2))) {
      stop = name_end(i_ + 2);
      soup_.end_tag(lower(page_.substr(i_ + 2, stop - i_ - 2)));
      return page_.find('>', stop) + 1;
    }
    if (close != i_ + 2) soup_.other();
    return close + 1;
  }

  bool reference(bool end) {
    const std::size_t n = page_.size();
    std::size_t k = i_ + 1;
    if (at(k) == '#') {
      const bool is_hex = lower(at(k + 1)) == 'x';
      const std::size_t first = k + (is_hex ? 2 : 1);
      for (k = first; k < n && (is_hex ? hex(page_[k]) : is_digit(page_[k]));) ++k;
      if (k > first && k < n && !hex(page_[k])) {
        number(page_.substr(first, k - first), is_hex);
        i_ = k + (page_[k] == ';' ? 1 : 0);
        return true;
      }
      if (find(';', i_) != none) {
        soup_.data(page_.substr(i_, 2));
        i_ += 2;
      }
      return false;
    }
    if (!is_letter(at(k))) {
      if (k >= n) return false;
      soup_.data("&");
      i_ = k;
      return true;
    }
    const auto mark = [](char c) { return c == '-' || c == '.'; };
    while (k < n && (is_letter(page_[k]) || is_digit(page_[k]) || mark(page_[k]))) ++k;
    if (k == n) {  // a name must be followed by something: give back to the last mark
      while (k > i_ + 2 && !mark(page_[k - 1])) --k;
      if (k <= i_ + 2) {
        if (end && n - i_ == 2) ++i_;  // html.parser loses this ampersand
        return false;
      }
      --k;
    }
    const std::string_view name = page_.substr(i_ + 1, k - i_ - 1);
    const std::string_view value = entity(name);
    soup_.data(value.empty() ? page_.substr(i_, k - i_) : value);
    i_ = k + (page_[k] == ';' ? 1 : 0);
    return true;
  }

  /// find_entity(), each name once. A page can hold more names than anyone has use for: then they are not kept.
  [[nodiscard]] std::string_view entity(std::string_view name) {
    const auto known = entities_.find(std::string(name));
    if (known != entities_.end()) return known->second;
    if (entities_.size() >= 4096) entities_.clear();
    return entities_[std::string(name)] = find_entity(name);
  }

  void number(std::string_view digits, bool is_hex) {
    std::uint32_t code = 0;
    for (const char c : digits) {
      const auto digit = static_cast<std::uint32_t>(is_digit(c) ? c - '0' : lower(c) - 'a' + 10);
      code = std::min<std::uint32_t>(code * (is_hex ? 16U : 10U) + digit, 0x110000);
    }
    if (code >= 0x80 && code < 0xA0) code = windows_1252[code - 0x80U];
    std::string character;
    append_utf8(character, code);
    soup_.data(character);
  }

  std::string_view page_;
  double begin_;
  double limit_;
  std::size_t i_ = 0;
  std::string raw_;  ///< script or style while in one
  SoupText soup_;
  std::array<bool, 256> gone_{};
  bool no_comment_end_ = false;
  std::unordered_map<std::string, std::string> entities_;
};

}  // namespace detail

/// The text of an HTML page (UTF-8) as LangChain's WebBaseLoader gave it, double spaces removed.
/// Throws Error for pages that bs4 rejects, and when the page is over a limit.
[[nodiscard]] inline std::string article_compat_text(std::string_view html, const ExtractOptions& options = {}) {
  if (html.size() > options.max_bytes) throw Error(concat("the page is larger than ", options.max_bytes, " bytes"));
  const std::string text = detail::PythonHtmlParser(html, options).run();
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ' && i + 1 < text.size() && text[i + 1] == ' ')
      ++i;
    else
      out += text[i];
  }
  return out;
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
