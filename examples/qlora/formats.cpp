// formats.cpp — a model in another format: `qlora quantize`, in NF4, which loads without its 16-bit weights, here and
// in transformers; `qlora export`, as a GGUF file for llama.cpp, as which an adapter can be written, too.
#include "qlora/run/quantize.hpp"

#include <memory>
#include <ostream>

#include "options.hpp"
#include "qlora/run/export.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_quantize(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "quantize", "Write a model in NF4, as transformers and bitsandbytes read it");
  auto request = std::make_shared<run::QuantizeRequest>();
  verb.add_model("model", request->model, "Model directory in 16 or 32 bits").required().type_name("DIR");
  verb.add_output("-o,--out", request->out, Written::directory, "Directory of the model in 4 bits")
      .required()
      .type_name("DIR");
  add_table(verb, request->quantizing);
  add_table(verb, request->device, {.only = {"threads", "no_verify"}});
  verb.on_call([&call, request] {
    call.action = [request](Context& context) {
      const run::QuantizeResult result = run::quantize(*request, context.progress);
      context.out << result.quantized << " of " << result.tensors << " tensors in NF4, model in "
                  << result.path.string() << '\n';
      return result_of(result);
    };
  });
}

void add_export(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "export", "Write a model, or an adapter, for llama.cpp");
  auto request = std::make_shared<run::ExportRequest>();
  verb.add_model("model", request->model, "Model directory, a merged one for instance").required().type_name("DIR");
  verb.add_model("-a,--adapter", request->adapter, "Adapter directory: it alone is written, for use beside the model")
      .type_name("DIR");
  add_any_base(verb, request->any_base);
  verb.add_output("-o,--out", request->out, Written::file, "File that is written").required().type_name("FILE");
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
