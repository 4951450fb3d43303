// measuring.cpp — figures as JSON, requirements held against them, and the replies that show what changed.
#include "measuring.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "qlora/error.hpp"

namespace qlora::program {

namespace {

/// Examples of a kind that a report shows.
constexpr std::size_t shown_examples = 8;

Result number_of(double value) { return std::isfinite(value) ? Result(value) : Result(nullptr); }

/// So many of the list, evenly spaced, so that not all are about one thing.
std::vector<std::size_t> some_of(const std::vector<std::size_t>& all) {
  std::vector<std::size_t> some;
  const std::size_t count = std::min(all.size(), shown_examples);
  for (std::size_t i = 0; i < count; ++i) some.push_back(all[i * all.size() / count]);
  return some;
}

bool about_new_facts(eval::Kind kind) {
  return kind == eval::Kind::knowledge || kind == eval::Kind::paraphrase || kind == eval::Kind::reversed;
}

/// The paths of all numbers below `object`: "retention.kept.lower".
void add_paths(const Result& object, const std::string& prefix, std::vector<std::string>& paths) {
  for (const auto& [name, value] : object.items()) {
    if (value.is_object()) add_paths(value, prefix + name + ".", paths);
    if (value.is_number() || value.is_null()) paths.push_back(prefix + name);
  }
}

}  // namespace

std::vector<eval::Item> read_items(const std::vector<std::filesystem::path>& files) {
  std::vector<eval::Item> items;
  for (const std::filesystem::path& file : files) {
    for (eval::Item& one : eval::read_items(file)) items.push_back(std::move(one));
  }
  return items;
}

Result json_of(const eval::Interval& interval) {
  return {{"n", interval.n},
          {"clusters", interval.clusters},
          {"value", number_of(interval.value)},
          {"lower", number_of(interval.lower)},
          {"upper", number_of(interval.upper)}};
}

Result json_of(const eval::Figures& figures) {
  Result all = Result::object();
  for (const eval::Figure& figure : figures) {
    Result one = json_of(figure.numbers.front().second);
    for (std::size_t i = 1; i < figure.numbers.size(); ++i) {
      one[figure.numbers[i].first] = json_of(figure.numbers[i].second);
    }
    all[figure.name] = one;
  }
  return all;
}

Result shares_by(std::span<const eval::Item> items, const eval::Readings& readings, bool by_entity) {
  struct Share {
    int right = 0;
    int all = 0;
  };
  std::map<std::string, std::map<std::string, Share>> shares;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const eval::Item& item = items[i];
    const std::string& group = by_entity ? item.entity : item.relation;
    if (!eval::asks_value(item.kind) || group.empty() || (by_entity && !about_new_facts(item.kind))) continue;
    Share& share = shares[std::string(eval::name_of(item.kind))][group];
    ++share.all;
    share.right += readings.verdicts[i].right ? 1 : 0;
  }
  Result all = Result::object();
  for (const auto& [kind, groups] : shares) {
    for (const auto& [group, share] : groups) {
      all[kind][group] = {{"n", share.all}, {"value", static_cast<double>(share.right) / share.all}};
    }
  }
  return all;
}

Result examples_of(std::span<const eval::Item> items, const eval::Readings& before, const eval::Readings& after) {
  std::array<std::vector<std::size_t>, 3> groups;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const eval::Item& item = items[i];
    if (item.kind == eval::Kind::text || before.verdicts[i].right == after.verdicts[i].right) continue;
    if (about_new_facts(item.kind)) {
      if (after.verdicts[i].right) groups[0].push_back(i);
    } else if (before.verdicts[i].right) {
      groups[item.kind == eval::Kind::unknown ? 2 : 1].push_back(i);
    }
  }
  constexpr std::array<const char*, 3> names{"learned", "lost", "invented"};
  Result all = Result::object();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    Result list = Result::array();
    for (const std::size_t i : some_of(groups[g])) {
      const eval::Item& item = items[i];
      std::string expected = item.answer;
      if (expected.empty()) expected = item.accept.empty() ? "a reply that ends" : item.accept.front();
      list.push_back({{"kind", eval::name_of(item.kind)},
                      {"form", item.chat ? "chat" : "completion"},
                      {"prompt", item.prompt},
                      {"expected", expected},
                      {"before", before.replies[i].text},
                      {"after", after.replies[i].text}});
    }
    all[names[g]] = {{"count", groups[g].size()}, {"some", list}};
  }
  return all;
}

std::optional<double> find_number(const Result& figures, std::string_view path) {
  const Result* at = &figures;
  while (true) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    const std::string part(path.substr(0, dot));
    if (!at->is_object() || !at->contains(part)) return std::nullopt;
    at = &at->at(part);
    if (dot == path.size()) break;
    path.remove_prefix(dot + 1);
  }
  if (at->is_null()) return std::nan("");
  return at->is_number() ? std::optional(at->get<double>()) : std::nullopt;
}

Result check_requirements(const std::vector<std::string>& requirements, const Result& variants,
                          const std::string& variant) {
  Result all = Result::array();
  if (requirements.empty()) return all;
  const auto figures_of = [&](const std::string& name) -> const Result& { return variants.at(name).at("figures"); };
  const std::vector<std::string> paths =
      variants.contains(variant) ? paths_of(figures_of(variant)) : std::vector<std::string>();
  const auto lookup = [&](std::string_view path) -> std::optional<double> {
    const std::string front(path.substr(0, path.find('.')));
    if (variants.contains(front)) return find_number(figures_of(front), path.substr(front.size() + 1));
    return variants.contains(variant) ? find_number(figures_of(variant), path) : std::nullopt;
  };
  for (const std::string& expression : requirements) {
    const eval::GateResult gate = eval::check(eval::parse_requirement(expression), lookup, paths);
    all.push_back({{"requirement", gate.expression}, {"measured", number_of(gate.measured)}, {"met", gate.met}});
  }
  return all;
}

std::vector<std::string> paths_of(const Result& figures) {
  std::vector<std::string> paths;
  add_paths(figures, "", paths);
  return paths;
}

bool any_unmet(const Result& result) {
  if (!result.is_object() || !result.contains("requirements")) return false;
  const Result& all = result.at("requirements");
  return std::any_of(all.begin(), all.end(), [](const Result& one) { return !one.value("met", true); });
}

}  // namespace qlora::program
