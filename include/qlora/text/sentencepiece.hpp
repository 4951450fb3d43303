// qlora/text/sentencepiece.hpp — LLaMA-2's tokenizer.model: text to piece ids.
// What may not change: text never becomes an id below 3 (unknown, begin, end); "<s>" in a page is three plain pieces.
// The scan in sentencepiece_scan.hpp guarantees that; every model passes it first. The encoding is our own
// (piece_bpe.hpp); the library sentencepiece, whose ids it gives, encodes for models that need more than merges.
// Reference: tests/text/tokenizer_test.cpp, ids and texts of the Python package on LLaMA-2's own model.
#pragma once

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/chat_text.hpp"
#include "qlora/text/piece_bpe.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/text_pieces.hpp"
#include "qlora/text/tokenizer_model.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {

/// A tokenizer.model.
class SentencePieceModel final : public TokenizerModel {
 public:
  /// From the bytes of a tokenizer.model. Throws Error when it is not of LLaMA-2's kind.
  explicit SentencePieceModel(std::string_view model)
      : pieces_(sentencepiece_scan::scan(model)), bpe_(PieceBpe::of(pieces_)) {
    for (std::int32_t id = 0; id < vocab_size(); ++id) {
      if (is_control(id)) controls_.push_back(id);
    }
    if (bpe_) return;
    library_ = std::make_unique<sentencepiece::SentencePieceProcessor>();
    const auto status = library_->LoadFromSerializedProto(model);
    if (!status.ok()) throw Error("tokenizer model refused by sentencepiece: " + status.ToString());
    if (library_->GetPieceSize() != vocab_size())
      throw Error("tokenizer model refused: sentencepiece counts its pieces differently");
  }

  /// A space goes before the text, as in LLaMA-2; NUL is a character like any other. Every id is at least 3.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    if (!bpe_) {
      const auto status = library_->Encode(text, &ids);
      if (!status.ok()) throw Error("sentencepiece cannot encode the text: " + status.ToString());
    } else if (text.size() <= detail::TextWindows{}.bytes || !encode_windows(text, ids)) {
      bpe_->encode(text, true, ids);
    }
    return ids;
  }
  /// A space goes before each part that stands between marks, as in Meta's code, which encodes a turn at a time.
  [[nodiscard]] MarkedIds encode_marked(const ChatText& chat) const override {
    MarkedIds out;
    const auto append = [&](std::size_t begin, std::size_t end) {
      if (begin == end) return;
      const std::string_view part = std::string_view(chat.text).substr(begin, end - begin);
      out.append(encode(part), part, begin, [&](std::int32_t id) { return surface(id); });
    };
    std::size_t done = 0;
    while (true) {
      TextRange next{chat.text.size(), chat.text.size()};
      std::int32_t found = -1;
      for (const std::int32_t id : controls_) {
        const std::string& spelled = at(id).text;
        for (std::size_t begin = chat.text.find(spelled, done); begin < next.begin;
             begin = chat.text.find(spelled, begin + 1)) {
          const TextRange mark{begin, begin + spelled.size()};
          if (std::any_of(chat.content.begin(), chat.content.end(), [&](auto& said) { return said.overlaps(mark); }))
            continue;
          next = mark;
          found = id;
        }
      }
      append(done, next.begin);
      if (found < 0) return out;
      out.append(found, next.begin);
      done = next.end;
    }
  }
  [[nodiscard]] std::vector<std::string> marks() const override {
    std::vector<std::string> out;
    for (const std::int32_t id : controls_) out.push_back(at(id).text);
    return out;
  }
  [[nodiscard]] std::int32_t vocab_size() const override { return static_cast<std::int32_t>(pieces_.size()); }
  /// LLaMA-2's: 0, 1 and 2.
  [[nodiscard]] SpecialIds special_ids() const override { return {.unk = 0, .bos = 1, .eos = 2}; }
  [[nodiscard]] bool is_control(std::int32_t id) const override { return at(id).kind == Kind::control; }
  [[nodiscard]] const std::string& piece(std::int32_t id) const override { return at(id).text; }
  [[nodiscard]] std::string surface(std::int32_t id) const override {
    const std::string& text = at(id).text;
    const Kind kind = at(id).kind;
    if (kind == Kind::control) return {};
    if (kind == Kind::unknown) return " \xE2\x81\x87 ";
    if (kind == Kind::byte) return {static_cast<char>(*sentencepiece_scan::byte_of(text))};
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
  /// byte_run for "<0x00>" to "<0xFF>".
  [[nodiscard]] PieceJoin join(std::int32_t id) const override {
    return sentencepiece_scan::byte_of(at(id).text) ? PieceJoin::byte_run : PieceJoin::alone;
  }
  [[nodiscard]] bool adds_leading_space(std::int32_t id) const override {
    return at(id).text.starts_with(sentencepiece_scan::space_symbol);
  }
  [[nodiscard]] std::int32_t id_of(std::string_view piece) const override {
    const auto found =
        std::find_if(pieces_.begin(), pieces_.end(), [&](const auto& entry) { return entry.text == piece; });
    return found == pieces_.end() ? -1 : static_cast<std::int32_t>(found - pieces_.begin());
  }

 private:
  using Kind = sentencepiece_scan::PieceKind;

  [[nodiscard]] bool encode_windows(std::string_view text, std::vector<std::int32_t>& ids) const {
    std::string valid;
    if (!is_utf8(text)) {
      valid = sentencepiece_scan::with_replacement_characters(text);
      text = valid;
    }
    const auto encode_part = [&](std::string_view part, bool first) {
      std::vector<std::int32_t> of_part;
      bpe_->encode(part, first, of_part);
      return of_part;
    };
    return detail::encode_in_windows(
        text, encode_part, [&](std::string_view before, std::int32_t id) { return bytes_before(before, id); }, ids);
  }
  /// Bytes at the end of a text that a piece stands for.
  [[nodiscard]] std::optional<std::size_t> bytes_before(std::string_view text, std::int32_t id) const {
    const std::string& piece = at(id).text;
    const Kind kind = at(id).kind;
    if (kind == Kind::byte) return text.ends_with(surface(id)) ? std::optional<std::size_t>(1) : std::nullopt;
    if (kind != Kind::normal && kind != Kind::user_defined) return std::nullopt;
    const std::size_t all = text.size();
    for (std::string_view rest = piece; !rest.empty();) {
      const bool space = rest.ends_with(sentencepiece_scan::space_symbol);
      const std::size_t length = space ? sentencepiece_scan::space_symbol.size() : 1;
      if (space && text.ends_with(' ')) {
        text.remove_suffix(1);
      } else if (text.ends_with(rest.substr(rest.size() - length))) {
        text.remove_suffix(length);
      } else {
        return std::nullopt;
      }
      rest.remove_suffix(length);
    }
    return all - text.size();
  }
  [[nodiscard]] const sentencepiece_scan::Piece& at(std::int32_t id) const {
    return pieces_[static_cast<std::size_t>(id)];
  }

  std::vector<sentencepiece_scan::Piece> pieces_;
  std::optional<PieceBpe> bpe_;
  std::vector<std::int32_t> controls_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> library_;  // where there is no bpe_
};

}  // namespace v0
}  // namespace qlora
