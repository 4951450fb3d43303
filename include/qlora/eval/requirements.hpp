// qlora/eval/requirements.hpp — requirements on measured numbers: "retention.lower>=0.98".
// Grammar: NAME(.NAME)*.FIELD OP NUMBER, OP one of >= <= > <, white space around the parts allowed. The path names a
// number of the result, such as the bound of an interval. The caller looks it up; this header only compares.
// What may not change: a number that was not measured (NaN) meets no requirement, and an unknown path is an error, so
// that a misspelt requirement cannot pass.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/results.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// What a number is to be, against the bound: >= <= > <
enum class Comparison { at_least, at_most, above, below };

/// A requirement. `expression` is its text as written.
struct Requirement {
  std::string expression;                        ///< as written, for messages
  std::string path;                              ///< names the number: "retention.lower"
  Comparison comparison = Comparison::at_least;  ///< of the number with `bound`
  double bound = 0;                              ///< finite
};

namespace detail {

[[nodiscard]] inline std::string_view trimmed(std::string_view text) {
  constexpr std::string_view space = " \t\r\n";
  const std::size_t first = std::min(text.find_first_not_of(space), text.size());
  text.remove_prefix(first);
  return text.substr(0, text.find_last_not_of(space) + 1);
}

[[noreturn]] inline void refuse(std::string_view expression, std::string_view why) {
  throw Error(concat("requirement `", expression, "`: ", why, "; one looks like retention.lower>=0.98"),
              ErrorKind::usage);
}

inline void check_path(std::string_view path, std::string_view expression) {
  if (path.find_first_of(" \t\r\n") != std::string_view::npos) refuse(expression, "the name holds white space");
  if (path.find('.') == std::string_view::npos) refuse(expression, "the name has no field, such as .value or .lower");
  if (path.front() == '.' || path.back() == '.' || path.find("..") != std::string_view::npos) {
    refuse(expression, "a part of the name is empty");
  }
}

/// What follows in the names after the parts that they share with a path: "`retention` has lower, upper, value".
[[nodiscard]] inline std::string known_beside(std::string_view path, std::span<const std::string> names) {
  std::string_view shared;  // ends before a dot, so that parts are compared whole
  for (const std::string& name : names) {
    for (std::size_t at = name.find('.'); at != std::string::npos; at = name.find('.', at + 1)) {
      const std::string_view front = std::string_view(name).substr(0, at);
      if (front.size() > shared.size() && path.starts_with(front) && path.substr(front.size()).starts_with('.')) {
        shared = front;
      }
    }
  }
  std::vector<std::string_view> next;
  for (const std::string& name : names) {
    std::string_view rest = name;
    if (!shared.empty() && !(rest.starts_with(shared) && rest.substr(shared.size()).starts_with('.'))) continue;
    if (!shared.empty()) rest.remove_prefix(shared.size() + 1);
    next.push_back(rest.substr(0, rest.find('.')));
  }
  std::sort(next.begin(), next.end());
  next.erase(std::unique(next.begin(), next.end()), next.end());
  std::string text = shared.empty() ? "there are" : concat("`", shared, "` has");
  for (std::size_t i = 0; i < next.size(); ++i) text += concat(i == 0 ? " " : ", ", next[i]);
  return next.empty() ? "nothing was measured" : text;
}

[[nodiscard]] inline bool holds(double measured, Comparison comparison, double bound) {
  switch (comparison) {  // every comparison with NaN is false
    case Comparison::at_least:
      return measured >= bound;
    case Comparison::at_most:
      return measured <= bound;
    case Comparison::above:
      return measured > bound;
    case Comparison::below:
      return measured < bound;
  }
  return false;
}

}  // namespace detail

/// Parses a requirement, so that an invalid one fails before anything is measured. Throws Error (usage).
[[nodiscard]] inline Requirement parse_requirement(std::string_view expression) {
  const std::size_t at = expression.find_first_of("<>=!");
  if (at == std::string_view::npos) detail::refuse(expression, "no comparison");
  const std::size_t end = std::min(expression.find_first_not_of("<>=!", at), expression.size());
  Requirement result;
  result.expression = expression;
  const std::string_view comparison = expression.substr(at, end - at);
  if (comparison == ">=") {
    result.comparison = Comparison::at_least;
  } else if (comparison == "<=") {
    result.comparison = Comparison::at_most;
  } else if (comparison == ">") {
    result.comparison = Comparison::above;
  } else if (comparison == "<") {
    result.comparison = Comparison::below;
  } else {
    detail::refuse(expression, concat("`", comparison, "` is not one of >= <= > <"));
  }
  result.path = detail::trimmed(expression.substr(0, at));
  detail::check_path(result.path, expression);
  const std::string_view number = detail::trimmed(expression.substr(end));
  const char* const last = number.data() + number.size();
  const auto [stop, problem] = std::from_chars(number.data(), last, result.bound);
  if (problem != std::errc{} || stop != last || !std::isfinite(result.bound)) {
    detail::refuse(expression, concat("`", number, "` is not a number"));
  }
  return result;
}

/// Whether the number of a path is a share or a difference of shares: all are except counts, nats and text scores.
[[nodiscard]] inline bool is_share(std::string_view path) {
  for (const char* nats : {"text_", ".margin.", ".kl."}) {
    if (path.find(nats) != std::string_view::npos) return false;
  }
  const std::string_view field = path.substr(path.rfind('.') + 1);
  return field == "value" || field == "lower" || field == "upper";
}

/// Checks a requirement. Throws Error (usage) if it asks for a share above 1 or names an unknown path. `lookup(path)`
/// is an std::optional<double>, empty for an unknown path; `names` are the known paths, for the message.
template <class Lookup>
[[nodiscard]] RequirementResult check(const Requirement& requirement, const Lookup& lookup,
                                      std::span<const std::string> names) {
  const std::optional<double> measured = lookup(std::string_view(requirement.path));
  if (!measured) {
    throw Error(concat("requirement `", requirement.expression, "`: no number is named `", requirement.path, "`; ",
                       detail::known_beside(requirement.path, names)),
                ErrorKind::usage);
  }
  if (std::abs(requirement.bound) > 1 && is_share(requirement.path)) {
    detail::refuse(requirement.expression, "shares run from 0 to 1");
  }
  return {requirement.expression, *measured, detail::holds(*measured, requirement.comparison, requirement.bound)};
}

/// Whether a requirement is not met.
[[nodiscard]] inline bool any_unmet(std::span<const RequirementResult> results) {
  return std::any_of(results.begin(), results.end(),
                     [](const RequirementResult& requirement) { return !requirement.met; });
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
