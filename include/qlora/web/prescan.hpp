// qlora/web/prescan.hpp — one linear pass over a page before the HTML parser sees it.
// Leaves out what holds no text (comments, declarations, script and style with their content) and what makes the tree
// grow faster than the page: attributes that nobody here reads, attributes of formatting elements (each variant would
// be opened again in each paragraph), elements below a fixed depth and end tags of what is not open. Text is never
// left out with a tag. What may not change: no position is scanned twice.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

class Prescan {
 public:
  /// Deepest nesting of block elements and of others that reaches the parser; browsers stop at 512 in all.
  static constexpr std::size_t max_blocks = 400;
  static constexpr std::size_t max_inlines = 100;
  static constexpr std::size_t max_attributes = 16;
  static constexpr std::size_t max_value_bytes = std::size_t{8} << 10;

  explicit Prescan(std::string_view page) : page_(page) { out_.reserve(page.size()); }

  [[nodiscard]] std::string run() {
    while (at_ < page_.size()) {
      const std::size_t next = page_.find('<', at_);
      out_ += page_.substr(at_, next - at_);
      if (next == none) break;
      at_ = next;
      markup();
    }
    return std::move(out_);
  }
  /// Where in the result of run() begins what stands behind the end of the page's last <html>; npos: nowhere.
  [[nodiscard]] std::size_t behind() const { return behind_; }

 private:
  static constexpr std::size_t none = std::string_view::npos;
  struct Open {
    std::string_view name;  ///< as in the page, any case
    bool block;
  };
  struct Attribute {
    std::string_view name;
    std::string_view whole;  ///< with its value and quotes
  };

  static constexpr std::array<std::string_view, 14> void_elements = {
      "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"};
  /// Elements whose end is implied: they cannot nest without another block between.
  static constexpr std::array<std::string_view, 18> implied_ends = {
      "p",     "li",       "dt",     "dd",       "tr", "td", "th",   "tbody", "thead",
      "tfoot", "colgroup", "option", "optgroup", "rt", "rp", "html", "head",  "body"};
  static constexpr std::array<std::string_view, 41> inlines = {
      "a",   "abbr", "acronym", "b",    "bdi",    "bdo",  "big",    "button", "cite",   "code",   "data",
      "del", "dfn",  "em",      "font", "i",      "ins",  "kbd",    "label",  "mark",   "nobr",   "picture",
      "q",   "ruby", "s",       "samp", "select", "slot", "small",  "span",   "strike", "strong", "sub",
      "sup", "time", "tt",      "u",    "var",    "map",  "canvas", "meter"};
  static constexpr std::array<std::string_view, 13> formatting = {
      "b", "big", "code", "em", "font", "i", "nobr", "small", "s", "strike", "strong", "tt", "u"};
  static constexpr std::array<std::string_view, 6> raw_elements = {"textarea", "title",   "xmp",
                                                                   "iframe",   "noembed", "noframes"};
  static constexpr std::array<std::string_view, 33> attributes_read = {"id",
                                                                       "class",
                                                                       "hidden",
                                                                       "aria-hidden",
                                                                       "style",
                                                                       "role",
                                                                       "href",
                                                                       "aria-expanded",
                                                                       "itemprop",
                                                                       "itemtype",
                                                                       "property",
                                                                       "name",
                                                                       "content",
                                                                       "http-equiv",
                                                                       "rel",
                                                                       "aria-controls",
                                                                       "rowspan",
                                                                       "colspan",
                                                                       "start",
                                                                       "value",
                                                                       "reversed",
                                                                       "alttext",
                                                                       "encoding",
                                                                       "aria-haspopup",
                                                                       "lang",
                                                                       "type",
                                                                       "open",
                                                                       "charset",
                                                                       "xml:lang",
                                                                       "aria-modal",
                                                                       "shadowrootmode",
                                                                       "data-toggle",
                                                                       "data-bs-toggle"};

  [[nodiscard]] char peek(std::size_t ahead) const { return at_ + ahead < page_.size() ? page_[at_ + ahead] : '\0'; }

  [[nodiscard]] static bool same(std::string_view raw, std::string_view low) {
    return raw.size() == low.size() &&
           std::equal(raw.begin(), raw.end(), low.begin(), [](char a, char b) { return lower(a) == b; });
  }

  /// Moves past `end`, or to the end of the page.
  void skip_past(std::string_view end) {
    const std::size_t found = page_.find(end, at_);
    at_ = found == none ? page_.size() : found + end.size();
  }

