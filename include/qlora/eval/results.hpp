// qlora/eval/results.hpp — what an evaluation finds, as plain structs: metrics with intervals, shares, examples and
// requirements. The headers that compute them include this one; what only shows or writes them needs no more.
#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/ordered_map.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// What an item is for; docs/probes.md says what each kind asks and how it is judged.
enum class Kind {
  knowledge,   ///< a new fact, in wording that the pages may use
  paraphrase,  ///< a new fact, in wording that no training text has
  reversed,    ///< the entity of a new fact, given the value
  neighbour,   ///< an old fact about an entity that resembles a new one
  retention,   ///< an old fact
  unknown,     ///< an entity that was never mentioned
  behaviour,   ///< how a chat model behaves
  text         ///< a text that is read for its loss
};

/// The key "kind" of each Kind, in the order of its values.
inline constexpr std::array<std::string_view, 8> kind_names{"knowledge", "paraphrase", "reversed",  "neighbour",
                                                            "retention", "unknown",    "behaviour", "text"};

/// The key "kind" of a line of this kind.
[[nodiscard]] constexpr std::string_view name_of(Kind kind) { return kind_names[static_cast<std::size_t>(kind)]; }

/// Whether items of this kind ask for a value: a reply is right if it begins with `answer`.
[[nodiscard]] constexpr bool asks_value(Kind kind) { return kind <= Kind::retention; }

/// Whether items of this kind ask for a fact that training is to teach.
[[nodiscard]] constexpr bool asks_new_fact(Kind kind) {
  return kind == Kind::knowledge || kind == Kind::paraphrase || kind == Kind::reversed;
}

/// A statistic of n items in `clusters` clusters. Without items value is 0 and the bounds are NaN. With one cluster
/// every resample is the sample: lower = value = upper, which means that the spread is unknown, not that it is zero.
struct Interval {
  double value = 0;                                         ///< of the sample itself
  double lower = std::numeric_limits<double>::quiet_NaN();  ///< end of the interval; NaN: none
  double upper = std::numeric_limits<double>::quiet_NaN();  ///< end of the interval; NaN: none
  int n = 0;                                                ///< items
  int clusters = 0;                                         ///< clusters among them
};

/// The numbers of one name; the first is the main one, whose name may be omitted in a path.
struct Metric {
  std::string name;                                       ///< as in the table above: "retention", "text_world"
  std::vector<std::pair<std::string, Interval>> numbers;  ///< main number first

  /// The interval of a number, such as "twin"; null where it was not measured. Valid as long as this Metric is
  /// unchanged.
  [[nodiscard]] const Interval* find(std::string_view number) const {
    for (const auto& [name_of_number, interval] : numbers) {
      if (name_of_number == number) return &interval;
    }
    return nullptr;
  }
};
/// Of one model, in the order of the kinds.
using Metrics = std::vector<Metric>;

/// The right replies among `n` items.
struct Share {
  int n = 0;         ///< items
  double value = 0;  ///< right replies / n, 0 to 1
  friend bool operator==(const Share&, const Share&) = default;
};

/// By the name of the kind, then by relation or entity.
using Shares = OrderedMap<OrderedMap<Share>>;

/// One item with the replies of both models.
struct Example {
  Kind kind = Kind::knowledge;  ///< of the question
  bool chat = false;            ///< asked as a user turn, else as a text to continue
  std::string prompt;           ///< the question as asked
  /// the answer, or a phrase that the reply may contain; "a reply that ends" where only that is judged
  std::string expected;
  std::string before;  ///< reply of the first model
  std::string after;   ///< reply of the second model
  friend bool operator==(const Example&, const Example&) = default;
};

/// Items whose reply changed in one way, and some of them.
struct ExampleGroup {
  std::size_t count = 0;      ///< of all of them
  std::vector<Example> some;  ///< at most examples_shown, evenly spaced over all
  friend bool operator==(const ExampleGroup&, const ExampleGroup&) = default;
};

/// By name: "learned", "lost" and "invented".
using Examples = OrderedMap<ExampleGroup>;

/// A requirement and what was measured.
struct RequirementResult {
  std::string expression;  ///< of the requirement
  double measured = 0;     ///< NaN if it could not be measured
  bool met = false;        ///< false if `measured` is NaN
};

}  // namespace eval
}  // namespace v0
}  // namespace qlora
