// qlora/serve/model.hpp — the model that a server has, as its wire formats see it: names, prompts as ids, limits.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/eval/measure.hpp"
#include "qlora/generate/request.hpp"
#include "qlora/io/hf_model.hpp"
#include "qlora/run/model_files.hpp"
#include "qlora/serve/fields.hpp"
#include "qlora/serve/metrics.hpp"
#include "qlora/serve/service.hpp"
#include "qlora/text/prompt.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// What clients of TGI, which ignores the name, send as the model where their user names none: examples of TGI and the
/// Python package text-generation the first, huggingface_hub the second.
inline constexpr std::array<std::string_view, 2> names_of_none{"tgi", "dummy"};

/// The names that requests may give as the model. Any thread may use it.
class Names {
 public:
  /// The base, and the adapters that are attached already. `unnamed`: the one that answers who names none; empty: the
  /// base does.
  Names(std::string base, const std::vector<std::string>& adapters, std::string unnamed = {})
      : base_(std::move(base)), unnamed_(std::move(unnamed)) {
    for (const std::string& name : adapters) adapters_[name] = {};
  }

  /// Of the base model.
  [[nodiscard]] const std::string& base() const { return base_; }
  /// Of adapters, sorted.
  [[nodiscard]] std::vector<std::string> adapters() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> out;
    for (const auto& [name, nothing] : adapters_) out.push_back(name);
    return out;
  }
  /// Adds or takes out the name of an adapter.
  void set(const std::string& adapter, bool there) {
    const std::lock_guard lock(mutex_);
    if (there) {
      adapters_[adapter] = {};
    } else {
      adapters_.erase(adapter);
    }
  }
  /// Who answers a request without a name.
  [[nodiscard]] Variant unnamed() const {
    const std::lock_guard lock(mutex_);
    return adapters_.contains(unnamed_) ? Variant{.adapter = unnamed_} : Variant{};
  }
  /// What a name means: the base, an adapter, or "adapter@0.6", an adapter that is 0.6 times as strong. Nothing for
  /// another name, and for a strength that is no number from -16 to 16. A name of names_of_none is the base, unless an
  /// adapter is called so.
  [[nodiscard]] std::optional<Variant> find(std::string_view name) const {
    if (name == base_) return Variant{};
    const std::lock_guard lock(mutex_);
    if (adapters_.contains(name)) return Variant{.adapter = std::string(name)};
    if (std::find(names_of_none.begin(), names_of_none.end(), name) != names_of_none.end()) return Variant{};
    const std::size_t at = name.rfind('@');
    if (at == std::string_view::npos || !adapters_.contains(name.substr(0, at))) return std::nullopt;
    constexpr float most = 16.0F;
    float scale = 0.0F;
    const char* const last = name.data() + name.size();
    const auto [end, error] = std::from_chars(name.data() + at + 1, last, scale);
    if (error != std::errc{} || end != last || !(std::fabs(scale) <= most)) return std::nullopt;
    return Variant{.adapter = std::string(name.substr(0, at)), .scale = scale};
  }

 private:
  struct Nothing {};
  std::string base_;
  std::string unnamed_;
  mutable std::mutex mutex_;
  std::map<std::string, Nothing, std::less<>> adapters_;
};

/// Whether a text can be the name of a model or an adapter: letters, digits and -_./ , at most 100 of them.
[[nodiscard]] inline bool is_name(std::string_view text) {
  constexpr std::size_t longest = 100;
  return !text.empty() && text.size() <= longest && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-_./").find(c) != std::string_view::npos;
  });
}

/// Replies to one body at most: prompts times `n`.
inline constexpr std::int64_t most_choices = 16;

/// How a server limits its requests.
struct ServedLimits {
  int input = 0;  ///< tokens of a prompt at most
  int total = 0;  ///< of a prompt and its reply
};

