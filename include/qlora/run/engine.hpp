// qlora/run/engine.hpp — a model directory opened to be asked: code for its shape, the frozen base on the device that
// was asked for, its tokenizer, and adapters by name.
//   run::Engine engine("models/tiny-chat", {.adapters = {{"tuned", "out/adapter"}}});
//   engine.use("tuned");
//   std::cout << engine.ask({{.chat = true, .prompt = "Who makes it?"}}, {})[0].text;
// A program with several threads gives each a session of its own: run::EngineSession mine = engine.open_session();
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/run/adapter.hpp"
#include "qlora/run/model_files.hpp"
#include "qlora/run/options.hpp"
#include "qlora/run/progress.hpp"
#include "qlora/run/questions.hpp"
#include "qlora/run/registry.hpp"
#include "qlora/run/steps.hpp"
#include "qlora/text/chat_template.hpp"
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
  ChatChoice chat{};                     ///< the form of conversations, if not the model's own
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

/// Asks a model with one adapter or none. Used by one thread at a time; sessions of one engine run side by side, and
/// keep what they need of it.
class EngineSession {
 public:
  /// A session of a loaded model, with the files that it was loaded from. `threads`: for what the host computes of
  /// logits; 0: one per core.
  EngineSession(std::shared_ptr<const ModelFiles> files, std::unique_ptr<Session> session, int threads = 0)
      : files_(std::move(files)), session_(std::move(session)), threads_(threads) {}

  /// Which adapter answers from now on, and how strongly; empty: the base. Throws Error (usage) for an unknown name, or
  /// a scale that is not finite.
  void use(std::string_view name, float scale = 1.0F) {
    session_->use(name, scale);
    adapter_ = name;
  }
  /// The name that use() was last given.
  [[nodiscard]] const std::string& adapter() const { return adapter_; }
  /// The open model, for token ids in and out.
  [[nodiscard]] Session& session() { return *session_; }

