// qlora/run/read_token.hpp — a secret from a terminal or a pipe: never from the command line, which others can read.
#pragma once

#include <termios.h>
#include <unistd.h>

#include <istream>
#include <ostream>
#include <string>

namespace qlora {
inline namespace v0 {
namespace run {

/// One line from `in`, the program's standard input. On a terminal `prompt` goes to `out` first, and what is typed is
/// not shown. Empty at the end of the input.
[[nodiscard]] inline std::string read_token(std::istream& in, std::ostream& out, const std::string& prompt) {
  termios before{};
  const bool terminal = ::tcgetattr(STDIN_FILENO, &before) == 0;
  if (terminal) {
    termios silent = before;
    silent.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    out << prompt << std::flush;
    (void)::tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent);
  }
  std::string line;
  std::getline(in, line);
  if (terminal) {
    (void)::tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
    out << '\n';
  }
  const std::size_t end = line.find_last_not_of(" \t\r");
  return line.substr(0, end == std::string::npos ? 0 : end + 1);
}

}  // namespace run
}  // namespace v0
}  // namespace qlora
