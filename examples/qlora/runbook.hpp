// runbook.hpp — which steps of a job are done. OUT/run.json holds for each step a key (hash of its settings and inputs)
// and the hashes of what it wrote. A step is skipped only if its key is the same and its outputs still verify, so a
// changed setting, a changed page and a damaged file all lead to the step being done again.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"
#include "verb.hpp"

namespace qlora::program {

namespace fs = std::filesystem;

/// Files below a path (or the file itself) with their SHA-256, sorted by name; several files at a time, since those of a
/// large model are many gigabytes. Throws Error when there is none.
inline Result hashes_of(const fs::path& path) {
  Result hashes = Result::object();
  if (fs::is_regular_file(path)) {
    hashes[path.filename().string()] = sha256_file(path);
    return hashes;
  }
  if (!fs::is_directory(path)) throw Error(path.string() + " is not there");
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> digests(files.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next.fetch_add(1); i < files.size(); i = next.fetch_add(1)) digests[i] = sha256_file(files[i]);
  };
  std::vector<std::future<void>> others;
  for (unsigned i = 1; i < std::min<std::size_t>(std::thread::hardware_concurrency(), files.size()); ++i) {
    others.push_back(std::async(std::launch::async, work));
  }
  work();
  for (std::future<void>& other : others) other.get();
  for (std::size_t i = 0; i < files.size(); ++i) {
    hashes[files[i].lexically_relative(path).generic_string()] = digests[i];
  }
  return hashes;
}

/// One step as the runbook sees it.
struct Step {
  std::string name;
  Result settings;                ///< everything that decides the outcome, but for the inputs
  std::vector<fs::path> inputs;   ///< files and directories that are read
  std::vector<fs::path> outputs;  ///< files and directories that are written
  std::function<Result()> act;
};

class Runbook {
 public:
  explicit Runbook(fs::path file) : file_(std::move(file)) {
    book_ = {{"format", 1}, {"steps", Result::object()}};
    if (!fs::exists(file_)) return;
    // A runbook that cannot be read only means that nothing can be skipped.
    const Result old = Result::parse(read_text(file_, std::size_t{64} << 20), nullptr, false);
    if (old.is_object() && old.value("format", 0) == 1 && old.contains("steps") && old["steps"].is_object())
      book_ = old;
  }

  /// Does the step, or skips it; returns what it returned, now or back then. `again` does it in any case.
  Result run(const Step& step, Progress& progress, bool again = false) {
    const std::string key = key_of(step);
    const Result* known = done(step, key);
    if (known != nullptr && !again) {
      progress.say(step.name + ": unchanged, skipped");
      return known->at("result");
    }
    progress.say(step.name + (known != nullptr ? ": done again" : ""));
    // What a step left half done may be gone on with (training resumes) only under the key that it began with; what was
    // done under another key, or no longer verifies, goes.
    const auto old = book_["steps"].find(step.name);
    if (old != book_["steps"].end() && (again || old->value("key", "") != key || old->contains("outputs"))) {
      for (const fs::path& output : step.outputs) fs::remove_all(output);
    }
    book_["steps"][step.name] = {{"key", key}};
    save();
    const auto started = std::chrono::steady_clock::now();
    Result result = step.act();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    book_["steps"][step.name] = {
        {"key", key}, {"seconds", seconds.count()}, {"outputs", outputs_of(step)}, {"result", result}};
    save();
    return result;
  }

  [[nodiscard]] const Result& steps() const { return book_["steps"]; }

 private:
  static Result outputs_of(const Step& step) {
    Result outputs = Result::object();
    for (const fs::path& path : step.outputs) outputs[path.filename().string()] = hashes_of(path);
    return outputs;
  }

  static std::string key_of(const Step& step) {
    Result inputs = Result::array();
    for (const fs::path& path : step.inputs) inputs.push_back(hashes_of(path));
    const Result all{{"version", QLORA_VERSION}, {"step", step.name}, {"settings", step.settings}, {"inputs", inputs}};
    return sha256(all.dump());
  }

  [[nodiscard]] const Result* done(const Step& step, const std::string& key) const {
    const auto found = book_["steps"].find(step.name);
    if (found == book_["steps"].end() || !found->is_object() || found->value("key", "") != key) return nullptr;
    if (!found->contains("outputs") || !found->contains("result")) return nullptr;
    for (const fs::path& path : step.outputs) {
      if (!fs::exists(path)) return nullptr;
    }
    return (*found)["outputs"] == outputs_of(step) ? &*found : nullptr;
  }

  void save() const {
    write_file_atomically(file_, book_.dump(2, ' ', false, Result::error_handler_t::replace) + "\n");
  }

  fs::path file_;
  Result book_;
};

}  // namespace qlora::program
