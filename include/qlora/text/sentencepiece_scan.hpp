// qlora/text/sentencepiece_scan.hpp — checks that a sentencepiece ModelProto is of LLaMA-2's kind.
// Sentencepiece crashes on some malformed models (mostly damaged normaliser tries), so it only reads models that this
// scan has accepted. Every length is checked against the remaining bytes before it is used.
// What may not change: all pieces distinct, reserved ones (unknown, control, byte) longer than one character. The
// library looks merged symbols up among the reserved names first, so a control piece "a" would turn text into control
// ids.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "qlora/error.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {
namespace sentencepiece_scan {

/// Values of SentencePiece.Type in the library's schema.
enum class PieceKind : int { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

/// One entry of the vocabulary.
struct Piece {
  std::string text;                    ///< UTF-8, with space_symbol for spaces
  PieceKind kind = PieceKind::normal;  ///< the model's type of it
  float score = 0.0F;                  ///< of two merges the one that makes the piece of the higher score comes first
};

/// Limit of a tokenizer.model.
inline constexpr std::size_t max_file_bytes = std::size_t{64} << 20;  // LLaMA-2's has 0.5 MB, the largest known 5 MB
/// Limit of a vocabulary.
inline constexpr std::size_t max_pieces = std::size_t{1} << 20;
/// Limit of one piece, in UTF-8.
inline constexpr std::size_t max_piece_bytes = 256;  // longer ones overflow the stack of some library versions
/// Limit of the pairs of pieces that make a piece. A vocabulary within the limits above can have 250 million.
inline constexpr std::size_t max_merges = std::size_t{1} << 21;  // LLaMA-2 has 61,249
/// U+2581, which stands for a space in pieces.
inline constexpr std::string_view space_symbol = "\xE2\x96\x81";

/// The text with U+FFFD for each byte that is no part of UTF-8.
[[nodiscard]] inline std::string with_replacement_characters(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    out.append(length == 0 ? std::string_view("\xEF\xBF\xBD") : text.substr(0, length));
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return out;
}

/// The value of "<0x00>" to "<0xFF>", upper-case digits only, as sentencepiece writes byte pieces.
[[nodiscard]] inline std::optional<unsigned char> byte_of(std::string_view piece) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return std::nullopt;
  const auto high = digits.find(piece[3]), low = digits.find(piece[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<unsigned char>(high * 16 + low);
}

namespace detail {

[[noreturn]] inline void refuse(const std::string& why) {
  throw Error("tokenizer model refused: " + why + "; a LLaMA-2 style sentencepiece model is needed");
}

/// One field of a protobuf message: a number (varint or fixed) or a byte range.
struct Field {
  std::uint64_t number = 0;
  std::uint32_t wire = 0;
  std::uint64_t value = 0;
  std::string_view bytes;
};

/// Walks the fields of one protobuf message. Groups are refused: nothing in this schema uses them.
class Walker {
 public:
  explicit Walker(std::string_view message) : rest_(message) {}

  [[nodiscard]] bool next(Field& field) {
    if (rest_.empty()) return false;
    const std::uint64_t tag = varint();
    field = Field{tag >> 3U, static_cast<std::uint32_t>(tag & 7U), 0, {}};
    if (field.number == 0 || tag > 0xFFFFFFFFU) refuse("a field number is out of range");
    switch (field.wire) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.value = fixed(4);
        break;
      default:
        refuse("it is not a protobuf message of this kind");
    }
    return true;
  }

 private:
  std::string_view take(std::uint64_t count) {
    if (count > rest_.size()) refuse("it ends in the middle of a field");
    const std::string_view taken = rest_.substr(0, static_cast<std::size_t>(count));
    rest_.remove_prefix(taken.size());
    return taken;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      if (shift == 63 && byte > 1) break;
      value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
      if (byte < 0x80U) return value;
    }
    refuse("a number is longer than 64 bits");
  }
  std::uint64_t fixed(std::size_t width) {
    std::uint64_t value = 0;
    const std::string_view bytes = take(width);
    for (std::size_t i = 0; i < width; ++i)
      value |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[i])) << (8 * i);
    return value;
  }

