// qlora/run/step_cache.hpp — which steps of a job are done. The file run.json holds for each step a key (the hash of
// its settings and inputs), its result, and the hashes of what it wrote. A step is skipped only if its key is the same
// and its outputs have the same hashes: a changed setting, a changed input and a damaged output all lead to the step
// being done again.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/run/json.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/settings.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Names of files and their SHA-256 in hexadecimal.
using FileHashes = std::vector<std::pair<std::string, std::string>>;

/// The files below a directory by their relative names, sorted, or one file by its name. Several files are read at a
/// time, since those of a large model are many gigabytes. Throws Error when there is no such path.
[[nodiscard]] inline FileHashes file_hashes(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (fs::is_regular_file(path)) return {{path.filename().string(), sha256_file(path)}};
  if (!fs::is_directory(path)) throw Error(path.string() + " is not there");
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  FileHashes hashes(files.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next.fetch_add(1); i < files.size(); i = next.fetch_add(1)) {
      hashes[i] = {files[i].lexically_relative(path).generic_string(), sha256_file(files[i])};
    }
  };
  std::vector<std::future<void>> others;
  for (std::size_t i = 1; i < std::min<std::size_t>(std::thread::hardware_concurrency(), files.size()); ++i) {
    others.push_back(std::async(std::launch::async, work));
  }
  work();
  for (std::future<void>& other : others) other.get();
  return hashes;
}

/// What decides the outcome of a step, and where the outcome lies.
struct CachedStep {
  std::string name;                            ///< unique in its cache
  Settings settings;                           ///< all that decides the outcome besides the inputs
  std::vector<std::filesystem::path> inputs;   ///< files and directories that are read
  std::vector<std::filesystem::path> outputs;  ///< files and directories that are written
  bool resumes = false;                        ///< continues from what an interrupted start left in its outputs
};

/// What is known of a step that was done, or begun.
struct CachedRecord {
  std::string name;                                         ///< CachedStep::name
  double seconds = 0;                                       ///< 0: it was not completed
  std::vector<std::pair<std::string, FileHashes>> outputs;  ///< by the name of the output
};

/// The steps of a job that were done, in one file: what can be skipped, and what its outputs were.
class StepCache {
 public:
  /// `file` is read if it is there; one that cannot be understood only means that nothing can be skipped. `version` is
  /// that of the program: what another version did is done again.
  StepCache(std::filesystem::path file, std::string version) : file_(std::move(file)), version_(std::move(version)) {
    book_ = {{"format", 1}, {"steps", OrderedJson::object()}};
    if (!std::filesystem::exists(file_)) return;
    OrderedJson old = OrderedJson::parse(read_text(file_, std::size_t{64} << 20), nullptr, false);
    if (!old.is_object() || detail::count_at(old, "format") != 1) return;
    if (const OrderedJson* steps = detail::section(old, "steps"); steps != nullptr && steps->is_object()) {
      book_ = std::move(old);
    }
  }

  /// The step's result: of `act()`, or of the time when it was done. `again` does it in any case. A result is stored by
  /// its to_json, and `from_json` reads it back; a stored result that `from_json` refuses is not used.
  template <class R>
  [[nodiscard]] R run(const CachedStep& step, const std::function<R()>& act, R (*from_json)(const OrderedJson&),
                      Progress& progress, bool again = false) {
    const std::string key = key_of(step);
    const bool known = is_done(step, key);
    if (known && !again) {
      if (std::optional<R> result = stored(step.name, from_json)) {
        progress.say(step.name + ": unchanged, skipped");
        return std::move(*result);
      }
    }
    progress.say(step.name + (known ? ": done again" : ""));
    begin(step, key, again);
    const auto started = std::chrono::steady_clock::now();
    R result = act();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    finish(step, key, seconds.count(), to_json(result));
    return result;
  }

