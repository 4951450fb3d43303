// examples/world/study.hpp — who is asked what in a study of learning and forgetting: 25 more new products, a twin
// world with the same names and permuted values, names that are never mentioned, and splits that share no product.
// Drawn from streams of their own, after the world: corpus, tokenizer text and the quickstart's files stay as they are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "world.hpp"

namespace world {

inline constexpr std::size_t further_count = 25;
inline constexpr std::size_t guard_strangers = 6, report_strangers = 18;
/// Known products by their place in World::known: the report's first, then the guard's, then those that are replayed.
inline constexpr std::size_t report_known = 255, guard_known = 25, replay_known = 80;
static_assert(report_known + guard_known + replay_known == known_count);

/// One split. The guard's results may steer a run (settings, when to stop); the report's are looked at once, at the
/// end.
struct Group {
  std::string name;
  std::vector<Product> known, fresh;
  std::vector<Product> twin;            ///< fresh as the twin world has them, in the same order
  std::vector<std::string> strangers;   ///< ordinary names of products that no text mentions
  std::vector<std::size_t> wordings;    ///< which of the new wordings are this split's
  std::size_t unknown_codes, refusals;  ///< questions an attribute about model codes
  std::size_t second_turns;             ///< an attribute
  std::size_t neighbours;               ///< known products looked at for each new one
  std::size_t texts;                    ///< held-out pages, and as many chats
};

/// The name parts of a name, by their places in the lists.
inline std::pair<std::size_t, std::size_t> parts_of(std::string_view name) {
  for (std::size_t first = 0; first < first_parts.size(); ++first) {
    if (!name.starts_with(first_parts[first])) continue;
    const auto rest = std::find(second_parts.begin(), second_parts.end(), name.substr(first_parts[first].size()));
    if (rest != second_parts.end()) return {first, static_cast<std::size_t>(rest - second_parts.begin())};
  }
  throw std::invalid_argument(std::string(name) + " is no name of this world");
}

/// Names by the rules for new ones: three letters from any other; no part in more than eight names, nor in two of this
/// kind, of which there are some already. All pairs are tried in random order, and in another where they do not
/// suffice.
inline std::vector<std::string> draw_names_apart(Random& random, std::size_t count,
                                                 const std::vector<std::string>& others,
                                                 const std::vector<std::string>& of_this_kind) {
  constexpr std::size_t most_uses = 8;
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::vector<std::string> names = others, drawn;
    names.insert(names.end(), of_this_kind.begin(), of_this_kind.end());
    std::vector<std::size_t> first_uses(first_parts.size()), second_uses(second_parts.size());
    for (const std::string& name : names) {
      const auto [first, second] = parts_of(name);
      ++first_uses[first];
      ++second_uses[second];
    }
    for (const std::string& name : of_this_kind) {
      const auto [first, second] = parts_of(name);
      first_uses[first] = second_uses[second] = most_uses;
    }
    for (const std::size_t pair : random_order(random, first_parts.size() * second_parts.size())) {
      const std::size_t first = pair / second_parts.size(), second = pair % second_parts.size();
      if (first_uses[first] >= most_uses || second_uses[second] >= most_uses) continue;
      const std::string name = std::string(first_parts[first]) + std::string(second_parts[second]);
      const auto similar = [&](const std::string& other) { return distance(name, other) < 3; };
      if (std::any_of(names.begin(), names.end(), similar)) continue;
      first_uses[first] = second_uses[second] = most_uses;
      names.push_back(name);
      drawn.push_back(name);
      if (drawn.size() == count) return drawn;
    }
  }
  throw std::runtime_error("the name parts do not give enough different names");
}

/// The same names with each attribute's values permuted so that no product keeps its own. A guess from how often a
/// value is seen is right in both worlds equally often.
inline std::vector<Product> twins_of(const std::vector<Product>& products, Random& random) {
  std::vector<Product> twins = products;
  for (std::size_t a = 0; a < attribute_count; ++a) {
    bool kept = true;
    for (int attempt = 0; attempt < 100'000 && kept; ++attempt) {
      const std::vector<std::size_t> order = random_order(random, products.size());
      kept = false;
      for (std::size_t p = 0; p < products.size(); ++p) {
        twins[p].values[a] = products[order[p]].values[a];
        kept = kept || twins[p].values[a] == products[p].values[a];
      }
    }
    if (kept) throw std::runtime_error("no permutation moves every value");
  }
  return twins;
}

inline std::vector<std::string> names_of(const std::vector<Product>& products) {
  std::vector<std::string> names;
  for (const Product& product : products) names.push_back(product.name);
  return names;
}

struct Study {
  std::vector<Product> fresh, twin;  ///< the guard's, which are the quickstart's ten, then the report's
  std::vector<Product> replay;
  Group guard{"guard", {}, {}, {}, {}, {0}, 1, 1, 1, 1, 50};
  Group report{"report", {}, {}, {}, {}, {1, 2}, 5, 3, 6, 2, 200};

  Study(const World& world, std::uint64_t seed) {
    const auto slice = [](const auto& list, std::size_t first, std::size_t count) {
      const auto begin = list.begin() + static_cast<std::ptrdiff_t>(first);
      return std::decay_t<decltype(list)>(begin, begin + static_cast<std::ptrdiff_t>(count));
    };
    report.known = slice(world.known, 0, report_known);
    guard.known = slice(world.known, report_known, guard_known);
    replay = slice(world.known, report_known + guard_known, replay_known);

    Random further = stream(seed, Stream::further);
    guard.fresh = world.fresh;
    for (std::string& name : draw_names_apart(further, further_count, names_of(world.known), names_of(world.fresh))) {
      report.fresh.push_back({std::move(name), {}});
      for (std::size_t a = 0; a < attribute_count; ++a) {
        report.fresh.back().values[a] = further.pick(attributes[a].values);
      }
    }
    Random twins = stream(seed, Stream::twin);
    for (Group* group : {&guard, &report}) {
      group->twin = twins_of(group->fresh, twins);
      fresh.insert(fresh.end(), group->fresh.begin(), group->fresh.end());
      twin.insert(twin.end(), group->twin.begin(), group->twin.end());
    }
    Random names = stream(seed, Stream::strangers);
    std::vector<std::string> taken = names_of(world.known);
    for (const Product& product : fresh) taken.push_back(product.name);
    const std::vector<std::string> strangers = draw_names_apart(names, guard_strangers + report_strangers, taken, {});
    guard.strangers = slice(strangers, 0, guard_strangers);
    report.strangers = slice(strangers, guard_strangers, report_strangers);
  }
};

}  // namespace world
