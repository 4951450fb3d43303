// qlora/run/step_cache.hpp — which steps of a job are done. The file run.json holds for each step a key (the hash of
// its settings and inputs), its result, and the hashes of what it wrote, and a hash of itself. A step is skipped only
// if its key is the same and its outputs have the same hashes: a changed setting, a changed input and a damaged output
// all lead to the step being done again.
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

/// The steps of a job that were done, in one file: what can be skipped, and what its outputs were. Of one thread.
class StepCache {
 public:
  /// `file` is read if it is there; one that cannot be understood only means that nothing can be skipped. `version` is
  /// that of the program: what another version did is done again.
  StepCache(std::filesystem::path file, std::string version) : file_(std::move(file)), version_(std::move(version)) {
    book_ = {{"format", 1}, {"steps", OrderedJson::object()}};
    if (std::filesystem::exists(file_)) read();
  }

  /// The step's result: of `act()`, or of the time when it was done. `again` does it in any case. A result is stored by
  /// its to_json, and `from_json` reads it back; a stored result that `from_json` refuses is not used. A run that does
  /// steps again and is interrupted goes on where it was: what it has done again counts as done until end_of_run().
  template <class R>
  [[nodiscard]] R run(const CachedStep& step, const std::function<R()>& act, R (*from_json)(const OrderedJson&),
                      Progress& progress, bool again = false) {
    const std::string key = key_of(step);
    const bool known = is_done(step, key);
    if (known && (!again || is_marked(*record_of(step.name)))) {
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
    finish(step, key, seconds.count(), to_json(result), again);
    progress.saved();
    return result;
  }

  /// The job is done: the next one that is to do steps again does them again.
  void end_of_run() {
    bool marked = false;
    for (auto& [name, step] : book_["steps"].items()) marked = step.erase(again_key) > 0 || marked;
    if (marked) save();
  }

  /// All steps of run.json, in the order in which they were first begun.
  [[nodiscard]] std::vector<CachedRecord> records() const {
    std::vector<CachedRecord> records;
    for (const auto& [name, step] : steps().items()) {
      CachedRecord& record = records.emplace_back(CachedRecord{.name = name, .outputs = {}});
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

  static constexpr const char* again_key = "again";

  /// Takes from the file what is a record as this class writes it; the rest, whatever it is, is not known. Throws Error
  /// (resource) when the system cannot read the file.
  void read() {
    OrderedJson old;
    try {
      const std::string text = read_text(file_, std::size_t{64} << 20);
      (void)parse_json(text, file_.string());  // refuses nesting and repeated keys
      old = OrderedJson::parse(text);
      const OrderedJson hash = OrderedJson(detail::text_at(old, "sha256"));
      const bool hashed = old.erase("sha256") > 0;  // none in the files of earlier versions
      if (detail::count_at(old, "format") != 1 || (hashed && hash != hash_of(old)) || old.size() != 2) return;
      for (const auto& [name, step] : detail::required_object(old, "steps").items()) {
        if (is_record(step)) book_["steps"][name] = step;
      }
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::resource) throw;
    }
  }
  [[nodiscard]] static bool is_record(const OrderedJson& step) {
    const auto is_hashes = [](const OrderedJson& files) {
      return files.is_object() &&
             std::all_of(files.begin(), files.end(), [](const OrderedJson& hash) { return hash.is_string(); });
    };
    if (!step.is_object() || !step.contains("key") || !step.at("key").is_string()) return false;
    if (step.contains(again_key) && !step.at(again_key).is_boolean()) return false;
    if (!step.contains("outputs")) return !step.contains("result");
    const OrderedJson& outputs = step.at("outputs");
    return outputs.is_object() && std::all_of(outputs.begin(), outputs.end(), is_hashes) && step.contains("result") &&
           step.contains("seconds") && step.at("seconds").is_number();
  }
  [[nodiscard]] static bool is_marked(const OrderedJson& step) { return step.contains(again_key); }

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
    const bool goes_on = old != nullptr && step.resumes && has_key(*old, key) && !old->contains("outputs") &&
                         (!again || is_marked(*old));
    if (old != nullptr && !goes_on) {
      for (const std::filesystem::path& output : step.outputs) std::filesystem::remove_all(output);
    }
    book_["steps"][step.name] = {{"key", key}};
    if (again) book_["steps"][step.name][again_key] = true;
    save();
  }
  void finish(const CachedStep& step, const std::string& key, double seconds, const OrderedJson& result, bool again) {
    book_["steps"][step.name] = {{"key", key}, {"seconds", seconds}, {"outputs", outputs_of(step)}, {"result", result}};
    if (again) book_["steps"][step.name][again_key] = true;
    save();
  }
  [[nodiscard]] static std::string hash_of(const OrderedJson& book) {
    return sha256(book.dump(-1, ' ', false, detail::replace_invalid));
  }
  void save() const {
    OrderedJson book = book_;
    book["sha256"] = hash_of(book_);
    write_file_atomically(file_, file_text(book));
  }

  std::filesystem::path file_;
  std::string version_;
  OrderedJson book_;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
