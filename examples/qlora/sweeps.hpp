// sweeps.hpp — arms of a job beside each other: what each learned and kept, how scores depend on what was varied, and what
// the controls show. All is worked out from what report.json holds anyway: the arms, and the figures of the variants.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qlora/eval/pareto_front.hpp"
#include "qlora/eval/report.hpp"
#include "verb.hpp"

namespace qlora::program {

/// A number with its interval by its path in figures, as "retention" or "paraphrase.net"; null where it was not measured.
[[nodiscard]] const Result* number_at(const Result& figures, std::string_view path);

/// The arms as trials, without the controls. Learned: right about new facts asked in new words, less what fits a twin world
/// where probes tell of one. Kept: old facts that are right.
[[nodiscard]] std::vector<eval::Trial> trials_of(const Result& arms, const Result& variants);

/// [{"name", "arms": [...], "figures": {...}}]: the models that are no arms, and the arms of the front, those that differ in
/// the seed alone as one row. Its name is the group with what sets it apart there: "QLoRA, lr 0.002". In the order of the
/// variants. Of each kind of probe the net number where there is one.
[[nodiscard]] Result pooled_of(const Result& arms, const Result& variants);
/// [{"sweep", "group", "points": [{"at", "arms": [...], "figures": {PATH: {"n", "seeds", "value", "lower", "upper", "least",
/// "most", "values"}}}]}], by rising `at`. Arms of one sweep, group and value are one point: they differ in the seed.
[[nodiscard]] Result sweeps_of(const Result& arms, const Result& variants);
/// [{"control", "group", "arms": [...], "figures": {...}}]
[[nodiscard]] Result controls_of(const Result& arms, const Result& variants);

[[nodiscard]] std::vector<eval::Sweep> charts_of(const Result& sweeps);
[[nodiscard]] eval::Table table_of_controls(const Result& controls);
[[nodiscard]] eval::Table table_of_settings(const Result& settings);

}  // namespace qlora::program