  std::string_view rest_;
};

inline void expect_wire(const Field& field, std::uint32_t wire, const char* what) {
  if (field.wire != wire) refuse(std::string(what) + " has the wrong wire type");
}

[[nodiscard]] inline Piece read_piece(std::string_view message, std::size_t id) {
  const std::string name = "piece " + std::to_string(id);
  Piece piece;
  Walker walker(message);
  std::array<bool, 4> seen{};
  for (Field field; walker.next(field);) {
    if (field.number < seen.size() && std::exchange(seen[static_cast<std::size_t>(field.number)], true))
      refuse(name + " repeats a field");
    if (field.number == 1) {
      expect_wire(field, 2, name.c_str());
      if (field.bytes.size() > max_piece_bytes)
        refuse(name + " has " + std::to_string(field.bytes.size()) + " bytes, the limit is 256");
      piece.text = field.bytes;
    } else if (field.number == 2) {
      expect_wire(field, 5, name.c_str());
      piece.score = std::bit_cast<float>(static_cast<std::uint32_t>(field.value));
      if (!std::isfinite(piece.score)) refuse("the score of " + name + " is not a number");
    } else if (field.number == 3) {
      expect_wire(field, 0, name.c_str());
      if (field.value < 1 || field.value > 6) refuse(name + " has an unknown type");
      piece.kind = static_cast<PieceKind>(field.value);
    }
  }
  if (piece.text.empty()) refuse(name + " is empty");
  if (!is_utf8(piece.text)) refuse(name + " is not UTF-8");
  if (piece.text.find('\0') != std::string::npos) refuse(name + " holds a NUL byte");
  return piece;
}

inline void check_trainer(std::string_view message, std::size_t pieces) {
  std::uint64_t type = 1, unk = 0, bos = 1, eos = 2, suffix = 0, fallback = 0, vocab = pieces;
  std::array<std::string_view, 3> names{"<unk>", "<s>", "</s>"};
  std::uint64_t* numbers[53] = {};
  numbers[3] = &type, numbers[4] = &vocab, numbers[24] = &suffix, numbers[35] = &fallback;
  numbers[40] = &unk, numbers[41] = &bos, numbers[42] = &eos;
  Walker walker(message);
  for (Field field; walker.next(field);) {
    if (field.number < std::size(numbers) && numbers[field.number] != nullptr) {
      expect_wire(field, 0, "a trainer setting");
      *numbers[field.number] = field.value;
    } else if (field.number >= 45 && field.number <= 47) {
      expect_wire(field, 2, "a special piece's name");
      names[static_cast<std::size_t>(field.number - 45)] = field.bytes;
    }
  }
  if (type != 2) refuse("its type is not BPE");
  if (suffix != 0) refuse("it treats white space as a suffix");
  if (fallback != 1) refuse("it has no byte fallback, so text outside its alphabet would be lost");
  if (unk != 0 || bos != 1 || eos != 2) refuse("its unknown, begin and end ids are not 0, 1 and 2");
  if (names != std::array<std::string_view, 3>{"<unk>", "<s>", "</s>"})
    refuse("its special pieces are not named <unk>, <s> and </s>");
  // Extended vocabularies often keep the old number: more pieces than it says are allowed.
  if (vocab > pieces) refuse("it announces " + std::to_string(vocab) + " pieces and holds " + std::to_string(pieces));
}