  void markup() {
    if (page_.substr(at_, 4) == "<!--") {
      comment();
    } else if (page_.substr(at_, 9) == "<![CDATA[") {
      at_ += 9;  // its text is text, as in XHTML
      const std::size_t end = page_.find("]]>", at_);
      for (const char c : page_.substr(at_, end - at_))
        c == '<' ? out_ += "&lt;" : c == '&' ? out_ += "&amp;" : out_ += c;
      skip_past("]]>");
    } else if (peek(1) == '!' || peek(1) == '?' || (peek(1) == '/' && !is_letter(peek(2)))) {
      doctype();
      skip_past(">");
    } else if (is_letter(peek(1))) {
      start_tag();
    } else if (peek(1) == '/') {
      end_tag();
    } else {
      out_ += "&lt;";
      ++at_;
    }
  }

  /// The first <!DOCTYPE> is passed on: without it tables stand inside of paragraphs.
  void doctype() {
    if (!out_.empty() && out_.find_first_not_of(" \t\r\n\f") != none) return;
    const std::string_view start = page_.substr(at_, 9);
    if (same(start, "<!doctype"))
      out_ += page_.substr(at_, std::min<std::size_t>(page_.find('>', at_) - at_, 400)), out_ += '>';
  }

  /// A comment without an end stops at the first ">", so that it cannot swallow the page.
  void comment() {
    at_ += 4;
    if (peek(0) == '>' || (peek(0) == '-' && peek(1) == '>')) return skip_past(">");
    const std::size_t plain = open_comment_ ? none : page_.find("-->", at_);
    open_comment_ = plain == none;
    if (plain == none) return skip_past(">");
    const std::size_t odd = page_.substr(at_, plain - at_).find("--!>");
    at_ = odd == none ? plain + 3 : at_ + odd + 4;
  }

  /// Reads a tag from its name on. False when the page ends inside of it.
  [[nodiscard]] bool read_tag(std::string_view& name) {
    const std::size_t start = at_;
    while (at_ < page_.size() && !is_space(page_[at_]) && page_[at_] != '>' && page_[at_] != '/') ++at_;
    name = page_.substr(start, at_ - start);
    attributes_.clear();
    while (at_ < page_.size()) {
      while (at_ < page_.size() && (is_space(page_[at_]) || page_[at_] == '/')) ++at_;
      if (at_ >= page_.size()) return false;
      if (page_[at_] == '>') {
        ++at_;
        return true;
      }
      attribute();
    }
    return false;
  }

  void attribute() {
    const std::size_t start = at_++;  // the first may be any character, even "="
    while (at_ < page_.size() && !is_space(page_[at_]) && page_[at_] != '>' && page_[at_] != '/' && page_[at_] != '=')
      ++at_;
    const std::string_view name = page_.substr(start, at_ - start);
    std::size_t next = at_;
    while (next < page_.size() && is_space(page_[next])) ++next;
    if (next < page_.size() && page_[next] == '=') {
      at_ = next + 1;
      while (at_ < page_.size() && is_space(page_[at_])) ++at_;
      const char quote = peek(0);
      if (quote == '"' || quote == '\'') {
        bool& gone = open_quote_[quote == '"'];
        const std::size_t close = gone ? none : page_.find(quote, at_ + 1);
        gone = close == none;  // no more of these: never search again
        at_ = close == none ? at_ + 1 : close + 1;
      } else {
        while (at_ < page_.size() && !is_space(page_[at_]) && page_[at_] != '>') ++at_;
      }
    }
    const std::string_view whole = page_.substr(start, at_ - start);
    if (whole.size() > max_value_bytes || attributes_.size() >= max_attributes || name.size() > 14) return;
    for (const std::string_view known : attributes_read)
      if (same(name, known)) attributes_.push_back({known, whole});
  }

  void start_tag() {
    const std::size_t start = at_++;
    std::string_view raw;
    if (!read_tag(raw)) {
      at_ = page_.size();  // the parser would drop it, too
      if (page_.size() - start < 3) out_ += "&lt;";
      return;
    }
    const std::string name = lower(raw.substr(0, 24));
    if (name == "script" || name == "style") {
      const std::size_t content = at_;
      if (!skip_raw(name)) at_ = page_.size();
      if (name == "script" && is_formula()) write_formula(page_.substr(content, at_ - content));
      out_ += ' ';
      return;
    }
    if (name == "frameset" || name == "frame") return;
    if (name == "plaintext") return plain_rest();
    if (one_of(name, raw_elements)) return raw_element(name);
    if (name == "html") behind_ = none;
    const bool nests = !one_of(name, void_elements) && !one_of(name, implied_ends);
    if (nests) {
      const bool block = !one_of(name, inlines);
      std::size_t& depth = block ? blocks_ : inlines_;
      if (depth >= (block ? max_blocks : max_inlines)) {
        out_ += ' ';
        return;
      }
      ++depth;
      open_.push_back({raw, block});
    }
    write(name);
  }

