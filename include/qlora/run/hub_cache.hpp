// qlora/run/hub_cache.hpp — the cache of models that Hugging Face's packages keep, and the environment that names it.
// Layout     models--ORG--NAME/blobs/ETAG, snapshots/COMMIT/FILE -> ../../blobs/ETAG, refs/REVISION (holds COMMIT)
// What may not change: a reference names a snapshot that was complete when it was written, so that `huggingface_hub`
// and this library find whole models in each other's cache.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// A model of the hub: "org/name" or "org/name@revision".
struct HubModel {
  std::string name;               ///< "org/name"
  std::string revision = "main";  ///< branch, tag or commit
};

/// How files come over the network.
struct HubTransfer {
  int connections = 8;                          ///< at a time
  std::int64_t piece_bytes = 64 << 20;          ///< of a request; what is lost when a download is ended, a connection
  int tries = 6;                                ///< of a request without any progress
  int first_tries = 6;                          ///< of the same while no answer of the hub has come yet
  std::chrono::milliseconds connect{10'000};    ///< to be connected with a server
  std::chrono::milliseconds backoff{500};       ///< before the second try; doubles with each
  std::chrono::milliseconds most_wait{60'000};  ///< that a server may ask for
  long low_speed_seconds = 30;                  ///< a connection below a KiB/s for so long is given up
};

/// Where the hub and its cache are, from the environment: HF_HOME (XDG_CACHE_HOME, HOME), HF_HUB_CACHE, HF_ENDPOINT,
/// HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE and SSL_CERT_FILE.
struct HubPlace {
  std::filesystem::path cache;       ///< of models
  std::filesystem::path token_file;  ///< that `qlora login` writes
  std::filesystem::path accepted;    ///< licences that `qlora accept` recorded, JSON Lines
  std::string endpoint;              ///< without a slash at its end
  bool own_endpoint = false;         ///< HF_ENDPOINT is set: it may be a private address
  std::string token;                 ///< empty: none
  std::string ca_file;               ///< empty: the system's
  bool offline = false;              ///< nothing may be asked for over the network
  HubTransfer transfer{};            ///< how files come
};

namespace detail {

using qlora::detail::excerpt;

[[nodiscard]] inline std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

[[nodiscard]] inline std::string trimmed(std::string text) {
  constexpr std::string_view blank = " \t\r\n";
  text.erase(text.find_last_not_of(blank) + 1);
  return text.erase(0, std::min(text.find_first_not_of(blank), text.size()));
}

/// Throws Error (usage) for a token that could not stand in a header.
inline void check_token(const std::string& token) {
  const bool good = !token.empty() && token.size() <= 1000 &&
                    std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c < 0x7F; });
  if (!good) throw Error("a token of the hub is one word of letters, digits and signs", ErrorKind::usage);
}

[[nodiscard]] inline bool is_hub_word(std::string_view word, std::string_view more) {
  return !word.empty() && word.size() <= 200 && word != "." && word != ".." &&
         word.find("..") == std::string_view::npos && word.find("--") == std::string_view::npos &&
         word.front() != '-' && word.front() != '/' && std::all_of(word.begin(), word.end(), [&](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-' ||
                  c == '.' || more.find(c) != std::string_view::npos;
         });
}

}  // namespace detail

/// What the environment says. Throws Error (usage) where there is neither HF_HOME nor HOME, or an endpoint or a token
/// that is none.
[[nodiscard]] inline HubPlace hub_place() {
  using detail::variable;
  namespace fs = std::filesystem;
  const std::string caches = variable("XDG_CACHE_HOME");
  fs::path home = variable("HF_HOME");
  if (home.empty() && !caches.empty()) home = fs::path(caches) / "huggingface";
  if (home.empty() && !variable("HOME").empty()) home = fs::path(variable("HOME")) / ".cache" / "huggingface";
  if (home.empty()) throw Error("no place for models of the hub; set HF_HOME to a folder", ErrorKind::usage);
  HubPlace place;
  const std::string cache = variable("HF_HUB_CACHE");
  place.cache = cache.empty() ? home / "hub" : fs::path(cache);
  const std::string token_file = variable("HF_TOKEN_PATH");
  place.token_file = token_file.empty() ? home / "token" : fs::path(token_file);
  place.accepted = home / "qlora-accepted.jsonl";
  place.endpoint = variable("HF_ENDPOINT");
  place.own_endpoint = !place.endpoint.empty();
  if (!place.own_endpoint) place.endpoint = "https://huggingface.co";
  while (place.endpoint.ends_with('/')) place.endpoint.pop_back();
  if (!place.endpoint.starts_with("https://") && !place.endpoint.starts_with("http://"))
    throw Error("HF_ENDPOINT must begin with https:// or http://", ErrorKind::usage);
  place.token = detail::trimmed(variable("HF_TOKEN"));
  std::error_code absent;
  if (place.token.empty() && fs::is_regular_file(place.token_file, absent))
    place.token = detail::trimmed(read_text(place.token_file, 4096));
  if (!place.token.empty()) detail::check_token(place.token);
  place.ca_file = variable("SSL_CERT_FILE");
  std::string offline = variable("HF_HUB_OFFLINE");
  for (char& c : offline) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  place.offline = offline == "1" || offline == "ON" || offline == "YES" || offline == "TRUE";
  return place;
}

