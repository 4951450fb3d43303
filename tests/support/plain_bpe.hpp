// tests/support/plain_bpe.hpp — byte-pair encoding of a sentencepiece model by its definition.
#pragma once

#include <sentencepiece_processor.h>

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace test {

/// The text with each `from` in it as `to`.
inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

/// BPE by its definition, without a queue: join the best-scored neighbours (leftmost of equals) until none are left.
inline std::vector<std::int32_t> plain_bpe(const sentencepiece::SentencePieceProcessor& model,
                                           const std::string& text) {
  if (text.empty()) return {};
  std::map<std::string, std::pair<std::int32_t, float>> normal;
  std::map<unsigned char, std::int32_t> bytes;
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    if (model.IsByte(id))
      bytes[static_cast<unsigned char>(std::stoi(model.IdToPiece(id).substr(3, 2), nullptr, 16))] = id;
    if (!model.IsByte(id) && !model.IsControl(id) && !model.IsUnknown(id))
      normal[model.IdToPiece(id)] = {id, model.GetScore(id)};
  }
  std::vector<std::string> symbols;
  const std::string spaced = "▁" + replaced(text, " ", "▁");
  for (const char c : spaced) {
    if (symbols.empty() || (static_cast<unsigned char>(c) & 0xC0U) != 0x80U) symbols.emplace_back();
    symbols.back() += c;
  }
  for (;;) {
    float best = -std::numeric_limits<float>::infinity();
    std::size_t where = symbols.size();
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = normal.find(symbols[i] + symbols[i + 1]);
      if (found != normal.end() && found->second.second > best) best = found->second.second, where = i;
    }
    if (where == symbols.size()) break;
    symbols[where] += symbols[where + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
  std::vector<std::int32_t> ids;
  for (const std::string& symbol : symbols) {
    const auto found = normal.find(symbol);
    if (found != normal.end()) ids.push_back(found->second.first);
    if (found == normal.end())
      for (const char c : symbol) ids.push_back(bytes.at(static_cast<unsigned char>(c)));
  }
  return ids;
}

}  // namespace test
