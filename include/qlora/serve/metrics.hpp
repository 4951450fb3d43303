// qlora/serve/metrics.hpp — what a server counts, as the text that Prometheus reads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "qlora/error.hpp"
#include "qlora/generate/request.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Seconds, by size.
class Histogram {
 public:
  /// The upper ends of its parts; the last part has none.
  static constexpr std::array<double, 12> ends{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0};

  /// Counts a value.
  void add(double seconds) {
    std::size_t part = 0;
    while (part < ends.size() && seconds > ends[part]) ++part;
    ++counts_[part];
    sum_ += seconds;
  }
  /// In Prometheus' text form, under a name.
  [[nodiscard]] std::string text(std::string_view name, std::string_view help) const {
    std::string out = concat("# HELP ", name, " ", help, "\n# TYPE ", name, " histogram\n");
    std::uint64_t so_far = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      so_far += counts_[i];
      const std::string end = i < ends.size() ? concat(ends[i]) : "+Inf";
      out += concat(name, "_bucket{le=\"", end, "\"} ", so_far, "\n");
    }
    return out + concat(name, "_sum ", sum_, "\n", name, "_count ", so_far, "\n");
  }

 private:
  std::array<std::uint64_t, ends.size() + 1> counts_{};
  double sum_ = 0.0;
};

/// Counters of a server. Any thread may use them.
class Metrics {
 public:
  /// A request of HTTP was answered.
  void answered(std::string_view route, int status) {
    const std::lock_guard lock(mutex_);
    ++answers_[{std::string(route), status}];
  }
  /// A request began to run: tokens of its prompt, and how many of them the cache held.
  void began(std::int64_t prompt, std::int64_t cached, double seconds_to_first_token) {
    const std::lock_guard lock(mutex_);
    prompt_ += prompt;
    cached_ += cached;
    first_.add(seconds_to_first_token);
  }
  /// Tokens were drawn for a request, so long after the ones before.
  void drew(std::int64_t tokens, double seconds, bool first) {
    const std::lock_guard lock(mutex_);
    drawn_ += tokens;
    if (!first && tokens > 0) between_.add(seconds / static_cast<double>(tokens));
  }
  /// A request is over: "stop", "length", "cancelled" or "failed".
  void ended(std::string_view how, double seconds) {
    const std::lock_guard lock(mutex_);
    ++ends_[std::string(how)];
    whole_.add(seconds);
  }
  /// A request found no room.
  void refused() {
    const std::lock_guard lock(mutex_);
    ++refused_;
  }

  /// All of them, with what runs now.
  [[nodiscard]] std::string text(const SchedulerLoad& load, int queued, int connections) const {
    const std::lock_guard lock(mutex_);
    std::string out =
        "# HELP qlora_http_requests_total Answers by route and status\n"
        "# TYPE qlora_http_requests_total counter\n";
    for (const auto& [key, count] : answers_) {
      out += concat("qlora_http_requests_total{route=\"", key.first, "\",status=\"", key.second, "\"} ", count, "\n");
    }
    out += "# HELP qlora_requests_total Generations by their end\n# TYPE qlora_requests_total counter\n";
    for (const auto& [how, count] : ends_) out += concat("qlora_requests_total{end=\"", how, "\"} ", count, "\n");
    const auto one_value = [&](std::string_view name, std::string_view type, std::string_view help, const auto& value) {
      out += concat("# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n", name, " ", value, "\n");
    };
    one_value("qlora_requests_refused_total", "counter", "Requests that found the queue full", refused_);
    one_value("qlora_prompt_tokens_total", "counter", "Tokens of prompts", prompt_);
    one_value("qlora_prompt_tokens_cached_total", "counter", "Tokens of prompts that the cache had", cached_);
    one_value("qlora_generated_tokens_total", "counter", "Tokens that were drawn", drawn_);
    one_value("qlora_running", "gauge", "Requests in the batch", load.running);
    one_value("qlora_waiting", "gauge", "Requests that wait for a slot", load.waiting + queued);
    one_value("qlora_slots", "gauge", "Requests that can run at once", load.slots);
    one_value("qlora_cache_tokens", "gauge", "Tokens whose keys and values are held for running requests",
              load.cached_tokens);
    one_value("qlora_cache_tokens_max", "gauge", "Tokens that there is room for", load.most_tokens);
    one_value("qlora_connections", "gauge", "Open connections", connections);
    out += first_.text("qlora_time_to_first_token_seconds", "From a request to its first token");
    out += between_.text("qlora_time_per_token_seconds", "From one token to the next");
    out += whole_.text("qlora_request_seconds", "From a request to its end");
    return out;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::uint64_t> answers_;
  std::map<std::string, std::uint64_t> ends_;
  std::uint64_t refused_ = 0;
  std::int64_t prompt_ = 0, cached_ = 0, drawn_ = 0;
  Histogram first_, between_, whole_;
};

}  // namespace serve
}  // namespace v0
}  // namespace qlora
