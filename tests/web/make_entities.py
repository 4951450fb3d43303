"""Writes include/qlora/web/entities.hpp: all HTML5 named character references, from Python's html.entities."""
import html.entities
import pathlib

table = {}
for name, value in sorted(html.entities.html5.items()):
    table.setdefault(name.rstrip(";"), value)
names = sorted(set(table) - {"Tab", "NewLine"})  # the two whose values are the table's own separators: in the code


def escape(text):
    # Every byte outside letters and digits in octal, so that no escape can run into what follows.
    return "".join(chr(b) if chr(b).isalnum() and b < 128 else "\\%03o" % b for b in text.encode())


lines, line = [], ""
for name in names:
    item = name + " " + escape(table[name]) + "\\n"
    if len(line) + len(item) > 112:
        lines.append('    "' + line + '"')
        line = ""
    line += item
lines.append('    "' + line + '"')
body = "\n".join(lines)
out = pathlib.Path(__file__).resolve().parents[2] / "include/qlora/web/entities.hpp"
out.write_text("""// qlora/web/entities.hpp — the HTML5 named character references (%d names, without the semicolon).
// Written by tests/web/make_entities.py; sorted by name, bytewise, for the search below.
#pragma once

#include <cstddef>
#include <string_view>

namespace qlora {
inline namespace v0 {
namespace web {
namespace detail {

// clang-format off
inline constexpr std::string_view entity_table =
%s;
// clang-format on

}  // namespace detail

/// UTF-8 of the named character reference ("eacute", "notin"); empty if there is no such name. Case matters.
[[nodiscard]] constexpr std::string_view find_entity(std::string_view name) noexcept {
  if (name == "Tab") return "\\t";
  if (name == "NewLine") return "\\n";
  const std::string_view table = detail::entity_table;
  std::size_t low = 0;
  std::size_t high = table.size();  // both at the start of a line
  while (low < high) {
    std::size_t middle = low + (high - low) / 2;
    while (middle > low && table[middle - 1] != '\\n') --middle;
    const std::string_view line = table.substr(middle, table.find('\\n', middle) - middle);
    const std::string_view key = line.substr(0, line.find(' '));
    if (key == name) return line.substr(key.size() + 1);
    if (key < name)
      low = middle + line.size() + 1;
    else
      high = middle;
  }
  return {};
}

}  // namespace web
}  // namespace v0
}  // namespace qlora
""" % (len(table), body))
