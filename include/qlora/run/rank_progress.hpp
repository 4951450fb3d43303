// qlora/run/rank_progress.hpp — the progress of one of several ranks: rank 0's goes to the caller's display, and that
// of every rank into a file of its own, OUT/logs/rank-R.log, where a line says when and what.
#pragma once

#include <unistd.h>

#include <array>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "qlora/dist/launch.hpp"
#include "qlora/io/directory.hpp"
#include "qlora/run/progress.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Shows what rank 0 reports, and writes down what this rank does.
class RankProgress final : public Progress {
 public:
  /// `shown` outlives this. Throws Error when the file cannot be written.
  RankProgress(Progress& shown, const dist::Launch& launch, const std::filesystem::path& out)
      : shown_(launch.rank == 0 ? &shown : nullptr), asked_(shown) {
    make_directories(out / "logs");
    const std::filesystem::path path = out / "logs" / concat("rank-", launch.rank, ".log");
    log_.open(path, std::ios::app);
    if (!log_) throw Error("cannot write " + path.string(), ErrorKind::resource);
    write(concat("rank ", launch.rank, " of ", launch.size, ", process ", ::getpid(), ", started by ",
                 name_of(launch.launcher)));
  }

  void begin(std::string_view task, std::int64_t total, std::string_view unit, std::int64_t done) override {
    if (shown_ != nullptr) shown_->begin(task, total, unit, done);
    write(concat(task, ": ", done, " of ", total, ' ', unit, " are done"));
  }
  void update(std::int64_t done, std::int64_t tokens, std::string_view note) override {
    if (shown_ != nullptr) shown_->update(done, tokens, note);
    write(concat(done, ": ", note));
  }
  void end(std::string_view summary) override {
    if (shown_ != nullptr) shown_->end(summary);
    write(summary);
  }
  void say(std::string_view line) override {
    if (shown_ != nullptr) shown_->say(line);
    write(line);
  }
  void saved() override {
    if (shown_ != nullptr) shown_->saved();
  }
  [[nodiscard]] bool stop_requested() const override { return asked_.stop_requested(); }
  /// A line for this rank's file alone.
  void note(std::string_view line) { write(line); }

 private:
  /// A line that cannot be written is lost, and training goes on.
  void write(std::string_view line) {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    std::array<char, 32> when{};
    (void)::gmtime_r(&now, &parts);
    (void)std::strftime(when.data(), when.size(), "%Y-%m-%dT%H:%M:%SZ ", &parts);
    log_ << when.data() << line << std::endl;
  }

  Progress* shown_;
  const Progress& asked_;
  std::ofstream log_;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
