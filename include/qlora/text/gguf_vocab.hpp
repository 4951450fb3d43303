// qlora/text/gguf_vocab.hpp — a model directory's tokenizer and chat template as values of a GGUF file.
// llama.cpp has two kinds that are ours: "llama", byte-pair encoding by the scores of pieces with byte fallback, and
// "gpt2", byte-level by merges, with a way to split words that is chosen by name. A tokenizer.json that is neither, or
// that splits words in a way without a name, is refused: it would give other ids.
// Source: llama.cpp's conversion scripts and src/llama-vocab.cpp.
// Reference: tests/text/tokenizer_conversion_test.cpp; tests/interop, where llama.cpp reads the files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/gguf.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/tokenizer_file.hpp"
#include "qlora/text/chat_directory.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/tokenizer.hpp"
#include "qlora/text/tokenizer_directory.hpp"

namespace qlora {
inline namespace v0 {
namespace gguf {
namespace detail {

/// How llama.cpp numbers what a piece is.
enum class PieceType : std::int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// Pieces by id, of which a padded vocabulary has more than the tokenizer.
struct Vocab {
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<std::int32_t> types;

  explicit Vocab(int size)
      : texts(static_cast<std::size_t>(size)),
        scores(texts.size(), 0.0F),
        types(texts.size(), static_cast<std::int32_t>(PieceType::unused)) {
    for (std::size_t id = 0; id < texts.size(); ++id) texts[id] = concat("[PAD", id, "]");
  }
  void set(std::size_t id, std::string text, PieceType type, float score = 0.0F) {
    if (id >= texts.size()) throw Error(concat("the tokenizer's id ", id, " is beyond vocab_size ", texts.size()));
    texts[id] = std::move(text);
    types[id] = static_cast<std::int32_t>(type);
    scores[id] = score;
  }
};

/// The steps of a "pre_tokenizer" or "normalizer", out of their sequence.
[[nodiscard]] inline std::vector<Json> steps_of(const Json& file, const char* stage, const char* list) {
  const Json* step = json_find(file, stage);
  if (step == nullptr) return {};
  if (step->value("type", "") != "Sequence") return {*step};
  return step->at(list).get<std::vector<Json>>();
}

/// How llama.cpp calls the way in which a byte-level tokenizer splits words.
[[nodiscard]] inline std::string split_name(const Json& file, const std::string& where) {
  static const std::array<std::pair<std::string_view, std::string_view>, 2> known{
      {{R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
        R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        "llama-bpe"},
       {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
        R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
        "qwen2"}}};
  const std::vector<Json> steps = steps_of(file, "pre_tokenizer", "pretokenizers");
  const std::vector<Json> normal = steps_of(file, "normalizer", "normalizers");
  std::string name;
  const bool by_words = steps.back().value("use_regex", true);
  if (steps.back().value("add_prefix_space", false)) {
    name.clear();
  } else if (steps.size() == 1 && by_words) {
    name = "gpt-2";
  } else if (steps.size() == 2 && by_words && steps[0].value("type", "") == "Digits" &&
             steps[0].value("individual_digits", false)) {
    name = "smollm";
  } else if (steps.size() == 2 && !by_words && steps[0].value("type", "") == "Split" &&
             steps[0].value("behavior", "") == "Isolated" && !steps[0].value("invert", false)) {
    const std::string pattern = steps[0].at("pattern").value("Regex", "");
    for (const auto& [regex, called] : known) {
      if (pattern == regex) name = called;
    }
  }
  const bool normalizes =
      !(normal.empty() || (name == "qwen2" && normal.size() == 1 && normal[0].value("type", "") == "NFC"));
  if (name.empty() || normalizes || file.at("model").value("ignore_merges", false) != (name == "llama-bpe")) {
    throw Error(
        where +
        ": llama.cpp has no name for how this tokenizer prepares texts; those of LLaMA-2, Llama 3, GPT-2, SmolLM2 "
        "and Qwen 2 can be written to a GGUF file");
  }
  return name;
}

/// Whether a tokenizer with byte fallback puts a space before a text. Throws Error for other preparations than those of
/// LLaMA's tokenizers.
[[nodiscard]] inline bool adds_space(const Json& file, const std::string& where) {
  bool adds = false;
  const auto refuse = [&](const std::string& type) {
    throw Error(concat(where, ": ", type, " cannot be written to a GGUF file, since llama.cpp has no such step"));
  };
  for (const Json& step : steps_of(file, "normalizer", "normalizers")) {
    const std::string type = step.value("type", "");
    const std::string_view mark = sentencepiece_scan::space_symbol;
    if (type == "Prepend" && step.value("prepend", "") == mark) {
      adds = true;
    } else if (type != "Replace" || step.at("pattern").value("String", "") != " " ||
               step.value("content", "") != mark) {
      refuse(type);
    }
  }
  for (const Json& step : steps_of(file, "pre_tokenizer", "pretokenizers")) {
    const std::string type = step.value("type", "");
    if (type != "Metaspace" || step.value("split", true)) refuse(type);
    adds = adds || step.value("prepend_scheme", "always") != "never";
  }
  return adds;
}

/// Both parts of each merge.
[[nodiscard]] inline std::vector<std::pair<std::string, std::string>> merges_of(const Json& model) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const Json& merge : model.at("merges")) {
    if (merge.is_array()) {
      out.emplace_back(merge.at(0).get<std::string>(), merge.at(1).get<std::string>());
    } else {
      const auto text = merge.get<std::string>();
      const std::size_t space = text.find(' ');
      out.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
  }
  return out;
}

inline void set_pieces(const std::vector<sentencepiece_scan::Piece>& pieces, Vocab& vocab) {
  for (std::size_t id = 0; id < pieces.size(); ++id)  // the numbers of the kinds are the same
    vocab.set(id, pieces[id].text, static_cast<PieceType>(static_cast<std::int32_t>(pieces[id].kind)),
              pieces[id].score);
}

/// Pieces of a tokenizer.json, which was read before, so that its types are right.
inline void set_json(const Json& file, const std::string& where, const std::filesystem::path& sentencepiece,
                     Vocab& vocab, Values& values) {
  const Json& model = file.at("model");
  const std::vector<Json> splits = steps_of(file, "pre_tokenizer", "pretokenizers");
  const bool byte_level = !splits.empty() && splits.back().value("type", "") == "ByteLevel";
  std::map<std::string, float> scores;
  if (byte_level) {
    values["tokenizer.ggml.pre"] = split_name(file, where);
    std::vector<std::string> lines;
    for (const auto& [left, right] : merges_of(model)) lines.push_back(left + ' ' + right);
    values["tokenizer.ggml.merges"] = std::move(lines);
  } else {
    if (!model.value("byte_fallback", false))
      throw Error(where + ": a tokenizer without byte_fallback cannot be written to a GGUF file");
    values["tokenizer.ggml.add_space_prefix"] = adds_space(file, where);
    // Where a tokenizer.model made the file it has the scores; else the order of the merges is that of scores.
    if (exists(sentencepiece)) {
      for (const auto& piece : sentencepiece_scan::scan(read_text(sentencepiece, sentencepiece_scan::max_file_bytes)))
        scores.emplace(piece.text, piece.score);
    }
    float rank = 0;
    for (const auto& [left, right] : merges_of(model)) scores.emplace(left + right, rank -= 1);
  }
  for (const auto& [text, id] : model.at("vocab").items()) {
    const auto found = scores.find(text);
    const bool is_byte = !byte_level && sentencepiece_scan::byte_of(text).has_value();
    vocab.set(id.get<std::size_t>(), text, is_byte ? PieceType::byte : PieceType::normal,
              found == scores.end() ? 0.0F : found->second);
  }
  const std::string unknown =
      model.contains("unk_token") && model["unk_token"].is_string() ? model["unk_token"] : Json("");
  for (const Json& token : file.value("added_tokens", Json::array())) {
    const auto content = token.at("content").get<std::string>();
    const PieceType type = content == unknown && !byte_level ? PieceType::unknown
                           : token.value("special", false)   ? PieceType::control
                                                             : PieceType::user_defined;
    vocab.set(token.at("id").get<std::size_t>(), content, type);
  }
}

}  // namespace detail

/// The values of a directory's tokenizer and chat template. A vocabulary that is padded to `vocab_size` has unused
/// pieces. `bos_of_model` is the begin mark where the tokenizer puts none before a text. Throws Error when it has no
/// tokenizer, one that llama.cpp would read otherwise, or one with more ids than the model.
[[nodiscard]] inline Values tokenizer_values(const std::filesystem::path& dir, int vocab_size, int bos_of_model = -1) {
  const std::filesystem::path file = tokenizer_file(dir);
  const Tokenizer tokenizer = Tokenizer::load(file);
  detail::Vocab vocab(vocab_size);
  Values values;
  const auto converted = file.extension() == ".json" ? std::nullopt : converted_tokenizer(dir);
  const std::string where = file.string();
  if (file.extension() == ".json" || (converted && converted->adds)) {
    const std::string text = converted ? converted->json() : read_text(file, sentencepiece_scan::max_file_bytes);
    detail::set_json(parse_json(text, where), where, dir / "tokenizer.model", vocab, values);
  } else {
    detail::set_pieces(sentencepiece_scan::scan(read_text(file, sentencepiece_scan::max_file_bytes)), vocab);
    values["tokenizer.ggml.add_space_prefix"] = true;
  }
  const bool by_scores = !values.contains("tokenizer.ggml.merges");
  values["tokenizer.ggml.model"] = std::string(by_scores ? "llama" : "gpt2");
  if (by_scores) {
    values["tokenizer.ggml.pre"] = std::string("default");
    values["tokenizer.ggml.scores"] = std::move(vocab.scores);
  }
  values["tokenizer.ggml.tokens"] = std::move(vocab.texts);
  values["tokenizer.ggml.token_type"] = std::move(vocab.types);
  const auto id = [&](const char* name, std::int32_t value) {
    if (value >= 0) values[concat("tokenizer.ggml.", name, "_token_id")] = static_cast<std::uint32_t>(value);
  };
  id("bos", tokenizer.bos() >= 0 ? tokenizer.bos() : bos_of_model);
  id("eos", tokenizer.eos());
  id("unknown", tokenizer.unk());
  values["tokenizer.ggml.add_bos_token"] = tokenizer.bos() >= 0;
  values["tokenizer.ggml.add_eos_token"] = false;
  if (auto chat = qlora::detail::template_text(dir, qlora::detail::tokenizer_config(dir)))
    values["tokenizer.chat_template"] = std::move(*chat);
  return values;
}

}  // namespace gguf
}  // namespace v0
}  // namespace qlora
