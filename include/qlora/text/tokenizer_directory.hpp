// qlora/text/tokenizer_directory.hpp — what the files beside a tokenizer say about it, and the tokenizer.json of a
// directory that has none.
// Reference: tests/text/tokenizer_conversion_test.cpp, files of the package transformers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/carried_files.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/tokenizer_conversion.hpp"

namespace qlora {
inline namespace v0 {

/// The tokenizer.json that stands for the tokenizer.model of a directory.
struct ConvertedTokenizer {
  std::string model;          ///< the bytes of the tokenizer.model
  ConversionOptions options;  ///< what the files beside it say
  bool adds = false;          ///< it has tokens that the tokenizer.model does not have, so that it must be read instead
  bool is_equal = true;       ///< texts and conversations have the ids that they have by the tokenizer.model

  /// The text of the file. Throws Error when an added token has the id of another one.
  [[nodiscard]] std::string json() const { return tokenizer_json_of(model, options); }
};

namespace detail {

/// tokenizer_config.json of a directory; empty where there is none.
[[nodiscard]] inline Json tokenizer_config(const std::filesystem::path& dir) {
  const std::filesystem::path file = dir / "tokenizer_config.json";
  return exists(file) ? read_json_object(file, std::size_t{16} << 20) : Json::object();
}

/// A token that tokenizer_config.json names: text, or an object with the text; nothing for null and an absent key.
[[nodiscard]] inline std::optional<std::string> named_token(const Json& config, const char* key,
                                                            const std::string& where) {
  const Json* value = json_find(config, key);
  if (value == nullptr) return std::nullopt;
  return value->is_object() ? json_string(*value, "content", where) : json_string(config, key, where);
}

/// Whether the class that a tokenizer_config.json names is LLaMA's, whose marks are <unk>, <s> and </s> unless it says
/// otherwise; without a name it is, for a tokenizer.model of LLaMA-2's kind.
[[nodiscard]] inline bool is_llama_tokenizer(const Json& config, const std::string& where) {
  const std::string name = json_string_or(config, "tokenizer_class", where, "LlamaTokenizer");
  return name == "LlamaTokenizer" || name == "LlamaTokenizerFast";
}

/// The marks that a tokenizer_config.json names.
[[nodiscard]] inline std::set<std::string> named_marks(const Json& config, const std::string& where) {
  std::set<std::string> marks;
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    if (auto name = named_token(config, key, where)) marks.insert(std::move(*name));
  }
  return marks;
}

/// "added_tokens_decoder" of tokenizer_config.json: tokens by their ids. What the configuration names is a mark.
[[nodiscard]] inline std::vector<ConversionOptions::AddedToken> decoder_tokens(const Json& list,
                                                                               const std::set<std::string>& marks,
                                                                               const std::string& where) {
  if (!list.is_object()) throw Error(where + ": added_tokens_decoder is no object");
  std::vector<ConversionOptions::AddedToken> out;
  for (const auto& [key, value] : list.items()) {
    if (key.empty() || key.size() > 7 || key.find_first_not_of("0123456789") != std::string::npos || !value.is_object())
      throw Error(
          concat(where, ": added_tokens_decoder has the key '", excerpt(key), "', which is no id of an object"));
    ConversionOptions::AddedToken& token = out.emplace_back();
    token.id = static_cast<std::int32_t>(std::stol(key));
    token.content = json_string(value, "content", where);
    token.single_word = json_bool_or(value, "single_word", where, false);
    token.lstrip = json_bool_or(value, "lstrip", where, false);
    token.rstrip = json_bool_or(value, "rstrip", where, false);
    token.normalized = json_bool_or(value, "normalized", where, true);
    token.special = json_bool_or(value, "special", where, false) || marks.contains(token.content);
  }
  return out;
}

/// added_tokens.json, which older packages wrote: ids by their tokens.
[[nodiscard]] inline std::vector<ConversionOptions::AddedToken> older_tokens(const Json& list,
                                                                             const std::set<std::string>& marks,
                                                                             const std::string& where) {
  std::vector<ConversionOptions::AddedToken> out;
  for (const auto& [content, id] : list.items()) {
    ConversionOptions::AddedToken& token = out.emplace_back();
    token.id = static_cast<std::int32_t>(checked_int(id, excerpt(content), where, 0, (1 << 20) - 1));
    token.content = content;
    token.special = marks.contains(content);
    token.normalized = !token.special;
  }
  return out;
}

}  // namespace detail

/// The tokenizer.json that the package transformers 4 makes of a directory's tokenizer.model, with the tokens that the
/// directory adds. Nothing where there is no tokenizer.model, or none of LLaMA-2's kind, and where marks have other
/// names. Throws Error for files beside it that cannot be read.
[[nodiscard]] inline std::optional<ConvertedTokenizer> converted_tokenizer(const std::filesystem::path& dir) {
  const std::filesystem::path file = dir / "tokenizer.model", older = dir / "added_tokens.json";
  if (!exists(file)) return std::nullopt;
  const std::string where = (dir / "tokenizer_config.json").string();
  const Json config = detail::tokenizer_config(dir);
  const auto is_mark = [&](const char* key, const char* name) {
    return detail::named_token(config, key, where).value_or(name) == name;
  };
  if (!detail::is_llama_tokenizer(config, where) || !is_mark("bos_token", "<s>") || !is_mark("unk_token", "<unk>"))
    return std::nullopt;
  ConvertedTokenizer out{.model = read_text(file, sentencepiece_scan::max_file_bytes), .options = {}};
  std::vector<sentencepiece_scan::Piece> pieces;
  try {
    pieces = sentencepiece_scan::scan(out.model);
  } catch (const Error&) {  // its reader reports why
    return std::nullopt;
  }
  ConversionOptions& options = out.options;
  options = {.legacy = json_bool_or(config, "legacy", where, true),
             .add_prefix_space = json_bool_or(config, "add_prefix_space", where, true),
             .add_bos_token = json_bool_or(config, "add_bos_token", where, true),
             .add_eos_token = json_bool_or(config, "add_eos_token", where, false),
             .added = {}};
  const std::set<std::string> marks = detail::named_marks(config, where);
  if (const Json* list = json_find(config, "added_tokens_decoder")) {
    options.added = detail::decoder_tokens(*list, marks, where);
  } else if (exists(older)) {
    options.added = detail::older_tokens(read_json_object(older, std::size_t{16} << 20), marks, older.string());
  }
  std::sort(options.added.begin(), options.added.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  bool is_equal = options.legacy && options.add_prefix_space;
  for (const sentencepiece_scan::Piece& piece : pieces) {
    using sentencepiece_scan::PieceKind;
    if (piece.kind == PieceKind::unused) return std::nullopt;
    is_equal = is_equal && piece.kind != PieceKind::user_defined;  // the two put spaces behind it otherwise
  }
  for (const auto& token : options.added) {
    const auto id = static_cast<std::size_t>(token.id);
    out.adds = out.adds || id >= pieces.size() || pieces[id].kind == sentencepiece_scan::PieceKind::normal;
  }
  out.is_equal = is_equal && !out.adds;
  return out;
}

/// Files that a copy of a model directory gets beside those that are there, by name: a tokenizer.json that gives the
/// ids that this library gives, and a tokenizer_config.json, which has to stand beside one. Nothing where there is a
/// tokenizer.json, where none would give the same ids, and where the files contradict each other.
[[nodiscard]] inline std::map<std::string, std::string> tokenizer_files_beside(const std::filesystem::path& dir) {
  if (exists(dir / "tokenizer.json")) return {};
  std::map<std::string, std::string> files;
  try {
    const std::optional<ConvertedTokenizer> made = converted_tokenizer(dir);
    if (!made || !(made->adds || made->is_equal)) return {};
    files["tokenizer.json"] = made->json();
  } catch (const Error&) {  // its reader reports why
    return {};
  }
  if (!exists(dir / "tokenizer_config.json")) {
    // Without a class: transformers 5 has rules of its own for LlamaTokenizer, and follows the file for none.
    files["tokenizer_config.json"] = json_text({{"add_bos_token", true},
                                                {"add_eos_token", false},
                                                {"bos_token", "<s>"},
                                                {"clean_up_tokenization_spaces", false},
                                                {"eos_token", "</s>"},
                                                {"legacy", true},
                                                {"unk_token", "<unk>"}});
  }
  return files;
}

/// Files that a model made of a directory's has beside its weights, by name, without those of the tokenizer that are
/// copied as they are: hf::carried_files and tokenizer_files_beside.
[[nodiscard]] inline std::map<std::string, std::string> files_beside_weights(const std::filesystem::path& dir) {
  std::map<std::string, std::string> files = tokenizer_files_beside(dir);
  files.merge(hf::carried_files(dir));
  return files;
}

}  // namespace v0
}  // namespace qlora
