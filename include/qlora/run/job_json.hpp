// qlora/run/job_json.hpp — a job as JSON, and its result as JSON and back: report.json. Part of run/json.hpp, apart
// because it is long.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "qlora/eval/report.hpp"
#include "qlora/io/json.hpp"
#include "qlora/net/shown.hpp"
#include "qlora/ordered_map.hpp"
#include "qlora/run/job.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/run/study.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

namespace detail {

[[nodiscard]] inline Value value_from_json(const OrderedJson& json) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_integer()) return json.get<std::int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) return texts_of(json, "setting");
  throw Error("the JSON of a setting is no value of an option: " + qlora::detail::excerpt(json.dump()));
}

/// The setting of an arm is one text in report.json: that of a JSON object.
[[nodiscard]] inline std::string setting_json(const StudyArm& arm) {
  OrderedJson all = to_json(arm.setting);
  if (arm.pages != Pages{}) {
    OrderedJson files = OrderedJson::array();
    for (const std::filesystem::path& file : arm.pages.files) files.push_back(file.string());
    OrderedJson urls = OrderedJson::array();
    for (const std::string& url : arm.pages.urls) urls.push_back(net::shown_address(url));
    all["pages"] = OrderedJson::array({urls, files});
  }
  return all.dump();
}
inline void read_setting(const std::string& text, StudyArm& arm) {
  const OrderedJson json = OrderedJson::parse(text, nullptr, false);
  if (!json.is_object()) throw Error("the setting of an arm is no JSON object: " + qlora::detail::excerpt(text));
  for (const auto& [name, value] : json.items()) {
    if (name != "pages") {
      arm.setting.emplace_back(name, value_from_json(value));
      continue;
    }
    if (!value.is_array() || value.size() != 2) throw Error("the pages of an arm are not urls and files");
    arm.pages.urls = texts_of(value.at(0), "pages");
    for (std::string& file : texts_of(value.at(1), "pages")) arm.pages.files.emplace_back(std::move(file));
  }
}

[[nodiscard]] inline std::vector<std::string> arms_at(const OrderedJson& json) {
  return texts_of(required(json, "arms"), "arms");
}

}  // namespace detail

// --- run::StudyArm: {"group", "setting", "seed"}, and "sweep", "control", "front" where they say something -----------

/// {"group", "setting", "seed"}, and "sweep", "control" and "front" where they say something.
[[nodiscard]] inline OrderedJson to_json(const StudyArm& arm) {
  OrderedJson json{{"group", arm.group}, {"setting", detail::setting_json(arm)}, {"seed", arm.seed}};
  if (!arm.sweep.empty()) json["sweep"] = arm.sweep;
  if (!arm.control.empty()) json["control"] = arm.control;
  if (!arm.pareto_front) json["front"] = false;
  return json;
}
/// The arm that to_json wrote. Throws Error where "group", "setting" or "seed" is missing.
[[nodiscard]] inline StudyArm study_arm_from_json(const OrderedJson& json) {
  StudyArm arm;
  arm.group = detail::required_text(json, "group");
  detail::read_setting(detail::required_text(json, "setting"), arm);
  arm.seed = detail::whole_of(detail::required(json, "seed"), "seed");
  if (const OrderedJson* sweep = detail::section(json, "sweep")) {
    for (const auto& [name, at] : detail::object_of(*sweep, "sweep").items()) {
      arm.sweep[name] = detail::number_of(at, name);
    }
  }
  if (detail::section(json, "control") != nullptr) arm.control = detail::required_text(json, "control");
  if (const OrderedJson* front = detail::section(json, "front")) arm.pareto_front = detail::flag_of(*front, "front");
  return arm;
}

// --- run::PooledMetrics: {PATH: {"n", "seeds", "value", "lower", "upper", "least", "most", "values"}} ----------------

