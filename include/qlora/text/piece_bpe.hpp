// qlora/text/piece_bpe.hpp — the byte-pair encoding that the library sentencepiece does with a tokenizer.model, by a
// table of pairs of ids where the library looks up the text of each pair.
// What may not change: ids are the library's. It merges the two neighbours whose joined text is the piece of the
// highest score, the leftmost of equals, and any character may be such a neighbour, a piece or not. Symbols that the
// user defined are cut out first and take part in no merge. Characters that are no piece are their bytes' pieces.
// Cost: O(n log n) in the characters; 20 MB of HTML and notes, as documents of 4 kB, take 5.0 s of a core where the
// package `tokenizers` takes 7.2 s for the same ids. The table is made in 30 ms for LLaMA-2's 32,000 pieces.
// Reference: tests/text/tokenizer_test.cpp, ids of the library itself.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "qlora/text/bpe.hpp"
#include "qlora/text/sentencepiece_scan.hpp"
#include "qlora/text/token_finder.hpp"
#include "qlora/text/utf8.hpp"

namespace qlora {
inline namespace v0 {

/// Text to ids by the pieces of a tokenizer.model. Const calls are safe from many threads.
class PieceBpe {
 public:
  /// For pieces that the scan accepted. Nothing where the library does more than merge: it takes unused pieces apart
  /// again. Nothing either for pieces of more pairs than any language needs.
  [[nodiscard]] static std::optional<PieceBpe> of(const std::vector<sentencepiece_scan::Piece>& pieces) {
    PieceBpe bpe;
    return bpe.read(pieces) ? std::optional(std::move(bpe)) : std::nullopt;
  }

  /// Appends the ids of the text. `first`: it begins a text, so that a space goes before it. Bytes that are not UTF-8
  /// become U+FFFD.
  void encode(std::string_view text, bool first, std::vector<std::int32_t>& out) const {
    if (text.empty()) return;
    const std::string normal = normalized(text, first);
    BpeMerger merger(merges_);
    std::size_t done = 0;
    const auto add_characters = [&](std::size_t end) {
      while (done < end) {
        const std::size_t length = utf8_length(std::string_view(normal).substr(done));
        add_character(std::string_view(normal).substr(done, length), merger);
        done += length;
      }
    };
    defined_.for_each_match(normal, [&](std::size_t id, std::size_t begin, std::size_t end) {
      add_characters(begin);
      merger.add(static_cast<std::int32_t>(id));
      done = end;
    });
    add_characters(normal.size());
    const std::size_t before = out.size();
    merger.merge(out);
    spell_out(out, before);
  }

 private:
  using Piece = sentencepiece_scan::Piece;
  using Kind = sentencepiece_scan::PieceKind;

  [[nodiscard]] static std::string normalized(std::string_view text, bool first) {
    std::string valid;
    if (!is_utf8(text)) {
      valid = sentencepiece_scan::with_replacement_characters(text);
      text = valid;
    }
    const std::string_view space = sentencepiece_scan::space_symbol;
    const auto spaces = static_cast<std::size_t>(std::count(text.begin(), text.end(), ' ')) + (first ? 1 : 0);
    std::string out;
    out.reserve(text.size() + spaces * (space.size() - 1) + 1);
    if (first) out += space;
    for (const char c : text) c == ' ' ? out.append(space) : out.append(1, c);
    return out;
  }
  [[nodiscard]] static std::uint32_t code_of(std::string_view character) {
    std::uint32_t code = 0;  // its bytes, which tell characters apart as well as their numbers do
    for (const char byte : character) code = code << 8U | static_cast<unsigned char>(byte);
    return code;
  }
  void add_character(std::string_view character, BpeMerger& merger) const {
    const auto found = characters_.find(code_of(character));
    if (found != characters_.end()) return merger.add(found->second);
    for (const char byte : character) merger.add(bytes_[static_cast<unsigned char>(byte)]);
  }
  /// The bytes of characters that are no piece and met no neighbour to make one.
  void spell_out(std::vector<std::int32_t>& ids, std::size_t from) const {
    const auto is_lone = [&](std::int32_t id) { return id >= vocab_; };
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(from);
    if (lone_.empty() || std::none_of(begin, ids.end(), is_lone)) return;
    const std::vector<std::int32_t> symbols(begin, ids.end());
    ids.resize(from);
    for (const std::int32_t id : symbols) {
      if (!is_lone(id)) {
        ids.push_back(id);
        continue;
      }
      for (const char byte : lone_[static_cast<std::size_t>(id - vocab_)])
        ids.push_back(bytes_[static_cast<unsigned char>(byte)]);
    }
  }

  [[nodiscard]] bool read(const std::vector<Piece>& pieces) {
    vocab_ = static_cast<std::int32_t>(pieces.size());
    std::unordered_map<std::string_view, std::int32_t> symbols;  // what merges may join, by its text
    symbols.reserve(2 * pieces.size());
    std::vector<float> scores;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const auto& [text, kind, score] = pieces[i];
      const auto id = static_cast<std::int32_t>(i);
      if (kind == Kind::unused) return false;
      if (kind == Kind::byte) bytes_[*sentencepiece_scan::byte_of(text)] = id;
      if (kind == Kind::user_defined) defined_.add(text, i);
      if (kind != Kind::normal) continue;
      symbols.emplace(text, id);
      if (utf8_length(text) == text.size()) characters_.emplace(code_of(text), id);
      scores.push_back(score);
    }
    std::sort(scores.begin(), scores.end(), std::greater<>());
    scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
    for (const Piece& piece : pieces) {
      if (piece.kind == Kind::normal) add_lone_characters(piece.text, symbols);
    }
    struct Merge {
      std::int32_t left, right, made;
      std::uint32_t rank;
    };
    std::vector<Merge> merges;
    merges.reserve(2 * pieces.size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const auto& [text, kind, score] = pieces[i];
      if (kind != Kind::normal) continue;
      const auto place = std::lower_bound(scores.begin(), scores.end(), score, std::greater<>());
      const auto rank = static_cast<std::uint32_t>(place - scores.begin());
      for (std::size_t at = 0; at < text.size();) {
        at += utf8_length(std::string_view(text).substr(at));
        if (at == text.size()) break;
        const auto left = symbols.find(std::string_view(text).substr(0, at));
        if (left == symbols.end()) continue;
        const auto right = symbols.find(std::string_view(text).substr(at));
        if (right == symbols.end()) continue;
        if (merges.size() == sentencepiece_scan::max_merges) return false;  // 128 MiB in the table
        merges.push_back({left->second, right->second, static_cast<std::int32_t>(i), rank});
      }
    }
    merges_ = MergeTable(merges.size());
    for (const Merge& merge : merges) merges_.set(merge.left, merge.right, merge.rank, merge.made);
    return true;
  }
  /// Characters of a piece that are no piece have ids behind the last piece while they are merged.
  void add_lone_characters(std::string_view text, std::unordered_map<std::string_view, std::int32_t>& symbols) {
    for (std::size_t at = 0; at < text.size();) {
      const std::string_view character = text.substr(at, utf8_length(text.substr(at)));
      at += character.size();
      const auto [entry, is_new] = symbols.emplace(character, vocab_ + static_cast<std::int32_t>(lone_.size()));
      if (!is_new) continue;
      characters_.emplace(code_of(character), entry->second);
      lone_.emplace_back(character);
    }
  }

  std::int32_t vocab_ = 0;
  MergeTable merges_;
  std::unordered_map<std::uint32_t, std::int32_t> characters_;  // ids of single characters
  std::array<std::int32_t, 256> bytes_{};
  detail::stages::TokenFinder defined_;
  std::vector<std::string> lone_;
};

}  // namespace v0
}  // namespace qlora
