// qlora/text/tokenizer.hpp — text to ids and ids to text, by the tokenizer that lies beside a model.
// Two files are read: tokenizer.model (sentencepiece.hpp) and tokenizer.json (tokenizer_json.hpp). Decoding is our own,
// and the same for both; it can stream.
// Reference: tests/text/tokenizer_test.cpp and tokenizer_json_test.cpp, ids and texts of the Python packages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/io/file.hpp"
#include "qlora/io/json.hpp"
#include "qlora/io/sha256.hpp"
#include "qlora/io/tokenizer_file.hpp"
#include "qlora/text/chat_text.hpp"
#include "qlora/text/sentencepiece.hpp"
#include "qlora/text/tokenizer_directory.hpp"
#include "qlora/text/tokenizer_json.hpp"
#include "qlora/text/tokenizer_model.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {

/// What the first decoded piece follows: nothing (its leading space is the tokenizer's own and goes) or other text.
enum class DecodeFrom { start, middle };

/// The tokenizer of a model: text to ids and back. All const members may be called from many threads at once.
class Tokenizer {
 public:
  /// Reads a tokenizer.model, or a tokenizer.json with the tokenizer_config.json beside it. A tokenizer.model whose
  /// directory adds tokens is read as the tokenizer.json that stands for both. Throws Error when it cannot be read or
  /// is of a kind that is not supported.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path) {
    if (path.extension() == ".json") {
      const std::string bytes = read_text(path, sentencepiece_scan::max_file_bytes);
      return {bytes, std::make_unique<JsonTokenizer>(bytes, path.string(), end_token(path.parent_path()))};
    }
    if (!exists(path) && exists(path.parent_path() / "vocab.json")) {
      throw Error(
          concat(path.parent_path().string(),
                 ": the tokenizer is there as vocab.json and merges.txt alone; make a tokenizer.json of them with "
                 "the Python package transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"));
    }
    const std::string bytes = read_text(path, sentencepiece_scan::max_file_bytes);
    refuse_lfs_pointer(bytes, path.string());
    try {
      if (path.filename() == "tokenizer.model") {
        if (const auto made = converted_tokenizer(path.parent_path()); made && made->adds) {
          return {bytes, std::make_unique<JsonTokenizer>(made->json(), "with added tokens",
                                                         end_token(path.parent_path(), "</s>"))};
        }
      }
      return parse(bytes);
    } catch (const Error& error) {
      throw Error(path.string() + ": " + error.what(), error.kind());
    }
  }

  /// From the bytes of a tokenizer.model.
  [[nodiscard]] static Tokenizer parse(std::string_view model) {
    return {model, std::make_unique<SentencePieceModel>(model)};
  }

  /// Ids of the text, without begin and end marks. No id of the result is a control id: "<s>" in a page is plain
  /// pieces. Bytes that are not UTF-8 become U+FFFD. Safe to call from many threads.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const {
    QLORA_EXPECTS(text.size() <= max_text_bytes, "a text of ", text.size(), " bytes; split it into documents");
    return model_->encode(text);
  }

  /// Ids of a conversation: a mark that the text spells outside of ChatText::content is its id. No begin or end mark is
  /// added. Safe to call from many threads.
  [[nodiscard]] MarkedIds encode_marked(const ChatText& chat) const {
    QLORA_EXPECTS(chat.text.size() <= max_text_bytes, "a conversation of ", chat.text.size(), " bytes");
    return model_->encode_marked(chat);
  }
  /// The marks that encode_marked() knows: "<s>", "<|im_start|>".
  [[nodiscard]] std::vector<std::string> marks() const { return model_->marks(); }
  /// The id of a piece as the file spells it; -1 where there is none.
  [[nodiscard]] std::int32_t id_of(std::string_view piece) const { return model_->id_of(piece); }

  /// Text of the ids. Begin and end tokens give no text, sentencepiece's unknown piece reads " \u2047 ", bytes that
  /// make no UTF-8 become U+FFFD.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids, DecodeFrom from = DecodeFrom::start) const;

  /// V: every id is below it.
  [[nodiscard]] std::int32_t vocab_size() const { return model_->vocab_size(); }
  /// Of the file's bytes; data sets carry it, so that training knows which ids it gets.
  [[nodiscard]] const std::string& sha256() const { return sha256_; }
  /// Id of what is no piece of the vocabulary; -1 where the tokenizer has none.
  [[nodiscard]] std::int32_t unk() const { return model_->special_ids().unk; }
  /// Id of the mark that begins a text; -1 where nothing goes before a text.
  [[nodiscard]] std::int32_t bos() const { return model_->special_ids().bos; }
  /// Id of the mark that ends a text.
  [[nodiscard]] std::int32_t eos() const { return model_->special_ids().eos; }
  /// Whether the id has no text: begin and end marks, padding. Throws Error for an id outside the vocabulary.
  [[nodiscard]] bool is_control(std::int32_t id) const { return model_->is_control(checked(id)); }

  /// The piece as the file spells it: "\u2581Hello", "<0x0A>".
  [[nodiscard]] const std::string& piece(std::int32_t id) const { return model_->piece(checked(id)); }

  /// The bytes that the piece stands for, its space symbols turned to spaces; empty for control pieces. May be one byte
  /// of a longer UTF-8 character: StreamDecoder puts those together.
  [[nodiscard]] std::string surface(std::int32_t id) const { return model_->surface(checked(id)); }

 private:
  friend class StreamDecoder;
  static constexpr std::size_t max_text_bytes = std::size_t{1} << 28;  // sentencepiece counts bytes and pieces in int

  Tokenizer(std::string_view bytes, std::unique_ptr<TokenizerModel> model)
      : sha256_(qlora::sha256(bytes)), model_(std::move(model)) {}
  [[nodiscard]] std::int32_t checked(std::int32_t id) const {
    QLORA_EXPECTS(id >= 0 && id < vocab_size(), "token id ", id, " in a vocabulary of ", vocab_size());
    return id;
  }

  /// eos_token of the directory's tokenizer_config.json; the token that the package transformers ends a text with.
  /// Where that names none, it is the one of the class that it names, or `otherwise`.
  [[nodiscard]] static std::string end_token(const std::filesystem::path& dir, const char* otherwise = nullptr) {
    const std::string where = (dir / "tokenizer_config.json").string();
    const Json config = detail::tokenizer_config(dir);
    if (auto token = detail::named_token(config, "eos_token", where)) return *token;
    if (json_find(config, "tokenizer_class") != nullptr && detail::is_llama_tokenizer(config, where)) return "</s>";
    if (otherwise != nullptr) return otherwise;
    throw Error(concat(where,
                       exists(dir / "tokenizer_config.json") ? ": the key 'eos_token' is missing" : " is missing",
                       ": it says which token ends a text (\"eos_token\"), and tokenizer.json does not"));
  }

  std::string sha256_;
  std::unique_ptr<TokenizerModel> model_;
};

