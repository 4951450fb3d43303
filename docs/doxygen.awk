# What Doxygen reads in place of a header: awk -f doxygen.awk HEADER. Lines keep their numbers.
#   The first comment, "// qlora/x.hpp — what it is for", becomes the documentation of the file. Indented lines in it
#   keep their columns.
#   An operator of the CPU, a header of cpu/ whose first comment has a line "Math", is not public: nothing is left of
#   it.
#   An option, a member that a table of run/option.hpp names, gets the help text, the range and the unit of its row.
#   A defaulted operator== and the names_of of an enumeration get their one sentence.
#   The inline namespace v0, which users do not write, is left out.
{ line[NR] = $0 }
/^\/\/ Math / && FILENAME ~ /qlora\/cpu\// {
  hidden = 1
  exit
}

# The string literals that `text` begins with, as one text.
function quoted(text,    out, part) {
  out = ""
  while (match(text, /^[ ]*"([^"\\]|\\.)*"/)) {
    part = substr(text, 1, RLENGTH)
    text = substr(text, RLENGTH + 1)
    sub(/^[ ]*"/, "", part)
    sub(/"$/, "", part)
    gsub(/\\"/, "\"", part)
    out = out part
  }
  return out
}
# Characters that Doxygen would take for markup.
function plain(text) {
  gsub(/[\\@<>#]/, "\\\\&", text)
  return text
}
# Reads one row of a table into help[STRUCT, MEMBER].
function read_row(row,    name, at, text, range) {
  if (match(row, /&[A-Za-z]+::[a-z_0-9]+/)) {
    split(substr(row, RSTART + 1, RLENGTH - 1), name, "::")
  } else if (match(row, /Parsed<[A-Za-z]+>/)) {  # written as text: the row has the member's name
    name[1] = substr(row, RSTART + 7, RLENGTH - 8)
    match(row, /\.name = "[^"]*"/)
    name[2] = substr(row, RSTART + 9, RLENGTH - 10)
  } else {
    return
  }
  at = index(row, ".help = ")
  if (!at) return
  text = quoted(substr(row, at + 8))
  if (match(row, /\.range = \{[^}]*\}/)) {
    range = substr(row, RSTART + 10, RLENGTH - 11)
    sub(/, /, " to ", range)
    text = text "; from " range
  }
  if (match(row, /\.unit = "[^"]*"/)) text = text " " substr(row, RSTART + 9, RLENGTH - 10)
  help[name[1], name[2]] = plain(text) "."
}

END {
  if (hidden) exit
  row = ""
  for (i = 1; i <= NR; ++i) {
    if (line[i] ~ /^ +(\{\.name = |\}\);)/) {
      read_row(row)
      row = ""
    }
    if (line[i] ~ /^ +(\{\.name = |\.|")/) {
      part = line[i]
      sub(/^ +/, " ", part)
      row = row part
    }
  }
  columns = 0
  head = line[1] ~ /^\/\/ [^ ]+ — /
  for (i = 1; i <= NR; ++i) {
    text = line[i]
    if (head) {
      if (i == 1) sub(/^\/\/ [^ ]+ — /, "// ", text)
      indented = text ~ /^\/\/  /
      if (text ~ /^\/\//) {
        mark = indented == columns ? "" : indented ? " <pre>" : " </pre>"
        text = "///" mark plain(substr(text, mark == " <pre>" ? 4 : 3))
        columns = indented
      }
      if (text ~ /^#pragma once/) {
        text = "///" (columns ? " </pre>" : "") " \\file"
        head = 0
      }
    }
    if (text ~ /^inline namespace v0 \{$/ || text ~ /^\}  \/\/ namespace v0$/) text = ""
    if (text == "template <>" && line[i + 1] ~ / names_of</) text = "/** Texts of the values, in their order. */ " text
    if (text ~ /operator==.* = default;$/) text = text "  ///< Compares all members."
    if (match(text, /^struct [A-Za-z]+ \{/)) owner = substr(text, 8, RLENGTH - 9)
    if (text ~ /^\};/) owner = ""
    if (owner != "" && match(text, /^  [^ ].*;/)) {
      declaration = substr(text, 1, RLENGTH)
      name_at = declaration
      sub(/( = .*|\{.*)?;$/, "", name_at)
      sub(/^.*[ >]/, "", name_at)
      if ((owner, name_at) in help) {
        rest = substr(text, RLENGTH + 1)
        sub(/^ *\/\/\/< */, "", rest)
        text = declaration "  ///< " help[owner, name_at] (rest == "" ? "" : " " rest)
      }
    }
    print text
  }
}