/// {"n", "seeds", "value", "lower", "upper", "least", "most", "values"}; a bound that is NaN is null.
[[nodiscard]] inline OrderedJson to_json(const eval::PooledSeeds& pooled) {
  return {{"n", pooled.n},
          {"seeds", pooled.over.seeds},
          {"value", pooled.over.mean},
          {"lower", detail::number_json(pooled.lower)},
          {"upper", detail::number_json(pooled.upper)},
          {"least", pooled.over.least},
          {"most", pooled.over.most},
          {"values", pooled.values}};
}
/// An object with the pooled metrics by path.
[[nodiscard]] inline OrderedJson to_json(const PooledMetrics& metrics) {
  OrderedJson all = OrderedJson::object();
  for (const auto& [path, pooled] : metrics) all[path] = to_json(pooled);
  return all;
}
/// The metrics that to_json wrote. Throws Error where "values" is missing.
[[nodiscard]] inline PooledMetrics pooled_metrics_from_json(const OrderedJson& json) {
  PooledMetrics metrics;
  for (const auto& [path, stored] : detail::object_of(json, "figures").items()) {
    eval::PooledSeeds& pooled = metrics[path];
    pooled.n = detail::count_at(stored, "n");
    pooled.over.seeds = detail::count_at(stored, "seeds");
    pooled.over.mean = detail::number_at(stored, "value");
    pooled.over.least = detail::number_at(stored, "least");
    pooled.over.most = detail::number_at(stored, "most");
    pooled.lower = detail::number_at(stored, "lower");
    pooled.upper = detail::number_at(stored, "upper");
    for (const OrderedJson& value : detail::required_array(stored, "values")) {
      pooled.values.push_back(detail::number_of(value, "values"));
    }
  }
  return metrics;
}

// --- run::SettingResult, run::SweepResult, run::ControlResult --------------------------------------------------------

/// {"name", "arms", "figures"}
[[nodiscard]] inline OrderedJson to_json(const SettingResult& setting) {
  return {{"name", setting.name}, {"arms", setting.arms}, {"figures", to_json(setting.metrics)}};
}
/// {"at", "arms", "figures"}
[[nodiscard]] inline OrderedJson to_json(const SweepPoint& point) {
  return {{"at", point.at}, {"arms", point.arms}, {"figures", to_json(point.metrics)}};
}
/// {"sweep", "group", "points"}
[[nodiscard]] inline OrderedJson to_json(const SweepResult& sweep) {
  return {{"sweep", sweep.sweep},
          {"group", sweep.group},
          {"points", detail::array_json(sweep.points, [](const SweepPoint& point) { return to_json(point); })}};
}
/// {"control", "group", "arms", "figures"}
[[nodiscard]] inline OrderedJson to_json(const ControlResult& control) {
  return {{"control", control.control},
          {"group", control.group},
          {"arms", control.arms},
          {"figures", to_json(control.metrics)}};
}
/// The result that to_json wrote. Throws Error where a key is missing.
[[nodiscard]] inline SettingResult setting_result_from_json(const OrderedJson& json) {
  return {detail::required_text(json, "name"), detail::arms_at(json),
          pooled_metrics_from_json(detail::required(json, "figures"))};
}
/// The result that to_json wrote. Throws Error where a key is missing.
[[nodiscard]] inline SweepResult sweep_result_from_json(const OrderedJson& json) {
  SweepResult sweep{detail::required_text(json, "sweep"), detail::required_text(json, "group"), {}};
  for (const OrderedJson& point : detail::required_array(json, "points")) {
    sweep.points.push_back({detail::number_at(point, "at"), detail::arms_at(point),
                            pooled_metrics_from_json(detail::required(point, "figures"))});
  }
  return sweep;
}
/// The result that to_json wrote. Throws Error where a key is missing.
[[nodiscard]] inline ControlResult control_result_from_json(const OrderedJson& json) {
  return {detail::required_text(json, "control"), detail::required_text(json, "group"), detail::arms_at(json),
          pooled_metrics_from_json(detail::required(json, "figures"))};
}

// --- run::JobResult: the sections of report.json ---------------------------------------------------------------------

