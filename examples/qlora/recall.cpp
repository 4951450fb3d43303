// recall.cpp — `qlora recall`: a model writes down what it knows, to be replayed while it learns.
#include "qlora/run/recall.hpp"

#include <memory>
#include <ostream>

#include "options.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_recall(OptionSet app, Invocation& call) {
  OptionSet verb =
      add_verb(app, call, "recall", "Let a model write down what it knows, to be replayed while it learns");
  auto request = std::make_shared<run::RecallRequest>();
  verb.add_model("model", request->model, "Model directory").required().type_name("DIR");
  add_table(verb, request->weights);
  add_table(verb, request->sampling);
  add_table(verb, request->device);
  add_table(verb, request->recall);
  add_table(verb, request->chat);
  verb.add_output("-o,--out", request->out, Written::file,
                  "Documents: a .jsonl file for --replay, or for an arm's replay")
      .required()
      .type_name("FILE");
  verb.on_call([&call, request] {
    call.action = [request](Context& context) {
      check_folder_of("--out", request->out);
      const run::RecallResult result = run::recall(*request, context.progress);
      context.out << result.documents << " documents, " << result.chats << " of them chats, in " << result.out.string()
                  << "; " << result.left_out << " had no end or no form and were left out\n";
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
