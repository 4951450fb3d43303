// steps.cpp — the code of all steps but fetch, which needs libraries of its own: qlora/run/prebuilt.hpp. The verbs see
// their declarations, so that each step is compiled once.
#define QLORA_RUN_CODE
#include "steps.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <ostream>
#include <span>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/run/compare.hpp"
#include "qlora/run/comparison_tables.hpp"
#include "qlora/run/container.hpp"
#include "qlora/run/data_files.hpp"
#include "qlora/run/engine.hpp"
#include "qlora/run/export.hpp"
#include "qlora/run/job_json.hpp"
#include "qlora/run/job_run.hpp"
#include "qlora/run/merge.hpp"
#include "qlora/run/pack.hpp"
#include "qlora/run/plan.hpp"
#include "qlora/run/quantize.hpp"
#include "qlora/run/recall.hpp"
#include "qlora/run/registry.hpp"
#include "qlora/run/report.hpp"
#include "qlora/run/settings.hpp"
#include "qlora/run/train.hpp"
#include "qlora/run/training_log.hpp"
#include "qlora/run/turns.hpp"
#include "qlora/text/prompt.hpp"
#include "talk.hpp"

namespace qlora::program {

namespace fs = std::filesystem;

namespace {

run::Reply ask(run::Engine& engine, const run::Question& question, const run::Sampling& sampling, Context& context,
               Speed& speed) {
  using Clock = std::chrono::steady_clock;
  StreamDecoder decoder(engine.tokenizer(), question.chat ? DecodeFrom::start : DecodeFrom::middle);
  std::optional<Clock::time_point> last;
  const run::Reply reply = engine.ask({question}, sampling, context.progress, [&](int, std::int32_t id) {
    const Clock::time_point now = Clock::now();
    ++speed.tokens;
    if (last) {
      ++speed.timed;
      speed.seconds += std::chrono::duration<double>(now - *last).count();
    }
    last = now;
    context.out << decoder.push(id) << std::flush;
    return true;
  })[0];
  context.out << decoder.finish() << '\n';
  return reply;
}

}  // namespace

Talker::Talker(const TalkModel& how, run::Progress& progress) {
  run::EngineOptions options{
      .base = how.weights.base, .any_base = how.any_base, .device = how.device, .chat = how.chat};
  if (!how.adapter.empty()) options.adapters.push_back({"adapter", how.adapter});
  engine_ = std::make_unique<run::Engine>(how.model, options);
  run::say_note(engine_->model(), progress);
  has_adapter_ = !how.adapter.empty();
  if (has_adapter_) engine_->use("adapter");
}

Talker::~Talker() = default;

void Talker::use(bool adapter, float scale) {
  if (adapter && !has_adapter_) throw Error("there is no adapter: start with --adapter DIR");
  engine_->use(adapter ? "adapter" : "", scale);
}

std::vector<std::string> Talker::chat_tags() const { return engine_->chat_template().tags(); }

void Talker::check_chat(const std::vector<Message>& history) const { run::check_system(*engine_, history); }

int Talker::make_room(const std::string& question, std::vector<Message>& history, const run::Sampling& sampling) const {
  return run::make_room(*engine_, question, history, sampling.max_new_tokens);
}

void Talker::say_speed(const Context& context) const {
  std::array<char, 64> rate{};
  if (speed_.seconds > 0) std::snprintf(rate.data(), rate.size(), ", %.1f tokens/s", speed_.timed / speed_.seconds);
  context.progress.say(concat(speed_.tokens, speed_.tokens == 1 ? " token" : " tokens", rate.data()));
}

Continuation Talker::continued(const std::string& text, const run::Sampling& sampling, Context& context) {
  const run::Reply reply = ask(*engine_, {false, text, {}}, sampling, context, speed_);
  return {text, reply.text, reply.stopped};
}

Turn Talker::answered(const std::string& question, const std::vector<Message>& history, const run::Sampling& sampling,
                      Context& context) {
  const run::Reply reply = ask(*engine_, {true, question, history}, sampling, context, speed_);
  return {question, reply.text, reply.stopped};
}

void write_page(const fs::path& file, const run::Comparison& comparison, const PageSettings& settings) {
  std::vector<run::TrainingCurves> trainings;
  const fs::path record = settings.adapter.parent_path() / "metrics.jsonl";
  if (!settings.adapter.empty() && fs::exists(record)) trainings.push_back(run::training_curves("tuned", record));
  run::Settings all{{"model", settings.model.string()},
                    {"adapter", settings.adapter.string()},
                    {"merged", settings.merged.string()},
                    {"full", settings.full.string()}};
  run::add_settings(all, settings.sampling, run::Which::all);
  run::write_report(file, comparison, {}, trainings, run::tables_of({{"settings", run::to_json(all)}}));
}

std::string configs_text() {
  std::string text;
  for (const auto& code : run::registered_code()) {
    const Config& config = code->config();
    text += "\n  ";
    if (!is_dynamic(config.shape)) {
      text += concat(config.shape.layers, " layers of width ", config.shape.dim, ", ");
    }
    if (config.trainable == Trainable::all) {
      text += "all weights";
    } else {
      text += is_dynamic(config.lora.rank) ? std::string("adapters of any rank")
                                           : concat("adapters up to rank ", config.lora.rank);
    }
    text += code->device() == run::Device::cuda ? ", GPU" : ", CPU";
  }
  return text;
}

}  // namespace qlora::program
