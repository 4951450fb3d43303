// qlora/generate/generator.hpp — Generator<C, B>: continues prompts; for chat configs also answers conversations.
// Many prompts run side by side in a fixed number of slots; a prompt that ends makes room for the next one.
#pragma once

#include <algorithm>
#include <bit>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/generate/decoder.hpp"
#include "qlora/generate/sampler.hpp"
#include "qlora/model/model.hpp"

namespace qlora {
inline namespace v0 {

/// How continuations are made.
struct GenerateOptions {
  int max_new_tokens = 200;               ///< 0 or more; a reply also ends where the context is full
  Sampling sampling{};                    ///< how each token is drawn
  std::vector<std::int32_t> stop_ids{2};  ///< generation ends before these; LLaMA-2's end mark
  /// Only ids below it are drawn: the tokenizer's size, where the model has more rows for padding; 0: all.
  int among = 0;

  /// Throws Error (usage) for a value outside its range.
  void check() const {
    detail::expect_option(max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "0 or more");
    detail::expect_option(among >= 0, "among", among, "0 (all) or more");
    sampling.check();
  }
};

/// A continuation, without the prompt and without the stop token.
struct Generated {
  std::vector<std::int32_t> ids;  ///< one for each new token
  bool stopped = false;           ///< by a stop token, not by length
};

/// Called for each new token: the number of its prompt, and the id. Returning false ends all generation.
using OnToken = std::function<bool(int prompt, std::int32_t id)>;

/// Continuations of many prompts at once, for one Code. See Generator.
template <Code K, class B>
class GeneratorCore {
 public:
  /// With the stated room. The context outlives the core.
  GeneratorCore(Context<K, B>& context, const DecodeLimits& stated) : context_(context), room_(context, stated) {}
  /// With as much room as calls need.
  explicit GeneratorCore(Context<K, B>& context) : context_(context), room_(context) {}

  /// Continuations of all prompts, in their order. Throws as Generator::generate does. `on_token` may be empty.
  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
                                  const OnToken& on_token) {
    options.check();
    const auto entry = context_.enter();
    kept_ = {};
    if (prompts.empty()) return {};
    std::size_t longest = 0;
    std::int64_t tokens = 0;
    for (const auto& prompt : prompts) {
      longest = std::max(longest, prompt.size());
      tokens += static_cast<std::int64_t>(prompt.size());
    }
    decoder_ = &room_.of(prompts.size(), static_cast<std::int64_t>(longest) + options.max_new_tokens, tokens, 1, false);
    return run(prompts, options, on_token, 0);
  }

  /// One continuation, from what the cache still holds of the prompt's beginning.
  Generated go_on(const std::vector<std::int32_t>& prompt, const GenerateOptions& options, const OnToken& on_token) {
    options.check();
    const auto entry = context_.enter();
    const Kept kept = std::exchange(kept_, {});  // an error below leaves nothing
    const auto tokens = static_cast<std::int64_t>(prompt.size());
    // A chat grows: room for twice as much is made anew seldom.
    const auto room = std::bit_ceil(static_cast<std::uint64_t>(tokens + options.max_new_tokens));
    decoder_ = &room_.of(1, static_cast<std::int64_t>(room), DecoderRoom<K, B>::most_step_tokens, 1, false);
    cached_ = 0;
    if (kept.version == context_.version() && kept.made == room_.made()) {
      // The last token is read again: its logits are needed.
      const std::size_t most = std::min(kept.ids.size() + 1, prompt.size());
      while (static_cast<std::size_t>(cached_) + 1 < most &&
             kept.ids[static_cast<std::size_t>(cached_)] == prompt[static_cast<std::size_t>(cached_)]) {
        ++cached_;
      }
    }
    std::vector<Generated> results =
        run(std::span<const std::vector<std::int32_t>>(&prompt, 1), options, on_token, cached_);
    kept_ = {context_.version(), room_.made(), prompt};
    kept_.ids.insert(kept_.ids.end(), results[0].ids.begin(), results[0].ids.end());
    kept_.ids.resize(static_cast<std::size_t>(decoder_->length(0)));  // the newest may not be in it
    return std::move(results[0]);
  }
  /// Tokens of the last go_on()'s prompt that the cache held.
  [[nodiscard]] int cached() const { return cached_; }

  /// Bytes of backend memory that its room takes now.
  [[nodiscard]] std::int64_t bytes_used() const { return room_.bytes_used(); }

 private:
  /// What slot 0, which the first prompt takes, holds.
  struct Kept {
    typename Context<K, B>::Version version{};
    int made = -1;
    std::vector<std::int32_t> ids{};
  };

  /// Slot 0 keeps `cached` tokens, which the first prompt begins with.
  std::vector<Generated> run(std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
                             const OnToken& on_token, int cached) {
    const DecodeLimits& limits = decoder_->limits();
    for (const auto& prompt : prompts) {
      QLORA_EXPECTS(!prompt.empty() && static_cast<int>(prompt.size()) <= limits.length, "a prompt of ", prompt.size(),
                    " tokens; the context holds 1 to ", limits.length);
    }
    std::vector<Generated> results(prompts.size());
    std::vector<Work> active;
    std::vector<int> free;
    for (int slot = limits.sequences - 1; slot >= 0; --slot) free.push_back(slot);
    std::size_t next = 0;
    bool running = true;
    while (running && (next < prompts.size() || !active.empty())) {
      while (!free.empty() && next < prompts.size()) {
        const int held = next == 0 ? cached : 0;
        decoder_->truncate(free.back(), held);
        const std::span<const std::int32_t> pending(prompts[next].data() + held,
                                                    prompts[next].size() - static_cast<std::size_t>(held));
        active.push_back({static_cast<int>(next), free.back(), 0, pending});
        free.pop_back();
        ++next;
      }
      running = advance(active, results, options, on_token);
      std::erase_if(active, [&](const Work& work) {
        if (!work.done) return false;
        free.push_back(work.slot);
        return true;
      });
    }
    return results;
  }

  struct Work {
    int prompt = 0;
    int slot = 0;
    std::int32_t newest = 0;
    std::span<const std::int32_t> pending;  // ids not yet given to the decoder
    bool done = false;
  };
  using Addition = typename Decoder<K, B>::Addition;

  /// One decoder step: every active sequence gets its next ids, long prompts in pieces.
  bool advance(std::vector<Work>& active, std::vector<Generated>& results, const GenerateOptions& options,
               const OnToken& on_token) {
    const int most = decoder_->limits().step_tokens;
    int left = most - static_cast<int>(active.size());  // one token for each is always there
    additions_.clear();
    for (Work& work : active) {
      const int count = std::min(static_cast<int>(work.pending.size()), 1 + left);
      left -= count - 1;
      additions_.push_back({work.slot, work.pending.first(static_cast<std::size_t>(count))});
      work.pending = work.pending.subspan(static_cast<std::size_t>(count));
    }
    const int among = options.among > 0 ? std::min(options.among, decoder_->vocab()) : decoder_->vocab();
    std::span<const std::int32_t> picked;
    if (options.sampling.temperature == 0.0F) {
      picked = decoder_->extend_greedy(additions_, among);
    } else {
      draws_.clear();
      for (const Work& work : active) {
        const auto position = results[static_cast<std::size_t>(work.prompt)].ids.size();
        draws_.push_back(draw_row(options.sampling, among, static_cast<std::uint32_t>(work.prompt),
                                  static_cast<std::uint32_t>(position)));
      }
      picked = decoder_->extend_drawn(additions_, draws_);
    }
    bool running = true;
    for (std::size_t i = 0; i < active.size(); ++i) {
      Work& work = active[i];
      if (!work.pending.empty()) continue;
      Generated& result = results[static_cast<std::size_t>(work.prompt)];
      if (static_cast<int>(result.ids.size()) >= options.max_new_tokens) {
        work.done = true;
        continue;
      }
      work.newest = picked[i];
      if (std::find(options.stop_ids.begin(), options.stop_ids.end(), work.newest) != options.stop_ids.end()) {
        result.stopped = true;
        work.done = true;
        continue;
      }
      result.ids.push_back(work.newest);
      if (on_token && !on_token(work.prompt, work.newest)) running = false;
      work.pending = std::span<const std::int32_t>(&result.ids.back(), 1);
      work.done = static_cast<int>(result.ids.size()) >= options.max_new_tokens ||
                  decoder_->length(work.slot) >= decoder_->limits().length;
    }
    return running;
  }

  Context<K, B>& context_;
  DecoderRoom<K, B> room_;
  Decoder<K, B>* decoder_ = nullptr;  // of the call that runs
  Kept kept_;
  int cached_ = 0;
  std::vector<Addition> additions_;
  std::vector<DrawRow> draws_;
};

/// Continues text with a model. Used by one thread at a time; many of them, each with a context of its own, run at once
/// on one model.
template <Config C, class B>
requires RunsOn<C, B>
class Generator {
 public:
  /// In a new context of the model, which context() gives. The room follows the calls (DecoderRoom).
  explicit Generator(const Model<C, B>& model);
  /// With stated room, taken now, in a new context; sequences end where it does.
  Generator(const Model<C, B>& model, const DecodeLimits& limits);
  /// In a context of the model that outlives the generator.
  explicit Generator(Context<code_of(C), B>& context);
  /// With stated room, in such a context.
  Generator(Context<code_of(C), B>& context, const DecodeLimits& limits);

