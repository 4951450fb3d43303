// qlora/text/tokenizer_stages.hpp — what happens to a text before BPE in a tokenizer.json: normalisers, pre-tokenizers
// and the search for added tokens. The rules are those of the package `tokenizers`.
// Reference: tests/text/tokenizer_json_test.cpp, ids of the package.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/token_finder.hpp"
#ifdef QLORA_WITH_PCRE2
#include "qlora/text/regex.hpp"
#endif
#ifdef QLORA_WITH_UTF8PROC
#include "qlora/text/unicode_forms.hpp"
#endif

namespace qlora {
inline namespace v0 {
namespace detail::stages {

/// A fixed text or an expression to look for.
class Pattern {
 public:
  Pattern(const Json& value, const std::string& where) {
    if (const Json* fixed = json_find(value, "String")) {
      text_ = fixed->is_string() ? fixed->get<std::string>() : std::string();
      if (text_.empty()) throw Error(where + ": an empty pattern");
      return;
    }
    const std::string expression = json_string(value, "Regex", where);
#ifdef QLORA_WITH_PCRE2
    try {
      regex_ = std::make_unique<Regex>(expression);
    } catch (const Error& error) {
      throw Error(concat(where, ": ", error.what()));
    }
#else
    throw Error(concat(where, ": the regular expression '", expression,
                       "' needs PCRE2, which this build lacks; install libpcre2-dev and build again"));
#endif
  }
#ifdef QLORA_WITH_PCRE2
  explicit Pattern(std::string_view expression) : regex_(std::make_unique<Regex>(expression)) {}
#endif

  /// Calls use(begin, end) for each match, in order.
  template <class Use>
  void for_each_match(std::string_view text, const Use& use) const {
#ifdef QLORA_WITH_PCRE2
    if (regex_) return regex_->for_each_match(text, use);
#endif
    for (std::size_t at = text.find(text_); at != std::string_view::npos; at = text.find(text_, at + text_.size()))
      use(at, at + text_.size());
  }

 private:
  std::string text_;
#ifdef QLORA_WITH_PCRE2
  std::unique_ptr<Regex> regex_;
#endif
};

// --- normalisers --------------------------------------------------------------------------------------------------

/// The code point at text[at], which must begin a character.
[[nodiscard]] inline char32_t code_point(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  if (byte(0) < 0x80U) return byte(0);
  const std::size_t length = byte(0) < 0xE0U ? 2 : byte(0) < 0xF0U ? 3 : 4;
  char32_t value = byte(0) & (0xFFU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) value = value << 6U | (byte(i) & 0x3FU);
  return value;
}
[[nodiscard]] inline std::size_t character_before(std::string_view text, std::size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U);
  return end;
}
[[nodiscard]] inline bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

struct Prepend {
  std::string text;
};
struct Replace {
  Pattern pattern;
  std::string content;
};
struct Strip {
  bool left, right;
};
#ifdef QLORA_WITH_UTF8PROC
struct Lowercase {};
using Normalizer = std::variant<Prepend, Replace, Strip, NormalForm, Lowercase>;
#else
using Normalizer = std::variant<Prepend, Replace, Strip>;
#endif

/// A text on its way through normalisers.
struct Normalized {
  std::string text;
  /// Per byte of `text`, and for its end, the byte of the input that it stems from; kept where it is not empty.
  std::vector<std::size_t> places{};
  std::size_t most_bytes = ~std::size_t{0};

  void apply(const Prepend& step) {
    if (text.empty()) return;
    text.insert(0, step.text);
    if (!places.empty()) places.insert(places.begin(), step.text.size(), places.front());
  }
  void apply(const Replace& step) {
    std::size_t size = text.size();
    step.pattern.for_each_match(text,
                                [&](std::size_t begin, std::size_t end) { size += step.content.size() + begin - end; });
    Normalized out{};
    out.text.reserve(size);
    std::size_t done = 0;
    step.pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
      out.take(*this, done, begin);
      out.put(*this, step.content, begin);
      if (out.text.size() > most_bytes) throw Error("a normalizer of the tokenizer makes a text 16 times as long");
      done = end;
    });
    out.finish(*this, done);
  }
  void apply(const Strip& step) {
    std::size_t begin = 0, end = text.size();
    while (step.left && begin < end && is_white_space(code_point(text, begin))) {
      do {
        ++begin;
      } while (begin < end && (static_cast<unsigned char>(text[begin]) & 0xC0U) == 0x80U);
    }
    while (step.right && begin < end && is_white_space(code_point(text, character_before(text, end))))
      end = character_before(text, end);
    text.erase(end).erase(0, begin);
    if (places.empty()) return;
    places.erase(places.begin() + static_cast<std::ptrdiff_t>(end), places.end() - 1);
    places.erase(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(begin));
  }
#ifdef QLORA_WITH_UTF8PROC
  void apply(NormalForm form) {
    std::string whole = normal_form(form, text);
    if (whole == text) return;
    if (places.empty()) {
      text = std::move(whole);
      return;
    }
    by_part([&](std::string_view rest) { return normal_part(form, rest); },
            [&](std::string_view part) { return normal_form(form, part); });
  }
  void apply(Lowercase /*step*/) {
    if (places.empty()) {
      text = lower_case(text);
      return;
    }
    by_part(
        [](std::string_view rest) {
          std::size_t length = 1;
          while (length < rest.size() && (static_cast<unsigned char>(rest[length]) & 0xC0U) == 0x80U) ++length;
          return length;
        },
        lower_case);
  }
#endif

