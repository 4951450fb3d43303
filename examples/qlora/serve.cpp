// serve.cpp — `qlora serve`: a model and adapters answer over HTTP, until Ctrl-C or SIGTERM.
#define QLORA_RUN_CODE  // qlora/run/prebuilt.hpp: the server is compiled here
#include "qlora/serve/serve.hpp"

#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "options.hpp"
#include "qlora/error.hpp"
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

Result run_server(const ServeOptions& options, Context& context) {
  serve::ServeRequest request = options.request;
  if (options.models.size() > 1) {
    throw Error(concat("one base is served, ", options.models[0], "; ", options.models[1],
                       " needs a process of its own, or is an adapter: --adapter NAME=DIR"),
                ErrorKind::usage);
  }
  if (!options.models.empty()) std::tie(request.name, request.model) = named(options.models[0]);
  for (const std::string& text : options.adapters) {
    auto [name, dir] = named(text);
    if (name.empty()) throw Error(concat("--adapter is ", text, "; it must be NAME=DIR"), ErrorKind::usage);
    request.adapters.push_back({std::move(name), std::move(dir)});
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
  verb.add("model", options->models, "Model directory, NAME=DIR to name it; without it HF_MODEL_ID, else /opt/ml/model")
      .type_name("DIR");
  verb.add("-a,--adapter", options->adapters, "Adapters for the 4-bit model, chosen by a request's `model`")
      .type_name("NAME=DIR...");
  add_table(verb, options->request.serving);
  add_table(verb, options->request.weights);
  add_table(verb, options->request.device);
  add_table(verb, options->request.chat);
  add_any_base(verb, options->request.any_base);
  verb.on_call([&call, options] { call.action = [options](Context& c) { return run_server(*options, c); }; });
}

}  // namespace qlora::program
