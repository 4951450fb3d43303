// text_stream_test.cpp — the text of a reply in parts against a plain search in the whole text, and against the decoder
// of whole replies.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "qlora/serve/text_stream.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "qlora/text/chat_template.hpp"
#include "qlora/text/utf8.hpp"

using qlora::DecodeFrom;
using qlora::Tokenizer;
using qlora::serve::StopSearch;
using qlora::serve::TextStream;

namespace {

/// By definition: the first byte at which some stop string is whole, and there the longest of them.
std::string cut_at_stop(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (!stop.empty() && stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0) return text.substr(0, include ? end : end - longest);
  }
  return text;
}

bool whole_characters(const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = qlora::utf8_length(std::string_view(text).substr(at));
    if (length == 0) return false;
    at += length;
  }
  return true;
}

const Tokenizer& small() {
  static const Tokenizer tokenizer =
      Tokenizer::load(std::string(QLORA_SOURCE_DIR) + "/tests/data/small_tokenizer.model");
  return tokenizer;
}

}  // namespace

TEST_CASE("stop strings in random texts of few letters, in random parts") {
  std::mt19937 random(1);
  const auto word = [&](std::size_t most) {
    std::string out;
    for (auto left = random() % (most + 1); left > 0; --left) out += static_cast<char>('a' + random() % 2);
    return out;
  };
  int cut = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string text = word(24);
    std::vector<std::string> stops;
    for (auto left = random() % 4; left > 0; --left) stops.push_back(word(6));
    const bool include = random() % 2 == 0;
    StopSearch search(stops, include);
    std::string got;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = 1 + random() % 5;
      got += search.push(std::string_view(text).substr(at, size));
      REQUIRE(text.starts_with(got));
      at += size;
      if (include) REQUIRE(got == cut_at_stop(text.substr(0, at), stops, true));
    }
    got += search.finish();
    const std::string wanted = cut_at_stop(text, stops, include);
    REQUIRE(got == wanted);
    if (!include) {
      REQUIRE(search.found() == (got != text));
      cut += search.found() ? 1 : 0;
    }
  }
  CHECK(cut > 1000);
}

TEST_CASE("nothing is held back that cannot become a stop string") {
  StopSearch search({"STOP"});
  CHECK(search.push("abc") == "abc");
  CHECK(search.push("ST") == "");
  CHECK(search.push("S") == "ST");
  CHECK(search.push("TO") == "");
  CHECK(search.push("P and more") == "");
  CHECK(search.found());
  CHECK(search.push("STOP") == "");
  CHECK(search.finish() == "");
}

TEST_CASE("parts of random ids are whole characters and together the text of the whole") {
  std::mt19937 random(2);
  const auto pieces = static_cast<unsigned>(small().vocab_size());
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::int32_t> ids;
    for (auto left = random() % 24; left > 0; --left) {
      // Half of them single bytes, whose characters are broken or span ids.
      const unsigned bytes = 259;
      ids.push_back(static_cast<std::int32_t>(random() % 2 == 0 ? random() % bytes : random() % pieces));
    }
    const DecodeFrom from = random() % 2 == 0 ? DecodeFrom::start : DecodeFrom::middle;
    const std::string text = small().decode(ids, from);
    std::vector<std::string> stops;
    if (!text.empty()) {
      const std::size_t begin = random() % text.size();
      stops.push_back(text.substr(begin, 1 + random() % 4));
      if (!whole_characters(stops[0])) stops.clear();  // what a client sends is UTF-8
    }
    TextStream stream(small(), from, stops);
    std::string got;
    for (const std::int32_t id : ids) {
      const std::string part = stream.push(id);
      REQUIRE(whole_characters(part));
      got += part;
    }
    got += stream.finish();
    REQUIRE(got == cut_at_stop(text, stops, false));
    REQUIRE(stream.stopped() == !stops.empty());
  }
}

TEST_CASE("ids that padding adds to a vocabulary have no text") {
  TextStream stream(small(), DecodeFrom::start, {});
  CHECK(stream.push(small().vocab_size()) == "");
  CHECK(stream.push(-1) == "");
  CHECK(stream.finish() == "");
}

TEST_CASE("a chat's reply ends where the model would speak for the user") {
  const qlora::ChatTemplate form(qlora::chat_form::llama2);
  const std::vector<std::string> ends = qlora::serve::turn_ends(small(), form);
  REQUIRE(!ends.empty());
  CHECK(ends[0] == "[INST]");
  for (const std::string& end : ends) CHECK(end != "</s>");  // a token, which has no text
  TextStream stream(small(), DecodeFrom::start, ends);
  std::string got;
  for (const std::int32_t id : small().encode("the boat [INST] and more")) got += stream.push(id);
  got += stream.finish();
  CHECK(got == "the boat ");
  CHECK(stream.stopped());
}
