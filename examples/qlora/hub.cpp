// hub.cpp — `qlora login`, `pull` and `accept`: models of the Hugging Face hub.
#define QLORA_RUN_CODE  // qlora/run/prebuilt.hpp: the hub's steps are compiled here
#include "qlora/run/hub.hpp"

#include <iostream>
#include <memory>

#include "options.hpp"
#include "qlora/run/read_token.hpp"
#include "verb.hpp"

namespace qlora::program {

std::filesystem::path model_directory(const std::filesystem::path& named, Progress& progress) {
  return run::model_directory(named, progress);
}

template <class Use>
static void add_verb_of_model(OptionSet app, Invocation& call, const char* name, const char* help, Use use) {
  OptionSet verb = add_verb(app, call, name, help);
  auto model = std::make_shared<std::string>();
  verb.add("model", *model, "ORG/NAME or ORG/NAME@REVISION").required();
  verb.on_call([&call, model, use] { call.action = [model, use](Context& c) { return use(*model, c); }; });
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
  const auto pull = [](const std::string& name, Context& context) {
    const auto result = run::pull_model(run::named_hub_model(name), run::hub_place(), context.progress);
    context.out << result.path.string() << '\n';
    return result_of(result);
  };
  add_verb_of_model(app, call, "pull", "Download a model of the Hugging Face hub into its cache", pull);
  const auto accept = [](const std::string& name, Context& context) {
    const auto result = run::accept_model(run::named_hub_model(name), run::hub_place(), context.progress);
    for (const std::string& text : result.legal) context.out << text << '\n';
    context.out << result.licence << ", accepted " << result.accepted_at << ", see " << result.record.string() << '\n';
    return result_of(result);
  };
  add_verb_of_model(app, call, "accept", "Record that you accepted a model's licence, and name its texts", accept);
}

}  // namespace qlora::program
