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
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/json.hpp"
#include "qlora/text/bpe.hpp"
#include "qlora/text/byte_level.hpp"
#include "qlora/text/chat_text.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/text_pieces.hpp"
#include "qlora/text/tokenizer_json_stages.hpp"
#include "qlora/text/tokenizer_model.hpp"
#include "qlora/text/tokenizer_stages.hpp"
#include "qlora/text/utf8.hpp"

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
    if (!is_utf8(text)) {
      valid = sentencepiece_scan::with_replacement_characters(text);
      text = valid;
    }
    Encoding out{BpeMerger(merges_), {}, {}};
    const auto is_mark = [&](std::size_t, std::size_t) { return special == SpecialTokens::parsed; };
    cut(raw_, text, is_mark, [&](std::int32_t token, std::size_t begin, std::size_t end) {
      if (token >= 0) return out.ids.push_back(token);
      encode_part(text.substr(begin, end - begin), begin == 0, special, out);
    });
    return std::move(out.ids);
  }
  [[nodiscard]] MarkedIds encode_marked(const ChatText& chat) const override {
    if (!is_utf8(chat.text)) throw Error("a message holds bytes that are not UTF-8");
    MarkedIds out;
    Encoding encoding{BpeMerger(merges_), {}, {}};
    const auto is_mark = [&](std::size_t begin, std::size_t end) {
      return std::none_of(chat.content.begin(), chat.content.end(), [&](const TextRange& said) {
        return said.overlaps({begin, end});
      });
    };
    cut(marks_, chat.text, is_mark, [&](std::int32_t token, std::size_t begin, std::size_t end) {
      if (token >= 0) return out.append(token, begin);
      const std::string_view part = std::string_view(chat.text).substr(begin, end - begin);
      encoding.ids.clear();
      encode_part(part, begin == 0, SpecialTokens::as_text, encoding);
      const auto surface_of = [&](std::int32_t id) { return surface(id); };
      if (!lacks_bytes_ && !rewrites_) return out.append(encoding.ids, part, begin, surface_of);
      const detail::stages::Normalized kept = kept_of(part);
      const std::size_t before = out.begins.size();
      out.append(encoding.ids, kept.text, 0, surface_of);
      for (std::size_t i = before; i < out.begins.size(); ++i) out.begins[i] = begin + kept.places[out.begins[i]];
    });
    return out;
  }
  [[nodiscard]] std::vector<std::string> marks() const override {
    std::vector<std::string> out;
    for (const detail::stages::AddedToken& token : added_) {
      if (token.special) out.push_back(token.content);
    }
    return out;
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

  // --- encoding ---------------------------------------------------------------------------------------------------

  /// Ids of what lies between added tokens. `first`: it begins the text.
  void encode_part(std::string_view text, bool first, SpecialTokens special, Encoding& out) const {
    const std::string normal = detail::stages::normalized(normalizer_, text).text;
    const std::string_view words = normal;
    const auto is_mark = [&](std::size_t, std::size_t) { return special == SpecialTokens::parsed; };
    cut(normal_, words, is_mark, [&](std::int32_t token, std::size_t begin, std::size_t end) {
      if (token >= 0) return out.ids.push_back(token);
      detail::stages::pre_tokenize(pre_tokenizer_, 0, words.substr(begin, end - begin), first && begin == 0,
                                   [&](std::string_view word) { encode_word(word, out); });
    });
  }

  /// Calls use(id, begin, end) for each added token in the text and use(-1, begin, end) for what lies between. Special
  /// tokens are those that is_mark(begin, end) says to be.
  template <class IsMark, class Use>
  void cut(const detail::stages::TokenFinder& finder, std::string_view text, const IsMark& is_mark,
           const Use& use) const {
    using detail::stages::code_point, detail::stages::character_before, detail::stages::is_white_space;
    std::size_t done = 0;
    finder.for_each_match(text, [&](std::size_t index, std::size_t begin, std::size_t end) {
      const detail::stages::AddedToken& token = added_[index];
      if (token.special && !is_mark(begin, end)) return;
      if (token.single_word && ((begin > 0 && is_word_character(text, character_before(text, begin))) ||
                                (end < text.size() && is_word_character(text, end))))
        return;
      if (token.lstrip) {
        while (begin > done && is_white_space(code_point(text, character_before(text, begin))))
          begin = character_before(text, begin);
      }
      if (token.rstrip) {
        while (end < text.size() && is_white_space(code_point(text, end))) end += utf8_length(text.substr(end));
      }
      if (done < begin) use(-1, done, begin);
      use(token.id, begin, end);
      done = end;
    });
    if (done < text.size()) use(-1, done, text.size());
  }

  [[nodiscard]] bool is_word_character(std::string_view text, std::size_t at) const {
    bool found = false;
    const std::string_view character = text.substr(at, utf8_length(text.substr(at)));
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
    } else if (word.size() <= detail::TextWindows{}.bytes || !encode_windows(word, out)) {
      merge_word(word, out.merger, out.ids);
    }
    if (short_word && out.seen.size() < max_remembered)
      out.seen.emplace(word, std::vector(out.ids.begin() + static_cast<std::ptrdiff_t>(before), out.ids.end()));
  }

  void merge_word(std::string_view word, BpeMerger& merger, std::vector<std::int32_t>& ids) const {
    merger.clear();
    for (std::string_view rest = word; !rest.empty();) {
      const std::size_t length = byte_level_ ? 1 : utf8_length(rest);
      add_symbol(rest.substr(0, length), merger);
      rest.remove_prefix(length);
    }
    merger.merge(ids);
  }

  /// A word that is a whole text, as it is for LLaMA-2's kind of file, or one without spaces: merging takes some 30
  /// bytes for each character.
  [[nodiscard]] bool encode_windows(std::string_view word, Encoding& out) const {
    const auto encode_part = [&](std::string_view part, bool) {
      std::vector<std::int32_t> ids;
      merge_word(part, out.merger, ids);
      return ids;
    };
    const auto bytes_before = [&](std::string_view text, std::int32_t id) -> std::optional<std::size_t> {
      if (id == special_.unk) return std::nullopt;
      const std::string bytes = join(id) == PieceJoin::alone ? at(id).text : surface(id);
      if (bytes.empty() || !text.ends_with(bytes)) return std::nullopt;
      return bytes.size();
    };
    return detail::encode_in_windows(word, encode_part, bytes_before, out.ids);
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
    // The package's rule: consecutive unknown characters are one token if fuse_unk says so. Without an unknown token
    // they give none; is_written() says which those may be.
    if (special_.unk >= 0 && !(fuse_unk_ && !merger.is_empty() && merger.last() == special_.unk))
      merger.add(special_.unk);
  }

  /// What pieces are made of, and where it stands in the text; the last place is the text's end.
  [[nodiscard]] detail::stages::Normalized kept_of(std::string_view text) const {
    static const std::vector<detail::stages::Normalizer> none;
    detail::stages::Normalized normal = detail::stages::normalized(rewrites_ ? normalizer_ : none, text, true);
    return lacks_bytes_ ? detail::stages::kept_bytes(normal, single_.data(), text.size()) : normal;
  }

  // --- reading ----------------------------------------------------------------------------------------------------

  void read_normalizer(const Json& file, const std::string& where) {
    normalizer_ = detail::stages::normalizers_of(file, where);
    using detail::stages::Prepend, detail::stages::Replace;
    // Marks for spaces are told from the text without that (MarkedIds::append).
    rewrites_ = std::any_of(normalizer_.begin(), normalizer_.end(), [](const auto& step) {
      const auto* replace = std::get_if<Replace>(&step);
      return replace != nullptr ? replace->content != "\xE2\x96\x81" : !std::holds_alternative<Prepend>(step);
    });
  }
  void read_pre_tokenizer(const Json& file, const std::string& where) {
    pre_tokenizer_ = detail::stages::pre_tokenizers_of(file, where);
    byte_level_ = !pre_tokenizer_.empty() && std::holds_alternative<detail::stages::ByteLevel>(pre_tokenizer_.back());
  }

  void read_model(const Json& file, const std::string& where) {
    const Json model = json_at(file, "model", where);
    const std::string type = json_string_or(model, "type", where, "BPE");
    if (type != "BPE") detail::stages::refuse(where, "the model " + detail::excerpt(type), "is not supported; BPE is");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!json_string_or(model, key, where, "").empty()) detail::stages::refuse(where, key, "is not supported");
    }
    if (json_find(model, "dropout") != nullptr && json_number(model, "dropout", where, 0, 1) > 0)
      detail::stages::refuse(where, "dropout", "makes the ids random, and is not supported");
    byte_fallback_ = json_bool_or(model, "byte_fallback", where, false);
    fuse_unk_ = json_bool_or(model, "fuse_unk", where, false);
    ignore_merges_ = json_bool_or(model, "ignore_merges", where, false);

    const Json vocab = json_at(model, "vocab", where);
    if (!vocab.is_object() || vocab.empty()) detail::stages::refuse(where, "vocab", "holds no pieces");
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
        if (single_[byte] >= 0 || special_.unk >= 0) continue;
        if (detail::stages::is_written(byte))
          throw Error(concat(where, ": no piece stands for the byte ", byte, ", so text would be lost"));
        lacks_bytes_ = true;
      }
    } else if (!byte_fallback_ && special_.unk < 0) {
      detail::stages::refuse(where, "the model", "has neither byte_fallback nor unk_token, so text would be lost");
    }
    read_merges(json_at(model, "merges", where), where);
  }

  void read_merges(const Json& merges, const std::string& where) {
    if (!merges.is_array()) detail::stages::refuse(where, "merges", "is no list");
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
          detail::stages::refuse(where, name, "is not two pieces with a space between them");
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {
        detail::stages::refuse(where, name, "is not a pair of pieces");
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
    if (!list->is_array() || list->size() > max_added)
      detail::stages::refuse(where, "added_tokens", "is no list of at most 65,536");
    for (const Json& value : *list) {
      if (!value.is_object()) detail::stages::refuse(where, "added_tokens", "holds something that is no object");
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
        detail::stages::refuse(where, name, "has no text, or more than 1,024 bytes");
      const auto found = vocab_.find(token.content);
      if (found != vocab_.end() && found->second != token.id)
        throw Error(concat(where, ": ", name, " is the piece ", found->second, " of the model"));
      Piece& piece = piece_of(token.id);
      if (piece.added || (!piece.text.empty() && piece.text != token.content))
        detail::stages::refuse(where, name, "has the id of another piece");
      piece = {token.content, true, token.special};
      added_.push_back(std::move(token));
    }
    for (std::size_t index = 0; index < added_.size(); ++index) {
      const detail::stages::AddedToken& token = added_[index];
      // The package looks for the ends of words with another engine, to which no number but a digit is of a word.
      if (token.single_word && !word_)
        word_.emplace(Json{{"Regex", R"((?![\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}])[\w\x{200c}\x{200d}])"}}, where);
      if (token.normalized) {
        const std::string normal = detail::stages::normalized(normalizer_, token.content).text;
        if (!normal.empty()) normal_.add(normal, index);
      } else {
        raw_.add(token.content, index);
      }
      // Where a file says that marks are found in normalised text, only the first of a conversation would be one.
      if (token.special || !token.normalized) marks_.add(token.content, index);
    }
  }

  void read_decoder(const Json& file, const std::string& where) {
    for (const Json& step : detail::stages::steps_of(file, "decoder", "decoders", where)) {
      const std::string type = json_string(step, "type", where);
      if (type == "Replace") {
        const Json pattern = json_at(step, "pattern", where);
        space_ = json_string_or(pattern, "String", where, "");
        if (space_.empty() || json_string(step, "content", where) != " ")
          detail::stages::refuse(where, "the decoder Replace",
                                 "does more than turn a mark into a space, and is not supported");
      } else if (type == "Metaspace") {
        space_ = detail::stages::replacement(step, where);
        strips_leading_space_ = detail::stages::prepend_scheme(step, where) != detail::stages::PrependScheme::never;
      } else if (type == "Strip") {
        const bool one_space = json_string(step, "content", where) == " " &&
                               json_int(step, "start", where, 0, 1) == 1 && json_int(step, "stop", where, 0, 1) == 0;
        if (!one_space)
          detail::stages::refuse(where, "the decoder Strip",
                                 "does more than take one leading space, and is not supported");
        strips_leading_space_ = true;
      } else if (type == "ByteLevel" ? !byte_level_ : type == "ByteFallback" ? !byte_fallback_ : type != "Fuse") {
        detail::stages::refuse(where, "the decoder " + type, "is not supported, or does not fit the encoder");
      }
    }
  }

  /// What goes before a single text is the only thing that matters here: bos.
  void read_post_processor(const Json& file, const std::string& where) {
    for (const Json& step : detail::stages::steps_of(file, "post_processor", "processors", where)) {
      const std::string type = json_string(step, "type", where);
      if (type == "ByteLevel") continue;  // it moves offsets, no ids
      if (type != "TemplateProcessing")
        detail::stages::refuse(where, "the post-processor " + type,
                               "is not supported; TemplateProcessing and ByteLevel are");
      const Json single = json_at(step, "single", where);
      if (!single.is_array()) detail::stages::refuse(where, "the post-processor's template", "is no list");
      for (const Json& part : single) {
        if (!part.is_object() || part.contains("Sequence")) break;
        const std::string name = json_string(json_at(part, "SpecialToken", where), "id", where);
        if (special_.bos >= 0)
          detail::stages::refuse(where, "the post-processor", "puts more than one token before a text");
        special_.bos = id_of(name);
        if (special_.bos < 0)
          detail::stages::refuse(where, "the post-processor's token " + detail::excerpt(name), "is no piece");
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
  bool lacks_bytes_ = false;  // some bytes give no id
  bool rewrites_ = false;     // normalisers change more than spaces
  bool strips_leading_space_ = false;
  std::string space_;  // what stands for a space in pieces; empty for byte-level ones
  SpecialIds special_;
  std::vector<detail::stages::Normalizer> normalizer_;
  std::vector<detail::stages::PreTokenizer> pre_tokenizer_;
  std::vector<detail::stages::AddedToken> added_;
  detail::stages::TokenFinder raw_, normal_;  // tokens that are cut out before and after normalising
  detail::stages::TokenFinder marks_;         // raw_ and all special tokens
  std::optional<detail::stages::Pattern> word_;
};

}  // namespace v0
}  // namespace qlora
