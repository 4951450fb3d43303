// qlora/web/formula.hpp — MathML as a line of text: "1/2 k x^2", "sqrt(a + b)", "x_i".
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/web/charset.hpp"

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

class Formula {
 public:
  [[nodiscard]] bool open() const { return !parts_.empty(); }

  /// `alternative` is the text that the page gives for the formula; it is preferred.
  void start(std::string_view alternative) {
    alternative_ = trim(alternative);
    constexpr std::string_view wrapper = "{\\displaystyle";
    if (alternative_.starts_with(wrapper) && alternative_.ends_with('}'))
      alternative_ =
          trim(std::string_view(alternative_).substr(wrapper.size(), alternative_.size() - wrapper.size() - 1));
    parts_.push_back({});
  }
  void open(std::string_view) { parts_.push_back({}); }
  void text(std::string_view piece) {
    piece = trim(piece);
    // U+2061 to U+2064 stand for operators that are not written.
    if (piece.empty() || (piece.size() == 3 && piece >= "\xE2\x81\xA1" && piece <= "\xE2\x81\xA4")) return;
    parts_.back().emplace_back(piece);
  }
  void close(std::string_view name) {
    std::vector<std::string> inside = std::move(parts_.back());
    parts_.pop_back();
    std::string shown;
    if (name.starts_with("annotation"))
      return;
    else if (name == "mfrac" && inside.size() == 2)
      shown = group(inside[0]) + "/" + group(inside[1]);
    else if ((name == "msup" || name == "mover") && inside.size() == 2)
      shown = group(inside[0]) + "^" + group(inside[1]);
    else if ((name == "msub" || name == "munder") && inside.size() == 2)
      shown = group(inside[0]) + "_" + group(inside[1]);
    else if ((name == "msubsup" || name == "munderover") && inside.size() == 3)
      shown = group(inside[0]) + "_" + group(inside[1]) + "^" + group(inside[2]);
    else if (name == "msqrt")
      shown = "sqrt(" + join(inside) + ")";
    else if (name == "mroot" && inside.size() == 2)
      shown = group(inside[0]) + "^(1/" + group(inside[1]) + ")";
    else
      shown = join(inside);
    if (!shown.empty()) parts_.back().push_back(std::move(shown));
  }
  [[nodiscard]] std::string finish() {
    std::string shown = alternative_.empty() ? join(parts_.back()) : alternative_;
    parts_.clear();
    alternative_.clear();
    return shown;
  }

 private:
  [[nodiscard]] static std::string join(const std::vector<std::string>& parts) {
    std::string all;
    for (const std::string& part : parts) (all += all.empty() ? "" : " ") += part;
    return all;
  }
  [[nodiscard]] static std::string group(const std::string& part) {
    return part.find(' ') == std::string::npos ? part : "(" + part + ")";
  }

  std::vector<std::vector<std::string>> parts_;  ///< of each open element
  std::string alternative_;
};

}  // namespace detail
}  // namespace web
}  // namespace v0
}  // namespace qlora
