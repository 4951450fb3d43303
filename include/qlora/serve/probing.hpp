// qlora/serve/probing.hpp — questions with known answers, put to the variants that are served: which they are, and what
// one variant replies to one of them, judged as in a study. docs/probes.md has the format and when a reply is right.
//   GET /probes    {"data":[{"probe":0,"kind":"knowledge","form":"chat","prompt":"...","history":[],"expects":["x"]}]}
//   POST /probes   {"probe":0,"model":"tuned"}: {"probe":0,"model":"tuned","text":"...","right":true,"twin":false}
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/io/json.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/generation.hpp"
#include "qlora/serve/http.hpp"
#include "qlora/serve/model.hpp"
#include "qlora/serve/models.hpp"
#include "qlora/serve/openai.hpp"
#include "qlora/serve/openai_request.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// The questions of some items: texts, which are read for their loss, have no reply to judge.
[[nodiscard]] inline std::vector<eval::Item> questions_of(std::vector<eval::Item> items) {
  std::erase_if(items, [](const eval::Item& item) { return item.kind == eval::Kind::text; });
  return items;
}

/// The answer of GET /probes.
[[nodiscard]] inline OrderedJson probe_list(const std::vector<eval::Item>& probes) {
  OrderedJson data = OrderedJson::array();
  for (std::size_t i = 0; i < probes.size(); ++i) {
    const eval::Item& item = probes[i];
    OrderedJson history = OrderedJson::array();
    for (const Message& turn : item.history) history.push_back({{"role", turn.role}, {"content", turn.content}});
    OrderedJson expects = OrderedJson::array();
    if (!item.answer.empty()) expects.push_back(item.answer);
    for (const std::string& phrase : item.accept) expects.push_back(phrase);
    data.push_back({{"probe", i},
                    {"kind", eval::name_of(item.kind)},
                    {"form", item.chat ? "chat" : "completion"},
                    {"prompt", item.prompt},
                    {"history", std::move(history)},
                    {"expects", std::move(expects)}});
  }
  return {{"data", std::move(data)}};
}

/// One variant's reply to one probe.
class ProbeReply final : public Generation {
 public:
  /// The item outlives this. `name`: of the variant, as in the answer.
  ProbeReply(std::shared_ptr<Exchange> exchange, const ServedModel& served, const eval::Item& item, std::size_t probe,
             std::string name)
      : Generation(std::move(exchange), served), item_(item), probe_(probe), name_(std::move(name)) {}

 private:
  void progressed(std::size_t) override {}
  void finished() override {
    const ReplyState& reply = replies().front();
    Generated generated;
    generated.stopped = reply.end == ReplyEnd::stop_token;
    for (const TextToken& token : reply.tokens) generated.ids.push_back(token.drawn.token.id);
    const eval::Reply text = eval::reply_of(model().tokenizer(), model().chat(), item_.chat, generated);
    const eval::Verdict verdict = eval::judge(item_, text);
    exchange().reply({.body = json_body(OrderedJson{{"probe", probe_},
                                                    {"model", name_},
                                                    {"text", text.text},
                                                    {"right", verdict.right},
                                                    {"twin", verdict.twin}})});
  }
  void failed(int status, const std::string& message) override {
    exchange().reply({.status = status, .body = json_body(openai_error(status, message, {}, "generation_failed"))});
  }

  const eval::Item& item_;
  std::size_t probe_;
  std::string name_;
};

/// Answers a body of POST /probes: greedy, as long as eval::measure() lets such replies be. Throws Refused.
inline void ask_probe(std::shared_ptr<Exchange> exchange, const Json& body, const ServedModels& models,
                      const std::vector<eval::Item>& probes) {
  const Fields fields(body, 400);
  const ServedModel& model = models.of_body(body);
  const auto name = fields.text("model");
  const Variant variant = variant_of(name, model);
  const auto probe =
      fields.integer("probe", 0, std::max(static_cast<std::int64_t>(probes.size()) - 1, std::int64_t{0}));
  if (!probe) fields.fail("probe", "is missing");
  if (probes.empty()) throw Refused(404, "this server has no probes; it gets them by --probes FILE", "probe");
  const eval::Item& item = probes[static_cast<std::size_t>(*probe)];
  Request request = model.request(
      eval::question_tokens(model.tokenizer(), model.chat(), item.chat, item.prompt, item.history), item.chat, variant);
  const auto tokens = static_cast<int>(request.prompt.size());
  if (tokens > model.limits().input) {
    fields.fail("probe", concat("has ", tokens, " tokens; a prompt has ", model.limits().input, " at most"));
  }
  std::size_t most = static_cast<std::size_t>(eval::MeasureOptions().max_new_tokens);
  if (eval::asks_value(item.kind)) {
    most = std::max(model.tokenizer().encode(item.answer).size(), model.tokenizer().encode(item.twin).size()) +
           eval::detail::tokens_behind_value;
  }
  request.max_new_tokens = std::min(request.max_new_tokens, static_cast<int>(most));
  std::vector<ReplyPlan> plans;
  plans.push_back({.request = std::move(request), .chat = item.chat});
  std::make_shared<ProbeReply>(std::move(exchange), model, item, static_cast<std::size_t>(*probe),
                               name.value_or(model.names().base()))
      ->start(std::move(plans));
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
