// program.hpp — runs the built program as a user does: a command line in, exit code and both streams out.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "support/scratch.hpp"

namespace program_test {

using test::contents;
using test::Scratch;
namespace fs = std::filesystem;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

/// `arguments` as a shell would read them after the program's name.
inline Outcome qlora(const Scratch& scratch, const std::string& arguments, const std::string& environment = {}) {
  const fs::path out = scratch / "stdout";
  const fs::path err = scratch / "stderr";
  const std::string line = environment + " '" QLORA_PROGRAM "' " + arguments + " >'" + out.string() + "' 2>'" +
                           err.string() + "' </dev/null";
  const int status = std::system(line.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), contents(out), contents(err)};
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// One error: its exit code, nothing on stdout, one line on stderr.
inline void check_refused(const Outcome& outcome, int code) {
  CHECK(outcome.code == code);
  CHECK(outcome.out.empty());
  CHECK(outcome.err.starts_with("qlora: "));
  // One line; then, indented, lines to paste.
  for (std::size_t at = outcome.err.find('\n'); at + 1 < outcome.err.size(); at = outcome.err.find('\n', at + 1)) {
    CHECK(outcome.err.compare(at + 1, 2, "  ") == 0);
  }
  CHECK(outcome.err.ends_with('\n'));
}

/// Exit code of the program, or of a signal as a shell gives it. `line`: a command line of sh, where $qlora is the
/// program; unlike qlora() it says what the streams are.
inline int shell(const Scratch& scratch, const std::string& line) {
  const std::string script = scratch.write("script.sh", "qlora='" QLORA_PROGRAM "'\n" + line + "\n").string();
  const int status = std::system(("sh '" + script + "'").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace program_test