 private:
#ifdef QLORA_WITH_UTF8PROC
  /// Puts change(part) for each part of the text; length(rest) is that of the first.
  template <class Length, class Change>
  void by_part(const Length& length, const Change& change) {
    Normalized out{};
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = at + length(std::string_view(text).substr(at));
      const std::string_view part = std::string_view(text).substr(at, end - at);
      const std::string changed = change(part);
      if (changed == part) {
        out.take(*this, at, end);
      } else {
        out.put(*this, changed, at);
      }
      at = end;
    }
    out.finish(*this, text.size());
  }
#endif
  void take(const Normalized& from, std::size_t begin, std::size_t end) {
    text.append(from.text, begin, end - begin);
    if (!from.places.empty())
      places.insert(places.end(), from.places.begin() + static_cast<std::ptrdiff_t>(begin),
                    from.places.begin() + static_cast<std::ptrdiff_t>(end));
  }
  void put(const Normalized& from, std::string_view added, std::size_t at) {
    text.append(added);
    if (!from.places.empty()) places.insert(places.end(), added.size(), from.places[at]);
  }
  void finish(Normalized& target, std::size_t done) {
    take(target, done, target.text.size());
    if (!target.places.empty()) places.push_back(target.places.back());
    target.text = std::move(text);
    target.places = std::move(places);
  }
};

/// `input` behind the normalisers; with_places: says where its bytes stem from.
[[nodiscard]] inline Normalized normalized(const std::vector<Normalizer>& steps, std::string_view input,
                                           bool with_places = false) {
  Normalized out{std::string(input)};
  out.most_bytes = 16 * input.size() + (std::size_t{1} << 20U);
  if (with_places) {
    out.places.resize(input.size() + 1);
    std::iota(out.places.begin(), out.places.end(), std::size_t{0});
  }
  for (const Normalizer& step : steps) std::visit([&](const auto& one) { out.apply(one); }, step);
  return out;
}

// --- pre-tokenizers -----------------------------------------------------------------------------------------------

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
enum class PrependScheme { never, first, always };

struct Split {
  Pattern pattern;
  Behavior behavior;
  bool invert = false;
};
struct Metaspace {
  std::string replacement;
  PrependScheme scheme;
  bool split;
};
struct ByteLevel {
  bool add_prefix_space;
  std::optional<Pattern> words;  ///< absent: the text is one word
};
using PreTokenizer = std::variant<Split, Metaspace, ByteLevel>;

