// qlora/eval/shares.hpp — shares of right replies by relation and by entity: which facts a model knows.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>

#include "qlora/eval/item_results.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/eval/results.hpp"
#include "qlora/ordered_map.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

namespace detail {

/// `group_of(item)` is the name of the item's group; empty: none.
template <class GroupOf>
[[nodiscard]] Shares shares_of(std::span<const Item> items, const ItemResults& results, const GroupOf& group_of) {
  struct Count {
    int right = 0;
    int all = 0;
  };
  std::map<std::string, std::map<std::string, Count>> counts;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const std::string group = group_of(items[i]);
    if (!asks_value(items[i].kind) || group.empty()) continue;
    Count& count = counts[std::string(name_of(items[i].kind))][group];
    ++count.all;
    count.right += results.verdicts[i].right ? 1 : 0;
  }
  Shares shares;
  for (const auto& [kind, groups] : counts) {
    for (const auto& [group, count] : groups) {
      shares[kind][group] = {count.all, static_cast<double>(count.right) / count.all};
    }
  }
  return shares;
}

}  // namespace detail

/// Of all items that ask for a value, by relation; kinds and relations in alphabetical order.
[[nodiscard]] inline Shares shares_by_relation(std::span<const Item> items, const ItemResults& results) {
  return detail::shares_of(items, results, [](const Item& item) { return item.relation; });
}
/// Of items that ask for new facts, by entity; kinds and entities in alphabetical order.
[[nodiscard]] inline Shares shares_by_entity(std::span<const Item> items, const ItemResults& results) {
  return detail::shares_of(items, results,
                           [](const Item& item) { return asks_new_fact(item.kind) ? item.entity : std::string(); });
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