  /// Which adapters it applies, and how strongly: generator.context().use("legal", 0.5F).
  [[nodiscard]] Context<code_of(C), B>& context() { return *context_; }
  /// Bytes of backend memory that its room takes now; decode_bytes() of what was stated, or of what calls have needed.
  [[nodiscard]] std::int64_t bytes_used() const { return core_->bytes_used(); }

  /// Continuations of all prompts, in their order. Throws Error when a prompt is empty or longer than the context, and
  /// (usage) when an option is outside its range.
  std::vector<Generated> generate(std::span<const std::vector<std::int32_t>> prompts,
                                  const GenerateOptions& options = {}, const OnToken& on_token = {});
  /// The continuation of one prompt.
  Generated generate(const std::vector<std::int32_t>& prompt, const GenerateOptions& options = {},
                     const OnToken& on_token = {}) {
    return generate(std::span<const std::vector<std::int32_t>>(&prompt, 1), options, on_token)[0];
  }

  /// One continuation that computes only what the cache does not hold of the prompt: where it begins with the prompt
  /// and answer of the last go_on(), those are not read again. Adapters that are changed or chosen in between, and
  /// generate(), empty the cache. Throws Error as generate() does.
  Generated go_on(const std::vector<std::int32_t>& prompt, const GenerateOptions& options = {},
                  const OnToken& on_token = {});
  /// Tokens of the last go_on()'s prompt that the cache held.
  [[nodiscard]] int cached() const { return core_->cached(); }

