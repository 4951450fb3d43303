// result.hpp — what a verb leaves behind for programs that read: the JSON of `--json FILE`, and whether a requirement
// was missed. Verbs hand over plain structs; result.cpp alone turns them into JSON, so no verb compiles a JSON library
// for that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace qlora {
inline namespace v0 {
namespace run {
struct AcceptResult;
struct Comparison;
struct ExportResult;
struct FetchResult;
struct Job;
struct JobResult;
struct MergeResult;
struct PackResult;
struct PlanResult;
struct PullResult;
struct QuantizeResult;
struct RecallResult;
struct TrainResult;
}  // namespace run
}  // namespace v0
}  // namespace qlora

namespace qlora::program {

struct Result {
  std::string json;    ///< the whole text of the file
  bool unmet = false;  ///< a requirement is not met
};

/// A prompt continued.
struct Continuation {
  std::string prompt;
  std::string text;
  bool stopped = false;  ///< it came to its end
};

struct Turn {
  std::string user;
  std::string assistant;
  bool stopped = false;
};

struct Conversation {
  std::vector<Turn> turns;
};

struct ShownWindow {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> labels;
  std::vector<std::int32_t> documents;
};

/// A packed data set, and its first windows.
struct ShownData {
  std::size_t windows = 0;  ///< of the data set
  int seq = 0;
  std::int64_t tokens = 0;
  std::int64_t labelled = 0;
  std::string fingerprint;
  std::vector<ShownWindow> shown;
};

[[nodiscard]] Result result_of(const run::Comparison& comparison);
[[nodiscard]] Result result_of(const run::FetchResult& result);
[[nodiscard]] Result result_of(const run::Job& job);
[[nodiscard]] Result result_of(const run::JobResult& result);
[[nodiscard]] Result result_of(const run::ExportResult& result);
[[nodiscard]] Result result_of(const run::MergeResult& result);
[[nodiscard]] Result result_of(const run::PackResult& result);
[[nodiscard]] Result result_of(const run::PlanResult& result);
[[nodiscard]] Result result_of(const run::AcceptResult& result);
[[nodiscard]] Result result_of(const run::PullResult& result);
[[nodiscard]] Result result_of(const run::QuantizeResult& result);
[[nodiscard]] Result result_of(const run::RecallResult& result);
[[nodiscard]] Result result_of(const run::TrainResult& result);
[[nodiscard]] Result result_of(const Continuation& continuation);
[[nodiscard]] Result result_of(const Conversation& conversation);
[[nodiscard]] Result result_of(const ShownData& data);
/// Of a verb that has none: an empty object.
[[nodiscard]] Result no_result();

}  // namespace qlora::program
