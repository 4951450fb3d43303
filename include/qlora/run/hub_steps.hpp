// qlora/run/hub_steps.hpp — the code of run/hub.hpp.
#pragma once

#include <fcntl.h>
#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/carried_files.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/lock.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/io/utc_time.hpp"
#include "qlora/run/hub.hpp"
#include "qlora/run/hub_client.hpp"
#include "qlora/run/hub_download.hpp"

namespace qlora {
inline namespace v0 {
namespace run {
namespace detail {

/// Whether a file of this name is a licence or a policy of use.
[[nodiscard]] inline bool is_legal_file(std::string_view name) {
  return hf::is_carried_file(name) && name != "generation_config.json";
}

/// Whether a listed name is one of a file that may be written: no hidden one, and none outside of the model's folder.
[[nodiscard]] inline bool is_file_name(std::string_view name) {
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (part.starts_with('.') || !is_hub_word(part, " ()+,=@!")) return false;
    at = end + 1;
  }
  return true;
}

/// The files whose names fit a pattern. Throws Error for a pattern that fits none.
[[nodiscard]] inline std::vector<std::string> fitting_files(const HubModel& model, const std::vector<std::string>& all,
                                                            const std::vector<std::string>& patterns) {
  std::vector<std::string> names;
  std::vector<char> used(patterns.size());
  for (const std::string& name : all) {
    if (!is_file_name(name)) continue;
    bool fits = false;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      if (::fnmatch(patterns[i].c_str(), name.c_str(), 0) != 0) continue;
      used[i] = 1;
      fits = true;
    }
    if (fits) names.push_back(name);
  }
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    if (used[i] == 0)
      throw Error(concat(model.name, " has no file of the pattern '", excerpt(patterns[i]), "'; it has ", all.size(),
                         " files", all.empty() ? "" : ", among them " + excerpt(all.front())));
  }
  return names;
}

/// The files of a model's top folder that are needed; none for a model without safetensors.
[[nodiscard]] inline std::vector<std::string> needed_files(const std::vector<std::string>& all) {
  constexpr std::array<std::string_view, 14> small{"config.json",
                                                   "adapter_config.json",
                                                   "tokenizer.json",
                                                   "tokenizer.model",
                                                   "tokenizer_config.json",
                                                   "special_tokens_map.json",
                                                   "added_tokens.json",
                                                   "vocab.json",
                                                   "merges.txt",
                                                   "chat_template.jinja",
                                                   "chat_template.json",
                                                   "model.safetensors.index.json",
                                                   "README.md",
                                                   "processor_config.json"};
  std::vector<std::string> names;
  bool weights = false;
  for (const std::string& name : all) {
    const std::string_view view = name;
    if (!is_hub_word(name, " ()+,=@!")) continue;  // in a folder, or no name of a file
    // "consolidated.safetensors" beside "model-..." is a second copy of the weights.
    const bool tensors =
        view.ends_with(".safetensors") && (view.starts_with("model") || view.starts_with("adapter_model"));
    weights = weights || tensors;
    if (tensors || hf::is_carried_file(name) || std::find(small.begin(), small.end(), name) != small.end())
      names.push_back(name);
  }
  if (!weights) names.clear();
  return names;
}

/// Throws Error: the files of a model hold no weights that are read here.
[[noreturn]] inline void refuse_pickle(const HubModel& model, const std::vector<std::string>& all) {
  const auto pickled = std::find_if(all.begin(), all.end(), [](std::string_view name) {
    return is_hub_word(name, " ()+,=@!") && (name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt"));
  });
  throw Error(concat(model.name, " has no weights in safetensors",
                     pickled == all.end() ? "" : concat(", only in Python's pickle (", excerpt(*pickled), ")"),
                     "; take a copy of the model that has, or convert it with transformers' save_pretrained"));
}

/// Writes a text whole, readable by the owner alone from its first byte on. Throws Error (resource).
inline void write_private_file(const std::filesystem::path& path, std::string_view text) {
  if (path.has_parent_path()) make_directories(path.parent_path());
  const std::filesystem::path temporary = temporary_beside(path);
  const FileDescriptor file =
      FileDescriptor::open("cannot create", temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  try {
    write_all(file, temporary, 0, std::as_bytes(std::span(text)));
    sync_file(file, temporary);
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw_errno("cannot rename to", path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

/// Makes `link` lead to `target`, in one step.
inline void make_link(const std::filesystem::path& target, const std::filesystem::path& link) {
  std::error_code code;
  if (std::filesystem::read_symlink(link, code) == target && !code) return;
  const std::filesystem::path temporary = temporary_beside(link);
  std::filesystem::create_symlink(target, temporary, code);
  if (code) refuse_place("cannot create link", link, code.value());
  if (::rename(temporary.c_str(), link.c_str()) != 0) throw_errno("cannot rename to", link, errno);
}

/// Brings these files of a commit into the cache, and the snapshot's links to them.
inline PullResult bring(const HubModel& model, const HubPlace& place, const std::string& commit,
                        const std::vector<std::string>& names, HubClient& client, Progress& progress) {
  namespace fs = std::filesystem;
  const fs::path folder = hub_folder(place, model);
  const fs::path locks = place.cache / ".locks" / folder.filename();
  for (const fs::path& made : {folder / "blobs", folder / "refs", folder / "snapshots" / commit, locks})
    make_directories(made);
  const RunLock lock(locks / "qlora.lock");
  PullResult result{.model = model.name, .commit = commit, .legal = {}, .path = folder / "snapshots" / commit};
  std::vector<HubFile> files;
  std::map<std::string, HubFile> missing;  // by etag: two names may have the same contents
  for (const std::string& name : names) {
    if (progress.stop_requested()) throw Error("interrupted; start again", ErrorKind::interrupted);
    const HubFile& file = files.emplace_back(client.file(commit, name));
    result.bytes += file.size;
    const fs::path blob = folder / "blobs" / file.etag;
    if (fs::is_regular_file(blob) && has_contents(blob, file)) continue;
    missing[file.etag] = file;
  }
  if (!missing.empty()) {
    std::vector<HubFile> wanted;
    for (const auto& [etag, file] : missing) wanted.push_back(file);
    Downloader downloader(place, model, commit, progress);
    downloader.run(wanted, folder / "blobs");
    result.downloaded = downloader.received();
  }
  for (const HubFile& file : files) {
    fs::path up = fs::path("..") / "..";
    if (const fs::path inner = fs::path(file.name).parent_path(); !inner.empty()) {
      make_directories(result.path / inner);
      for (const fs::path& step : inner) up = step.empty() ? up : up / "..";
    }
    make_link(up / "blobs" / file.etag, result.path / file.name);
    if (is_legal_file(file.name)) result.legal.push_back(file.name);
  }
  sync_directory(result.path);
  result.files = static_cast<std::int64_t>(files.size());
  return result;
}

}  // namespace detail

QLORA_STEP PullResult pull_files(const HubModel& model, const HubPlace& place, const std::vector<std::string>& patterns,
                                 Progress& progress) {
  const std::atomic<bool> go_on = false;
  detail::HubClient client(place, model, go_on);
  if (place.offline && patterns.empty()) {
    const std::filesystem::path snapshot = cached_snapshot(place, model);
    if (!snapshot.empty()) {
      return {.model = model.name, .commit = snapshot.filename().string(), .legal = {}, .path = snapshot};
    }
  }
  const detail::HubInfo info = client.info();
  const std::vector<std::string> needed = detail::needed_files(info.files);
  if (patterns.empty() && needed.empty()) detail::refuse_pickle(model, info.files);
  const PullResult result =
      detail::bring(model, place, info.commit,
                    patterns.empty() ? needed : detail::fitting_files(model, info.files, patterns), client, progress);
  const bool whole = std::all_of(needed.begin(), needed.end(),
                                 [&](const std::string& name) { return std::filesystem::exists(result.path / name); });
  if (whole && model.revision != info.commit) {
    const std::filesystem::path reference = hub_folder(place, model) / "refs" / model.revision;
    make_directories(reference.parent_path());
    write_file_atomically(reference, info.commit);
  }
  return result;
}

QLORA_STEP PullResult pull_model(const HubModel& model, const HubPlace& place, Progress& progress) {
  return pull_files(model, place, {}, progress);
}

QLORA_STEP AcceptResult accept_model(const HubModel& model, const HubPlace& place, Progress& progress) {
  const std::atomic<bool> go_on = false;
  detail::HubClient client(place, model, go_on);
  const detail::HubInfo info = client.info();
  std::vector<std::string> names;
  std::copy_if(info.files.begin(), info.files.end(), std::back_inserter(names),
               [](const std::string& name) { return detail::is_hub_word(name, " ") && detail::is_legal_file(name); });
  // What is gated is seen by a file that is, and the model's configuration always is.
  if (std::find(info.files.begin(), info.files.end(), "config.json") != info.files.end())
    names.push_back("config.json");
  const PullResult brought = detail::bring(model, place, info.commit, names, client, progress);
  AcceptResult result{.model = model.name,
                      .commit = info.commit,
                      .licence = info.licence,
                      .page = concat(place.endpoint, "/", model.name),
                      .accepted_at = utc_now(),
                      .legal = {},
                      .record = place.accepted};
  Json record{{"model", result.model}, {"commit", result.commit}, {"licence", result.licence},
              {"page", result.page},   {"files", Json::object()}, {"accepted_at", result.accepted_at}};
  for (const std::string& name : brought.legal) {
    result.legal.push_back((brought.path / name).string());
    record["files"][name] = sha256_file(brought.path / name);
  }
  make_directories(place.accepted.parent_path());
  const RunLock lock(place.accepted.string() + ".lock");
  std::error_code absent;
  std::string lines;
  if (std::filesystem::exists(place.accepted, absent)) lines = read_text(place.accepted, std::size_t{16} << 20);
  write_file_atomically(place.accepted, lines + json_text(record, -1));
  return result;
}

QLORA_STEP std::filesystem::path model_directory(const std::filesystem::path& named, Progress& progress,
                                                 const std::filesystem::path& folder) {
  std::error_code absent;
  if (named.empty() || std::filesystem::exists(named, absent)) return named;
  const std::filesystem::path name = folder.empty() ? named : named.lexically_relative(folder);
  const std::optional<HubModel> model = hub_model(name.string());
  if (!model) return named;
  HubPlace place = hub_place();
  place.transfer.first_tries = 1;
  place.transfer.connect = std::chrono::seconds(5);
  const std::filesystem::path cached = cached_snapshot(place, *model);
  if (!cached.empty()) return cached;
  try {
    return pull_model(*model, place, progress).path;
  } catch (const Error& error) {  // a mistyped path looks like a name, too
    throw Error(
        concat("there is no directory ", name.string(), " here, and of the hub's model of that name: ", error.what()),
        error.kind());
  }
}

QLORA_STEP std::string log_in(const std::string& token, const HubPlace& place) {
  detail::check_token(token);
  if (!place.endpoint.starts_with("https://"))
    throw Error("a token is not sent without TLS; give HF_ENDPOINT as https://", ErrorKind::usage);
  HubPlace with = place;
  with.token = token;
  const std::atomic<bool> go_on = false;
  const HubModel none{.name = {}};
  const std::string name = detail::HubClient(with, none, go_on).account();
  detail::write_private_file(place.token_file, token);
  return name;
}

QLORA_STEP bool log_out(const HubPlace& place) {
  std::error_code code;
  const bool removed = std::filesystem::remove(place.token_file, code);
  if (code) throw_errno("cannot remove", place.token_file, code.value());
  return removed;
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
