// serve.cpp — `qlora serve`: a model and adapters answer over HTTP, until Ctrl-C or SIGTERM.
#define QLORA_RUN_CODE  // qlora/run/prebuilt.hpp: the server is compiled here
#include "qlora/serve/serve.hpp"

#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
#include "qlora/run/hub_cache.hpp"
#include "verb.hpp"

namespace qlora::program {
namespace {

struct ServeOptions {
  std::vector<std::string> models;
  std::vector<std::string> adapters;
  serve::ServeRequest request;
};

/// "NAME=DIR" as its parts; a text without a name is a directory, as is one that exists as it stands.
std::pair<std::string, std::filesystem::path> named(const std::string& text) {
  const std::size_t at = text.find('=');
  if (at == std::string::npos || std::filesystem::exists(text)) return {{}, text};
  return {text.substr(0, at), text.substr(at + 1)};
}

/// The base of an adapter, "DIR@BASE"; without one the only base. Cuts the name of the base off. What follows the @ of
/// a name of the hub is a revision where no base has that name.
serve::ServedBase& base_of(std::filesystem::path& dir, std::vector<serve::ServedBase>& bases) {
  const std::string text = dir.string();
  const std::size_t at = text.rfind('@');
  if (at != std::string::npos && !std::filesystem::exists(dir)) {
    const std::string name = text.substr(at + 1);
    for (serve::ServedBase& base : bases) {
      if (base.name != name) continue;
      dir = text.substr(0, at);
      return base;
    }
    if (!run::hub_model(text)) {
      throw Error(concat("--adapter is on ", name, ", which is none of the bases; name them NAME=DIR"),
                  ErrorKind::usage);
    }
  }
  if (bases.size() > 1) {
    throw Error(concat("--adapter ", text, ": there are ", bases.size(), " bases; it must be NAME=DIR@BASE"),
                ErrorKind::usage);
  }
  if (bases.empty()) bases.emplace_back();  // that of the environment
  return bases.front();
}

Result run_server(const ServeOptions& options, Context& context) {
  serve::ServeRequest request = options.request;
  for (const std::string& text : options.models) {
    auto [name, dir] = named(text);
    request.bases.push_back(
        {program::model_directory(local_path(dir, context.progress), context.progress), std::move(name), {}});
  }
  request.bases = serve::named_bases(request.bases);
  for (const std::string& text : options.adapters) {
    auto [name, dir] = named(text);
    if (name.empty()) throw Error(concat("--adapter is ", text, "; it must be NAME=DIR"), ErrorKind::usage);
    serve::ServedBase& base = base_of(dir, request.bases);
    base.adapters.push_back(
        {std::move(name), local_path(program::model_directory(dir, context.progress), context.progress)});
  }
  request.version = QLORA_VERSION;
  serve::serve_model(request, context.progress, [&](const std::string& address) {
    context.out << "listening on " << address << std::endl;  // at once: who waits for it reads this line
  });
  return no_result();
}

}  // namespace

void add_serve(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "serve", "Answer over HTTP, in the forms of OpenAI and text-generation-inference");
  auto options = std::make_shared<ServeOptions>();
  verb.add("model", options->models,
           "Model directories or names of the hub, NAME=DIR to name one, or what `qlora run` wrote: the models of the "
           "job with their "
           "adapters; "
           "without it HF_MODEL_ID, else /opt/ml/model")
      .type_name("DIR...");
  verb.add("-a,--adapter", options->adapters,
           "Adapters for 4-bit models, directories or names of the hub, chosen by a request's `model`; @BASE names the "
           "model where there are several")
      .type_name("NAME=DIR[@BASE]...");
  add_table(verb, options->request.serving);
  add_table(verb, options->request.weights);
  add_table(verb, options->request.device);
  add_table(verb, options->request.chat);
  add_any_base(verb, options->request.any_base);
  verb.on_call([&call, options] { call.action = [options](Context& c) { return run_server(*options, c); }; });
}

}  // namespace qlora::program
