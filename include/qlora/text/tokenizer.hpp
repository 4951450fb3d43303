// qlora/text/tokenizer.hpp — LLaMA-2's tokenizer: text to piece ids by sentencepiece, ids to text by our own decoder.
// What may not change: text never becomes an id below 3 (unknown, begin, end); "<s>" in a page is three plain pieces.
// The scan in sentencepiece_scan.hpp guarantees that; every model passes it before sentencepiece reads it.
// Reference: tests/text/tokenizer_test.cpp, ids and texts of the Python package on LLaMA-2's own model.
#pragma once

#include <sentencepiece_processor.h>

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
#include "qlora/io/sha256.hpp"
#include "qlora/text/sentencepiece_scan.hpp"

namespace qlora {
inline namespace v0 {

/// What the first decoded piece follows: nothing (its leading space is the tokenizer's own and goes) or other text.
enum class DecodeFrom { start, middle };

/// A LLaMA-2 tokenizer: text to ids and back. All const members may be called from many threads at once.
class Tokenizer {
 public:
  /// Reads a sentencepiece tokenizer.model. Throws Error when it cannot be read or is not of LLaMA-2's kind.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path) {
    const std::string bytes = read_text(path, sentencepiece_scan::max_file_bytes);
    try {
      return parse(bytes);
    } catch (const Error& error) {
      throw Error(path.string() + ": " + error.what(), error.kind());
    }
  }

  /// The same from the bytes of such a file.
  [[nodiscard]] static Tokenizer parse(std::string_view model) {
    Tokenizer result;
    result.sha256_ = qlora::sha256(model);
    result.pieces_ = sentencepiece_scan::scan(model);
    result.processor_ = std::make_unique<sentencepiece::SentencePieceProcessor>();
    const auto status = result.processor_->LoadFromSerializedProto(model);
    if (!status.ok()) throw Error("tokenizer model refused by sentencepiece: " + status.ToString());
    if (result.processor_->GetPieceSize() != result.vocab_size())
      throw Error("tokenizer model refused: sentencepiece counts its pieces differently");
    return result;
  }

  /// Ids of the text, without begin and end marks. A space goes before the text, as in LLaMA-2; NUL is a character like
  /// any other; bytes that are not UTF-8 become U+FFFD. Every id is at least 3. Safe to call from many threads.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const {
    QLORA_EXPECTS(text.size() <= max_text_bytes, "a text of ", text.size(), " bytes; split it into documents");
    std::vector<int> ids;
    const auto status = processor_->Encode(text, &ids);
    if (!status.ok()) throw Error("sentencepiece cannot encode the text: " + status.ToString());
    return {ids.begin(), ids.end()};
  }

  /// Text of the ids. Begin and end tokens give no text, the unknown piece reads " \u2047 ", bytes that make no UTF-8
  /// become U+FFFD.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids, DecodeFrom from = DecodeFrom::start) const;

  /// V: every id is below it.
  [[nodiscard]] std::int32_t vocab_size() const { return static_cast<std::int32_t>(pieces_.size()); }
  /// Of the model's bytes; data sets carry it, so that training knows which ids it gets.
  [[nodiscard]] const std::string& sha256() const { return sha256_; }
  /// Id of what is no piece of the vocabulary.
  [[nodiscard]] std::int32_t unk() const { return 0; }
  /// Id of the mark that begins a text.
  [[nodiscard]] std::int32_t bos() const { return 1; }
  /// Id of the mark that ends a text.
  [[nodiscard]] std::int32_t eos() const { return 2; }
  /// Whether the id has no text: begin and end marks, padding. Throws Error for an id outside the vocabulary.
  [[nodiscard]] bool is_control(std::int32_t id) const { return at(id).kind == sentencepiece_scan::PieceKind::control; }

  /// The piece as the model spells it: "\u2581Hello", "<0x0A>".
  [[nodiscard]] const std::string& piece(std::int32_t id) const { return at(id).text; }

  /// The bytes that the piece stands for, its space symbols turned to spaces; empty for control pieces. May be one byte
  /// of a longer UTF-8 character: StreamDecoder puts those together.
  [[nodiscard]] std::string surface(std::int32_t id) const {
    using sentencepiece_scan::PieceKind;
    const auto& [text, kind] = at(id);
    if (kind == PieceKind::control) return {};
    if (kind == PieceKind::unknown) return " \xE2\x81\x87 ";
    if (kind == PieceKind::byte) return {static_cast<char>(*sentencepiece_scan::byte_of(text))};
    std::string result;
    for (std::string_view rest = text; !rest.empty();) {
      const auto space = rest.find(sentencepiece_scan::space_symbol);
      result += rest.substr(0, space);
      if (space == std::string_view::npos) break;
      result += ' ';
      rest.remove_prefix(space + sentencepiece_scan::space_symbol.size());
    }
    return result;
  }

 private:
  static constexpr std::size_t max_text_bytes = std::size_t{1} << 28;  // the library counts bytes and pieces in int

  Tokenizer() = default;
  [[nodiscard]] const sentencepiece_scan::Piece& at(std::int32_t id) const {
    QLORA_EXPECTS(id >= 0 && id < vocab_size(), "token id ", id, " in a vocabulary of ", vocab_size());
    return pieces_[static_cast<std::size_t>(id)];
  }

  std::string sha256_;
  std::vector<sentencepiece_scan::Piece> pieces_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

/// Streaming decoder. Text that it has returned is final: bytes of an incomplete UTF-8 character are held
/// back until the character is whole or cannot become so. All parts together equal decode() of all ids.
class StreamDecoder {
 public:
  /// `tokenizer` must live as long as this.
  explicit StreamDecoder(const Tokenizer& tokenizer, DecodeFrom from = DecodeFrom::start)
      : tokenizer_(&tokenizer), at_start_(from == DecodeFrom::start) {}

  /// The text that this id completes, possibly none.
  [[nodiscard]] std::string push(std::int32_t id) {
    using sentencepiece_scan::PieceKind;
    std::string bytes = tokenizer_->surface(id);
    if (bytes.empty()) return finish();  // a control piece; it ends a run of byte pieces, as in the library
    const std::string& piece = tokenizer_->piece(id);
    if (std::exchange(at_start_, false) && piece.starts_with(sentencepiece_scan::space_symbol)) bytes.erase(0, 1);
    // Only runs of byte pieces join to characters; any other piece is whole and ends such a run.
    const bool is_byte = sentencepiece_scan::byte_of(piece).has_value();
    std::string out;
    if (!is_byte) out = finish();
    held_ += bytes;
    return out + take(!is_byte);
  }

  /// What is still held back, each byte as U+FFFD.
  [[nodiscard]] std::string finish() { return take(true); }

 private:
  std::string take(bool all) {
    std::string out;
    std::string_view rest = held_;
    while (!rest.empty()) {
      const std::size_t length = sentencepiece_scan::utf8_length(rest);
      if (length == 0 && !all && may_grow(rest)) break;
      if (length == 0) {
        out += "\xEF\xBF\xBD";
      } else {
        out += rest.substr(0, length);
      }
      rest.remove_prefix(length == 0 ? 1 : length);
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
        if (sentencepiece_scan::utf8_length(longer) == longer.size()) return true;
      }
    }
    return false;
  }

  const Tokenizer* tokenizer_;
  bool at_start_;
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
