// measuring.hpp — figures and what stands behind them as JSON: one form for comparisons, training records and reports.
#pragma once

#include <filesystem>
#include <map>
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

/// The figures of several models, by the names that the report gives them.
using Variants = std::map<std::string, eval::Figures>;

/// Whether what was asked for holds. A path names a number of `own`, or begins with a variant's name and names one of its.
/// Throws Error (usage) for a requirement that cannot be read and for a path that is not there; so the same call on
/// eval::expected_figures refuses before anything is measured what could not be answered afterwards.
[[nodiscard]] std::vector<eval::GateResult> hold(const std::vector<std::string>& requirements, const eval::Figures& own,
                                                 const Variants& variants = {});
/// [{"requirement", "measured", "met"}].
[[nodiscard]] Result json_of(const std::vector<eval::GateResult>& gates);
/// Whether a result holds a requirement that is not met.
[[nodiscard]] bool any_unmet(const Result& result);

}  // namespace qlora::program
