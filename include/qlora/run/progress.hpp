// qlora/run/progress.hpp — how long-running functions report progress and learn that they are to stop.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace qlora {
inline namespace v0 {
namespace run {

/// The receiver of progress reports. This base class is silent and never asks to stop; a program derives a display from
/// it.
/// All calls come from the thread that called the library function, except stop_requested(), which any thread may call.
class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  virtual ~Progress() = default;

  /// Starts a task of `total` units (0: unknown), of which `done` are done already, as in a resumed run.
  virtual void begin(std::string_view task, std::int64_t total, std::string_view unit, std::int64_t done = 0);
  /// May be called at any rate. `tokens` counts those processed since begin; `note` is a few words, such as the loss.
  virtual void update(std::int64_t done, std::int64_t tokens = 0, std::string_view note = {});
  /// The task is complete.
  virtual void end(std::string_view summary = {});
  /// One line of text, between or inside tasks.
  virtual void say(std::string_view line);
  /// What was written so far can be gone on with from here: a checkpoint is durable, or a step of a job is done.
  /// Nothing is written until this returns.
  virtual void saved() {}
  /// Whether the caller wants the function to save its state and leave with Error (ErrorKind::interrupted).
  [[nodiscard]] virtual bool stop_requested() const { return false; }
};

inline void Progress::begin(std::string_view, std::int64_t, std::string_view, std::int64_t) {}
inline void Progress::update(std::int64_t, std::int64_t, std::string_view) {}
inline void Progress::end(std::string_view) {}
inline void Progress::say(std::string_view) {}

}  // namespace run
}  // namespace v0
}  // namespace qlora
