// qlora/run/report_summary.hpp — what a comparison found, said first: sentences with their intervals, one chart of what
// was learned and kept, and three answers of the run. Tables of numbers come behind it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/bars.hpp"
#include "qlora/eval/metrics.hpp"
#include "qlora/eval/report.hpp"
#include "qlora/ordered_map.hpp"
#include "qlora/run/comparison.hpp"
#include "qlora/run/study_report.hpp"
#include "qlora/run/units.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// What a job took.
struct JobCosts {
  OrderedMap<double> seconds{};     ///< of each step, by "train ARM" and so on, and their "total"; empty: not known
  std::int64_t training_bytes = 0;  ///< of memory, the most that a training took; 0: not known
};

namespace detail {

/// A metric in words: "paraphrase_chat" -> "New facts, new wording, chat". The key itself where it is none of ours.
[[nodiscard]] inline std::string words_of(const std::string& metric) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 8> words{
      {{"knowledge", "New facts, known wording"},
       {"paraphrase", "New facts, new wording"},
       {"reversed", "New facts, asked backwards"},
       {"neighbour", "Old facts about similar names"},
       {"retention", "Old facts"},
       {"unknown", "Names that nothing is known of"},
       {"behaviour", "Behaviour in a chat"},
       {"text", "Texts"}}};
  const std::size_t end = std::min(metric.find('_'), metric.size());
  for (const auto& [key, text] : words) {
    if (metric.substr(0, end) != key) continue;
    const std::string form = end < metric.size() ? ", " + metric.substr(end + 1) : "";
    return std::string(text) + form;
  }
  return metric;
}

/// A table whose rows are metrics, with their words before their keys.
[[nodiscard]] inline eval::Table in_words(eval::Table table) {
  for (auto& row : table.rows) {
    if (!row.empty() && words_of(row[0]) != row[0]) row[0] = words_of(row[0]) + " (" + row[0] + ")";
  }
  return table;
}

/// "35.7 % [32.5 to 38.8]".
[[nodiscard]] inline std::string percent_of(const eval::Interval& number) {
  std::string text = eval::percent_text(number.value) + " %";
  if (!std::isfinite(number.lower) || !std::isfinite(number.upper)) return text;
  return text + " [" + eval::percent_text(number.lower) + " to " + eval::percent_text(number.upper) + "]";
}

/// The metrics of a kind that a variant has: "retention", or where that is missing "retention_chat" and
/// "retention_completion".
[[nodiscard]] inline std::vector<std::string> of_kind(const VariantResult& variant, std::string_view kind) {
  std::vector<std::string> names;
  for (const eval::Metric& metric : variant.metrics) {
    if (metric.name == kind) return {metric.name};
    if (metric.name.starts_with(std::string(kind) + "_")) names.push_back(metric.name);
  }
  return names;
}

/// New facts are counted net of the twin world where there is one: a guess that is right by chance is none.
[[nodiscard]] inline const eval::Interval* score_of(const VariantResult& variant, const std::string& metric) {
  const eval::Interval* net = eval::find_interval(variant.metrics, metric + ".net");
  return net != nullptr ? net : eval::find_interval(variant.metrics, metric);
}

/// "New facts, new wording: 35.7 % [32.5 to 38.8], 1.0 % before." for every metric of a kind. Nothing where one of both
/// was not measured.
[[nodiscard]] inline std::string change_text(const VariantResult& before, const VariantResult& after,
                                             std::string_view kind) {
  std::string text;
  for (const std::string& metric : of_kind(after, kind)) {
    const eval::Interval* now = score_of(after, metric);
    const eval::Interval* then = score_of(before, metric);
    if (now == nullptr || then == nullptr || now->n == 0) continue;
    text += concat(text.empty() ? "" : " ", words_of(metric), ": ", percent_of(*now), ", ",
                   eval::percent_text(then->value), " % before.");
  }
  return text;
}

/// By how many percentage points two variants of the same weights differ, in the kinds in which they do by 0.1 or more.
[[nodiscard]] inline std::string cost_text(const VariantResult& before, const VariantResult& after) {
  std::string text;
  bool measured = false;
  for (const std::string_view kind : eval::kind_names) {
    if (kind == "text") continue;
    for (const std::string& metric : of_kind(after, kind)) {
      const eval::Interval* now = eval::find_interval(after.metrics, metric);
      const eval::Interval* then = eval::find_interval(before.metrics, metric);
      if (now == nullptr || then == nullptr || now->n == 0) continue;
      measured = true;
      const std::string points = eval::percent_text(now->value - then->value);
      if (points == "0.0" || points == "-0.0") continue;
      text += concat(text.empty() ? "" : ", ", words_of(metric), " ", points.front() == '-' ? "" : "+", points);
    }
  }
  return measured && text.empty() ? "no difference" : text;
}

/// The variant that findings are about: the judged one, or else the first that was trained.
[[nodiscard]] inline std::string subject_of(const Comparison& comparison) {
  if (!comparison.tuned.empty()) return comparison.tuned;
  for (const auto& [name, variant] : comparison.variants) {
    if (name != "w16" && name != "nf4" && name != "merged") return name;
  }
  return {};
}

