// adapters.hpp — the option that lets a verb take an adapter of other weights.
#pragma once

#include "options.hpp"
#include "qlora/run/adapter.hpp"

namespace qlora::program {

using run::open_adapter;

inline void add_any_base(OptionSet verb, bool& any_base) {
  verb.add("--any-base", any_base,
           "Take an adapter that was trained on other weights: the same ones in another type, say");
}

}  // namespace qlora::program
