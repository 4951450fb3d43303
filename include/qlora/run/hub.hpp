// qlora/run/hub.hpp — models of the Hugging Face hub: downloaded into the cache of its packages, and what goes with it.
// What may not change: a token goes to the endpoint alone and over TLS alone; a file gets its name in the cache when
// its hash is the one that the hub states, SHA-256 of large files and git's of small ones; nothing is unpickled.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "qlora/run/hub_cache.hpp"
#include "qlora/run/prebuilt.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/steps.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Downloads the files that a model needs (weights in safetensors, configuration, tokenizer, licences), in parallel
/// ranges, and goes on where an earlier call was ended. What is in the cache is compared with its hash. Throws Error:
/// (network) for an answer that is none, a hash that does not match twice, a model that is gated, private or not there,
/// (input) for one without safetensors, (resource) for want of disk, (interrupted) when progress asks to stop.
QLORA_STEP PullResult pull_model(const HubModel& model, const HubPlace& place, Progress& progress);

/// The same for those files alone whose names fit one of these patterns, folders included: "*.gguf", "onnx/*", with *,
/// ? and [...] as in Python's fnmatch, where * goes across folders. The revision's name is noted in the cache when all
/// that the model needs is there. Throws Error (input) also for a pattern that fits no file.
QLORA_STEP PullResult pull_files(const HubModel& model, const HubPlace& place, const std::vector<std::string>& patterns,
                                 Progress& progress);

/// Downloads the licence of a model that the token may read, and records name, commit, hashes and time. Throws Error as
/// pull_model does.
QLORA_STEP AcceptResult accept_model(const HubModel& model, const HubPlace& place, Progress& progress);

/// The directory of a model or an adapter that a user named: the path itself where it exists or is no
/// "org/name[@revision]", else the model's snapshot in the cache, downloaded if it is not there. `folder`: that of the
/// file that `named` was found in and made relative to. The hub is asked once and not again where it does not answer,
/// since the name may be a mistyped path. Throws Error as pull_model does.
QLORA_STEP std::filesystem::path model_directory(const std::filesystem::path& named, Progress& progress,
                                                 const std::filesystem::path& folder = {});

/// Asks the hub whose token this is, and stores it for the owner's eyes alone; gives the account's name. Throws Error:
/// (network) for a token that the hub does not know, (resource) when it cannot be stored.
QLORA_STEP std::string log_in(const std::string& token, const HubPlace& place);

/// Deletes the stored token; whether there was one. The hub itself is not told. Throws Error (resource) when it cannot.
QLORA_STEP bool log_out(const HubPlace& place);

}  // namespace run
}  // namespace v0
}  // namespace qlora

#ifdef QLORA_STEP_CODE  // prebuilt.hpp
#include "qlora/run/hub_steps.hpp"
#endif  // QLORA_STEP_CODE
