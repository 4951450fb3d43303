// qlora/eval/measure.hpp — measures a model on a list of probes: judged replies, likelihoods of answers and
// alternatives, loss on texts and KL divergence from another model on them.
// Math       margin = log p(answer | prompt) - max over twin and distractors of log p(. | prompt)
//            loss = -sum_t log q(x_t | x_<t),  KL = sum_t KL(p(. | x_<t) || q(. | x_<t)), p the reference, q the model;
//            t runs over all tokens of a text but the first, in a chat over what the assistant says
// What may not change: replies are greedy, so that a result depends on the model alone. A model is anything with the
// members generate(prompts, options, on_token), score(questions) and read(texts, use) of Generator and Scorer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "qlora/eval/item_results.hpp"
#include "qlora/eval/probes.hpp"
#include "qlora/eval/text_sums.hpp"
#include "qlora/generate/generator.hpp"
#include "qlora/generate/scorer.hpp"
#include "qlora/text/chat_template.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace eval {

/// How replies are generated and what is measured besides them.
struct MeasureOptions {
  int max_new_tokens = 64;           ///< of replies that end by themselves; values get what the longest one needs
  std::vector<std::int32_t> ends{};  ///< the model's end marks, besides the tokenizer's
  bool margins = true;               ///< read the likelihoods of answers with alternatives
  ChatTemplate chat{};               ///< the model's form of conversations
  int threads = 0;                   ///< that sum logits on texts; 0: one per core
};

/// Called during a measurement with the number of items done; returning false makes measure throw `interrupted`.
using OnMeasured = std::function<bool(std::size_t items)>;

/// Ids of a question: a text to continue, or a user turn in the form `form`. Throws Error (input) for text that is not
/// UTF-8, which the tokenizer would replace, and as chat_tokens does.
[[nodiscard]] inline std::vector<std::int32_t> question_tokens(const Tokenizer& tokenizer, const ChatTemplate& form,
                                                               bool chat, const std::string& prompt,
                                                               const std::vector<Message>& history) {
  check_utf8(prompt, chat ? "the question" : "the prompt");
  for (const Message& message : history) check_utf8(message.content, concat("a message of the ", message.role));
  if (chat) {
    std::vector<Message> messages = history;
    messages.push_back({"user", prompt});
    return chat_tokens(tokenizer, form, messages);
  }
  std::vector<std::int32_t> ids;
  if (tokenizer.bos() >= 0) ids.push_back(tokenizer.bos());
  const std::vector<std::int32_t> text = tokenizer.encode(prompt);
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

/// Where generation ends: at end tokens, in a chat also where the model would begin another turn.
[[nodiscard]] inline std::vector<std::int32_t> stop_tokens(const Tokenizer& tokenizer, const ChatTemplate& form,
                                                           bool chat, std::span<const std::int32_t> ends) {
  std::vector<std::int32_t> ids(ends.begin(), ends.end());
  const auto add = [&](std::int32_t id) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  add(tokenizer.eos());
  if (!chat) return ids;
  for (const std::string& mark : form.stops().marks) {
    if (const std::int32_t id = tokenizer.id_of(mark); id >= 0 && tokenizer.is_control(id)) add(id);
  }
  return ids;
}

/// The ids as text, with marks as the tokenizer's file spells them; empty where there are none.
[[nodiscard]] inline std::string marked_text(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::string out;
  std::size_t done = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!tokenizer.is_control(ids[i])) continue;
    out += tokenizer.decode(ids.subspan(done, i - done), DecodeFrom::middle) + tokenizer.piece(ids[i]);
    done = i + 1;
  }
  return done == 0 ? out : out + tokenizer.decode(ids.subspan(done), DecodeFrom::middle);
}

