// merge.cpp — `qlora merge`: a model with the adapter inside its weights, W + scale B A, for programs that know
// no adapters.
#include "qlora/run/merge.hpp"

#include <array>
#include <cstdio>
#include <memory>
#include <ostream>

#include "options.hpp"
#include "verb.hpp"

namespace qlora::program {

namespace {

void write_table(std::ostream& out, const run::MergeCertificate& certificate) {
  std::array<char, 160> line{};
  const auto write = [&](const auto&... columns) {
    std::snprintf(line.data(), line.size(), columns...);
    out << line.data() << '\n';
  };
  write("%d windows, %lld tokens; perplexity with the adapter %.4f", certificate.windows,
        static_cast<long long>(certificate.tokens), certificate.perplexity);
  write("%-10s %12s %12s %12s %8s %12s", "onto", "max logit", "mean logit", "KL, nats", "top-1", "perplexity");
  for (const run::MergeDifference& row : certificate.merged) {
    write("%-10s %12.3e %12.3e %12.3e %7.2f%% %12.4f%s", row.onto.c_str(), row.largest_logit, row.mean_logit, row.kl,
          100 * row.agreement, row.perplexity, row.onto == certificate.written ? "  written" : "");
  }
}

}  // namespace

void add_merge(OptionSet app, Invocation& call) {
  OptionSet verb = add_verb(app, call, "merge", "Write a model with the adapter inside its weights");
  auto request = std::make_shared<run::MergeRequest>();
  verb.add_model("-m,--model", request->model, "Model directory that the adapter was trained on")
      .required()
      .type_name("DIR");
  verb.add_model("-a,--adapter", request->adapter, "Adapter directory").required().type_name("DIR");
  add_any_base(verb, request->any_base);
  verb.add_output("-o,--out", request->out, Written::directory, "Directory of the merged model")
      .required()
      .type_name("DIR");
  add_table(verb, request->merging);
  add_table(verb, request->device, {.only = {"use", "memory_cap", "threads", "no_verify"}});
  verb.on_call([&call, request] {
    call.action = [request](Context& context) {
      const run::MergeResult result = run::merge(*request, context.progress);
      if (result.certificate) write_table(context.out, *result.certificate);
      context.out << result.changed << " of " << result.tensors << " tensors changed, model in " << result.path.string()
                  << '\n';
      return result_of(result);
    };
  });
}

}  // namespace qlora::program