  /// Whether the script that was opened is a formula in TeX, as MathJax writes them.
  [[nodiscard]] bool is_formula() const {
    return std::any_of(attributes_.begin(), attributes_.end(), [](const Attribute& a) {
      return a.name == "type" && lower(a.whole.substr(0, 40)).find("math/tex") != std::string::npos;
    });
  }

  /// Puts a formula and the end tag behind it into the text.
  void write_formula(std::string_view content) {
    out_ += ' ';
    for (const char c : content.substr(0, content.rfind("</")))
      c == '<' ? out_ += "&lt;" : c == '&' ? out_ += "&amp;" : out_ += c;
  }

  /// <plaintext>: no tag follows.
  void plain_rest() {
    out_ += "<pre>";
    for (const char c : page_.substr(at_)) c == '<' ? out_ += "&lt;" : c == '&' ? out_ += "&amp;" : out_ += c;
    at_ = page_.size();
  }

  void write(const std::string& name) {
    out_.append("<").append(name);
    if (!one_of(name, formatting))
      for (const Attribute& a : attributes_) out_.append(" ").append(a.whole);
    out_ += '>';
  }

  void end_tag() {
    at_ += 2;
    std::string_view raw;
    if (!read_tag(raw)) {
      at_ = page_.size();
      return;
    }
    const std::string name = lower(raw.substr(0, 24));
    if (!one_of(name, implied_ends) && name != "br") {
      std::size_t depth = open_.size();
      while (depth > 0 && !same(open_[depth - 1].name.substr(0, 24), name)) --depth;
      if (depth == 0) return;
      // As the parser does it: a block's end closes what is open inside of it, all but a form's; the end of an inline
      // element is ignored inside of a block, unless it is a formatting one, which is taken out from around it.
      const Open& opened = open_[depth - 1];
      const bool blocks_inside = std::any_of(open_.begin() + static_cast<std::ptrdiff_t>(depth), open_.end(),
                                             [](const Open& o) { return o.block; });
      if (opened.block && name != "form") {
        for (; open_.size() >= depth; open_.pop_back()) --(open_.back().block ? blocks_ : inlines_);
      } else {
        if (!opened.block && blocks_inside && name != "a" && !one_of(name, formatting)) return;
        --(opened.block ? blocks_ : inlines_);
        open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(depth - 1));
      }
    }
    if (name == "html" && behind_ == none) behind_ = out_.size();
    if (name == "html" || name == "body") return;  // what follows is read as a browser shows it: behind the rest
    out_.append("</").append(name).append(">");
  }

  /// Content of script and style up to its end tag, in any case.
  [[nodiscard]] bool skip_raw(const std::string& name) {
    const std::size_t end = raw_end(name);
    if (end == none) return false;
    at_ = end;
    skip_past(">");
    return true;
  }

  [[nodiscard]] std::size_t raw_end(const std::string& name) {
    if (std::find(endless_.begin(), endless_.end(), name) != endless_.end()) return none;
    for (std::size_t end = page_.find("</", at_); end != none; end = page_.find("</", end + 2)) {
      const std::size_t behind = end + 2 + name.size();
      if (same(page_.substr(end + 2, name.size()), name) &&
          (behind >= page_.size() || is_space(page_[behind]) || page_[behind] == '>' || page_[behind] == '/'))
        return end;
    }
    endless_.push_back(name);
    return none;
  }

  /// An element whose content is text alone. Without its end tag only the tag is dropped; a title ends at the next tag.
  void raw_element(const std::string& name) {
    std::size_t end = raw_end(name);
    if (end == none && name != "title") return;
    const bool closed = end != none;
    if (!closed) end = std::min(page_.find('<', at_), page_.size());
    write(name);
    out_ += page_.substr(at_, end - at_);
    out_.append("</").append(name).append(">");
    at_ = end;
    if (closed) skip_past(">");
  }

  std::string_view page_;
  std::string out_;
  std::size_t at_ = 0;
  std::vector<Open> open_;
  std::size_t blocks_ = 0;
  std::size_t inlines_ = 0;
  std::size_t behind_ = none;
  std::vector<Attribute> attributes_;
  std::vector<std::string> endless_;  ///< raw elements of which no end tag follows
  std::array<bool, 2> open_quote_{};  ///< by kind: no such character follows
  bool open_comment_ = false;         ///< no comment end follows
};

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
