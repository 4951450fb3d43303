// parts.cpp — what this build of the program is made of, and the verbs that it lacks a library for: those say what to
// install. The build defines QLORA_HAS_... as 0 or 1 for this file and leaves out the files of such verbs.
#include <span>
#include <string>

#include "options.hpp"
#include "qlora/error.hpp"
#include "steps.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

struct Part {
  const char* name;
  const char* package;  ///< of Debian
  bool is_here;
};

/// Paths in S3 need the first two, `fetch` the next two from libcurl on, `run` three, `serve` the last.
constexpr Part parts[] = {{"libxml2", "libxml2-dev", QLORA_HAS_XML2 != 0},
                          {"libcurl", "libcurl4-openssl-dev", QLORA_HAS_CURL != 0},
                          {"libgumbo", "libgumbo-dev", QLORA_HAS_GUMBO != 0},
                          {"toml++", "libtomlplusplus-dev", QLORA_HAS_TOML != 0},
                          {"Boost", "libboost1.81-dev", QLORA_HAS_BOOST != 0}};

/// What these parts are called, and how they are installed, those that are not here.
struct Missing {
  std::string names;
  std::string packages;

  explicit Missing(std::span<const Part> needs) {
    for (const Part& part : needs) {
      if (part.is_here) continue;
      names += (names.empty() ? "" : " and ") + std::string(part.name);
      packages += std::string(" ") + part.package;
    }
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(what + " is not in this build, which is without " + names + "; on Debian: apt install" + packages +
                    ", then configure and build again",
                ErrorKind::resource);
  }
};

/// A verb that only says which of its parts are not here, whatever its arguments.
[[maybe_unused]] void add_without(OptionSet app, Invocation& call, const std::string& name,
                                  std::span<const Part> needs) {
  const Missing missing(needs);
  OptionSet verb = app.subcommand(name, "Not in this build, which is without " + missing.names);
  verb.take_any_arguments();
  verb.on_call([&call, name, missing] {
    call.action = [name, missing](Context&) -> Result { missing.refuse("`qlora " + name + "`"); };
  });
}

}  // namespace

#if !QLORA_HAS_CURL || !QLORA_HAS_GUMBO
void add_fetch(OptionSet app, Invocation& call) { add_without(app, call, "fetch", std::span(parts).subspan(1, 2)); }
#endif
#if !QLORA_HAS_CURL
void add_hub(OptionSet app, Invocation& call) {
  for (const char* verb : {"login", "logout", "pull", "accept"})
    add_without(app, call, verb, std::span(parts).subspan(1, 1));
}
std::filesystem::path model_directory(const std::filesystem::path& named, Progress&, const std::filesystem::path&) {
  return named;
}
#endif
#if !QLORA_HAS_CURL || !QLORA_HAS_GUMBO || !QLORA_HAS_TOML
void add_run(OptionSet app, Invocation& call) { add_without(app, call, "run", std::span(parts).subspan(1, 3)); }
#endif
#if !QLORA_HAS_CURL || !QLORA_HAS_XML2
std::filesystem::path local_path(const std::filesystem::path& named, Progress&) {
  if (run::is_remote(named)) Missing(std::span(parts).first(2)).refuse(named.string() + ": S3");
  return named;
}
run::RemoteOutput stage_output(const std::string& address, bool, bool, Progress&) {
  Missing(std::span(parts).first(2)).refuse(address + ": S3");
}
void publish_output(const run::RemoteOutput&, Progress&) {}
CopyMeanwhile copy_meanwhile(const run::RemoteOutput&) { return {}; }
#endif
#if !QLORA_HAS_BOOST
void add_serve(OptionSet app, Invocation& call) { add_without(app, call, "serve", std::span(parts).last(1)); }
#endif

std::string version_text() {
  std::string text = "qlora " QLORA_VERSION;
#ifdef QLORA_CUDA
  text += "\nCUDA: yes";
#else
  text += "\nCUDA: no";
#endif
  for (const Part& part : parts) text += std::string("\n") + part.name + (part.is_here ? ": yes" : ": no");
  text += "\nmodels:" + configs_text();
  return text;
}

}  // namespace qlora::program
