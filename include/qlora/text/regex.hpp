// qlora/text/regex.hpp — Unicode regular expressions of tokenizer files, by PCRE2.
// What may not change: matches are those of the package `tokenizers`; regex_classes.hpp says where PCRE2 differs.
#pragma once

/// PCRE2 on UTF-8; its header wants to know.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "qlora/error.hpp"
#include "qlora/text/regex_classes.hpp"

namespace qlora {
inline namespace v0 {

/// One compiled expression. Const calls are safe from many threads.
class Regex {
 public:
  /// Throws Error when the expression is not valid, not supported, or longer than 4,096 bytes.
  explicit Regex(std::string_view expression) {
    if (expression.size() > 4096) throw Error("a regular expression is longer than 4,096 bytes");
    const std::string translated = detail::regex::translated(expression);
    int code = 0;
    std::size_t at = 0;
    // To Oniguruma ^ and $ are the ends of lines.
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &code, &at, nullptr));
    if (!code_) {
      std::array<PCRE2_UCHAR, 256> why{};
      pcre2_get_error_message(code, why.data(), why.size());
      throw Error(concat("the regular expression '", expression, "': ", reinterpret_cast<const char*>(why.data())));
    }
    std::uint32_t may_be_empty = 0;
    pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &may_be_empty);
    if (may_be_empty != 0) detail::regex::refuse(expression, "a match without characters");
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot, the interpreter runs
  }

  /// Calls use(begin, end) for each match, in order; none is empty. `text` must be UTF-8. Throws Error when the
  /// expression takes too many steps on this text.
  template <class Use>
  void for_each_match(std::string_view text, const Use& use) const {
    const std::unique_ptr<pcre2_match_data, Free> data{pcre2_match_data_create(1, nullptr)};
    const std::unique_ptr<pcre2_match_context, Free> limits{pcre2_match_context_create(nullptr)};
    // Grows with the text: a match may look at all of it. A step is some nanoseconds.
    const std::size_t most_steps = std::min<std::size_t>(1'000'000 + 32 * text.size(), 100'000'000);
    pcre2_set_match_limit(limits.get(), static_cast<std::uint32_t>(most_steps));
    for (std::size_t from = 0; from < text.size();) {
      const auto match = [&](std::uint32_t options) {
        return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                           PCRE2_NO_UTF_CHECK | options, data.get(), limits.get());
      };
      int found = match(0);
      if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_JIT);  // which has the heap
      if (found == PCRE2_ERROR_NOMATCH) return;
      if (found < 0) throw Error("a regular expression of the tokenizer takes too long on a text");
      const std::size_t* range = pcre2_get_ovector_pointer(data.get());
      use(range[0], range[1]);
      from = range[1];
    }
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* limits) const { pcre2_match_context_free(limits); }
  };

  std::unique_ptr<pcre2_code, Free> code_;
};

}  // namespace v0
}  // namespace qlora
