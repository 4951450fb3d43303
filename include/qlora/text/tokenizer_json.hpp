// qlora/text/tokenizer_json.hpp — tokenizer.json, the file of the Rust package `tokenizers`: BPE with byte fallback
// (LLaMA-2, Mistral) and byte-level BPE (GPT-2, Llama 3, SmolLM2).
// The stages are those of the package, in its order: added tokens are cut out of the text, what is left is normalised,
// added tokens of normalised text are cut out, the pre-tokenizer makes words, and BPE makes ids of each word. A file
// that asks for a stage which is not here is refused by the stage's name.
// Reference: tests/text/tokenizer_json_test.cpp, ids and texts of the package.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/bpe.hpp"
#include "qlora/text/byte_level.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/tokenizer_model.hpp"
#include "qlora/text/tokenizer_stages.hpp"

namespace qlora {
inline namespace v0 {

/// Whether special tokens that a text spells become their ids. Text of documents and of users is text.
enum class SpecialTokens { as_text, parsed };

/// A tokenizer.json.
class JsonTokenizer final : public TokenizerModel {
 public:
  /// From the text of a tokenizer.json; `where` names it in errors. `eos` is the token that ends a text, which no
  /// tokenizer.json says; empty where there is none. What goes before a text (bos) is in the file. Throws Error for a
  /// model that is not BPE, a stage that is not known, and a file that contradicts itself.
  JsonTokenizer(std::string_view text, const std::string& where, std::string_view eos) {
    const Json file = parse_json(text, where);
    if (!file.is_object()) throw Error(where + ": holds no JSON object");
    read_pre_tokenizer(file, where);
    read_model(file, where);
    read_normalizer(file, where);
    read_added_tokens(file, where);
    read_decoder(file, where);
    read_post_processor(file, where);
    if (!eos.empty()) {
      special_.eos = id_of(eos);
      if (special_.eos < 0)
        throw Error(concat(where, ": holds no token '", detail::excerpt(eos), "', which ends a text"));
    }
  }

  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const override {
    return encode(text, SpecialTokens::as_text);
  }
  /// The same, where special tokens that the text spells may become their ids.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const {
    std::string valid;
    if (!sentencepiece_scan::is_utf8(text)) {
      valid = with_replacement_characters(text);
      text = valid;
    }
    Encoding out{BpeMerger(merges_), {}, {}};
    cut(raw_, text, special, [&](std::int32_t token, std::string_view part, std::size_t begin) {
      if (token >= 0) return out.ids.push_back(token);
      const std::string normal = detail::stages::normalized(normalizer_, part);
      cut(normal_, normal, special, [&](std::int32_t inner, std::string_view words, std::size_t inner_begin) {
        if (inner >= 0) return out.ids.push_back(inner);
        detail::stages::pre_tokenize(pre_tokenizer_, 0, words, begin == 0 && inner_begin == 0,
                                     [&](std::string_view word) { encode_word(word, out); });
      });
    });
    return std::move(out.ids);
  }

  [[nodiscard]] std::int32_t vocab_size() const override { return static_cast<std::int32_t>(pieces_.size()); }
  /// bos is what the post-processor puts before a text.
  [[nodiscard]] SpecialIds special_ids() const override { return special_; }
  [[nodiscard]] bool is_control(std::int32_t id) const override { return at(id).special; }
  [[nodiscard]] const std::string& piece(std::int32_t id) const override { return at(id).text; }
  [[nodiscard]] std::string surface(std::int32_t id) const override {
    const Piece& piece = at(id);
    if (piece.special) return {};
    if (piece.added) return piece.text;
    if (byte_level_) return byte_level::bytes_of(piece.text).value_or(piece.text);
    if (join(id) == PieceJoin::byte_run) return {static_cast<char>(*sentencepiece_scan::byte_of(piece.text))};
    std::string text = piece.text;
    for (std::size_t found = text.find(space_); !space_.empty() && found != std::string::npos;
         found = text.find(space_, found + 1))
      text.replace(found, space_.size(), " ");
    return text;
  }
  /// byte_level for all pieces of a byte-level file.
  [[nodiscard]] PieceJoin join(std::int32_t id) const override {
    if (byte_level_) return PieceJoin::byte_level;
    return byte_fallback_ && sentencepiece_scan::byte_of(at(id).text) ? PieceJoin::byte_run : PieceJoin::alone;
  }
  [[nodiscard]] bool adds_leading_space(std::int32_t id) const override {
    return strips_leading_space_ && at(id).text.starts_with(space_) && !space_.empty();
  }
  [[nodiscard]] std::int32_t id_of(std::string_view piece) const override {
    for (const detail::stages::AddedToken& token : added_) {
      if (token.content == piece) return token.id;
    }
    const auto found = vocab_.find(piece);
    return found == vocab_.end() ? -1 : found->second;
  }

 private:
  struct Piece {
    std::string text;
    bool added = false;
    bool special = false;
  };
  struct Encoding {
    BpeMerger merger;
    std::vector<std::int32_t> ids;
    std::unordered_map<std::string, std::vector<std::int32_t>, TextHash, std::equal_to<>> seen;  // words of this text
  };
  static constexpr std::int32_t max_pieces = 1 << 21;
  static constexpr std::size_t max_added = 1U << 16U;
  static constexpr std::size_t max_remembered = 1U << 16U;  // words; longer ones than 32 bytes seldom come again

  [[nodiscard]] const Piece& at(std::int32_t id) const { return pieces_[static_cast<std::size_t>(id)]; }

  [[nodiscard]] static std::string with_replacement_characters(std::string_view text) {
    std::string out;
    while (!text.empty()) {
      const std::size_t length = sentencepiece_scan::utf8_length(text);
      out.append(length == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, length));
      text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return out;
  }

  // --- encoding ---------------------------------------------------------------------------------------------------

  /// Calls use(id, {}, 0) for each added token in the text and use(-1, part, begin) for what lies between.
  template <class Use>
  void cut(const detail::stages::TokenFinder& finder, std::string_view text, SpecialTokens special,
           const Use& use) const {
    using detail::stages::code_point, detail::stages::character_before, detail::stages::is_white_space;
    std::size_t done = 0;
    finder.for_each_match(text, [&](std::size_t index, std::size_t begin, std::size_t end) {
      const detail::stages::AddedToken& token = added_[index];
      if (token.special && special == SpecialTokens::as_text) return;
      if (token.single_word && ((begin > 0 && is_word_character(text, character_before(text, begin))) ||
                                (end < text.size() && is_word_character(text, end))))
        return;
      if (token.lstrip) {
        while (begin > done && is_white_space(code_point(text, character_before(text, begin))))
          begin = character_before(text, begin);
      }
      if (token.rstrip) {
        while (end < text.size() && is_white_space(code_point(text, end)))
          end += sentencepiece_scan::utf8_length(text.substr(end));
      }
      if (done < begin) use(-1, text.substr(done, begin - done), done);
      use(token.id, std::string_view(), 0);
      done = end;
    });
    if (done < text.size()) use(-1, text.substr(done), done);
  }

  [[nodiscard]] bool is_word_character(std::string_view text, std::size_t at) const {
    bool found = false;
    const std::string_view character = text.substr(at, sentencepiece_scan::utf8_length(text.substr(at)));
    word_->for_each_match(character, [&](std::size_t, std::size_t) { found = true; });
    return found;
  }

  void encode_word(std::string_view word, Encoding& out) const {
    const bool short_word = word.size() <= 32;
    if (short_word) {
      if (const auto seen = out.seen.find(word); seen != out.seen.end()) {
        out.ids.insert(out.ids.end(), seen->second.begin(), seen->second.end());
        return;
      }
    }
    const std::size_t before = out.ids.size();
    const auto whole = ignore_merges_ ? vocab_bytes_.find(word) : vocab_bytes_.end();
    if (whole != vocab_bytes_.end()) {
      out.ids.push_back(whole->second);
    } else {
      out.merger.clear();
      for (std::string_view rest = word; !rest.empty();) {
        const std::size_t length = byte_level_ ? 1 : sentencepiece_scan::utf8_length(rest);
        add_symbol(rest.substr(0, length), out.merger);
        rest.remove_prefix(length);
      }
      out.merger.merge(out.ids);
    }
    if (short_word && out.seen.size() < max_remembered)
      out.seen.emplace(word, std::vector(out.ids.begin() + static_cast<std::ptrdiff_t>(before), out.ids.end()));
  }

  void add_symbol(std::string_view character, BpeMerger& merger) const {
    if (character.size() == 1) {
      if (const std::int32_t id = single_[static_cast<unsigned char>(character.front())]; id >= 0)
        return merger.add(id);
    } else if (const auto found = vocab_bytes_.find(character); found != vocab_bytes_.end()) {
      return merger.add(found->second);
    }
    if (byte_fallback_) {
      for (const char byte : character) merger.add(byte_ids_[static_cast<unsigned char>(byte)]);
      return;
    }
    // The package's rule: consecutive unknown characters are one token if fuse_unk says so.
    if (special_.unk >= 0 && !(fuse_unk_ && !merger.is_empty() && merger.last() == special_.unk))
      merger.add(special_.unk);
  }

  // --- reading ----------------------------------------------------------------------------------------------------

  [[noreturn]] static void refuse(const std::string& where, std::string_view part, std::string_view what) {
    throw Error(concat(where, ": ", part, " ", what));
  }
  /// The steps of a stage: none, one, or those of a Sequence.
  [[nodiscard]] static std::vector<Json> steps_of(const Json& file, const char* key, const char* list,
                                                  const std::string& where) {
    const Json* value = json_find(file, key);
    std::vector<Json> steps;
    if (value == nullptr) return steps;
    flatten(*value, list, where, 0, steps);
    if (steps.size() > 32) refuse(where, key, "has more than 32 steps");
    return steps;
  }
  static void flatten(const Json& value, const char* list, const std::string& where, int depth,
                      std::vector<Json>& steps) {
    if (!value.is_object() || depth > 8) throw Error(where + ": a stage is no object, or nested too deep");
    if (json_string(value, "type", where) != "Sequence") return steps.push_back(value);
    for (const Json& step : json_at(value, list, where)) flatten(step, list, where, depth + 1, steps);
  }

  void read_normalizer(const Json& file, const std::string& where) {
    for (const Json& step : steps_of(file, "normalizer", "normalizers", where)) {
      const std::string type = json_string(step, "type", where);
      if (type == "Prepend") {
        normalizer_.emplace_back(detail::stages::Prepend{json_string(step, "prepend", where)});
      } else if (type == "Replace") {
        normalizer_.emplace_back(detail::stages::Replace{
            detail::stages::Pattern(json_at(step, "pattern", where), where), json_string(step, "content", where)});
      } else {
        refuse(where, "the normalizer " + type, "is not supported; Prepend and Replace are");
      }
    }
  }

  void read_pre_tokenizer(const Json& file, const std::string& where) {
    using namespace detail::stages;
    for (const Json& step : steps_of(file, "pre_tokenizer", "pretokenizers", where)) {
      const std::string type = json_string(step, "type", where);
      if (byte_level_) refuse(where, "the pre-tokenizer " + type, "stands behind ByteLevel, which must be the last");
      if (type == "ByteLevel") {
        byte_level_ = true;
        ByteLevel bytes{json_bool_or(step, "add_prefix_space", where, true), {}};
        if (json_bool_or(step, "use_regex", where, true)) {
          bytes.words.emplace(
              Json{{"Regex", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"}}, where);
        }
        pre_tokenizer_.emplace_back(std::move(bytes));
      } else if (type == "Split") {
        pre_tokenizer_.emplace_back(Split{Pattern(json_at(step, "pattern", where), where),
                                          behavior(json_string(step, "behavior", where), where),
                                          json_bool_or(step, "invert", where, false)});
      } else if (type == "Digits") {
        const bool individual = json_bool_or(step, "individual_digits", where, false);
        pre_tokenizer_.emplace_back(
            Split{Pattern(Json{{"Regex", "\\p{N}"}}, where), individual ? Behavior::isolated : Behavior::contiguous});
      } else if (type == "Metaspace") {
        pre_tokenizer_.emplace_back(Metaspace{json_string_or(step, "replacement", where, "\xE2\x96\x81"),
                                              scheme(step, where), json_bool_or(step, "split", where, true)});
      } else {
        refuse(where, "the pre-tokenizer " + type, "is not supported; ByteLevel, Split, Digits and Metaspace are");
      }
    }
  }
  [[nodiscard]] static detail::stages::Behavior behavior(const std::string& name, const std::string& where) {
    using detail::stages::Behavior;
    static const std::map<std::string, Behavior> names{{"Removed", Behavior::removed},
                                                       {"Isolated", Behavior::isolated},
                                                       {"MergedWithPrevious", Behavior::merged_with_previous},
                                                       {"MergedWithNext", Behavior::merged_with_next},
                                                       {"Contiguous", Behavior::contiguous}};
    const auto found = names.find(name);
    if (found == names.end()) refuse(where, "the split behavior " + detail::excerpt(name), "is not known");
    return found->second;
  }
  [[nodiscard]] static detail::stages::PrependScheme scheme(const Json& step, const std::string& where) {
    using detail::stages::PrependScheme;
    // Older files have add_prefix_space instead.
    const std::string name = json_string_or(step, "prepend_scheme", where,
                                            json_bool_or(step, "add_prefix_space", where, true) ? "always" : "never");
    if (name == "always") return PrependScheme::always;
    if (name == "first") return PrependScheme::first;
    if (name != "never") refuse(where, "the prepend_scheme " + detail::excerpt(name), "is not known");
    return PrependScheme::never;
  }

  void read_model(const Json& file, const std::string& where) {
    const Json model = json_at(file, "model", where);
    const std::string type = json_string_or(model, "type", where, "BPE");
    if (type != "BPE") refuse(where, "the model " + detail::excerpt(type), "is not supported; BPE is");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!json_string_or(model, key, where, "").empty()) refuse(where, key, "is not supported");
    }
    if (json_find(model, "dropout") != nullptr && json_number(model, "dropout", where, 0, 1) > 0)
      refuse(where, "dropout", "makes the ids random, and is not supported");
    byte_fallback_ = json_bool_or(model, "byte_fallback", where, false);
    fuse_unk_ = json_bool_or(model, "fuse_unk", where, false);
    ignore_merges_ = json_bool_or(model, "ignore_merges", where, false);

    const Json vocab = json_at(model, "vocab", where);
    if (!vocab.is_object() || vocab.empty()) refuse(where, "vocab", "holds no pieces");
    single_.fill(-1);
    for (const auto& [text, value] : vocab.items()) {
      const auto id = static_cast<std::int32_t>(detail::checked_int(value, text, where, 0, max_pieces - 1));
      Piece& piece = piece_of(id);
      if (!piece.text.empty()) throw Error(concat(where, ": two pieces have the id ", id));
      if (text.empty()) throw Error(concat(where, ": the piece ", id, " is empty"));
      piece.text = text;
      vocab_.emplace(text, id);
      // A byte-level piece that stands for no bytes is an added token's: no word holds it.
      const std::optional<std::string> bytes = byte_level_ ? byte_level::bytes_of(text) : std::optional(text);
      if (!bytes) continue;
      if (bytes->size() == 1) single_[static_cast<unsigned char>(bytes->front())] = id;
      vocab_bytes_.emplace(*bytes, id);
    }
    if (byte_fallback_) {
      constexpr std::string_view digits = "0123456789ABCDEF";
      for (std::size_t byte = 0; byte < 256; ++byte) {
        const std::string name{'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'};
        const auto found = vocab_.find(name);
        if (found == vocab_.end())
          throw Error(concat(where, ": byte_fallback is true, and the piece ", name, " is missing"));
        byte_ids_[byte] = found->second;
      }
    }
    const std::string unk = json_string_or(model, "unk_token", where, "");
    if (!unk.empty()) {
      const auto found = vocab_.find(unk);
      if (found == vocab_.end()) throw Error(concat(where, ": unk_token '", detail::excerpt(unk), "' is no piece"));
      special_.unk = found->second;
    }
    if (byte_level_) {
      for (std::size_t byte = 0; byte < 256; ++byte) {
        if (single_[byte] < 0 && special_.unk < 0)
          throw Error(concat(where, ": no piece stands for the byte ", byte, ", so text would be lost"));
      }
    } else if (!byte_fallback_ && special_.unk < 0) {
      refuse(where, "the model", "has neither byte_fallback nor unk_token, so text would be lost");
    }
    read_merges(json_at(model, "merges", where), where);
  }

  void read_merges(const Json& merges, const std::string& where) {
    if (!merges.is_array()) refuse(where, "merges", "is no list");
    merges_ = MergeTable(merges.size());
    std::uint32_t rank = 0;
    for (const Json& merge : merges) {
      const std::string name = "merge " + std::to_string(rank);
      std::string left, right;
      if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else if (merge.is_string()) {  // the older form: one space between the two
        const auto text = merge.get<std::string>();
        const std::size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
          refuse(where, name, "is not two pieces with a space between them");
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {
        refuse(where, name, "is not a pair of pieces");
      }
      const auto id = [&](const std::string& text) {
        const auto found = vocab_.find(text);
        if (found == vocab_.end())
          throw Error(concat(where, ": ", name, ": '", detail::excerpt(text), "' is no piece"));
        return found->second;
      };
      merges_.set(id(left), id(right), rank, id(left + right));
      ++rank;
    }
  }

  void read_added_tokens(const Json& file, const std::string& where) {
    const Json* list = json_find(file, "added_tokens");
    if (list == nullptr) return;
    if (!list->is_array() || list->size() > max_added) refuse(where, "added_tokens", "is no list of at most 65,536");
    for (const Json& value : *list) {
      if (!value.is_object()) refuse(where, "added_tokens", "holds something that is no object");
      detail::stages::AddedToken token;
      token.id = static_cast<std::int32_t>(json_int(value, "id", where, 0, max_pieces - 1));
      token.content = json_string(value, "content", where);
      token.single_word = json_bool_or(value, "single_word", where, false);
      token.lstrip = json_bool_or(value, "lstrip", where, false);
      token.rstrip = json_bool_or(value, "rstrip", where, false);
      token.special = json_bool_or(value, "special", where, false);
      token.normalized = json_bool_or(value, "normalized", where, !token.special);
      const std::string name = concat("the added token ", token.id);
      if (token.content.empty() || token.content.size() > 1024)
        refuse(where, name, "has no text, or more than 1,024 bytes");
      const auto found = vocab_.find(token.content);
      if (found != vocab_.end() && found->second != token.id)
        throw Error(concat(where, ": ", name, " is the piece ", found->second, " of the model"));
      Piece& piece = piece_of(token.id);
      if (piece.added || (!piece.text.empty() && piece.text != token.content))
        refuse(where, name, "has the id of another piece");
      piece = {token.content, true, token.special};
      added_.push_back(std::move(token));
    }
    for (std::size_t index = 0; index < added_.size(); ++index) {
      const detail::stages::AddedToken& token = added_[index];
      if (token.single_word && !word_) word_.emplace(Json{{"Regex", "[\\w\\x{200c}\\x{200d}]"}}, where);
      if (token.normalized) {
        const std::string normal = detail::stages::normalized(normalizer_, token.content);
        if (!normal.empty()) normal_.add(normal, index);
      } else {
        raw_.add(token.content, index);
      }
    }
  }

  void read_decoder(const Json& file, const std::string& where) {
    for (const Json& step : steps_of(file, "decoder", "decoders", where)) {
      const std::string type = json_string(step, "type", where);
      if (type == "Replace") {
        const Json pattern = json_at(step, "pattern", where);
        space_ = json_string_or(pattern, "String", where, "");
        if (space_.empty() || json_string(step, "content", where) != " ")
          refuse(where, "the decoder Replace", "does more than turn a mark into a space, and is not supported");
      } else if (type == "Metaspace") {
        space_ = json_string_or(step, "replacement", where, "\xE2\x96\x81");
        strips_leading_space_ = scheme(step, where) != detail::stages::PrependScheme::never;
      } else if (type == "Strip") {
        const bool one_space = json_string(step, "content", where) == " " &&
                               json_int(step, "start", where, 0, 1) == 1 && json_int(step, "stop", where, 0, 1) == 0;
        if (!one_space)
          refuse(where, "the decoder Strip", "does more than take one leading space, and is not supported");
        strips_leading_space_ = true;
      } else if (type == "ByteLevel" ? !byte_level_ : type == "ByteFallback" ? !byte_fallback_ : type != "Fuse") {
        refuse(where, "the decoder " + type, "is not supported, or does not fit the encoder");
      }
    }
  }

  /// What goes before a single text is the only thing that matters here: bos.
  void read_post_processor(const Json& file, const std::string& where) {
    for (const Json& step : steps_of(file, "post_processor", "processors", where)) {
      const std::string type = json_string(step, "type", where);
      if (type == "ByteLevel") continue;  // it moves offsets, no ids
      if (type != "TemplateProcessing")
        refuse(where, "the post-processor " + type, "is not supported; TemplateProcessing and ByteLevel are");
      const Json single = json_at(step, "single", where);
      if (!single.is_array()) refuse(where, "the post-processor's template", "is no list");
      for (const Json& part : single) {
        if (!part.is_object() || part.contains("Sequence")) break;
        const std::string name = json_string(json_at(part, "SpecialToken", where), "id", where);
        if (special_.bos >= 0) refuse(where, "the post-processor", "puts more than one token before a text");
        special_.bos = id_of(name);
        if (special_.bos < 0) refuse(where, "the post-processor's token " + detail::excerpt(name), "is no piece");
      }
    }
  }

  [[nodiscard]] Piece& piece_of(std::int32_t id) {
    if (id >= vocab_size()) pieces_.resize(static_cast<std::size_t>(id) + 1);
    return pieces_[static_cast<std::size_t>(id)];
  }

  std::vector<Piece> pieces_;                 // by id; an id that the file skips has an empty text
  PieceIds vocab_;                            // the model's pieces as the file spells them
  PieceIds vocab_bytes_;                      // the same by the bytes that they stand for
  std::array<std::int32_t, 256> single_{};    // pieces of one byte
  std::array<std::int32_t, 256> byte_ids_{};  // "<0x00>" to "<0xFF>"
  MergeTable merges_;
  bool byte_level_ = false, byte_fallback_ = false, fuse_unk_ = false, ignore_merges_ = false;
  bool strips_leading_space_ = false;
  std::string space_;  // what stands for a space in pieces; empty for byte-level ones
  SpecialIds special_;
  std::vector<detail::stages::Normalizer> normalizer_;
  std::vector<detail::stages::PreTokenizer> pre_tokenizer_;
  std::vector<detail::stages::AddedToken> added_;
  detail::stages::TokenFinder raw_, normal_;  // tokens that are cut out before and after normalising
  std::optional<detail::stages::Pattern> word_;
};

}  // namespace v0
}  // namespace qlora
