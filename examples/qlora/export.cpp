// export.cpp — `qlora export`: a model, or an adapter, as a GGUF file for llama.cpp.
#include "qlora/run/export.hpp"

#include <memory>
#include <ostream>

#include "options.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_export(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "export", "Write a model, or an adapter, for llama.cpp");
  auto request = std::make_shared<run::ExportRequest>();
  verb.add_model("model", request->model, "Model directory, a merged one for instance").required().type_name("DIR");
  verb.add_model("-a,--adapter", request->adapter, "Adapter directory: it alone is written, for use beside the model")
      .type_name("DIR");
  add_any_base(verb, request->any_base);
  verb.add("-o,--out", request->out, "File that is written").required().type_name("FILE");
  add_table(verb, request->exporting);
  add_table(verb, request->device, {.only = {"no_verify"}});
  verb.on_call([&call, request] {
    call.action = [request](Context& context) {
      check_folder_of("--out", request->out);
      const run::ExportResult result = run::export_model(*request, context.progress);
      context.out << result.tensors << " tensors, " << result.bytes << " bytes, in " << result.path.string() << '\n';
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
