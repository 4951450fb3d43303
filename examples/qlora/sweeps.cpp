// sweeps.cpp — arms to points over seeds, and points to charts and tables.
#include "sweeps.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "qlora/eval/sweep.hpp"

namespace qlora::program {
namespace {

using Paths = std::vector<std::string>;

/// What counts as new facts learned: the first of these that was measured.
const Paths learned{"paraphrase.net", "paraphrase", "knowledge.net", "knowledge"};

/// Arms that are one point: their names, and each number over their seeds.
struct Point {
  Result arms = Result::array();
  std::map<std::string, eval::PooledSeeds> numbers;

  void add(const std::string& arm, const Result& figures, const Paths& paths) {
    arms.push_back(arm);
    for (const std::string& path : paths) {
      const Result* number = number_at(figures, path);
      if (number == nullptr || !number->at("value").is_number()) continue;
      const auto bound = [&](const char* end) {
        const Result& value = number->at(end);
        return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
      };
      numbers[path].add({number->at("value").get<double>(), bound("lower"), bound("upper"), number->value("n", 0),
                         number->value("clusters", 0)});
    }
  }

  [[nodiscard]] Result figures(const Paths& paths) const {
    const auto known = [](double value) { return std::isfinite(value) ? Result(value) : Result(nullptr); };
    Result all = Result::object();
    for (const std::string& path : paths) {
      const auto found = numbers.find(path);
      if (found == numbers.end()) continue;
      const eval::PooledSeeds& one = found->second;
      all[path] = {{"n", one.n},
                   {"seeds", one.over.seeds},
                   {"value", one.over.mean},
                   {"lower", known(one.lower)},
                   {"upper", known(one.upper)},
                   {"least", one.over.least},
                   {"most", one.over.most},
                   {"values", one.values}};
    }
    return all;
  }
};

/// Of each list the first path that any of the arms has.
Paths measured(const std::vector<Paths>& wanted, const Result& arms, const Result& variants) {
  Paths paths;
  for (const Paths& alternatives : wanted) {
    const auto there = [&](const std::string& path) {
      for (const auto& [arm, about] : arms.items()) {
        if (variants.contains(arm) && number_at(variants.at(arm).at("figures"), path) != nullptr) return true;
      }
      return false;
    };
    const auto found = std::find_if(alternatives.begin(), alternatives.end(), there);
    if (found != alternatives.end() && std::find(paths.begin(), paths.end(), *found) == paths.end()) {
      paths.push_back(*found);
    }
  }
  return paths;
}

/// "knowledge_chat" as "knowledge (chat)", "paraphrase.net" as "paraphrase, net".
std::string label_of(std::string path) {
  if (const std::size_t dot = path.find('.'); dot != std::string::npos) path.replace(dot, 1, ", ");
  for (const std::string form : {"chat", "completion"}) {
    if (const std::size_t at = path.find("_" + form); at != std::string::npos) {
      path.replace(at, form.size() + 1, " (" + form + ")");
    }
  }
  return path;
}

std::string percent_of(const Result& value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", 100 * value.get<double>());
  return text.data();
}

/// "83.8 [75.0, 91.2] (82.1 to 85.0)": mean over seeds, interval, and what the seeds gave where there are several. Lines
/// break between these three only.
std::string cell_of(const Result& figures, const std::string& path) {
  if (!figures.contains(path)) return "-";
  const Result& one = figures.at(path);
  std::string text = percent_of(one.at("value"));
  if (one.at("lower").is_number() && one.at("upper").is_number()) {
    text += " [" + percent_of(one.at("lower")) + ",\u00A0" + percent_of(one.at("upper")) + "]";
  }
  if (one.at("seeds") > 1)
    text += " (" + percent_of(one.at("least")) + "\u00A0to\u00A0" + percent_of(one.at("most")) + ")";
  return text;
}

/// The paths that rows of figures have, each with the items that it was measured on.
std::vector<std::pair<std::string, int>> paths_in(const Result& rows) {
  std::vector<std::pair<std::string, int>> paths;
  for (const Result& row : rows) {
    for (const auto& [path, one] : row.at("figures").items()) {
      const auto same = [&, &p = path](const auto& known) { return known.first == p; };
      if (std::none_of(paths.begin(), paths.end(), same)) paths.emplace_back(path, one.value("n", 0));
    }
  }
  return paths;
}

/// One row for each of `rows`, headed by `head` of it.
template <class Head>
eval::Table table_of(const Result& rows, std::string caption, std::string corner, const Head& head) {
  eval::Table table{std::move(caption), {std::move(corner), "seeds"}, {}};
  const auto paths = paths_in(rows);
  for (const auto& [path, n] : paths) table.columns.push_back(label_of(path) + " (n\u00A0" + std::to_string(n) + ")");
  for (const Result& row : rows) {
    std::vector<std::string> cells{head(row), std::to_string(row.at("arms").size())};
    for (const auto& [path, n] : paths) cells.push_back(cell_of(row.at("figures"), path));
    table.rows.push_back(std::move(cells));
  }
  return table;
}

/// ", lr 0.002": what a setting says of the keys in which settings of its group differ. Settings are JSON objects as text;
/// anything else stands for itself.
std::string what_differs(const std::string& setting, const std::vector<std::string>& others) {
  if (others.size() < 2) return {};
  const Result own = Result::parse(setting, nullptr, false);
  if (!own.is_object()) return ", " + setting;
  std::string text;
  for (const auto& [key, value] : own.items()) {
    const auto differs = [&, &k = key, &v = value](const std::string& other) {
      const Result one = Result::parse(other, nullptr, false);
      return one.is_object() && one.value(k, Result()) != v;
    };
    if (std::none_of(others.begin(), others.end(), differs)) continue;
    const std::string said = value.is_string() ? value.get<std::string>() : value.dump();
    text += ", " + key + " " + (said.empty() ? "none" : said.substr(said.rfind('/') + 1));  // of a path the name
  }
  return text;
}

constexpr const char* reading = "Percent: mean over seeds [95 % interval over entities] (least to most of the seeds).";

}  // namespace

const Result* number_at(const Result& figures, std::string_view path) {
  const std::string figure(path.substr(0, path.find('.')));
  if (!figures.contains(figure)) return nullptr;
  const Result& one = figures.at(figure);
  if (figure.size() == path.size()) return &one;
  const std::string number(path.substr(figure.size() + 1));
  return one.contains(number) ? &one.at(number) : nullptr;
}

std::vector<eval::Trial> trials_of(const Result& arms, const Result& variants) {
  constexpr double nothing = std::numeric_limits<double>::quiet_NaN();
  const auto value_of = [&](const std::string& arm, const Paths& paths, const char* field = "value") {
    for (const std::string& path : paths) {
      const Result* one = number_at(variants.at(arm).at("figures"), path);
      if (one == nullptr || !one->at("value").is_number()) continue;
      return one->at(field).is_number() ? one->at(field).get<double>() : nothing;
    }
    return nothing;
  };
  std::vector<eval::Trial> trials;
  for (const auto& [arm, about] : arms.items()) {
    if (!variants.contains(arm) || about.contains("control") || !about.value("front", true)) continue;
    trials.push_back({about.value("group", ""), about.value("setting", ""), about.value("seed", std::int64_t{0}),
                      value_of(arm, learned), value_of(arm, {"retention"}), value_of(arm, {"retention"}, "lower"),
                      value_of(arm, {"retention"}, "upper")});
  }
  return trials;
}

Result pooled_of(const Result& arms, const Result& variants) {
  std::vector<Paths> wanted;  // kinds of probes; their parts ("retention_chat") and texts have an underscore
  for (const auto& [name, content] : variants.items()) {
    for (const auto& [figure, numbers] : content.at("figures").items()) {
      const Paths kind{figure + ".net", figure};
      if (figure.find('_') == std::string::npos && std::find(wanted.begin(), wanted.end(), kind) == wanted.end()) {
        wanted.push_back(kind);
      }
    }
  }
  const Paths paths = measured(wanted, variants, variants);
  struct Row {
    std::string group, setting, name;
    Point point;
  };
  std::vector<Row> rows;
  std::map<std::string, std::vector<std::string>> of_group;  // its settings
  for (const auto& [name, content] : variants.items()) {
    Row row{{}, {}, name, {}};
    if (arms.contains(name)) {
      const Result& about = arms.at(name);
      if (about.contains("control") || !about.value("front", true)) continue;
      row = {about.value("group", ""), about.value("setting", ""), {}, {}};
    }
    const auto same = [&](const Row& one) {
      return one.group == row.group && one.setting == row.setting && one.name == row.name;
    };
    auto found = std::find_if(rows.begin(), rows.end(), same);
    if (found == rows.end()) {
      found = rows.insert(rows.end(), row);
      if (row.name.empty()) of_group[row.group].push_back(row.setting);
    }
    found->point.add(name, content.at("figures"), paths);
  }
  Result all = Result::array();
  for (const Row& row : rows) {
    const std::string name =
        row.name.empty() ? row.group + what_differs(row.setting, of_group.at(row.group)) : row.name;
    all.push_back({{"name", name}, {"arms", row.point.arms}, {"figures", row.point.figures(paths)}});
  }
  return all;
}

Result sweeps_of(const Result& arms, const Result& variants) {
  const Paths paths = measured({{"knowledge_chat", "knowledge"}, learned, {"retention"}}, arms, variants);
  struct Line {
    std::string sweep;
    std::string group;
    std::map<double, Point> points;
  };
  std::vector<Line> lines;  // in the order in which the job names them
  for (const auto& [arm, about] : arms.items()) {
    if (!about.contains("sweep") || !variants.contains(arm)) continue;
    const auto group = about.value("group", "");
    for (const auto& [sweep, at] : about.at("sweep").items()) {
      const auto same = [&, &s = sweep](const Line& line) { return line.sweep == s && line.group == group; };
      auto line = std::find_if(lines.begin(), lines.end(), same);
      if (line == lines.end()) line = lines.insert(lines.end(), {sweep, group, {}});
      line->points[at.get<double>()].add(arm, variants.at(arm).at("figures"), paths);
    }
  }
  Result all = Result::array();
  for (const Line& line : lines) {
    Result points = Result::array();
    for (const auto& [at, point] : line.points) {
      points.push_back({{"at", at}, {"arms", point.arms}, {"figures", point.figures(paths)}});
    }
    all.push_back({{"sweep", line.sweep}, {"group", line.group}, {"points", points}});
  }
  return all;
}

Result controls_of(const Result& arms, const Result& variants) {
  const Paths paths =
      measured({{"knowledge.net", "knowledge"}, {"paraphrase.net", "paraphrase"}, {"retention.net", "retention"}}, arms,
               variants);
  std::vector<std::pair<std::pair<std::string, std::string>, Point>> controls;
  for (const auto& [arm, about] : arms.items()) {
    if (!about.contains("control") || !variants.contains(arm)) continue;
    const std::pair key{about.value("control", ""), about.value("group", "")};
    auto found = std::find_if(controls.begin(), controls.end(), [&](const auto& one) { return one.first == key; });
    if (found == controls.end()) found = controls.insert(controls.end(), {key, {}});
    found->second.add(arm, variants.at(arm).at("figures"), paths);
  }
  Result all = Result::array();
  for (const auto& [key, point] : controls) {
    all.push_back(
        {{"control", key.first}, {"group", key.second}, {"arms", point.arms}, {"figures", point.figures(paths)}});
  }
  return all;
}

std::vector<eval::Sweep> charts_of(const Result& sweeps) {
  std::vector<eval::Sweep> charts;
  for (const Result& sweep : sweeps) {
    const auto name = sweep.value("sweep", "");
    const Result& points = sweep.at("points");
    eval::Plot plot{name + " · " + sweep.value("group", ""), name, "%", eval::Scale::linear, {}};
    plot.y_holds = {0, 100};
    for (const Result& point : points) plot.x_ticks.push_back(point.at("at").get<double>());
    plot.x_scale = eval::sweep_scale(plot.x_ticks);
    for (const auto& [path, n] : paths_in(points)) {
      eval::Series line{label_of(path), {}, {}};
      for (const Result& point : points) {
        if (!point.at("figures").contains(path)) continue;
        const Result& one = point.at("figures").at(path);
        const auto percent = [](const Result& value) {
          return value.is_number() ? 100 * value.get<double>() : std::numeric_limits<double>::quiet_NaN();
        };
        line.x.push_back(point.at("at").get<double>());
        line.y.push_back(percent(one.at("value")));
        line.lower.push_back(percent(one.at("lower")));
        line.upper.push_back(percent(one.at("upper")));
        line.behind.emplace_back();
        for (const Result& value : one.at("values")) {
          if (one.at("seeds") > 1) line.behind.back().push_back(percent(value));
        }
      }
      plot.series.push_back(std::move(line));
    }
    const auto head = [](const Result& point) { return eval::number(point.at("at").get<double>(), 6); };
    charts.push_back({std::move(plot), table_of(points, reading, name, head)});
  }
  return charts;
}

eval::Table table_of_controls(const Result& controls) {
  const auto head = [](const Result& control) {
    return control.value("control", "") + " (" + control.value("group", "") + ")";
  };
  return table_of(controls,
                  std::string(reading) +
                      " A control is trained so that nothing can be known: where it was shown permuted values "
                      "and is asked for the true ones, a net figure above 0 would be the meter's error.",
                  "", head);
}

eval::Table table_of_settings(const Result& settings) {
  return table_of(settings, std::string(reading) + " Net: less what fits a twin world that nobody was shown.", "",
                  [](const Result& row) { return row.value("name", ""); });
}

}  // namespace qlora::program