/// A model that is served. Any thread may use it.
class ServedModel {
 public:
  /// The service runs this model, and with the files and metrics outlives this.
  ServedModel(std::shared_ptr<const run::ModelFiles> files, std::shared_ptr<Names> names, const ServedLimits& limits,
              Service& service, Metrics& metrics)
      : files_(std::move(files)),
        names_(std::move(names)),
        limits_(limits),
        service_(&service),
        metrics_(&metrics),
        started_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                     .count()),
        fingerprint_(files_->model.fingerprint()) {
    for (std::int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
      const std::string bytes = tokenizer().surface(id);
      longest_piece_ = std::max(longest_piece_, bytes.size());
      vocabulary_ = vocabulary_ * 31 + std::hash<std::string>{}(bytes);
    }
  }

  [[nodiscard]] const Tokenizer& tokenizer() const { return files_->tokenizer; }  ///< of the model
  [[nodiscard]] const ChatTemplate& chat() const { return files_->chat; }         ///< of the model
  [[nodiscard]] const hf::ModelDir& model() const { return files_->model; }       ///< its directory
  [[nodiscard]] Names& names() const { return *names_; }                          ///< that requests give
  [[nodiscard]] const ServedLimits& limits() const { return limits_; }            ///< of tokens
  [[nodiscard]] Service& service() const { return *service_; }                    ///< that runs it
  [[nodiscard]] Metrics& metrics() const { return *metrics_; }                    ///< of the server
  [[nodiscard]] std::int64_t started() const { return started_; }                 ///< in seconds since 1970
  /// Whether a request can run beside the one that it is compared with.
  [[nodiscard]] bool compares() const { return service_->load().slots >= 2; }
  /// Values that the JSON of a body has at most: as many as prompts of token ids can have, and a list of biases.
  [[nodiscard]] std::size_t most_values() const {
    constexpr std::size_t others = 8192;
    return static_cast<std::size_t>(most_choices) * static_cast<std::size_t>(limits_.total) + others;
  }
  /// The same for models whose tokens have the same ids and texts.
  [[nodiscard]] std::size_t vocabulary() const { return vocabulary_; }
  /// Tells weights apart: ModelDir::fingerprint(), which hashes much, once.
  [[nodiscard]] const std::string& fingerprint() const { return fingerprint_; }

  /// Ids of a text, with the model's begin mark. A text that spells that mark at its beginning does not get it twice.
  /// Throws Refused (`status`, naming `field`) when it has more tokens than a prompt may have.
  [[nodiscard]] std::vector<std::int32_t> text_ids(std::string_view text, int status, const std::string& field) const {
    const std::int32_t bos = tokenizer().bos();
    if (bos >= 0 && text.starts_with(tokenizer().piece(bos))) text.remove_prefix(tokenizer().piece(bos).size());
    expect_short(text.size(), status, field);
    return eval::question_tokens(tokenizer(), chat(), false, std::string(text), {});
  }
  /// Ids of a conversation that is to be answered. Throws Refused when its turns cannot be written in the model's form.
  [[nodiscard]] std::vector<std::int32_t> chat_ids(std::span<const Message> messages, int status,
                                                   const std::string& field) const {
    std::size_t bytes = 0;
    for (const Message& message : messages) bytes += message.content.size();
    expect_short(bytes, status, field);
    try {
      return chat_tokens(tokenizer(), chat(), messages);
    } catch (const Error& error) {
      throw Refused(status, error.what(), field, "invalid_value");
    }
  }
  /// A request for a continuation of these ids, as long as the limits allow.
  [[nodiscard]] Request request(std::vector<std::int32_t> prompt, bool is_chat, Variant variant) const {
    Request out;
    out.max_new_tokens = std::max(0, limits_.total - static_cast<int>(prompt.size()));
    out.prompt = std::move(prompt);
    out.variant = std::move(variant);
    out.sampling = {.temperature = 0.0F, .top_p = 1.0F};
    out.stop_ids = eval::stop_tokens(tokenizer(), chat(), is_chat, model().eos_token_ids);
    out.among = tokenizer().vocab_size();
    return out;
  }
  /// A token as text by itself: as its bytes are, or "bytes:\xE2\x96" where they are no whole characters; marks as the
  /// tokenizer's file spells them.
  [[nodiscard]] std::string token_text(std::int32_t id) const {
    if (id < 0 || id >= tokenizer().vocab_size()) return {};
    if (tokenizer().is_control(id)) return tokenizer().piece(id);
    const std::string bytes = tokenizer().surface(id);
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t length = utf8_length(std::string_view(bytes).substr(at));
      if (length == 0) return escaped(bytes);
      at += length;
    }
    return bytes;
  }

 private:
  /// Nothing that is too long is tokenized: a token stands for `longest_piece_` bytes at most.
  void expect_short(std::size_t bytes, int status, const std::string& field) const {
    if (bytes <= (static_cast<std::size_t>(limits_.total) + 1) * longest_piece_) return;
    throw Refused(status, concat("`", field, "` has ", bytes, " bytes, more than ", limits_.total, " tokens can have"),
                  field, "context_length_exceeded");
  }
  [[nodiscard]] static std::string escaped(std::string_view bytes) {
    constexpr const char* digits = "0123456789abcdef";
    std::string out = "bytes:";
    for (const char c : bytes) {
      const auto byte = static_cast<unsigned char>(c);
      out += std::string("\\x") + digits[byte / 16] + digits[byte % 16];
    }
    return out;
  }

  std::shared_ptr<const run::ModelFiles> files_;
  std::shared_ptr<Names> names_;
  ServedLimits limits_;
  Service* service_;
  Metrics* metrics_;
  std::int64_t started_;
  std::string fingerprint_;
  std::size_t longest_piece_ = 1;
  std::size_t vocabulary_ = 0;
};

/// A number that nobody can guess from those before: for seeds and names of answers.
[[nodiscard]] inline std::uint64_t random_word() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}
/// The seed of the `index`-th of several replies to one prompt; the first has the seed itself.
[[nodiscard]] inline std::uint64_t seed_of(std::uint64_t seed, std::size_t index) {
  return seed + 0x9E3779B97F4A7C15ULL * index;  // an odd number: no two of 2^64 replies have the same
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
