// result.cpp — result.hpp by means of the library's JSON.
#include "result.hpp"

#include <algorithm>
#include <utility>

#include "qlora/run/job_json.hpp"
#include "qlora/run/json.hpp"

namespace qlora::program {
namespace {

using run::OrderedJson;

Result as_file(const OrderedJson& json) { return {run::file_text(json)}; }

bool any_unmet(const run::Comparison& comparison) {
  if (!comparison.requirements) return false;
  return std::any_of(comparison.requirements->begin(), comparison.requirements->end(),
                     [](const eval::RequirementResult& result) { return !result.met; });
}

}  // namespace

Result result_of(const run::Comparison& comparison) {
  return {run::file_text(run::to_json(comparison)), any_unmet(comparison)};
}
Result result_of(const run::JobResult& result) {
  return {run::file_text(run::to_json(result)), any_unmet(result.comparison)};
}
Result result_of(const run::FetchResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::Job& job) { return as_file(run::to_json(job)); }
Result result_of(const run::ExportResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::MergeResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::PackResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::PlanResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::AcceptResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::PullResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::QuantizeResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::RecallResult& result) { return as_file(run::to_json(result)); }
Result result_of(const run::TrainResult& result) { return as_file(run::to_json(result)); }

Result result_of(const Continuation& continuation) {
  return as_file({{"prompt", continuation.prompt}, {"text", continuation.text}, {"stopped", continuation.stopped}});
}

Result result_of(const Conversation& conversation) {
  OrderedJson turns = OrderedJson::array();
  for (const Turn& turn : conversation.turns) {
    turns.push_back({{"user", turn.user}, {"assistant", turn.assistant}, {"stopped", turn.stopped}});
  }
  OrderedJson json = OrderedJson::object();
  json["turns"] = std::move(turns);
  return as_file(json);
}

Result result_of(const ShownData& data) {
  OrderedJson windows = OrderedJson::array();
  for (const ShownWindow& window : data.shown) {
    windows.push_back({{"ids", window.ids}, {"labels", window.labels}, {"documents", window.documents}});
  }
  return as_file({{"windows", data.windows},
                  {"seq", data.seq},
                  {"tokens", data.tokens},
                  {"labelled", data.labelled},
                  {"fingerprint", data.fingerprint},
                  {"shown", windows}});
}

Result no_result() { return as_file(OrderedJson::object()); }

}  // namespace qlora::program