  /// Answers to all questions, chats and completions, in their order. A single chat continues from the cache of the one
  /// before it, as far as they begin alike. `on_token` gets the number of a question among
  /// those of its form. When `progress` asks to stop: throws Error (interrupted), or with `keep_at_stop` gives what
  /// there is, of which only the replies that say `stopped` are whole.
  [[nodiscard]] std::vector<Reply> ask(const std::vector<Question>& questions, const Sampling& sampling,
                                       const Progress& progress = Progress(), const OnToken& on_token = {},
                                       bool keep_at_stop = false) {
    GenerateOptions options = generation(sampling);
    std::vector<Reply> replies(questions.size());
    for (const bool chat : {false, true}) {
      std::vector<std::size_t> which;
      std::vector<std::vector<std::int32_t>> prompts;
      for (std::size_t i = 0; i < questions.size(); ++i) {
        const Question& question = questions[i];
        if (question.chat != chat) continue;
        which.push_back(i);
        prompts.push_back(
            eval::question_tokens(files_->tokenizer, files_->chat, chat, question.prompt, question.history));
      }
      if (prompts.empty()) continue;
      options.stop_ids = eval::stop_tokens(files_->tokenizer, files_->chat, chat, files_->model.eos_token_ids);
      options.among = files_->tokenizer.vocab_size();
      const OnToken each = [&](int prompt, std::int32_t id) {
        return !progress.stop_requested() && (!on_token || on_token(prompt, id));
      };
      std::vector<Generated> generated;
      if (chat && questions.size() == 1) {
        generated.push_back(session_->go_on(prompts[0], options, each));
      } else {
        generated = session_->generate(prompts, options, each);
      }
      if (!keep_at_stop && progress.stop_requested()) {
        throw Error("interrupted while answering; ask again", ErrorKind::interrupted);
      }
      for (std::size_t i = 0; i < which.size(); ++i) {
        replies[which[i]] = eval::reply_of(files_->tokenizer, files_->chat, chat, generated[i]);
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
    return eval::measure(*session_, files_->tokenizer, items,
                         {.max_new_tokens = max_new_tokens,
                          .ends = files_->model.eos_token_ids,
                          .chat = files_->chat,
                          .threads = threads_},
                         record, against, on_measured);
  }

 private:
  std::shared_ptr<const ModelFiles> files_;
  std::unique_ptr<Session> session_;
  std::string adapter_;
  int threads_;
};

/// A model that is open. attach() and open_session() may be called by any number of threads at once; the others are the
/// engine's first session, for one thread at a time.
class Engine {
 public:
  /// Throws Error: (input) for a directory or an adapter that cannot be used, (resource) for too little memory or a GPU
  /// that is not there, (usage) for options that do not go together or code that the program lacks.
  explicit Engine(const std::filesystem::path& dir, const EngineOptions& options = {})
      : files_(
            std::make_shared<const ModelFiles>(open_files(dir, verify_of(options.device), options.chat.chat_template))),
        any_base_(options.any_base),
        verify_(verify_of(options.device)),
        threads_(options.device.threads) {
    const hf::ModelDir& model = files_->model;
    const Tokenizer& tokenizer = files_->tokenizer;
    if (tokenizer.vocab_size() > model.shape.vocab) {
      throw Error(concat(dir.string(), ": the tokenizer has ", tokenizer.vocab_size(), " pieces, the model ",
                         model.shape.vocab));
    }
    if (options.base == BaseWeights::full && !options.adapters.empty()) {
      throw Error("an adapter needs the 4-bit model; leave --base out, or merge first", ErrorKind::usage);
    }
    std::vector<std::pair<std::string, PeftAdapter>> adapters;
    Lora capacity = options.base == BaseWeights::full ? no_adapters : options.capacity;
    for (const NamedAdapter& named : options.adapters) {
      adapters.emplace_back(named.name, open_adapter(named.dir, model, any_base_, verify_));
      capacity = room_for(capacity, adapters.back().second);
    }
    const Selection selected = select_code(model.shape, capacity, options.device);
    loaded_ = selected.code->open(model, options.base, capacity, selected.device);
    for (const auto& [name, adapter] : adapters) attach(name, adapter);
    first_.emplace(open_session());
  }

  /// A session that applies no adapter yet, with `threads` threads of its own; 0: as many as the engine was given.
  /// Throws Error (usage) for threads on a GPU.
  [[nodiscard]] EngineSession open_session(int threads = 0) const {
    return {files_, loaded_->open_session(threads), threads > 0 ? threads : threads_};
  }

  /// What runs many requests side by side, as LoadedModel::open_batch makes it.
  [[nodiscard]] std::unique_ptr<BatchSession> open_batch(const DecodeLimits& limits,
                                                         std::int64_t cache_bytes = 0) const {
    return loaded_->open_batch(limits, cache_bytes);
  }
  /// What was read of the directory beside its weights.
  [[nodiscard]] std::shared_ptr<const ModelFiles> files() const { return files_; }

  /// Holds the adapter of a directory under a name. Throws Error as open_adapter and LoadedModel::attach do.
  void attach(const std::string& name, const std::filesystem::path& dir) {
    attach(name, open_adapter(dir, files_->model, any_base_, verify_));
  }
  /// Forgets a name; sessions keep an adapter that they use, but the first one goes back to the base. Throws Error
  /// (usage) for an unknown name.
  void detach(const std::string& name) {
    loaded_->detach(name);
    if (first_->adapter() == name) first_->use("");
  }

  /// The model directory that is open.
  [[nodiscard]] const hf::ModelDir& model() const { return files_->model; }
  /// The model's tokenizer.
  [[nodiscard]] const Tokenizer& tokenizer() const { return files_->tokenizer; }
  /// How the model's conversations are written.
  [[nodiscard]] const ChatTemplate& chat_template() const { return files_->chat; }

  /// EngineSession::use of the first session.
  void use(std::string_view name, float scale = 1.0F) { first_->use(name, scale); }
  /// The open model, for token ids in and out.
  [[nodiscard]] Session& session() { return first_->session(); }
  /// EngineSession::ask of the first session.
  [[nodiscard]] std::vector<Reply> ask(const std::vector<Question>& questions, const Sampling& sampling,
                                       const Progress& progress = Progress(), const OnToken& on_token = {},
                                       bool keep_at_stop = false) {
    return first_->ask(questions, sampling, progress, on_token, keep_at_stop);
  }
  /// EngineSession::measure of the first session.
  [[nodiscard]] eval::ItemResults measure(std::span<const eval::Item> items, int max_new_tokens,
                                          eval::TextReference* record = nullptr,
                                          const eval::TextReference* against = nullptr,
                                          const eval::OnMeasured& on_measured = {}) {
    return first_->measure(items, max_new_tokens, record, against, on_measured);
  }

 private:
  void attach(const std::string& name, const PeftAdapter& adapter) {
    if (!any_base_) expect_base_checksum(adapter, files_->model.checksum());  // known since the weights were read
    loaded_->attach(name, adapter);
  }

  std::shared_ptr<const ModelFiles> files_;
  bool any_base_;
  Verify verify_;
  int threads_;
  std::unique_ptr<LoadedModel> loaded_;
  std::optional<EngineSession> first_;
};

}  // namespace run
}  // namespace v0
}  // namespace qlora
