// hub.cpp — `qlora login`, `logout`, `pull` and `accept`: models of the Hugging Face hub.
#define QLORA_RUN_CODE  // qlora/run/prebuilt.hpp: the hub's steps are compiled here
#include "qlora/run/hub.hpp"

#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "options.hpp"
#include "qlora/run/read_token.hpp"
#include "verb.hpp"

namespace qlora::program {

namespace {

struct PullOptions {
  std::string model;
  std::vector<std::string> include;
};

void add_name(OptionSet verb, std::string& model) {
  verb.add("model", model, "ORG/NAME or ORG/NAME@REVISION").required();
}

Result pull(const PullOptions& options, Context& context) {
  const run::PullResult result =
      run::pull_files(run::named_hub_model(options.model), run::hub_place(), options.include, context.progress);
  context.out << result.path.string() << '\n';
  return result_of(result);
}

Result accept(const std::string& name, Context& context) {
  const run::AcceptResult result = run::accept_model(run::named_hub_model(name), run::hub_place(), context.progress);
  for (const std::string& text : result.legal) context.out << text << '\n';
  context.out << result.licence << ", accepted " << result.accepted_at << ", see " << result.record.string() << '\n';
  return result_of(result);
}

Result log_out(Context& context) {
  const run::HubPlace place = run::hub_place();
  context.out << (run::log_out(place) ? "deleted the token in " : "there was no token in ") << place.token_file.string()
              << '\n';
  if (!run::hub_place().token.empty()) context.progress.say("HF_TOKEN still holds a token");
  return no_result();
}

}  // namespace

std::filesystem::path model_directory(const std::filesystem::path& named, Progress& progress,
                                      const std::filesystem::path& folder) {
  return run::model_directory(named, progress, folder);
}

void add_hub(OptionSet app, Invocation& call) {
  add_verb(app, call, "login", "Store a token of the Hugging Face hub, read from stdin").on_call([&call] {
    call.action = [](Context& context) {
      const run::HubPlace place = run::hub_place();
      const std::string token = run::read_token(std::cin, std::cerr, "token (is not shown): ");
      context.out << run::log_in(token, place) << ", token in " << place.token_file.string() << '\n';
      return no_result();
    };
  });
  add_verb(app, call, "logout", "Delete the stored token of the Hugging Face hub").on_call([&call] {
    call.action = log_out;
  });
  OptionSet get = add_verb(app, call, "pull", "Download a model of the Hugging Face hub into its cache");
  auto options = std::make_shared<PullOptions>();
  add_name(get, options->model);
  get.add("--include", options->include,
          "Download these files instead of those that a model needs: \"*.gguf\", \"onnx/*\"; several are allowed")
      .type_name("PATTERN...");
  get.on_call([&call, options] { call.action = [options](Context& c) { return pull(*options, c); }; });
  OptionSet agree = add_verb(app, call, "accept", "Record that you accepted a model's licence, and name its texts");
  auto model = std::make_shared<std::string>();
  add_name(agree, *model);
  agree.on_call([&call, model] { call.action = [model](Context& c) { return accept(*model, c); }; });
}

}  // namespace qlora::program