/// What was generated, as text; a chat's reply ends where the model would speak for the user.
[[nodiscard]] inline Reply reply_of(const Tokenizer& tokenizer, const ChatTemplate& form, bool chat,
                                    const Generated& generated) {
  std::vector<std::int32_t> ids = generated.ids;
  // A model's vocabulary may be padded beyond its tokenizer: rows that nothing has trained, and that have no text. They
  // are not drawn (GenerateOptions::among), but replies may come from elsewhere.
  std::erase_if(ids, [&](std::int32_t id) { return id >= tokenizer.vocab_size(); });
  std::string text = tokenizer.decode(ids, chat ? DecodeFrom::start : DecodeFrom::middle);
  if (chat) {
    const ChatStops stops = form.stops();
    const auto end_at = [&](const std::string& mark) {
      if (!mark.empty()) text.erase(std::min(text.find(mark), text.size()));
    };
    end_at(stops.turn);
    for (const std::string& mark : stops.marks) {
      const std::int32_t id = tokenizer.id_of(mark);
      if (id < 0 || !tokenizer.is_control(id)) end_at(mark);  // to this tokenizer it is text
    }
  }
  return {std::move(text), generated.stopped, chat ? std::string() : marked_text(tokenizer, ids)};
}

namespace detail {

/// A reply that should begin with a value is this much longer, to show where its last word ends.
inline constexpr std::size_t tokens_behind_value = 4;

/// A text's ids, and which of them count as predicted.
struct ReadText {
  std::size_t item = 0;
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> counts;
};
[[nodiscard]] inline ReadText text_of(const Tokenizer& tokenizer, const ChatTemplate& form, const Item& item,
                                      std::size_t index) {
  TokenDocument document =
      item.chat ? chat_document(tokenizer, form, item.messages) : text_document(tokenizer, item.text);
  ReadText text{index, std::move(document.ids), std::move(document.answer)};
  if (text.counts.empty()) text.counts.assign(text.ids.size(), 1);
  return text;
}

template <class Model>
class Measurement {
 public:
  Measurement(Model& model, const Tokenizer& tokenizer, std::span<const Item> items, const MeasureOptions& options,
              const OnMeasured& on_measured)
      : model_(model), tokenizer_(tokenizer), items_(items), options_(options), on_measured_(on_measured) {
    constexpr double nothing = std::numeric_limits<double>::quiet_NaN();
    results_.replies.resize(items.size());
    results_.verdicts.resize(items.size());
    for (auto* list : {&results_.margin, &results_.loss, &results_.kl, &results_.tokens}) {
      list->assign(items.size(), nothing);
    }
  }

