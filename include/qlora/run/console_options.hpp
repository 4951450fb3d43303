// qlora/run/console_options.hpp — options of what a program shows on a terminal; see options.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "qlora/run/option.hpp"

namespace qlora {
inline namespace v0 {
namespace run {

/// Whether a terminal's output is coloured; automatic: if it is a terminal.
enum class ColorUse : std::uint8_t { automatic, always, never };
template <>
inline constexpr std::array names_of<ColorUse>{std::string_view("auto"), std::string_view("always"),
                                               std::string_view("never")};

/// What `data show` prints.
struct Show {
  int windows = 2;
  ColorUse color = ColorUse::automatic;
};

template <>
struct Table<Show> {
  static constexpr std::string_view title = "Display of a data set";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs = "data show";
  static constexpr auto options = std::to_array<Option<Show>>({
      {.name = "windows",
       .member = &Show::windows,
       .help = "Windows to show",
       .range = {1, 1 << 20},
       .unit = "windows",
       .letter = 'n'},
      {.name = "color", .member = choice<&Show::color>, .help = "Mark documents by color"},
  });
};
static_assert(well_formed<Show>());

/// How progress is shown; automatic: a bar on a terminal, else lines.
enum class ProgressUse : std::uint8_t { automatic, bar, lines, json, none };
template <>
inline constexpr std::array names_of<ProgressUse>{std::string_view("auto"), std::string_view("bar"),
                                                  std::string_view("lines"), std::string_view("json"),
                                                  std::string_view("none")};

/// What a program writes to its terminal.
struct Console {
  ProgressUse progress = ProgressUse::automatic;
  bool quiet = false;
};

template <>
struct Table<Console> {
  static constexpr std::string_view title = "Console";
  static constexpr std::string_view section = "";
  static constexpr std::string_view verbs =
      "fetch, pack, data show, train, merge, generate, chat, recall, compare, plan, "
      "info, serve, run";
  static constexpr auto options = std::to_array<Option<Console>>({
      {.name = "progress", .member = choice<&Console::progress>, .help = "Progress display on stderr"},
      {.name = "quiet", .member = &Console::quiet, .help = "Print nothing but errors on stderr", .letter = 'q'},
  });
};
static_assert(well_formed<Console>());

}  // namespace run
}  // namespace v0
}  // namespace qlora
