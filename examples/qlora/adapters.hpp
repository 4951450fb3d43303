// adapters.hpp — an adapter from a directory, for a model: one that was trained on another is refused.
#pragma once

#include <filesystem>
#include <string>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/peft.hpp"

namespace qlora::program {

/// Opens an adapter that goes on `model`. Throws Error (input) when it says that it was trained on other weights, which would
/// give text without sense and no other sign; `any_base` lets it pass. Adapters that other programs wrote do not say.
inline PeftAdapter open_adapter(const std::filesystem::path& dir, const hf::ModelDir& model, bool any_base) {
  constexpr const char* config = "adapter_config.json";
  if (!std::filesystem::exists(dir / config) && std::filesystem::exists(dir / "adapter" / config)) {
    throw Error(dir.string() + " is no adapter; the one of that training is " + (dir / "adapter").string());
  }
  PeftAdapter adapter = PeftAdapter::open(dir);
  if (!any_base && !adapter.base_fingerprint.empty() && adapter.base_fingerprint != model.fingerprint()) {
    throw Error(qlora::detail::concat(dir.string(), " was trained on other weights than those of ", model.path.string(),
                                      adapter.base_model.empty() ? "" : ", in " + adapter.base_model,
                                      "; give that model, or --any-base to use it all the same"));
  }
  return adapter;
}

inline void add_any_base(OptionSet verb, bool& any_base) {
  verb.add("--any-base", any_base,
           "Take an adapter that was trained on other weights: the same ones in another type, say");
}

}  // namespace qlora::program