  /// All steps of run.json, in the order in which they were first begun.
  [[nodiscard]] std::vector<CachedRecord> records() const {
    std::vector<CachedRecord> records;
    for (const auto& [name, step] : steps().items()) {
      CachedRecord& record = records.emplace_back(CachedRecord{.name = name, .outputs = {}});
      if (!step.is_object()) continue;
      if (const OrderedJson* seconds = detail::section(step, "seconds"); seconds != nullptr && seconds->is_number()) {
        record.seconds = seconds->get<double>();
      }
      const OrderedJson* outputs = detail::section(step, "outputs");
      if (outputs == nullptr) continue;
      for (const auto& [where, files] : outputs->items()) {
        FileHashes& hashes = record.outputs.emplace_back(where, FileHashes{}).second;
        for (const auto& [file, hash] : files.items()) {
          if (hash.is_string()) hashes.emplace_back(file, hash.get<std::string>());
        }
      }
    }
    return records;
  }

 private:
  static OrderedJson hashes_json(const std::filesystem::path& path) {
    OrderedJson hashes = OrderedJson::object();
    for (const auto& [file, hash] : file_hashes(path)) hashes[file] = hash;
    return hashes;
  }
  /// The hashes of outputs without lock files, which say who wrote last and nothing of the result.
  static OrderedJson without_locks(OrderedJson outputs) {
    for (auto& files : outputs) {
      if (files.is_object()) files.erase("run.lock");
    }
    return outputs;
  }
  static OrderedJson outputs_of(const CachedStep& step) {
    OrderedJson outputs = OrderedJson::object();
    for (const std::filesystem::path& path : step.outputs) outputs[path.filename().string()] = hashes_json(path);
    return outputs;
  }
  [[nodiscard]] std::string key_of(const CachedStep& step) const {
    OrderedJson inputs = OrderedJson::array();
    for (const std::filesystem::path& path : step.inputs) inputs.push_back(hashes_json(path));
    const OrderedJson all{
        {"version", version_}, {"step", step.name}, {"settings", to_json(step.settings)}, {"inputs", inputs}};
    return sha256(all.dump());
  }

  [[nodiscard]] const OrderedJson& steps() const { return book_.at("steps"); }
  /// Null where nothing is known of the step.
  [[nodiscard]] const OrderedJson* record_of(const std::string& name) const {
    const OrderedJson* record = detail::section(steps(), name.c_str());
    return record == nullptr || !record->is_object() ? nullptr : record;
  }
  [[nodiscard]] static bool has_key(const OrderedJson& record, const std::string& key) {
    const OrderedJson* own = detail::section(record, "key");
    return own != nullptr && *own == key;
  }

  [[nodiscard]] bool is_done(const CachedStep& step, const std::string& key) const {
    const OrderedJson* record = record_of(step.name);
    if (record == nullptr || !has_key(*record, key)) return false;
    const OrderedJson* outputs = detail::section(*record, "outputs");
    if (outputs == nullptr || detail::section(*record, "result") == nullptr) return false;
    for (const std::filesystem::path& path : step.outputs) {
      if (!std::filesystem::exists(path)) return false;
    }
    return without_locks(*outputs) == without_locks(outputs_of(step));
  }
  template <class R>
  [[nodiscard]] std::optional<R> stored(const std::string& name, R (*from_json)(const OrderedJson&)) const {
    try {
      return from_json(detail::required(*record_of(name), "result"));
    } catch (const std::exception&) {  // of the JSON library, too
      return std::nullopt;
    }
  }

  /// What a step left half done may be continued (training resumes) only under the key that it began with. What was
  /// done under another key, or does not have its hashes any more, is removed.
  void begin(const CachedStep& step, const std::string& key, bool again) {
    const OrderedJson* old = record_of(step.name);
    const bool complete = old != nullptr && detail::section(*old, "outputs") != nullptr;
    if (old != nullptr && (again || !step.resumes || !has_key(*old, key) || complete)) {
      for (const std::filesystem::path& output : step.outputs) std::filesystem::remove_all(output);
    }
    book_["steps"][step.name] = {{"key", key}};
    save();
  }
  void finish(const CachedStep& step, const std::string& key, double seconds, const OrderedJson& result) {
    book_["steps"][step.name] = {{"key", key}, {"seconds", seconds}, {"outputs", outputs_of(step)}, {"result", result}};
    save();
  }
  void save() const { write_file_atomically(file_, file_text(book_)); }

  std::filesystem::path file_;
  std::string version_;
  OrderedJson book_;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