/// The whole of report.json but its details.
[[nodiscard]] inline OrderedJson to_json(const JobResult& result) {
  const Study& study = result.study;
  OrderedJson seconds = OrderedJson::object();
  for (const auto& [step, spent] : result.seconds) seconds[step] = spent;
  OrderedJson json{{"answers", detail::answers_json(result.comparison)},
                   {"variants", detail::variants_json(result.comparison)},
                   {"seconds", seconds}};
  detail::add_judgement(result.comparison, json);
  json["arms"] = OrderedJson::object();
  for (const auto& [name, arm] : study.arms) json["arms"][name] = to_json(arm);
  const auto add = [&](const char* section, const auto& results) {
    if (!results.empty()) json[section] = detail::array_json(results, [](const auto& held) { return to_json(held); });
  };
  add("settings", study.settings);
  add("sweeps", study.sweeps);
  add("controls", study.controls);
  return json;
}
/// The result that to_json wrote. Throws Error where a key that every report has is missing.
[[nodiscard]] inline JobResult job_result_from_json(const OrderedJson& json) {
  JobResult result;
  result.comparison = comparison_from_json(json);
  for (const auto& [step, spent] : detail::required_object(json, "seconds").items()) {
    result.seconds[step] = detail::number_of(spent, step);
  }
  for (const auto& [name, arm] : detail::required_object(json, "arms").items()) {
    result.study.arms[name] = study_arm_from_json(arm);
  }
  const auto read = [&](const char* section, auto& into, const auto& from_json) {
    const OrderedJson* list = detail::section(json, section);
    if (list == nullptr) return;
    for (const OrderedJson& entry : detail::array_of(*list, section)) into.push_back(from_json(entry));
  };
  read("settings", result.study.settings, setting_result_from_json);
  read("sweeps", result.study.sweeps, sweep_result_from_json);
  read("controls", result.study.controls, control_result_from_json);
  return result;
}

// --- run::Job: its sections as a job file has them, defaults included ------------------------------------------------

/// What the arm trains by, with its pages where they are not `pages_of_job`.
[[nodiscard]] inline OrderedJson to_json(const Arm& arm, const Pages& pages_of_job) {
  Settings settings;
  add_settings(settings, arm.train.options, Which::all, !arm.trains_all());
  add_settings(settings, arm.train.replay, Which::all);
  add_settings(settings, arm.train.loop, Which::all);
  OrderedJson json = to_json(settings);
  if (!arm.sweep.empty()) json["sweep"] = arm.sweep;
  if (!arm.labels.control.empty()) json["control"] = arm.labels.control;
  if (!arm.labels.pareto_front) json["pareto_front"] = false;
  if (arm.pages != pages_of_job) json.update(to_json(settings_of(arm.pages, Which::all)));
  return json;
}
/// A section for each group of options, defaults included; "model" and "arms" by name.
[[nodiscard]] inline OrderedJson to_json(const Job& job) {
  OrderedJson json = OrderedJson::object();
  for (const JobModel& model : job.models) {
    json["model"][model.name.empty() ? "path" : model.name] = model.source.path.string();
  }
  const auto section = [](const auto&... tables) {
    Settings settings;
    (add_settings(settings, tables, Which::all), ...);
    return to_json(settings);
  };
  json["device"] = section(job.device);
  json["data"] = section(job.pages, job.fetching);
  json["pack"] = section(job.packing);
  json["arms"] = OrderedJson::object();
  for (const Arm& arm : job.arms) json["arms"][arm.name] = to_json(arm, job.pages);
  json["merge"] = section(job.merge, job.merging);
  json["compare"] = section(job.sampling, job.comparison);
  json["output"] = section(job.output);
  return json;
}

// --- details of a report ---------------------------------------------------------------------------------------------

namespace detail {
inline void add_rows(const OrderedJson& object, const std::string& prefix, eval::Table& table) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      add_rows(value, prefix + key + ".", table);
    } else {
      table.rows.push_back(
          {prefix + key, value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, replace_invalid)});
    }
  }
}
}  // namespace detail

/// One table for each object in an object: rows of name and value, values of inner objects as "a.b".
[[nodiscard]] inline std::vector<eval::Table> tables_of(const OrderedJson& details) {
  std::vector<eval::Table> tables;
  for (const auto& [name, object] : details.items()) {
    eval::Table& table = tables.emplace_back(eval::Table{name, {"name", "value"}, {}});
    if (object.is_object()) detail::add_rows(object, "", table);
  }
  return tables;
}

/// The details of a job's report: its settings, the seconds of each step, the pages by the arm whose they are, and the
/// SHA-256 of each file by its step and name.
[[nodiscard]] inline std::vector<eval::Table> job_tables(const Job& job, const OrderedMap<double>& seconds,
                                                         const OrderedMap<FetchResult>& pages,
                                                         const OrderedMap<std::string>& hashes) {
  OrderedJson details = to_json(job);
  for (const auto& [step, spent] : seconds) details["seconds"][step] = spent;
  for (const auto& [arm, fetched] : pages) details[spaced({"pages", arm})] = to_json(fetched);
  details["SHA-256"] = OrderedJson::object();
  for (const auto& [file, hash] : hashes) details["SHA-256"][file] = hash;
  return tables_of(details);
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
