// qlora/eval/examples.hpp — replies that changed between two models, for a reader: facts that were learned, facts that
// were lost, and answers that were invented.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "qlora/eval/item_results.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/eval/results.hpp"
#include "qlora/ordered_map.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// Examples of a group that examples_of keeps.
inline constexpr std::size_t examples_shown = 8;

namespace detail {

/// Evenly spaced ones of a list, so that not all are about one entity.
[[nodiscard]] inline std::vector<std::size_t> some_of(const std::vector<std::size_t>& all) {
  std::vector<std::size_t> some;
  const std::size_t count = std::min(all.size(), examples_shown);
  for (std::size_t i = 0; i < count; ++i) some.push_back(all[i * all.size() / count]);
  return some;
}

[[nodiscard]] inline std::string expected_of(const Item& item) {
  if (!item.answer.empty()) return item.answer;
  return item.accept.empty() ? "a reply that ends" : item.accept.front();
}

}  // namespace detail

/// The replies that changed from one model to another. "learned": new facts that only the second has right. "lost":
/// what the first had right and the second has not. "invented": the same of questions about nothing that exists, to
/// which the first gave a refusal. "kept": old facts that both have right.
[[nodiscard]] inline Examples examples_of(std::span<const Item> items, const ItemResults& before,
                                          const ItemResults& after) {
  constexpr std::array<const char*, 4> names{"learned", "lost", "invented", "kept"};
  std::array<std::vector<std::size_t>, 4> groups;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    if (item.kind == Kind::retention && before.verdicts[i].right && after.verdicts[i].right) groups[3].push_back(i);
    if (item.kind == Kind::text || before.verdicts[i].right == after.verdicts[i].right) continue;
    if (asks_new_fact(item.kind)) {
      if (after.verdicts[i].right) groups[0].push_back(i);
    } else if (before.verdicts[i].right) {
      groups[item.kind == Kind::unknown ? 2 : 1].push_back(i);
    }
  }
  Examples examples;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    ExampleGroup& group = examples[names[g]];
    group.count = groups[g].size();
    for (const std::size_t i : detail::some_of(groups[g])) {
      const Item& item = items[i];
      group.some.push_back({item.kind, item.chat, item.prompt, detail::expected_of(item), before.replies[i].text,
                            after.replies[i].text});
    }
  }
  return examples;
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
