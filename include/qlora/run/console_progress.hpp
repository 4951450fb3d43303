// qlora/run/console_progress.hpp — a progress display on a stream such as stderr, in three styles: a bar on a terminal,
// a plain line every few seconds elsewhere, and JSON events for other programs.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/run/progress.hpp"
#include "qlora/run/units.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// How progress is shown.
enum class ProgressStyle : std::uint8_t {
  bar,    ///< one line that is drawn again and again
  lines,  ///< a line at intervals
  json,   ///< a JSON object a line, at intervals
  none    ///< nothing
};

/// A bar on a terminal, unless CI is set or TERM is dumb; else lines.
inline ProgressStyle style_for(int descriptor) {
  const auto set = [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0';
  };
  const char* terminal = std::getenv("TERM");
  const bool dumb = terminal != nullptr && std::string_view(terminal) == "dumb";
  return isatty(descriptor) != 0 && !set("CI") && !dumb ? ProgressStyle::bar : ProgressStyle::lines;
}

/// Whether the descriptor is a terminal and NO_COLOR is empty or not set.
inline bool color_for(int descriptor) {
  const char* off = std::getenv("NO_COLOR");
  return isatty(descriptor) != 0 && (off == nullptr || *off == '\0');
}

/// Progress as text for a terminal or a log. The stream must live as long as this. Of one thread, as Progress says.
class ConsoleProgress : public Progress {
 public:
  using Seconds = std::function<double()>;  ///< a clock that only goes forward

  /// `color` is for bars. `clock` gives seconds. `line_interval`: seconds between lines.
  explicit ConsoleProgress(std::ostream& out, ProgressStyle style = ProgressStyle::lines, bool color = false,
                           Seconds clock = steady, double line_interval = 5)
      : out_(out),
        style_(style),
        color_(color),
        clock_(std::move(clock)),
        interval_(style == ProgressStyle::bar    ? 0.1
                  : style == ProgressStyle::json ? 1.0
                                                 : line_interval) {}

  void begin(std::string_view task, std::int64_t total, std::string_view unit, std::int64_t done = 0) override {
    task_ = task;
    unit_ = unit;
    total_ = total;
    first_ = done_ = done;
    tokens_ = 0;
    note_.clear();
    started_ = clock_();
    shown_ = started_;
    if (style_ == ProgressStyle::json) event("begin");
    if (style_ == ProgressStyle::lines)
      out_ << task_ << (total_ > 0 ? ": " + count(total_) : std::string()) << std::endl;
  }

  /// Draws at most once every interval of its style.
  void update(std::int64_t done, std::int64_t tokens = 0, std::string_view note = {}) override {
    done_ = done;
    tokens_ = tokens;
    note_ = note;
    const double now = clock_();
    if (now - shown_ < interval_) return;
    shown_ = now;
    show();
  }

  void end(std::string_view summary = {}) override {
    note_ = summary;
    if (style_ == ProgressStyle::json) event("end");
    if (style_ == ProgressStyle::bar) out_ << "\r\033[K";
    if (style_ == ProgressStyle::bar || style_ == ProgressStyle::lines) {
      out_ << task_ << ": " << (summary.empty() ? count(done_) : std::string(summary)) << " in " << duration(elapsed())
           << std::endl;
    }
  }

  void say(std::string_view line) override {
    if (style_ == ProgressStyle::none) return;
    if (style_ == ProgressStyle::json) {
      out_ << nlohmann::ordered_json{{"event", "note"}, {"text", line}}.dump(-1, ' ', false, replace) << std::endl;
      return;
    }
    if (style_ == ProgressStyle::bar) out_ << "\r\033[K";
    out_ << line << std::endl;
  }

  /// Seconds since the task began.
  [[nodiscard]] double elapsed() const { return clock_() - started_; }
  /// Tokens of the task by its seconds; 0 before any time has passed.
  [[nodiscard]] double tokens_per_second() const {
    return elapsed() > 0 ? static_cast<double>(tokens_) / elapsed() : 0;
  }

 private:
  static constexpr auto replace = nlohmann::json::error_handler_t::replace;

  static double steady() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  [[nodiscard]] std::string count(std::int64_t value) const { return std::to_string(value) + " " + unit_; }

  /// Seconds left at the mean speed of this task so far; negative when unknown.
  [[nodiscard]] double remaining() const {
    if (total_ <= 0 || done_ <= first_) return -1;
    return elapsed() / static_cast<double>(done_ - first_) * static_cast<double>(total_ - done_);
  }

  [[nodiscard]] std::string tail() const {
    std::string text;
    if (tokens_ > 0) text += ", " + std::to_string(std::llround(tokens_per_second())) + " tok/s";
    if (remaining() >= 0) text += ", " + duration(remaining()) + " left";
    if (!note_.empty()) text += ", " + note_;
    return text;
  }

  void show() {
    if (style_ == ProgressStyle::none) return;
    if (style_ == ProgressStyle::json) return event("progress");
    const std::string place =
        total_ > 0 ? std::to_string(done_) + "/" + std::to_string(total_) + " " + unit_ : count(done_);
    if (style_ == ProgressStyle::lines) {
      out_ << task_ << ": " << place << tail() << std::endl;
      return;
    }
    std::string bar;
    if (total_ > 0) {
      constexpr std::int64_t width = 24;
      const std::int64_t full = std::min(width, done_ * width / total_);
      bar = std::string("[") + (color_ ? "\033[32m" : "") + std::string(static_cast<std::size_t>(full), '#') +
            (color_ ? "\033[0m" : "") + std::string(static_cast<std::size_t>(width - full), '.') + "] ";
    }
    out_ << '\r' << task_ << ' ' << bar << place << tail() << "\033[K" << std::flush;
  }

  void event(std::string_view kind) {
    nlohmann::ordered_json line{{"event", kind}, {"task", task_}, {"done", done_}, {"unit", unit_}};
    if (total_ > 0) line["total"] = total_;
    line["seconds"] = elapsed();
    if (kind == "progress" && remaining() >= 0) line["eta_seconds"] = remaining();
    if (tokens_ > 0) line["tok_per_s"] = tokens_per_second();
    if (!note_.empty()) line["note"] = note_;
    out_ << line.dump(-1, ' ', false, replace) << std::endl;
  }

  std::ostream& out_;
  ProgressStyle style_;
  bool color_;
  Seconds clock_;
  double interval_;
  std::string task_;
  std::string unit_;
  std::string note_;
  std::int64_t total_ = 0;
  std::int64_t first_ = 0;
  std::int64_t done_ = 0;
  std::int64_t tokens_ = 0;
  double started_ = 0;
  double shown_ = 0;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
