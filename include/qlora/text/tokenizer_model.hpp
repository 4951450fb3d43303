// qlora/text/tokenizer_model.hpp — what a tokenizer file is to the rest of the library: text to ids, ids to bytes.
// Two kinds of file are read: sentencepiece's tokenizer.model (sentencepiece.hpp) and the tokenizer.json of the package
// `tokenizers` (tokenizer_json.hpp). tokenizer.hpp picks one and adds decoding.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/text/chat_text.hpp"

namespace qlora {
inline namespace v0 {

/// Ids with a meaning of their own; -1 where the tokenizer has none.
struct SpecialIds {
  std::int32_t unk = -1;  ///< stands for what is no piece
  std::int32_t bos = -1;  ///< goes before a text
  std::int32_t eos = -1;  ///< ends a text
};

/// How the bytes of consecutive pieces make text.
enum class PieceJoin {
  alone,      ///< the piece is whole characters
  byte_run,   ///< one byte; consecutive ones make characters, each byte that does not becomes U+FFFD
  byte_level  ///< any part of UTF-8 text; each longest invalid part becomes one U+FFFD
};

/// Const calls are safe from many threads.
class TokenizerModel {
 public:
  virtual ~TokenizerModel() = default;

  /// Ids of the text, without begin and end marks. No id of the result is a control id, whatever the text spells. Bytes
  /// that are not UTF-8 become U+FFFD.
  [[nodiscard]] virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;

  /// Ids of a conversation, without begin and end marks around it. A mark that the text spells outside of
  /// ChatText::content is its id; what stands between marks is encoded as encode() does, but is the beginning of a text
  /// only where it is.
  [[nodiscard]] virtual MarkedIds encode_marked(const ChatText& chat) const = 0;
  /// The marks that encode_marked() knows, as the file spells them.
  [[nodiscard]] virtual std::vector<std::string> marks() const = 0;

  /// One more than the largest id.
  [[nodiscard]] virtual std::int32_t vocab_size() const = 0;
  /// The ids of the marks.
  [[nodiscard]] virtual SpecialIds special_ids() const = 0;
  /// Whether the id is a mark that gives no text. Like the next three, expects 0 <= id < vocab_size().
  [[nodiscard]] virtual bool is_control(std::int32_t id) const = 0;
  /// The piece as the file spells it.
  [[nodiscard]] virtual const std::string& piece(std::int32_t id) const = 0;
  /// The bytes that the piece stands for; empty for control pieces.
  [[nodiscard]] virtual std::string surface(std::int32_t id) const = 0;
  /// How the piece's bytes go together with those of its neighbours.
  [[nodiscard]] virtual PieceJoin join(std::int32_t id) const = 0;
  /// Whether the space at the front of a text's first piece is the tokenizer's own, not the text's.
  [[nodiscard]] virtual bool adds_leading_space(std::int32_t id) const = 0;
  /// The id of a piece as the file spells it; -1 where there is none.
  [[nodiscard]] virtual std::int32_t id_of(std::string_view piece) const = 0;
};

}  // namespace v0
}  // namespace qlora
