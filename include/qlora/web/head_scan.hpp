// qlora/web/head_scan.hpp — what a page says of its encoding and its language, read before it is decoded.
// Reference: HTML, "determining the character encoding" and "changing the encoding while parsing".
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "qlora/web/ascii.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

/// Value of charset= in a Content-Type or in the content attribute of a <meta>.
[[nodiscard]] inline std::string charset_parameter(std::string_view text) {
  const std::string low = lower(text);
  std::size_t at = 0;
  while ((at = low.find("charset", at)) != std::string::npos) {
    at += 7;
    std::size_t i = at;
    while (i < low.size() && is_space(low[i])) ++i;
    if (i == low.size() || low[i] != '=') continue;
    ++i;
    while (i < low.size() && (is_space(low[i]) || low[i] == '"' || low[i] == '\'')) ++i;
    const std::size_t end = low.find_first_of("\"'; \t\r\n>", i);
    return low.substr(i, end == std::string::npos ? end : end - i);
  }
  return {};
}

/// What the tags of a page say about its text.
struct HeadLabels {
  std::string meta;      ///< label of the first <meta> that names an encoding, one that is known if there is any
  std::string language;  ///< lang of <html>
};

/// Reads the tags as a browser does: comments, and elements whose content is text, hold no tags. A browser takes the
/// word of a <meta> in <body>, too.
class HeadScan {
 public:
  explicit HeadScan(std::string_view page) : page_(page) {}

  /// `known(label)`: whether it is that of an encoding.
  template <class Known>
  [[nodiscard]] HeadLabels run(const Known& known) {
    HeadLabels found;
    bool done = false;
    bool in_body = false;
    while (!(done && in_body) && (at_ = page_.find('<', at_)) != none) {
      if (page_.substr(at_, 4) == "<!--") {
        past("-->", at_ + 2);
        continue;
      }
      const std::size_t letter = at_ + (page_.substr(at_, 2) == "</" ? 2 : 1);
      if (letter >= page_.size() || !is_letter(page_[letter])) {
        ++at_;
        continue;
      }
      const bool closes = letter == at_ + 2;
      std::size_t end = letter;
      while (end < page_.size() && end - letter < 12 && !is_space(page_[end]) && page_[end] != '>' && page_[end] != '/')
        ++end;
      const std::string name = lower(page_.substr(letter, end - letter));
      in_body = in_body || name == "body";
      at_ = end;
      std::string charset;
      std::string content;
      bool declares = false;
      attributes([&](const std::string& key, std::string_view value) {
        if (key == "charset" && charset.empty()) charset = trim(value);
        if (key == "content" && content.empty()) content = value;
        if (key == "http-equiv") declares = lower(trim(value)) == "content-type";
        if ((key == "lang" || key == "xml:lang") && name == "html" && found.language.empty())
          found.language = lower(trim(value));
      });
      if (name == "meta" && !done) {
        if (charset.empty() && declares) charset = charset_parameter(content);
        done = known(charset);
        if (done || found.meta.empty()) found.meta = lower(charset).substr(0, 64);
      }
      if (!closes && one_of(name, text_elements)) past("</" + name, at_);
    }
    return found;
  }

 private:
  static constexpr std::size_t none = std::string_view::npos;
  static constexpr std::array<std::string_view, 8> text_elements = {"script", "style",  "title",   "textarea",
                                                                    "xmp",    "iframe", "noembed", "noframes"};

  /// Moves behind `end`, in any case of letters; to the end of the page if there is none.
  void past(const std::string& end, std::size_t from) {
    for (at_ = from; (at_ = page_.find(end.substr(0, 2), at_)) != none; ++at_)
      if (lower(page_.substr(at_, end.size())) == end) break;
    at_ = at_ == none ? page_.size() : at_ + end.size();
  }

  template <class Use>
  void attributes(const Use& use) {
    while (true) {
      while (at_ < page_.size() && (is_space(page_[at_]) || page_[at_] == '/')) ++at_;
      if (at_ >= page_.size() || page_[at_] == '>') return;
      std::size_t end = page_.find_first_of("= \t\n\r\f/>", at_ + 1);
      const std::string key = lower(page_.substr(at_, std::min<std::size_t>(end == none ? none : end - at_, 32)));
      at_ = std::min(end, page_.size());
      std::size_t next = page_.find_first_not_of(" \t\n\r\f", at_);
      if (next == none || page_[next] != '=') {
        use(key, {});
        continue;
      }
      at_ = std::min(page_.find_first_not_of(" \t\n\r\f", next + 1), page_.size());
      const char quote = at_ < page_.size() ? page_[at_] : '>';
      if (quote == '"' || quote == '\'') {
        end = page_.find(quote, at_ + 1);
        if (end == none) {
          at_ = page_.size();
          return;
        }
        use(key, page_.substr(at_ + 1, end - at_ - 1));
        at_ = end + 1;
      } else {
        end = std::min(page_.find_first_of(" \t\n\r\f>", at_), page_.size());
        use(key, page_.substr(at_, end - at_));
        at_ = end;
      }
    }
  }

  std::string_view page_;
  std::size_t at_ = 0;
};

/// Label of an XML declaration at the start.
[[nodiscard]] inline std::string xml_label(std::string_view page) {
  page = trim(page.substr(0, 1024));
  if (!page.starts_with("<?xml")) return {};
  page = page.substr(0, page.find('>'));
  const std::size_t at = page.find("encoding");
  const std::size_t open = at == std::string_view::npos ? at : page.find_first_of("\"'", at);
  if (open == std::string_view::npos) return {};
  return lower(page.substr(open + 1, page.find(page[open], open + 1) - open - 1));
}

/// The encoding of a page that begins with a tag in UTF-16 and has no byte order mark ("" if it does not). The standard
/// asks for "<?x"; with any other tag the page would be no text at all.
[[nodiscard]] inline std::string unmarked_utf16(std::string_view page) {
  if (page.size() < 4) return {};
  const bool little = page[0] == '<' && page[1] == '\0' && page[3] == '\0';
  const bool big = page[0] == '\0' && page[1] == '<' && page[2] == '\0';
  const char second = little ? page[2] : page[3];
  if (!is_letter(second) && second != '!' && second != '?') return {};
  return little ? "UTF-16LE" : big ? "UTF-16BE" : "";
}

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
