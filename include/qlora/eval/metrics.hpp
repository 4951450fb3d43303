// qlora/eval/metrics.hpp — results from measured items: shares and means with intervals for each kind of probe,
// beside the reference of the model.
//   name                    main number            and
//   knowledge retention ..  right: share           twin, net (right - twin), choice, margin, change, kept
//   knowledge_chat ..       the same for one form, if a kind is asked in both
//   text_DOMAIN             loss: nats per token   kl, change
// change: this model - reference on the same items. kept: share of what the reference had right that is still right.
// choice: share of items whose answer is likelier than every alternative. Intervals: statistics.hpp, by entity.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/eval/item_results.hpp"
#include "qlora/eval/requirements.hpp"
#include "qlora/eval/results.hpp"
#include "qlora/eval/statistics.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

namespace detail {

/// Some of the items: their scores as columns that keep their order.
class Selection {
 public:
  Selection(std::span<const Item> items, std::span<const int> clusters, const Bootstrap& bootstrap,
            const std::function<bool(const Item&)>& wanted)
      : clusters_(clusters), bootstrap_(bootstrap) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (wanted(items[i])) which_.push_back(i);
    }
  }
  [[nodiscard]] bool empty() const { return which_.empty(); }
  /// Those of the items for which `wanted` holds.
  [[nodiscard]] Selection only(const std::function<bool(std::size_t)>& wanted) const {
    Selection some = *this;
    std::erase_if(some.which_, [&](std::size_t i) { return !wanted(i); });
    return some;
  }
  using Score = std::function<double(std::size_t)>;
  [[nodiscard]] Interval mean_of(const Score& score) const { return mean(column(score), rows(), bootstrap_); }
  [[nodiscard]] Interval difference_of(const Score& ours, const Score& theirs) const {
    return difference(column(ours), column(theirs), rows(), bootstrap_);
  }
  [[nodiscard]] Interval ratio_of(const Score& over, const Score& under) const {
    return ratio(column(over), column(under), rows(), bootstrap_);
  }

 private:
  [[nodiscard]] std::vector<double> column(const Score& score) const {
    std::vector<double> values;
    for (const std::size_t i : which_) values.push_back(score(i));
    return values;
  }
  [[nodiscard]] std::vector<int> rows() const {
    std::vector<int> values;
    for (const std::size_t i : which_) values.push_back(clusters_[i]);
    return values;
  }

  std::span<const int> clusters_;
  Bootstrap bootstrap_;
  std::vector<std::size_t> which_;
};

[[nodiscard]] inline double one_if(bool condition) { return condition ? 1.0 : 0.0; }

[[nodiscard]] inline Metric asked_metric(std::string name, const Selection& asked, std::span<const Item> items,
                                         const ItemResults& ours, const ItemResults* reference) {
  const auto right = [&](const ItemResults& of) {
    return [&of](std::size_t i) { return one_if(of.verdicts[i].right); };
  };
  Metric metric{std::move(name), {{"right", asked.mean_of(right(ours))}}};
  if (const Selection twins = asked.only([&](std::size_t i) { return !items[i].twin.empty(); }); !twins.empty()) {
    const auto twin = [&](std::size_t i) { return one_if(ours.verdicts[i].twin); };
    metric.numbers.emplace_back("twin", twins.mean_of(twin));
    metric.numbers.emplace_back("net", twins.difference_of(right(ours), twin));
  }
  if (const Selection weighed = asked.only([&](std::size_t i) { return std::isfinite(ours.margin[i]); });
      !weighed.empty()) {
    metric.numbers.emplace_back("choice", weighed.mean_of([&](std::size_t i) { return one_if(ours.margin[i] > 0.0); }));
    metric.numbers.emplace_back("margin", weighed.mean_of([&](std::size_t i) { return ours.margin[i]; }));
  }
  if (reference == nullptr) return metric;
  metric.numbers.emplace_back("change", asked.difference_of(right(ours), right(*reference)));
  metric.numbers.emplace_back(
      "kept", asked.ratio_of([&](std::size_t i) { return right(ours)(i) * right(*reference)(i); }, right(*reference)));
  return metric;
}

[[nodiscard]] inline Metric text_metric(std::string name, const Selection& read, const ItemResults& ours,
                                        const ItemResults* reference) {
  const auto tokens = [&](std::size_t i) { return ours.tokens[i]; };
  Metric metric{std::move(name), {{"loss", read.ratio_of([&](std::size_t i) { return ours.loss[i]; }, tokens)}}};
  if (const Selection compared = read.only([&](std::size_t i) { return std::isfinite(ours.kl[i]); });
      !compared.empty()) {
    metric.numbers.emplace_back("kl", compared.ratio_of([&](std::size_t i) { return ours.kl[i]; }, tokens));
  }
  if (reference == nullptr) return metric;
  metric.numbers.emplace_back("change",
                              read.ratio_of([&](std::size_t i) { return ours.loss[i] - reference->loss[i]; }, tokens));
  return metric;
}

}  // namespace detail

