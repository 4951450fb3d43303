// measuring.hpp — figures and what stands behind them as JSON: one form for comparisons, training records and reports.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "qlora/eval/figures.hpp"
#include "qlora/eval/gates.hpp"
#include "verb.hpp"

namespace qlora::program {

/// The items of all files, one after the other.
[[nodiscard]] std::vector<eval::Item> read_items(const std::vector<std::filesystem::path>& files);

/// {"n", "clusters", "value", "lower", "upper"}; what is not known is null.
[[nodiscard]] Result json_of(const eval::Interval& interval);
/// By name: the main number's fields, then the other numbers under theirs.
[[nodiscard]] Result json_of(const eval::Figures& figures);
/// Shares of right replies by relation, and those of new facts by entity: {"knowledge": {"maker": {...}}}.
[[nodiscard]] Result shares_by(std::span<const eval::Item> items, const eval::Readings& readings, bool by_entity);

/// Replies that changed between two models, some of each: "learned" (new facts that are right now), "lost" (what was
/// right and is not), "invented" (things nobody was told, and now an answer where there was a refusal).
[[nodiscard]] Result examples_of(std::span<const eval::Item> items, const eval::Readings& before,
                                 const eval::Readings& after);

/// A number of figures in the form of json_of, by its path.
[[nodiscard]] std::optional<double> find_number(const Result& figures, std::string_view path);
/// What was asked for, and whether it holds: [{"requirement", "measured", "met"}]. Throws Error (usage) for a path that is
/// not there. A path may begin with a variant's name; else it is `variant` that is meant.
[[nodiscard]] Result check_requirements(const std::vector<std::string>& requirements, const Result& variants,
                                        const std::string& variant);
/// The paths of all numbers of figures in the form of json_of.
[[nodiscard]] std::vector<std::string> paths_of(const Result& figures);
/// Whether a result holds a requirement that is not met.
[[nodiscard]] bool any_unmet(const Result& result);

}  // namespace qlora::program
