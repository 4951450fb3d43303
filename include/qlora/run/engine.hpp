// qlora/run/engine.hpp — a model directory opened to be asked: code for its shape, the frozen base on the device that
// was asked for, its tokenizer, and adapters by name.
//   run::Engine engine("models/tiny-chat", {.adapters = {{"tuned", "out/adapter"}}});
//   engine.use("tuned");
//   std::cout << engine.ask({{.chat = true, .prompt = "Who makes it?"}}, {})[0].text;
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/questions.hpp"
#include "qlora/run/registry.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

using eval::Reply;

/// How a model is opened.
struct EngineOptions {
  BaseWeights base = BaseWeights::nf4;   ///< how the frozen weights are held
  std::vector<NamedAdapter> adapters{};  ///< attached when the model is opened; none is in use then
  bool any_base = false;                 ///< take adapters that were trained on other weights; see open_adapter
  Lora capacity = no_adapters;           ///< of adapters that are attached later, where they are larger than these
  DeviceRequest device{};                ///< where to run
};

/// The options of a program as those of a Generator.
[[nodiscard]] inline GenerateOptions generation(const Sampling& sampling) {
  GenerateOptions options;
  options.max_new_tokens = sampling.max_new_tokens;
  options.sampling = {.temperature = static_cast<float>(sampling.temperature),
                      .top_p = static_cast<float>(sampling.top_p),
                      .top_k = sampling.top_k,
                      .seed = static_cast<std::uint64_t>(sampling.seed)};
  return options;
}

/// Used by one thread at a time.
class Engine {
 public:
  /// Throws Error: (input) for a directory or an adapter that cannot be used, (resource) for too little memory or a GPU
  /// that is not there, (usage) for options that do not go together or code that the program lacks.
  explicit Engine(const std::filesystem::path& dir, const EngineOptions& options = {})
      : model_(hf::ModelDir::open(dir)),
        tokenizer_(Tokenizer::load(dir / "tokenizer.model")),
        any_base_(options.any_base) {
    if (tokenizer_.vocab_size() > model_.shape.vocab) {
      throw Error(concat(dir.string(), ": the tokenizer has ", tokenizer_.vocab_size(), " pieces, the model ",
                         model_.shape.vocab));
    }
    if (options.base == BaseWeights::full && !options.adapters.empty()) {
      throw Error("an adapter goes on the 4-bit model; leave --base out, or merge first", ErrorKind::usage);
    }
    std::vector<std::pair<std::string, PeftAdapter>> adapters;
    Lora capacity = options.base == BaseWeights::full ? no_adapters : options.capacity;
    for (const NamedAdapter& one : options.adapters) {
      adapters.emplace_back(one.name, open_adapter(one.dir, model_, any_base_));
      capacity = room_for(capacity, adapters.back().second);
    }
    const Selection selected = select_code(model_.shape, capacity, options.device);
    session_ = selected.code->open(model_, options.base, capacity, selected.device);
    for (auto& [name, adapter] : adapters) session_->attach(name, std::move(adapter));
  }

  /// Holds the adapter of a directory under a name. Throws Error as open_adapter and Session::attach do.
  void attach(const std::string& name, const std::filesystem::path& dir) {
    session_->attach(name, open_adapter(dir, model_, any_base_));
  }
  /// Lets an adapter go; its place may be used again. Throws Error (usage) for an unknown name.
  void detach(const std::string& name) { session_->detach(name); }
  /// Which adapter answers from now on; empty: the base. Throws Error (usage) for an unknown name.
  void use(std::string_view name) { session_->use(name); }

  /// The model directory that is open.
  [[nodiscard]] const hf::ModelDir& model() const { return model_; }
  /// The model's tokenizer.
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }
  /// The open model, for token ids in and out.
  [[nodiscard]] Session& session() { return *session_; }

  /// Answers to all questions, chats and completions, in their order. `on_token` gets the number of a question among
  /// those of its form. Throws Error (interrupted) when `progress` asks to stop.
  [[nodiscard]] std::vector<Reply> ask(const std::vector<Question>& questions, const Sampling& sampling,
                                       const Progress& progress = Progress(), const OnToken& on_token = {}) {
    GenerateOptions options = generation(sampling);
    std::vector<Reply> replies(questions.size());
    for (const bool chat : {false, true}) {
      std::vector<std::size_t> which;
      std::vector<std::vector<std::int32_t>> prompts;
      for (std::size_t i = 0; i < questions.size(); ++i) {
        const Question& question = questions[i];
        if (question.chat != chat) continue;
        which.push_back(i);
        prompts.push_back(eval::question_tokens(tokenizer_, chat, question.prompt, question.history));
      }
      if (prompts.empty()) continue;
      options.stop_ids = eval::stop_tokens(tokenizer_, chat, model_.eos_token_ids);
      const auto generated = session_->generate(prompts, options, [&](int prompt, std::int32_t id) {
        return !progress.stop_requested() && (!on_token || on_token(prompt, id));
      });
      if (progress.stop_requested()) {
        throw Error("interrupted while answering; ask again", ErrorKind::interrupted);
      }
      for (std::size_t i = 0; i < which.size(); ++i) {
        replies[which[i]] = eval::reply_of(tokenizer_, chat, generated[i]);
      }
    }
    return replies;
  }

  /// The results of probes, item by item; see eval::measure for `record` and `against`. Throws Error (interrupted) when
  /// `on_measured` returns false.
  [[nodiscard]] eval::ItemResults measure(std::span<const eval::Item> items, int max_new_tokens,
                                          eval::TextReference* record = nullptr,
                                          const eval::TextReference* against = nullptr,
                                          const eval::OnMeasured& on_measured = {}) {
    return eval::measure(*session_, tokenizer_, items, {.max_new_tokens = max_new_tokens, .ends = model_.eos_token_ids},
                         record, against, on_measured);
  }

 private:
  hf::ModelDir model_;
  Tokenizer tokenizer_;
  bool any_base_;
  std::unique_ptr<Session> session_;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