/// All results of a model, in the order of the kinds; `reference` is of the same items.
[[nodiscard]] inline Metrics metrics_of(std::span<const Item> items, const ItemResults& ours,
                                        const ItemResults* reference, const Bootstrap& bootstrap = {}) {
  QLORA_EXPECTS(
      ours.verdicts.size() == items.size() && (reference == nullptr || reference->verdicts.size() == items.size()),
      "results of ", ours.verdicts.size(), " items, there are ", items.size());
  const std::vector<int> clusters = clusters_of(items);
  const auto select = [&](const std::function<bool(const Item&)>& wanted) {
    return detail::Selection(items, clusters, bootstrap, wanted);
  };
  Metrics metrics;
  for (std::size_t k = 0; k < kind_names.size(); ++k) {
    const auto kind = static_cast<Kind>(k);
    if (kind == Kind::text) continue;
    const auto of_kind = [&](const Item& item) { return item.kind == kind; };
    const detail::Selection all = select(of_kind);
    if (all.empty()) continue;
    const std::string name(name_of(kind));
    metrics.push_back(detail::asked_metric(name, all, items, ours, reference));
    const detail::Selection plain = select([&](const Item& item) { return of_kind(item) && !item.chat; });
    const detail::Selection chats = select([&](const Item& item) { return of_kind(item) && item.chat; });
    if (plain.empty() || chats.empty()) continue;
    metrics.push_back(detail::asked_metric(name + "_completion", plain, items, ours, reference));
    metrics.push_back(detail::asked_metric(name + "_chat", chats, items, ours, reference));
  }
  std::set<std::string> domains;
  for (const Item& item : items) {
    if (item.kind == Kind::text) domains.insert(item.domain);
  }
  for (const std::string& domain : domains) {
    const detail::Selection read =
        select([&](const Item& item) { return item.kind == Kind::text && item.domain == domain; });
    metrics.push_back(detail::text_metric("text_" + domain, read, ours, reference));
  }
  return metrics;
}

/// The results that a measurement of these items will have, without values, so that requirements can be checked before
/// anything is measured. `compared`: there is a reference. Made by metrics_of itself, so that the names are the same.
[[nodiscard]] inline Metrics expected_metrics(std::span<const Item> items, bool compared) {
  constexpr double nothing = std::numeric_limits<double>::quiet_NaN();
  ItemResults results;
  results.replies.resize(items.size());
  results.verdicts.resize(items.size());
  results.loss.assign(items.size(), 0.0);
  results.tokens.assign(items.size(), 1.0);
  results.kl.assign(items.size(), compared ? 0.0 : nothing);
  for (const Item& item : items) results.margin.push_back(has_alternatives(item) ? 0.0 : nothing);
  return metrics_of(items, results, compared ? &results : nullptr, {.resamples = 1});
}

/// What a path ends with.
inline constexpr std::array<std::string_view, 5> field_names{"value", "lower", "upper", "n", "clusters"};

/// The paths of all numbers, for find_number; main numbers without their name.
[[nodiscard]] inline std::vector<std::string> paths_of(const Metrics& metrics) {
  std::vector<std::string> paths;
  for (const Metric& metric : metrics) {
    for (std::size_t i = 0; i < metric.numbers.size(); ++i) {
      for (const std::string_view field : field_names) {
        const std::string number = i == 0 ? std::string() : metric.numbers[i].first + ".";
        paths.push_back(concat(metric.name, ".", number, field));
      }
    }
  }
  return paths;
}

/// A number by its path: NAME.FIELD of the main number, NAME.NUMBER.FIELD of another; FIELD is one of field_names.
[[nodiscard]] inline std::optional<double> find_number(const Metrics& metrics, std::string_view path) {
  const std::size_t first = path.find('.');
  const std::size_t last = path.rfind('.');
  if (first == std::string_view::npos) return std::nullopt;
  const std::string_view field = path.substr(last + 1);
  for (const Metric& metric : metrics) {
    if (metric.name != path.substr(0, first)) continue;
    const Interval* number =
        first == last ? &metric.numbers.front().second : metric.find(path.substr(first + 1, last - first - 1));
    if (number == nullptr) return std::nullopt;
    if (field == "value") return number->value;
    if (field == "lower") return number->lower;
    if (field == "upper") return number->upper;
    if (field == "n") return static_cast<double>(number->n);
    if (field == "clusters") return static_cast<double>(number->clusters);
  }
  return std::nullopt;
}

/// A number with its interval: NAME is the main number, NAME.NUMBER another, as "paraphrase.net"; null where there is
/// none.
[[nodiscard]] inline const Interval* find_interval(const Metrics& metrics, std::string_view path) {
  const std::string_view name = path.substr(0, path.find('.'));
  for (const Metric& metric : metrics) {
    if (metric.name != name) continue;
    return name.size() == path.size() ? &metric.numbers.front().second : metric.find(path.substr(name.size() + 1));
  }
  return nullptr;
}

/// The metrics of several models, by the names that the report gives them.
using MetricsByVariant = std::map<std::string, Metrics>;

/// Checks requirements on the metrics of one model and of those beside it. A path names a number of `own`, or begins
/// with the name of a variant and names one of its. Throws Error (usage) for a requirement that cannot be parsed and
/// for an unknown path; so the same call on expected_metrics refuses, before anything is measured, what could not be
/// answered afterwards.
[[nodiscard]] inline std::vector<RequirementResult> check_requirements(std::span<const std::string> requirements,
                                                                       const Metrics& own,
                                                                       const MetricsByVariant& variants = {}) {
  std::vector<std::string> paths = paths_of(own);
  for (const auto& [name, metrics] : variants) {
    for (const std::string& path : paths_of(metrics)) paths.push_back(concat(name, ".", path));
  }
  const auto lookup = [&](std::string_view path) {
    const std::size_t dot = path.find('.');
    const auto variant = variants.find(std::string(path.substr(0, dot)));
    if (variant == variants.end() || dot == std::string_view::npos) return find_number(own, path);
    return find_number(variant->second, path.substr(dot + 1));
  };
  std::vector<RequirementResult> results;
  for (const std::string& requirement : requirements)
    results.push_back(check(parse_requirement(requirement), lookup, paths));
  return results;
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
