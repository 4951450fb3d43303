// qlora/run/adapter.hpp — an adapter directory opened for a model.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>

#include "qlora/error.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/io/peft.hpp"
#include "qlora/run/options.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Whether what a step reads is compared with its checksums.
[[nodiscard]] inline Verify verify_of(const DeviceRequest& device) {
  return device.no_verify ? Verify::nothing : Verify::checksums;
}

/// Opens an adapter that will be used with `model`. Throws Error (input) when the adapter's files say that it was
/// trained on other weights: its output would be nonsense without any other sign. `any_base` skips this check. Adapters
/// that other programs wrote do not name their weights and are not checked. It is the beginnings of the tensors that
/// are compared here; expect_base_checksum compares the whole when they have been read.
[[nodiscard]] inline PeftAdapter open_adapter(const std::filesystem::path& dir, const hf::ModelDir& model,
                                              bool any_base, Verify verify) {
  constexpr const char* config = "adapter_config.json";
  std::error_code none;  // a path that cannot be, say one that is too long, is no adapter either
  if (!std::filesystem::exists(dir / config, none) && std::filesystem::exists(dir / "adapter" / config, none)) {
    throw Error(dir.string() + " is no adapter; the one of that training is " + (dir / "adapter").string());
  }
  PeftAdapter adapter = PeftAdapter::open(dir, verify);
  if (!any_base && !adapter.base_fingerprint.empty() && adapter.base_fingerprint != model.fingerprint()) {
    throw Error(concat(dir.string(), " was trained on other weights than those of ", model.path.string(),
                       adapter.base_model.empty() ? "" : ", in " + adapter.base_model,
                       "; give that model, or --any-base to use it all the same"));
  }
  return adapter;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