/// Calls use(begin, end) for the words that a pattern makes of a text; empty ones are left out.
template <class Use>
void split(const Split& step, std::string_view text, const Use& use) {
  struct Part {
    std::size_t begin, end;
    bool match;
  };
  std::vector<Part> parts;
  std::size_t done = 0;
  step.pattern.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    if (done < begin) parts.push_back({done, begin, step.invert});
    parts.push_back({begin, end, !step.invert});
    done = end;
  });
  if (done < text.size()) parts.push_back({done, text.size(), step.invert});

  std::vector<Part> joined;
  const auto join = [&](const Part& part, bool with_last) {
    if (with_last && !joined.empty()) {
      joined.back().begin = std::min(joined.back().begin, part.begin);
      joined.back().end = std::max(joined.back().end, part.end);
    } else {
      joined.push_back(part);
    }
  };
  bool previous = false;  // whether the part before was a match
  switch (step.behavior) {
    case Behavior::removed:
      std::copy_if(parts.begin(), parts.end(), std::back_inserter(joined),
                   [](const Part& part) { return !part.match; });
      break;
    case Behavior::isolated:
      joined = std::move(parts);
      break;
    case Behavior::contiguous:
      for (const Part& part : parts) {
        join(part, part.match == previous);
        previous = part.match;
      }
      break;
    case Behavior::merged_with_previous:
      for (const Part& part : parts) {
        join(part, part.match && !previous);
        previous = part.match;
      }
      break;
    case Behavior::merged_with_next:
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        join(*part, part->match && !previous);
        previous = part->match;
      }
      std::reverse(joined.begin(), joined.end());
      break;
  }
  for (const Part& part : joined) {
    if (part.begin < part.end) use(part.begin, part.end);
  }
}

/// Calls use(word) for the words that steps[from..] make of a text that is not empty. `first`: the text stands at
/// the very beginning of the input.
template <class Use>
void pre_tokenize(const std::vector<PreTokenizer>& steps, std::size_t from, std::string_view text, bool first,
                  const Use& use) {
  if (text.empty()) return;
  if (from == steps.size()) return use(text);
  const auto next = [&](std::string_view word, bool word_is_first) {
    pre_tokenize(steps, from + 1, word, word_is_first, use);
  };
  if (const auto* by_pattern = std::get_if<Split>(&steps[from])) {
    return split(*by_pattern, text, [&](std::size_t begin, std::size_t end) {
      next(text.substr(begin, end - begin), first && begin == 0);
    });
  }
  if (const auto* metaspace = std::get_if<Metaspace>(&steps[from])) {
    const std::string& mark = metaspace->replacement;
    std::string marked;
    for (const char c : text) c == ' ' ? marked.append(mark) : marked.append(1, c);
    const bool prepends =
        metaspace->scheme == PrependScheme::always || (metaspace->scheme == PrependScheme::first && first);
    if (prepends && !marked.starts_with(mark)) marked.insert(0, mark);
    if (!metaspace->split) return next(marked, first);
    for (std::size_t begin = 0; begin < marked.size();) {  // a word begins at each mark
      const std::size_t end = std::min(marked.find(mark, begin + 1), marked.size());
      next(std::string_view(marked).substr(begin, end - begin), first && begin == 0);
      begin = end;
    }
    return;
  }
  const auto& [add_prefix_space, words] = std::get<ByteLevel>(steps[from]);
  std::string prefixed;
  if (add_prefix_space && text.front() != ' ') {
    prefixed.append(" ").append(text);
    text = prefixed;
  }
  if (!words) return next(text, first);
  std::size_t done = 0;
  words->for_each_match(text, [&](std::size_t begin, std::size_t end) {
    if (done < begin) next(text.substr(done, begin - done), first && done == 0);
    next(text.substr(begin, end - begin), first && begin == 0);
    done = end;
  });
  if (done < text.size()) next(text.substr(done), first && done == 0);
}

// --- added tokens -------------------------------------------------------------------------------------------------

struct AddedToken {
  std::int32_t id = -1;
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

/// Whether writing needs the byte. The others are control characters, what no UTF-8 has, and the planes from U+40000
/// on, which have no letters: the vocabulary of SmolLM2 lacks 21 of those.
[[nodiscard]] inline bool is_written(std::size_t byte) {
  return byte == '\t' || byte == '\n' || byte == '\r' || (byte >= 0x20 && byte < 0x7F) ||
         (byte >= 0x80 && byte < 0xC0) || (byte >= 0xC2 && byte <= 0xF0);
}

/// The bytes of a text that are ids, by a table of 256 where -1 is none, with their places; `end` is the input's end.
[[nodiscard]] inline Normalized kept_bytes(const Normalized& whole, const std::int32_t* ids, std::size_t end) {
  Normalized kept;
  for (std::size_t at = 0; at < whole.text.size(); ++at) {
    if (ids[static_cast<unsigned char>(whole.text[at])] < 0) continue;
    kept.text += whole.text[at];
    kept.places.push_back(whole.places[at]);
  }
  kept.places.push_back(end);
  return kept;
}

}  // namespace detail::stages
}  // namespace v0
}  // namespace qlora
