// qlora/text/tokenizer_conversion.hpp — a tokenizer.model as a tokenizer.json, which programs without sentencepiece
// read and which knows tokens that were added later.
// What may not change: the file is the one that LlamaTokenizerFast of the package transformers 4 saves, to the byte.
// Source: LlamaConverter and generate_merges of transformers 4.57, convert_slow_tokenizer.py.
// Reference: tests/text/tokenizer_conversion_test.cpp, files of that package.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {

/// How a tokenizer.model is used, where it does not say so itself: keys of tokenizer_config.json.
struct ConversionOptions {
  /// A token that is no piece of the model, or one that shall be cut out of texts.
  struct AddedToken {
    std::int32_t id = -1;      ///< a piece's, or the next one behind the last
    std::string content;       ///< how texts spell it
    bool single_word = false;  ///< not beside letters and digits
    bool lstrip = false;       ///< takes white space before it
    bool rstrip = false;       ///< takes white space behind it
    bool normalized = false;   ///< found in the normalised text
    bool special = false;      ///< a mark, which gives no text
  };
  bool legacy = true;             ///< a space goes before each part of a text between added tokens, else the first
  bool add_prefix_space = true;   ///< whether any space goes before a text
  bool add_bos_token = true;      ///< the begin mark before a text
  bool add_eos_token = false;     ///< the end mark behind a text
  std::vector<AddedToken> added;  ///< in the order of their ids; the model's own marks need not be among them
};

namespace detail::conversion {

using Ordered = nlohmann::ordered_json;

/// Pairs of pieces that make a piece, in the order in which they are merged. Throws Error when there are more than
/// `most`.
[[nodiscard]] inline std::vector<std::pair<std::size_t, std::size_t>> merges_of(
    const std::vector<sentencepiece_scan::Piece>& pieces, std::size_t most = sentencepiece_scan::max_merges) {
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t id = 0; id < pieces.size(); ++id) ids.emplace(pieces[id].text, id);
  struct Merge {
    std::size_t left, right;
    std::tuple<float, std::size_t, std::size_t> order;  // the score, and the characters of both sides
  };
  std::vector<Merge> merges;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const std::string_view text = pieces[id].text;
    const float score = id < 3 ? 0.0F : pieces[id].score;  // as in the package: those three have none
    const auto characters = static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
    const std::size_t before = merges.size();
    std::size_t left_characters = 0;
    for (std::size_t at = 0; at < text.size();) {
      at += utf8_length(text.substr(at));
      ++left_characters;
      const auto left = ids.find(text.substr(0, at)), right = ids.find(text.substr(at));
      if (at == text.size() || left == ids.end() || right == ids.end()) continue;
      if (merges.size() == most) {
        throw Error(concat("the tokenizer has more than ", most,
                           " pairs of pieces that make a piece; a tokenizer.json would hold all of them"));
      }
      merges.push_back({left->second, right->second, {score, left_characters, characters - left_characters}});
    }
    std::sort(merges.begin() + static_cast<std::ptrdiff_t>(before), merges.end(),
              [](const Merge& a, const Merge& b) { return std::pair(a.left, a.right) < std::pair(b.left, b.right); });
  }
  // Equal orders stay in the order in which they were found. Not std::stable_sort: clang 19 warns about libstdc++ 12's.
  std::vector<std::size_t> order(merges.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return merges[a].order == merges[b].order ? a < b : merges[a].order > merges[b].order;
  });
  std::vector<std::pair<std::size_t, std::size_t>> out;
  out.reserve(order.size());
  for (const std::size_t i : order) out.emplace_back(merges[i].left, merges[i].right);
  return out;
}

[[nodiscard]] inline Ordered model_of(const std::vector<sentencepiece_scan::Piece>& pieces) {
  Ordered vocab = Ordered::object(), merges = Ordered::array();
  auto& entries = vocab.get_ref<Ordered::object_t&>();
  entries.reserve(pieces.size());
  // Not by key, which would search all that are there; the scan has seen that none repeats.
  for (std::size_t id = 0; id < pieces.size(); ++id) entries.push_back({pieces[id].text, id});
  for (const auto& [left, right] : merges_of(pieces)) merges.push_back({pieces[left].text, pieces[right].text});
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", pieces[0].text},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", true},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