  void ask() {
    for (const bool values : {true, false}) {
      for (const bool chat : {false, true}) ask_some(values, chat);
    }
  }
  void weigh() {
    std::vector<std::size_t> which;
    std::vector<Continuations> questions;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      if (!has_alternatives(item)) continue;
      which.push_back(i);
      Continuations& question = questions.emplace_back();
      question.prompt = prompt_of(item);
      question.candidates.push_back(tokenizer_.encode(item.answer));
      if (!item.twin.empty()) question.candidates.push_back(tokenizer_.encode(item.twin));
      for (const std::string& other : item.distractors) question.candidates.push_back(tokenizer_.encode(other));
    }
    const std::vector<std::vector<double>> scores = model_.score(questions);
    for (std::size_t i = 0; i < which.size(); ++i) {
      results_.margin[which[i]] = scores[i][0] - *std::max_element(scores[i].begin() + 1, scores[i].end());
    }
  }
  void read(TextReference* record, const TextReference* against) {
    std::vector<ReadText> texts;
    std::vector<std::vector<std::int32_t>> ids;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      if (items_[i].kind != Kind::text) continue;
      texts.push_back(text_of(tokenizer_, options_.chat, items_[i], i));
      ids.push_back(texts.back().ids);
      results_.loss[i] = results_.tokens[i] = 0.0;
      if (against != nullptr) results_.kl[i] = 0.0;
    }
    if (texts.empty()) return;
    if (record != nullptr) record->logits.assign(items_.size(), {});
    if (against != nullptr) {
      QLORA_EXPECTS(against->logits.size() == items_.size(), "a reference of ", against->logits.size(), " items for ",
                    items_.size());
    }
    TextSums sums(results_, record, against, options_.threads);
    std::size_t last = 0;
    model_.read(ids, [&](std::size_t text, std::size_t position, std::span<const float> logits) {
      if (text != std::exchange(last, text)) {
        ++done_;
        if (!go_on()) return false;
      }
      if (texts[text].counts[position] != 0) sums.add(texts[text].item, texts[text].ids[position], logits);
      return true;
    });
    expect_more();
    sums.finish();
    done_ += 1;
  }
  [[nodiscard]] ItemResults take() { return std::move(results_); }

 private:
  [[nodiscard]] std::vector<std::int32_t> prompt_of(const Item& item) const {
    return question_tokens(tokenizer_, options_.chat, item.chat, item.prompt, item.history);
  }
  [[nodiscard]] bool go_on() {
    if (on_measured_ && !on_measured_(std::min(done_, items_.size()))) stopped_ = true;
    return !stopped_;
  }
  void expect_more() const {
    if (stopped_) throw Error("interrupted while measuring; ask again", ErrorKind::interrupted);
  }

  /// A value must be at the beginning of a reply.
  void ask_some(bool values, bool chat) {
    std::vector<std::size_t> which;
    std::vector<std::vector<std::int32_t>> prompts;
    std::size_t longest = 0;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      if (item.kind == Kind::text || item.chat != chat || asks_value(item.kind) != values) continue;
      which.push_back(i);
      prompts.push_back(prompt_of(item));
      for (const std::string* value : {&item.answer, &item.twin}) {
        if (!value->empty()) longest = std::max(longest, tokenizer_.encode(*value).size());
      }
    }
    if (which.empty()) return;
    GenerateOptions how;
    how.sampling.temperature = 0.0F;
    how.max_new_tokens = values ? static_cast<int>(longest + tokens_behind_value) : options_.max_new_tokens;
    how.stop_ids = stop_tokens(tokenizer_, options_.chat, chat, options_.ends);
    how.among = tokenizer_.vocab_size();
    const std::size_t before = done_;
    const std::vector<Generated> generated = model_.generate(prompts, how, [&](int prompt, std::int32_t) {
      done_ = std::max(done_, before + static_cast<std::size_t>(prompt));
      return go_on();
    });
    expect_more();
    done_ = before + which.size();
    for (std::size_t i = 0; i < which.size(); ++i) {
      results_.replies[which[i]] = reply_of(tokenizer_, options_.chat, chat, generated[i]);
      results_.verdicts[which[i]] = judge(items_[which[i]], results_.replies[which[i]]);
    }
  }

  Model& model_;
  const Tokenizer& tokenizer_;
  std::span<const Item> items_;
  const MeasureOptions& options_;
  const OnMeasured& on_measured_;
  ItemResults results_;
  std::size_t done_ = 0;
  bool stopped_ = false;
};

}  // namespace detail

/// Tokens of the longest sequence that these items need: a prompt with its reply or an alternative, or a text.
[[nodiscard]] inline std::size_t longest_sequence(const Tokenizer& tokenizer, std::span<const Item> items,
                                                  const MeasureOptions& options = {}) {
  std::size_t longest = 0;
  std::size_t prompt = 0;  // of those that ask for values, whose replies are as long as the longest value needs
  std::size_t value = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    if (item.kind == Kind::text) {
      longest = std::max(longest, detail::text_of(tokenizer, options.chat, item, i).ids.size());
      continue;
    }
    const std::size_t asked = question_tokens(tokenizer, options.chat, item.chat, item.prompt, item.history).size();
    if (!asks_value(item.kind)) {
      longest = std::max(longest, asked + static_cast<std::size_t>(options.max_new_tokens));
      continue;
    }
    prompt = std::max(prompt, asked);
    for (const std::string* text : {&item.answer, &item.twin}) {
      value = std::max(value, text->empty() ? 0 : tokenizer.encode(*text).size());
    }
    for (const std::string& other : item.distractors) {
      longest = std::max(longest, asked + tokenizer.encode(other).size());
    }
  }
  return prompt == 0 ? longest : std::max(longest, prompt + value + detail::tokens_behind_value);
}

/// Measures all items. `record` receives the model's logits on the texts; with `against`, recorded from another model
/// on the same items, the results have KL(other || this).
template <class Model>
[[nodiscard]] ItemResults measure(Model& model, const Tokenizer& tokenizer, std::span<const Item> items,
                                  const MeasureOptions& options = {}, TextReference* record = nullptr,
                                  const TextReference* against = nullptr, const OnMeasured& on_measured = {}) {
  detail::Measurement<Model> measurement(model, tokenizer, items, options, on_measured);
  measurement.ask();
  if (options.margins) measurement.weigh();
  measurement.read(record, against);
  return measurement.take();
}

}  // namespace eval
}  // namespace v0
}  // namespace qlora