/// What was learned and kept, what 4 bits and merging cost, and whether the requirements hold.
[[nodiscard]] inline std::vector<eval::Finding> findings_of(const Comparison& comparison) {
  std::vector<eval::Finding> findings;
  const auto add = [&](std::string head, std::string text) {
    if (!text.empty()) findings.push_back({std::move(head), std::move(text)});
  };
  const Variants& all = comparison.variants;
  const VariantResult* base = all.find("nf4");
  const std::string subject = subject_of(comparison);
  const VariantResult* tuned = subject.empty() ? nullptr : all.find(subject);
  if (base != nullptr && tuned != nullptr) {
    std::string learned;
    for (const std::string_view kind : {"paraphrase", "knowledge"}) {
      const std::string text = change_text(*base, *tuned, kind);
      learned += (learned.empty() || text.empty() ? "" : " ") + text;
    }
    add("Learned by " + subject, learned);
    std::string kept;
    for (const std::string_view kind : {"retention", "behaviour"}) {
      const std::string text = change_text(*base, *tuned, kind);
      kept += (kept.empty() || text.empty() ? "" : " ") + text;
    }
    add("Kept by " + subject, kept);
  }
  const VariantResult* whole = all.find("w16");
  if (base != nullptr && whole != nullptr) {
    const std::string cost = cost_text(*whole, *base);
    if (!cost.empty()) add("4 bits", "In percentage points, against the base in 16 bits: " + cost + ".");
  }
  const VariantResult* merged = all.find("merged");
  // Where nothing is judged, the merged arm may be another than the subject.
  if (tuned != nullptr && merged != nullptr && !comparison.tuned.empty() && subject != "merged") {
    const std::string cost = cost_text(*tuned, *merged);
    if (!cost.empty()) add("Merging", "In percentage points, against the adapter: " + cost + ".");
  }
  if (comparison.requirements && !comparison.requirements->empty()) {
    std::string unmet;
    std::size_t met = 0;
    for (const eval::RequirementResult& requirement : *comparison.requirements) {
      met += requirement.met ? 1U : 0U;
      if (!requirement.met) unmet += (unmet.empty() ? "" : ", ") + requirement.expression;
    }
    const std::string all_hold = met == 1 ? "The only one holds." : concat("All ", met, " hold.");
    add("Requirements",
        unmet.empty() ? all_hold
                      : concat(met, " of ", comparison.requirements->size(), " hold; these do not: ", unmet, "."));
  }
  return findings;
}

/// How long the trainings and the whole job took; empty where nothing is known. A step that was skipped counts with the
/// time that it took when it ran.
[[nodiscard]] inline std::string costs_text(const JobCosts& costs) {
  double training = 0.0;
  int trainings = 0;
  for (const auto& [step, seconds] : costs.seconds) {
    if (!step.starts_with("train ")) continue;
    training += seconds;
    ++trainings;
  }
  const double* total = costs.seconds.find("total");
  if (trainings == 0 || total == nullptr) return {};
  std::string text = concat("Training: ", duration(training));
  if (trainings > 1) text += concat(" for ", trainings, " models");
  if (costs.training_bytes > 0) text += concat(", with ", gigabytes(costs.training_bytes), " of memory");
  return text + concat(". The whole job: ", duration(*total), ".");
}

/// Bars of what was learned and kept, for the variants that are not hidden; without bars where nothing was measured.
template <class Hidden>
[[nodiscard]] eval::BarChart learned_and_kept(const Variants& variants, const Hidden& hidden) {
  eval::BarChart chart{"What was learned and what was kept", {}, {}};
  std::vector<std::string> metrics;
  for (const std::string_view kind : {"paraphrase", "knowledge", "retention"}) {
    for (const auto& [name, variant] : variants) {
      for (const std::string& metric : of_kind(variant, kind)) {
        const eval::Interval* score = score_of(variant, metric);
        if (score == nullptr || score->n == 0) continue;
        if (std::find(metrics.begin(), metrics.end(), metric) == metrics.end()) metrics.push_back(metric);
      }
    }
  }
  for (const std::string& metric : metrics) chart.labels.push_back(words_of(metric));
  if (metrics.empty()) return chart;
  for (const auto& [name, variant] : variants) {
    if (hidden(name)) continue;
    eval::BarSeries series{name, {}};
    for (const std::string& metric : metrics) {
      const eval::Interval* score = score_of(variant, metric);
      series.values.push_back(score != nullptr && score->n > 0 ? *score : eval::Interval{.value = std::nan("")});
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

/// The first example of each group that has one: what was learned, kept and lost.
[[nodiscard]] inline std::vector<eval::Exchange> picks_of(const eval::Examples& examples) {
  std::vector<eval::Exchange> picks;
  for (const auto& [group, head] :
       {std::pair<const char*, const char*>{"learned", "learned"}, std::pair<const char*, const char*>{"kept", "kept"},
        std::pair<const char*, const char*>{"lost", "lost"}}) {
    const eval::ExampleGroup* found = examples.find(group);
    if (found == nullptr || found->some.empty()) continue;
    const eval::Example& example = found->some.front();
    picks.push_back({concat(head, ", one of ", found->count),
                     example.prompt,
                     {{"expected", example.expected}, {"before", example.before}, {"after", example.after}}});
  }
  return picks;
}

}  // namespace detail

}  // namespace run
}  // namespace v0
}  // namespace qlora