/// The model's marks and the symbols that its user defined, then those of the options.
[[nodiscard]] inline Ordered added_tokens_of(const std::vector<sentencepiece_scan::Piece>& pieces,
                                             const ConversionOptions& options) {
  using sentencepiece_scan::PieceKind;
  std::map<std::size_t, ConversionOptions::AddedToken> tokens;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const PieceKind kind = pieces[id].kind;
    if (kind != PieceKind::unknown && kind != PieceKind::control && kind != PieceKind::user_defined) continue;
    ConversionOptions::AddedToken& token = tokens[id];
    token.id = static_cast<std::int32_t>(id);
    token.content = pieces[id].text;
    token.special = kind != PieceKind::user_defined;
  }
  std::size_t next = pieces.size();
  for (const ConversionOptions::AddedToken& token : options.added) {
    const auto id = static_cast<std::size_t>(token.id);
    if (token.id < 0 || id > next || (id < pieces.size() && pieces[id].text != token.content)) {
      throw Error(concat("the added token ", token.id, " '", detail::excerpt(token.content),
                         "' is no piece of the tokenizer.model, and does not follow the last one"));
    }
    next = std::max(next, id + 1);
    tokens[id] = token;
  }
  Ordered list = Ordered::array();
  for (const auto& [id, token] : tokens) {
    list.push_back({{"id", id},
                    {"content", token.content},
                    {"single_word", token.single_word},
                    {"lstrip", token.lstrip},
                    {"rstrip", token.rstrip},
                    {"normalized", token.normalized},
                    {"special", token.special}});
  }
  return list;
}

/// What goes before and behind one text, and two.
[[nodiscard]] inline Ordered post_processor_of(const ConversionOptions& options) {
  Ordered single = Ordered::array(), pair = Ordered::array(), special = Ordered::object();
  const auto part = [&](Ordered& list, const char* kind, const char* id, int type) {
    list.push_back({{kind, {{"id", id}, {"type_id", type}}}});
  };
  for (const int type : {0, 1}) {
    for (Ordered* list : {&single, &pair}) {
      if (type == 1 && list == &single) continue;
      if (options.add_bos_token) part(*list, "SpecialToken", "<s>", type);
      part(*list, "Sequence", type == 0 ? "A" : "B", type);
      if (options.add_eos_token) part(*list, "SpecialToken", "</s>", type);
    }
  }
  const auto token = [&](const char* name, int id) {
    special[name] = {{"id", name}, {"ids", Ordered::array({id})}, {"tokens", Ordered::array({name})}};
  };
  if (options.add_eos_token) token("</s>", 2);
  if (options.add_bos_token) token("<s>", 1);
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(special)}};
}

}  // namespace detail::conversion

/// The tokenizer.json of a tokenizer.model (its bytes): the same ids by other rules. Throws Error when the model is not
/// of LLaMA-2's kind, has pieces that it does not use, or when an added token has the id of another one.
[[nodiscard]] inline std::string tokenizer_json_of(std::string_view model, const ConversionOptions& options = {}) {
  using detail::conversion::Ordered;
  const std::vector<sentencepiece_scan::Piece> pieces = sentencepiece_scan::scan(model);
  const std::string mark(sentencepiece_scan::space_symbol);
  if (std::any_of(pieces.begin(), pieces.end(), [](const sentencepiece_scan::Piece& piece) {
        return piece.kind == sentencepiece_scan::PieceKind::unused;
      }))
    throw Error("tokenizer model: it has pieces that it does not use, and a tokenizer.json cannot say so");
  Ordered normalizer, pre_tokenizer;
  if (options.legacy) {
    Ordered steps = Ordered::array();
    if (options.add_prefix_space) steps.push_back({{"type", "Prepend"}, {"prepend", mark}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}});
    normalizer = {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
  } else {
    pre_tokenizer = {{"type", "Metaspace"},
                     {"replacement", mark},
                     {"prepend_scheme", options.add_prefix_space ? "first" : "never"},
                     {"split", false}};
  }
  Ordered decoders = Ordered::array();
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (options.add_prefix_space) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return Ordered{{"version", "1.0"},
                 {"truncation", nullptr},
                 {"padding", nullptr},
                 {"added_tokens", detail::conversion::added_tokens_of(pieces, options)},
                 {"normalizer", std::move(normalizer)},
                 {"pre_tokenizer", std::move(pre_tokenizer)},
                 {"post_processor", detail::conversion::post_processor_of(options)},
                 {"decoder", {{"type", "Sequence"}, {"decoders", std::move(decoders)}}},
                 {"model", detail::conversion::model_of(pieces)}}
      .dump(2);
}

}  // namespace v0
}  // namespace qlora