  /// The assistant's next turn, in LLaMA-2's chat form; it ends with the end mark, or where the model would open a turn
  /// of the user itself. Turns that the last call saw are not read again (go_on). Messages and
  /// tokenizer are those of qlora/text; only chat configs have this.
  template <class Tokenizer, class Messages>
  std::string chat(const Tokenizer& tokenizer, const Messages& messages, GenerateOptions options = {},
                   const OnToken& on_token = {}) requires(C.form == Form::chat) {
    options.stop_ids = {tokenizer.eos(), tokenizer.bos()};
    options.among = tokenizer.vocab_size();
    return answer_of(tokenizer, chat_tokens(tokenizer, messages), "[INST]", options, on_token);
  }
  /// The same in another form, a ChatTemplate of qlora/text.
  template <class Tokenizer, class Template, class Messages>
  std::string chat(const Tokenizer& tokenizer, const Template& form, const Messages& messages,
                   GenerateOptions options = {},
                   const OnToken& on_token = {}) requires(C.form == Form::chat && requires { form.stops(); }) {
    const auto stops = form.stops();
    options.stop_ids = {tokenizer.eos()};
    options.among = tokenizer.vocab_size();
    for (const std::string& mark : stops.marks) {
      if (const std::int32_t id = tokenizer.id_of(mark); id >= 0) options.stop_ids.push_back(id);
    }
    return answer_of(tokenizer, chat_tokens(tokenizer, form, messages), stops.turn, options, on_token);
  }

 private:
  template <class Tokenizer>
  std::string answer_of(const Tokenizer& tokenizer, const std::vector<std::int32_t>& prompt, std::string_view turn,
                        const GenerateOptions& options, const OnToken& on_token) {
    std::string answer = tokenizer.decode(go_on(prompt, options, on_token).ids);
    if (!turn.empty()) answer.erase(std::min(answer.find(turn), answer.size()));
    const auto first = answer.find_first_not_of(" \n");
    const auto last = answer.find_last_not_of(" \n");
    return first == std::string::npos ? std::string() : answer.substr(first, last - first + 1);
  }

  std::unique_ptr<Context<code_of(C), B>> made_;  // null: the context is another's
  Context<code_of(C), B>* context_;
  std::unique_ptr<GeneratorCore<code_of(C), B>> core_;
};

// Outside the class, and so not inline: see Model.
template <Config C, class B>
requires RunsOn<C, B> Generator<C, B>::Generator(const Model<C, B>& model)
    : made_(model.make_context()),
      context_(made_.get()),
      core_(std::make_unique<GeneratorCore<code_of(C), B>>(*context_)) {}

template <Config C, class B>
requires RunsOn<C, B> Generator<C, B>::Generator(Context<code_of(C), B>& context)
    : context_(&context), core_(std::make_unique<GeneratorCore<code_of(C), B>>(context)) {}

template <Config C, class B>
requires RunsOn<C, B> Generator<C, B>::Generator(const Model<C, B>& model, const DecodeLimits& limits)
    : made_(model.make_context()),
      context_(made_.get()),
      core_(std::make_unique<GeneratorCore<code_of(C), B>>(*context_, limits)) {}

template <Config C, class B>
requires RunsOn<C, B> Generator<C, B>::Generator(Context<code_of(C), B>& context, const DecodeLimits& limits)
    : context_(&context), core_(std::make_unique<GeneratorCore<code_of(C), B>>(context, limits)) {}

template <Config C, class B>
requires RunsOn<C, B> std::vector<Generated> Generator<C, B>::generate(
    std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options, const OnToken& on_token) {
  return core_->generate(prompts, options, on_token);
}

template <Config C, class B>
requires RunsOn<C, B> Generated Generator<C, B>::go_on(const std::vector<std::int32_t>& prompt,
                                                       const GenerateOptions& options, const OnToken& on_token) {
  return core_->go_on(prompt, options, on_token);
}

}  // namespace v0
}  // namespace qlora
