// program.hpp — runs the built program as a user does: a command line in, exit code and both streams out.
#pragma once

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

}  // namespace program_test
