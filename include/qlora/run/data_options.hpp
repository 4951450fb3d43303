// qlora/run/data_options.hpp — options of the steps that make a data set: pages, fetching, packing; see options.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "qlora/run/option.hpp"
#include "qlora/text/packing.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// The article's form reproduces an article's job with its defects; none is this library's own form.
enum class Compat : std::uint8_t { none, article };
template <>
inline constexpr std::array names_of<Compat>{std::string_view("none"), std::string_view("article")};

/// What a data set, or one arm of a job, learns from.
struct Pages {
  std::vector<std::string> urls;
  std::vector<std::filesystem::path> files;
  friend bool operator==(const Pages&, const Pages&) = default;
};

template <>
struct Table<Pages> {
  static constexpr std::string_view title = "Pages";
  static constexpr std::string_view section = "data";
  static constexpr std::string_view verbs = "";
  static constexpr auto options = std::to_array<Option<Pages>>({
      {.name = "urls", .member = &Pages::urls, .help = "Web pages to learn from"},
      {.name = "files",
       .member = &Pages::files,
       .help = "Local .html, .txt, .md or .jsonl files to learn from, or folders of them",
       .fingerprint = false},  // their content is
  });
};
static_assert(well_formed<Pages>());

/// How pages are fetched and made text.
struct Fetching {
  Compat compat = Compat::none;
  bool allow_private = false;
  double timeout = 30;
  std::int64_t max_bytes = 8 << 20;
  bool recursive = false;
  bool all_pages = false;
};

template <>
struct Table<Fetching> {
  static constexpr std::string_view title = "Fetching";
  static constexpr std::string_view section = "data";
  static constexpr std::string_view verbs = "fetch";
  static constexpr auto options = std::to_array<Option<Fetching>>({
      {.name = "compat",
       .member = choice<&Fetching::compat>,
       .help = "Text extraction; article: as an article's job does it, menus included"},
      {.name = "allow_private",
       .member = &Fetching::allow_private,
       .help = "Fetch from private and loopback addresses as well"},
      {.name = "timeout",
       .member = &Fetching::timeout,
       .help = "Time limit for one page",
       .range = {1, 3600},
       .unit = "seconds",
       .fingerprint = false},
      {.name = "max_bytes",
       .member = &Fetching::max_bytes,
       .help = "Size limit of one decoded page",
       .range = {1024, 1e9},
       .unit = "bytes"},
      {.name = "recursive",
       .member = &Fetching::recursive,
       .help = "Read folders inside of folders as well",
       .omit_default = true},
      {.name = "all_pages",
       .member = &Fetching::all_pages,
       .help = "Keep pages that are no article (forwards, checks for robots, logins) or repeat others",
       .omit_default = true},
  });
};
static_assert(well_formed<Fetching>());

template <>
inline constexpr std::array names_of<LabelChoice>{std::string_view("all"), std::string_view("answers")};
template <>
inline constexpr std::array names_of<SplitChoice>{std::string_view("carry"), std::string_view("pad")};

/// What happens to a text that spells marks of the chat form.
enum class MarkedTexts : std::uint8_t { text, parse, refuse };
template <>
inline constexpr std::array names_of<MarkedTexts>{std::string_view("text"), std::string_view("parse"),
                                                  std::string_view("refuse")};

/// How documents become windows.
struct Packing {
  int seq = 512;
  Compat compat = Compat::none;
  LabelChoice labels = LabelChoice::all;
  SplitChoice split = SplitChoice::carry;
  MarkedTexts chat_marks = MarkedTexts::text;
};

template <>
struct Table<Packing> {
  static constexpr std::string_view title = "Packing";
  static constexpr std::string_view section = "pack";
  static constexpr std::string_view verbs = "pack";
  static constexpr auto options = std::to_array<Option<Packing>>({
      {.name = "seq", .member = &Packing::seq, .help = "Window length", .range = {8, 1 << 20}, .unit = "tokens"},
      {.name = "compat",
       .member = choice<&Packing::compat>,
       .help = "Packing; article: one stream without end tokens, the remainder dropped"},
      {.name = "labels",
       .member = choice<&Packing::labels>,
       .help = "Labelled tokens of a chat: all, or the assistant's answers"},
      {.name = "split",
       .member = choice<&Packing::split>,
       .help = "A document that does not fit: continue it in the next window (carry), or start a new one (pad)"},
      {.name = "chat_marks",
       .member = choice<&Packing::chat_marks>,
       .help = "Texts that spell marks of the chat form: keep them as text, parse them as chats, or refuse them",
       .omit_default = true},
  });
};
static_assert(well_formed<Packing>());

}  // namespace run
}  // namespace v0
}  // namespace qlora
