// option_json.hpp — options as JSON: the echo of all of them, and the part that results depend on.
#pragma once

#include <string>
#include <variant>

#include "qlora/io/json.hpp"
#include "qlora/run/option.hpp"
#include "verb.hpp"

namespace qlora::program {

enum class Which : std::uint8_t { all, fingerprint };

/// Adds the options of a table to an object, by name. Those of adapters alone come last, if at all: so they did when
/// finished steps were first recorded, and a step's record is found by the text of its settings. For the same reason a
/// renamed option has its old name in a fingerprint as long as that is accepted at all.
template <run::HasTable S>
void add_options(Result& into, const S& from, Which which, bool adapters = true) {
  for (const bool of_adapters : {false, true}) {
    if (of_adapters && !adapters) return;
    for (const run::Option<S>& option : run::Table<S>::options) {
      if (option.adapters_only != of_adapters || (which == Which::fingerprint && !option.fingerprint)) continue;
      const bool renamed = which == Which::fingerprint && !option.old_name.empty();
      const std::string key(renamed ? option.old_name : option.name);
      std::visit([&](const auto& value) { into[key] = value; }, run::value_of(option, from));
    }
  }
}

template <run::HasTable S>
[[nodiscard]] Result options_json(const S& from, Which which) {
  Result all = Result::object();
  add_options(all, from, which);
  return all;
}

}  // namespace qlora::program
