// served_bodies.hpp — reads bodies as the server's routes do, and judges what comes of it: requests that keep every
// limit, or a refusal that can be sent. Nothing is run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/serve/compare.hpp"
#include "qlora/serve/metrics.hpp"
#include "qlora/serve/openai_request.hpp"
#include "qlora/serve/routes.hpp"
#include "qlora/serve/service.hpp"
#include "qlora/serve/tgi.hpp"
#include "support/served_files.hpp"

namespace test {

/// A session of a model that nobody asks.
class IdleSession final : public qlora::BatchSession {
 public:
  explicit IdleSession(int context) : context_(context) {}
  [[nodiscard]] int context() const override { return context_; }
  [[nodiscard]] qlora::Ticket submit(qlora::Request /*request*/) override { throw std::logic_error("nothing runs"); }
  void cancel(qlora::Ticket /*ticket*/) override {}
  bool step(const std::function<void(const qlora::Progressed&)>& /*sink*/) override { return false; }
  [[nodiscard]] qlora::SchedulerLoad load() const override { return {.slots = 2}; }

 private:
  int context_;
};

class ServedBodies {
 public:
  static constexpr int context = 128;
  static constexpr std::size_t paths = 7;

  ServedBodies()
      : service_(std::make_unique<IdleSession>(context), 1, metrics_),
        model_(served_files(), std::make_shared<qlora::serve::Names>("base", std::vector<std::string>{"tuned"}),
               {.input = 100, .total = context}, service_, metrics_) {}

  /// Whether a body is taken by one of the paths; throws std::logic_error where it must be neither taken nor refused
  /// so.
  bool takes(std::size_t path, std::string_view body) const {
    using namespace qlora::serve;
    try {
      judge(plans(path % paths, body_object(body, model_.most_values())));
      return true;
    } catch (const Refused& error) {
      expect(error.status() >= 400 && error.status() < 500, "the status of a refusal");
      expect(std::string_view(error.what()).size() < 2000, "the length of a refusal");
      for (const char* place : {"/generate", "/v1/completions"}) {
        const qlora::Json sent = qlora::parse_json(error_reply(place, error).body, "a refusal");  // throws Error
        expect(sent.contains("error"), "a refusal without an error");
      }
      return false;
    }
  }

 private:
  static void expect(bool good, const char* what) {
    if (!good) throw std::logic_error(what);
  }
  [[nodiscard]] std::vector<qlora::serve::ReplyPlan> plans(std::size_t path, const qlora::Json& body) const {
    using namespace qlora::serve;
    if (path == 0) return openai_request(body, true, model_).plans;
    if (path == 1) return openai_request(body, false, model_).plans;
    if (path == 2) return compared_plans(body, models_);
    if (path == 3) return tgi_request(body, {}, model_).plans;
    if (path == 4) return tgi_request(body, {.stream = true}, model_).plans;
    if (path == 5) return tgi_request(body, invoked, model_).plans;
    const BodyForm form = form_of(body);
    if (form == BodyForm::tgi) return tgi_request(body, invoked, model_).plans;
    return openai_request(body, form == BodyForm::chat, model_).plans;
  }
  void judge(const std::vector<qlora::serve::ReplyPlan>& plans) const {
    expect(!plans.empty() && plans.size() <= 16, "replies to one body");
    for (const qlora::serve::ReplyPlan& plan : plans) {
      const qlora::Request& request = plan.request;
      const auto vocab = static_cast<std::int32_t>(model_.tokenizer().vocab_size());
      expect(!request.against || (request.logprobs >= 0 && !request.prompt_logprobs), "what has a divergence");
      expect(!request.prompt.empty() && request.prompt.size() <= 100, "the length of a prompt");
      expect(std::all_of(request.prompt.begin(), request.prompt.end(), [&](auto id) { return id >= 0 && id < vocab; }),
             "the ids of a prompt");
      expect(request.max_new_tokens >= 0 && request.max_new_tokens <= context, "the length of a reply");
      expect(static_cast<int>(request.prompt.size()) + request.max_new_tokens <= context, "the length of both");
      expect(request.max_new_tokens > 0 || request.prompt_logprobs, "a request for nothing");
      expect(std::isfinite(request.sampling.temperature) && request.sampling.temperature >= 0.0F, "a temperature");
      expect(request.logprobs >= -1 && request.logprobs <= 20, "log-probabilities");
      expect(request.rules.bias.size() <= 1024, "biases");
      expect(request.among > 0 && request.among <= vocab, "ids that can be drawn");
      expect(request.variant.adapter.empty() || request.variant.adapter == "tuned", "an adapter");
      expect(std::fabs(request.variant.scale) <= 16.0F, "the strength of an adapter");
      for (const std::string& stop : plan.stops) expect(!stop.empty() && stop.size() <= 4000, "a stop string");
      request.check();  // what was read is never refused later
    }
  }

  qlora::serve::Metrics metrics_;
  mutable qlora::serve::Service service_;
  qlora::serve::ServedModel model_;
  qlora::serve::ServedModels models_{{&model_}};
};

/// Bodies that are taken, one for each path and form: what mutations begin with.
inline const std::vector<std::string> good_bodies{
    R"({"model":"tuned@0.5","messages":[{"role":"system","content":"Be brief."},)"
    R"({"role":"user","content":[{"type":"text","text":"Who?"}]}],"max_completion_tokens":9,"logprobs":true,)"
    R"("against":"base",)"
    R"("top_logprobs":3,"stop":["a","b"],"seed":-7,"n":2,"stream":true,"stream_options":{"include_usage":true}})",
    R"({"model":"base","prompt":["The",[1,5,6]],"max_tokens":0,"echo":true,"logprobs":2,"temperature":0.5,)"
    R"("top_p":0.9,"top_k":-1,"min_p":0.1,"logit_bias":{"5":-1.5,"6":100}})",
    R"({"models":["base","tuned","tuned@-1"],"prompt":"The boat","max_tokens":4,"frequency_penalty":-2,)"
    R"("presence_penalty":2,"repetition_penalty":1.5,"kl":true})",
    R"({"inputs":"The boat \u00e9\ud83d\ude00","parameters":{"best_of":2,"temperature":0.5,"top_k":5,)"
    R"("top_p":0.5,"max_new_tokens":20,"details":true,"truncate":3}})",
    R"({"inputs":"The","parameters":{"adapter_id":"tuned","stop":"x","seed":9223372036854775807,)"
    R"("top_n_tokens":5,"do_sample":true}})",
    R"({"inputs":"<s>The","stream":false,"parameters":{"return_full_text":false,)"
    R"("decoder_input_details":true,"repetition_penalty":1e-3}})",
    R"({"prompt":[1,2,3],"max_tokens":16,"suffix":"","best_of":1,"response_format":{"type":"text"}})"};

}  // namespace test
