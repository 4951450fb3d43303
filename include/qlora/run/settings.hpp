// qlora/run/settings.hpp — options as an ordered list of names and values: the echo of all of them, and the part that
// results depend on, by which checkpoints and finished steps are recognised.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "qlora/net/shown.hpp"
#include "qlora/run/option.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Options with their values, in the order in which they were set.
using Settings = std::vector<std::pair<std::string, Value>>;

/// Sets a value in place, or appends it.
inline void set(Settings& settings, std::string_view name, Value value) {
  const auto found =
      std::find_if(settings.begin(), settings.end(), [&](const auto& setting) { return setting.first == name; });
  if (found != settings.end()) {
    found->second = std::move(value);
  } else {
    settings.emplace_back(name, std::move(value));
  }
}

/// Which options of a table: all, or those that results depend on.
enum class Which : std::uint8_t { all, fingerprint };

/// Adds the options of a table by name. Those of adapters alone come last, if `adapters`: a step's record is found by
/// the text of its settings, and that was their order when steps were first recorded. For the same reason a renamed
/// option has its old name in a fingerprint as long as the old name is accepted. Settings are stored and shown, so that
/// addresses among them stand without their credentials.
template <HasTable S>
void add_settings(Settings& into, const S& from, Which which, bool adapters = true) {
  for (const bool of_adapters : {false, true}) {
    if (of_adapters && !adapters) return;
    for (const Option<S>& option : Table<S>::options) {
      if (option.adapters_only != of_adapters || (which == Which::fingerprint && !option.fingerprint)) continue;
      if (which == Which::fingerprint && option.omit_default && value_of(option, from) == value_of(option, S{}))
        continue;
      const bool renamed = which == Which::fingerprint && !option.old_name.empty();
      Value value = value_of(option, from);
      if (auto* texts = std::get_if<std::vector<std::string>>(&value))
        for (std::string& text : *texts) text = net::shown_address(text);
      set(into, renamed ? option.old_name : option.name, std::move(value));
    }
  }
}

/// The options of one table, those of adapters alone last.
template <HasTable S>
[[nodiscard]] Settings settings_of(const S& from, Which which) {
  Settings all;
  add_settings(all, from, which);
  return all;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
