// qlora/serve/text_stream.hpp — the text of a reply as its tokens come, up to where a stop string stands.
// Text that was given out is final: characters are whole, and what may become a stop string is held back until it
// cannot. A stop string counts when its last byte is there: the one that is whole first ends the text, the longest of
// them if several end at the same byte. So the result depends on the text alone, not on how it was cut into tokens.
// Reference: tests/serve/text_stream_test.cpp, a search in the whole text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "qlora/text/chat_template.hpp"
#include "qlora/text/tokenizer.hpp"

namespace qlora {
inline namespace v0 {
namespace serve {

/// Finds the first stop string in a text that comes in parts. Used by one thread at a time.
class StopSearch {
 public:
  /// `include`: the stop string is the end of the text, and not what is cut from it; nothing is held back then. Empty
  /// strings are left out.
  explicit StopSearch(std::vector<std::string> stops, bool include = false)
      : stops_(std::move(stops)), include_(include) {
    std::erase(stops_, std::string());
  }

  /// The text that this part makes final, possibly none. Nothing comes behind a stop string.
  [[nodiscard]] std::string push(std::string_view part) {
    std::string out;
    for (const char byte : part) {
      if (found_) break;
      held_ += byte;
      std::size_t longest = 0;
      for (const std::string& stop : stops_) {
        if (held_.ends_with(stop)) longest = std::max(longest, stop.size());
      }
      if (longest > 0) {
        found_ = true;
        out += std::string_view(held_).substr(given_, held_.size() - given_ - (include_ ? 0 : longest));
        held_.clear();
        given_ = 0;
        break;
      }
      // What begins a stop string is kept to be searched; with `include` it is given out all the same.
      const std::size_t kept = beginning();
      const std::size_t free = held_.size() - kept;
      const std::size_t end = include_ ? held_.size() : free;
      out += std::string_view(held_).substr(given_, end - given_);
      held_.erase(0, free);
      given_ = include_ ? kept : 0;
    }
    return out;
  }
  /// What was held back; nothing is after it.
  [[nodiscard]] std::string finish() {
    const std::string rest = std::exchange(held_, {});
    return rest.substr(std::exchange(given_, 0));
  }
  /// Whether a stop string was found.
  [[nodiscard]] bool found() const { return found_; }

 private:
  /// Bytes at the end of held_ that begin a stop string. Earlier bytes that begin one are held as well, since the
  /// longest of these is taken.
  [[nodiscard]] std::size_t beginning() const {
    std::size_t longest = 0;
    for (const std::string& stop : stops_) {
      std::size_t size = std::min(held_.size(), stop.size() - 1);
      while (size > longest && !held_.ends_with(std::string_view(stop).substr(0, size))) --size;
      longest = std::max(longest, size);
    }
    return longest;
  }

  std::vector<std::string> stops_;
  bool include_;
  bool found_ = false;
  std::string held_;       // that may begin a stop string
  std::size_t given_ = 0;  // of held_, in bytes from its front
};

/// The text of a reply while its tokens come. Used by one thread at a time.
class TextStream {
 public:
  /// The tokenizer must live as long as this. `include_stop`: see StopSearch.
  TextStream(const Tokenizer& tokenizer, DecodeFrom from, std::vector<std::string> stops, bool include_stop = false)
      : tokenizer_(&tokenizer), decoder_(tokenizer, from), search_(std::move(stops), include_stop) {}

  /// The text that this token makes final, possibly none. Ids outside the vocabulary have no text.
  [[nodiscard]] std::string push(std::int32_t id) {
    if (id < 0 || id >= tokenizer_->vocab_size()) return {};
    return taken(decoder_.push(id));
  }
  /// What is left when no token follows.
  [[nodiscard]] std::string finish() {
    std::string out = taken(decoder_.finish());
    out += search_.finish();
    return out;
  }
  /// Whether a stop string came: the reply is over, whatever the model would add.
  [[nodiscard]] bool stopped() const { return search_.found(); }
  /// Bytes of text that the tokens so far have, held back or not; with a stop string up to the token that completed it.
  [[nodiscard]] std::size_t decoded() const { return decoded_; }

 private:
  [[nodiscard]] std::string taken(const std::string& part) {
    decoded_ += part.size();
    return search_.push(part);
  }

  const Tokenizer* tokenizer_;
  StreamDecoder decoder_;
  StopSearch search_;
  std::size_t decoded_ = 0;
};

/// Texts that end the assistant's turn, where they are no tokens of their own: where a model would go on and speak for
/// the user. What eval::reply_of cuts a reply at.
[[nodiscard]] inline std::vector<std::string> turn_ends(const Tokenizer& tokenizer, const ChatTemplate& form) {
  ChatStops stops = form.stops();
  std::vector<std::string> out;
  if (!stops.turn.empty()) out.push_back(std::move(stops.turn));
  for (std::string& mark : stops.marks) {
    const std::int32_t id = tokenizer.id_of(mark);
    if (!mark.empty() && (id < 0 || !tokenizer.is_control(id))) out.push_back(std::move(mark));
  }
  return out;
}

}  // namespace serve
}  // namespace v0
}  // namespace qlora