/// `encoder` is false for the denormaliser, whose prefix settings have no meaning.
inline void check_normalizer(std::string_view message, bool encoder) {
  bool prefix = true, remove_spaces = true, escape = true;  // the schema's defaults
  Walker walker(message);
  for (Field field; walker.next(field);) {
    if (field.number == 2) {
      expect_wire(field, 2, "the normaliser's table");
      if (!field.bytes.empty()) refuse("it carries a character normalisation table; only the identity is accepted");
    } else if (field.number >= 3 && field.number <= 5) {
      expect_wire(field, 0, "a normaliser setting");
      (field.number == 3 ? prefix : field.number == 4 ? remove_spaces : escape) = field.value != 0;
    } else if (field.number == 6) {
      expect_wire(field, 2, "the normaliser's rules");
      if (!field.bytes.empty()) refuse("it carries normalisation rules; only the identity is accepted");
    }
  }
  if (!encoder) return;
  if (!prefix) refuse("it adds no space before the text");
  if (remove_spaces) refuse("it removes extra white space");
  if (!escape) refuse("it does not escape white space");
}

inline void check_pieces(const std::vector<Piece>& pieces) {
  if (pieces.size() < 3 + 256 || pieces.size() > max_pieces)
    refuse("it holds " + std::to_string(pieces.size()) + " pieces, between 259 and 1048576 are accepted");
  constexpr std::array<std::pair<std::string_view, PieceKind>, 3> special{
      {{"<unk>", PieceKind::unknown}, {"<s>", PieceKind::control}, {"</s>", PieceKind::control}}};
  for (std::size_t id = 0; id < special.size(); ++id)
    if (pieces[id].text != special[id].first || pieces[id].kind != special[id].second)
      refuse("piece " + std::to_string(id) + " is not " + std::string(special[id].first));
  std::unordered_set<std::string_view> seen;
  std::size_t bytes = 0;
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    const Piece& piece = pieces[id];
    const std::string name = "piece " + std::to_string(id);
    if (!seen.insert(piece.text).second) refuse(name + " repeats an earlier one");
    if (piece.kind == PieceKind::unknown && id != 0) refuse(name + " is a second unknown piece");
    if (piece.kind == PieceKind::byte) {
      if (!byte_of(piece.text)) refuse(name + " is a byte piece but not <0x00> to <0xFF>");
      ++bytes;  // distinct, so 256 of them are all
    }
    if (piece.kind == PieceKind::control && utf8_length(piece.text) == piece.text.size())
      refuse(name + " is a control piece of one character, which plain text would be taken for");
  }
  if (bytes != 256) refuse("it holds " + std::to_string(bytes) + " byte pieces, not 256");
}

}  // namespace detail

/// The pieces of a serialised ModelProto, by id. Throws Error unless it is a BPE model with identity normalisation,
/// byte fallback and LLaMA-2's special ids.
[[nodiscard]] inline std::vector<Piece> scan(std::string_view model) {
  using detail::Field, detail::refuse;
  if (model.empty()) refuse("it is empty");
  if (model.size() > max_file_bytes) refuse("it has more than 64 MiB");
  std::vector<Piece> pieces;
  std::array<std::optional<std::string_view>, 6> parts;  // 2 trainer, 3 normaliser, 4 self test, 5 denormaliser
  detail::Walker walker(model);
  for (Field field; walker.next(field);) {
    if (field.number > 5) continue;
    detail::expect_wire(field, 2, "a part of the model");
    if (field.number == 1) {
      if (pieces.size() == max_pieces) refuse("it holds more than 1048576 pieces");
      pieces.push_back(detail::read_piece(field.bytes, pieces.size()));
    } else if (std::exchange(parts[static_cast<std::size_t>(field.number)], field.bytes)) {
      refuse("it repeats a part");
    }
  }
  if (!parts[2] || !parts[3]) refuse("its trainer or normaliser settings are missing");
  // The library runs these samples at load time; no LLaMA model has any.
  if (parts[4] && !parts[4]->empty()) refuse("it carries self-test samples");
  detail::check_trainer(*parts[2], pieces.size());
  detail::check_normalizer(*parts[3], true);
  if (parts[5]) detail::check_normalizer(*parts[5], false);
  detail::check_pieces(pieces);
  return pieces;
}

}  // namespace sentencepiece_scan
}  // namespace v0
}  // namespace qlora
