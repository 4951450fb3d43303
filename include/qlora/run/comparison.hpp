// qlora/run/comparison.hpp — the result of a comparison: what each of several models answers, and how it does on probes
// beside the model that it is measured against.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/results.hpp"
#include "qlora/ordered_map.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// A question, and the answers by the models' names.
struct Exchange {
  bool chat = false;                  ///< asked as a user turn, else as a text to continue
  std::string prompt;                 ///< the question as asked
  OrderedMap<std::string> answers{};  ///< texts, without the prompt
};

/// One of the models that are compared, measured on the probes.
struct VariantResult {
  std::string reference{};     ///< the variant that it is measured against; empty: none
  eval::Metrics metrics{};     ///< by kind of probe and text domain
  eval::Shares by_relation{};  ///< shares of right replies
  eval::Shares by_entity{};    ///< shares of right replies to what asks for new facts
};

/// What a comparison found.
struct Comparison {
  std::vector<Exchange> answers{};       ///< in the order of the questions
  OrderedMap<VariantResult> variants{};  ///< empty without probes
  std::string tuned{};                   ///< the variant that requirements and examples are about; empty: none
  eval::Examples examples{};             ///< empty: none were collected
  std::optional<std::vector<eval::RequirementResult>> requirements{};  ///< none without probes
};

/// The words that are not empty, with spaces between them.
[[nodiscard]] inline std::string spaced(std::initializer_list<std::string_view> words) {
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty() && !word.empty()) text += ' ';
    text += word;
  }
  return text;
}

/// The comparisons of several models that were asked the same questions as one: all answers to a question beside each
/// other, and each variant, group of examples and requirement under its model's name, as in "small nf4". That of a
/// single model without a name stays as it is. Both lists have one entry for each model, at least one.
[[nodiscard]] inline Comparison join_comparisons(std::span<const std::string> models,
                                                 std::span<const Comparison> comparisons) {
  QLORA_EXPECTS(!models.empty() && models.size() == comparisons.size(), models.size(), " names for ",
                comparisons.size(), " comparisons");
  if (models.front().empty()) return comparisons.front();
  Comparison all;
  for (const Exchange& exchange : comparisons.front().answers) all.answers.push_back({exchange.chat, exchange.prompt});
  std::vector<eval::RequirementResult> requirements;
  for (std::size_t m = 0; m < models.size(); ++m) {
    const std::string& model = models[m];
    const Comparison& comparison = comparisons[m];
    QLORA_EXPECTS(comparison.answers.size() == all.answers.size(), model, " has ", comparison.answers.size(),
                  " answers, not ", all.answers.size());
    for (std::size_t i = 0; i < comparison.answers.size(); ++i) {
      for (const auto& [column, answer] : comparison.answers[i].answers) {
        // A comparison calls the quantized model "base", which may be the name of a model here.
        all.answers[i].answers[spaced({model, column == "base" ? "nf4" : column})] = answer;
      }
    }
    for (const auto& [name, variant] : comparison.variants) all.variants[spaced({model, name})] = variant;
    for (const auto& [name, group] : comparison.examples) all.examples[spaced({model, name})] = group;
    if (!comparison.requirements) continue;
    for (eval::RequirementResult result : *comparison.requirements) {
      result.expression = spaced({model, result.expression});
      requirements.push_back(std::move(result));
    }
  }
  if (!requirements.empty()) all.requirements = std::move(requirements);
  return all;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