/// Streaming decoder. Text that it has returned is final: bytes of an incomplete UTF-8 character are held
/// back until the character is whole or cannot become so. All parts together equal decode() of all ids. Of one thread.
class StreamDecoder {
 public:
  /// The tokenizer must live as long as the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, DecodeFrom from = DecodeFrom::start)
      : tokenizer_(&tokenizer), at_start_(from == DecodeFrom::start) {}

  /// The text that this id completes, possibly none.
  [[nodiscard]] std::string push(std::int32_t id) {
    std::string bytes = tokenizer_->surface(id);
    const TokenizerModel& model = *tokenizer_->model_;
    if (bytes.empty()) {  // a control piece; it ends a run of byte pieces, as in sentencepiece
      return model.join(id) == PieceJoin::byte_level ? std::string() : finish();
    }
    if (std::exchange(at_start_, false) && model.adds_leading_space(id)) bytes.erase(0, 1);
    std::string out;
    join_ = model.join(id);
    // Only runs of byte pieces join to characters; a piece of whole characters ends such a run.
    if (join_ == PieceJoin::alone) out = finish();
    held_ += bytes;
    return out + take(join_ == PieceJoin::alone);
  }

  /// What is still held back, each byte as U+FFFD.
  [[nodiscard]] std::string finish() { return take(true); }

 private:
  std::string take(bool all) {
    std::string out;
    std::string_view rest = held_;
    while (!rest.empty()) {
      const std::size_t length = utf8_length(rest);
      if (length == 0 && !all && may_grow(rest)) break;
      if (length == 0) {
        out += "\xEF\xBF\xBD";
      } else {
        out += rest.substr(0, length);
      }
      rest.remove_prefix(length > 0 ? length : join_ == PieceJoin::byte_level ? invalid_length(rest) : 1);
    }
    held_ = std::string(rest);
    return out;
  }

  /// Whether more bytes could complete the character that `bytes` (fewer than four) begins.
  [[nodiscard]] static bool may_grow(std::string_view bytes) {
    for (const char low : {'\x80', '\x90', '\xA0'}) {  // one of these is in range for every lead byte
      std::string longer(bytes);
      while (longer.size() < 4) {
        longer += low;
        if (utf8_length(longer) == longer.size()) return true;
      }
    }
    return false;
  }

  /// Bytes of the longest part at the front of `bytes` that begins a character but does not complete it; at least 1.
  [[nodiscard]] static std::size_t invalid_length(std::string_view bytes) {
    std::size_t length = 1;
    while (length < std::min<std::size_t>(bytes.size(), 3) && may_grow(bytes.substr(0, length + 1))) ++length;
    return may_grow(bytes.substr(0, 1)) ? length : 1;
  }

  const Tokenizer* tokenizer_;
  bool at_start_;
  PieceJoin join_ = PieceJoin::alone;  // of the last piece
  std::string held_;
};

inline std::string Tokenizer::decode(std::span<const std::int32_t> ids, DecodeFrom from) const {
  StreamDecoder decoder(*this, from);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

}  // namespace v0
}  // namespace qlora
