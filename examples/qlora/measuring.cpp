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

std::vector<eval::GateResult> hold(const std::vector<std::string>& requirements, const eval::Figures& own,
                                   const Variants& variants) {
  std::vector<std::string> paths = eval::paths_of(own);
  for (const auto& [name, figures] : variants) {
    for (const std::string& path : eval::paths_of(figures)) paths.push_back(qlora::detail::concat(name, ".", path));
  }
  const auto lookup = [&](std::string_view path) {
    const std::size_t dot = path.find('.');
    const auto variant = variants.find(std::string(path.substr(0, dot)));
    if (variant == variants.end() || dot == std::string_view::npos) return eval::find_number(own, path);
    return eval::find_number(variant->second, path.substr(dot + 1));
  };
  std::vector<eval::GateResult> gates;
  for (const std::string& one : requirements) {
    gates.push_back(eval::check(eval::parse_requirement(one), lookup, paths));
  }
  return gates;
}

Result json_of(const std::vector<eval::GateResult>& gates) {
  Result all = Result::array();
  for (const eval::GateResult& gate : gates) {
    all.push_back({{"requirement", gate.expression}, {"measured", number_of(gate.measured)}, {"met", gate.met}});
  }
  return all;
}

bool any_unmet(const Result& result) {
  if (!result.is_object() || !result.contains("requirements")) return false;
  const Result& all = result.at("requirements");
  return std::any_of(all.begin(), all.end(), [](const Result& one) { return !one.value("met", true); });
}

}  // namespace qlora::program
