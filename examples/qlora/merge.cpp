// merge.cpp — `qlora merge`: a model with the adapter inside its weights, W + scale B A, for programs that know
// no adapters.
#include "qlora/run/merge.hpp"

#include <memory>
#include <ostream>

#include "options.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_merge(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "merge", "Write a model with the adapter inside its weights");
  auto request = std::make_shared<run::MergeRequest>();
  verb.add("-m,--model", request->model, "Model directory that the adapter was trained on").required().type_name("DIR");
  verb.add("-a,--adapter", request->adapter, "Adapter directory").required().type_name("DIR");
  add_any_base(verb, request->any_base);
  verb.add("-o,--out", request->out, "Directory of the merged model").required().type_name("DIR");
  add_table(verb, request->merging);
  add_table(verb, request->device, {.only = {"use", "memory_cap", "threads", "no_verify"}});
  verb.on_call([&call, request] {
    call.action = [request](Context& context) {
      const run::MergeResult result = run::merge(*request, context.progress);
      context.out << result.changed << " of " << result.tensors << " tensors changed, model in " << result.path.string()
                  << '\n';
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
