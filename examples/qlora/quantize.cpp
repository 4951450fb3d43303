// quantize.cpp — `qlora quantize`: a model in NF4, which loads without its 16-bit weights, here and in transformers.
#include "qlora/run/quantize.hpp"

#include <memory>
#include <ostream>

#include "options.hpp"
#include "verb.hpp"

namespace qlora::program {

void add_quantize(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "quantize", "Write a model in NF4, as transformers and bitsandbytes read it");
  auto request = std::make_shared<run::QuantizeRequest>();
  verb.add_model("model", request->model, "Model directory in 16 or 32 bits").required().type_name("DIR");
  verb.add("-o,--out", request->out, "Directory of the model in 4 bits").required().type_name("DIR");
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

}  // namespace qlora::program
