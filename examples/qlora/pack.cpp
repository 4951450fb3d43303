// pack.cpp — `qlora pack`: documents to windows of token ids, each document isolated, nothing dropped uncounted.
#include "qlora/run/pack.hpp"

#include <memory>
#include <ostream>

#include "options.hpp"
#include "qlora/error.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_pack(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "pack", "Turn documents into windows of token ids");
  auto request = std::make_shared<run::PackRequest>();
  verb.add("documents", request->documents, "Documents: .jsonl, .txt or .md").required().type_name("FILE...");
  verb.add_model("-m,--model", request->model, "Model directory, or a tokenizer.model or tokenizer.json")
      .required()
      .type_name("DIR");
  verb.add_output("-o,--out", request->out, Written::directory, "Directory of the data set")
      .required()
      .type_name("DIR");
  add_table(verb, request->packing);
  add_table(verb, request->chat);
  add_table(verb, request->replay);
  verb.on_call([&call, request, verb] {
    call.action = [request, limited = verb.given("--replay-limit")](Context& context) {
      if (limited && request->replay.replay.empty()) {
        throw Error("--replay-limit says how many documents are replayed; give --replay", ErrorKind::usage);
      }
      check_no_model(request->out);
      const run::PackResult result = run::pack(*request, context.progress);
      context.out << result.documents << " documents (" << result.replayed << " replayed, " << result.skipped_documents
                  << " without text, " << result.cut_documents << " cut) -> " << result.windows << " windows of "
                  << result.seq << ": " << result.tokens << " tokens, " << result.labelled << " labelled, "
                  << result.padding << " padding, " << result.dropped_tokens << " dropped\n";
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