/// The model that a text names; nothing for what is no "org/name[@revision]".
[[nodiscard]] inline std::optional<HubModel> hub_model(std::string_view text) {
  HubModel model;
  const std::size_t at = text.find('@');
  if (at != std::string_view::npos) {
    model.revision = text.substr(at + 1);
    if (!detail::is_hub_word(model.revision, "/")) return std::nullopt;
  }
  model.name = text.substr(0, at);
  const std::size_t slash = model.name.find('/');
  if (slash == std::string::npos || !detail::is_hub_word(std::string_view(model.name).substr(0, slash), {}) ||
      !detail::is_hub_word(std::string_view(model.name).substr(slash + 1), {}) || model.name.starts_with('.'))
    return std::nullopt;
  return model;
}

/// The same. Throws Error (usage) for another text.
[[nodiscard]] inline HubModel named_hub_model(std::string_view text) {
  if (std::optional<HubModel> model = hub_model(text)) return *std::move(model);
  throw Error("a model of the hub is ORG/NAME or ORG/NAME@REVISION, not " + detail::excerpt(text), ErrorKind::usage);
}

/// The folder of a model in the cache.
[[nodiscard]] inline std::filesystem::path hub_folder(const HubPlace& place, const HubModel& model) {
  std::string name = model.name;
  name.replace(name.find('/'), 1, "--");
  return place.cache / ("models--" + name);
}

/// How a file that goes to other machines names a model directory: "org/name" for a snapshot in a cache of the hub,
/// else the path as it is.
[[nodiscard]] inline std::string name_for_others(const std::filesystem::path& model) {
  constexpr std::string_view begin = "models--";
  const std::filesystem::path snapshots = (model / "").parent_path().parent_path();
  std::string name = snapshots.parent_path().filename().string();
  if (snapshots.filename() != "snapshots" || !name.starts_with(begin)) return model.string();
  name.erase(0, begin.size());
  const std::size_t mark = name.find("--");
  if (mark == std::string::npos) return model.string();
  return name.replace(mark, 2, "/");
}

/// The snapshot of a model's revision in the cache, if all files that its index of weights names are there; else empty.
[[nodiscard]] inline std::filesystem::path cached_snapshot(const HubPlace& place, const HubModel& model) {
  namespace fs = std::filesystem;
  const fs::path folder = hub_folder(place, model);
  std::error_code absent;
  const fs::path reference = folder / "refs" / model.revision;
  std::string commit = model.revision;
  if (fs::is_regular_file(reference, absent)) commit = detail::trimmed(read_text(reference, 1000));
  if (!detail::is_hub_word(commit, {})) return {};
  const fs::path snapshot = folder / "snapshots" / commit;
  const auto is_file = [&](const std::string& name) { return fs::is_regular_file(snapshot / name, absent); };
  if (is_file("adapter_config.json") && is_file("adapter_model.safetensors")) return snapshot;
  if (!is_file("config.json")) return {};
  if (is_file("model.safetensors")) return snapshot;
  if (!is_file("model.safetensors.index.json")) return {};
  const Json index = read_json_object(snapshot / "model.safetensors.index.json");
  const Json* map = json_find(index, "weight_map");
  if (map == nullptr || !map->is_object() || map->empty()) return {};
  std::set<std::string> shards;
  for (const Json& shard : *map) shards.insert(shard.is_string() ? shard.get<std::string>() : "?");
  return std::all_of(shards.begin(), shards.end(), is_file) ? snapshot : fs::path();
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
